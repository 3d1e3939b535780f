"""Conditions of campaigns: Python's syntax, checked against the manifest, compiled to a program for cy_core/condition.

    "rising(BRAKE.PRESSURE > 80 and SPEED.SPEED > 50)"  ──ast──► tree ──types──► steps of a stack machine

A signal is a number (its physical value; by its VSS path what that path makes of it), compared with numbers or, where
the database has labels, with a label in quotes. Only comparisons, booleans of VSS and the functions below are true or
false; `and`, `or`, `not` take those alone, so another signal by itself is no condition. docs/campaigns.md has the
language.
"""

import ast
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from cy_core.condition import OPS, Condition
from cy_core.plan import Plan
from edge.errors import InputError
from edge.manifest import no_values
from edge.names import Names, close, physical_range

if TYPE_CHECKING:
    from edge.vss_signal import VssSignal

MOST_CHARACTERS = 4096
MOST_STEPS = 1000
MOST_SECONDS = 86_400.0

LOGIC, NUMBER = "true or false", "a number"
COMPARISONS = {ast.Lt: "LT", ast.LtE: "LE", ast.Gt: "GT", ast.GtE: "GE", ast.Eq: "EQ", ast.NotEq: "NE"}
MIRRORED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "EQ": "EQ", "NE": "NE"}
ARITHMETIC = {ast.Add: "ADD", ast.Sub: "SUB", ast.Mult: "MUL", ast.Div: "DIV"}
WINDOWS = {"avg": "AVG", "min_s": "MIN_S", "max_s": "MAX_S", "count": "COUNT"}


# Every function, as it is called.
USAGE = {
    "rising": "rising(SPEED.SPEED > 50)",
    "falling": "falling(SPEED.SPEED > 50)",
    "changed": "changed(GEARBOX.GEAR)",
    "for_s": "for_s(SPEED.SPEED > 50, 10)",
    "stale": "stale(SPEED.SPEED, 5)",
    "abs": "abs(STEERING.ANGLE)",
    "min": "min(WHEEL_SPEEDS.FL, WHEEL_SPEEDS.FR)",
    "max": "max(WHEEL_SPEEDS.FL, WHEEL_SPEEDS.FR)",
    "avg": "avg(SPEED.SPEED, 10)",
    "min_s": "min_s(SPEED.SPEED, 10)",
    "max_s": "max_s(SPEED.SPEED, 10)",
    "count": "count(SPEED.SPEED, 10)",
    "signal": 'signal("Odd-Message.Signal")',
}


class Program(NamedTuple):
    """steps: (op, operand, span_us, number) of cy_core/condition.OPS; operands: places of signals in the manifest."""

    steps: tuple[tuple[str, int, int, float], ...]
    operands: tuple[int, ...]

    def condition(self, plan: Plan, cooldown_us: int = 0) -> Condition:
        """A fresh state of it."""
        signals = list(plan.manifest.names())
        none = [no_values(*signals[place][1:]) for place in self.operands]
        return Condition(plan, self.steps, self.operands, cooldown_us, none)


