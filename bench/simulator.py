"""The simulated IoT Edge and IoT Hub: how soon modules are connected, how much one and how many devices may send."""

import asyncio
import base64
import hmac
import shutil
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.workload import ROOT, Workload
from simulator import deployment, mqtt
from simulator.broker import PORT
from simulator.demo import VEHICLE_FOLDER, adapt
from simulator.device import HUB_NAME, EdgeDevice

MESSAGES, BODY_BYTES, IN_FLIGHT = 10_000, 4096, 20
VEHICLES, VEHICLE_MESSAGES = 100, 60
EMPTY = {"modulesContent": {"$edgeAgent": {"properties.desired": {"modules": {}}}}}
SENDER = {
    "modulesContent": {
        "$edgeAgent": {"properties.desired": {"modules": {"sender": {}}}},
        "$edgeHub": {"properties.desired": {"routes": {"all": "FROM /messages/modules/sender/* INTO $upstream"}}},
    }
}


def figures(load: Workload, folder: Path) -> Iterator[dict[str, Any]]:
    seconds = asyncio.run(_start(load, folder / "start"))
    yield {"figure": "simulator: start to both modules connected", "seconds": seconds, "asked_at_most": 3}
    rate, plain = asyncio.run(_rate(folder / "rate"))
    yield {
        "figure": f"simulator: messages of {BODY_BYTES} bytes from one module, {IN_FLIGHT} in flight, each durable",
        "per_second": rate,
        "per_second_one_in_flight": plain,
        "asked": 2000,
    }
    lost, seconds = asyncio.run(_fleet(folder / "fleet"))
    yield {
        "figure": f"simulator: {VEHICLES} vehicles, a message a second each",
        "messages": VEHICLES * VEHICLE_MESSAGES,
        "seconds": seconds,
        "lost": lost,
        "asked_at_most": 0,
    }


class Client:
    """A device of the registry (VEHICLE), or a module (DEVICE/MODULE), that only sends, by bare MQTT over TLS."""

    def __init__(self, address: str, name: str, key: bytes) -> None:
        self.name = name
        self._address = address
        self._key = key
        self._path = f"devices/{name.replace('/', '/modules/')}"
        self._topic = f"{self._path}/messages/events/"

    async def connect(self, context: ssl.SSLContext) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._address, PORT, ssl=context)
        fields = (self.name, f"{HUB_NAME}/{self.name}/?api-version=2021-04-12", self._token())
        payload = b"".join(len(text).to_bytes(2, "big") + text.encode() for text in fields)
        self._writer.write(mqtt.encode(mqtt.CONNECT, 0, b"\0\4MQTT\4\xc0\0\x3c" + payload))
        answer = await mqtt.read_packet(self._reader)
        if answer.body != b"\0\0":
            raise ConnectionRefusedError(f"{self.name}: CONNACK {answer.body.hex()}")

    def send(self, body: bytes, packet_id: int) -> None:
        self._writer.write(mqtt.publish(self._topic, body, packet_id))

    async def acknowledged(self) -> int:
        return mqtt.packet_id_of(await mqtt.read_packet(self._reader))

    def close(self) -> None:
        self._writer.write(mqtt.encode(mqtt.DISCONNECT, 0, b""))
        self._writer.close()

    def _token(self) -> str:
        audience, expiry = quote(f"{HUB_NAME}/{self._path}", safe=""), str(int(time.time() + 3600))
        digest = hmac.digest(self._key, f"{audience}\n{expiry}".encode(), "sha256")
        return f"SharedAccessSignature sr={audience}&sig={quote(base64.b64encode(digest), safe='')}&se={expiry}"


def registered(device: EdgeDevice, name: str) -> Client:
    """A device of the registry."""
    document = device.registry.put(name, "", {}, None)
    return Client(device.address, name, base64.b64decode(document["authentication"]["symmetricKey"]["primaryKey"]))


async def vehicle(client: Client, context: ssl.SSLContext, messages: int, gap_s: float) -> None:
    """Send messages that say the vehicle and their number, waiting for each acknowledgement."""
    await client.connect(context)
    started = time.monotonic()
    for number in range(1, messages + 1):
        client.send(f"{client.name} {number}".encode(), number)
        if await client.acknowledged() != number:
            raise AssertionError(f"{client.name}: another message than {number} was acknowledged")
        await asyncio.sleep(max(0.0, started + number * gap_s - time.monotonic()))
    client.close()


async def _start(load: Workload, folder: Path) -> float:
    manifest = adapt(deployment.expand(ROOT / "deployment.template.json"), load.log, load.manifest)
    started = time.monotonic()
    async with EdgeDevice(manifest, folder, modules_root=ROOT) as device, asyncio.timeout(60):
        shutil.copyfile(load.log, device.host_path(VEHICLE_FOLDER) / load.log.name)
        shutil.copyfile(load.manifest_path, device.host_path(VEHICLE_FOLDER) / "vehicle.manifest")
        device.start_modules()
        while not all(map(device.hub.is_connected, device.modules)):
            await device.hub.changed(60)
        return time.monotonic() - started


async def _rate(folder: Path) -> tuple[float, float]:
    """A module through edgeHub's routes; it shares the hub's process."""
    async with EdgeDevice(SENDER, folder, modules_root=ROOT) as device:
        client = Client(device.address, f"{device.device_id}/sender", device.hub.identities.keys["sender"])
        await client.connect(ssl.create_default_context(cafile=str(device.ca_file)))
        fast = await _send(client, MESSAGES, IN_FLIGHT)
        return fast, await _send(client, MESSAGES // 20, 1)


async def _send(client: Client, count: int, in_flight: int) -> float:
    started = time.monotonic()
    for number in range(count + in_flight):
        if number >= in_flight:
            await client.acknowledged()
        if number < count:
            client.send(b"x" * BODY_BYTES, number % 65_535 + 1)
    return count / (time.monotonic() - started)


async def _fleet(folder: Path) -> tuple[int, float]:
    async with EdgeDevice(EMPTY, folder, modules_root=ROOT) as device:
        clients = [registered(device, f"car-{number}") for number in range(VEHICLES)]
        context = ssl.create_default_context(cafile=str(device.ca_file))
        started = time.monotonic()
        await asyncio.gather(*(vehicle(client, context, VEHICLE_MESSAGES, 1.0) for client in clients))
        seconds = time.monotonic() - started
        stored = sum(len(file.read_bytes().splitlines()) for file in device.hub.messages_dir.rglob("*.json"))
        return VEHICLES * VEHICLE_MESSAGES - stored, seconds
