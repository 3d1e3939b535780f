"""What the driver does: a script for the first seconds, then one manoeuvre after the other, drawn from the seed.

    0 s  door, belt, key, cranking, lever, parking brake, pulling out to the left
    4 s  up to 74-86 km/h, with a bend
   16 s  a hard braking from there (over 80 bar at over 50 km/h), hazard lights, and on again
   30 s  cruising, bends, lane changes, junctions, stops; now and then another hard braking

The driver only wants: a speed, a curvature, a lever position. What the van makes of it is physics.
"""

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from simulator.vehicle.state import (
    KEY_ON,
    KEY_START,
    LIGHTS_AUTO,
    LIGHTS_ON,
    SELECTOR_DRIVE,
    STALK_HAZARD,
    STALK_LEFT,
    STALK_OFF,
    STALK_RIGHT,
    STEP,
    WIPERS_FAST,
    WIPERS_INTERVAL,
    WIPERS_OFF,
    WIPERS_SLOW,
    State,
)

LATERAL_LIMIT = 3.2  # m/s²: nobody drives a van faster through a bend


class Leg(NamedTuple):
    """Some seconds with the same wish."""

    seconds: float
    kmh: float
    bend: float = 0.0  # curvature, 1/m
    stalk: int = STALK_OFF
    panic: bool = False


class Driver:
    def __init__(self, seed: int) -> None:
        self._random = Random(f"{seed} driver")
        self._weather = Random(f"{seed} weather")
        self._script = self._first_actions()
        self._legs = self._first_legs()
        self._leg_left = self._bend = 0.0
        self._wander = 0.0
        self._rain_next = self._weather_between(6, 12)

    def step(self, s: State) -> None:
        """Put into the state what the driver wants for the next 10 ms."""
        while self._script and self._script[0][0] <= s.seconds:
            _, name, value = self._script.pop(0)
            setattr(s, name, value)
        self._follow_legs(s)
        self._watch_weather(s)

    def _first_actions(self) -> list[tuple[float, str, int]]:
        """(seconds, what, value), in order."""
        pace = self._between(0.95, 1.05)
        actions = [
            (0.25, "driver_door", 0),
            (0.50, "key", KEY_ON),
            (0.62, "driver_belt", 1),
            (0.90, "key", KEY_START),
            (1.62, "key", KEY_ON),
            (1.85, "light_switch", LIGHTS_AUTO if self._random.random() < 0.5 else LIGHTS_ON),
            (2.05, "selector", SELECTOR_DRIVE),
            (2.35, "parking_brake", 0),
            (5.00, "locked", 1),
        ]
        return [(seconds * pace, name, value) for seconds, name, value in actions]

    def _first_legs(self) -> Iterator[Leg]:
        kmh, side = self._between(74, 86), self._side()
        yield Leg(2.7, 0, stalk=STALK_LEFT)
        yield Leg(1.6, 15, 0.03, STALK_LEFT)
        yield Leg(self._between(5.0, 6.0), kmh)
        yield Leg(self._between(3.0, 3.6), kmh, side * 0.004)
        yield Leg(self._between(3.0, 3.8), kmh)
        yield from self._hard_braking()
        yield Leg(self._between(5, 7), self._between(40, 55))
        yield Leg(3.5, 45, -side * 0.01)
        while True:
            yield from self._manoeuvre()

    def _manoeuvre(self) -> Iterator[Leg]:
        kmh, side, draw = self._between(40, 100), self._side(), self._random.random()
        stalk = STALK_LEFT if side > 0 else STALK_RIGHT
        metres_per_second = kmh / 3.6
        if draw < 0.30:  # cruise
            yield Leg(self._between(4, 9), kmh)
        elif draw < 0.50:  # bend
            lateral = self._between(0.8, 2.5)
            yield Leg(self._between(4, 7), kmh, side * lateral / (metres_per_second * metres_per_second))
        elif draw < 0.65:  # lane change
            bend = side * 1.2 / (metres_per_second * metres_per_second)
            yield Leg(1.5, kmh, stalk=stalk)
            yield Leg(1.4, kmh, bend, stalk)
            yield Leg(1.4, kmh, -bend, stalk)
        elif draw < 0.80:  # junction
            yield Leg(self._between(5, 7), 18, stalk=stalk)
            yield Leg(self._between(2.8, 3.4), 18, side * 0.09, stalk)
            yield Leg(5, 50)
        elif draw < 0.92:  # traffic light
            yield Leg(self._between(9, 12), 0)
            yield Leg(6, 50)
        else:
            yield Leg(9, 85)
            yield from self._hard_braking()

    def _hard_braking(self) -> Iterator[Leg]:
        yield Leg(self._between(1.7, 2.0), 10, panic=True)
        yield Leg(2.0, 22, stalk=STALK_HAZARD)

    def _follow_legs(self, s: State) -> None:
        while self._leg_left <= 0:
            leg = next(self._legs)
            self._leg_left += leg.seconds
            s.wanted_speed, s.panic, s.stalk = leg.kmh / 3.6, leg.panic, leg.stalk
            self._bend = leg.bend
        self._leg_left -= STEP
        # No hand is quite steady, and nobody keeps up the speed where the bend is too tight.
        self._wander += 0.002 * (self._random.random() - 0.5) - 0.004 * self._wander
        limit = LATERAL_LIMIT / max(s.speed * s.speed, 1.0)
        s.wanted_curvature = max(-limit, min(limit, self._bend + 0.02 * self._wander))

    def _watch_weather(self, s: State) -> None:
        if s.seconds >= self._rain_next:
            s.rain = 0.0 if s.rain else self._weather_between(10, 95)
            s.high_beam = int(not s.rain and self._weather.random() < 0.4)
            self._rain_next = s.seconds + self._weather_between(12, 45)
        wanted = WIPERS_FAST if s.rain > 70 else WIPERS_SLOW if s.rain > 35 else WIPERS_INTERVAL
        s.wipers = wanted if s.rain else WIPERS_OFF

    def _between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random.random()

    def _weather_between(self, low: float, high: float) -> float:
        return low + (high - low) * self._weather.random()

    def _side(self) -> float:
        return 1.0 if self._random.random() < 0.5 else -1.0
