"""What a VSS signal is of one value: docs/vss.md in plain Python, one number at a time."""

import math

from edge.vss_signal import VssSignal

ONE = {"NEG": lambda a: -a, "ABS": abs, "FLOOR": math.floor, "CEIL": math.ceil, "ROUND": round}
TWO = {
    "ADD": lambda a, b: a + b,
    "SUB": lambda a, b: a - b,
    "MUL": lambda a, b: a * b,
    "DIV": lambda a, b: a / b if b else math.nan,
    "MIN": min,
    "MAX": max,
}


def vss_value(vss: VssSignal, raw: int | None, physical: float | None) -> tuple[float | bool | None, str | None]:
    """(value, text); a text is the value itself, or says why there is none. raw None: there is no value."""
    if raw is None:
        return None, None
    if raw in vss.values:
        mapped = vss.values[raw]
        return (None, mapped) if isinstance(mapped, str) else (mapped, None)
    if vss.steps is None or physical is None:
        return None, None
    stack: list[float] = []
    for op, number in vss.steps:
        if op in ("X", "CONST"):
            stack.append(physical if op == "X" else number)
        elif op in ONE:
            stack.append(float(ONE[op](stack.pop())))
        else:
            other = stack.pop()
            stack.append(TWO[op](stack.pop(), other))
        if not math.isfinite(stack[-1]):
            return None, None
    return stack[0], None
