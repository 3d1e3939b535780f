"""How the van moves: the driver's wishes to forces, forces to motion, motion to wheels and shafts.

    wish ──► force wanted ──► engine + motor, or recuperation + friction brakes ──► acceleration ──► speed
    curvature ──► steering wheel ──► yaw ──► wheel speeds

A parallel hybrid: engine, clutch, electric motor on the gearbox input, eight gears, rear axle. The tyres do not slip.
Only + - * / and comparisons, so that every platform computes the same numbers.
"""

from itertools import pairwise
from math import pi
from random import Random

from simulator.vehicle.body import Body
from simulator.vehicle.driver import Driver
from simulator.vehicle.energy import Energy
from simulator.vehicle.state import (
    ENGINE_CRANKING,
    ENGINE_OFF,
    ENGINE_RUNNING,
    GEAR_EIGHTH,
    GEAR_FIRST,
    GEAR_NEUTRAL,
    GEAR_PARK,
    KEY_ON,
    KEY_START,
    SELECTOR_DRIVE,
    SELECTOR_PARK,
    STEP,
    State,
)

MASS = 2700.0  # kg
ROTATING_MASS = 120.0  # kg: what wheels and shafts add to inertia
GRAVITY = 9.81
ROLLING = 0.010
AIR = 0.5 * 1.2 * 0.38 * 4.6  # N per (m/s)²
WHEELBASE, TRACK = 3.4, 1.7  # m
UNDERSTEER = 0.003  # s²/m: how the wish for angle grows with speed
STEERING_RATIO = 15.5
CIRCUMFERENCE = 2.136  # m, of a wheel
RADIUS = CIRCUMFERENCE / (2 * pi)
FINAL_DRIVE = 3.2
RATIOS = {1: 4.71, 2: 3.14, 3: 2.11, 4: 1.67, 5: 1.29, 6: 1.00, 7: 0.84, 8: 0.67}
EFFICIENCY = 0.93  # gearbox and axle
IDLE_RPM = 780.0
SHIFT_SECONDS = 0.30
BRAKE_N_PER_BAR = 250.0
MOTOR_MOST_NM, MOTOR_MOST_W = 160.0, 55_000.0
# Most torque of the engine by speed: (rpm, Nm).
ENGINE_CURVE = ((0.0, 0.0), (600.0, 120.0), (1500.0, 350.0), (2700.0, 350.0), (4000.0, 270.0), (5000.0, 0.0))


