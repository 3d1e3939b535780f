"""The slow twin of cy_core/codec for frames, written from docs/formats/block.md: it reads contents without a table."""

from tests.reference.block_twin import crc32c

M32 = 0xFFFFFFFF
HEAD = 0x90000
RATES = [int(65536 / (n + 1.6) + 0.5) for n in range(128)]
NEVER = 1 << 62


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

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.low, self.high, self.code = 0, M32, 0
        self.lines: dict[int, list[list[int]]] = {}
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
        p = state[0] >> 6 or 1
        middle = self.low + ((self.high - self.low) * p >> 16)
        bit = int(self.code <= middle)
        if bit:
            self.high = middle
            state[0] += (0x3FFFFF - state[0]) * RATES[state[1]] >> 16
        else:
            self.low = middle + 1
            state[0] -= state[0] * RATES[state[1]] >> 16
        state[1] = min(127, state[1] + 1)
        while self.low >> 24 == self.high >> 24:
            self._shift_in()
            self.low = self.low << 8 & M32
            self.high = (self.high << 8 & M32) | 0xFF
        return bit

    def value(self, key: int, width: int) -> int:
        value, four = 0, 1
        for place in range((width - 1) // 4 * 4, -1, -4):
            tree, node = mix(key, 0x10000 | place << 4 | four), 1
            for _ in range(4):
                node = node << 1 | self.bit(tree, node)
            four = node & 15
            value = value << 4 | four
        return value

    def residual(self, key: int, context: int) -> int:
        head = mix(key, context)
        if self.bit(head, 0):
            return 0
        negative, top = self.bit(head, 1), 0
        while top < 63 and self.bit(head, 2 + top if top < 13 else 15):
            top += 1
        tail, size = mix(key, 0x1000 + top), 1
        for place in range(top - 1, -1, -1):
            size = size << 1 | self.bit(tail, size if size < 8 else 8 + (place & 7))
        return -size if negative else size


class Row:
    """Bytes of a payload, each a field."""

    def __init__(self, bits: Bits, key: int, length: int) -> None:
        self.bits, self.key = bits, key
        self.last = [bits.value(mix(key, 0xA0000 + i), 8) for i in range(length)]
        self.moved, self.recent = [0] * length, [0] * length
        self.errors = [[0, 0, 0] for _ in range(length)]
        self.flags = 15

    def next(self) -> bytes:
        same = self.bits.bit(mix(self.key, 0x20000), self.flags & 15)
        self.flags = self.flags << 1 | same
        neighbour = 0
        for i, last in enumerate(self.last):
            moved = self.moved[i]
            steps = (0, moved, moved >> 1)
            errors = self.errors[i]
            choice = errors.index(min(errors))
            residual = 0
            if not same:
                context = self.recent[i].bit_length() << 3 | choice << 1 | neighbour
                residual = self.bits.residual(mix(self.key, 0x30000 + i), context)
                neighbour = int(residual != 0)
            value = (last + steps[choice] + residual) & 255
            self.recent[i] = self.recent[i] + 4 * min(abs(residual), 1 << 24) - (self.recent[i] >> 2) & M32
            now = _signed(value - last)
            for k in range(3):
                size = min(abs(_signed(now - steps[k])), 1 << 24)
                errors[k] = errors[k] + 16 * size - (errors[k] >> 3) & M32
            self.moved[i], self.last[i] = now, value
        return bytes(self.last)


def _signed(value: int) -> int:
    return (value + 128) % 256 - 128


class Stream:
    def __init__(self, bus: int, can_id: int, flags: int, length: int, key: int) -> None:
        self.bus, self.can_id, self.flags, self.length, self.key = bus, can_id, flags, length, key
        self.row: Row | None = None
        self.first = self.due = self.period = self.seen = self.recent = 0
        self.follower: Stream | None = None


class Line:
    def __init__(self, key: int, to_come: int) -> None:
        self.key, self.to_come = key, to_come
        self.queue: list[Stream] = []
        self.last: Stream | None = None
        self.time = self.shorts = 0
        self.next_time = NEVER
        self.next_frame: tuple[Stream, bytes] | None = None


class Reader:
    def __init__(self, content: bytes) -> None:
        self.bits = bits = Bits(content)
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
        self.streams: list[Stream] = []

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
        now = line.time + self._gap(line, stream)
        line.next_time, line.next_frame = now, (stream, self._payload(stream))
        self._take_turn(line, stream, now)

    def _who(self, line: Line) -> Stream:
        before = line.last.key if line.last else line.key
        for rank, stream in enumerate(line.queue[:20]):
            followed = line.last is not None and line.last.follower is stream
            place = min(rank, 3) << 2 | followed << 1 | (stream.due <= 16 * line.time)
            if self.bits.bit(mix(mix(stream.key, before), 0x40000), place):
                return stream
        number = self.bits.value(mix(before, 0x80000), 16)
        if number != 0xFFFF:
            return self.streams[number]
        can_id, flags, length = (self.bits.value(mix(0xE0000, i), width) for i, width in ((1, 32), (2, 8), (3, 8)))
        bus = self.bits.value(mix(0xE0000, 4), 8) if len(self.lines) == 1 else self.lines.index(line)
        key = mix(mix(self.keys[bus], can_id), flags << 8 | length)
        self.streams.append(Stream(bus, can_id, flags, length, key))
        return self.streams[-1]

    def _gap(self, line: Line, stream: Stream) -> int:
        pair = mix(stream.key, line.last.key if line.last else line.key)
        short = self.bits.bit(mix(pair, 0x50000), line.shorts & 7)
        line.shorts = line.shorts << 1 | short
        if short:
            return self.bits.value(mix(pair, 0x60000), 8)
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

    def _payload(self, stream: Stream) -> bytes:
        if stream.can_id & 0x40000000 or not stream.length:
            return b""
        if stream.row is None:
            stream.row = Row(self.bits, stream.key, stream.length)
            return bytes(stream.row.last)
        return stream.row.next()

    def _take_turn(self, line: Line, stream: Stream, now: int) -> None:
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
            stream.first, stream.due = now, 16 * now + (1 << 50)
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
