"""The simulated hub: unmodified azure-iot-device clients over TLS, and raw MQTT for what that client never does."""

import asyncio
import base64
import json
import os
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from azure.iot.device import Message
from azure.iot.device.aio import IoTHubModuleClient
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import InputError
from simulator import http, mqtt, sas, telemetry
from simulator import hub as hub_file
from simulator.device import HUB_NAME, EdgeDevice
from simulator.hub import METHOD_CALLS, PORT, TWIN_ANSWERS, TWIN_PATCHES, NoAnswer
from simulator.telemetry import MessageStore, parse_bag
from simulator.twin import DEPTH, Rejected, Twin
from simulator.workload import REQUESTS_AT_A_TIME

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
    assert [
        record for record in caplog.records if record.name == "asyncio" or "ended with an error" in record.msg
    ] == []


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
        packet = await asyncio.wait_for(mqtt.read_packet(self._reader), SECONDS)
        assert packet.kind == kind
        return packet

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
    digest = sas.hmac.digest(key or device.hub._keys[module], f"{audience}\n{expiry}".encode(), "sha256")
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


# -- telemetry ---------------------------------------------------------------------------------------------------


async def test_telemetry_arrives_byte_for_byte_with_its_properties(device, monkeypatch):
    body = bytes(range(256)) * 100
    message = Message(body, message_id="a1/ä&=", content_encoding="gzip", content_type="application/x-protobuf")
    message.custom_properties = {"odd &=%/+ näme": "välue ?#", "empty": ""}
    async with sdk(device, monkeypatch) as client:
        await client.send_message(message)
        (line,) = stored(device)
    assert base64.b64decode(line["Body"]) == body
    assert line["Properties"] == message.custom_properties
    system = line["SystemProperties"]
    assert system.pop("enqueuedTime") == line["EnqueuedTimeUtc"]
    assert system == {
        "connectionDeviceId": CAR,
        "connectionModuleId": "uplink",
        "messageId": "a1/ä&=",
        "contentType": "application/x-protobuf",
        "contentEncoding": "gzip",
    }
    assert device.hub.counters["body_bytes"] == len(body)
    assert device.hub.counters["units"] == 7


async def test_a_message_that_cannot_be_stored_is_not_acknowledged_and_comes_again(device, monkeypatch):
    store, failed = device.hub.store.store, []

    def full_disk_once(*message: Any) -> None:
        if not failed:
            failed.append(message)
            raise OSError(28, "No space left on device")
        store(*message)

    monkeypatch.setattr(device.hub.store, "store", full_disk_once)
    async with raw(device) as (client, _):
        await client.publish(EVENTS, b"again")
        assert await client.is_closed()
    assert stored(device) == []
    async with raw(device) as (client, _):
        await client.publish(EVENTS, b"again", flags=0xA)
        await client.acknowledged()
    assert [base64.b64decode(line["Body"]) for line in stored(device)] == [b"again"]
    assert device.hub.counters["duplicates"] == 1
    assert device.hub.counters["connects"] == 2


async def test_a_message_is_on_disk_before_its_puback(device, monkeypatch):
    events = []
    fsync, puback = os.fsync, mqtt.puback
    monkeypatch.setattr(telemetry.os, "fsync", lambda number: (fsync(number), events.append("fsync")))
    monkeypatch.setattr(
        mqtt, "puback", lambda number: (events.append(f"puback of {len(stored(device))}"), puback(number))[1]
    )
    async with raw(device) as (client, _):
        await client.publish(EVENTS, b"x")
        await client.acknowledged()
    assert events[0] == "fsync"
    assert events[-1] == "puback of 1"


async def test_an_output_name_is_a_system_property(device, monkeypatch):
    async with sdk(device, monkeypatch) as client:
        await client.send_message_to_output("x", "alerts")
    assert stored(device)[0]["SystemProperties"]["outputName"] == "alerts"


async def test_a_packet_over_the_limit_closes_the_connection(device):
    async with raw(device) as (client, _):
        await client.publish(EVENTS, bytes(mqtt.LARGEST_BYTES))
        assert await client.is_closed()
    assert stored(device) == []


