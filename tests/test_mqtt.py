"""A real broker (mosquitto, TLS, X.509) as the cloud: restarted, killed, and hostile."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import pytest

from edge.cloud.choose import choose_cloud
from edge.cloud.mqtt import Mqtt
from edge.confirmation import Confirmation
from edge.errors import CloudUnreachable, InputError, MessageRejected
from edge.message import MAX_MESSAGE_BYTES, unpack
from edge.metered import TOPIC, Metered
from edge.outbox import NewRecord, Outbox
from edge.twin import merge_patch
from edge.uplink import Uplink
from edge.uplink_settings import UplinkSettings
from fleet.ranges import Ranges
from tests.mosquitto import Authority, Broker

pytestmark = [pytest.mark.process]
PROMPT = UplinkSettings(latency_s=0, retry_min_s=0.01, retry_max_s=0.05, message_units=2, send_timeout_s=5)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    broker = Broker(tmp_path)
    await broker.start()
    yield broker
    broker.stop()


def cloud_of(broker: Broker) -> Mqtt:
    certificate = broker.authority.issue("car")
    cloud = Mqtt("localhost", broker.port, "car", "uplink", lambda: broker.context(*certificate))
    cloud.retry_min_s, cloud.retry_max_s = 0.01, 0.05
    return cloud


@asynccontextmanager
async def running(cloud: Mqtt) -> AsyncIterator[Mqtt]:
    task = asyncio.create_task(cloud.run())
    try:
        async with asyncio.timeout(30):
            yield cloud
            assert not task.done(), task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (what it waits for has no event)
            await asyncio.sleep(0.005)


class CloudSide:
    """A subscriber with a persistent session, as a bridge into the cloud is; it reconnects like one."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.bodies: list[bytes] = []
        self.ready = asyncio.Event()

    async def run(self) -> None:
        while True:
            try:
                async with self._broker.client("cloud", clean_session=False) as client:
                    await client.subscribe("bordnetz/+/uplink/messages", 1)
                    self.ready.set()
                    async for message in client.messages:
                        self.bodies.append(bytes(message.payload))
            except (aiomqtt.MqttError, OSError):
                if asyncio.current_task().cancelling():
                    return
                await asyncio.sleep(0.02)

    @property
    def sequences(self) -> list[int]:
        return [record.sequence for body in self.bodies for record in unpack(body).records]


async def test_a_message_arrives_and_settings_go_both_ways_over_outages(broker):
    cloud, twins = cloud_of(broker), []
    cloud.on_twin = twins.append
    side = CloudSide(broker)
    listening = asyncio.create_task(side.run())
    async with running(cloud):
        await cloud.wait_connected()
        await side.ready.wait()
        await cloud.send(b"body", "id", {}, 5)
        await cloud.report({"a": {"b": 1, "c": 2}})
        await cloud.report({"a": {"b": None}})
        await until(lambda: side.bodies == [b"body"])
        broker.stop()
        await until(lambda: not cloud.connected)
        with pytest.raises(CloudUnreachable):
            await cloud.send(b"no", "id", {}, 5)
        await broker.start()
        async with broker.client("fleet") as fleet:
            await fleet.publish("bordnetz/car/uplink/desired", b'{"latency_s": 7}', 1, retain=True)
            await fleet.subscribe("bordnetz/car/uplink/reported", 1)
            reported = await anext(aiter(fleet.messages))
        assert json.loads(reported.payload) == {"a": {"c": 2}}
        await until(lambda: twins[-1]["desired"] == {"latency_s": 7})
    late = cloud_of(broker)
    seen: list[Any] = []
    late.on_twin = seen.append
    async with running(late):  # a new process learns what was said before it was there
        await until(lambda: seen and seen[-1] == {"desired": {"latency_s": 7}, "reported": {"a": {"c": 2}}})
    listening.cancel()


async def test_methods_are_answered(broker):
    async def answer(name: str, payload: Any) -> tuple[int, Any]:
        if name == "fail":
            raise RuntimeError("no")
        return 200, {"name": name, "payload": payload}

    cloud = cloud_of(broker)
    cloud.on_method = answer
    async with running(cloud):
        await cloud.wait_connected()
        async with broker.client("fleet") as fleet:
            await fleet.subscribe("bordnetz/car/uplink/answer/#", 1)
            said = []
            for method, payload in (("getStatus", b'{"x": 1}'), ("fail", b""), ("odd", b"{")):
                await fleet.publish(f"bordnetz/car/uplink/call/{method}/7", payload, 1)
                said.append(json.loads((await anext(aiter(fleet.messages))).payload))
    assert said[0] == {"status": 200, "payload": {"name": "getStatus", "payload": {"x": 1}}}
    assert [answer["status"] for answer in said] == [200, 500, 400]


