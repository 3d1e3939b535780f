"""Messages as IoT Hub routes them to storage, in its JSON form: one object a line, the body in base64.

    <folder>/<hub>/<partition>/2026/11/24/15/07.json

What is no message of ours is data: it is reported with its file and line, and the rest is read.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from edge.errors import BlockCorrupt, InputError
from edge.message import Envelope, unpack

CONTENT_TYPE = "application/x-protobuf"


class Place(msgspec.Struct, frozen=True):
    """A line of a file; offset is that of its first byte."""

    path: Path
    line: int
    offset: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


class Received(msgspec.Struct, frozen=True):
    """A message, the vehicle that the hub says it is from, and when the hub had it (UTC)."""

    place: Place
    vehicle: str
    enqueued_us: int
    envelope: Envelope


class Unreadable(msgspec.Struct, frozen=True):
    place: Place
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}; left out"


class Other(msgspec.Struct, frozen=True):
    """A message of another content type: other modules send, too."""

    place: Place


def files(folders: Iterable[Path | str]) -> list[Path]:
    """The message files below these folders, oldest first. Raises InputError: there is no such folder."""
    found: set[Path] = set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(folder, "is no folder of messages", "give the folder that IoT Hub's routing writes to")
        found.update(path for path in folder.rglob("*.json") if path.is_file())
    return sorted(found)


def read(paths: Iterable[Path]) -> Iterator[Received | Unreadable | Other]:
    """Every line of these files as a message, or as what is wrong with it."""
    for path in paths:
        offset = 0
        try:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    yield parse(Place(path, number, offset), line)
                    offset += len(line)
        except OSError as error:
            raise InputError(path, f"cannot be read ({error.strerror})", "give folders that can be read") from error


def line_at(place: Place) -> bytes:
    """Raises InputError: the file is gone."""
    try:
        with place.path.open("rb") as file:
            file.seek(place.offset)
            return file.readline()
    except OSError as error:
        raise InputError(place, f"cannot be read again ({error.strerror})", "decode again") from error


def parse(place: Place, line: bytes) -> Received | Unreadable | Other:
    try:
        message = json.loads(line)
        system = message["SystemProperties"]
        if system.get("contentType", CONTENT_TYPE) != CONTENT_TYPE:
            return Other(place)
        sender = system["connectionDeviceId"]
        enqueued = datetime.fromisoformat(message["EnqueuedTimeUtc"]).replace(tzinfo=UTC)
        envelope = unpack(base64.b64decode(message["Body"], validate=True))
    except BlockCorrupt as error:
        return Unreadable(place, str(error))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Unreadable(place, f"no message in IoT Hub's JSON form ({type(error).__name__}: {error})")
    if envelope.vehicle_id != sender or not sender:
        # The hub knows who sent it; what the message says of itself is not to be trusted over that.
        return Unreadable(place, f"a message of {envelope.vehicle_id!r} that {sender!r} sent")
    return Received(place, sender, round(enqueued.timestamp() * 1e6), envelope)
