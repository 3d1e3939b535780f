"""What the cloud received: a message and who sent it, or what is wrong with it.

What is no message of ours is data: it is reported with its place, and the rest is read.
"""

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from edge.errors import BlockCorrupt
from edge.message import Envelope, unpack

CONTENT_TYPE = "application/x-protobuf"
# Names of an event's system properties, and those that IoT Hub's routing to storage has for the same.
EVENT_NAMES = {
    "iothub-connection-device-id": "connectionDeviceId",
    "iothub-connection-module-id": "connectionModuleId",
    "content-type": "contentType",
    "content_type": "contentType",
}
MOST_NAME_BYTES = 240  # of a vehicle or campaign, percent-encoded: it names a folder
PATH_CHARACTERS = re.compile(r"[/\\\x00-\x1f\x7f]|^\.{1,2}$")


class Place(msgspec.Struct, frozen=True):
    """The nth line or record of a file, counted from 1 (0 is the file as a whole); or an offset in a partition."""

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


def time_of(text: str) -> datetime:
    """In ISO 8601; of UTC where it names no zone. Raises ValueError."""
    when = datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


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
