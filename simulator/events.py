"""What the cloud received, as a consumer of an Event-Hubs endpoint gets it: in order, from any place on.

async for event in events(hub, after=17): …        waits for more at the end
"""

import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from simulator.hub import Hub


class Event(NamedTuple):
    """sequence: its number in the one partition, from 1. module: "" for a device itself."""

    sequence: int
    enqueued: datetime
    device: str
    module: str
    body: bytes
    properties: dict[str, str | None]
    system_properties: dict[str, Any]


def stored(folder: Path, after: int = 0) -> Iterator[Event]:
    """The events of a folder of messages behind the first so many."""
    sequence = 0
    for file in sorted(folder.rglob("*.json")):
        for line in file.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                return  # it is being written
            sequence += 1
            if sequence > after:
                yield _event(sequence, json.loads(line))


async def events(hub: Hub, after: int = 0) -> AsyncIterator[Event]:
    """All events behind the first so many, and then each as it comes, without end."""
    while True:
        before = after
        for event in stored(hub.messages_dir, after):
            after = event.sequence
            yield event
        if after == before:  # nothing has been stored since the folder was read: that would have taken an await
            with suppress(TimeoutError):
                await hub.changed(60)


def _event(sequence: int, line: dict[str, Any]) -> Event:
    system = line["SystemProperties"]
    return Event(
        sequence,
        datetime.fromisoformat(line["EnqueuedTimeUtc"][:26]).replace(tzinfo=UTC),
        system["connectionDeviceId"],
        system["connectionModuleId"],
        base64.b64decode(line["Body"]),
        line["Properties"],
        system,
    )
