"""The slow twin of cy_core/codec for signals, written from docs/formats/block.md."""

from typing import NamedTuple

from edge.manifest import DecoderManifest, Message, Signal
from tests.reference.block_twin import crc32c
from tests.reference.codec_twin import HEAD, Bits, Line, Order, Row, Stream, mix

G = 0x100000
SHARES, TICKS, RESTS = 1 << 16, 1 << 17, 1 << 31
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
    if count & TICKS:
        bits.value(mix(G, 8), 32)
    groups: list[Group] = []
    keys: list[int] = []
    rows: list[int] = []
    heads: list[int] = []  # of each group, the one whose rows it shares: itself mostly
    for at in range(count & 0xFFFF):
        number = bits.value(mix(G, 3), 16)
        rows.append(bits.value(mix(G, 4), 20))
        message = manifest.messages[number]
        key = own = _message_key(message)
        values: dict[int, list[int]] = {}
        for i in range(len(message.signals)):
            if bits.bit(mix(own, G + (i >> 4)), i & 15):
                key = mix(key, i)
                values[i] = []
        rides = count & SHARES and at and groups[-1].message == number and bits.bit(mix(G, 7), 0)
        heads.append(heads[-1] if rides else at)
        groups.append(Group(number, [], values))
        keys.append(key)
    if tolerance:
        for group, key, size in zip(groups, keys, rows, strict=True):
            _read_lines(bits, mix(key, 0x110000), group.times, base, size)
    else:
        _read_order(bits, manifest, groups, keys, rows, heads, base, unit)
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
    heads: list[int],
    base: int,
    unit: int,
) -> None:
    order = Order(bits)
    messages = [manifest.messages[group.message] for group in groups]
    for at, key in enumerate(keys):
        shared = heads.count(at) > 1
        order.streams.append(Stream(0, NO_FRAME, 0, 0, mix(_message_key(messages[at]), 0x120000) if shared else key))
    recent = [0] * len(groups)
    for number, bus in enumerate(manifest.buses):
        left = sum(size for message, size in zip(messages, rows, strict=True) if message.bus == bus)
        line = Line(mix(G, number), left)
        order.lines = [line]
        while left:
            stream = order.known(line)
            assert stream is not None
            now = line.time + order.gap(line, stream)
            head = order.streams.index(stream)
            waiting = [at for at in range(len(groups)) if heads[at] == head and len(groups[at].times) < rows[at]]
            found = 0
            for at in waiting:
                is_here = 1
                if at != waiting[-1] or found:
                    is_here = bits.bit(mix(keys[at], 0x130000), (recent[at] & 7) << 1 | bool(found))
                recent[at] = recent[at] << 1 | is_here
                if is_here:
                    groups[at].times.append(base + now * unit)
                    found += 1
            left -= found
            order.take_turn(line, stream, now)


def _read_values(
    bits: Bits, signals: tuple[Signal, ...], values: dict[int, list[int]], group_key: int, rows: int
) -> None:
    places = list(values)
    for start in range(0, len(places), 64):
        part = places[start : start + 64]
        steps = [bits.value(mix(G, 6), 32) if bits.bit(mix(G, 5), 0) else 1 for _ in part]
        key = mix(group_key, part[0])
        row = Row(bits, key, [signals[place].length for place in part])
        for _ in range(rows):
            for i, (place, step, coded) in enumerate(zip(part, steps, row.next()[0], strict=True)):
                raw = _raw(signals[place], step & RESTS - 1, coded)
                if step & RESTS:
                    raw = _cut(signals[place], raw + bits.residual(mix(key, 0x140000 + i), 0))
                values[place].append(raw)


def _raw(signal: Signal, step: int, coded: int) -> int:
    """A float's bits as a number without a sign."""
    is_signed = signal.signed and not signal.is_float
    coded = _cut(signal, coded)
    low = -(1 << (signal.length - 1)) if is_signed else 0
    return max(low, min(coded * step, low + (1 << signal.length) - 1))


def _cut(signal: Signal, raw: int) -> int:
    """To its bits."""
    raw &= (1 << signal.length) - 1
    is_signed = signal.signed and not signal.is_float
    return raw - (1 << signal.length) if is_signed and raw >> (signal.length - 1) else raw
