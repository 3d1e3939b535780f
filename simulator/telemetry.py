"""What the hub has received, in the JSON form of IoT Hub's storage routing: one message a line, files by minute.

    <folder>/<hub>/00/2026/11/24/15/07.json
    {"EnqueuedTimeUtc": …, "Properties": {…}, "SystemProperties": {…}, "Body": "<base64>"}

A message is on disk before its PUBACK goes out.
"""

import base64
import json
import os
from datetime import UTC, datetime
from pathlib import Path
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


def parse_bag(bag: str) -> dict[str, str]:
    """The property bag at the end of a telemetry topic; `?` in front and `/` behind it are tolerated."""
    properties = {}
    for part in bag.strip("/").lstrip("?").split("&"):
        if part:
            name, _, value = part.partition("=")
            properties[unquote(name)] = unquote(value)
    return properties


class MessageStore:
    def __init__(self, folder: Path, hub: str) -> None:
        self.folder = folder
        self._hub = hub

    def store(self, device: str, module: str, bag: dict[str, str], body: bytes) -> None:
        """Durable when it returns."""
        now = datetime.now(UTC)
        stamp = now.strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"
        system = {SYSTEM_PROPERTIES[name]: value for name, value in bag.items() if name in SYSTEM_PROPERTIES}
        line = {
            "EnqueuedTimeUtc": stamp,
            "Properties": {name: value for name, value in bag.items() if not name.startswith("$.")},
            "SystemProperties": {
                "connectionDeviceId": device,
                "connectionModuleId": module,
                **system,
                "enqueuedTime": stamp,
            },
            "Body": base64.b64encode(body).decode(),
        }
        path = self.folder / self._hub / "00" / now.strftime("%Y/%m/%d/%H/%M.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
