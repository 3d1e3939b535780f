"""Formulas of overlays, as "floor((x*40)-100)": parsed on the bench to steps that vehicle and cloud run.

The language is what mapping files use of py-expression-eval: numbers, x (the signal's physical value), PI, E, + - * /,
parentheses, floor, ceil, round, abs, min, max. Anything else is refused by name, never guessed.
"""

import ast
import math

from edge.errors import InputError

MOST_CHARACTERS = 1000
ARITHMETIC = {ast.Add: "ADD", ast.Sub: "SUB", ast.Mult: "MUL", ast.Div: "DIV"}
ONE = {"floor": "FLOOR", "ceil": "CEIL", "round": "ROUND", "abs": "ABS"}
MORE = {"min": "MIN", "max": "MAX"}
NAMES = {"PI": math.pi, "E": math.e}
THERE_IS = "there are x, numbers, + - * /, floor, ceil, round, abs, min, max"

Steps = tuple[tuple[str, float], ...]


def parse(text: str, place: str) -> Steps:
    """The formula as steps of edge.vss_signal.STEPS. Raises InputError: it is none, or goes beyond the language."""
    if len(text) > MOST_CHARACTERS:
        raise InputError(place, f"has {len(text)} characters", f"at most {MOST_CHARACTERS}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        steps = _steps(tree, place)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(place, f"{text[:60]!r} is no formula", "as in floor(x*40-100)") from error
    if not any(op == "X" for op, _ in steps):
        raise InputError(place, f"{text[:60]!r} does not depend on x", "x is the signal's physical value")
    return tuple(steps)


def _steps(node: ast.expr, place: str) -> list[tuple[str, float]]:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float) and abs(node.value) <= 1e300:  # type: ignore
        return [("CONST", float(node.value))]  # type: ignore[arg-type]
    if isinstance(node, ast.Name) and (node.id == "x" or node.id in NAMES):
        return [("X", 0.0)] if node.id == "x" else [("CONST", NAMES[node.id])]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = _steps(node.operand, place)
        return [*inner, ("NEG", 0.0)] if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        return [*_steps(node.left, place), *_steps(node.right, place), (ARITHMETIC[type(node.op)], 0.0)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        name, arguments = node.func.id, [_steps(argument, place) for argument in node.args]
        if name in ONE and len(arguments) == 1:
            return [*arguments[0], (ONE[name], 0.0)]
        if name in MORE and len(arguments) >= 2:
            rest = [[*argument, (MORE[name], 0.0)] for argument in arguments[1:]]
            return [*arguments[0], *(step for steps in rest for step in steps)]
    raise InputError(place, f"{ast.unparse(node)[:60]} is nothing that a formula can have here", THERE_IS)
