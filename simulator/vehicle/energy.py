"""What the van lives on: the traction battery and its cells, the 12 V network, fuel, and heat."""

from math import pi
from random import Random

from simulator.vehicle.state import (
    CONTACTORS_CLOSED,
    CONTACTORS_OPEN,
    CONTACTORS_PRECHARGE,
    CONVERTER_FAILED,
    CONVERTER_OFF,
    CONVERTER_RUNNING,
    ENGINE_CRANKING,
    ENGINE_RUNNING,
    FAULT_CONVERTER,
    FAULT_INSULATION,
    KEY_ACCESSORY,
    STEP,
    WIPERS_OFF,
    State,
)

CELLS, SENSORS = 96, 48
CAPACITY_AH = 40.0
CELL_OHM = 0.0008
DRIVE_EFFICIENCY = 0.92  # of motor and inverter, either way
CONVERTER_EFFICIENCY = 0.93
# Voltage of a resting cell: at 0, 10, ... 100 % of charge.
RESTING_VOLTS = (3.00, 3.38, 3.49, 3.56, 3.61, 3.66, 3.73, 3.82, 3.92, 4.03, 4.16)
PRECHARGE_TICKS = 35
TANK_LITRES = 70.0


class Energy:
    def __init__(self, s: State, seed: int) -> None:
        random = Random(f"{seed} energy")
        s.state_of_charge = 55 + 30 * random.random()
        s.ambient_degrees = 2 + 24 * random.random()
        s.fuel_level = 25 + 70 * random.random()
        warm = 45 * random.random()  # how warm the last drive left it
        s.coolant_degrees = s.engine_oil_degrees = s.gearbox_oil_degrees = s.ambient_degrees + warm
        s.exhaust_degrees = s.motor_degrees = s.ambient_degrees + warm / 2
        s.pack_degrees = s.ambient_degrees + 6 * random.random()
        # No two cells are alike.
        self._cell_volts = [0.008 * (random.random() - 0.5) for _ in range(CELLS)]
        self._cell_ohms = [CELL_OHM * (0.9 + 0.2 * random.random()) for _ in range(CELLS)]
        self._sensor_degrees = [3.0 * (random.random() - 0.5) for _ in range(SENSORS)]
        for ohms in self._cell_ohms:
            s.pack_resistance += ohms
        self._contactor_ticks = 0
        self._load_cells(s)

    def step(self, s: State) -> None:
        self._switch(s)
        self._supply(s)
        self._battery(s)
        self._burn(s)
        self._warm(s)

    def _switch(self, s: State) -> None:
        """Contactors close a moment after the key is turned, and the converter runs behind them."""
        self._contactor_ticks = self._contactor_ticks + 1 if s.key > KEY_ACCESSORY else 0
        if not self._contactor_ticks:
            s.contactors = CONTACTORS_OPEN
        else:
            s.contactors = CONTACTORS_CLOSED if self._contactor_ticks > PRECHARGE_TICKS else CONTACTORS_PRECHARGE
        if s.engine != ENGINE_RUNNING or s.contactors != CONTACTORS_CLOSED:
            s.converter = CONVERTER_OFF
        else:
            s.converter = CONVERTER_FAILED if s.broken == FAULT_CONVERTER else CONVERTER_RUNNING
        leaking = s.broken == FAULT_INSULATION
        s.insulation_kohm += ((90.0 if leaking else 1500.0) - s.insulation_kohm) * STEP / 0.25

    def _supply(self, s: State) -> None:
        s.supply_load = 18.0 + 14 * (s.light_switch > 0) + 9 * s.high_beam + 4 * s.braking
        s.supply_load += 6.0 * (s.wipers != WIPERS_OFF) + 3 * (s.left_lamp + s.right_lamp)
        if s.engine == ENGINE_CRANKING:
            s.supply_load += 260
            wanted, lag = 9.7, 0.06
        elif s.converter == CONVERTER_RUNNING:
            wanted, lag = 14.2, 0.25
        else:
            wanted, lag = 12.5 - 0.012 * s.supply_load, 0.40
        s.supply_voltage += (wanted - s.supply_voltage) * STEP / lag
        s.converter_current = s.supply_load + 12.0 if s.converter == CONVERTER_RUNNING else 0.0

    def _battery(self, s: State) -> None:
        shaft_watts = s.motor_torque * s.input_rpm * 2 * pi / 60
        motor_watts = shaft_watts / DRIVE_EFFICIENCY if shaft_watts > 0 else shaft_watts * DRIVE_EFFICIENCY
        converter_watts = s.converter_current * s.supply_voltage / CONVERTER_EFFICIENCY
        closed = s.contactors == CONTACTORS_CLOSED
        s.motor_current = motor_watts / s.pack_voltage if closed else 0.0
        s.pack_current = s.motor_current + (converter_watts / s.pack_voltage if closed else 0.0)
        ampere_hours = s.pack_current * STEP / 3600
        s.state_of_charge -= 100 * ampere_hours / CAPACITY_AH
        s.charge_out_ah += max(0.0, ampere_hours)
        s.charge_in_ah += max(0.0, -ampere_hours)
        self._load_cells(s)
        s.energy_drawn_wh += ampere_hours * s.pack_voltage

    def _load_cells(self, s: State) -> None:
        tens = min(9, int(s.state_of_charge / 10))
        low, high = RESTING_VOLTS[tens], RESTING_VOLTS[tens + 1]
        rest, current = low + (high - low) * (s.state_of_charge / 10 - tens), s.pack_current
        s.cell_volts = [
            rest + more - current * ohms for more, ohms in zip(self._cell_volts, self._cell_ohms, strict=True)
        ]
        # Not sum(), which rounds differently from Python 3.12 on.
        volts = 0.0
        for cell in s.cell_volts:
            volts += cell
        s.pack_voltage = volts
        if s.tick % 10 == 0:
            base = s.pack_degrees
            s.cell_degrees = [base + more for more in self._sensor_degrees]

    def _burn(self, s: State) -> None:
        s.engine_revolutions += s.rpm * STEP / 60
        kilowatts = s.engine_torque * s.rpm * 2 * pi / 60_000
        cut = s.engine != ENGINE_RUNNING or (s.clutch_closed and s.engine_torque < 0)
        s.fuel_rate = 0.0 if cut else 0.0006 * s.rpm + 0.24 * max(0.0, kilowatts)
        s.fuel_used_ml += s.fuel_rate * STEP / 3.6
        s.fuel_level = max(0.0, s.fuel_level - s.fuel_rate * STEP / 36 / TANK_LITRES)

    def _warm(self, s: State) -> None:
        """Heat in, heat out: each part leans towards its surroundings."""
        running = s.engine == ENGINE_RUNNING
        air = s.ambient_degrees
        s.coolant_degrees += STEP * (
            0.012 * s.fuel_rate * (s.coolant_degrees < 90) - 0.0006 * (s.coolant_degrees - air)
        )
        s.engine_oil_degrees += STEP * 0.01 * (s.coolant_degrees + 4 * running - s.engine_oil_degrees)
        s.gearbox_oil_degrees += STEP * 0.003 * (s.coolant_degrees - s.gearbox_oil_degrees)
        s.exhaust_degrees += STEP * 0.10 * (air + 160 * running + 18 * s.fuel_rate - s.exhaust_degrees)
        s.motor_degrees += STEP * (0.00003 * s.motor_torque * s.motor_torque - 0.004 * (s.motor_degrees - air))
        s.pack_degrees += STEP * (0.000008 * s.pack_current * s.pack_current - 0.0008 * (s.pack_degrees - air))
