"""A module's twin: desired and reported properties, each with a version, changed by merge patches.

The rules are IoT Hub's, as edgeHub checks them: null deletes, objects merge, everything else replaces; 32 KB a
section, 4 KB a value, ten levels, no control characters, dots, dollars or spaces in names, integers below 2^52.
"""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec

from edge.twin import merge_patch
from simulator import strict

SECTION_BYTES = 32 * 1024
TAGS_BYTES = 8 * 1024
VALUE_BYTES = 4 * 1024
NAME_BYTES = 1024
DEPTH = 10
NEVER = "0001-01-01T00:00:00Z"
INTEGER_BOUND = 1 << 52


class Rejected(ValueError):
    """A patch that IoT Hub would answer with 400."""


class Twin(msgspec.Struct):
    """version counts all changes; etag names the last one to tags or desired properties, as the service API has it."""

    tags: dict[str, Any] = {}
    desired: dict[str, Any] = {}
    reported: dict[str, Any] = {}
    desired_version: int = 1
    reported_version: int = 1
    version: int = 1
    etag: str = "1"
    desired_updated: str = NEVER
    reported_updated: str = NEVER

    def document(self) -> dict[str, Any]:
        """As a client gets it."""
        return {
            "desired": {**self.desired, "$version": self.desired_version},
            "reported": {**self.reported, "$version": self.reported_version},
        }

    def service_document(self) -> dict[str, Any]:
        """As the service API gives it, without the identity."""
        document = self.document()
        document["desired"]["$metadata"] = {"$lastUpdated": self.desired_updated}
        document["reported"]["$metadata"] = {"$lastUpdated": self.reported_updated}
        return {"etag": self.etag, "version": self.version, "tags": self.tags, "properties": document}

    def patch_desired(self, patch: Any) -> None:
        """Raises Rejected."""
        self.desired = _patched(self.desired, patch)
        self._desired_changed()

    def replace_desired(self, desired: Any) -> bool:
        """Whether that changes anything. Raises Rejected."""
        fresh = _patched({}, desired)
        if fresh == self.desired:
            return False
        self.desired = fresh
        self._desired_changed()
        return True

    def patch_reported(self, patch: Any) -> None:
        """Raises Rejected."""
        self.reported = _patched(self.reported, patch)
        self.reported_version += 1
        self.version += 1
        self.reported_updated = _now()

    def set_tags(self, tags: Any, *, merge: bool) -> None:
        """Raises Rejected."""
        self.tags = _patched(self.tags if merge else {}, tags, TAGS_BYTES)
        self._service_changed()

    def _desired_changed(self) -> None:
        self.desired_version += 1
        self.desired_updated = _now()
        self._service_changed()

    def _service_changed(self) -> None:
        self.version += 1
        self.etag = str(self.version)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse(text: bytes) -> Any:
    """JSON as it came from a client. Raises Rejected."""
    try:
        return strict.loads(text)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"no JSON: {error}") from error


def _patched(section: dict[str, Any], patch: Any, most_bytes: int = SECTION_BYTES) -> dict[str, Any]:
    if not isinstance(patch, dict):
        raise Rejected("a patch is a JSON object")
    patch = {name: value for name, value in patch.items() if name not in ("$version", "$metadata")}
    _check_level(patch, 1, "")  # before anything recurses into it
    merged = merge_patch(section, patch)
    _check_size(merged, most_bytes)
    return merged


def difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The patch that makes new of old; empty where they are equal."""
    patch: dict[str, Any] = dict.fromkeys(old.keys() - new.keys())
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := difference(before, value):
                patch[name] = inner
        elif name not in old or before != value:
            patch[name] = value
    return patch


def check(section: dict[str, Any]) -> None:
    """Raises Rejected where IoT Hub would not keep this section."""
    _check_level(section, 1, "")
    _check_size(section)


def section_bytes(section: dict[str, Any]) -> int:
    return len(json.dumps(section, separators=(",", ":"), ensure_ascii=False).encode())


def _check_size(section: dict[str, Any], most_bytes: int = SECTION_BYTES) -> None:
    size = section_bytes(section)
    if size > most_bytes:
        raise Rejected(f"the section has {size} bytes; {most_bytes} are allowed")


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
