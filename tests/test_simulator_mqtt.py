"""The hub's MQTT codec: what it writes it reads, and nothing that a client sends can hurt it."""

import asyncio
import contextlib
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import mqtt
from simulator.mqtt import Malformed, Packet

DECODERS: list[Callable[[Packet], Any]] = [
    mqtt.connect_of,
    mqtt.publish_of,
    mqtt.subscribe_of,
    mqtt.unsubscribe_of,
    mqtt.packet_id_of,
]
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=50)
topics = texts.filter(lambda topic: topic and not set(topic) & set("+#"))


def read(data: bytes) -> Packet:
    async def run() -> Packet:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await asyncio.wait_for(mqtt.read_packet(reader), 5)

    return asyncio.run(run())


def field(text: str) -> bytes:
    return struct.pack(">H", len(text.encode())) + text.encode()


@given(
    st.integers(0, 15), st.integers(0, 15), st.integers(0, 300) | st.sampled_from([16_383, 16_384, mqtt.LARGEST_BYTES])
)
def test_a_packet_of_any_size_is_read_as_it_was_written(kind, flags, size):
    data = mqtt.encode(kind, flags, bytes(size))
    assert read(data) == Packet(kind, flags, bytes(size))
    assert read(data).wire_bytes == len(data)


def test_a_packet_over_the_limit_is_refused_before_its_body_is_read():
    with pytest.raises(Malformed, match="262145"):
        read(mqtt.encode(mqtt.PUBLISH, 0, bytes(mqtt.LARGEST_BYTES + 1))[:5])


def test_a_length_of_five_bytes_is_refused():
    with pytest.raises(Malformed, match="four bytes"):
        read(b"\x30\xff\xff\xff\xff\x01")


@given(topics, st.binary(max_size=300), st.integers(0, 65_535))
def test_a_publish_comes_back_with_topic_payload_and_packet_id(topic, payload, packet_id):
    message = mqtt.publish_of(read(mqtt.publish(topic, payload, packet_id)))
    assert message == (topic, payload, int(packet_id > 0), packet_id, False, False)


@given(texts, texts, texts, st.booleans(), st.integers(0, 65_535))
def test_a_connect_gives_who_it_is_and_how_long_it_may_be_silent(client_id, username, password, clean, keepalive_s):
    body = field("MQTT") + bytes([4, 0xC0 | clean << 1]) + struct.pack(">H", keepalive_s)
    body += field(client_id) + field(username) + field(password)
    connect = mqtt.connect_of(read(mqtt.encode(mqtt.CONNECT, 0, body)))
    assert connect == (4, clean, keepalive_s, client_id, username, password)


def test_a_will_is_read_over():
    body = field("MQTT") + bytes([4, 0x84]) + b"\0\x3c" + field("c") + field("will/topic") + field("gone") + field("u")
    assert mqtt.connect_of(Packet(mqtt.CONNECT, 0, body)).username == "u"


@given(st.lists(st.tuples(texts, st.integers(0, 2)), min_size=1, max_size=mqtt.MOST_FILTERS), st.integers(1, 65_535))
def test_a_subscribe_is_granted_qos_1_at_most(filters, packet_id):
    body = struct.pack(">H", packet_id) + b"".join(field(name) + bytes([qos]) for name, qos in filters)
    wanted = mqtt.subscribe_of(read(mqtt.encode(mqtt.SUBSCRIBE, 2, body)))
    assert wanted == (packet_id, [(name, min(qos, 1)) for name, qos in filters])


@given(st.lists(texts, min_size=1, max_size=20), st.integers(1, 65_535))
def test_an_unsubscribe_gives_its_filters(filters, packet_id):
    body = struct.pack(">H", packet_id) + b"".join(map(field, filters))
    assert mqtt.unsubscribe_of(read(mqtt.encode(mqtt.UNSUBSCRIBE, 2, body))) == (packet_id, filters)


