"""Other clients than the Python SDK: plain paho from IoT Hub's documented topics, and Node's SDK; and very many."""

import asyncio
import base64
import json
import os
import queue
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import paho.mqtt.client as paho
import pytest

from bench.simulator import registered, vehicle
from simulator import sas
from simulator.broker import PORT
from simulator.device import HUB_NAME, EdgeDevice

SECONDS = 20
NODE = Path(__file__).parent / "node"
MANIFEST = {
    "modulesContent": {
        "$edgeAgent": {"properties.desired": {"modules": {"uplink": {}}}},
        "uplink": {"properties.desired": {"latency_s": 10}},
    }
}


@pytest.fixture
async def device(tmp_path: Path) -> AsyncIterator[EdgeDevice]:
    async with EdgeDevice(MANIFEST, tmp_path / "device", modules_root=tmp_path) as device:
        yield device


def token(path: str, key: bytes) -> str:
    audience = quote(f"{HUB_NAME}/{path}", safe="")
    expiry = str(int(time.time() + 3600))
    digest = sas.hmac.digest(key, f"{audience}\n{expiry}".encode(), "sha256")
    return f"SharedAccessSignature sr={audience}&sig={quote(base64.b64encode(digest), safe='')}&se={expiry}"


def register(device: EdgeDevice, name: str) -> bytes:
    """A device of the registry, which speaks with IoT Hub."""
    document = device.registry.put(name, "", {}, None)
    return base64.b64decode(document["authentication"]["symmetricKey"]["primaryKey"])


async def test_plain_paho_speaks_with_iot_hub_by_its_documented_topics(device):
    """MQTT 3.1.1, as IoT Hub's documentation describes it for clients without an SDK."""
    key = register(device, "truck")
    inbox: queue.Queue[Any] = queue.Queue()
    client = paho.Client(client_id="truck", protocol=paho.MQTTv311)
    client.username_pw_set(f"{HUB_NAME}/truck/?api-version=2021-04-12", token("devices/truck", key))
    client.tls_set(ca_certs=str(device.ca_file), tls_version=ssl.PROTOCOL_TLS_CLIENT)
    for event in ("on_connect", "on_publish", "on_subscribe", "on_message"):
        setattr(client, event, lambda *arguments, event=event: inbox.put((event, *arguments[2:])))

    async def next_of(event: str) -> Any:
        while True:
            got = await asyncio.to_thread(inbox.get, True, SECONDS)
            if got[0] == event:
                return got[-1]

    await asyncio.to_thread(client.connect, device.address, PORT)
    client.loop_start()
    try:
        assert await next_of("on_connect") == 0
        client.subscribe([("$iothub/twin/res/#", 1), ("$iothub/twin/PATCH/properties/desired/#", 1)])
        assert await next_of("on_subscribe") == (1, 1)
        client.publish("devices/truck/messages/events/a=1&%24.ct=application%2Fjson", b"{}", qos=1)
        await next_of("on_publish")
        assert device.hub.counters["messages"] == 1
        client.publish("$iothub/twin/GET/?$rid=1", b"")
        answer = await next_of("on_message")
        assert (answer.topic, answer.qos) == ("$iothub/twin/res/200/?$rid=1", 0)
        assert json.loads(answer.payload)["desired"] == {"$version": 1}
        client.publish("$iothub/twin/PATCH/properties/reported/?$rid=2", b'{"fine": true}')
        assert (await next_of("on_message")).topic == "$iothub/twin/res/204/?$rid=2&$version=2"
        device.hub.patch_desired("truck/", {"x": 1})
        patch = await next_of("on_message")
        assert (patch.topic, patch.qos) == ("$iothub/twin/PATCH/properties/desired/?$version=2", 0)
        assert json.loads(patch.payload) == {"x": 1, "$version": 2}
    finally:
        await asyncio.to_thread(client.disconnect)
        await asyncio.to_thread(client.loop_stop)


async def test_the_node_sdk_speaks_with_edge_hub(device):
    node = shutil.which("node")
    if node is None or not (NODE / "node_modules" / "azure-iot-device-mqtt").is_dir():
        pytest.skip("Node's azure-iot-device is not installed: make node")
    process = await asyncio.create_subprocess_exec(
        node,
        "module.js",
        cwd=NODE,
        env={**os.environ, **device.environment("uplink")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(SECONDS):
            ready = json.loads(await process.stdout.readline())
            assert ready["desired"]["latency_s"] == 10
            assert await device.hub.call("uplink", "ping", {"n": 1}) == (200, {"pong": {"n": 1}})
            device.hub.patch_desired("uplink", {"latency_s": 3})
            assert json.loads(await process.stdout.readline()) == {"latency_s": 3, "$version": 3}
            assert await device.hub.call("uplink", "end") == (200, {})
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert device.hub.counters["messages"] == 1
    assert device.hub.twin("uplink").reported == {"client": "node"}


VEHICLES, MESSAGES = 100, 5


async def test_a_hundred_vehicles_lose_nothing(device):
    clients = [registered(device, f"car-{number}") for number in range(VEHICLES)]
    context = ssl.create_default_context(cafile=str(device.ca_file))
    async with asyncio.timeout(3 * SECONDS):
        await asyncio.gather(*(vehicle(client, context, MESSAGES, 0.0) for client in clients))
    files = sorted(device.hub.messages_dir.rglob("*.json"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    bodies: dict[str, list[str]] = {client.name: [] for client in clients}
    for line in lines:
        bodies[line["SystemProperties"]["connectionDeviceId"]].append(base64.b64decode(line["Body"]).decode())
    assert bodies == {name: [f"{name} {number}" for number in range(1, MESSAGES + 1)] for name in bodies}