async def test_a_topic_of_the_vehicles_own_broker_says_whether_the_network_is_metered(tmp_path):
    local, heard = Broker(tmp_path, plain=True), []
    await local.start()
    metered = Metered(f"mqtt://127.0.0.1:{local.port}", lambda: heard.append(metered()))
    assert not metered()  # nobody has said so
    listening = asyncio.create_task(metered.run(retry_min_s=0.01))
    try:
        async with local.client("network") as network:
            for said in (b"1", b"1", b"0", b"true", b"", b"1"):
                await network.publish(TOPIC, said, 1, retain=True)
        await until(lambda: heard == [True, False, True])
        local.stop(kill=True)
        await until(lambda: metered.problem)
        assert metered()  # the last word holds
        await local.start()
        async with local.client("network") as network:
            await network.publish(TOPIC, b"0", 1, retain=True)
        await until(lambda: heard[-1] is False)
        assert not metered.problem
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        local.stop()


async def test_over_a_network_that_a_topic_calls_metered_only_what_is_urgent_goes_out(broker, tmp_path, monkeypatch):
    """The same broker, over TLS, in a topic of its own; who comes late hears what was said before."""
    certificate, key = broker.authority.issue("network-watcher")
    for name, path in {"CA": broker.authority.certificate, "CERTIFICATE": certificate, "KEY": key}.items():
        monkeypatch.setenv(f"BORDNETZ_{name}", str(path))
    monkeypatch.setenv("BORDNETZ_METERED", f"mqtts://localhost:{broker.port}/vehicle/metered")
    async with broker.client("network") as network:
        await network.publish("vehicle/metered", b"1", 1, retain=True)
        metered = Metered.from_environment(lambda: uplink.look_again())
        cloud, side = cloud_of(broker), CloudSide(broker)
        with Outbox(tmp_path / "outbox") as outbox, ThreadPoolExecutor(1) as one:
            uplink = Uplink(outbox, cloud, one, "car", PROMPT, poll_seconds=0.005, metered=metered)
            tasks = [asyncio.create_task(work) for work in (metered.run(), side.run())]
            async with running(cloud):
                await side.ready.wait()
                await until(metered)
                outbox.append([NewRecord(priority, "drive", bytes(32), b"body") for priority in (5, 0)])
                tasks.append(asyncio.create_task(uplink.run()))
                await until(lambda: side.sequences)
                assert side.sequences == [2]
                await network.publish("vehicle/metered", b"0", 1, retain=True)
                await until(lambda: side.sequences == [2, 1])
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    "source", ["mqtt://", "mqtt://host:port", "http://host/topic", "mqtt://host/a/+", "mqtt://h/#"]
)
def test_what_is_no_topic_of_a_broker_is_refused_in_one_line(source):
    with pytest.raises(InputError, match=r"^BORDNETZ_METERED: .* is no topic of a broker; give a file, or mqtt://"):
        Metered(source)


async def test_bad_settings_from_a_broker_change_nothing(broker):
    cloud, twins = cloud_of(broker), []
    cloud.on_twin = twins.append
    async with running(cloud), broker.client("fleet") as fleet:
        await cloud.wait_connected()
        for nonsense in (b"{", b"[1]", b"\xff", b"7"):
            await fleet.publish("bordnetz/car/uplink/desired", nonsense, 1)
        await fleet.publish("bordnetz/car/uplink/desired", b'{"fine": 1}', 1)
        await until(lambda: twins[-1]["desired"] == {"fine": 1})
    assert [twin["desired"] for twin in twins] == [{}, {"fine": 1}]
    assert cloud.counters["malformed"] == 4


async def test_a_message_over_the_limit_is_rejected(broker):
    async with running(cloud_of(broker)) as cloud:
        await cloud.wait_connected()
        with pytest.raises(MessageRejected):
            await cloud.send(bytes(MAX_MESSAGE_BYTES), "id", {}, 5)
        await cloud.send(bytes(MAX_MESSAGE_BYTES - 100), "id", {}, 5)


@pytest.mark.parametrize("kill", [False, True])
async def test_over_restarts_and_kills_of_the_broker_everything_arrives_once_confirmation_is_asked_for(
    broker, tmp_path, kill
):
    """A killed mosquitto forgets messages that it had acknowledged; what the cloud side misses is sent again."""
    side = CloudSide(broker)
    settings = msgspec.structs.replace(PROMPT, confirm=True, confirm_within_s=1)
    listening = asyncio.create_task(side.run())
    cloud = cloud_of(broker)
    with Outbox(tmp_path / "outbox") as outbox, Outbox(tmp_path / "outbox") as collector, ThreadPoolExecutor(1) as one:
        uplink = Uplink(outbox, cloud, one, "car", settings, poll_seconds=0.005)
        async with running(cloud):
            await side.ready.wait()
            sending = asyncio.create_task(uplink.run())
            for round_ in range(4):
                collector.append([NewRecord(5, "drive", bytes(32), os.urandom(3000)) for _ in range(60)])
                seen = len(side.bodies)
                await until(lambda seen=seen: len(side.bodies) > seen + 3)
                broker.stop(kill=kill)
                await broker.start()
                await until(lambda: cloud.connected)
                uplink.settings = _confirmed(settings, outbox, side)
                assert not sending.done(), (round_, sending.result())
            async with asyncio.timeout(25):
                while collector.stats().records:
                    uplink.settings = _confirmed(settings, outbox, side)
                    await asyncio.sleep(0.02)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    listening.cancel()
    assert sorted(set(side.sequences)) == list(range(1, 241))


