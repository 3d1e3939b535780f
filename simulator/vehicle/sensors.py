"""How a signal shows a number of the physics: where it is in the state, in which unit, and how well it is measured.

    "SPEED": shows("speed", 3.6, noise=0.01)
     signal         ▲        ▲     ▲ at most this far off, in the signal's unit
                    │        from the state's unit to the signal's
                    attribute of State

The tables are in signals_van.py, signals_battery.py and signals_truck.py. What a frame carries is that number, plus
noise, rounded to the signal's resolution, and nothing else. COUNTER, CHECKSUM and the selectors of multiplexed
messages are in no table: they are made where frames are made (encode.py).
"""

from collections.abc import Callable
from math import pi
from operator import attrgetter
from typing import Any, NamedTuple

from simulator.vehicle.state import State

KMH, DEGREES, PERCENT = 3.6, 180 / pi, 100.0  # from metres per second, radians, shares
WHEELS = ("FRONT_LEFT", "FRONT_RIGHT", "REAR_LEFT", "REAR_RIGHT")


class Sensor(NamedTuple):
    """Shows read(state) * factor, give or take noise. A quiet one shows exactly 0 for 0, as where nothing turns."""

    read: Callable[[State], Any]
    factor: float = 1
    noise: float = 0.0
    quiet: bool = False

    def value(self, s: State) -> Any:
        """Without noise."""
        return self.read(s) * self.factor if self.factor != 1 else self.read(s)


Table = dict[str, dict[str, Sensor]]  # message, signal


def shows(attribute: str, factor: float = 1, noise: float = 0.0, quiet: bool = False) -> Sensor:
    """An attribute of the state."""
    return Sensor(attrgetter(attribute), factor, noise, quiet)


def shows_item(attribute: str, index: int, factor: float = 1, noise: float = 0.0, quiet: bool = False) -> Sensor:
    """One item of a list in the state."""
    return Sensor(lambda s: getattr(s, attribute)[index], factor, noise, quiet)


def engine_load(s: State) -> float:
    """%, of what the engine can give at this speed."""
    return 100 * max(0.0, s.engine_torque) / s.engine_available if s.engine_available else 0.0
