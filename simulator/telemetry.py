"""What the hub has received, in the JSON form of IoT Hub's storage routing: one message a line, files by minute.

    <folder>/<hub>/00/2026/11/24/15/07.json
    {"EnqueuedTimeUtc": …, "Properties": {…}, "SystemProperties": {…}, "Body": "<base64>"}

A message is on disk before its PUBACK goes out. A line that a kill or a full disk cut short was never acknowledged,
and is taken away before the next is written.
"""

import base64
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

SYSTEM_PROPERTIES = {
    "$.mid": "messageId",
    "$.cid": "correlationId",
    "$.uid": "userId",
    "$.ct": "contentType",
    "$.ce": "contentEncoding",
    "$.exp": "expiryTimeUtc",
    "$.ctime": "creationTimeUtc",
    "$.on": "outputName",
}
LONGEST_LINE_BYTES = 1 << 20  # of a message of 256 KB, as base64, with its properties escaped

Bag = dict[str, str | None]


def parse_bag(bag: str) -> Bag:
    """The property bag at the end of a telemetry topic; `?` in front and `/` behind it are tolerated.

    A name alone is null, `name=` is empty.
    """
    properties: Bag = {}
    for part in bag.strip("/").lstrip("?").split("&"):
        if part:
            name, equals, value = part.partition("=")
            properties[unquote(name)] = unquote(value) if equals else None
    return properties


def bag_bytes(bag: Bag) -> int:
    """What IoT Hub counts: values of system properties, names and values of the others."""
    values = sum(len((value or "").encode()) for value in bag.values())
    return values + sum(len(name.encode()) for name in bag if not name.startswith("$."))


class MessageStore:
    """Not for two processes at a time."""

    def __init__(self, folder: Path, hub: str) -> None:
        self.folder = folder
        self._hub = hub
        self._path: Path | None = None
        self._file: BinaryIO | None = None

    def store(self, device: str, module: str, bag: Bag, body: bytes) -> None:
        """Durable once sync has run. Raises OSError."""
        now = datetime.now(UTC)
        stamp = now.strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"
        system = {SYSTEM_PROPERTIES.get(name, name): value for name, value in bag.items() if name.startswith("$.")}
        line = {
            "EnqueuedTimeUtc": stamp,
            "Properties": {name: value for name, value in bag.items() if not name.startswith("$.")},
            "SystemProperties": {
                **system,
                "connectionDeviceId": device,
                "connectionModuleId": module,
                "enqueuedTime": stamp,
            },
            "Body": base64.b64encode(body).decode(),
        }
        try:
            file = self._open(self.folder / self._hub / "00" / now.strftime("%Y/%m/%d/%H/%M.json"))
            _write(file, json.dumps(line).encode() + b"\n")
        except OSError:
            self.close()  # opened again, the file loses the line that was cut short
            raise

    def sync(self) -> Callable[[], None]:
        """What makes all that is stored until now durable; for a thread. Raises OSError, and so may what it returns."""
        number = os.dup(self._file.fileno()) if self._file else -1

        def run() -> None:
            if number >= 0:
                try:
                    os.fsync(number)
                finally:
                    os.close(number)

        return run

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._file = self._path = None

    def _open(self, path: Path) -> BinaryIO:
        if self._file and path == self._path and path.exists():
            return self._file
        if self._file:
            os.fsync(self._file.fileno())
            self.close()
        is_new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._path = path.open("a+b", buffering=0), path
        _cut_torn_line(self._file)
        if is_new:
            for folder in path.parents:
                _fsync_folder(folder)
                if folder == self.folder.parent:
                    break
        return self._file


def _cut_torn_line(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - LONGEST_LINE_BYTES)
    file.seek(max(0, size - 1))
    if file.read(1) not in (b"", b"\n"):
        file.seek(start)
        file.truncate(start + file.read().rfind(b"\n") + 1)


def _write(file: BinaryIO, data: bytes) -> None:
    """All of it: a disk that fills up takes a part first."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _fsync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
