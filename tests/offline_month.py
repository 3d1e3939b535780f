"""Thirty days without a network in scaled time, and the drain after them, against a model that shares no code.

    five campaigns ──► Outbox (age as we say, reboots) ──► quota, times to live, ledger ──► Uplink ──► what arrived
         └───────────► Model: which records the rules of docs/formats/outbox.md let go ──────────────► the same?

How many records go at an append depends on SQLite's pages, and is taken from the outbox; which ones, the model says.
`make offline-month` runs the long form: a quarter of a gigabyte of quota, which is used up, and how steadily it drains.
"""

import asyncio
import heapq
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from edge.message import Eviction, unpack
from edge.outbox import MAX_BODY_BYTES, NewRecord, Outbox
from edge.uplink import Uplink
from edge.uplink_settings import UplinkSettings
from fleet.audit import SequenceBook

DAY = 86_400


class Campaign(NamedTuple):
    """Of `of` steps one makes a record, of least to most bytes."""

    stream: str
    priority: int
    ttl_s: int
    of: int
    least: int
    most: int


CAMPAIGNS = (
    Campaign("fault", 0, 0, 40, 200, 2_000),
    Campaign("hard_brake", 1, 0, 30, 20_000, 60_000),
    Campaign("drive", 5, 0, 1, 4_000, 9_000),
    Campaign("raw", 7, 2 * DAY, 2, 5_000, 40_000),
    Campaign("trend", 9, 7 * DAY, 1, 500, 6_000),
)


class Item(NamedTuple):
    stream: str
    digest: bytes


class Model:
    """What is waiting, by priority and sequence, and what went and why: by the words of docs/formats/outbox.md."""

    def __init__(self) -> None:
        self.waiting: dict[int, dict[int, Item]] = {campaign.priority: {} for campaign in CAMPAIGNS}
        self.gone: dict[int, tuple[str, str]] = {}  # by sequence: stream, reason
        self.last = 0
        self._expiry: list[tuple[int, int, int]] = []  # a heap of age, priority, sequence

    def append(self, records: list[NewRecord], evicted: int, age_s: int) -> None:
        """All of one priority. evicted: how many went to make room for them."""
        priority = records[0].priority
        if evicted:
            evicted -= self.expire(age_s)
        worse = (
            (each, n) for each in sorted(self.waiting, reverse=True) if each >= priority for n in self.waiting[each]
        )
        went = list(itertools.islice(worse, evicted))
        self._let_go(went, "quota")
        new = []
        for record in records:
            self.last += 1
            new.append((priority, self.last))
            self.waiting[priority][self.last] = Item(record.stream, digest_of(record.body))
            if record.ttl_s:
                heapq.heappush(self._expiry, (age_s + record.ttl_s, priority, self.last))
        if evicted > len(went):  # they are themselves the least important
            assert evicted == len(went) + len(new)
            self._let_go(new, "quota")

    def expire(self, age_s: int) -> int:
        due = []
        while self._expiry and self._expiry[0][0] <= age_s:
            _, priority, sequence = heapq.heappop(self._expiry)
            if sequence in self.waiting[priority]:
                due.append((priority, sequence))
        self._let_go(due, "expired")
        return len(due)

    def _let_go(self, which: list[tuple[int, int]], reason: str) -> None:
        for priority, sequence in which:
            self.gone[sequence] = (self.waiting[priority].pop(sequence).stream, reason)


class Hub:
    """Takes everything at once, and keeps what a table would need: digests, in the order of arrival."""

    def __init__(self) -> None:
        self.arrived: list[tuple[int, Item, int]] = []  # sequence, what it is, priority
        self.evictions: set[Eviction] = set()
        self.marks: list[tuple[float, int]] = []  # CPU seconds of this process, and bytes since the start
        self.bytes = 0

    async def wait_connected(self) -> None:
        return

    async def send(self, body: bytes, message_id: str, properties: Any, timeout_s: float) -> None:
        envelope = unpack(body)
        self.evictions.update(envelope.evictions)
        for record in envelope.records:
            self.arrived.append((record.sequence, Item(record.stream, digest_of(record.body)), record.priority))
        self.bytes += len(body)
        self.marks.append((time.process_time(), self.bytes))


def digest_of(body: bytes) -> bytes:
    return blake2b(body, digest_size=8).digest()


