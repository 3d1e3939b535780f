"""What the cloud received, as files hold it: one message after the other, or what is wrong with it.

    *.json   IoT Hub's routing to storage, JSON form: one object a line, the body in base64
    *.avro   IoT Hub's routing to storage, Avro form, and Event Hubs capture: see fleet/avro.py

What is no message of ours is data: it is reported with its place, and the rest is read. Memory holds one file.
"""

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from edge.errors import BlockCorrupt, InputError
from edge.message import Envelope, unpack

CONTENT_TYPE = "application/x-protobuf"
MESSAGE_FILES = (".json", ".avro")
LONGEST_LINE_BYTES = 1 << 20  # a message of 256 KB as base64, with its properties escaped
MOST_NAME_BYTES = 240  # of a vehicle or campaign, percent-encoded: it names a folder
PATH_CHARACTERS = re.compile(r"[/\\\x00-\x1f\x7f]|^\.{1,2}$")


class Place(msgspec.Struct, frozen=True):
    """The nth line or record of a file, counted from 1; 0 is the file as a whole."""

    path: Path
    number: int

    def __str__(self) -> str:
        return f"{shown(self.path)}:{self.number}" if self.number else shown(self.path)


def shown(path: Path) -> str:
    """As text, whatever bytes the name has."""
    return os.fsencode(path).decode(errors="replace")


class Received(msgspec.Struct, frozen=True):
    """A message, the vehicle that the hub says it is from, and when the hub had it (UTC)."""

    place: Place
    vehicle: str
    enqueued_us: int
    body: bytes
    envelope: Envelope


class Unreadable(msgspec.Struct, frozen=True):
    place: Place
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}; left out"


class Other(msgspec.Struct, frozen=True):
    """A message of another content type: other modules send, too."""

    place: Place


Found = Received | Unreadable | Other


def files(folders: Iterable[Path | str]) -> list[Path]:
    """All files below these folders, oldest first, but what is hidden. Raises InputError: there is no such folder."""
    found: set[Path] = set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(folder, "is no folder of messages", "give the folder that IoT Hub's routing writes to")
        paths = (path for path in folder.rglob("*") if path.is_file())
        found.update(path for path in paths if not _is_hidden(path.relative_to(folder)))
    return sorted(found)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def read(path: Path) -> Iterator[Found]:
    """Every message of this file, or what is wrong with it. Raises InputError: the file cannot be read."""
    try:
        if path.suffix == ".json":
            yield from _read_lines(path)
        elif path.suffix == ".avro":
            from fleet import avro

            yield from avro.read(path)
        else:
            yield Unreadable(Place(path, 0), f"is no file of messages by its name ({' or '.join(MESSAGE_FILES)})")
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "give folders that can be read") from error


def _read_lines(path: Path) -> Iterator[Found]:
    with path.open("rb") as file:
        number = 1
        while line := file.readline(LONGEST_LINE_BYTES):
            if line.endswith(b"\n") or len(line) < LONGEST_LINE_BYTES:
                yield parse_line(Place(path, number), line)
            else:
                yield Unreadable(Place(path, number), f"the line is longer than {LONGEST_LINE_BYTES:,} bytes")
                while line and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_LINE_BYTES)
            number += 1


def parse_line(place: Place, line: bytes) -> Found:
    try:
        row = json.loads(line)
        system = row["SystemProperties"]
        enqueued = datetime.fromisoformat(row["EnqueuedTimeUtc"]).replace(tzinfo=UTC)
        body = base64.b64decode(row["Body"], validate=True) if is_ours(system) else b""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Unreadable(place, f"no message in IoT Hub's JSON form ({type(error).__name__}: {error})")
    return take(place, system, enqueued, body)


def is_ours(system: Mapping[str, Any]) -> bool:
    return bool(system.get("contentType", CONTENT_TYPE) == CONTENT_TYPE)


def take(place: Place, system: Mapping[str, Any], enqueued: datetime, body: bytes) -> Found:
    """What a message is, given its system properties under the names that the storage routing gives them."""
    if not is_ours(system):
        return Other(place)
    sender = system.get("connectionDeviceId")
    if not isinstance(sender, str) or not sender:
        return Unreadable(place, "nothing says which device sent the message (connectionDeviceId)")
    if PATH_CHARACTERS.search(sender):
        return Unreadable(place, f"no device is called {sender!r}: that is a path")
    if len(quote(sender, safe="", errors="replace")) > MOST_NAME_BYTES:
        return Unreadable(place, f"the device's name of {len(sender)} characters is too long for a folder")
    try:
        envelope = unpack(body)
    except BlockCorrupt as error:
        return Unreadable(place, str(error))
    if envelope.vehicle_id != sender:
        # The hub knows who sent it; what the message says of itself is not to be trusted over that.
        return Unreadable(place, f"a message of {envelope.vehicle_id!r} that {sender!r} sent")
    return Received(place, sender, round(enqueued.timestamp() * 1e6), body, envelope)
