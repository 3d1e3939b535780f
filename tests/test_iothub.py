"""The real azure-iot-device client against the simulated edgeHub: each of the SDK's defects is survived.

D1 to D16 are what azure-iot-device 2.14 does when it is left to itself.
"""

import asyncio
import base64
import json
import logging
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edge.cloud import iothub
from edge.cloud.identity import EDGE_ENVIRONMENT
from edge.cloud.iothub import IoTHub
from edge.errors import CloudUnreachable, InputError, MessageRejected
from edge.log import Formatter, RateLimit
from edge.message import MAX_MESSAGE_BYTES, unpack
from edge.outbox import NewRecord, Outbox
from simulator import certificates
from simulator.certificates import Authority
from simulator.device import free_address
from simulator.faults import FaultyHub
from simulator.workload import Workload

KEY = b"the module's key"
PROPERTIES = {"$.ct": "application/x-protobuf"}


class Edge:
    """One device's runtime around one module, and what a test does to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = free_address()
        self.ca, self.certificate, self.key = certificates.make(folder, self.address, [])
        self.hub = self._new_hub()
        self.workload = Workload("hub.example/car/uplink", KEY, Authority(folder))
        self.environment = {
            "IOTEDGE_IOTHUBHOSTNAME": "hub.example",
            "IOTEDGE_GATEWAYHOSTNAME": self.address,
            "IOTEDGE_DEVICEID": "car",
            "IOTEDGE_MODULEID": "uplink",
            "IOTEDGE_MODULEGENERATIONID": "1",
            "IOTEDGE_WORKLOADURI": f"unix://{folder}/workload.sock",
            "IOTEDGE_APIVERSION": "2022-08-03",
        }

    def _new_hub(self) -> FaultyHub:
        return FaultyHub("hub.example", "car", self.address, self.folder, {"uplink": KEY})

    async def start(self) -> None:
        await self.hub.start(self.certificate, self.key)
        await self.start_workload()

    async def start_workload(self) -> None:
        await self.workload.start(self.folder / "workload.sock")

    async def stop_workload(self) -> None:
        await self.workload.stop()
        (self.folder / "workload.sock").unlink()

    async def restart_hub(self) -> None:
        await self.hub.stop()
        self.hub = self._new_hub()
        await self.hub.start(self.certificate, self.key)

    def drop(self) -> None:
        """Cut the connection."""
        for connection in list(self.hub._connections.values()):
            connection.close()

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something the hub or the module does."""
        async with asyncio.timeout(20):
            while not condition():
                try:
                    await self.hub.changed(0.02)
                except TimeoutError:
                    continue

    @property
    def messages(self) -> list[dict[str, Any]]:
        files = sorted(self.hub.messages_dir.rglob("*.json"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    @property
    def bodies(self) -> list[bytes]:
        return [base64.b64decode(message["Body"]) for message in self.messages]


@pytest.fixture
async def edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Edge]:
    edge = Edge(tmp_path)
    for name, value in edge.environment.items():
        monkeypatch.setenv(name, value)
    await edge.start()
    yield edge
    await edge.workload.stop()
    await edge.hub.stop()


@asynccontextmanager
async def running(cloud: IoTHub) -> AsyncIterator[None]:
    cloud.retry_min_s, cloud.retry_max_s = 0.01, 0.02
    task = asyncio.create_task(cloud.run())
    try:
        async with asyncio.timeout(20):
            yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def connected(edge: Edge, cloud: IoTHub | None = None) -> AsyncIterator[IoTHub]:
    cloud = cloud or IoTHub()
    async with running(cloud):
        await cloud.wait_connected()
        yield cloud


async def send(cloud: IoTHub, body: bytes = b"body", timeout_s: float = 10.0) -> None:
    await cloud.send(body, f"id-{body.hex()[:20]}", PROPERTIES, timeout_s)


async def test_a_message_arrives_with_its_properties(edge):
    async with connected(edge) as cloud:
        await cloud.send(b"\0body", "0a0b-1-2", PROPERTIES, 10)
    [message] = edge.messages
    assert base64.b64decode(message["Body"]) == b"\0body"
    system = message["SystemProperties"]
    assert (system["contentType"], system["messageId"]) == ("application/x-protobuf", "0a0b-1-2")
    assert (system["connectionDeviceId"], system["connectionModuleId"]) == ("car", "uplink")


async def test_messages_sent_at_the_same_time_go_out_in_the_order_of_the_calls(edge):  # D10
    bodies = [b"%03d" % number for number in range(100)]
    async with connected(edge) as cloud:
        for start in range(0, 100, 16):
            await asyncio.gather(*(send(cloud, body) for body in bodies[start : start + 16]))
    assert edge.bodies == bodies


async def test_a_message_over_the_limit_is_rejected_before_it_goes_out(edge):  # D6
    async with connected(edge) as cloud:
        with pytest.raises(MessageRejected):
            await send(cloud, bytes(MAX_MESSAGE_BYTES))
        await send(cloud, bytes(MAX_MESSAGE_BYTES - 300))
    assert edge.hub.counters["connects"] == 1


async def test_the_twin_is_read_on_connecting_and_again_when_it_changes(edge):
    edge.hub.patch_desired("uplink", {"a": {"b": 1}})
    cloud, twins = IoTHub(), []
    cloud.on_twin = twins.append
    async with connected(edge, cloud):
        assert twins[0]["desired"]["a"] == {"b": 1}
        edge.hub.patch_desired("uplink", {"a": {"b": None, "c": 2}})
        await edge.until(lambda: twins[-1]["desired"]["a"] == {"c": 2})


async def test_a_twin_without_a_version_is_fine(edge):  # D13
    edge.hub.faults.plain_twin = True
    cloud, twins = IoTHub(), []
    cloud.on_twin = twins.append
    async with connected(edge, cloud):
        edge.drop()
        await edge.until(lambda: len(twins) == 2)
    assert twins == [{"desired": {}, "reported": {}}] * 2


async def test_reported_properties_are_merged(edge):
    async with connected(edge) as cloud:
        await cloud.report({"a": {"b": 1, "c": 2}})
        await cloud.report({"a": {"b": None}})
    assert edge.hub.twin("uplink").document()["reported"]["a"] == {"c": 2}


async def test_reported_properties_that_break_the_rules_are_rejected_and_cost_nothing_else(edge):
    async with connected(edge) as cloud:
        with pytest.raises(MessageRejected, match="400"):
            await cloud.report({"a.b": 1})
        await send(cloud)
    assert edge.hub.counters["connects"] == 1


async def test_methods_are_answered_and_a_failing_one_is_a_status_not_a_crash(edge):
    async def answer(name: str, payload: Any) -> tuple[int, Any]:
        if name == "fail":
            raise ValueError("no")
        return 200, {"name": name, "payload": payload}

    cloud = IoTHub()
    cloud.on_method = answer
    async with connected(edge, cloud):
        assert await edge.hub.call("uplink", "echo", {"x": 1}) == (200, {"name": "echo", "payload": {"x": 1}})
        assert await edge.hub.call("uplink", "echo") == (200, {"name": "echo", "payload": None})
        assert await edge.hub.call("uplink", "fail") == (500, {"error": "no"})


async def test_after_a_drop_the_client_is_back_and_knows_what_changed_meanwhile(edge):  # D2, D3
    cloud, twins = IoTHub(), []
    cloud.on_twin = twins.append
    async with connected(edge, cloud):
        edge.drop()
        edge.hub.patch_desired("uplink", {"news": 1})
        await edge.until(lambda: twins[-1]["desired"].get("news") == 1)
        await cloud.wait_connected()
        edge.hub.patch_desired("uplink", {"news": 2})
        await edge.until(lambda: twins[-1]["desired"].get("news") == 2)
        await send(cloud)
    assert edge.bodies == [b"body"]


async def test_a_hub_that_forgot_the_session_is_subscribed_to_again(edge):  # D7
    cloud, twins = IoTHub(), []
    cloud.on_twin = twins.append
    async with connected(edge, cloud):
        edge.hub.subscriptions["uplink"].clear()
        edge.drop()
        await edge.until(lambda: len(twins) == 2)
        edge.hub.patch_desired("uplink", {"news": 1})
        await edge.until(lambda: twins[-1]["desired"].get("news") == 1)


async def test_a_hub_that_is_not_there_yet_is_waited_for(edge):  # D8
    await edge.hub.stop()
    cloud = IoTHub()
    async with running(cloud):
        await edge.until(lambda: cloud.counters["rebuilds"] >= 2)
        await edge.restart_hub()
        await cloud.wait_connected()
        await send(cloud)
    assert edge.bodies == [b"body"]


async def test_without_a_connection_a_send_fails_at_once(edge):
    with pytest.raises(CloudUnreachable, match="not connected"):
        await send(IoTHub())


async def test_a_message_that_is_not_acknowledged_in_time_fails_and_a_new_client_sends_the_next(edge):  # D5
    async with connected(edge) as cloud:
        edge.hub.faults.silent = "devices/"
        with pytest.raises(CloudUnreachable, match="no answer to message"):
            await send(cloud, timeout_s=0.1)
        edge.hub.faults.silent = None
        await cloud.wait_connected()
        await send(cloud, b"next")
    assert edge.bodies == [b"next"]
    assert edge.hub.counters["connects"] == 2


async def test_what_is_in_flight_when_the_connection_drops_fails_at_once(edge):
    async with connected(edge) as cloud:
        edge.hub.faults.silent = "devices/"
        flights = [asyncio.create_task(send(cloud, timeout_s=3600)) for _ in range(5)]
        await edge.until(lambda: edge.hub.counters["fault: silence_count"] == 5)
        edge.drop()
        results = await asyncio.gather(*flights, return_exceptions=True)
    assert all(isinstance(result, CloudUnreachable) for result in results)


async def test_when_the_network_thread_of_the_sdk_dies_a_new_client_takes_over(edge, monkeypatch):
    async with connected(edge) as cloud:
        real_send = ssl.SSLSocket.send

        def die_once(*arguments: Any) -> int:
            monkeypatch.setattr(ssl.SSLSocket, "send", real_send)
            raise ssl.SSLEOFError("EOF occurred in violation of protocol")

        monkeypatch.setattr(ssl.SSLSocket, "send", die_once)
        with pytest.raises(CloudUnreachable):
            await send(cloud, timeout_s=3600)
        await cloud.wait_connected()
        await send(cloud, b"next")
    assert edge.bodies == [b"next"]


async def test_a_twin_that_is_not_answered_costs_the_client_and_not_the_module(edge, monkeypatch):  # D4
    monkeypatch.setattr(iothub, "CALL_SECONDS", 0.5)
    edge.hub.faults.silent = "$iothub/twin/GET"
    cloud = IoTHub()
    async with running(cloud):
        await edge.until(lambda: edge.hub.counters["fault: silence_count"] == 2)
        assert not cloud.connected
        edge.hub.faults.silent = None
        await cloud.wait_connected()


async def test_a_workload_socket_that_was_away_for_a_moment_does_no_lasting_harm(edge):  # D1
    async with connected(edge) as cloud:
        await edge.stop_workload()
        rebuilds = cloud.counters["rebuilds"]
        edge.drop()
        await edge.until(lambda: cloud.counters["rebuilds"] > rebuilds + 1)
        assert not cloud.connected
        await edge.start_workload()
        await cloud.wait_connected()
        await send(cloud)


async def test_refused_credentials_are_tried_again(edge):  # D2
    edge.hub.identities.keys["uplink"] = b"another key"
    cloud = IoTHub()
    async with running(cloud):
        await edge.until(lambda: edge.hub.counters["refused"] >= 2)
        edge.hub.identities.keys["uplink"] = KEY
        await cloud.wait_connected()


async def test_the_client_is_replaced_before_the_sdk_would_renew_its_token(edge, monkeypatch):  # D1, D14
    assert iothub.RENEW_SECONDS < iothub.TOKEN_SECONDS - 120
    monkeypatch.setattr(iothub, "RENEW_SECONDS", 0.05)
    async with connected(edge) as cloud:
        await edge.until(lambda: edge.hub.counters["connects"] >= 3)
        await cloud.wait_connected()
    assert edge.hub.counters["kicked"] == 0


async def test_when_nothing_helps_for_long_the_module_ends_to_be_restarted(edge, monkeypatch):
    monkeypatch.setattr(iothub, "MAX_REBUILDS", 2)
    monkeypatch.setattr(iothub, "EXIT_SECONDS", 0.0)
    await edge.hub.stop()
    cloud = IoTHub()
    cloud.retry_min_s = cloud.retry_max_s = 0.01
    with pytest.raises(CloudUnreachable, match="after 3 attempts"):
        async with asyncio.timeout(10):
            await cloud.run()


async def test_iot_hub_directly_with_a_connection_string(edge, monkeypatch):
    for name in EDGE_ENVIRONMENT:
        monkeypatch.delenv(name)
    key = base64.b64encode(KEY).decode()
    text = f"HostName={edge.address};DeviceId=car;ModuleId=uplink;SharedAccessKey={key}"
    monkeypatch.setenv("IOTHUB_CONNECTION_STRING", text)
    monkeypatch.setenv("BORDNETZ_CA", str(edge.ca))
    cloud, twins = IoTHub(direct=True), []
    cloud.on_twin = twins.append
    edge.hub.patch_desired("uplink", {"a": 1})
    async with connected(edge, cloud):
        await send(cloud)
        await cloud.report({"b": 2})
    assert (cloud.vehicle, edge.bodies, twins[0]["desired"]["a"]) == ("car", [b"body"], 1)
    assert edge.hub.twin("uplink").document()["reported"]["b"] == 2


def test_without_the_iot_edge_environment_there_is_one_clear_line(monkeypatch):
    for name in EDGE_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"IOTEDGE_IOTHUBHOSTNAME.* not set; start the module under"):
        IoTHub()


