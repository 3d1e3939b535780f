"""Which number of the physics each signal shows, and how well its sensor measures.

    SENSORS["SPEED"]["SPEED"] = shows("speed", 3.6, noise=0.02)
    message  ▲        ▲ signal          ▲      ▲           ▲ at most this far off, in the signal's unit
                                        │      from the state's unit to the signal's
                                        attribute of State

What a frame carries is that number, plus noise, rounded to the signal's resolution, and nothing else. COUNTER,
CHECKSUM and the selectors of multiplexed messages are made where frames are made (encode.py).
"""

from collections.abc import Callable
from math import pi
from operator import attrgetter
from typing import Any, NamedTuple

from simulator.vehicle.state import (
    CONTACTORS_CLOSED,
    FAULT_CONVERTER,
    FAULT_INSULATION,
    FAULT_NONE,
    MOTOR_DRIVE,
    MOTOR_IDLE,
    MOTOR_OFF,
    MOTOR_RECUPERATE,
    WIPERS_OFF,
    State,
)

KMH, DEGREES, PERCENT = 3.6, 180 / pi, 100.0
RATED_NM = 350.0  # what J1939 calls reference torque
VIN = b"ZZZB0RDNETZ000001"  # made up: no maker has ZZZ


class Sensor(NamedTuple):
    """read(state) * factor, give or take noise. A quiet sensor shows exactly 0 for 0: a wheel that stands is known to."""

    read: Callable[[State], Any]
    factor: float = 1
    noise: float = 0.0
    quiet: bool = False

    def value(self, s: State) -> Any:
        return self.read(s) * self.factor if self.factor != 1 else self.read(s)


def shows(attribute: str, factor: float = 1, noise: float = 0.0, quiet: bool = False) -> Sensor:
    return Sensor(attrgetter(attribute), factor, noise, quiet)


def item(attribute: str, index: int, factor: float = 1, noise: float = 0.0, quiet: bool = False) -> Sensor:
    return Sensor(lambda s: getattr(s, attribute)[index], factor, noise, quiet)


def _load(s: State) -> float:
    return 100 * max(0.0, s.engine_torque) / s.engine_available if s.engine_available else 0.0


def _motor_mode(s: State) -> int:
    if s.contactors != CONTACTORS_CLOSED:
        return MOTOR_OFF
    return MOTOR_DRIVE if s.motor_torque > 0 else MOTOR_RECUPERATE if s.motor_torque < 0 else MOTOR_IDLE


def _recuperation_share(s: State) -> float:
    motor = max(0.0, -s.motor_torque * s.gear_ratio * 3.2 / 0.34)
    return 100 * motor / (motor + s.friction_force) if s.braking and motor else 0.0


def _clutch_slip(s: State) -> float:
    return 0.0 if s.clutch_closed or not s.rpm else min(100.0, 100 * abs(s.rpm - s.input_rpm) / max(s.rpm, s.input_rpm))


def _gear(s: State) -> int:
    return s.gear if s.gear_ratio else 0


def _brake_light(s: State) -> bool:
    return s.braking or s.acceleration < -1.5


SPN = {FAULT_NONE: 0, FAULT_CONVERTER: 168, FAULT_INSULATION: 520_193}  # battery potential; the maker's own
FMI = {FAULT_NONE: 0, FAULT_CONVERTER: 1, FAULT_INSULATION: 11}

WHEELS = ("FRONT_LEFT", "FRONT_RIGHT", "REAR_LEFT", "REAR_RIGHT")
COLD_TIRE_KPA = (380.0, 382.0, 421.0, 418.0)


def _tire(wheel: int) -> dict[str, Sensor]:
    """Tires warm up with the distance, and their pressure follows."""
    warmth: Callable[[State], float] = lambda s: 25 * s.trip_km / (s.trip_km + 5)  # noqa: E731
    return {
        f"{WHEELS[wheel]}_PRESSURE": Sensor(lambda s: COLD_TIRE_KPA[wheel] + 1.2 * warmth(s)),
        f"{WHEELS[wheel]}_TEMPERATURE": Sensor(lambda s: s.ambient_degrees + warmth(s)),
    }


