"""Files of messages, one message after the other. Memory holds one file at most.

*.json   IoT Hub's routing to storage, JSON form: one object a line, the body in base64
*.avro   IoT Hub's routing to storage, Avro form, and Event Hubs capture: see fleet/avro.py
"""

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from edge.errors import InputError
from fleet import avro
from fleet.messages import Found, Place, Unreadable, is_ours, take, time_of

MESSAGE_FILES = (".json", ".avro")
LONGEST_LINE_BYTES = 1 << 20  # a message of 256 KB as base64, with its properties escaped


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
    """Every message of this file, or what is wrong with it. Raises InputError: the disk cannot be read."""
    try:
        if path.suffix == ".json":
            yield from _read_lines(path)
        elif path.suffix == ".avro":
            yield from avro.read(path)
        else:
            yield Unreadable(Place(path, 0), f"is no file of messages by its name ({' or '.join(MESSAGE_FILES)})")
    except (PermissionError, FileNotFoundError) as error:
        yield Unreadable(Place(path, 0), f"cannot be read ({error.strerror})")
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "look at the disk") from error


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
        enqueued = time_of(row["EnqueuedTimeUtc"])
        body = base64.b64decode(row["Body"], validate=True) if is_ours(system) else b""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Unreadable(place, f"no message in IoT Hub's JSON form ({type(error).__name__}: {error})")
    return take(place, system, enqueued, body)
