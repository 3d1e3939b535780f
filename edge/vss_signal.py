"""A signal under its name in the Vehicle Signal Specification, as a decoder manifest has it."""

from typing import Any, NamedTuple

# What a program of a VssSignal is made of: what each step does to the number of values on its stack.
STEPS = {"X": 1, "CONST": 1, "ADD": -1, "SUB": -1, "MUL": -1, "DIV": -1, "MIN": -1, "MAX": -1}
STEPS |= {"NEG": 0, "ABS": 0, "FLOOR": 0, "CEIL": 0, "ROUND": 0}
AS_IT_IS = (("X", 0.0),)


class VssSignal(NamedTuple):
    """A signal under its name in the Vehicle Signal Specification; edge/vss.py makes them of overlays.

    signal: its place among all signals of the manifest. Its value in VSS is what steps (in postfix; X is the physical
    value, ROUND goes to even) make of the physical value, and values say of some raw values why there is none; or,
    where steps is None, that of the raw value in values, and no other raw value has one. interval_ms, on_change: what
    the overlay asks for. private: tagged so; no glob means it.
    """

    path: str
    signal: int
    datatype: str = ""
    unit: str = ""
    steps: tuple[tuple[str, float], ...] | None = AS_IT_IS
    values: dict[int, str | bool | int | float] = {}  # noqa: RUF012 (never changed)
    interval_ms: int = 0
    on_change: bool = False
    private: bool = False

    @property
    def line(self) -> tuple[float, float] | None:
        """(a, b) where the value is a * x + b, None where it is not."""
        if self.steps is None or self.values:
            return None
        stack: list[tuple[float, float]] = []
        for op, number in self.steps:
            if op in ("X", "CONST"):
                stack.append((1.0, 0.0) if op == "X" else (0.0, number))
                continue
            a, b = stack.pop()
            if op == "NEG":
                stack.append((-a, -b))
            elif op in ("ADD", "SUB"):
                sign, (c, d) = 1.0 if op == "ADD" else -1.0, stack.pop()
                stack.append((c + sign * a, d + sign * b))
            elif op == "MUL" and (a == 0 or stack[-1][0] == 0):
                c, d = stack.pop()
                stack.append((a * d + b * c, b * d))
            elif op == "DIV" and a == 0 and b != 0:
                c, d = stack.pop()
                stack.append((c / b, d / b))
            else:
                return None
        return stack[0]


def parse_vss(row: dict[str, Any], signals: int) -> VssSignal:
    """Of the document of a manifest with so many signals. Raises ValueError, TypeError, KeyError: it makes no sense."""
    if "values" in row:
        row["values"] = {int(raw): value for raw, value in row["values"].items()}
    if row.get("steps") is not None:
        row["steps"] = tuple((op, float(number)) for op, number in row["steps"])
    vss = VssSignal(**row)
    if not 0 <= vss.signal < signals:
        raise ValueError(f"{vss.path} is of signal {vss.signal} of {signals}")
    depth = 0
    for op, _ in vss.steps or ():
        depth += STEPS[op]
        if depth < 1:
            raise ValueError(f"{vss.path} has a program that takes more than there is")
    if vss.steps is not None and depth != 1:
        raise ValueError(f"{vss.path} has a program that leaves {depth} values")
    return vss
