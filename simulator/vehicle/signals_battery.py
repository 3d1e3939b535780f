"""What the messages on can1 show: battery.dbc, signal by signal."""

from simulator.vehicle.energy import CELLS, SENSORS
from simulator.vehicle.sensors import Sensor, Table, shows, shows_item

CELLS_PER_MESSAGE = 32


def _cells(part: int) -> dict[str, Sensor]:
    first = CELLS_PER_MESSAGE * part
    return {
        f"CELL_{cell + 1:02}": shows_item("cell_volts", cell, noise=0.0002)
        for cell in range(first, first + CELLS_PER_MESSAGE)
    }


BATTERY: Table = {
    "PACK": {
        "CONTACTORS": shows("contactors"),
        "VOLTAGE": shows("pack_voltage", noise=0.05),
        "CURRENT": shows("pack_current", noise=0.05),
        "STATE_OF_CHARGE": shows("state_of_charge"),
        "STATE_OF_HEALTH": Sensor(lambda s: 96.5),
        "POWER": Sensor(lambda s: s.pack_voltage * s.pack_current),
        "ENERGY_DRAWN": shows("energy_drawn_wh"),
        "CELL_VOLTAGE_LOWEST": Sensor(lambda s: min(s.cell_volts)),
        "CELL_VOLTAGE_HIGHEST": Sensor(lambda s: max(s.cell_volts)),
        "CELL_TEMPERATURE_LOWEST": Sensor(lambda s: min(s.cell_degrees)),
        "CELL_TEMPERATURE_HIGHEST": Sensor(lambda s: max(s.cell_degrees)),
        "INSULATION": shows("insulation_kohm"),
    },
    "INVERTER": {
        "DC_VOLTAGE": Sensor(lambda s: s.pack_voltage if s.contactors else 0.0, noise=0.05, quiet=True),
        "DC_CURRENT": shows("motor_current", noise=0.05, quiet=True),
        "PHASE_CURRENT": Sensor(lambda s: abs(s.motor_torque) * 1.9, noise=0.1, quiet=True),
        "RPM": shows("input_rpm", noise=1.0, quiet=True),
        "TORQUE": shows("motor_torque", noise=0.2, quiet=True),
        "COOLANT_TEMPERATURE": Sensor(lambda s: (s.ambient_degrees + s.motor_degrees) / 2),
        "STATOR_TEMPERATURE": shows("motor_degrees"),
    },
    "CONVERTER": {
        "STATE": shows("converter"),
        "INPUT_CURRENT": Sensor(lambda s: s.pack_current - s.motor_current),
        "OUTPUT_VOLTAGE": shows("supply_voltage", noise=0.02),
        "OUTPUT_CURRENT": shows("converter_current", noise=0.1, quiet=True),
    },
    "LIMITS": {
        "DISCHARGE_POWER": Sensor(lambda s: 0.9 * s.state_of_charge),
        "CHARGE_POWER": Sensor(lambda s: 0.9 * (100 - s.state_of_charge)),
        "PACK_RESISTANCE": shows("pack_resistance", 1000),
    },
    **{f"CELL_VOLTAGES_{part + 1}": _cells(part) for part in range(CELLS // CELLS_PER_MESSAGE)},
    "CELL_TEMPERATURES": {f"SENSOR_{n + 1:02}": shows_item("cell_degrees", n, noise=0.05) for n in range(SENSORS)},
}