async def test_a_message_over_the_limit_by_its_properties_is_acknowledged_and_dropped(device, monkeypatch):
    monkeypatch.setattr(hub_file, "MESSAGE_BYTES", 10)
    async with raw(device) as (client, _):
        for packet_id, body in (7, b"xx"), (8, b"x"):
            await client.publish(f"{EVENTS}name=value", body, packet_id=packet_id)
            assert await client.acknowledged() == packet_id
    assert device.hub.counters["oversize"] == 1
    assert len(stored(device)) == 1


async def test_a_repeated_message_is_stored_again_and_counted(device):
    async with raw(device) as (client, _):
        await client.publish(EVENTS, b"x")
        await client.acknowledged()
        await client.publish(EVENTS, b"x", flags=8 | 2)
        await client.acknowledged()
    assert len(stored(device)) == 2
    assert device.hub.counters["duplicates"] == 1


async def test_bytes_on_the_wire_are_those_of_the_mqtt_packets(device):
    async with raw(device) as (client, _):
        await client.publish(EVENTS, b"x" * 1000)
        await client.acknowledged()
    assert device.hub.counters["wire_bytes"] == len(mqtt.publish(EVENTS, b"x" * 1000, 1))


async def test_a_retained_message_says_so_in_a_property_and_is_not_kept(device):
    async with raw(device) as (client, _):
        await client.publish(EVENTS, b"x", flags=2 | 1)
        await client.acknowledged()
    assert stored(device)[0]["Properties"] == {"mqtt-retain": "true"}


@pytest.mark.parametrize(
    ("topic", "flags"),
    [
        pytest.param(EVENTS, 4, id="QoS 2"),
        pytest.param(EVENTS.replace("uplink", "collector"), 2, id="another module's topic"),
        pytest.param("my/own/topic", 2, id="a topic of no meaning"),
        pytest.param("$iothub/twin/GET/", 2, id="a twin request without an id"),
    ],
)
async def test_what_the_hub_does_not_take_closes_the_connection(device, topic, flags):
    async with raw(device) as (client, _):
        await client.publish(topic, b"x", flags=flags)
        assert await client.is_closed()
    assert stored(device) == []
    assert device.hub.counters["malformed"] == 1


def test_a_line_that_was_cut_short_does_not_take_the_next_one_with_it(tmp_path):
    MessageStore(tmp_path, "hub").store("car", "uplink", {}, b"first")
    (file,) = tmp_path.rglob("*.json")
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:40])
    # The minute may have turned: the torn file is then left as it is.
    MessageStore(tmp_path, "hub").store("car", "uplink", {}, b"second")
    files = sorted(tmp_path.rglob("*.json"))
    lines = [line for path in files for line in path.read_bytes().split(b"\n")]
    bodies = [base64.b64decode(json.loads(line)["Body"]) for line in lines if line.endswith(b"}")]
    assert bodies == [b"first", b"second"]


def test_a_disk_that_takes_only_a_part_of_a_line_gets_the_rest(tmp_path):
    class Short:
        def __init__(self) -> None:
            self.got = b""

        def write(self, data: memoryview) -> int:
            self.got += data[:3]
            return len(data[:3])

    file = Short()
    telemetry._write(file, b"0123456789")
    assert file.got == b"0123456789"


@given(st.dictionaries(st.text(min_size=1), st.none() | st.text()))
def test_a_property_bag_comes_back_as_it_was(bag):
    parts = [quote(k, safe="") + ("" if v is None else f"={quote(v, safe='')}") for k, v in bag.items()]
    for text in ("&".join(parts), "?" + "&".join(parts) + "/"):
        assert parse_bag(text) == bag


# -- twin --------------------------------------------------------------------------------------------------------


