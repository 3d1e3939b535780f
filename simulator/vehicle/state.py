"""What is true of the van at one moment: every signal on its buses shows one of these numbers.

Plain numbers in SI units unless the name or the comment says otherwise. Left, forward, uphill and out of the battery
are positive. `physics.Van` moves it on by 10 ms at a time.
"""

from dataclasses import dataclass, field

STEP = 0.01  # seconds

# Labels of discrete values, as in the databases.
KEY_OFF, KEY_ACCESSORY, KEY_ON, KEY_START = range(4)
ENGINE_OFF, ENGINE_CRANKING, ENGINE_RUNNING = range(3)
SELECTOR_PARK, SELECTOR_REVERSE, SELECTOR_NEUTRAL, SELECTOR_DRIVE = range(4)
GEAR_NEUTRAL, GEAR_FIRST, GEAR_EIGHTH, GEAR_PARK = 0, 1, 8, 15
MOTOR_OFF, MOTOR_IDLE, MOTOR_DRIVE, MOTOR_RECUPERATE = range(4)
CONTACTORS_OPEN, CONTACTORS_PRECHARGE, CONTACTORS_CLOSED = range(3)
CONVERTER_OFF, CONVERTER_RUNNING, CONVERTER_FAILED = range(3)
STALK_OFF, STALK_LEFT, STALK_RIGHT, STALK_HAZARD = range(4)
LIGHTS_OFF, LIGHTS_PARKING, LIGHTS_AUTO, LIGHTS_ON = range(4)
WIPERS_OFF, WIPERS_INTERVAL, WIPERS_SLOW, WIPERS_FAST = range(4)
FAULT_NONE, FAULT_CONVERTER, FAULT_INSULATION = range(3)


@dataclass(slots=True)
class State:
    tick: int = 0  # steps of 10 ms since the drive began
    utc_ns: int = 0  # what the gateway's clock shows

    # What the driver wants (driver.py).
    key: int = KEY_ACCESSORY
    selector: int = SELECTOR_PARK
    wanted_speed: float = 0.0
    wanted_curvature: float = 0.0  # 1/m
    panic: bool = False  # brakes as hard as he can
    parking_brake: int = 1
    stalk: int = STALK_OFF
    light_switch: int = LIGHTS_OFF
    high_beam: int = 0
    wipers: int = WIPERS_OFF
    driver_door: int = 1
    driver_belt: int = 0
    locked: int = 0

    # Motion (physics.py).
    speed: float = 0.0
    acceleration: float = 0.0
    wanted_acceleration: float = 0.0
    yaw_rate: float = 0.0  # rad/s
    lateral_acceleration: float = 0.0
    steering_angle: float = 0.0  # deg, at the steering wheel
    steering_rate: float = 0.0  # deg/s
    steering_torque: float = 0.0
    wheels: tuple[float, ...] = (0.0,) * 4  # speeds: front left, front right, rear left, rear right
    wheel_metres: tuple[float, ...] = (0.0,) * 4
    suspension_mm: tuple[float, ...] = (0.0,) * 4
    trip_km: float = 0.0
    total_km: float = 0.0
    road_grade: float = 0.0  # rise per metre
    resistance: float = 0.0  # N: rolling, air and grade

    # Drivetrain (physics.py).
    engine: int = ENGINE_OFF
    rpm: float = 0.0
    engine_torque: float = 0.0
    engine_available: float = 0.0  # Nm at this speed
    motor_torque: float = 0.0
    input_rpm: float = 0.0  # gearbox input and motor
    output_rpm: float = 0.0  # cardan shaft
    gear: int = GEAR_PARK
    target_gear: int = GEAR_PARK
    gear_ratio: float = 0.0
    shift_seconds_left: float = 0.0
    gear_seconds: float = 0.0  # since the last shift
    shifts: int = 0
    clutch_closed: bool = False
    torque_request: float = 0.0  # Nm at the gearbox input
    wheel_torque: float = 0.0  # Nm, all wheels together
    accelerator: float = 0.0  # %
    brake_pedal: float = 0.0  # %
    braking: bool = False
    brake_applications: int = 0
    brake_pressure: float = 0.0  # bar
    friction_force: float = 0.0  # N

    # Energy (energy.py).
    state_of_charge: float = 80.0  # %
    contactors: int = CONTACTORS_OPEN
    pack_voltage: float = 0.0
    pack_current: float = 0.0
    pack_resistance: float = 0.0  # Ohm
    energy_drawn_wh: float = 0.0
    charge_in_ah: float = 0.0
    charge_out_ah: float = 0.0
    cell_volts: list[float] = field(default_factory=list)
    cell_degrees: list[float] = field(default_factory=list)
    insulation_kohm: float = 1500.0
    motor_current: float = 0.0  # A, direct current into the inverter
    converter: int = CONVERTER_OFF
    converter_current: float = 0.0  # A at its 12 V side
    supply_voltage: float = 12.4
    supply_load: float = 0.0  # A
    fuel_rate: float = 0.0  # l/h
    fuel_used_ml: float = 0.0
    fuel_level: float = 50.0  # %
    engine_revolutions: float = 0.0
    ambient_degrees: float = 15.0
    coolant_degrees: float = 15.0
    engine_oil_degrees: float = 15.0
    gearbox_oil_degrees: float = 15.0
    exhaust_degrees: float = 15.0
    motor_degrees: float = 15.0
    pack_degrees: float = 15.0

    # Body and diagnostics (body.py).
    left_lamp: int = 0
    right_lamp: int = 0
    lamp_tick: int = 0  # since the indicators were switched on
    rain: float = 0.0  # %
    broken: int = FAULT_NONE  # what is broken, noticed or not
    fault: int = FAULT_NONE  # what the diagnosis has noticed
    faults_stored: int = 0
    faults_seen: int = 0
    fault_code: int = 0
    fault_status: int = 0
    fault_seconds: float = 0.0
    freeze_speed: float = 0.0
    freeze_rpm: float = 0.0
    freeze_voltage: float = 0.0
    freeze_coolant: float = 0.0

    @property
    def seconds(self) -> float:
        return self.tick / 100

    @property
    def shifting(self) -> bool:
        return self.shift_seconds_left > 0

    @property
    def standstill(self) -> bool:
        return self.speed == 0.0

    @property
    def ready(self) -> bool:
        return self.engine == ENGINE_RUNNING and self.contactors == CONTACTORS_CLOSED

    @property
    def emergency(self) -> bool:
        return self.panic and self.brake_pressure > 60
