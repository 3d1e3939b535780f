"""Routes of edgeHub: what is wrong with one, and what it takes.

    FROM /messages/modules/collector/outputs/* WHERE as_number(level) > 3 AND $body.kind = 'x' INTO $upstream
         source                                      condition                         sink

Rules: IoT Hub's query language for routes, as much of it as edgeHub documents.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from simulator.condition import Condition, Lookup

ROUTE = re.compile(
    r"\s*(?:SELECT\s+\*\s+)?FROM\s+(?P<source>\S+)(?:\s+WHERE\s+(?P<condition>.+?))?\s+INTO\s+(?P<sink>\S.*?)\s*",
    re.IGNORECASE | re.DOTALL,
)
OUTPUT = r"(/\*|/outputs(/\*|/[\w.-]+(/\*)?)?)?"
SOURCE = re.compile(
    rf"/(\*|twinChangeNotifications(/\*)?|messages(/\*|/modules(/\*|/(?P<module>[\w-]+){OUTPUT})?)?)", re.IGNORECASE
)
ENDPOINT = re.compile(
    r'BrokeredEndpoint\(\s*"/modules/(?P<module>[\w-]+)/inputs/(?P<input>[\w.-]+)"\s*\)', re.IGNORECASE
)

LONGEST = 4096  # characters: a twin takes no longer value
SHAPE = "FROM <source> [WHERE <condition>] INTO <sink>"
UPSTREAM = "$upstream"
DEFAULT_PRIORITY = 2_000_000_000  # behind any that can be written


class Route:
    """One valid route. endpoint: UPSTREAM or `module/input`. ttl_s: of its own, 0 for that of the store.

    Raises ValueError.
    """

    def __init__(self, name: str, definition: str | Mapping[str, Any]) -> None:
        for _, problem, _ in definition_problems(definition, None):
            raise ValueError(problem)
        options: Mapping[str, Any] = {"route": definition} if isinstance(definition, str) else definition
        match = ROUTE.fullmatch(options["route"])
        assert match
        endpoint = ENDPOINT.fullmatch(match["sink"])
        self.name = name
        self.endpoint = f"{endpoint['module']}/{endpoint['input']}" if endpoint else UPSTREAM
        self.priority: int = options.get("priority", DEFAULT_PRIORITY)
        self.ttl_s: int = options.get("timeToLiveSecs", 0)
        source = match["source"].lower().removesuffix("*").rstrip("/")
        self._source = source.split("/")[1:]
        self._condition = Condition(match["condition"]) if match["condition"] else None

    def takes(self, source: str, lookup: Lookup) -> bool:
        """source: where a message comes from, for example `/messages/modules/collector/outputs/alarms`."""
        if source.lower().split("/")[1:][: len(self._source)] != self._source:
            return False
        return self._condition is None or self._condition.holds(lookup)


def source_of(module: str, output: str | None) -> str:
    root = f"/messages/modules/{module}" if module else "/messages"
    return f"{root}/outputs/{output}" if output else root


def definition_problems(definition: Any, modules: Collection[str] | None) -> Iterator[tuple[str, str, str]]:
    """Each problem of a route as a deployment has it: where in it, what, and the way out. modules: as in problems."""
    route = definition
    if isinstance(definition, dict):
        route = definition.get("route")
        if not is_integer(definition.get("priority", 0), 0, 9):
            yield ".priority", f"{definition['priority']!r} is no priority", "take 0 to 9"
        if not is_integer(definition.get("timeToLiveSecs", 0), 0, (1 << 32) - 1):
            yield ".timeToLiveSecs", f"{definition['timeToLiveSecs']!r} is no time", "take whole seconds"
    if not isinstance(route, str):
        yield "", "is no route", SHAPE
        return
    for problem, way_out in problems(route, modules):
        yield "", problem, way_out


def is_integer(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def problems(route: str, modules: Collection[str] | None) -> Iterator[tuple[str, str]]:
    """Each problem of a route with its way out. modules: those of the deployment, None where they are not known."""
    match = ROUTE.fullmatch(route) if len(route) <= LONGEST else None
    if not match:
        yield "is no route", SHAPE
        return
    source, endpoint = SOURCE.fullmatch(match["source"]), ENDPOINT.fullmatch(match["sink"])
    if not source:
        yield f"{match['source']} is no source", "for example /messages/modules/NAME/outputs/*"
    if not endpoint and match["sink"].lower() != "$upstream":
        yield f"{match['sink']} is no sink", '$upstream or BrokeredEndpoint("/modules/NAME/inputs/INPUT")'
    for part in (source, endpoint):
        module = part["module"] if part else None
        if module and modules is not None and module not in modules:
            yield f"there is no module {module}", f"there are {', '.join(sorted(modules)) or 'none'}"
    if match["condition"]:
        try:
            Condition(match["condition"])
        except ValueError as error:
            yield f"condition: {error}", "see IoT Hub's query language for routes"
