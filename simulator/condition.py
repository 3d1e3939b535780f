"""Conditions of IoT Hub's query language, as edgeHub compiles those of routes.

    as_number(level) > 3 AND $body.kind = 'x' ──parse──► (kind, evaluate) ──holds(lookup)──► true, or not

Operands have a kind before anything runs: a property is text, what comes out of a body may be anything, and edgeHub
refuses to compare text with a number. What is not there is undefined, and a condition that is undefined is not true.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)
  | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
  | (?P<body>\$body(?:\.\w+|\[\d+\])+|\{\$body(?:\.\w+|\[\d+\])+\})
  | (?P<name>\$?[a-z_][\w.]*|\{\$[a-z_][\w.-]*\})
  | (?P<operator><>|!=|<=|>=|\|\||\?\?|[=<>+\-*/%(),])
    )""",
    re.IGNORECASE | re.VERBOSE,
)
END = "the end"
DEEPEST = 50
NUMBER, TEXT, BOOL, ANY = "a number", "text", "true or false", "anything"


class Undefined:
    """What is not there."""

    def __repr__(self) -> str:
        return "undefined"


UNDEFINED = Undefined()
Value = float | str | bool | None | Undefined
Lookup = Callable[[str], Any]


class Node(NamedTuple):
    kind: str
    evaluate: Callable[[Lookup], Value]


class Condition:
    """Raises ValueError: it is no condition. name_kind: TEXT where names are message properties, ANY in queries."""

    def __init__(self, text: str, name_kind: str = TEXT) -> None:
        node = _Parser(text, name_kind).parse()
        self._evaluate = node.evaluate

    def holds(self, lookup: Lookup) -> bool:
        """lookup gives the value of a name, `$body.path` or `$system`; UNDEFINED where there is none."""
        return self._evaluate(lookup) is True


def _number(value: Value) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Value) -> bool:
    return isinstance(value, str)


IS_KIND: dict[str, Callable[[Value], bool]] = {
    NUMBER: _number,
    TEXT: _text,
    BOOL: lambda value: isinstance(value, bool),
    ANY: lambda value: True,
}


def _as_number(text: str) -> Value:
    try:
        number = float(text)
    except ValueError:
        return UNDEFINED
    return number if math.isfinite(number) else UNDEFINED


def _substring(text: str, start: float, length: float | None = None) -> Value:
    first = int(start)
    last = len(text) if length is None else first + int(length)
    return text[first:last] if 0 <= first <= last <= len(text) else UNDEFINED


def _finite(function: Callable[..., float]) -> Callable[..., Value]:
    def call(*numbers: float) -> Value:
        try:
            result = function(*numbers)
        except (ValueError, OverflowError, ZeroDivisionError):
            return UNDEFINED
        return result if isinstance(result, float | int) and math.isfinite(result) else UNDEFINED

    return call


# name: kinds of the arguments, kind of the result, function. One that starts with is_ also sees what is undefined.
FUNCTIONS: dict[str, tuple[tuple[str, ...], str, Callable[..., Any]]] = {
    "abs": ((NUMBER,), NUMBER, abs),
    "exp": ((NUMBER,), NUMBER, _finite(math.exp)),
    "power": ((NUMBER, NUMBER), NUMBER, _finite(math.pow)),
    "square": ((NUMBER,), NUMBER, _finite(lambda x: x * x)),
    "ceiling": ((NUMBER,), NUMBER, lambda x: float(math.ceil(x))),
    "floor": ((NUMBER,), NUMBER, lambda x: float(math.floor(x))),
    "sign": ((NUMBER,), NUMBER, lambda x: float((x > 0) - (x < 0))),
    "sqrt": ((NUMBER,), NUMBER, _finite(math.sqrt)),
    "as_number": ((ANY,), NUMBER, lambda x: _as_number(x) if _text(x) else x if _number(x) else UNDEFINED),
    "is_bool": ((ANY,), BOOL, lambda x: isinstance(x, bool)),
    "is_defined": ((ANY,), BOOL, lambda x: x is not UNDEFINED),
    "is_null": ((ANY,), BOOL, lambda x: x is None),
    "is_number": ((ANY,), BOOL, _number),
    "is_string": ((ANY,), BOOL, _text),
    "length": ((TEXT,), NUMBER, len),
    "lower": ((TEXT,), TEXT, str.lower),
    "upper": ((TEXT,), TEXT, str.upper),
    "index_of": ((TEXT, TEXT), NUMBER, str.find),
    "starts_with": ((TEXT, TEXT), BOOL, str.startswith),
    "ends_with": ((TEXT, TEXT), BOOL, str.endswith),
    "contains": ((TEXT, TEXT), BOOL, str.__contains__),
}
CONSTANTS = {"true": (BOOL, True), "false": (BOOL, False), "null": (ANY, None), "undefined": (ANY, UNDEFINED)}
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<>": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
ARITHMETIC: dict[str, Callable[..., Value]] = {
    "+": _finite(lambda a, b: a + b),
    "-": _finite(lambda a, b: a - b),
    "*": _finite(lambda a, b: a * b),
    "/": _finite(lambda a, b: a / b),
    "%": _finite(math.fmod),
}
# The loosest first. The operators of a level are taken from the left.
LEVELS = (("??",), ("or",), ("and",), ("=", "!=", "<>"), ("<", "<=", ">", ">="), ("+", "-", "||"), ("*", "/", "%"))
WORDS = {"and", "or", "not"}