# The module as a process


@pytest.mark.process
async def test_the_uplink_process_sends_20_mb_in_64_mb_of_memory_and_stops_cleanly(edge, tmp_path):
    edge.hub.patch_desired("uplink", {"latency_s": 0, "retry_min_s": 0.05, "retry_max_s": 0.1})
    folder = tmp_path / "outbox"
    with Outbox(folder) as outbox:
        process = _start_uplink(edge, folder)
        for _ in range(320):
            await asyncio.to_thread(outbox.append, [NewRecord(5, "drive", bytes(32), os.urandom(62_000))])
        await edge.until(lambda: not outbox.stats().records)
        status, state = await edge.hub.call("uplink", "getStatus")
        assert (status, state["sent"]["records"], state["outbox"]["records"]) == (200, 320, 0)
        peak_kb = int(Path(f"/proc/{process.pid}/status").read_text().split("VmHWM:")[1].split()[0])
        assert peak_kb <= 64 * 1024
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 5) == 0
    sequences = [record.sequence for body in edge.bodies for record in unpack(body).records]
    assert sequences == list(range(1, 321))


@pytest.mark.process
async def test_killed_and_dropped_again_and_again_the_uplink_loses_nothing(edge, tmp_path):
    edge.hub.patch_desired("uplink", {"latency_s": 0, "message_units": 1, "retry_min_s": 0.01, "retry_max_s": 0.02})
    folder = tmp_path / "outbox"
    with Outbox(folder) as outbox:
        outbox.append([NewRecord(i % 3, f"s{i % 3}", bytes(32), os.urandom(3000)) for i in range(300)])
        for _ in range(4):
            process = _start_uplink(edge, folder)
            seen = edge.hub.counters["messages"]
            await edge.until(lambda seen=seen: edge.hub.counters["messages"] > seen + 10)
            edge.drop()
            seen = edge.hub.counters["messages"]
            await edge.until(lambda seen=seen: edge.hub.counters["messages"] > seen + 10)
            process.kill()
            process.wait()
        process = _start_uplink(edge, folder)
        await edge.until(lambda: not outbox.stats().records)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 5) == 0
    records = {record.sequence: record for body in edge.bodies for record in unpack(body).records}
    assert sorted(records) == list(range(1, 301))


