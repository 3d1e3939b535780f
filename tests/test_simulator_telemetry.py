"""Telemetry to the simulated hub: durable before its PUBACK, with its properties, within the limits."""

import base64
import json
import os
from typing import Any
from urllib.parse import quote

import pytest
from azure.iot.device import Message
from hypothesis import given
from hypothesis import strategies as st

from simulator import hub as hub_file
from simulator import mqtt, telemetry
from simulator.telemetry import MessageStore, parse_bag
from tests.hub_client import CAR, EVENTS, device, raw, sdk, stored

__all__ = ["device"]


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