async def test_a_module_gets_its_twin_and_its_reported_patches_are_merged(device, monkeypatch):
    async with sdk(device, monkeypatch) as client:
        assert (await client.get_twin())["desired"] == {"latency_s": 10, "nested": {"a": 1, "b": 2}, "$version": 2}
        await client.patch_twin_reported_properties({"a": {"x": 1, "y": 2}, "b": [1, {"c": "ä"}]})
        await client.patch_twin_reported_properties({"a": {"x": None}, "gone": None})
        assert (await client.get_twin())["reported"] == {"a": {"y": 2}, "b": [1, {"c": "ä"}], "$version": 3}
    assert device.hub.twin("uplink").reported == {"a": {"y": 2}, "b": [1, {"c": "ä"}]}
    assert device.hub.twin("collector").reported == {}


async def test_a_desired_patch_reaches_the_module_with_its_deletions_and_its_version(device, monkeypatch):
    patches: asyncio.Queue[Any] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    async with sdk(device, monkeypatch) as client, sdk(device, monkeypatch, "collector") as neighbour:

        async def seen(patch: Any) -> None:
            loop.call_soon_threadsafe(patches.put_nowait, patch)

        def subscribe() -> None:
            client.on_twin_desired_properties_patch_received = seen
            neighbour.on_twin_desired_properties_patch_received = seen

        await asyncio.to_thread(subscribe)
        device.hub.patch_desired("uplink", {"latency_s": 5, "nested": {"b": None}})
        assert await patches.get() == {"latency_s": 5, "nested": {"b": None}, "$version": 3}
        assert (await client.get_twin())["desired"] == {"latency_s": 5, "nested": {"a": 1}, "$version": 3}
        assert patches.empty()


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"{", id="no JSON"),
        pytest.param(b"\xff", id="no UTF-8"),
        pytest.param(b"[1]", id="no object"),
        pytest.param(b'{"a": NaN}', id="no number"),
        pytest.param(b'{"a": "\\ud800"}', id="half a character"),
        pytest.param(b'{"a.b": 1}', id="a dot in a name"),
        pytest.param(b'{"$a": 1}', id="a dollar in a name"),
        pytest.param(b'{"a b": 1}', id="a space in a name"),
        pytest.param(b'{"": 1}', id="no name"),
        pytest.param(json.dumps({"n" * 1025: 1}).encode(), id="a long name"),
        pytest.param(json.dumps({"a": "v" * 4097}).encode(), id="a long value"),
        pytest.param(json.dumps({f"a{i}": "v" * 4000 for i in range(9)}).encode(), id="a large section"),
        pytest.param(b'{"a": 4503599627370496}', id="a large integer"),
        pytest.param(b'{"a": [1, null]}', id="null in an array"),
        pytest.param(b'{"a":' * DEPTH + b"{}" + b"}" * DEPTH, id="eleven levels"),
        pytest.param(b'{"a":' * 900 + b"1" + b"}" * 900, id="900 levels"),
        pytest.param(b'{"a":' + b"[" * 100_000, id="brackets without end"),
    ],
)
async def test_a_reported_patch_that_breaks_a_rule_is_answered_with_400_and_changes_nothing(device, payload):
    async with raw(device) as (client, _):
        await client.subscribe(TWIN_ANSWERS)
        await client.publish(f"{REPORTED}r1", payload)
        answer = await client.next_publish()
        assert (answer.topic, answer.payload, answer.qos) == ("$iothub/twin/res/400/?$rid=r1", b"", 1)
        await client.acknowledged()
        await client.publish(f"{REPORTED}r2", b'{"a": 4503599627370495, "b": -4503599627370496}')
        assert (await client.next_publish()).topic == "$iothub/twin/res/204/?$rid=r2"
    assert device.hub.twin("uplink").reported_version == 2


async def test_who_has_not_subscribed_to_twin_answers_gets_none(device):
    async with raw(device) as (client, _):
        await client.publish("$iothub/twin/GET/?$rid=r1", b" ", packet_id=1)
        assert await client.acknowledged() == 1
        await client.send(mqtt.PINGREQ, 0, b"")
        await client.next(mqtt.PINGRESP)