@pytest.mark.parametrize(
    ("decode", "packet"),
    [
        pytest.param(mqtt.connect_of, Packet(mqtt.PINGREQ, 0, field("MQTT")), id="another packet first"),
        pytest.param(mqtt.connect_of, Packet(mqtt.CONNECT, 0, field("HTTP") + bytes(4)), id="another protocol"),
        pytest.param(mqtt.connect_of, Packet(1, 0, field("MQTT") + b"\4\1\0\0" + field("c")), id="a reserved flag"),
        pytest.param(
            mqtt.connect_of,
            Packet(1, 0, field("MQTT") + b"\4\x40\0\0" + field("c") + field("p")),
            id="a password without a user name",
        ),
        pytest.param(mqtt.connect_of, Packet(1, 0, field("MQTT") + b"\4\0\0\0" + field("c") + b"x"), id="a tail"),
        pytest.param(mqtt.publish_of, Packet(mqtt.PUBLISH, 4, field("t") + b"\0\1"), id="QoS 2"),
        pytest.param(mqtt.publish_of, Packet(mqtt.PUBLISH, 6, field("t") + b"\0\1"), id="QoS 3"),
        pytest.param(mqtt.publish_of, Packet(mqtt.PUBLISH, 2, field("t") + b"\0\0"), id="packet id 0"),
        pytest.param(mqtt.publish_of, Packet(mqtt.PUBLISH, 0, field("a/#")), id="a wildcard"),
        pytest.param(mqtt.publish_of, Packet(mqtt.PUBLISH, 0, field("")), id="no topic"),
        pytest.param(mqtt.publish_of, Packet(mqtt.PUBLISH, 0, field("a\0")), id="a null character"),
        pytest.param(mqtt.publish_of, Packet(mqtt.PUBLISH, 0, b"\0\2\xc3\x28"), id="no UTF-8"),
        pytest.param(mqtt.subscribe_of, Packet(mqtt.SUBSCRIBE, 2, b"\0\1"), id="no filter"),
        pytest.param(mqtt.subscribe_of, Packet(mqtt.SUBSCRIBE, 0, b"\0\1" + field("a") + b"\1"), id="other flags"),
        pytest.param(mqtt.subscribe_of, Packet(mqtt.SUBSCRIBE, 2, b"\0\1" + field("a") + b"\3"), id="filter of QoS 3"),
        pytest.param(
            mqtt.subscribe_of, Packet(8, 2, b"\0\1" + (field("a") + b"\1") * (mqtt.MOST_FILTERS + 1)), id="many filters"
        ),
        pytest.param(mqtt.unsubscribe_of, Packet(mqtt.UNSUBSCRIBE, 2, b"\0\1"), id="unsubscribe from nothing"),
        pytest.param(mqtt.packet_id_of, Packet(mqtt.PUBACK, 0, b"\0\1\0"), id="a long PUBACK"),
    ],
)
def test_what_the_standard_forbids_is_malformed(decode, packet):
    with pytest.raises(Malformed):
        decode(packet)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_end_as_a_packet_as_malformed_or_as_the_end_of_the_stream(data):
    with contextlib.suppress(Malformed, asyncio.IncompleteReadError):
        read(data)


@given(st.sampled_from(DECODERS), st.integers(0, 15), st.integers(0, 15), st.binary(max_size=200))
def test_arbitrary_bodies_are_decoded_or_malformed(decode, kind, flags, body):
    with contextlib.suppress(Malformed):
        decode(Packet(kind, flags, body))


@given(st.data())
def test_a_connect_with_a_few_bytes_changed_is_decoded_or_malformed(data):
    body = bytearray(
        field("MQTT") + b"\4\xc2\0\x3c" + field("car/uplink") + field("hub/car/uplink/?a=1") + field("SAS")
    )
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Malformed):
        mqtt.connect_of(Packet(mqtt.CONNECT, 0, bytes(body[: data.draw(st.integers(0, len(body)))])))


def test_answers_are_those_of_the_standard():
    assert mqtt.connack(mqtt.ACCEPTED, session_present=True) == b"\x20\x02\x01\x00"
    assert mqtt.connack(mqtt.NOT_AUTHORISED, session_present=True) == b"\x20\x02\x00\x05"
    assert mqtt.puback(258) == b"\x40\x02\x01\x02"
    assert mqtt.suback(1, [0, 1, mqtt.NOT_GRANTED]) == b"\x90\x05\x00\x01\x00\x01\x80"
    assert mqtt.unsuback(1) == b"\xb0\x02\x00\x01"
    assert mqtt.pingresp() == b"\xd0\x00"
