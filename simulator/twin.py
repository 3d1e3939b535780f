"""A module's twin: desired and reported properties, each with a version, changed by merge patches.

The rules are IoT Hub's, as edgeHub checks them: null deletes, objects merge, everything else replaces; 32 KB a
section, 4 KB a value, ten levels, no control characters, dots, dollars or spaces in names, integers below 2^52.
"""

import json
from typing import Any, NoReturn

SECTION_BYTES = 32 * 1024
VALUE_BYTES = 4 * 1024
NAME_BYTES = 1024
DEPTH = 10
INTEGER_BOUND = 1 << 52


class Rejected(ValueError):
    """A patch that IoT Hub would answer with 400."""


class Twin:
    def __init__(self, document: dict[str, Any] | None = None) -> None:
        document = document or {}
        self.desired: dict[str, Any] = document.get("desired", {})
        self.reported: dict[str, Any] = document.get("reported", {})
        self.desired_version: int = document.get("desired_version", 1)
        self.reported_version: int = document.get("reported_version", 1)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for keeping."""
        return dict(vars(self))

    def document(self) -> dict[str, Any]:
        """As a client gets it."""
        return {
            "desired": {**self.desired, "$version": self.desired_version},
            "reported": {**self.reported, "$version": self.reported_version},
        }

    def patch_desired(self, patch: dict[str, Any]) -> None:
        """Raises Rejected."""
        self.desired = _patched(self.desired, patch)
        self.desired_version += 1

    def patch_reported(self, patch: Any) -> None:
        """Raises Rejected."""
        self.reported = _patched(self.reported, patch)
        self.reported_version += 1


def parse(text: bytes) -> Any:
    """JSON as it came from a client. Raises Rejected."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"no JSON: {error}") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _patched(section: dict[str, Any], patch: Any) -> dict[str, Any]:
    if not isinstance(patch, dict):
        raise Rejected("a patch is a JSON object")
    patch = {name: value for name, value in patch.items() if name != "$version"}
    _check_level(patch, 1, "")  # before anything recurses into it
    merged = merge(section, patch)
    _check_size(merged)
    return merged


def merge(section: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """A new section: section with patch merged in."""
    merged = dict(section)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            old = merged.get(name)
            merged[name] = merge(old if isinstance(old, dict) else {}, value)
        else:
            merged[name] = value
    return merged


def check(section: dict[str, Any]) -> None:
    """Raises Rejected where IoT Hub would not keep this section."""
    _check_level(section, 1, "")
    _check_size(section)


def section_bytes(section: dict[str, Any]) -> int:
    return len(json.dumps(section, separators=(",", ":"), ensure_ascii=False).encode())


def _check_size(section: dict[str, Any]) -> None:
    size = section_bytes(section)
    if size > SECTION_BYTES:
        raise Rejected(f"the section has {size} bytes; {SECTION_BYTES} are allowed")


def _check_level(value: Any, depth: int, path: str) -> None:
    if isinstance(value, dict | list) and depth > DEPTH:
        raise Rejected(f"{path} is over {DEPTH} levels deep")
    if isinstance(value, dict):
        for name, entry in value.items():
            if not name or _bytes(name) > NAME_BYTES or any(c in ".$# " or ord(c) < 32 or ord(c) == 127 for c in name):
                raise Rejected(f"{path}/{name[:40]!a} is no name that a twin can hold")
            _check_level(entry, depth + 1, f"{path}/{name}")
    elif isinstance(value, list):
        for entry in value:
            if entry is None:
                raise Rejected(f"{path} has a null in an array")
            _check_level(entry, depth + 1, path)
    elif isinstance(value, str) and _bytes(value) > VALUE_BYTES:
        raise Rejected(f"{path} is over {VALUE_BYTES} bytes")
    elif isinstance(value, int) and not isinstance(value, bool) and not -INTEGER_BOUND <= value < INTEGER_BOUND:
        raise Rejected(f"{path} is no integer that a twin can hold")


def _bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise Rejected("text that is not Unicode: half of a surrogate pair") from error