class Month:
    """One vehicle. step_s: a step makes the records of so many seconds; scale: of their sizes."""

    def __init__(self, folder: Path, quota_bytes: int, step_s: int, seed: int, scale: int = 1, days: int = 30) -> None:
        self.model, self.hub = Model(), Hub()
        self.quota_bytes, self.folder = quota_bytes, folder
        self.largest_bytes, self.least_full = 0, 1.0
        self._random = random.Random(seed)
        self._steps, self._step_s, self._scale = days * DAY // step_s, step_s, scale
        self._boot, self._boot_began_s = 1, -10_000
        self._age_s = 0
        self._evicted = 0
        self._outbox = Outbox(folder, quota_bytes, self._clock)

    def _clock(self) -> tuple[bytes, int]:
        return f"boot {self._boot}".encode(), self._age_s - self._boot_began_s

    def go_offline(self, progress: Callable[[float], None] = lambda part: None) -> None:
        for step in range(self._steps):
            self._age_s += self._step_s
            assert self._outbox.expire() == self.model.expire(self._age_s)  # the uplink does so every minute
            self._evicted = self._outbox.stats().evicted
            assert self._evicted == len(self.model.gone)
            self._drive()
            if self._random.random() < 1 / 200:
                self._reboot()
            progress(step / self._steps)

    def _drive(self) -> None:
        for campaign in CAMPAIGNS:
            if self._random.randrange(campaign.of):
                continue
            least, most = (min(size * self._scale, MAX_BODY_BYTES) for size in (campaign.least, campaign.most))
            count = self._random.randint(1, 2)
            bodies = [self._random.randbytes(self._random.randint(least, most)) for _ in range(count)]
            records = [
                NewRecord(campaign.priority, campaign.stream, bytes(32), body, campaign.ttl_s) for body in bodies
            ]
            before = self._outbox.stats()
            self._outbox.append(records)
            evicted, self._evicted = self._outbox.stats().evicted - self._evicted, self._outbox.stats().evicted
            self.model.append(records, evicted, self._age_s)
            self.largest_bytes = max(self.largest_bytes, (self.folder / "outbox.db").stat().st_size)
            if evicted:
                self.least_full = min(self.least_full, before.bytes / self.quota_bytes)

    def _reboot(self) -> None:
        """With a clock of its own; time switched off does not count."""
        self._outbox.close()
        self._boot += 1
        self._boot_began_s = self._age_s - self._random.randrange(0, 10**9)
        self._outbox = Outbox(self.folder, self.quota_bytes, self._clock)
        self._outbox.expire()

    async def drain(self) -> Uplink:
        """The network is back; the vehicle drives on."""
        settings = UplinkSettings(latency_s=0)
        with Outbox(self.folder, self.quota_bytes, self._clock) as other, ThreadPoolExecutor(1) as executor:
            uplink = Uplink(other, self.hub, executor, "car", settings, poll_seconds=0.001)
            task = asyncio.create_task(uplink.run())
            self.waited_for = sum(map(len, self.model.waiting.values()))
            looks = 0
            while self._outbox.stats().records or self._outbox.ledger():
                assert not task.done(), task.result()
                await asyncio.sleep(0.005)
                looks += 1
                if looks % 20 == 0 and 100 < self._outbox.stats().records < self.waited_for / 2:
                    self._drive()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await uplink.finish(10)
        self._outbox.close()
        return uplink

    def check(self) -> None:
        """Raises AssertionError: something is not as promised."""
        expected = {n: item for items in self.model.waiting.values() for n, item in items.items()}
        arrived = {sequence: item for sequence, item, _ in self.hub.arrived}
        assert len(arrived) == len(self.hub.arrived)  # nobody disturbed it: nothing twice
        lost = set(expected) - set(arrived)
        assert not lost, f"{len(lost)} records lost, the first is {min(lost)}"
        extra = {n: item for n, item in arrived.items() if n not in expected}
        assert not extra, f"{len(extra)} records arrived that the quota had taken"
        assert arrived == expected
        for campaign in CAMPAIGNS:
            own = [sequence for sequence, item, _ in self.hub.arrived if item.stream == campaign.stream]
            assert own == sorted(own), f"{campaign.stream} is not in order"
        self._check_ledger()
        assert self.largest_bytes <= self.quota_bytes

    def _check_ledger(self) -> None:
        said, book = Counter[tuple[str, str]](), SequenceBook("car", "")
        for entry in self.hub.evictions:
            said[entry.stream, entry.reason] += entry.count
            book.evict(entry)
        assert said == Counter(self.model.gone.values())
        for sequence, (stream, reason) in self.model.gone.items():
            assert any(
                e.first_sequence <= sequence <= e.last_sequence and (e.stream, e.reason) == (stream, reason)
                for e in self.hub.evictions
            ), f"no entry for {sequence}"
        for sequence, _, _ in self.hub.arrived:
            book.add(sequence)
        audit = book.audit()
        assert audit.gaps == []
        assert sum(last - first + 1 for first, last in audit.explained) == len(self.model.gone)

    def figures(self, uplink: Uplink) -> dict[str, Any]:
        """drain_ratio: the slowest tenth of the backlog (in bytes a second of CPU) by the median."""
        tenths, marks = [], self.hub.marks
        edges = [marks[i * (len(marks) - 1) // 10] for i in range(11)]
        for (began, first), (ended, last) in itertools.pairwise(edges):
            tenths.append((last - first) / (ended - began) / 1e6)
        return {
            "records": self.model.last,
            "waiting_at_the_end": self.waited_for,
            "gone": {f"{s}, {r}": n for (s, r), n in sorted(Counter(self.model.gone.values()).items())},
            "largest_file_by_quota": self.largest_bytes / self.quota_bytes,
            "least_full_when_evicting": self.least_full,
            "drained_mb": self.hub.bytes / 1e6,
            "fill": uplink.sent.bytes / (4096 * uplink.sent.units),
            "drain_mb_per_cpu_s": statistics.median(tenths),
            "drain_ratio": min(tenths) / statistics.median(tenths),
        }


def main() -> None:
    began = time.monotonic()

    def progress(part: float) -> None:
        if sys.stderr.isatty():
            print(f"\r{part:.0%} of the month", end="", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        month = Month(Path(folder), 256 << 20, 600, int(os.environ.get("SEED", "1")), scale=6)
        month.go_offline(progress)
        uplink = asyncio.run(month.drain())
        month.check()
        figures = month.figures(uplink)
    print(json.dumps({**figures, "seconds": round(time.monotonic() - began)}, indent=2))
    if figures["drain_ratio"] < 0.5 or figures["fill"] < 0.97 or figures["largest_file_by_quota"] < 0.9:
        sys.exit("the drain is not steady, messages are not full, or the quota was not used up")


if __name__ == "__main__":
    main()
