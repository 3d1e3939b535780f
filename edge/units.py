"""Units of measurement, as databases and VSS write them, and what turns one into the other.

VSS names are those of the standard catalog from VSS 4 to 6 (where celsius became Celsius); databases write what they
like, and the spellings here were met in public ones. A unit that is not here converts to nothing but itself; nothing
that is no line converts (l/100km to mpg, dB).
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
    """base = value * factor + offset, in the base unit of its kind."""

    kind: str
    factor: Fraction
    offset: Fraction = Fraction(0)


# By kind, the factor to its base unit and the spellings. Exact, as the SI and national standards define them.
SPELLINGS = {
    "length": {"1/1000": "mm", "1/100": "cm", "1": "m meter metre meters", "1000": "km", "127/5000": "inch in",
               "381/1250": "ft", "201168/125": "mi mile miles"},
    "speed": {"1": "m/s mps", "5/18": "km/h kph kmh kmph km/hr", "1397/3125": "mph mi/h", "463/900": "kn kt knots"},
    "acceleration": {"1": "m/s^2 m/s2 m/s² m/s/s m/s**2", "1/100": "cm/s^2 cm/s2", "196133/20000": "g-force"},
    "volume": {"1/1000": "ml cm^3 cm3 ccm", "1": "l liter litre liters", "1000": "m^3 m3"},
    "angle": {"1": "degrees degree deg °", "rad": "rad radian radians"},
    "angular speed": {"1": "degrees/s degree/s deg/s °/s deg/sec", "rad": "rad/s",
                      "6": "rpm 1/min U/min r/min min^-1 /min"},
    "power": {"1/1000": "mW", "1": "W watt", "1000": "kW", "1000000": "MW", "73549875/100000": "PS"},
    "energy": {"1/3600": "J", "5/18": "kJ", "1": "Wh", "1000": "kWh"},
    "mass": {"1": "g gram", "1000": "kg", "45359237/100000": "lbs lb", "1000000": "t"},
    "voltage": {"1/1000": "mV", "1": "V volt volts", "1000": "kV"},
    "current": {"1/1000": "mA", "1": "A amp ampere amps", "1000": "kA"},
    "charge": {"1/1000": "mAh", "1": "Ah"},
    "duration": {"1/1000000": "us µs", "1/1000": "ms msec", "1": "s sec second seconds", "60": "min minute minutes",
                 "3600": "h hr hour hours", "86400": "day days d", "604800": "weeks week"},
    "pressure": {"1": "Pa", "100": "mbar hPa", "1000": "kPa", "100000": "bar", "8896443230521/1290320000": "psi",
                 "1000000": "MPa"},
    "mass flow": {"1": "g/s", "5/18": "kg/h"},
    "volume flow": {"1": "l/h", "3600": "l/s"},
    "mass per distance": {"1": "g/km"},
    "electric consumption": {"1": "Wh/km", "10": "kWh/100km"},
    "consumption": {"1/1000": "ml/100km", "1": "l/100km"},
    "distance per volume": {"1": "km/l"},
    "force": {"1": "N newton", "1000": "kN"},
    "torque": {"1": "Nm N*m N.m"},
    "frequency": {"1/60": "cpm bpm", "1": "Hz hertz", "1000": "kHz", "1000000": "MHz"},
    "relation": {"1/1000": "‰", "1/100": "percent % pct", "1": "ratio"},
    "resistance": {"1/1000": "mOhm mΩ", "1": "Ohm Ω", "1000": "kOhm kΩ", "1000000": "MOhm MΩ"},
    "illuminance": {"1": "lx lux"},
}  # fmt: skip
TEMPERATURES = {
    "Celsius degC °C C deg_C degreeC": (Fraction(1), Fraction(0)),
    "K kelvin degK": (Fraction(1), Fraction(-27315, 100)),
    "Fahrenheit degF °F F deg_F": (Fraction(5, 9), Fraction(-160, 9)),
}


def _units() -> Iterator[tuple[str, Unit]]:
    for kind, factors in SPELLINGS.items():
        for factor, spellings in factors.items():
            exact = Fraction(math.degrees(1)) if factor == "rad" else Fraction(factor)
            for spelling in spellings.split():
                yield spelling, Unit(kind, exact)
    for spellings, of_celsius in TEMPERATURES.items():
        for spelling in spellings.split():
            yield spelling, Unit("temperature", *of_celsius)


UNITS = dict(_units())
# In any case, but where that would tell two units from each other: mW and MW, kn and kN.
FOLDED = {
    spelling.lower(): unit
    for spelling, unit in UNITS.items()
    if all(other == unit for name, other in UNITS.items() if name.lower() == spelling.lower())
}


def unit_of(text: str) -> Unit | None:
    """The unit that is spelled so; None where it is not known, or could be two."""
    text = "".join(text.split())
    return UNITS.get(text) or FOLDED.get(text.lower())


def conversion(source: str, target: str) -> tuple[tuple[str, float], ...] | None:
    """What turns a number of source into one of target: steps of edge.vss_signal.STEPS. None where nothing does."""
    steps: list[tuple[str, float]] = [("X", 0.0)]
    one, other = unit_of(source), unit_of(target)
    if one is other is None and source.strip().lower() == target.strip().lower():
        return tuple(steps)
    if one is None or other is None or one.kind != other.kind:
        return None
    factor, offset = one.factor / other.factor, (one.offset - other.offset) / other.factor
    if not _is_decimal(offset):  # from Fahrenheit: (x - 32) / 1.8
        steps += _plus(offset / factor)
        offset = Fraction(0)
    if factor != 1:
        divides = (1 / factor).denominator == 1 or (_is_decimal(1 / factor) and not _is_decimal(factor))
        steps += [("CONST", float(1 / factor if divides else factor)), ("DIV" if divides else "MUL", 0.0)]
    return (*steps, *_plus(offset))


def _plus(offset: Fraction) -> list[tuple[str, float]]:
    return [("CONST", float(abs(offset))), ("ADD" if offset > 0 else "SUB", 0.0)] if offset else []


def _is_decimal(number: Fraction) -> bool:
    """Whether it can be written as a short decimal, which a double rounds best."""
    return 10**9 % number.denominator == 0
