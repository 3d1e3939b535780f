"""What the messages on can0 show: powertrain.dbc, chassis.dbc and diagnostics.dbc, signal by signal."""

from math import pi

from simulator.vehicle.physics import CIRCUMFERENCE, FINAL_DRIVE, RADIUS
from simulator.vehicle.sensors import DEGREES, KMH, PERCENT, WHEELS, Sensor, Table, engine_load, shows, shows_item
from simulator.vehicle.state import (
    CONTACTORS_CLOSED,
    FAULT_NONE,
    MOTOR_DRIVE,
    MOTOR_IDLE,
    MOTOR_OFF,
    MOTOR_RECUPERATE,
    WIPERS_OFF,
    State,
)

VIN = b"ZZZB0RDNETZ000001"  # made up: no maker has ZZZ
TEETH_PER_TURN = 96
COLD_TIRE_KPA = (380.0, 382.0, 421.0, 418.0)


def _motor_mode(s: State) -> int:
    if s.contactors != CONTACTORS_CLOSED:
        return MOTOR_OFF
    return MOTOR_DRIVE if s.motor_torque > 0 else MOTOR_RECUPERATE if s.motor_torque < 0 else MOTOR_IDLE


def _recuperation_share(s: State) -> float:
    motor_force = max(0.0, -s.motor_torque * s.gear_ratio * FINAL_DRIVE / RADIUS)
    return 100 * motor_force / (motor_force + s.friction_force) if s.braking and motor_force else 0.0


def _pulses(wheel: int) -> Sensor:
    return Sensor(lambda s: int(s.wheel_metres[wheel] / CIRCUMFERENCE * TEETH_PER_TURN) % 8192)


def _tire(wheel: int) -> dict[str, Sensor]:
    """Tires warm up with the distance, and their pressure follows."""

    def warmth(s: State) -> float:
        return 25 * s.trip_km / (s.trip_km + 5)

    return {
        f"{WHEELS[wheel]}_PRESSURE": Sensor(lambda s: COLD_TIRE_KPA[wheel] + 1.2 * warmth(s)),
        f"{WHEELS[wheel]}_TEMPERATURE": Sensor(lambda s: s.ambient_degrees + warmth(s)),
    }


POWERTRAIN: Table = {
    "ENGINE": {
        "RPM": shows("rpm", noise=2.0, quiet=True),
        "TORQUE": shows("engine_torque", noise=0.5, quiet=True),
        "TORQUE_AVAILABLE": shows("engine_available"),
        "LOAD": Sensor(engine_load),
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

CHASSIS: Table = {
    "STEERING": {
        "ANGLE": shows("steering_angle", noise=0.1),
        "RATE": shows("steering_rate", noise=0.5),
        "TORQUE": shows("steering_torque", noise=0.03),
        "HANDS_ON": Sensor(lambda s: abs(s.steering_torque) > 0.05),
    },
    "WHEEL_SPEEDS": {name: shows_item("wheels", i, KMH, 0.02, quiet=True) for i, name in enumerate(WHEELS)},
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
        "FRICTION_TORQUE": shows("friction_force", RADIUS),
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
        **{name: _pulses(i) for i, name in enumerate(WHEELS)},
        "FORWARD": Sensor(lambda s: s.speed > 0),
    },
    "SUSPENSION": {name: shows_item("suspension_mm", i, noise=0.1) for i, name in enumerate(WHEELS)},
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
        "BRAKE_LIGHTS": Sensor(lambda s: s.braking or s.acceleration < -1.5),
        "INTERIOR": shows("driver_door"),
    },
    "TURN_INDICATORS": {"STALK": shows("stalk"), "LEFT_LAMP": shows("left_lamp"), "RIGHT_LAMP": shows("right_lamp")},
    "WIPERS": {"MODE": shows("wipers"), "PARKED": Sensor(lambda s: s.wipers == WIPERS_OFF)},
}

DIAGNOSTICS: Table = {
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

VAN = POWERTRAIN | CHASSIS | DIAGNOSTICS