async def test_answers_come_with_the_qos_that_was_subscribed(device):
    async with raw(device) as (client, _):
        assert await client.subscribe(TWIN_ANSWERS, TWIN_PATCHES, qos=0) == b"\0\0"
        await client.publish("$iothub/twin/GET/?$rid=r1", b" ")
        answer = await client.next_publish()
        assert (answer.topic, answer.qos) == ("$iothub/twin/res/200/?$rid=r1", 0)


async def test_desired_changes_during_an_outage_are_not_sent_afterwards(device):
    async with raw(device) as (client, _):
        await client.subscribe(TWIN_PATCHES)
    await until(device, lambda: not device.hub._connections)
    device.hub.patch_desired("uplink", {"missed": 1})
    async with raw(device) as (client, connack):
        assert connack == b"\1\0"
        device.hub.patch_desired("uplink", {"seen": 2})
        assert json.loads((await client.next_publish()).payload) == {"seen": 2, "$version": 4}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-100, 100) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner.filter(lambda v: v is not None), max_size=2) | st.dictionaries(st.sampled_from("abc"), inner)
    ),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), json_values), max_size=5))
def test_merge_patches_follow_rfc_7396(patches):
    def slowly(target: Any, patch: Any) -> Any:
        if not isinstance(patch, dict):
            return patch
        result = dict(target) if isinstance(target, dict) else {}
        for name, value in patch.items():
            if value is None:
                result.pop(name, None)
            else:
                result[name] = slowly(result.get(name), value)
        return result

    def has_null_in_list(value: Any) -> bool:
        if isinstance(value, dict):
            return any(map(has_null_in_list, value.values()))
        return isinstance(value, list) and any(v is None or has_null_in_list(v) for v in value)

    twin, expected, version = Twin(), {}, 1
    for patch in patches:
        try:
            twin.patch_reported(patch)
        except Rejected:
            assert has_null_in_list(patch)
            continue
        expected, version = slowly(expected, patch), version + 1
    assert (twin.reported, twin.reported_version) == (expected, version)


# -- methods -----------------------------------------------------------------------------------------------------


async def test_a_method_call_is_answered(device, monkeypatch):
    from azure.iot.device import MethodResponse

    async with sdk(device, monkeypatch) as client:

        async def answer(request: Any) -> None:
            await client.send_method_response(
                MethodResponse.create_from_method_request(request, 207, {"name": request.name, "got": request.payload})
            )

        await asyncio.to_thread(setattr, client, "on_method_request_received", answer)
        assert await device.hub.call("uplink", "getStatus", {"x": [1]}, 5) == (
            207,
            {"name": "getStatus", "got": {"x": [1]}},
        )
        assert await device.hub.call("uplink", "getStatus") == (207, {"name": "getStatus", "got": None})


async def test_a_method_call_to_nobody_is_404_and_one_without_an_answer_504(device):
    with pytest.raises(NoAnswer, match="not connected") as error:
        await device.hub.call("uplink", "getStatus", None, 0.01)
    assert error.value.status == 404
    async with raw(device) as (client, _):
        with pytest.raises(NoAnswer, match="takes no methods"):
            await device.hub.call("uplink", "getStatus", None, 0.01)
        await client.subscribe(METHOD_CALLS)
        with pytest.raises(NoAnswer) as error:
            await device.hub.call("uplink", "getStatus", None, 0.01)
        assert error.value.status == 504
        call = await client.next_publish()
        assert call.payload == b"null"
        # Late, unknown and senseless answers are let go.
        for rid in (call.topic.partition("=")[2], "unknown"):
            await client.publish(f"$iothub/methods/res/200/?$rid={rid}", b"{")
            await client.acknowledged()


async def test_a_method_over_the_limits_is_refused(device):
    for method, payload in (("m" * 101, None), ("m", "x" * 128 * 1024)):
        with pytest.raises(ValueError, match="limits"):
            await device.hub.call("uplink", method, payload)


# -- connections -------------------------------------------------------------------------------------------------


