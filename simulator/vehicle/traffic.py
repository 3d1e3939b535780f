"""When frames are sent, and when they are seen: senders with their own clocks, on buses where one talks at a time.

    state, every 10 ms ──► Sender: is a frame due? ──► Bus: lowest identifier first ──► frames in order of time

A control unit's clock is some parts per million off, its task starts a little late each time, and a frame waits while
the bus is busy: so cycles jitter by fractions of a millisecond, and the order of frames changes slowly, as on real
buses. The time of a frame is when its last bit has been seen. A frame shows the state of the 10 ms step it was made
in, and is seen at most MOST_DELAY_US after it was due.
"""

from collections.abc import Iterator
from random import Random

from simulator.vehicle import databases
from simulator.vehicle.encode import EXTENDED_ID, Layout, layouts
from simulator.vehicle.state import State

STEP_US = 10_000
MOST_DELAY_US = 5_000
MOST_DRIFT_PPM = 40
NOMINAL_BITS_PER_US, DATA_BITS_PER_US = 0.5, 2.0  # 500 kbit/s on each bus, 2 Mbit/s after the bit rate switch

Frame = tuple[int, str, int, int, bytes]  # time_us, bus, can_id, flags, data


class Sender:
    """One message: its pages in turn, its counter, its clock."""

    def __init__(self, pages: list[Layout], seed: int) -> None:
        self.pages, first = pages, pages[0]
        self.bus, self.cycle_us = first.bus, first.cycle_us
        self._random = Random(f"{seed} {first.name}").random
        drift = 2 * MOST_DRIFT_PPM * Random(f"{seed} {first.sender}").random() - MOST_DRIFT_PPM
        self._period_ns = self.cycle_us * 1000 + int(self.cycle_us * drift / 1000)
        self._due_ns = first.phase_us * 1000
        self._count = 0
        self._last: list[object] = []

    def frames(self, state: State, until_us: int) -> Iterator[tuple[int, Layout, bytes]]:
        """(ready_us, page, payload) of what this step sends, as time since the drive began."""
        if self.pages[0].on_change and (values := self.pages[0].values(state)) != self._last:
            self._last = values
            yield self._frame(until_us - STEP_US + 500, state)
        while self.cycle_us and self._due_ns < until_us * 1000:
            yield self._frame(self._due_ns // 1000, state)
            self._due_ns += self._period_ns

    def _frame(self, due_us: int, state: State) -> tuple[int, Layout, bytes]:
        random, page = self._random, self.pages[self._count % len(self.pages)]
        payload = page.encode(state, self._count, random)
        self._count += 1
        late = 80 * (random() + random())
        if random() < 0.03:  # something more urgent ran first
            late += 500 * random()
        return due_us + int(late), page, payload


class Bus:
    """One frame at a time; of those that wait, the lowest identifier goes first."""

    def __init__(self, name: str) -> None:
        self._name, self._free_us = name, 0
        self._waiting: list[tuple[int, int, int, bytes]] = []

    def add(self, ready_us: int, page: Layout, payload: bytes) -> None:
        self._waiting.append((ready_us, page.can_id, page.flags, payload))

    def send(self, until_us: int) -> Iterator[Frame]:
        """The frames that start before this time."""
        waiting = self._waiting
        waiting.sort()
        while waiting:
            start = max(self._free_us, waiting[0][0])
            if start >= until_us:
                return
            first = 0
            for i in range(1, len(waiting)):
                if waiting[i][0] > start:
                    break
                if waiting[i][1] < waiting[first][1]:
                    first = i
            _, can_id, flags, payload = waiting.pop(first)
            self._free_us = start + _duration_us(can_id, flags, len(payload))
            yield self._free_us, self._name, can_id, flags, payload


def _duration_us(can_id: int, flags: int, length: int) -> int:
    """Bits on the wire, with a tenth of stuff bits; the data phase of CAN FD is faster."""
    if flags:
        return int(32 / NOMINAL_BITS_PER_US + (8 * length + 30) * 1.1 / DATA_BITS_PER_US)
    head = 67 if can_id & EXTENDED_ID else 47
    return int((head + 8 * length) * 1.1 / NOMINAL_BITS_PER_US)


class Traffic:
    """All senders and buses of the van. Times are microseconds since the drive began."""

    def __init__(self, seed: int) -> None:
        self._senders = [
            Sender(pages, seed) for bus, paths in databases().items() for path in paths for pages in layouts(bus, path)
        ]
        self._buses = {bus: Bus(bus) for bus in databases()}
        self._seen: list[Frame] = []
        self._last_us = -1

    def step(self, state: State, until_us: int) -> Iterator[Frame]:
        """Frames seen before until_us, given the state of the 10 ms that end there; each later than the one before."""
        for sender in self._senders:
            for ready_us, page, payload in sender.frames(state, until_us):
                self._buses[sender.bus].add(ready_us, page, payload)
        for bus in self._buses.values():
            self._seen.extend(bus.send(until_us))
        self._seen.sort()
        while self._seen and self._seen[0][0] < until_us:
            time_us, bus_name, can_id, flags, payload = self._seen.pop(0)
            # One logger, one clock: no two frames have the same time.
            self._last_us = max(time_us, self._last_us + 1)
            yield self._last_us, bus_name, can_id, flags, payload
