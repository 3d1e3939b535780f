"""The slow twin of cy_core/codec, written from docs/formats/block.md and table.md: it reads what is inside of blocks.

tables: of a table the streams, as in its JSON, and the contexts, as stored.
"""

import bisect
import math
from collections.abc import Sequence
from typing import Any

from tests.reference.block_twin import crc32c

M32 = 0xFFFFFFFF
HEAD = 0x90000
RATES = [int(65536 / (n + 1.6) + 0.5) for n in range(128)]
NEVER = 1 << 62
KNOTS = [min(65535, round(65536 / (1 + math.exp(10 - k / 4)))) for k in range(81)] + [0]
SQUASHED = [(KNOTS[z // 64] * (64 - z % 64) + KNOTS[z // 64 + 1] * (z % 64) + 32) // 64 for z in range(5121)]
STRETCHED = [next((z for z in range(5120) if SQUASHED[z] >= 16 * i + 8), 5120) - 2560 for i in range(4096)]
SHORT_GAPS, GAPS, TURNS, RESIDUALS = range(4)


class Corrupt(Exception):
    """It ends too early, or says what cannot be."""


def mix(key: int, part: int) -> int:
    m = (key ^ part) * 0x9E3779B1 & M32
    m ^= m >> 15
    m = m * 0x85EBCA77 & M32
    m ^= m >> 13
    return m or 1


class Bits:
    """Decisions and the numbers made of them."""

    def __init__(self, data: bytes, contexts: bytes = b"", version: int = 2) -> None:
        self.data, self.at = data, 0
        self.mixes = version > 2
        self.weights: dict[tuple[int, ...], list[int]] = {}
        self.low, self.high, self.code = 0, M32, 0
        self.lines: dict[int, list[list[int]]] = {}
        for start in range(0, len(contexts), 52):
            row = contexts[start : start + 52]
            self.lines[int.from_bytes(row[:4], "little")] = [
                [int.from_bytes(row[at : at + 2], "little") << 6 | 32, min(row[at + 2], 24)] for at in range(4, 52, 3)
            ]
        for _ in range(4):
            self._shift_in()

    def _shift_in(self) -> None:
        if self.at >= len(self.data) + 4:
            raise Corrupt("it ends too early")
        self.code = (self.code << 8 & M32) | (self.data[self.at] if self.at < len(self.data) else 0)
        self.at += 1

    def line(self, key: int) -> list[list[int]]:
        return self.lines.setdefault(key, [[1 << 21, 0] for _ in range(16)])

    def bit(self, key: int, place: int) -> int:
        state = self.line(key)[place]
        bit = self._decide(state[0] >> 6 or 1)
        learn(state, bit)
        return bit

    def either(self, key: int, second: tuple[int, int, int] | None, place: int) -> int:
        """A bit, with a second context in blocks that have one: kind, key, place."""
        if not (second and self.mixes):
            return self.bit(key, place)
        states = self.line(key)[place], self.line(second[1])[second[2]]
        seen = [bisect.bisect_right((2, 6, 24), count) for _, count in states]
        weights = self.weights.setdefault(
            (second[0], *seen), [72090 * (10 * mine + 3) // (10 * sum(seen) + 6) for mine in seen]
        )
        stretched = [STRETCHED[p >> 10] for p, _ in states]
        total = sum(weight * x for weight, x in zip(weights, stretched, strict=True)) >> 16
        p = SQUASHED[2560 + max(-2560, min(2560, total))]
        bit = self._decide(p)
        for i, x in enumerate(stretched):
            weights[i] = max(-(1 << 18), min(1 << 18, weights[i] + (x * ((bit << 16) - p) >> 16)))
        for state in states:
            learn(state, bit)
        return bit

    def _decide(self, p: int) -> int:
        middle = self.low + ((self.high - self.low) * p >> 16)
        bit = int(self.code <= middle)
        if bit:
            self.high = middle
        else:
            self.low = middle + 1
        while self.low >> 24 == self.high >> 24:
            self._shift_in()
            self.low = self.low << 8 & M32
            self.high = (self.high << 8 & M32) | 0xFF
        return bit

    def value(self, key: int, width: int, other: int | None = None) -> int:
        value, four = 0, 1
        for place in range((width - 1) // 4 * 4, -1, -4):
            part, node = 0x10000 | place << 4 | four, 1
            for _ in range(4):
                second = (SHORT_GAPS, mix(other, part), node) if other else None
                node = node << 1 | self.either(mix(key, part), second, node)
            four = node & 15
            value = value << 4 | four
        return value

    def residual(self, key: int, context: int, other: int | None = None) -> int:
        head = mix(key, context)

        def ask(question: int, place: int) -> int:
            second = (RESIDUALS + question, mix(key, other), place) if other else None
            return self.either(head, second, place)

        if ask(0, 0):
            return 0
        negative, top = ask(1, 1), 0
        while top < 63 and ask(2, 2 + top if top < 13 else 15):
            top += 1
        tail, size = mix(key, 0x1000 + top), 1
        for place in range(top - 1, -1, -1):
            size = size << 1 | self.bit(tail, size if size < 8 else 8 + (place & 7))
        return -size if negative else size


def learn(state: list[int], bit: int) -> None:
    state[0] += ((0x3FFFFF - state[0]) * RATES[state[1]] >> 16) if bit else -(state[0] * RATES[state[1]] >> 16)
    state[1] = min(127, state[1] + 1)


class Row:
    """Fields that are predicted from the rows before."""

    def __init__(self, bits: Bits, key: int, widths: Sequence[int]) -> None:
        self.bits, self.key, self.widths = bits, key, widths
        self.last: list[int] | None = None
        self.moved, self.recent = [0] * len(widths), [0] * len(widths)
        self.residuals = [0] * len(widths)
        self.errors = [[0, 0, 0] for _ in widths]
        self.flags = 15

    def next(self, known: Sequence[int] | None = None) -> tuple[list[int], bool]:
        """The values, and whether all is as predicted. known: the values, of which nothing is read."""
        if self.last is None:
            self.last = list(known or map(self._first, range(len(self.widths)), self.widths))
            return list(self.last), False
        same = known is None and self.bits.bit(mix(self.key, 0x20000), self.flags & 15)
        if known is None:
            self.flags = self.flags << 1 | same
        neighbour = 0
        for i, (last, width) in enumerate(zip(self.last, self.widths, strict=True)):
            moved = self.moved[i]
            steps = (0, moved, moved >> 1)
            errors = self.errors[i]
            choice = errors.index(min(errors))
            residual = 0
            if known:
                residual = signed(known[i] - last - steps[choice], width)
            elif not same:
                context = self.recent[i].bit_length() << 3 | choice << 1 | neighbour
                before = max(-15, min(15, self.residuals[i]))
                residual = self.bits.residual(mix(self.key, 0x30000 + i), context, 0x2010 + before)
                neighbour = int(residual != 0)
            self.residuals[i] = residual
            value = (last + steps[choice] + residual) & (1 << width) - 1
            self.recent[i] = self.recent[i] + 4 * min(abs(residual), 1 << 24) - (self.recent[i] >> 2) & M32
            now = signed(value - last, width)
            for k in range(3):
                size = min(abs(signed(now - steps[k], width)), 1 << 24)
                errors[k] = errors[k] + 16 * size - (errors[k] >> 3) & M32
            self.moved[i], self.last[i] = now, value
        return list(self.last), bool(same)

    def _first(self, i: int, width: int) -> int:
        return self.bits.value(mix(self.key, 0xA0000 + i), width) & (1 << width) - 1


def signed(value: int, width: int) -> int:
    half = 1 << (width - 1)
    return (value + half) % (1 << width) - half


def follow(rule: Sequence[int], payload: bytes) -> int:
    """What a checksum should be."""
    kind, place, shift, width, factor, constant = rule
    others = bytearray(payload)
    if width == 8:
        del others[place]
    else:
        others[place] &= 0xF0 >> shift
    if kind == 1:
        found = factor * sum(others) + constant
    elif kind == 2:
        found = factor * sum((byte & 15) + (byte >> 4) for byte in others) + constant
    elif kind == 3:
        found = 0
        for byte in others:
            found ^= byte
        found = (found if width == 8 else found ^ found >> 4) ^ constant
    else:
        found = 0
        for byte in others:
            found ^= byte
            for _ in range(8):
                found = (found << 1 ^ (factor if found & 128 else 0)) & 255
        found ^= constant
    return found & (1 << width) - 1


class Stream:
    def __init__(self, bus: int, can_id: int, flags: int, length: int, key: int) -> None:
        self.bus, self.can_id, self.flags, self.length, self.key = bus, can_id, flags, length, key
        self.fields: list[Sequence[int]] = [(i // 8, 0, i % 8 * 8, 8) for i in range(length)]
        if can_id & 0x40000000:
            self.fields = []
        self.rules: list[Sequence[int]] = []
        self.has_selector = False
        self.rows: dict[int | None, Row] = {}
        self.first = self.due = self.period = self.seen = self.recent = 0
        self.follower: Stream | None = None
        self.sister: Stream | None = None
        self.coded_at = self.copied = 0
        self.payload = b""

    def meet(self, others: Sequence["Stream"]) -> None:
        for other in others:
            if (other.can_id, other.flags, other.length) == (self.can_id, self.flags, self.length):
                self.sister = other
                other.sister = other.sister or self
                return


class Line:
    def __init__(self, key: int, to_come: int) -> None:
        self.key, self.to_come = key, to_come
        self.queue: list[Stream] = []
        self.last: Stream | None = None
        self.time = self.shorts = 0
        self.next_time = NEVER
        self.next_frame: tuple[Stream, bytes] | None = None


class Order:
    """Who is next on a bus, and how long after."""

    def __init__(self, bits: Bits) -> None:
        self.bits = bits
        self.streams: list[Stream] = []
        self.lines: list[Line] = []

    def known(self, line: Line) -> Stream | None:
        """The stream that is next on a line; None: one that is described now."""
        before = line.last.key if line.last else line.key
        for rank, stream in enumerate(line.queue[:20]):
            followed = line.last is not None and line.last.follower is stream
            place = min(rank, 3) << 2 | followed << 1 | (stream.due <= 16 * line.time)
            known = TURNS, mix(stream.key, 0x150000), self._waits(stream, line.time) << 1 | followed
            if self.bits.either(mix(mix(stream.key, before), 0x40000), known, place):
                return stream
        number = self.bits.value(mix(before, 0x80000), 16)
        return None if number == 0xFFFF else self.streams[number]

    def gap(self, line: Line, stream: Stream) -> int:
        pair = mix(stream.key, line.last.key if line.last else line.key)
        due_in = self._due_in(stream, line.time)
        known = GAPS, mix(mix(stream.key, 0x160000), due_in), 0
        short = self.bits.either(mix(pair, 0x50000), known, line.shorts & 7)
        line.shorts = line.shorts << 1 | short
        if short:
            return self.bits.value(mix(pair, 0x60000), 8, mix(mix(stream.key, 0x170000), due_in))
        expected = max(0, (stream.due >> 4) - line.time) if stream.seen else 0
        other = min((each.next_time for each in self.lines if each is not line), default=NEVER) - line.time
        if 128 <= other < NEVER // 2:
            place = min(abs(other - expected).bit_length() >> 1, 15)
            if self.bits.bit(mix(stream.key, 0xF0000), place):
                return other + self.bits.value(mix(stream.key, 0xF0001), 8)
        context = stream.recent.bit_length() if stream.seen else 63
        residual = self.bits.residual(mix(stream.key, 0x70000), context)
        stream.recent = stream.recent + 4 * min(abs(residual), 1 << 24) - (stream.recent >> 2) & M32
        return expected + residual

    def _waits(self, stream: Stream, now: int) -> int:
        wait = stream.due - 16 * now
        if wait <= 0:
            return int(-wait <= stream.period >> 3)
        return next((n for n, part in ((2, 4), (3, 2), (4, 1)) if wait < stream.period >> part), 5)

    def _due_in(self, stream: Stream, now: int) -> int:
        wait = (stream.due >> 4) - now
        if not stream.seen:
            return 0xFFFF
        if wait < 8:
            return max(0, wait + 1)
        return 8 + 4 * wait.bit_length() + (wait >> wait.bit_length() - 3 & 3)

    def take_turn(self, line: Line, stream: Stream, now: int) -> None:
        queue = line.queue
        if stream.seen:
            late = 16 * now - stream.due
            if not stream.period or stream.seen == 1 or abs(late) > stream.period >> 1:
                if stream.seen == 1 and not stream.period:
                    stream.period = 16 * (now - stream.first)
                stream.due = 16 * now + stream.period
            else:
                stream.due += stream.period + (late >> 2)
                stream.period += late >> 5
            place = queue.index(stream)
        else:
            stream.first, stream.due = now, 16 * now + (stream.period or 1 << 50)
            place = len(queue)
            queue.append(stream)
        while place + 1 < len(queue) and queue[place + 1].due <= stream.due:
            queue[place] = queue[place + 1]
            place += 1
        while place > 0 and queue[place - 1].due > stream.due:
            queue[place] = queue[place - 1]
            place -= 1
        queue[place] = stream
        stream.seen += 1
        if line.last:
            line.last.follower = stream
        line.last, line.time = stream, now
        if 16 * now > queue[0].due + 4 * queue[0].period:
            queue[0].due = 16 * now + (1 << 50)
            queue.append(queue.pop(0))


class Reader(Order):
    """A block of frames."""

    def __init__(
        self, content: bytes, streams: Sequence[Sequence[Any]] = (), contexts: bytes = b"", version: int = 3
    ) -> None:
        super().__init__(Bits(content, contexts, version))
        bits = self.bits
        self.count = bits.value(mix(HEAD, 1), 20)
        self.unit = bits.value(mix(HEAD, 2), 40)
        base = bits.value(mix(HEAD, 3), 64)
        self.base = base - (base >> 63 << 64)
        one_line = bits.bit(mix(HEAD, 4), 0)
        self.names = []
        for i in range(bits.value(mix(HEAD, 5), 8)):
            size = bits.value(mix(mix(HEAD, 6), i), 8)
            self.names.append(bytes(bits.value(mix(mix(HEAD, 7), i << 8 | at), 8) for at in range(size)))
        self.keys = [mix(crc32c(name), HEAD) for name in self.names]
        self.lines = [Line(key, bits.value(mix(HEAD, 8), 20)) for key in (self.keys[:1] if one_line else self.keys)]
        for bus, can_id, flags, length, period_us, has_selector, fields, rules in streams:
            if bus.encode() in self.names:
                number = self.names.index(bus.encode())
                stream = Stream(number, can_id, flags, length, self._key(number, can_id, flags, length))
                stream.fields, stream.rules, stream.has_selector = list(fields), list(rules), has_selector
                stream.period = 16 * period_us // self.unit
                self._add(stream)
        self.payloads = 0

    def _key(self, bus: int, can_id: int, flags: int, length: int) -> int:
        return mix(mix(self.keys[bus], can_id), flags << 8 | length)

    def frames(self) -> list[tuple[int, int, int, int, bytes]]:
        """As Frames gives them."""
        for line in self.lines:
            self._advance(line)
        found, before = [], 0
        for _ in range(self.count):
            before = self._earliest(before)
            line = self.lines[before]
            if line.next_frame is None:
                raise Corrupt("no frame is left")
            stream, payload = line.next_frame
            time_us = self.base + line.next_time * self.unit
            found.append((time_us, stream.bus, stream.can_id, stream.flags, payload))
            self._advance(line)
        return found

    def _earliest(self, before: int) -> int:
        times = [line.next_time for line in self.lines]
        best = times.index(min(times))
        for i in range(best + 1, len(times)):
            if times[i] == times[best] < NEVER:
                if self.bits.bit(mix(mix(0xD0000, before), best << 8 | i), 0):
                    break
                best = i
        return best

    def _advance(self, line: Line) -> None:
        if not line.to_come:
            line.next_time = NEVER
            return
        line.to_come -= 1
        stream = self._who(line)
        now = line.time + self.gap(line, stream)
        line.next_time, line.next_frame = now, (stream, self._payload(stream))
        self.take_turn(line, stream, now)

    def _who(self, line: Line) -> Stream:
        known = self.known(line)
        if known is not None:
            return known
        can_id, flags, length = (self.bits.value(mix(0xE0000, i), width) for i, width in ((1, 32), (2, 8), (3, 8)))
        bus = self.bits.value(mix(0xE0000, 4), 8) if len(self.lines) == 1 else self.lines.index(line)
        return self._add(Stream(bus, can_id, flags, length, self._key(bus, can_id, flags, length)))

    def _add(self, stream: Stream) -> Stream:
        stream.meet(self.streams)
        self.streams.append(stream)
        return stream

    def _payload(self, stream: Stream) -> bytes:
        if not stream.fields and not stream.rules:
            return b""
        sister = stream.sister
        known = None
        if self.bits.mixes and sister and sister.coded_at:
            place = (stream.copied & 7) << 1 | (sister.coded_at > stream.coded_at)
            is_copy = self.bits.bit(mix(stream.key, 0x180000), place)
            stream.copied = stream.copied << 1 | is_copy
            known = sister.payload if is_copy else None
        stream.payload = self._fields_of(stream, known)
        self.payloads += 1
        stream.coded_at = self.payloads
        return stream.payload

    def _fields_of(self, stream: Stream, known: bytes | None) -> bytes:
        told = [_value(known, field) for field in stream.fields] if known else None
        if stream.has_selector:
            key = mix(stream.key, 0xC0000)
            [first], _ = self._row(stream, None, key, stream.fields[:1], told and told[:1])
            values, same = self._row(stream, first, mix(key, 1 + first), stream.fields[1:], told and told[1:])
            values = [first, *values]
        else:
            values, same = self._row(stream, None, stream.key, stream.fields, told)
        if known:
            return known
        words = [0] * 8
        for value, (word, big_endian, shift, _) in zip(values, stream.fields, strict=True):
            bits = value << shift
            words[word] |= int.from_bytes(bits.to_bytes(8, "little"), "big") if big_endian else bits
        payload = bytearray(b"".join(word.to_bytes(8, "little") for word in words)[: stream.length])
        for i, rule in enumerate(stream.rules):
            residual = 0 if same else self.bits.residual(mix(stream.key, 0xB0000 + i), 0)
            payload[rule[1]] |= (follow(rule, payload) + residual & (1 << rule[3]) - 1) << rule[2]
        return bytes(payload)

    def _row(
        self, stream: Stream, number: int | None, key: int, fields: list[Sequence[int]], known: list[int] | None
    ) -> tuple[list[int], bool]:
        row = stream.rows.setdefault(number, Row(self.bits, key, [field[3] for field in fields]))
        return row.next(known)


def _value(payload: bytes, field: Sequence[int]) -> int:
    word, big_endian, shift, width = field
    eight = payload.ljust(64, b"\0")[8 * word : 8 * word + 8]
    return int.from_bytes(eight, "big" if big_endian else "little") >> shift & (1 << width) - 1
