"""The slow twin of cy_core/assemble.pyx: sessions in a dict, payloads as bytes, one frame at a time."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from edge.manifest import DecoderManifest, Message, pgn_of

Frame = tuple[int, int, int, int, bytes]  # time_us, bus, can_id with its flags, flags, payload
EXTENDED = 0x80000000


@dataclass
class Session:
    bus: int
    can_id: int
    size: int
    last_us: int
    wait_us: int
    payload: bytes = b""
    next: int = 1
    packets: int = 0
    parts: dict[int, bytes] = field(default_factory=dict)


class Transport:
    def __init__(self, manifest: DecoderManifest) -> None:
        self.messages: list[tuple[int, int, int, bytes]] = []  # time_us, bus, can_id, payload
        self.assembled, self.failed, self.stray = Counter[int](), Counter[int](), Counter[int]()
        self._manifest = manifest
        self._sessions: dict[tuple[object, ...], Session] = {}

    def feed(self, frames: Iterable[Frame]) -> None:
        for time_us, bus, can_id, _, data in frames:
            if can_id & 0x60000000 or bus >= len(self._manifest.buses):
                continue
            mine = [m for m in self._manifest.messages if m.bus == self._manifest.buses[bus]]
            kind = can_id >> 16 & 0xFF
            if can_id & EXTENDED and kind in (0xEB, 0xEC) and any(m.is_by_pgn for m in mine):
                self._expire(time_us)
                if len(data) < 8:
                    self.stray[bus] += 1
                elif kind == 0xEC:
                    self._control(time_us, bus, can_id, data)
                else:
                    self._data(time_us, bus, can_id, data)
            elif message := in_segments(mine, can_id):
                self._expire(time_us)
                if message.protocol == "nmea2000":
                    self._fast(time_us, bus, can_id, data)
                else:
                    self._isotp(message, time_us, bus, can_id, data)

    def _expire(self, now: int) -> None:
        for key in [key for key, session in self._sessions.items() if now - session.last_us > session.wait_us]:
            self._fail(key)

    def _fail(self, key: tuple[object, ...]) -> None:
        if key in self._sessions:
            self.failed[self._sessions.pop(key).bus] += 1

    def _finish(self, key: tuple[object, ...], time_us: int, payload: bytes) -> None:
        session = self._sessions.pop(key)
        self.assembled[session.bus] += 1
        self.messages.append((time_us, session.bus, session.can_id, payload))

    def _control(self, time_us: int, bus: int, can_id: int, data: bytes) -> None:
        source, destination = can_id & 0xFF, can_id >> 8 & 0xFF
        forth, back = ("tp", bus, source, destination), ("tp", bus, destination, source)
        if data[0] in (16, 32):
            self._fail(forth)
            size, group = int.from_bytes(data[1:3], "little"), int.from_bytes(data[5:8], "little") & 0x3FFFF
            if not 9 <= size <= 1785 or data[3] != -(-size // 7):
                self.failed[bus] += 1
                return
            group = group if group >> 8 & 0xFF >= 240 else group & 0x3FF00 | destination
            made = EXTENDED | can_id & 0x1C000000 | group << 8 | source
            self._sessions[forth] = Session(bus, made, size, time_us, 1_250_000, packets=data[3])
        elif data[0] == 17 and back in self._sessions:
            session = self._sessions[back]
            session.last_us = time_us
            if data[1] and 1 <= data[2] < session.next:
                session.next = data[2]
        elif data[0] == 19:
            self._fail(back)
        elif data[0] == 255:
            self._fail(back)
            self._fail(forth)

    def _data(self, time_us: int, bus: int, can_id: int, data: bytes) -> None:
        key = ("tp", bus, can_id & 0xFF, can_id >> 8 & 0xFF)
        if key not in self._sessions:
            self.stray[bus] += 1
            return
        session = self._sessions[key]
        if data[0] == session.next:
            session.parts[data[0]] = data[1:8]
            session.next += 1
            session.last_us = time_us
            if session.next > session.packets:
                joined = b"".join(session.parts[number] for number in range(1, session.packets + 1))
                self._finish(key, time_us, joined[: session.size])
        elif data[0] == 0 or data[0] != session.next - 1:
            self._fail(key)

    def _fast(self, time_us: int, bus: int, can_id: int, data: bytes) -> None:
        if len(data) < 2:
            self.stray[bus] += 1
            return
        key, number = ("fast", bus, can_id, data[0] >> 5), data[0] & 31
        if number == 0:
            self._fail(key)
            if not 1 <= data[1] <= 223:
                self.failed[bus] += 1
                return
            self._sessions[key] = Session(bus, can_id, data[1], time_us, 750_000)
            self._take(key, time_us, data[2:])
        elif key not in self._sessions:
            self.stray[bus] += 1
        elif number == self._sessions[key].next:
            self._sessions[key].next += 1
            self._take(key, time_us, data[1:])
        elif number != self._sessions[key].next - 1:
            self._fail(key)

    def _isotp(self, message: Message, time_us: int, bus: int, can_id: int, data: bytes) -> None:
        head = message.protocol == "isotp-extended"
        if len(data) < head + 2:
            self.stray[bus] += 1
            return
        key, rest = ("iso", bus, can_id, data[0] if head else 0), data[head:]
        kind, low = rest[0] >> 4, rest[0] & 15
        if kind == 2:
            if key not in self._sessions:
                self.stray[bus] += 1
            elif low == self._sessions[key].next % 16:
                self._sessions[key].next += 1
                self._take(key, time_us, rest[1:])
            elif self._sessions[key].next == 1 or low != (self._sessions[key].next - 1) % 16:
                self._fail(key)
            return
        if kind > 2:
            return
        self._fail(key)
        if kind == 0:
            size, content = low, rest[1:]
            if size == 0 and len(data) > 8:
                size, content = rest[1], rest[2:]
            good = 1 <= size <= len(content)
        else:
            size, content = low << 8 | rest[1], rest[2:]
            good = size > len(content) and len(data) >= 8
        if not good:
            self.failed[bus] += 1
            return
        front = bytes([size & 0xFF]) if message.protocol == "isotp-length" else b""
        self._sessions[key] = Session(bus, can_id, size + len(front), time_us, 1_000_000, front)
        self._take(key, time_us, content)

    def _take(self, key: tuple[object, ...], time_us: int, content: bytes) -> None:
        session = self._sessions[key]
        session.payload = (session.payload + content)[: session.size]
        session.last_us = time_us
        if len(session.payload) == session.size:
            self._finish(key, time_us, session.payload)


def in_segments(messages: list[Message], can_id: int) -> Message | None:
    """By its own identifier, else by parameter group."""
    own = [m for m in messages if m.protocol.startswith("isotp") or (m.protocol == "nmea2000" and m.length > 8)]
    exact = [m for m in own if m.id | (EXTENDED if m.extended else 0) == can_id]
    group = [m for m in own if m.is_by_pgn and can_id & EXTENDED and m.pgn == pgn_of(can_id & 0x1FFFFFFF)]
    return next(iter(exact + group), None)