POWERTRAIN: dict[str, dict[str, Sensor]] = {
    "ENGINE": {
        "RPM": shows("rpm", noise=2.0, quiet=True),
        "TORQUE": shows("engine_torque", noise=0.5, quiet=True),
        "TORQUE_AVAILABLE": shows("engine_available"),
        "LOAD": Sensor(_load),
        "STATE": shows("engine"),
        "FUEL_CUT": Sensor(lambda s: s.clutch_closed and s.engine_torque < 0),
    },
    "PEDALS": {
        "BRAKE_SWITCH": shows("braking"),
        "KICKDOWN": Sensor(lambda s: s.accelerator > 95),
        "ACCELERATOR": shows("accelerator"),
        "BRAKE": shows("brake_pedal"),
        "TORQUE_REQUEST": shows("torque_request"),
    },
    "GEARBOX": {
        "GEAR": shows("gear"),
        "SELECTOR": shows("selector"),
        "SHIFTING": shows("shifting"),
        "TARGET_GEAR": shows("target_gear"),
        "CLUTCH_CLOSED": shows("clutch_closed"),
        "OUTPUT_SPEED": shows("output_rpm", noise=0.5, quiet=True),
        "INPUT_SPEED": shows("input_rpm", noise=1.0, quiet=True),
    },
    "MOTOR": {
        "RPM": shows("input_rpm", noise=1.0, quiet=True),
        "TORQUE": shows("motor_torque", noise=0.2, quiet=True),
        "MODE": Sensor(_motor_mode),
        "TEMPERATURE": shows("motor_degrees"),
        "POWER": Sensor(lambda s: s.motor_torque * s.input_rpm * 2 * pi / 60_000),
    },
    "DRIVE_TORQUE": {
        "WHEEL_TORQUE": shows("wheel_torque"),
        "INPUT_TORQUE": Sensor(lambda s: s.engine_torque + s.motor_torque),
        "ROAD_GRADE": shows("road_grade", PERCENT, noise=0.02),
        "RESISTANCE": shows("resistance"),
    },
    "IGNITION": {"STATE": shows("key"), "READY": shows("ready")},
    "SUPPLY": {
        "VOLTAGE": shows("supply_voltage", noise=0.02),
        "CURRENT": Sensor(lambda s: s.converter_current - s.supply_load, noise=0.3),
    },
    "FUEL": {"RATE": shows("fuel_rate"), "USED": shows("fuel_used_ml"), "LEVEL": shows("fuel_level", noise=0.3)},
    "TEMPERATURES": {
        "COOLANT": shows("coolant_degrees", noise=0.2),
        "ENGINE_OIL": shows("engine_oil_degrees", noise=0.2),
        "GEARBOX_OIL": shows("gearbox_oil_degrees", noise=0.2),
        "INTAKE_AIR": shows("ambient_degrees", noise=0.2),
        "EXHAUST": shows("exhaust_degrees", noise=2.0),
    },
}

