"""Clients of a simulated hub: unmodified azure-iot-device over TLS, and raw MQTT for what that client never does."""

import asyncio
import base64
import json
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from azure.iot.device.aio import IoTHubModuleClient

from simulator import mqtt, sas
from simulator.broker import PORT
from simulator.device import HUB_NAME, EdgeDevice

SECONDS = 10
CAR = "simulated-vehicle"

EVENTS = f"devices/{CAR}/modules/uplink/messages/events/"
REPORTED = "$iothub/twin/PATCH/properties/reported/?$rid="
MANIFEST = {
    "modulesContent": {
        "$edgeAgent": {"properties.desired": {"modules": {"uplink": {}, "collector": {}}}},
        "uplink": {"properties.desired": {"latency_s": 10, "nested": {"a": 1, "b": 2}}},
    }
}


@pytest.fixture
async def device(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[EdgeDevice]:
    """Hub and workload sockets, no module processes. Nothing in them may fail unheard."""
    async with EdgeDevice(MANIFEST, tmp_path / "device", modules_root=tmp_path) as device:
        yield device
    # caplog.records are those of the teardown alone by now.
    records = [record for when in ("setup", "call", "teardown") for record in caplog.get_records(when)]
    assert [record for record in records if record.name == "asyncio" or "ended with an error" in record.msg] == []


@asynccontextmanager
async def sdk(
    device: EdgeDevice, monkeypatch: pytest.MonkeyPatch, module: str = "uplink", **options: Any
) -> AsyncIterator[Any]:
    for name, value in device.environment(module).items():
        monkeypatch.setenv(name, value)
    client = await asyncio.to_thread(IoTHubModuleClient.create_from_edge_environment, **options)
    try:
        async with asyncio.timeout(SECONDS):
            await client.connect()
            yield client
    finally:
        await asyncio.wait_for(client.shutdown(), SECONDS)


async def until(device: EdgeDevice, condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await device.hub.changed(SECONDS)


def stored(device: EdgeDevice) -> list[dict[str, Any]]:
    files = sorted(device.hub.messages_dir.rglob("*.json"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


class Raw:
    """An MQTT client that sends whatever it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, kind: int, flags: int, body: bytes) -> None:
        self._writer.write(mqtt.encode(kind, flags, body))
        await self._writer.drain()

    async def publish(self, topic: str, payload: bytes = b"", *, flags: int = 2, packet_id: int = 1) -> None:
        await self.send(
            mqtt.PUBLISH, flags, field(topic) + (struct.pack(">H", packet_id) if flags & 6 else b"") + payload
        )

    async def subscribe(self, *filters: str, qos: int = 1) -> bytes:
        await self.send(mqtt.SUBSCRIBE, 2, b"\0\1" + b"".join(field(name) + bytes([qos]) for name in filters))
        return (await self.next(mqtt.SUBACK)).body[2:]

    async def next(self, kind: int) -> mqtt.Packet:
        packet = await self.any()
        assert packet.kind == kind
        return packet

    async def any(self) -> mqtt.Packet:
        return await asyncio.wait_for(mqtt.read_packet(self._reader), SECONDS)

    async def next_publish(self) -> mqtt.Publish:
        return mqtt.publish_of(await self.next(mqtt.PUBLISH))

    async def acknowledged(self) -> int:
        return mqtt.packet_id_of(await self.next(mqtt.PUBACK))

    async def is_closed(self) -> bool:
        try:
            return not await asyncio.wait_for(self._reader.read(1), SECONDS)
        except ConnectionError:
            return True


def field(text: str) -> bytes:
    return struct.pack(">H", len(text.encode())) + text.encode()


def token(
    device: EdgeDevice, module: str = "uplink", *, host: str = HUB_NAME, lifetime_s: float = 60, key: bytes = b""
) -> str:
    audience = quote(f"{host}/devices/{CAR}/modules/{module}", safe="")
    expiry = str(int(time.time() + lifetime_s))
    digest = sas.hmac.digest(key or device.hub.identities.keys[module], f"{audience}\n{expiry}".encode(), "sha256")
    return f"SharedAccessSignature sr={audience}&sig={quote(base64.b64encode(digest), safe='')}&se={expiry}"


@asynccontextmanager
async def raw(
    device: EdgeDevice,
    *,
    module: str = "uplink",
    client_id: str | None = None,
    username: str | None = None,
    password: str | None = None,
    clean: bool = False,
    keepalive_s: int = 60,
    level: int = 4,
) -> AsyncIterator[tuple[Raw, bytes]]:
    """A client after its CONNECT, and the body of the CONNACK."""
    context = ssl.create_default_context(cafile=device._state / "certificates" / "ca.pem")
    reader, writer = await asyncio.open_connection(device.address, PORT, ssl=context)
    client = Raw(reader, writer)
    body = field("MQTT") + bytes([level, 0xC0 | clean << 1]) + struct.pack(">H", keepalive_s)
    body += field(f"{CAR}/{module}" if client_id is None else client_id)
    body += field(f"{HUB_NAME}/{CAR}/{module}/?api-version=2019-10-01" if username is None else username)
    body += field(token(device, module) if password is None else password)
    try:
        await client.send(mqtt.CONNECT, 0, body)
        yield client, (await client.next(mqtt.CONNACK)).body
    finally:
        writer.close()
