"""The slow twin of cy_core/codec for signals, written from docs/formats/block.md."""

from typing import NamedTuple

from edge.manifest import DecoderManifest, Message, Signal
from tests.reference.block_twin import crc32c
from tests.reference.codec_twin import HEAD, Bits, Line, Order, Row, Stream, mix

G = 0x100000
NO_FRAME = 0x1FFFFFFF


class Group(NamedTuple):
    """values: of each signal, by its place in the message, raw numbers."""

    message: int
    times: list[int]
    values: dict[int, list[int]]


def read(content: bytes, manifest: DecoderManifest, contexts: bytes = b"") -> list[Group]:
    bits = Bits(content, contexts)
    unit, base = bits.value(mix(HEAD, 2), 40), bits.value(mix(HEAD, 3), 64)
    base -= base >> 63 << 64
    tolerance, count = bits.value(mix(G, 1), 32), bits.value(mix(G, 2), 20)
    groups, keys, rows = [], [], []
    for _ in range(count):
        number = bits.value(mix(G, 3), 16)
        rows.append(bits.value(mix(G, 4), 20))
        message = manifest.messages[number]
        key = own = _message_key(message)
        values: dict[int, list[int]] = {}
        for i in range(len(message.signals)):
            if bits.bit(mix(own, G + (i >> 4)), i & 15):
                key = mix(key, i)
                values[i] = []
        groups.append(Group(number, [], values))
        keys.append(key)
    if tolerance:
        for group, key, size in zip(groups, keys, rows, strict=True):
            _read_lines(bits, mix(key, 0x110000), group.times, base, size)
    else:
        _read_order(bits, manifest, groups, keys, rows, base, unit)
    for group, key, size in zip(groups, keys, rows, strict=True):
        _read_values(bits, manifest.messages[group.message].signals, group.values, key, size)
    return groups


def _message_key(message: Message) -> int:
    return mix(mix(mix(crc32c(message.bus.encode()), HEAD), message.id | (1 << 31 if message.extended else 0)), G)


def _read_lines(bits: Bits, key: int, times: list[int], expected: int, rows: int) -> None:
    slope = 0
    while len(times) < rows:
        is_first = int(not times)
        length = 1 + bits.residual(mix(key, 1), 0)
        start = expected + bits.residual(mix(key, 2), is_first)
        if length > 1:
            slope += bits.residual(mix(key, 3), is_first)
        times += [start + (slope * j + (1 << 15) >> 16) for j in range(length)]
        expected = start + (slope * length + (1 << 15) >> 16)


def _read_order(
    bits: Bits,
    manifest: DecoderManifest,
    groups: list[Group],
    keys: list[int],
    rows: list[int],
    base: int,
    unit: int,
) -> None:
    order = Order(bits)
    order.streams = [Stream(0, NO_FRAME, 0, 0, key) for key in keys]
    for number, bus in enumerate(manifest.buses):
        left = sum(
            size for group, size in zip(groups, rows, strict=True) if manifest.messages[group.message].bus == bus
        )
        line = Line(mix(G, number), left)
        order.lines = [line]
        for _ in range(left):
            stream = order.known(line)
            assert stream is not None
            now = line.time + order.gap(line, stream)
            groups[order.streams.index(stream)].times.append(base + now * unit)
            order.take_turn(line, stream, now)


def _read_values(
    bits: Bits, signals: tuple[Signal, ...], values: dict[int, list[int]], group_key: int, rows: int
) -> None:
    places = list(values)
    for start in range(0, len(places), 64):
        part = places[start : start + 64]
        steps = [bits.value(mix(G, 6), 32) if bits.bit(mix(G, 5), 0) else 1 for _ in part]
        row = Row(bits, mix(group_key, part[0]), [signals[place].length for place in part])
        for _ in range(rows):
            for place, step, coded in zip(part, steps, row.next()[0], strict=True):
                values[place].append(_raw(signals[place], step, coded))


def _raw(signal: Signal, step: int, coded: int) -> int:
    """A float's bits as a number without a sign."""
    is_signed = signal.signed and not signal.is_float
    if is_signed and coded >> (signal.length - 1):
        coded -= 1 << signal.length
    low = -(1 << (signal.length - 1)) if is_signed else 0
    return max(low, min(coded * step, low + (1 << signal.length) - 1))