CHASSIS: dict[str, dict[str, Sensor]] = {
    "STEERING": {
        "ANGLE": shows("steering_angle", noise=0.1),
        "RATE": shows("steering_rate", noise=0.5),
        "TORQUE": shows("steering_torque", noise=0.03),
        "HANDS_ON": Sensor(lambda s: abs(s.steering_torque) > 0.05),
    },
    "WHEEL_SPEEDS": {name: item("wheels", i, KMH, 0.02, quiet=True) for i, name in enumerate(WHEELS)},
    "SPEED": {
        "SPEED": shows("speed", KMH, noise=0.01, quiet=True),
        "DISPLAYED": Sensor(lambda s: 1.03 * KMH * s.speed + 1 if s.speed else 0.0),
        "STANDSTILL": shows("standstill"),
    },
    "BRAKE": {
        "PRESSURE": shows("brake_pressure", noise=0.2, quiet=True),
        "ACTIVE": shows("braking"),
        "EMERGENCY": shows("emergency"),
        "PARKING_BRAKE": shows("parking_brake"),
        "FRICTION_TORQUE": shows("friction_force", 2.136 / (2 * pi)),
        "DECELERATION_REQUEST": Sensor(lambda s: -s.wanted_acceleration if s.braking else 0.0),
        "RECUPERATION_SHARE": Sensor(_recuperation_share),
    },
    "MOTION": {
        "YAW_RATE": shows("yaw_rate", DEGREES, noise=0.06),
        "LATERAL_ACCELERATION": shows("lateral_acceleration", noise=0.03),
        "LONGITUDINAL_ACCELERATION": shows("acceleration", noise=0.03),
        "SENSOR_TEMPERATURE": Sensor(lambda s: s.ambient_degrees + 6),
    },
    "WHEEL_PULSES": {
        **{
            name: Sensor(lambda s, i=i: int(s.wheel_metres[i] * 96 / 2.136) % 8192)  # type: ignore[misc]
            for i, name in enumerate(WHEELS)
        },
        "FORWARD": Sensor(lambda s: s.speed > 0),
    },
    "SUSPENSION": {name: item("suspension_mm", i, noise=0.1) for i, name in enumerate(WHEELS)},
    "TIRES": {name: sensor for wheel in range(4) for name, sensor in _tire(wheel).items()},
    "ODOMETER": {"TOTAL": shows("total_km"), "TRIP": shows("trip_km")},
    "AMBIENT": {
        "TEMPERATURE": shows("ambient_degrees", noise=0.2),
        "RAIN": shows("rain"),
        "BRIGHTNESS": Sensor(lambda s: 9000 - 60 * s.rain, noise=40),
    },
    "TIME": {"UTC": shows("utc_ns")},
    "DOORS": {
        "DRIVER": shows("driver_door"),
        "PASSENGER": Sensor(lambda s: 0),
        "SIDE": Sensor(lambda s: 0),
        "TAIL": Sensor(lambda s: 0),
        "LOCKED": shows("locked"),
        "DRIVER_BELT": shows("driver_belt"),
    },
    "LIGHTS": {
        "SWITCH": shows("light_switch"),
        "LOW_BEAM": Sensor(lambda s: s.light_switch > 0),
        "HIGH_BEAM": shows("high_beam"),
        "BRAKE_LIGHTS": Sensor(_brake_light),
        "INTERIOR": shows("driver_door"),
    },
    "TURN_INDICATORS": {"STALK": shows("stalk"), "LEFT_LAMP": shows("left_lamp"), "RIGHT_LAMP": shows("right_lamp")},
    "WIPERS": {"MODE": shows("wipers"), "PARKED": Sensor(lambda s: s.wipers == WIPERS_OFF)},
}

DIAGNOSTICS: dict[str, dict[str, Sensor]] = {
    "DIAG": {
        "FAULT": shows("fault"),
        "WARNING_LAMP": Sensor(lambda s: s.fault != FAULT_NONE),
        "FAULTS_STORED": shows("faults_stored"),
        "FAULTS_SEEN": shows("faults_seen"),
        "SECONDS_SINCE_START": shows("seconds"),
        "CODE": shows("fault_code"),
        "STATUS": shows("fault_status"),
        "FREEZE_SPEED": shows("freeze_speed", KMH),
        "FREEZE_RPM": shows("freeze_rpm"),
        "FREEZE_VOLTAGE": shows("freeze_voltage"),
        "FREEZE_COOLANT": shows("freeze_coolant"),
        "FAULT_SECONDS": shows("fault_seconds"),
    },
    "ECU_DATA": {
        "ENGINE_REVOLUTIONS": Sensor(lambda s: int(s.engine_revolutions)),
        "GEARBOX_SHIFTS": shows("shifts"),
        "BRAKE_APPLICATIONS": shows("brake_applications"),
        "SUPPLY_VOLTAGE": shows("supply_voltage", noise=0.03),
        "CELL_VOLTAGE_LOWEST": Sensor(lambda s: min(s.cell_volts)),
        "CELL_VOLTAGE_HIGHEST": Sensor(lambda s: max(s.cell_volts)),
        "CELL_TEMPERATURE_LOWEST": Sensor(lambda s: min(s.cell_degrees)),
        "CELL_TEMPERATURE_HIGHEST": Sensor(lambda s: max(s.cell_degrees)),
        "CHARGE_IN": shows("charge_in_ah"),
        "CHARGE_OUT": shows("charge_out_ah"),
        "INSULATION": shows("insulation_kohm"),
    },
    "VIN": {
        "CHARACTERS_1_TO_7": Sensor(lambda s: int.from_bytes(VIN[:7], "big")),
        "CHARACTERS_8_TO_14": Sensor(lambda s: int.from_bytes(VIN[7:14], "big")),
        "CHARACTERS_15_TO_17": Sensor(lambda s: int.from_bytes(VIN[14:], "big")),
    },
}

BATTERY: dict[str, dict[str, Sensor]] = {
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
    **{
        f"CELL_VOLTAGES_{k + 1}": {
            f"CELL_{cell + 1:02}": item("cell_volts", cell, noise=0.0002) for cell in range(32 * k, 32 * k + 32)
        }
        for k in range(3)
    },
    "CELL_TEMPERATURES": {f"SENSOR_{n + 1:02}": item("cell_degrees", n, noise=0.05) for n in range(48)},
}

