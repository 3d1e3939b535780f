"""Routes of edgeHub: what is wrong with one.

    FROM /messages/modules/collector/outputs/* WHERE level > 3 AND $body.kind = 'x' INTO $upstream
         source                                      condition                         sink

Rules: IoT Hub's query language for routes, as much of it as edgeHub documents.
"""

import re
from collections.abc import Collection, Iterator

ROUTE = re.compile(
    r"\s*(?:SELECT\s+\*\s+)?FROM\s+(?P<source>\S+)(?:\s+WHERE\s+(?P<condition>.+?))?\s+INTO\s+(?P<sink>\S.*?)\s*",
    re.IGNORECASE | re.DOTALL,
)
OUTPUT = r"(/\*|/outputs(/\*|/[\w.-]+(/\*)?)?)?"
SOURCE = re.compile(
    rf"/(\*|twinChangeNotifications(/\*)?|messages(/\*|/modules(/\*|/(?P<module>[\w-]+){OUTPUT})?)?)", re.IGNORECASE
)
ENDPOINT = re.compile(r'BrokeredEndpoint\(\s*"/modules/(?P<module>[\w-]+)/inputs/[\w.-]+"\s*\)', re.IGNORECASE)

TOKEN = re.compile(
    r"""\s*(?:
    (?P<value>\d+(?:\.\d+)?(?:e[+-]?\d+)?|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
  | (?P<body>\$body(?:\.\w+|\[\d+\])+)
  | (?P<name>\$?[a-z_][\w.]*|\{\$[a-z_][\w.-]*\})
  | (?P<operator><>|!=|<=|>=|\|\||\?\?|[=<>+\-*/%(),])
    )""",
    re.IGNORECASE | re.VERBOSE,
)
END = "the end"
BINARY = {"=", "!=", "<>", "<", "<=", ">", ">=", "+", "-", "*", "/", "%", "||", "??", "and", "or"}
FUNCTIONS = (
    "abs exp power square ceiling floor sign sqrt as_number is_bool is_defined is_null is_number is_string"
    " concat length lower upper substring index_of starts_with ends_with contains twin_change_includes"
)
DEEPEST = 50
LONGEST = 4096  # characters: a twin takes no longer value


def problems(route: str, modules: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each problem of a route with its way out. modules: those of the deployment."""
    match = ROUTE.fullmatch(route) if len(route) <= LONGEST else None
    if not match:
        yield "is no route", "FROM <source> [WHERE <condition>] INTO <sink>"
        return
    source, endpoint = SOURCE.fullmatch(match["source"]), ENDPOINT.fullmatch(match["sink"])
    if not source:
        yield f"{match['source']} is no source", "for example /messages/modules/NAME/outputs/*"
    if not endpoint and match["sink"].lower() != "$upstream":
        yield f"{match['sink']} is no sink", '$upstream or BrokeredEndpoint("/modules/NAME/inputs/INPUT")'
    for part in (source, endpoint):
        module = part["module"] if part else None
        if module and module not in modules:
            yield f"there is no module {module}", f"there are {', '.join(sorted(modules)) or 'none'}"
    if match["condition"]:
        try:
            _Condition(match["condition"]).parse()
        except ValueError as error:
            yield f"condition: {error}", "see IoT Hub's query language for routes"


class _Condition:
    """A parser that makes nothing: it only stumbles. Precedence does not matter for that."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        self._at = 0
        position = 0
        while position < len(text.rstrip()):
            match = TOKEN.match(text, position)
            if not match:
                raise ValueError(f"{text[position:].strip()[:20]!r} is not understood")
            self._tokens.append(match[0].strip())
            position = match.end()

    def parse(self) -> None:
        """Raises ValueError."""
        self._expression(0)
        if self._at < len(self._tokens):
            raise ValueError(f"{self._next!r} is not expected")

    @property
    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else END

    def _take(self, *wanted: str) -> bool:
        if self._next.lower() not in wanted:
            return False
        self._at += 1
        return True

    def _expression(self, depth: int) -> None:
        if depth > DEEPEST:
            raise ValueError(f"over {DEEPEST} levels deep")
        self._operand(depth)
        while self._take(*BINARY):
            self._operand(depth)

    def _operand(self, depth: int) -> None:
        while self._take("not", "-", "+"):
            pass
        word = self._next
        if self._take("("):
            self._expression(depth + 1)
            self._close()
        elif word.lower() in {*BINARY, ")", ",", END}:
            raise ValueError(f"a value is missing before {word!r}")
        else:
            self._at += 1
            if self._take("("):
                self._arguments(word, depth)

    def _arguments(self, function: str, depth: int) -> None:
        if function.lower() not in FUNCTIONS.split():
            raise ValueError(f"there is no function {function}")
        if self._take(")"):
            return
        self._expression(depth + 1)
        while self._take(","):
            self._expression(depth + 1)
        self._close()

    def _close(self) -> None:
        if not self._take(")"):
            raise ValueError(f"a ) is missing before {self._next!r}")