def _confirmed(settings: UplinkSettings, outbox: Outbox, side: CloudSide) -> UplinkSettings:
    received = Ranges((number, number) for number in side.sequences)
    until_ = received.last or 0
    said = Confirmation.of(until_, received.missing(1, until_))
    return msgspec.structs.replace(settings, confirmed={outbox.id.hex(): said})


# Certificates


@pytest.mark.parametrize("what", ["of another authority", "expired", "none", "broker not trusted"])
async def test_a_wrong_certificate_is_a_state_that_names_it_and_a_right_one_is_taken_without_a_restart(
    broker, tmp_path, monkeypatch, what
):
    folder = tmp_path / "certificates"
    folder.mkdir()
    own, key, trusted = folder / "own.pem", folder / "own.key", folder / "trusted.pem"

    def use(certificate: Path, its_key: Path, trust: Path = broker.authority.certificate) -> None:
        for source, target in ((certificate, own), (its_key, key), (trust, trusted)):
            target.write_bytes(source.read_bytes())

    good = broker.authority.issue("car")
    stranger = Authority(folder, "stranger")
    environment = {"BORDNETZ_VEHICLE": "car", "BORDNETZ_CA": trusted}
    if what != "none":
        environment |= {"BORDNETZ_CERTIFICATE": own, "BORDNETZ_KEY": key}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    match what:
        case "of another authority":
            use(*stranger.issue("car"))
        case "expired":
            use(*broker.authority.issue("old", -20, -10))
        case "none":
            use(*good)
        case _:
            use(*good, stranger.certificate)
    cloud = Mqtt.from_environment(f"mqtts://localhost:{broker.port}", "uplink")
    cloud.retry_min_s, cloud.retry_max_s = 0.01, 0.02
    async with running(cloud):
        await until(lambda: cloud.counters["rebuilds"] >= 3)
        assert not cloud.connected
        said = {
            "of another authority": "may refuse certificate .* issued by 'stranger'",
            "expired": "certificate .* expired on 20",
            "none": "no certificate was shown; .* set BORDNETZ_CERTIFICATE",
            "broker not trusted": "certificate verify failed",
        }[what]
        assert re.search(said, cloud.problem), cloud.problem
        if what != "none":
            use(*broker.authority.issue("car"))
            await cloud.wait_connected()
            await cloud.send(b"body", "id", {}, 5)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"BORDNETZ_CLOUD": "mqtts://"}, "BORDNETZ_CLOUD: 'mqtts://' is no broker"),
        ({"BORDNETZ_CLOUD": "mqtts://h:x"}, "is no broker"),
        ({"BORDNETZ_CLOUD": "ftp://h"}, "names no cloud; give iothub or mqtts"),
        ({"BORDNETZ_CLOUD": "mqtts://h"}, "BORDNETZ_VEHICLE: is not set"),
        ({"BORDNETZ_CLOUD": "mqtts://h", "BORDNETZ_VEHICLE": "a/b"}, "cannot be part of a topic"),
        ({"BORDNETZ_CLOUD": "mqtts://h", "BORDNETZ_VEHICLE": "a", "BORDNETZ_CA": "/nowhere"}, "holds no certificates"),
        (
            {"BORDNETZ_CLOUD": "mqtts://h", "BORDNETZ_VEHICLE": "a", "BORDNETZ_CERTIFICATE": "/nowhere"},
            "do not go toge",
        ),
        ({"BORDNETZ_CLOUD": "iothub"}, "IOTHUB_HOSTNAME: is not set"),
        ({"BORDNETZ_CLOUD": "iothub", "IOTHUB_CONNECTION_STRING": "HostName=h"}, "has no DeviceId, SharedAccessKey"),
        (
            {"BORDNETZ_CLOUD": "iothub", "IOTHUB_HOSTNAME": "h", "IOTHUB_DEVICEID": "d", "BORDNETZ_CERTIFICATE": "/no"},
            "BORDNETZ_CERTIFICATE /no: cannot be read",
        ),
    ],
)
def test_a_cloud_that_cannot_be_is_one_clear_line(monkeypatch, environment, said):
    for name in list(os.environ):
        if name.startswith(("BORDNETZ_", "IOTHUB_", "IOTEDGE_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        choose_cloud("uplink")


def test_reported_properties_merge_as_a_json_merge_patch_does():
    assert merge_patch({"a": {"b": 1}, "c": 2}, {"a": {"b": None, "d": 3}, "e": {"f": None}}) == {
        "a": {"d": 3},
        "c": 2,
        "e": {},
    }