class Van:
    """The van and its driver. start_us: receive time of the drive's first moment, microseconds of UTC."""

    def __init__(self, seed: int, start_us: int) -> None:
        self.state = State(total_km=float(12_000 + Random(f"{seed} odometer").randrange(80_000)))
        self._random = Random(f"{seed} road")
        self._driver, self._energy, self._body = Driver(seed), Energy(self.state, seed), Body(seed)
        self._grade_wanted = 0.0
        self._bumps = [0.0] * 4
        # The gateway's clock is not the logger's: it is some milliseconds ahead.
        self.state.utc_ns = start_us * 1000 + 1 + 2 * int(4_000_000 * self._random.random())

    def step(self) -> State:
        """10 ms on; returns the one state, changed in place."""
        s = self.state
        s.tick += 1
        s.utc_ns += 10_000_000
        self._driver.step(s)
        self._steer(s)
        self._run_engine(s)
        self._shift(s)
        self._move(s)
        self._turn_shafts(s)
        self._body_motion(s)
        self._energy.step(s)
        self._body.step(s)
        return s

    def _steer(self, s: State) -> None:
        geometry = WHEELBASE + UNDERSTEER * s.speed * s.speed
        wanted = s.wanted_curvature * geometry * STEERING_RATIO * 180 / pi
        s.steering_rate = _limit((wanted - s.steering_angle) / 0.30, 320.0)
        s.steering_angle += s.steering_rate * STEP
        settled = s.speed * s.steering_angle * pi / 180 / STEERING_RATIO / geometry
        s.yaw_rate = s.yaw_rate + (settled - s.yaw_rate) * STEP / 0.12 if s.speed else 0.0
        s.lateral_acceleration = s.speed * s.yaw_rate
        s.steering_torque = 0.9 * s.lateral_acceleration + 0.008 * s.steering_rate

    def _run_engine(self, s: State) -> None:
        if s.key == KEY_START and s.engine == ENGINE_OFF:
            s.engine = ENGINE_CRANKING
        elif s.key == KEY_ON and s.engine == ENGINE_CRANKING:
            s.engine = ENGINE_RUNNING
        s.engine_available = _between(ENGINE_CURVE, s.rpm) if s.engine == ENGINE_RUNNING else 0.0

    def _shift(self, s: State) -> None:
        """Follow the lever, and choose gears by engine speed and pedal."""
        s.gear_seconds += STEP
        if s.selector != SELECTOR_DRIVE:
            s.gear = s.target_gear = GEAR_PARK if s.selector == SELECTOR_PARK else GEAR_NEUTRAL
        elif s.gear not in RATIOS:
            s.gear = s.target_gear = GEAR_FIRST
        elif s.shifting:
            s.shift_seconds_left = max(0.0, s.shift_seconds_left - STEP)
            if s.shift_seconds_left <= SHIFT_SECONDS / 2:
                s.gear = s.target_gear
        elif s.gear_seconds > (0.4 if s.panic else 0.9):
            self._choose_gear(s)
        s.gear_ratio = RATIOS.get(s.gear, 0.0)

    def _choose_gear(self, s: State) -> None:
        rpm = _shaft_rpm(s.speed) * RATIOS[s.gear]
        if rpm > 1700 + 21 * s.accelerator and s.gear < GEAR_EIGHTH and s.wanted_speed > s.speed - 1:
            s.target_gear = s.gear + 1
        elif rpm < 1050 + 7 * s.accelerator and s.gear > GEAR_FIRST:
            s.target_gear = s.gear - 1
        else:
            return
        s.shift_seconds_left, s.gear_seconds, s.clutch_closed = SHIFT_SECONDS, 0.0, False
        s.shifts += 1

    def _move(self, s: State) -> None:
        s.road_grade += _limit(self._grade_wanted - s.road_grade, 0.00004)
        if s.tick % 500 == 0:
            self._grade_wanted = 0.06 * (self._random.random() - 0.5)
        rolling = ROLLING * MASS * GRAVITY if s.speed else 0.0
        s.resistance = rolling + MASS * GRAVITY * s.road_grade + AIR * s.speed * s.speed
        if not s.gear_ratio or s.parking_brake or (s.standstill and s.wanted_speed == 0):
            self._stand(s)
            return
        self._wish(s)
        force = (MASS + ROTATING_MASS) * s.wanted_acceleration + s.resistance
        driven = self._drive(s, force)
        self._brake(s, max(0.0, driven - force) if s.braking else 0.0)
        s.acceleration = (driven - s.friction_force - s.resistance) / (MASS + ROTATING_MASS)
        if s.speed + s.acceleration * STEP < 0:
            s.acceleration = -s.speed / STEP
        self._roll(s, s.speed + s.acceleration * STEP)

    def _stand(self, s: State) -> None:
        s.acceleration = s.wanted_acceleration = 0.0
        s.torque_request = s.engine_torque = s.motor_torque = s.wheel_torque = s.accelerator = 0.0
        foot = bool(s.gear_ratio) or s.selector == SELECTOR_DRIVE or s.engine == ENGINE_CRANKING
        s.brake_applications += foot and not s.braking
        s.braking = foot
        self._brake(s, 15 * BRAKE_N_PER_BAR if foot else 0.0)
        self._roll(s, 0.0)

    def _wish(self, s: State) -> None:
        """The acceleration the driver asks for: smooth, unless he panics."""
        if s.panic:
            wish, jerk = -8.9, 60.0
        else:
            wish, jerk = max(-2.4, min(2.9, 0.5 * (s.wanted_speed - s.speed))), 20.0 if s.braking else 4.0
            if s.wanted_speed == 0:
                wish = min(wish, -0.9)  # to a stop, not ever more slowly
        s.wanted_acceleration += _limit(wish - s.wanted_acceleration, jerk * STEP)
        braking = s.wanted_acceleration < (-0.35 if s.braking else -0.5)
        s.brake_applications += braking and not s.braking
        s.braking = braking

    def _drive(self, s: State, force: float) -> float:
        """Let engine and motor make the force, as far as they can; returns the force at the wheels."""
        leverage = s.gear_ratio * FINAL_DRIVE / RADIUS
        torque = force / leverage
        torque = torque / EFFICIENCY if torque > 0 else torque * EFFICIENCY
        motor_most = min(MOTOR_MOST_NM, MOTOR_MOST_W * 60 / (2 * pi) / max(s.input_rpm, 1.0))
        s.torque_request = max(-motor_most, min(s.engine_available + motor_most, torque))
        closing = 0.35 if s.shifting else 1.0  # less torque while gears change
        if torque > 0:
            # A full battery helps, an empty one is charged.
            support = 0.3 * max(-0.5, min(1.0, (s.state_of_charge - 45) / 10))
            s.motor_torque = max(-motor_most, min(motor_most, support * torque)) * closing
            s.engine_torque = min(torque - s.motor_torque, s.engine_available) * closing
        else:
            drag = -(12 + 0.008 * s.rpm) if s.clutch_closed else 0.0
            s.engine_torque = max(torque, drag)
            s.motor_torque = max(torque - s.engine_torque, -motor_most) * closing if s.speed > 1.5 else 0.0
        s.accelerator = max(0.0, min(100.0, 100 * torque / max(s.engine_available + motor_most, 1.0)))
        torque = s.engine_torque + s.motor_torque
        driven = torque * leverage * (EFFICIENCY if torque > 0 else 1 / EFFICIENCY)
        s.wheel_torque = driven * RADIUS
        return driven

    def _brake(self, s: State, wanted_force: float) -> None:
        s.brake_pressure += (wanted_force / BRAKE_N_PER_BAR - s.brake_pressure) * STEP / 0.06
        if s.brake_pressure < 0.05:
            s.brake_pressure = 0.0
        s.friction_force = s.brake_pressure * BRAKE_N_PER_BAR
        asked = s.brake_pressure if s.standstill else max(0.0, -9 * s.wanted_acceleration)
        s.brake_pedal = min(100.0, asked) if s.braking else 0.0

    def _roll(self, s: State, speed: float) -> None:
        s.speed = speed
        half = s.yaw_rate * TRACK / 2
        s.wheels = (speed - half, speed + half, speed - half, speed + half) if speed else (0.0,) * 4
        s.wheel_metres = tuple([metres + v * STEP for metres, v in zip(s.wheel_metres, s.wheels, strict=True)])
        s.trip_km += speed * STEP / 1000
        s.total_km += speed * STEP / 1000

    def _turn_shafts(self, s: State) -> None:
        """Speeds of cardan shaft, gearbox input and engine."""
        s.output_rpm = _shaft_rpm(s.speed)
        in_gear = s.output_rpm * RATIOS.get(s.target_gear, 0.0)
        steps_left = s.shift_seconds_left / STEP
        if s.shifting:
            s.input_rpm += (in_gear - s.input_rpm) / steps_left
        else:
            s.input_rpm = in_gear
        if s.engine != ENGINE_RUNNING:
            s.rpm += ((250.0 if s.engine == ENGINE_CRANKING else 0.0) - s.rpm) * STEP / 0.08
        elif s.shifting:
            s.rpm += (in_gear - s.rpm) / steps_left
        else:
            wanted = IDLE_RPM + 9 * s.accelerator
            s.clutch_closed = in_gear > (IDLE_RPM - 60 if s.clutch_closed else min(s.rpm, wanted))
            s.rpm = in_gear if s.clutch_closed else s.rpm + (wanted - s.rpm) * STEP / 0.12

    def _body_motion(self, s: State) -> None:
        """Springs: dive and squat, roll, and the road's bumps."""
        dive, roll = -4.0 * s.acceleration, 5.0 * s.lateral_acceleration
        rough = 0.02 * min(s.speed, 30.0)
        for i in range(4):
            self._bumps[i] += rough * 4 * (self._random.random() - 0.5) - 0.06 * self._bumps[i]
        front, rear = self._bumps[:2], self._bumps[2:]
        s.suspension_mm = (front[0] + dive - roll, front[1] + dive + roll, rear[0] - dive - roll, rear[1] - dive + roll)


def _shaft_rpm(speed: float) -> float:
    return speed / CIRCUMFERENCE * 60 * FINAL_DRIVE


def _between(curve: tuple[tuple[float, float], ...], x: float) -> float:
    """Straight lines through the points of the curve; flat beyond its ends."""
    if x <= curve[0][0]:
        return curve[0][1]
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[-1][1]


def _limit(value: float, most: float) -> float:
    return max(-most, min(most, value))
