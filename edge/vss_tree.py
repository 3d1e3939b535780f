"""VSS trees and overlays as they are exchanged: JSON and YAML, nested or with dotted paths, instances expanded or not.

    vss.json  {"Vehicle": {"type": "branch", "children": {"Speed": {…}}}}     nested: `vspec export json`
    vss.yaml  Vehicle.Speed: {type: sensor, …}                                dotted: `vspec export yaml`, overlays

The only file that imports PyYAML; on the bench. VSS: "Rule set", sections Branches and Instances.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from edge.errors import InputError

MOST_BYTES = 64 << 20
MOST_NODES = 200_000
MOST_INSTANCES = 1000
RANGE = re.compile(r"(\w*)\[(\d{1,6}),\s*(\d{1,6})\]")


class Node(NamedTuple):
    """A branch or signal: its attributes as the file has them, and where they are (line 0: not known)."""

    path: str
    attributes: dict[str, Any]
    file: str
    line: int = 0

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}" if self.line else f"{self.file}: {self.path}"

    @property
    def is_branch(self) -> bool:
        return self.attributes.get("type") == "branch"


def read(path: Path) -> list[Node]:
    """The nodes of a file, in its order; a path may come twice. Raises InputError: it is no tree, or too large."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "give a VSS tree or overlay") from error
    if len(content) > MOST_BYTES:
        raise InputError(path, f"has {len(content):,} bytes", f"a VSS tree has at most {MOST_BYTES:,}")
    try:
        pairs = _json(content) if path.suffix.lower() == ".json" else _yaml(content)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else getattr(error, "lineno", 0)
        place = f"{path}:{line}" if line else path
        reason = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        raise InputError(place, f"does not load: {reason}", "correct it there") from error
    if not pairs:
        raise InputError(path, "holds no VSS nodes", "as in Vehicle.Speed: {type: sensor, datatype: float}")
    nodes: list[Node] = []
    for name, value, line in pairs:
        for node in _nodes(name, value, path, line):
            nodes.append(node)
            if len(nodes) > MOST_NODES:
                raise InputError(path, f"has more than {MOST_NODES:,} nodes", "give one VSS tree")
    return nodes


def expand(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """The tree with a node for every instance. Raises InputError: instances that make no sense, or too many."""
    found: dict[str, Node] = {}
    for node in nodes.values():
        for path in _paths(node, nodes):
            found[path] = node._replace(path=path)
        if len(found) > MOST_NODES:
            raise InputError(node.place, f"with its instances the tree has over {MOST_NODES:,} nodes", "give fewer")
    return found


def _paths(node: Node, nodes: Mapping[str, Node]) -> Iterable[str]:
    """Where a node is, once for each instance of the branches above it; those of a branch itself come below it."""
    parts = node.path.split(".")
    choices: list[list[str]] = []
    for depth in range(1, len(parts) + 1):
        above = nodes.get(".".join(parts[:depth]))
        choices.append([parts[depth - 1]])
        is_excluded = depth == len(parts) - 1 and node.attributes.get("instantiate") is False
        if above is not None and depth < len(parts) and not is_excluded and above.attributes.get("instances"):
            choices += _levels(above)
    return (".".join(names) for names in product(*choices))


def _levels(branch: Node) -> list[list[str]]:
    """["Left", "Right"] is one level; Row[1,2] and lists within a list are one each."""
    given = branch.attributes["instances"]
    items = given if isinstance(given, list) else [given]
    if all(isinstance(item, str) and not RANGE.fullmatch(item.strip()) for item in items):
        return [items]
    levels = []
    for item in items:
        found = RANGE.fullmatch(item.strip()) if isinstance(item, str) else None
        if found and 0 <= int(found[3]) - int(found[2]) < MOST_INSTANCES:
            levels.append([f"{found[1]}{number}" for number in range(int(found[2]), int(found[3]) + 1)])
        elif isinstance(item, list) and all(isinstance(name, str) for name in item):
            levels.append(item)
        elif isinstance(item, str) and not found:
            levels.append([item])
        else:
            raise InputError(
                branch.place, f"instances {str(item)[:60]} make no sense", 'as in Row[1,2] or ["Left", "Right"]'
            )
    return levels


def _json(content: bytes) -> list[tuple[str, Any, int]]:
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError("it is no object of VSS nodes")
    return [(name, value, 0) for name, value in document.items()]


def _yaml(content: bytes) -> list[tuple[str, Any, int]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(content)
    try:
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise ValueError("it is no mapping of VSS nodes")
        pairs = [(key, loader.construct_document(value)) for key, value in root.value]
        return [(str(key.value), value, key.start_mark.line + 1) for key, value in pairs]
    finally:
        loader.dispose()


def _nodes(path: str, value: Any, file: Path, line: int) -> Iterator[Node]:
    """A node and those below it."""
    if not isinstance(value, dict):
        raise InputError(
            f"{file}:{line}" if line else file, f"{path[:100]} is no VSS node", "give it type and datatype"
        )
    attributes = {str(name): attribute for name, attribute in value.items() if name != "children"}
    yield Node(path, attributes, file.name, line)
    children = value.get("children")
    for name, child in children.items() if isinstance(children, dict) else ():
        yield from _nodes(f"{path}.{name}", child, file, 0)