TRUCK: dict[str, dict[str, Sensor]] = {
    "EEC1": {
        "TORQUE_MODE": Sensor(lambda s: int(s.accelerator > 0)),
        "DEMANDED_TORQUE": Sensor(lambda s: max(-125.0, min(125.0, 100 * s.torque_request / RATED_NM))),
        "ACTUAL_TORQUE": shows("engine_torque", 100 / RATED_NM),
        "ENGINE_SPEED": shows("rpm", noise=2.0, quiet=True),
    },
    "EEC2": {"ACCELERATOR_POSITION": shows("accelerator"), "LOAD_AT_SPEED": Sensor(_load)},
    "ETC1": {
        "DRIVELINE_ENGAGED": Sensor(lambda s: bool(s.gear_ratio)),
        "SHIFT_IN_PROGRESS": shows("shifting"),
        "OUTPUT_SHAFT_SPEED": shows("output_rpm", noise=0.5, quiet=True),
        "CLUTCH_SLIP": Sensor(_clutch_slip),
        "INPUT_SHAFT_SPEED": shows("input_rpm", noise=1.0, quiet=True),
    },
    "ETC2": {
        "SELECTED_GEAR": Sensor(lambda s: s.target_gear if s.gear_ratio else 0),
        "GEAR_RATIO": shows("gear_ratio"),
        "CURRENT_GEAR": Sensor(_gear),
    },
    "EBC1": {"PEDAL_POSITION": shows("brake_pedal")},
    "EBC2": {
        "FRONT_AXLE_SPEED": shows("speed", KMH, noise=0.01, quiet=True),
        **{f"{name}_RELATIVE": Sensor(lambda s, i=i: KMH * (s.wheels[i] - s.speed)) for i, name in enumerate(WHEELS)},  # type: ignore[misc]
    },
    "VDC2": {
        "STEERING_WHEEL_ANGLE": shows("steering_angle", pi / 180, noise=0.002),
        "YAW_RATE": shows("yaw_rate", noise=0.001),
        "LATERAL_ACCELERATION": shows("lateral_acceleration", noise=0.03),
        "LONGITUDINAL_ACCELERATION": shows("acceleration", noise=0.03),
    },
    "TCO1": {
        "VEHICLE_MOTION": Sensor(lambda s: s.speed > 0),
        "SHAFT_SPEED": shows("output_rpm", noise=0.5, quiet=True),
        "VEHICLE_SPEED": shows("speed", KMH, noise=0.01, quiet=True),
    },
    "CCVS1": {
        "PARKING_BRAKE": shows("parking_brake"),
        "WHEEL_BASED_SPEED": shows("speed", KMH, noise=0.01, quiet=True),
        "BRAKE_SWITCH": shows("braking"),
    },
    "LFE1": {"FUEL_RATE": shows("fuel_rate")},
    "ET1": {
        "COOLANT_TEMPERATURE": shows("coolant_degrees", noise=0.2),
        "OIL_TEMPERATURE": shows("engine_oil_degrees", noise=0.2),
    },
    "VDHR": {"TOTAL_DISTANCE": shows("total_km", 1000), "TRIP_DISTANCE": shows("trip_km", 1000)},
    "VEP1": {
        "CHARGING_VOLTAGE": shows("supply_voltage", noise=0.02),
        "BATTERY_VOLTAGE": shows("supply_voltage", noise=0.02),
    },
    "AMB": {
        "BAROMETRIC_PRESSURE": Sensor(lambda s: 99.0),
        "AIR_TEMPERATURE": shows("ambient_degrees", noise=0.2),
        "INTAKE_AIR_TEMPERATURE": shows("ambient_degrees", noise=0.2),
    },
    "DM1": {
        "WARNING_LAMP": Sensor(lambda s: s.fault != FAULT_NONE),
        "SPN_LOW": Sensor(lambda s: SPN[s.fault] & 0xFFFF),
        "FMI": Sensor(lambda s: FMI[s.fault]),
        "SPN_HIGH": Sensor(lambda s: SPN[s.fault] >> 16),
        "OCCURRENCES": Sensor(lambda s: s.faults_seen),
    },
}

SENSORS = POWERTRAIN | CHASSIS | DIAGNOSTICS | BATTERY | TRUCK