def _same_kind(a: Value, b: Value) -> bool:
    if a is None or b is None:
        return a is not UNDEFINED and b is not UNDEFINED
    return any(IS_KIND[kind](a) and IS_KIND[kind](b) for kind in (NUMBER, TEXT, BOOL))


def _compare(compare: Callable[[Any, Any], bool], is_order: bool) -> Callable[[Value, Value], Value]:
    def call(a: Value, b: Value) -> Value:
        if not _same_kind(a, b) or (is_order and (a is None or b is None)):
            return UNDEFINED
        return compare(a, b)

    return call


def _both(a: Value, b: Value) -> Value:
    if a is False or b is False:
        return False
    return True if a is True and b is True else UNDEFINED


def _either(a: Value, b: Value) -> Value:
    if a is True or b is True:
        return True
    return False if a is False and b is False else UNDEFINED


class _Parser:
    def __init__(self, text: str, name_kind: str) -> None:
        self._name_kind = name_kind
        self._tokens: list[tuple[str, str]] = []
        self._at = 0
        position, end = 0, len(text.rstrip())
        while position < end:
            match = TOKEN.match(text, position)
            if not match or not match.lastgroup:
                raise ValueError(f"{text[position:].strip()[:20]!r} is not understood")
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            position = match.end()

    def parse(self) -> Node:
        node = self._level(0, 0)
        if self._at < len(self._tokens):
            raise ValueError(f"{self._next!r} is not expected")
        self._want(node, BOOL, "the condition")
        return node

    @property
    def _next(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else END

    def _take(self, *wanted: str) -> str:
        """The next token, in lower case, where it is one of these; else ""."""
        word = self._next.lower()
        if self._at == len(self._tokens) or word not in wanted:
            return ""
        self._at += 1
        return word

    def _close(self) -> None:
        if not self._take(")"):
            raise ValueError(f"a ) is missing before {self._next!r}")

    def _want(self, node: Node, kind: str, what: str) -> None:
        if ANY not in (node.kind, kind) and node.kind != kind:
            way_out = "; write as_number(…)" if (node.kind, kind) == (TEXT, NUMBER) else ""
            raise ValueError(f"{what} is {node.kind}, not {kind}{way_out}")

    def _level(self, level: int, depth: int) -> Node:
        if depth > DEEPEST:
            raise ValueError(f"over {DEEPEST} levels deep")
        if level == len(LEVELS):
            return self._unary(depth)
        left = self._level(level + 1, depth)
        while operator := self._take(*LEVELS[level]):
            left = self._binary(operator, left, self._level(level + 1, depth))
        return left

    def _binary(self, operator: str, left: Node, right: Node) -> Node:
        place = f"an operand of {operator.upper()}"
        if operator == "??":
            self._same(left, right, operator)
            return _node(left.kind, lambda a, b: b if a is UNDEFINED else a, left, right)
        if operator in ("and", "or"):
            self._want(left, BOOL, place)
            self._want(right, BOOL, place)
            return _node(BOOL, _both if operator == "and" else _either, left, right)
        if operator in COMPARISONS:
            self._same(left, right, operator)
            return _node(BOOL, _compare(COMPARISONS[operator], operator[0] in "<>" and operator != "<>"), left, right)
        kind = TEXT if operator == "||" else NUMBER
        self._want(left, kind, place)
        self._want(right, kind, place)
        function = ARITHMETIC.get(operator, lambda a, b: a + b)
        return _node(kind, _guarded(function, (kind, kind)), left, right)

    def _same(self, left: Node, right: Node, operator: str) -> None:
        if ANY not in (left.kind, right.kind) and left.kind != right.kind:
            way_out = "; write as_number(…)" if {left.kind, right.kind} == {TEXT, NUMBER} else ""
            raise ValueError(f"{operator} between {left.kind} and {right.kind}{way_out}")

    def _unary(self, depth: int) -> Node:
        operator = self._take("not", "-", "+")
        if not operator:
            return self._operand(depth)
        # SQL's NOT is looser than a comparison, edgeHub's binds as a sign does: both agree on NOT (…) and NOT f(…).
        operand = self._deeper_unary(depth)
        kind = BOOL if operator == "not" else NUMBER
        self._want(operand, kind, f"the operand of {operator.upper()}")
        function: Callable[..., Value] = {"not": lambda x: not x, "-": lambda x: -x, "+": lambda x: x}[operator]
        return _node(kind, _guarded(function, (kind,)), operand)

    def _deeper_unary(self, depth: int) -> Node:
        if depth > DEEPEST:
            raise ValueError(f"over {DEEPEST} levels deep")
        return self._unary(depth + 1)

    def _operand(self, depth: int) -> Node:
        if self._take("("):
            node = self._level(0, depth + 1)
            self._close()
            return node
        if self._at == len(self._tokens):
            raise ValueError(f"a value is missing before {END!r}")
        group, word = self._tokens[self._at]
        if group == "operator" or word.lower() in WORDS:
            raise ValueError(f"a value is missing before {word!r}")
        self._at += 1
        if group == "number":
            return _constant(NUMBER, float(word))
        if group == "text":
            return _constant(TEXT, re.sub(r"\\u([0-9a-fA-F]{4})|\\(.)", _unescaped, word[1:-1]))
        if group == "name" and self._take("("):
            return self._call(word, depth)
        if word.lower() in CONSTANTS:
            return _constant(*CONSTANTS[word.lower()])
        return Node(ANY if group == "body" else self._name_kind, lambda lookup: lookup(word))

    def _call(self, word: str, depth: int) -> Node:
        name = word.lower()
        if name == "twin_change_includes":
            path = self._next
            self._at += 1
            self._close()
            return Node(BOOL, lambda lookup: lookup(f"$body.{path}") is not UNDEFINED)
        arguments = []
        if not self._take(")"):
            arguments.append(self._level(0, depth + 1))
            while self._take(","):
                arguments.append(self._level(0, depth + 1))
            self._close()
        function: Callable[..., Any]
        if name == "concat" and arguments:
            kinds, kind, function = (TEXT,) * len(arguments), TEXT, lambda *texts: "".join(texts)
        elif name == "substring" and len(arguments) in (2, 3):
            kinds, kind, function = (TEXT, NUMBER, NUMBER)[: len(arguments)], TEXT, _substring
        elif name in FUNCTIONS:
            kinds, kind, function = FUNCTIONS[name]
        else:
            known = "with so few arguments" if name in ("concat", "substring") else ""
            raise ValueError(f"there is no function {word} {known}".rstrip())
        if len(arguments) != len(kinds):
            raise ValueError(f"{word} takes {len(kinds)} arguments, not {len(arguments)}")
        for argument, wanted in zip(arguments, kinds, strict=True):
            self._want(argument, wanted, f"an argument of {word}")
        return _node(kind, function if kinds == (ANY,) else _guarded(function, kinds), *arguments)


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else match[2]


def _constant(kind: str, value: Value) -> Node:
    return Node(kind, lambda lookup: value)


def _node(kind: str, function: Callable[..., Value], *operands: Node) -> Node:
    return Node(kind, lambda lookup: function(*(operand.evaluate(lookup) for operand in operands)))


def _guarded(function: Callable[..., Any], kinds: tuple[str, ...]) -> Callable[..., Value]:
    """Undefined where a value is of another kind, or undefined itself."""

    def call(*values: Value) -> Value:
        fit = all(IS_KIND[kind](value) for kind, value in zip(kinds, values, strict=True))
        result: Value = function(*values) if fit else UNDEFINED
        return result

    return call