def compile_condition(text: str, names: Names, place: str = "when") -> Program:
    """Raises InputError: place, column, what is wrong, and what would be right."""
    if len(text) > MOST_CHARACTERS:
        raise InputError(place, f"has {len(text)} characters", f"at most {MOST_CHARACTERS}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        column = f": column {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply, or no text"
        raise InputError(place + column, f"is no expression ({reason})", "for example SPEED.SPEED > 50") from error
    compiler = _Compiler(names, place)
    try:
        compiler.logic(tree)
    except RecursionError as error:
        raise InputError(place, "is nested too deeply", "split it into campaigns") from error
    if len(compiler.steps) > MOST_STEPS:
        raise InputError(place, f"takes {len(compiler.steps)} steps", f"at most {MOST_STEPS}")
    if not compiler.operands:
        raise InputError(place, "names no signal, so it is never looked at", "compare a signal")
    depth, deepest = 0, 0
    for op, *_ in compiler.steps:
        depth += OPS[op][1]
        deepest = max(deepest, depth)
    if deepest > 64:
        raise InputError(place, "is nested too deeply", "at most 64 values may wait for each other")
    return Program(tuple(compiler.steps), tuple(compiler.operands))


class _Compiler:
    def __init__(self, names: Names, place: str) -> None:
        self._names = names
        self._place = place
        self.steps: list[tuple[str, int, int, float]] = []
        self.operands: list[int] = []

    # -- true or false

    def logic(self, node: ast.expr) -> None:
        if self._kind(node) != LOGIC:
            is_signal = self._signal_name(node) is not None
            self._fail(
                node,
                f"{ast.unparse(node)} is {NUMBER if not _is_text(node) else 'a text'}, not {LOGIC}",
                f"compare it, as in {ast.unparse(node)} != 0" if is_signal else "compare it",
            )
        if isinstance(node, ast.BoolOp):
            for number, value in enumerate(node.values):
                self.logic(value)
                if number:
                    self._step("AND" if isinstance(node.op, ast.And) else "OR")
        elif isinstance(node, ast.UnaryOp):
            self.logic(node.operand)
            self._step("NOT")
        elif isinstance(node, ast.Compare):
            self._compare(node)
        elif self._vss(node) is not None:
            self._value(node)
        else:
            assert isinstance(node, ast.Call)
            self._call(node)

    def _compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for number, operator in enumerate(node.ops):
            if type(operator) not in COMPARISONS:
                self._fail(node, "only < <= > >= == != compare", "write several of them with `or`")
            self._pair(node, sides[number], COMPARISONS[type(operator)], sides[number + 1])
            if number:
                self._step("AND")

    def _pair(self, node: ast.Compare, left: ast.expr, op: str, right: ast.expr) -> None:
        if _is_text(left) or _is_truth(left):
            left, op, right = right, MIRRORED[op], left
        if _is_text(right):
            self._label(node, left, op, right)
            return
        if _is_truth(right) and self._kind(left) == LOGIC and op in ("EQ", "NE"):
            self.logic(left)
            if (op == "EQ") != right.value:  # type: ignore[attr-defined]
                self._step("NOT")
            return
        self._check_range(node, left, op, right)
        self._check_range(node, right, MIRRORED[op], left)
        self.number(left)
        self.number(right)
        self._step(op)

    def _label(self, node: ast.expr, left: ast.expr, op: str, right: ast.expr) -> None:
        """A signal against a label: its raw value against all raw values that have the label."""
        assert isinstance(right, ast.Constant)
        if self._signal_name(left) is None:
            self._fail(node, "a label can be compared with a signal only", "as in GEARBOX.GEAR == 'DRIVE'")
        if op not in ("EQ", "NE"):
            self._fail(node, "labels have no order", "use == or !=")
        operand = self._operand(left)
        name, _, signal = self._names.signals[self.operands[operand]]
        vss = self._vss(left)
        labels = vss.values if vss is not None else signal.labels
        raws = [raw for raw, label in labels.items() if label == right.value]
        if not raws:
            name = name if vss is None else vss.path
            texts = [label for label in labels.values() if isinstance(label, str)]
            near = close(str(right.value), texts, n=1, cutoff=0.4)
            known = ", ".join(repr(label) for label in texts[:8])
            self._fail(
                right,
                f"{name} has no label {right.value!r}",
                f"did you mean {near[0]!r}?" if near else f"it has {known}" if known else "compare it with a number",
            )
        if vss is not None and vss.steps is None:
            self._mapped(operand, {raw: float(raw in raws) for raw in labels})
        else:
            self._is_one_of(operand, raws)
        if op == "NE":
            self._step("NOT")

    def _is_one_of(self, operand: int, raws: Iterable[int]) -> None:
        for number, raw in enumerate(raws):
            self._step("RAW", operand)
            self._step("CONST", number=float(raw))
            self._step("EQ")
            if number:
                self._step("OR")

    def _mapped(self, operand: int, numbers: Mapping[int, float]) -> None:
        """The number that the raw value has here; undefined for others: the sum of (is it) * number, by (is it any)."""
        self._step("CONST")
        for value in sorted(set(numbers.values()) - {0.0}):
            self._is_one_of(operand, [raw for raw, number in numbers.items() if number == value])
            self._step("CONST", number=value)
            self._step("MUL")
            self._step("ADD")
        self._is_one_of(operand, numbers)
        self._step("DIV")

    def _check_range(self, node: ast.expr, left: ast.expr, op: str, right: ast.expr) -> None:
        """A comparison that no value of the signal's bits can make true is a mistake."""
        limit = _constant(right)
        if limit is None or self._signal_name(left) is None:
            return
        name, _, signal = self._names.signals[self._place_of(left)]
        low, high = physical_range(signal)
        if (vss := self._vss(left)) is not None:
            if vss.line is None:
                return
            (a, b), name = vss.line, vss.path
            low, high = sorted((a * low + b, a * high + b))
        if (
            (op == "GT" and limit >= high)
            or (op == "GE" and limit > high)
            or (op == "LT" and limit <= low)
            or (op == "LE" and limit < low)
            or (op == "EQ" and not low <= limit <= high)
        ):
            unit = vss.unit if vss is not None else signal.unit
            unit = f" {unit}" if unit else ""
            self._fail(node, f"is never true: {name} can be {low:g} to {high:g}{unit}", "compare with another number")

    # -- numbers

    def number(self, node: ast.expr) -> None:
        value = _constant(node)
        if value is not None:
            self._step("CONST", number=value)
        elif self._signal_name(node) is not None and self._kind(node) == NUMBER:
            self._value(node)
        elif self._kind(node) == LOGIC or _is_text(node):
            self._fail(
                node,
                f"{ast.unparse(node)} is {LOGIC if not _is_text(node) else 'a text'}, not {NUMBER}",
                "use a signal",
            )
        elif isinstance(node, ast.UnaryOp):
            self.number(node.operand)
            if isinstance(node.op, ast.USub):
                self._step("NEG")
        elif isinstance(node, ast.BinOp):
            if type(node.op) not in ARITHMETIC:
                self._fail(node, "is no arithmetic that there is", "use + - * /")
            self.number(node.left)
            self.number(node.right)
            self._step(ARITHMETIC[type(node.op)])
        elif isinstance(node, ast.Call):
            self._call(node)
        else:
            self._fail(node, f"{ast.unparse(node)[:40]} cannot be used here", "use signals, numbers and functions")

    def _value(self, node: ast.expr) -> None:
        """A signal's last value; converted, where it is named by its VSS path."""
        operand, vss = self._operand(node), self._vss(node)
        if vss is None:
            self._step("VALUE", operand)
        elif vss.steps is not None:
            self._converted(vss.steps, "VALUE", operand)
            if vss.values:  # raw values that say why there is none
                self._is_one_of(operand, vss.values)
                self._step("NOT")
                self._step("DIV")
        elif any(isinstance(value, str) for value in vss.values.values()):
            self._fail(node, f"{vss.path} is a text, not {NUMBER}", f"as in {vss.path} == 'TEXT'")
        else:
            self._mapped(operand, {raw: float(value) for raw, value in vss.values.items()})

    def _converted(self, steps: Iterable[tuple[str, float]], of: str, operand: int, span_us: int = 0) -> None:
        for op, number in steps:
            if op == "X":
                self._step(of, operand, span_us)
            else:
                self._step(op, number=number)

    # -- functions

    def _call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if name not in USAGE:
            near = close(name, USAGE, n=1)
            there = f"did you mean {near[0]}?" if near else f"there are {', '.join(USAGE)}"
            self._fail(node, f"there is no function {name}", there)
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            self._fail(node, f"{name} takes plain arguments", f"as in {USAGE[name]}")
        if name in ("min", "max"):
            self._arguments(node, name, 2, 64)
            for number, argument in enumerate(node.args):
                self.number(argument)
                if number:
                    self._step(name.upper())
        elif name in WINDOWS or name == "stale":
            self._arguments(node, name, 2, 2)
            if self._signal_name(node.args[0]) is None:
                self._fail(node.args[0], f"{name} is of a signal", f"as in {USAGE[name]}")
            span_us, op, vss = self._seconds(node.args[1]), WINDOWS.get(name, "STALE"), self._vss(node.args[0])
            operand = self._operand(node.args[0])
            if vss is None or op in ("STALE", "COUNT"):
                self._step(op, operand, span_us)
                return
            if vss.steps is None or vss.line is None:
                own = self._names.signals[vss.signal][0]
                self._fail(node, f"{name} of {vss.path}, which is no line of its signal", f"use {own}")
            if vss.line[0] < 0:
                op = {"MIN_S": "MAX_S", "MAX_S": "MIN_S"}.get(op, op)
            self._converted(vss.steps, op, operand, span_us)
        elif name == "for_s":
            self._arguments(node, name, 2, 2)
            self.logic(node.args[0])
            self._step("FOR", span_us=self._seconds(node.args[1]))
        else:
            self._arguments(node, name, 1, 1)
            self._one(name)(node.args[0])
            self._step(name.upper())

    def _one(self, name: str) -> Callable[[ast.expr], None]:
        """How the one argument of this function is read: changed takes either."""
        if name == "abs":
            return self.number
        if name == "changed":
            return lambda node: self.logic(node) if self._kind(node) == LOGIC else self.number(node)
        return self.logic

    def _arguments(self, node: ast.Call, name: str, least: int, most: int) -> None:
        if not least <= len(node.args) <= most:
            self._fail(node, f"{name} does not take {len(node.args)} arguments", f"as in {USAGE[name]}")

    def _seconds(self, node: ast.expr) -> int:
        value = _constant(node)
        if value is None or not 0.001 <= value <= MOST_SECONDS:
            self._fail(node, f"{ast.unparse(node)} is no number of seconds", f"0.001 to {MOST_SECONDS:g}")
        return round(value * 1e6)

    # -- signals

    def _signal_name(self, node: ast.expr) -> str | None:
        """BRAKE.PRESSURE, can0.BRAKE.PRESSURE, signal("Odd-Name.Signal"); None where it is none of these."""
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "signal" and len(node.args) == 1:
                argument = node.args[0]
                is_text = isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                return str(argument.value) if is_text else None  # type: ignore[attr-defined]
            return None
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        return ".".join([node.id, *reversed(parts)])

    def _place_of(self, node: ast.expr) -> int:
        name = self._signal_name(node)
        assert name is not None
        places = self._names.find(name)
        if not places:
            self._fail(node, f"{name} is no signal of the manifest", self._names.closest(name))
        if len(places) > 1:
            buses = sorted({self._names.signals[place][1].bus for place in places})
            self._fail(node, f"{name} is on {' and '.join(buses)}", f"say {buses[0]}.{name}")
        return places[0]

    def _vss(self, node: ast.expr) -> "VssSignal | None":
        """What a node names by its VSS path."""
        name = self._signal_name(node)
        return self._names.vss.get(name) if name is not None else None

    def _operand(self, node: ast.expr) -> int:
        place = self._place_of(node)
        if place not in self.operands:
            self.operands.append(place)
        return self.operands.index(place)

    # --

    def _kind(self, node: ast.expr) -> str:
        if isinstance(node, (ast.BoolOp, ast.Compare)):
            return LOGIC
        if isinstance(node, ast.UnaryOp):
            return LOGIC if isinstance(node.op, ast.Not) else NUMBER
        if (vss := self._vss(node)) is not None:
            return LOGIC if vss.datatype == "boolean" else NUMBER
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            is_number = node.func.id in ("abs", "min", "max", "signal", *WINDOWS)
            return NUMBER if is_number else LOGIC
        if isinstance(node, ast.Call):
            return LOGIC
        return NUMBER

    def _step(self, op: str, operand: int = 0, span_us: int = 0, number: float = 0.0) -> None:
        self.steps.append((op, operand, span_us, number))

    def _fail(self, node: ast.expr, problem: str, way_out: str) -> NoReturn:
        raise InputError(f"{self._place}: column {node.col_offset + 1}", problem, way_out)


def _constant(node: ast.expr) -> float | None:
    """A number written as one, with or without a sign."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _constant(node.operand)
        return None if value is None else -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        try:
            value = float(node.value)  # type: ignore[arg-type]
        except OverflowError:
            return None
        return value if math.isfinite(value) else None
    return None


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_truth(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, bool)