async def test_a_second_client_of_the_same_identity_kicks_the_first(device, monkeypatch):
    async with sdk(device, monkeypatch, connection_retry=False) as first:
        assert first.connected
        async with sdk(device, monkeypatch, connection_retry=False) as second:
            await until(device, lambda: device.hub.counters["kicked"])
            async with asyncio.timeout(SECONDS):
                while first.connected:
                    await second.send_message("the one that stays")
    assert device.hub.counters["connects"] == 2


async def test_a_client_with_a_wrong_key_is_refused(device, monkeypatch):
    monkeypatch.setitem(device.hub._keys, "uplink", b"another key")
    with pytest.raises(Exception, match=r"(?i)credential|unauthorized"):
        async with sdk(device, monkeypatch):
            pass
    assert device.hub.counters == {"refused": 1}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d: {"password": token(d, key=b"another")}, id="signature"),
        pytest.param(lambda d: {"password": token(d, lifetime_s=-301)}, id="expiry"),
        pytest.param(lambda d: {"password": token(d, host="other.azure-devices.net")}, id="hub of the token"),
        pytest.param(lambda d: {"password": token(d, "collector")}, id="module of the token"),
        pytest.param(lambda d: {"password": "secret"}, id="no token"),
        pytest.param(lambda d: {"password": token(d).rpartition("=")[0] + "=" + "9" * 5000}, id="endless expiry"),
        pytest.param(lambda d: {"client_id": f"{CAR}/collector"}, id="another client id"),
        pytest.param(lambda d: {"client_id": "other/uplink"}, id="another device"),
        pytest.param(lambda d: {"username": f"{HUB_NAME}/{CAR}/uplink"}, id="no api version"),
        pytest.param(lambda d: {"username": f"{HUB_NAME}/{CAR}/?api-version=1"}, id="a device, not a module"),
        pytest.param(lambda d: {"username": f"{HUB_NAME}/{CAR}/collector/?api-version=1"}, id="user of another module"),
        pytest.param(
            lambda d: {"module": "unknown", "password": token(d)},
            id="no such module",
        ),
    ],
)
async def test_a_connect_with_a_wrong_one_of_these_gets_code_5_and_is_closed(device, change):
    async with raw(device, **change(device)) as (client, connack):
        assert connack == b"\0\5"
        assert await client.is_closed()
    assert device.hub.counters == {"refused": 1}


@pytest.mark.parametrize("host", [HUB_NAME, HUB_NAME.upper(), "the gateway"])
async def test_a_token_for_the_hub_or_the_gateway_is_good_also_a_little_after_its_time(device, host):
    host = device.address if host == "the gateway" else host
    async with raw(device, password=token(device, host=host, lifetime_s=-200)) as (_, connack):
        assert connack == b"\0\0"


async def test_another_protocol_level_gets_code_1(device):
    async with raw(device, level=5) as (_, connack):
        assert connack == b"\0\1"


async def test_a_connection_ends_some_time_after_its_token(device, monkeypatch):
    monkeypatch.setattr(hub_file, "TOKEN_CHECK_SECONDS", 0.01)
    await device.hub.stop()
    await device.hub.start(*(device._state / "certificates" / f"{device.address}.{kind}" for kind in ("pem", "key")))
    async with raw(device) as (client, _):
        monkeypatch.setattr(sas, "CLOCK_SKEW_SECONDS", -120)
        assert await client.is_closed()
    assert device.hub.counters["expired"] == 1


async def test_a_client_that_is_silent_for_longer_than_it_said_is_cut_off(device):
    async with raw(device, keepalive_s=1) as (client, _):
        started = time.monotonic()
        assert await client.is_closed()
    assert 1.4 < time.monotonic() - started < 5


