"""Messages as IoT Hub routes them to storage, in its JSON form: one object a line, the body in base64.

What is no message of ours is data: it is reported with its file and line, and the rest is read.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from edge.errors import BlockCorrupt, InputError
from edge.message import Envelope, unpack


class Received(msgspec.Struct, frozen=True):
    place: str  # file:line
    envelope: Envelope


class Unreadable(msgspec.Struct, frozen=True):
    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}; left out"


def files(folders: Iterable[Path]) -> list[Path]:
    """The message files below these folders, oldest first. Raises InputError: there is no such folder."""
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(folder, "is no folder of messages", "give the folder that IoT Hub's routing writes to")
        found += folder.rglob("*.json")
    return sorted(found)


def read(paths: Iterable[Path]) -> Iterator[Received | Unreadable]:
    """Every line of these files as a message, or as what is wrong with it."""
    for path in paths:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                yield _message(f"{path}:{number}", line)


def _message(place: str, line: bytes) -> Received | Unreadable:
    try:
        message = json.loads(line)
        envelope = unpack(base64.b64decode(message["Body"], validate=True))
        sender = message["SystemProperties"]["connectionDeviceId"]
    except BlockCorrupt as error:
        return Unreadable(place, str(error))
    except (ValueError, KeyError, TypeError) as error:
        return Unreadable(place, f"no message in IoT Hub's JSON form ({type(error).__name__}: {error})")
    if envelope.vehicle_id != sender:
        # The hub knows who sent it; what the message says of itself is not to be trusted over that.
        return Unreadable(place, f"a message of {envelope.vehicle_id!r} that {sender!r} sent")
    return Received(place, envelope)