@pytest.mark.process
async def test_a_second_uplink_on_one_outbox_ends_with_one_line_and_the_first_goes_on(edge, tmp_path):
    folder = tmp_path / "outbox"
    with Outbox(folder) as outbox:
        first = _start_uplink(edge, folder)
        outbox.append([NewRecord(0, "drive", bytes(32), b"body")])
        await edge.until(lambda: not outbox.stats().records)
        second = _start_uplink(edge, folder, stdout=subprocess.PIPE)
        said, _ = await asyncio.to_thread(second.communicate, None, 60)
        assert second.returncode == 2
        assert f"{folder}: is in use by another uplink; stop that one" in said.decode()
        assert b"Traceback" not in said
        outbox.append([NewRecord(0, "drive", bytes(32), b"body")])
        await edge.until(lambda: not outbox.stats().records)
        first.terminate()
        assert await asyncio.to_thread(first.wait, 30) == 0
    assert edge.hub.counters["kicked"] == 0


def _start_uplink(edge: Edge, folder: Path, stdout: int = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, **edge.environment, "BORDNETZ_OUTBOX": str(folder)}
    return subprocess.Popen([sys.executable, "-m", "modules.uplink.main"], env=environment, stdout=stdout)


# Logs


def record(text: str, *arguments: Any, level: int = logging.WARNING) -> logging.LogRecord:
    made = logging.LogRecord("edge", level, __file__, 1, text, arguments, None)
    made.created = 1795362102.1234
    return made


def test_a_log_record_is_one_line_that_iot_edge_can_filter():
    line = Formatter().format(record("two\nlines %d", 7, level=logging.INFO))
    assert line == "<6> 2026-11-22 15:41:42.123 +00:00 [INF] - two | lines 7"


def test_a_storm_of_the_same_warning_is_one_line_with_a_count():
    now = 0.0
    limit = RateLimit(10, clock=lambda: now)
    assert [limit.filter(record("storm %d", number)) for number in range(5)] == [True] + [False] * 4
    assert limit.filter(record("something else"))
    now = 10.0
    last = record("storm %d", 6)
    assert limit.filter(last)
    assert Formatter().format(last).endswith("[WRN] - storm 6 (4 more like this)")
