"""Automatic deployments: which one a device gets, and what layered ones change in it.

    base (modulesContent with whole sections)  +  layers ("properties.desired.modules.uplink": …)  ──►  manifest

The base of the highest priority wins whole; layers are laid on it from the lowest priority to the highest, each of
their keys replacing what is there. Rules: IoT Edge's documentation of automatic deployments.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

from simulator.condition import ANY, UNDEFINED, Condition
from simulator.template import DESIRED, object_of

QUERY = re.compile(
    r"\s*SELECT\s+\*\s+FROM\s+(devices\.modules|devices)(?:\s+WHERE\s+(.+?))?\s*", re.IGNORECASE | re.DOTALL
)


def matches(target_condition: str, twin: Mapping[str, Any]) -> bool:
    """Whether a target condition, or the WHERE of a query, takes the device of this twin. Raises ValueError."""
    if target_condition.strip() == "*":
        return True

    def lookup(name: str) -> Any:
        value: Any = twin
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return UNDEFINED
            value = value[part]
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    return bool(target_condition.strip()) and Condition(target_condition, ANY).holds(lookup)


def is_layered(content: Mapping[str, Any]) -> bool:
    return DESIRED not in object_of(content, "$edgeAgent")


def combine(configurations: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The manifest that these configurations, all of which target the device, give it; None without a base."""
    ranked = sorted(configurations, key=lambda one: (one.get("priority", 0), one.get("createdTimeUtc", "")))
    contents = [object_of(object_of(one, "content"), "modulesContent") for one in ranked]
    bases = [index for index, content in enumerate(contents) if not is_layered(content)]
    if not bases:
        return None
    layers = [content for content in contents if is_layered(content)]
    return {"modulesContent": lay(contents[bases[-1]], layers)}


def lay(base: Mapping[str, Any], layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """modulesContent of base with that of layers laid on it, the last on top."""
    content = copy.deepcopy(dict(base))
    for layer in layers:
        for owner in layer:
            for key, value in object_of(layer, owner).items():
                target = content.setdefault(owner, {}).setdefault(DESIRED, {})
                path = key.removeprefix(DESIRED).strip(".").split(".")
                if path == [""]:  # a whole twin of a module that the base does not have
                    content[owner][DESIRED] = copy.deepcopy(value)
                    continue
                for name in path[:-1]:
                    target = target.setdefault(name, {})
                target[path[-1]] = copy.deepcopy(value)
    return content


def split_query(query: str) -> tuple[bool, str]:
    """Whether a query is for modules, and its condition ("*" where it has none). Raises ValueError."""
    match = QUERY.fullmatch(query)
    if not match:
        raise ValueError("known are SELECT * FROM devices [WHERE …] and SELECT * FROM devices.modules [WHERE …]")
    return match[1].lower() == "devices.modules", match[2] or "*"
