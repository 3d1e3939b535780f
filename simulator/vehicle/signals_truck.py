"""What the messages on can2 show: truck.dbc, the J1939 bus for the body builder, signal by signal."""

from simulator.vehicle.sensors import DEGREES, KMH, WHEELS, Sensor, Table, engine_load, shows
from simulator.vehicle.state import FAULT_CONVERTER, FAULT_INSULATION, FAULT_NONE, State

REFERENCE_NM = 350.0  # 100 % of torque
# Suspect parameter (168 is the battery's voltage, those from 520,192 are the maker's own) and failure mode of a fault.
SPN = {FAULT_NONE: 0, FAULT_CONVERTER: 168, FAULT_INSULATION: 520_193}
FMI = {FAULT_NONE: 0, FAULT_CONVERTER: 1, FAULT_INSULATION: 11}


def _percent_torque(s: State) -> float:
    return max(-125.0, min(125.0, 100 * s.torque_request / REFERENCE_NM))


def _clutch_slip(s: State) -> float:
    if s.clutch_closed or not s.rpm:
        return 0.0
    return 100 * abs(s.rpm - s.input_rpm) / max(s.rpm, s.input_rpm)


def _relative(wheel: int) -> Sensor:
    return Sensor(lambda s: KMH * (s.wheels[wheel] - s.speed))


TRUCK: Table = {
    "EEC1": {
        "TORQUE_MODE": Sensor(lambda s: int(s.accelerator > 0)),
        "DEMANDED_TORQUE": Sensor(_percent_torque),
        "ACTUAL_TORQUE": shows("engine_torque", 100 / REFERENCE_NM),
        "ENGINE_SPEED": shows("rpm", noise=2.0, quiet=True),
    },
    "EEC2": {"ACCELERATOR_POSITION": shows("accelerator"), "LOAD_AT_SPEED": Sensor(engine_load)},
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
        "CURRENT_GEAR": Sensor(lambda s: s.gear if s.gear_ratio else 0),
    },
    "EBC1": {"PEDAL_POSITION": shows("brake_pedal")},
    "EBC2": {
        "FRONT_AXLE_SPEED": shows("speed", KMH, noise=0.01, quiet=True),
        **{f"{name}_RELATIVE": _relative(i) for i, name in enumerate(WHEELS)},
    },
    "VDC2": {
        "STEERING_WHEEL_ANGLE": shows("steering_angle", 1 / DEGREES, noise=0.002),
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
        "OCCURRENCES": Sensor(lambda s: min(s.faults_seen, 126)),
    },
}
