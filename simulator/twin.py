"""A module's twin: desired and reported properties, each with a version, changed by merge patches.

The rules are IoT Hub's, as edgeHub checks them: null deletes, objects merge, everything else replaces; 32 KB a
section, 4 KB a value, ten levels, no control characters, dots, dollars or spaces in names, integers below 2^52.
"""

import json
from typing import Any

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


def _patched(section: dict[str, Any], patch: Any) -> dict[str, Any]:
    if not isinstance(patch, dict):
        raise Rejected("a patch is a JSON object")
    merged = merge(section, {name: value for name, value in patch.items() if name != "$version"})
    check(merged)
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
    size = len(json.dumps(section, separators=(",", ":")).encode())
    if size > SECTION_BYTES:
        raise Rejected(f"the section has {size} bytes; {SECTION_BYTES} are allowed")
    _check_level(section, 1, "")


def _check_level(value: Any, depth: int, path: str) -> None:
    if isinstance(value, dict):
        if depth > DEPTH:
            raise Rejected(f"{path} is over {DEPTH} levels deep")
        for name, entry in value.items():
            if not name or len(name.encode()) > NAME_BYTES or any(c in ".$# " or ord(c) < 32 for c in name):
                raise Rejected(f"{path}/{name[:40]} is no name that a twin can hold")
            _check_level(entry, depth + 1, f"{path}/{name}")
    elif isinstance(value, list):
        for entry in value:
            if entry is None:
                raise Rejected(f"{path} has a null in an array")
            _check_level(entry, depth + 1, path)
    elif isinstance(value, str) and len(value.encode()) > VALUE_BYTES:
        raise Rejected(f"{path} is over {VALUE_BYTES} bytes")
    elif isinstance(value, int) and not isinstance(value, bool) and not -INTEGER_BOUND <= value < INTEGER_BOUND:
        raise Rejected(f"{path} is no integer that a twin can hold")