async def test_a_clean_session_forgets_the_subscriptions(device):
    async with raw(device) as (client, connack):
        assert connack == b"\0\0"
        assert await client.subscribe(TWIN_PATCHES, "anything/#") == bytes([1, mqtt.NOT_GRANTED])
    async with raw(device) as (client, connack):
        assert connack == b"\1\0"
        await client.send(mqtt.UNSUBSCRIBE, 2, b"\0\1" + field(TWIN_PATCHES))
        await client.next(mqtt.UNSUBACK)
    async with raw(device) as (client, connack):
        assert connack == b"\0\0"
        await client.subscribe(TWIN_PATCHES)
    async with raw(device, clean=True) as (_, connack):
        assert connack == b"\0\0"


async def test_twins_sessions_and_desired_changes_outlive_a_restart(tmp_path):
    state = tmp_path / "device"
    async with EdgeDevice(MANIFEST, state, modules_root=tmp_path) as device:
        async with raw(device) as (client, _):
            await client.subscribe(TWIN_ANSWERS, TWIN_PATCHES)
            await client.publish(f"{REPORTED}r1", b'{"a": 1}')
            await client.next_publish()
        device.hub.patch_desired("uplink", {"latency_s": 5})
    async with EdgeDevice(MANIFEST, state, modules_root=tmp_path) as device:
        twin = device.hub.twin("uplink")
        assert (twin.reported, twin.reported_version) == ({"a": 1}, 2)
        assert (twin.desired["latency_s"], twin.desired_version) == (5, 3)
        async with raw(device) as (client, connack):
            assert connack == b"\1\0"
            device.hub.patch_desired("uplink", {"latency_s": 6})
            assert json.loads((await client.next_publish()).payload) == {"latency_s": 6, "$version": 4}


async def test_another_deployment_replaces_the_desired_section(device):
    device.hub.patch_desired("uplink", {"latency_s": 5})
    async with raw(device) as (client, _):
        await client.subscribe(TWIN_PATCHES)
        device.hub.set_desired("uplink", {"latency_s": 7})
        assert json.loads((await client.next_publish()).payload) == {"latency_s": 7, "$version": 4}
    assert device.hub.twin("uplink").desired == {"latency_s": 7}
    with pytest.raises(Rejected):
        device.hub.set_desired("uplink", {"a.b": 1})
    assert device.hub.twin("uplink").desired == {"latency_s": 7}


async def test_a_state_file_that_is_damaged_is_named(tmp_path):
    state = tmp_path / "device"
    state.mkdir()
    for text in ("{", "[]"):
        (state / "hub.json").write_text(text)
        with pytest.raises(InputError, match=r"hub\.json: is no state of a hub.*; delete it"):
            EdgeDevice(MANIFEST, state, modules_root=tmp_path)


async def test_garbage_costs_only_its_own_connection(device):
    async with raw(device) as (client, _):
        context = ssl.create_default_context(cafile=device._state / "certificates" / "ca.pem")
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x10\xff\xff\xff\xff", os.urandom(64), b""):
            reader, writer = await asyncio.open_connection(device.address, PORT, ssl=context)
            writer.write(garbage)
            writer.write_eof() if writer.can_write_eof() else writer.close()
            await asyncio.wait_for(reader.read(), SECONDS)
            writer.close()
        await client.publish(EVENTS, b"still here")
        await client.acknowledged()


# -- the workload API --------------------------------------------------------------------------------------------


async def request(device: EdgeDevice, text: bytes, module: str = "uplink") -> tuple[int, Any]:
    reader, writer = await asyncio.open_unix_connection(device.environment(module)["IOTEDGE_WORKLOADURI"][7:])
    writer.write(text)
    try:
        answer = await asyncio.wait_for(reader.read(), SECONDS)
    except ConnectionResetError:
        answer = b""  # closed before it was read
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]), json.loads(body)) if answer else (0, None)


