"""The part of MQTT 3.1.1 (OASIS standard, 2014) that IoT Hub and edgeHub speak, as functions on bytes.

    read_packet ──► Packet ──► connect_of, publish_of, subscribe_of, …        answers: connack, puback, suback, …

QoS 0 and 1, no retained messages, no wills. What does not follow the standard raises Malformed, and the connection
ends, as section 4.8 wants; nothing here reads more than LARGEST_BYTES.
"""

import asyncio
import struct
from typing import NamedTuple

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 1, 2, 3, 4, 8, 9
UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT = 10, 11, 12, 13, 14

ACCEPTED, BAD_PROTOCOL, UNAVAILABLE, NOT_AUTHORISED = 0, 1, 3, 5  # CONNACK return codes, table 3.1
NOT_GRANTED = 0x80  # SUBACK, section 3.9.3

LARGEST_BYTES = 262_144  # of a packet behind its fixed header: edgeHub's limit
MOST_FILTERS = 16  # in one SUBSCRIBE; a module has five topics to listen to


class Malformed(Exception):
    """Not MQTT 3.1.1, or a part of it that the hub does not take."""


class Packet(NamedTuple):
    kind: int
    flags: int
    body: bytes

    @property
    def wire_bytes(self) -> int:
        return len(self.body) + 2 + sum(len(self.body) >= 1 << shift for shift in (7, 14, 21))


class Connect(NamedTuple):
    level: int
    clean: bool
    keepalive_s: int
    client_id: str
    username: str
    password: str


class Publish(NamedTuple):
    topic: str
    payload: bytes
    qos: int
    packet_id: int  # 0 with QoS 0
    is_duplicate: bool
    is_retained: bool


class Subscribe(NamedTuple):
    packet_id: int
    filters: list[tuple[str, int]]


async def read_packet(reader: asyncio.StreamReader) -> Packet:
    """The next packet. Raises Malformed, asyncio.IncompleteReadError at the end of the stream."""
    first = (await reader.readexactly(1))[0]
    size = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 21:
            raise Malformed("the packet's length has over four bytes")
    if size > LARGEST_BYTES:
        raise Malformed(f"a packet of {size} bytes; {LARGEST_BYTES} are allowed")
    return Packet(first >> 4, first & 0x0F, await reader.readexactly(size))


class _Fields:
    """Takes fields from the front of a packet's body."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def number(self, size: int) -> int:
        return int.from_bytes(self.raw(size), "big")

    def raw(self, size: int) -> bytes:
        part = self._body[self._at : self._at + size]
        if len(part) < size:
            raise Malformed("the packet ends inside a field")
        self._at += size
        return part

    def text(self) -> str:
        try:
            text = self.raw(self.number(2)).decode()
        except UnicodeDecodeError as error:
            raise Malformed("text that is not UTF-8") from error
        if "\0" in text:
            raise Malformed("text with a null character")
        return text

    def rest(self) -> bytes:
        return self.raw(len(self._body) - self._at)

    def packet_id(self) -> int:
        number = self.number(2)
        if not number:
            raise Malformed("packet id 0")
        return number

    def end(self) -> None:
        if not self.is_empty:
            raise Malformed("the packet goes on behind its last field")

    @property
    def is_empty(self) -> bool:
        return self._at == len(self._body)


def connect_of(packet: Packet) -> Connect:
    """Section 3.1. A will is read over: the hub documents none."""
    fields = _Fields(packet.body)
    if packet.kind != CONNECT or fields.text() not in ("MQTT", "MQIsdp"):
        raise Malformed("the first packet is no CONNECT")
    level, flags = fields.number(1), fields.number(1)
    keepalive_s, client_id = fields.number(2), fields.text()
    if flags & 0x01 or flags & 0xC0 == 0x40:
        raise Malformed("a CONNECT with a reserved flag, or with a password for nobody")
    if flags & 0x04:
        fields.text()
        fields.raw(fields.number(2))
    username = fields.text() if flags & 0x80 else ""
    password = fields.text() if flags & 0x40 else ""
    fields.end()
    return Connect(level, bool(flags & 0x02), keepalive_s, client_id, username, password)


def publish_of(packet: Packet) -> Publish:
    """Section 3.3. QoS 2 is Malformed: IoT Hub closes the connection."""
    fields = _Fields(packet.body)
    qos = packet.flags >> 1 & 3
    if qos > 1:
        raise Malformed("a PUBLISH with QoS 2")
    topic = fields.text()
    if not topic or "+" in topic or "#" in topic:
        raise Malformed(f"a PUBLISH to the topic {topic!r}")
    packet_id = fields.packet_id() if qos else 0
    return Publish(topic, fields.rest(), qos, packet_id, bool(packet.flags & 8), bool(packet.flags & 1))


def subscribe_of(packet: Packet) -> Subscribe:
    """Section 3.8: filters with the QoS that is granted, which is 1 at most."""
    fields = _listed(packet)
    packet_id = fields.packet_id()
    filters: list[tuple[str, int]] = []
    while not fields.is_empty:
        name, qos = fields.text(), fields.number(1)
        if qos > 2 or len(filters) == MOST_FILTERS:
            raise Malformed(f"a SUBSCRIBE with QoS {qos}, or to over {MOST_FILTERS} filters")
        filters.append((name, min(qos, 1)))
    if not filters:
        raise Malformed("a SUBSCRIBE to nothing")
    return Subscribe(packet_id, filters)


def unsubscribe_of(packet: Packet) -> tuple[int, list[str]]:
    """Section 3.10: packet id and filters."""
    fields = _listed(packet)
    packet_id = fields.packet_id()
    filters: list[str] = []
    while not fields.is_empty:
        filters.append(fields.text())
    if not filters:
        raise Malformed("an UNSUBSCRIBE from nothing")
    return packet_id, filters


def _listed(packet: Packet) -> _Fields:
    if packet.flags != 2:
        raise Malformed("a list of filters whose flags are not 2")
    return _Fields(packet.body)


def packet_id_of(packet: Packet) -> int:
    """Of an acknowledgement."""
    fields = _Fields(packet.body)
    packet_id = fields.packet_id()
    fields.end()
    return packet_id


def encode(kind: int, flags: int, body: bytes) -> bytes:
    size, head = len(body), bytearray([kind << 4 | flags])
    while True:
        head.append(size & 0x7F | (0x80 if size > 0x7F else 0))
        size >>= 7
        if not size:
            return bytes(head) + body


def connack(code: int, *, session_present: bool = False) -> bytes:
    return encode(CONNACK, 0, bytes([session_present and code == ACCEPTED, code]))


def publish(topic: str, payload: bytes, packet_id: int = 0) -> bytes:
    """With QoS 1 where there is a packet id."""
    name = topic.encode()
    head = struct.pack(">H", len(name)) + name + (struct.pack(">H", packet_id) if packet_id else b"")
    return encode(PUBLISH, 2 if packet_id else 0, head + payload)


def puback(packet_id: int) -> bytes:
    return encode(PUBACK, 0, struct.pack(">H", packet_id))


def suback(packet_id: int, granted: list[int]) -> bytes:
    return encode(SUBACK, 0, struct.pack(">H", packet_id) + bytes(granted))


def unsuback(packet_id: int) -> bytes:
    return encode(UNSUBACK, 0, struct.pack(">H", packet_id))


def pingresp() -> bytes:
    return encode(PINGRESP, 0, b"")
