"""Recordings of a vehicle to the model table of its kind: streams, fields, checksums, probabilities.

    recordings ──► rows of each stream ──► checksum rule, selector, fields, by what they cost when coded
    recordings, in blocks ──► the codec, learning ──► contexts

No database is needed. What a payload means does not matter, only where one number ends and the next begins.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from cy_core.codec.raw import RawCodec
from cy_core.codec.trial import best_constant, changes, coded_bytes
from cy_core.frames import Frames
from edge.block import FRAMES, MIXED_FRAMES
from edge.pack import cut
from edge.table import Field, Rule, Stream, Table

FRAMES_MOST = 2_000_000  # of a recording that are trained on
ROWS_MAX = 1500  # of a stream that are looked at
ROWS_MIN = 16  # with less than that nothing is guessed
LONGEST_FIELD = 16  # bits
HOLDS = 0.985  # of the rows: then a checksum rule is one
SUM, NIBBLES, XOR, CRC = 1, 2, 3, 4
POLYNOMIALS = (0x1D, 0x2F, 0x07, 0x9B, 0x31, 0xD5, 0x39, 0x8D)
LEARNING_SECONDS = (1, 10)  # lengths of the blocks that are learned from
REMOTE = 0x40000000

Recording = tuple[Frames, tuple[str, ...]]
Say = Callable[[float], None]


def train(
    recordings: Iterable[tuple[Frames, tuple[str, ...]]],
    tick_us: int = 1,
    say: Say = lambda part: None,
    *,
    mixed: bool = False,
) -> Table:
    """The table for recordings (frames, names of their buses); say is told how much is done, from 0 to 1.

    tick_us: the resolution that blocks will be packed with. mixed: as they will be packed, as in edge/block.py; other
    blocks can use the table too, with a part of its gain or less speed.
    """
    recordings = list(recordings)
    rows = _rows(recordings)
    streams = []
    for done, (stream, (times, payloads)) in enumerate(rows.items()):
        streams.append(_describe(stream._replace(period_us=_period(times)), payloads))
        say(0.8 * done / len(rows))
    codec = RawCodec(streams, learning=True)
    version, _ = MIXED_FRAMES if mixed else FRAMES
    for seconds in LEARNING_SECONDS:
        for frames, buses in recordings:
            for start, end in cut(frames, seconds):
                codec.encode(frames, buses, tick_us, start, end, version=version)
        say(0.9)
    return Table(tuple(streams), codec.models.dump())


def _rows(recordings: list[Recording]) -> dict[Stream, tuple[list[int], list[bytes]]]:
    """Times and payloads of each stream."""
    rows: dict[Stream, tuple[list[int], list[bytes]]] = defaultdict(lambda: ([], []))
    for frames, buses in recordings:
        lengths = frames.to_bytes()[0][13::24]
        for length, (time_us, bus, can_id, flags, data) in zip(lengths, frames, strict=True):
            times, payloads = rows[Stream(buses[bus], can_id, flags, length)]
            times.append(time_us)
            payloads.append(data)
    return rows


def _period(times: list[int]) -> int:
    gaps = [after - before for before, after in pairwise(times)]
    return max(0, min(int(statistics.median(gaps)), (1 << 40) - 1)) if len(gaps) > 1 else 0


def _describe(stream: Stream, payloads: list[bytes]) -> Stream:
    """The stream with the fields, selector and rule that its payloads cost least with."""
    if stream.can_id & REMOTE or stream.length == 0:
        return stream
    stream = stream._replace(fields=_bytes_but(stream.length, 0))
    if len(payloads) < ROWS_MIN or stream.length > 8 or len(set(payloads)) == 1:
        return stream
    rows = _words(payloads[-ROWS_MAX:])
    rule = _rule(stream.length, payloads, rows)
    stream = stream._replace(rules=rule, fields=_bytes_but(stream.length, _taken(rule)))
    stream = _with_selector(stream, payloads, rows)
    return _Layout(stream, rows).best()


def _words(payloads: list[bytes]) -> memoryview:
    return memoryview(b"".join(data.ljust(64, b"\0") for data in payloads)).cast("Q", (len(payloads), 8))


def _taken(parts: Iterable[Rule]) -> int:
    return sum(((1 << rule.width) - 1) << (8 * rule.byte + rule.shift) for rule in parts)


def _bytes_but(length: int, taken: int) -> tuple[Field, ...]:
    """A field for each byte, or for what is not taken of it."""
    fields = []
    for byte in range(length):
        free = ~taken >> 8 * byte & 0xFF
        start = 0
        while free >> start:
            while not free >> start & 1:
                start += 1
            width = 1
            while free >> (start + width) & 1:
                width += 1
            fields.append(Field(byte // 8, 0, 8 * (byte % 8) + start, width))
            start += width
    return tuple(fields)


# -- checksums -----------------------------------------------------------------------------------------------


def _rule(length: int, payloads: list[bytes], rows: memoryview) -> tuple[Rule, ...]:
    """The rule that holds in nearly all rows, of a byte that would be dear otherwise; none if there is none."""
    if length < 2 or len(set(payloads)) < ROWS_MIN:
        return ()
    best, best_holds = None, HOLDS * len(rows)
    for rule in _candidates(length, payloads):
        constant, holds = best_constant(rule, length, rows)
        if holds > best_holds:
            best, best_holds = rule._replace(constant=constant), holds
    return (best,) if best else ()


def _candidates(length: int, payloads: list[bytes]) -> Iterator[Rule]:
    for byte in dict.fromkeys((length - 1, 0, length - 2)):
        for shift, width in ((0, 8), (0, 4), (4, 4)):
            seen = {data[byte] >> shift & ((1 << width) - 1) for data in payloads}
            if len(seen) < 8:
                continue
            for kind, factors in ((SUM, (1, 255)), (NIBBLES, (1, 255)), (XOR, (0,)), (CRC, POLYNOMIALS)):
                for factor in factors:
                    yield Rule(kind, byte, shift, width, factor, 0)


# -- fields --------------------------------------------------------------------------------------------------


def _with_selector(stream: Stream, payloads: list[bytes], rows: memoryview) -> Stream:
    """The first bits say which earlier row this one goes on from (multiplexers, sequences), where that is cheaper."""
    taken = _taken(stream.rules)
    best, cost = stream, coded_bytes(stream, rows) * 0.95 - 16
    for shift, width in ((0, 8), (0, 4), (4, 4), (0, 5), (0, 3)):
        bits = ((1 << width) - 1) << shift
        values = {data[0] >> shift & ((1 << width) - 1) for data in payloads}
        if taken & bits or not 2 <= len(values) <= len(rows) // 4:
            continue
        fields = (Field(0, 0, shift, width), *_bytes_but(stream.length, taken | bits))
        trial = stream._replace(has_selector=True, fields=fields)
        trial_cost = coded_bytes(trial, rows)
        if trial_cost < cost:
            best, cost = trial, trial_cost
    return best


class _Layout:
    """Where one field ends and the next begins: the cheapest way through the bits, in either byte order.

    A number's high bits change less often than its low ones, so a border can only be where the bits change more
    often than their neighbours below; and where bytes or half bytes end.
    """

    def __init__(self, stream: Stream, rows: memoryview) -> None:
        self._stream = stream
        self._rows = rows
        self._selector = stream.fields[:1] if stream.has_selector else ()
        self._base = coded_bytes(stream._replace(fields=self._selector, rules=()), rows) if self._selector else 0
        self._costs: dict[Field, int] = {}
        self._changes = changes(rows, 0)

    def best(self) -> Stream:
        plain = sum(self._cost(field) for field in self._stream.fields[len(self._selector) :])
        options = [(plain, self._stream.fields), self._cheapest(0), self._cheapest(1)]
        return self._stream._replace(fields=min(options)[1])

    def _cheapest(self, big_endian: int) -> tuple[int, tuple[Field, ...]]:
        taken = _taken(self._stream.rules)
        for field in self._selector:
            taken |= ((1 << field.width) - 1) << field.shift
        bits = 8 * self._stream.length
        order = [self._bit(place, big_endian) for place in range(bits)]
        free = [not taken >> bit & 1 for bit in order]
        rate = [self._changes[bit] for bit in order]
        if big_endian:
            rate = [-value for value in rate]  # there the high bits come first
        borders = [
            place
            for place in range(bits + 1)
            if place in (0, bits)
            or place % 4 == 0
            or free[place] != free[place - 1]
            or rate[place] > rate[place - 1] + 2
        ]
        ways: dict[int, tuple[int, tuple[Field, ...]]] = {0: (0, self._selector)}
        for start in borders[:-1]:
            if start not in ways:
                continue
            cost, fields = ways[start]
            for end in borders:
                if not start < end <= start + LONGEST_FIELD:
                    continue
                if any(free[start:end]):
                    if not all(free[start:end]):
                        break
                    field = Field(0, big_endian, 64 - end if big_endian else start, end - start)
                    step = (cost + self._cost(field), (*fields, field))
                else:
                    step = (cost, fields)
                if end not in ways or step[0] < ways[end][0]:
                    ways[end] = step
        return ways[bits]

    def _bit(self, place: int, big_endian: int) -> int:
        return 8 * (place // 8) + 7 - place % 8 if big_endian else place

    def _cost(self, field: Field) -> int:
        if field not in self._costs:
            trial = self._stream._replace(fields=(*self._selector, field), rules=())
            self._costs[field] = coded_bytes(trial, self._rows) - self._base
        return self._costs[field]