def sign(module: str, body: bytes) -> bytes:
    head = f"POST /modules/{module}/genid/1/sign?api-version=2022-08-03 HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def test_the_workload_socket_signs_for_its_own_module_only(device):
    body = json.dumps({"keyId": "primary", "algo": "HMACSHA256", "data": base64.b64encode(b"text").decode()}).encode()
    digest = sas.hmac.digest(device.hub._keys["uplink"], b"text", "sha256")
    assert await request(device, sign("uplink", body)) == (200, {"digest": base64.b64encode(digest).decode()})
    assert (await request(device, sign("collector", body)))[0] == 403
    assert (await request(device, sign("unknown", body)))[0] == 404


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GET /trust-bundle?api-version=2022-08-03 HTTP/1.1\r\n\r\n", 200),
        (b"GET /elsewhere HTTP/1.1\r\n\r\n", 404),
        (sign("uplink", b"{"), 400),
        (sign("uplink", b'{"data": 1}'), 400),
        (sign("uplink", b"[" * 60_000), 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n", 0),
        (b"\r\n\r\n", 0),
        (b"x" * 100_000, 0),
    ],
)
async def test_the_workload_socket_answers_or_closes(device, text, status):
    assert (await request(device, text))[0] == status


async def test_the_workload_socket_closes_the_eleventh_request_at_a_time(device):
    path = device.environment("uplink")["IOTEDGE_WORKLOADURI"][7:]
    waiting = [await asyncio.open_unix_connection(path) for _ in range(REQUESTS_AT_A_TIME)]
    assert (await request(device, b"GET /trust-bundle HTTP/1.1\r\n\r\n"))[0] == 0
    for _, writer in waiting:
        writer.close()


async def test_who_waits_for_a_change_can_be_stopped_at_the_very_moment_it_comes(device):
    waiting = asyncio.create_task(device.hub.changed(SECONDS))
    await asyncio.sleep(0)
    device.hub.tell()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_module_gets_certificates_that_the_trust_bundle_vouches_for(tmp_path):
    async with EdgeDevice(MANIFEST, tmp_path / "state", modules_root=tmp_path) as device:
        trusted = x509.load_pem_x509_certificate(device.ca_file.read_bytes())
        path, wanted = "/modules/uplink/genid/1/certificate", {"commonName": "Gateway.local"}
        answer = await http.ask(device._socket("uplink"), "POST", f"{path}/server?api-version=2022-08-03", wanted)
        assert answer.status == 201
        server, chained = x509.load_pem_x509_certificates(answer.document["certificate"].encode())
        assert chained == trusted
        server.verify_directly_issued_by(trusted)
        names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["gateway.local", "uplink"]
        key = serialization.load_pem_private_key(answer.document["privateKey"]["bytes"].encode(), None)
        assert key.public_key() == server.public_key()
        assert server.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=30)

        soon = datetime.now(UTC) + timedelta(hours=2)
        answer = await http.ask(device._socket("uplink"), "POST", f"{path}/identity", {"expiration": soon.isoformat()})
        identity, _ = x509.load_pem_x509_certificates(answer.document["certificate"].encode())
        assert abs(identity.not_valid_after_utc - soon) < timedelta(seconds=2)
        names = identity.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
            "azureiot://simulator.azure-devices.net/devices/simulated-vehicle/modules/uplink"
        ]
        for wanted, problem in [
            ({}, "needs a commonName"),
            ({"commonName": 3}, "needs a commonName"),
            ({"commonName": "ü"}, "needs a commonName"),
            ([], "needs a commonName"),
            ({"commonName": "a", "expiration": "soon"}, "expiration is no time"),
            ({"commonName": "a", "expiration": "2001-01-01T00:00:00Z"}, "is not a time to come"),
        ]:
            answer = await http.ask(device._socket("uplink"), "POST", f"{path}/server", wanted)
            assert answer.status == 400
            assert problem in answer.document["message"]
        answer = await http.ask(device._socket("uplink"), "POST", "/modules/collector/genid/1/certificate/identity", {})
        assert answer.status == 403


async def test_the_authority_of_a_state_folder_stays_when_the_address_changes(tmp_path):
    seen = set()
    for _ in range(2):
        async with EdgeDevice(MANIFEST, tmp_path / "state", modules_root=tmp_path) as device:
            seen.add(device.ca_file.read_bytes())
    assert len(seen) == 1
    assert (tmp_path / "state" / "certificates" / "ca.key").stat().st_mode & 0o777 == 0o600
