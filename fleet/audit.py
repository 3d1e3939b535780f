"""What arrived, and whether anything is missing: for each vehicle, outbox and stream.

    outbox     1 2 3 . 5 6 . . 9     sequences: a gap is explained by the vehicle's own ledger, or it is not
    stream     ═══ ═══ ┄┄┄ ═══ ═══   frames of the source: a hole is known to the collector (missing on a live bus),
                                     lies in a record that is missing, was collected for another stream only (idle),
                                     or nobody knows of it

What an outbox stored after the last record that arrived cannot be seen from here.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from edge.message import Block, Counters, Coverage, Eviction
from fleet.ranges import Range, Ranges, show


class StreamAudit(msgspec.Struct):
    """One stream (campaign) from one source of one vehicle. Counts are of frames where the name says no other."""

    vehicle: str
    stream: str
    source: str
    blocks: int = 0
    samples: int = 0
    frames: int = 0
    missing_frames: int = 0  # known to the collector: on the bus, but in no block
    lost_frames: int = 0  # between blocks whose records in between are missing
    idle_frames: int = 0  # collected for other streams: this campaign was not running
    holes: list[Range] = []  # frames in no block, and nobody said so
    overlaps: list[Range] = []  # frames in two blocks
    clocks: dict[str, int] = {}  # blocks, by what their own clock was worth
    corrected_blocks: int = 0  # dated by another block's clock
    undecoded_blocks: int = 0  # not in the table; problems say why
    counters: dict[str, int] = {}

    def __str__(self) -> str:
        parts = [f"{self.samples:,} samples of {self.frames:,} frames in {self.blocks:,} blocks"]
        for count, what in (
            (self.missing_frames, "missing on the bus"),
            (self.lost_frames, "in missing records"),
            (self.idle_frames, "while it was not running"),
        ):
            parts += [f"{count:,} frames {what}"] if count else []
        clocks = ", ".join(f"{count:,} {quality}" for quality, count in sorted(self.clocks.items()))
        parts += [f"clocks of blocks: {clocks}"] if set(self.clocks) - {"recorded"} else []
        parts += [f"{self.corrected_blocks:,} blocks dated by a later clock"] if self.corrected_blocks else []
        parts += [f"NOT DECODED: {self.undecoded_blocks:,} blocks"] if self.undecoded_blocks else []
        parts += [f"UNEXPLAINED: no block has frames {show(self.holes)}"] if self.holes else []
        parts += [f"TWICE: frames {show(self.overlaps)}"] if self.overlaps else []
        return f"{self.vehicle}, {self.stream} from {self.source}: {'; '.join(parts)}"


class OutboxAudit(msgspec.Struct):
    """One outbox of one vehicle. Ranges are of sequences."""

    vehicle: str
    outbox: str
    received: list[Range] = []
    duplicates: int = 0
    evicted: dict[str, int] = {}  # records, by reason
    explained: list[Range] = []
    gaps: list[Range] = []

    def __str__(self) -> str:
        parts = [f"records {show(self.received)}", f"{self.duplicates:,} repeats dropped"]
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.evicted.items()) if count)
        parts += [f"evicted by the vehicle: {reasons}"] if reasons else []
        parts += [f"explained by that: {show(self.explained)}"] if self.explained else []
        parts += [f"UNEXPLAINED: {show(self.gaps)} never arrived"] if self.gaps else []
        if self.gaps and self.received and self.gaps[0][0] < self.received[0][0]:
            parts.append("the first of them may be in older folders than these")
        return f"{self.vehicle}, outbox {self.outbox[:8]}: {'; '.join(parts)}"


class Audit(msgspec.Struct):
    """problems: one line each, of what could not be read or decoded."""

    outboxes: list[OutboxAudit] = []
    streams: list[StreamAudit] = []
    problems: list[str] = []
    other_messages: int = 0  # of other modules, in other formats

    @property
    def ok(self) -> bool:
        """Nothing is missing that nobody explains, nothing is there twice, everything could be read."""
        return (
            not self.problems
            and not any(outbox.gaps for outbox in self.outboxes)
            and not any(stream.holes or stream.overlaps for stream in self.streams)
        )

    @property
    def samples(self) -> int:
        return sum(stream.samples for stream in self.streams)

    @property
    def frames(self) -> int:
        return sum(stream.frames for stream in self.streams)

    @property
    def missing_frames(self) -> int:
        return sum(stream.missing_frames for stream in self.streams)

    def __str__(self) -> str:
        verdict = "nothing is missing that is not explained" if self.ok else "NOT COMPLETE, or not certain to be"
        other = [f"{self.other_messages:,} messages of other modules"] if self.other_messages else []
        return "\n".join([*map(str, self.outboxes), *map(str, self.streams), *other, *self.problems, verdict])


class SequenceBook:
    """The sequences of one outbox, in whatever order they come."""

    def __init__(self, vehicle: str, outbox: str) -> None:
        self._audit = OutboxAudit(vehicle, outbox)
        self._received = Ranges()
        self._evictions: set[Eviction] = set()  # one that comes again is equal to the first

    def add(self, sequence: int) -> bool:
        """True if this sequence is new."""
        if sequence in self._received:
            self._audit.duplicates += 1
            return False
        self._received.add(sequence, sequence)
        return True

    def evict(self, eviction: Eviction) -> None:
        self._evictions.add(eviction)

    def audit(self) -> OutboxAudit:
        reasons = Counter[str]()
        for eviction in self._evictions:
            reasons[eviction.reason] += eviction.count
        begin = 1 + max((e.last_sequence for e in self._evictions if e.reason == "salvage"), default=0)
        end = max([self._received.last or 0, *(e.last_sequence for e in self._evictions)])
        missing = self._received.missing(begin, end)
        self._audit.received = list(self._received)
        self._audit.evicted = dict(reasons)
        self._audit.explained, self._audit.gaps = explain(missing, self._evictions)
        return self._audit

    def is_missing_between(self, after: int, before: int) -> bool:
        """Is there a record between these two that did not arrive?"""
        return bool(self._received.missing(after + 1, before - 1))


Books = Mapping[tuple[str, str], SequenceBook]  # by vehicle and outbox


def explain(missing: Iterable[Range], evictions: Iterable[Eviction]) -> tuple[list[Range], list[Range]]:
    """Split missing into what evictions account for and what they do not.

    An eviction of count records in first..last accounts for that many of the sequences missing there; that of a
    salvage (no stream) for all of them, because its count is only what is known. Each sequence goes to the eviction
    that ends first, so that as many as possible are accounted for.
    """
    coming = sorted((e.first_sequence, e.last_sequence, _capacity(e)) for e in evictions)
    coming.reverse()
    open_ones: list[tuple[int, int]] = []  # (last, capacity), by last
    explained, gaps = Ranges(), Ranges()
    for first, last in missing:
        at = first
        while at <= last:
            while coming and coming[-1][0] <= at:
                heapq.heappush(open_ones, coming.pop()[1:])
            while open_ones and (open_ones[0][0] < at or not open_ones[0][1]):
                heapq.heappop(open_ones)
            until = min(last, coming[-1][0] - 1) if coming else last
            if open_ones:
                end, capacity = heapq.heappop(open_ones)
                until = min(until, end, at + capacity - 1)
                heapq.heappush(open_ones, (end, capacity - (until - at + 1)))
            (explained if open_ones else gaps).add(at, until)
            at = until + 1
    return list(explained), list(gaps)


def _capacity(eviction: Eviction) -> int:
    whole = eviction.last_sequence - eviction.first_sequence + 1
    return whole if eviction.reason == "corrupt" and not eviction.stream else eviction.count


class Trail:
    """The frames of one stream from one source; its blocks come in the order in which they were stored."""

    def __init__(self, vehicle: str, stream: str, source: str) -> None:
        self.audit = StreamAudit(vehicle, stream, source)
        self.covered: dict[bytes, Ranges] = {}  # by boot
        self._counters = Counter[str]()
        self._holes: list[tuple[bytes, Range]] = []
        self._boot = b""
        self._next: int | None = None
        self._place: tuple[str, int] | None = None

    def add(self, outbox: str, sequence: int, block: Block, books: Books) -> None:
        coverage, boot = block.coverage, block.clock.boot_id
        self._count(coverage, block.counters)
        if self._next is not None and boot == self._boot:
            self._compare(coverage, self._next, self._is_lost_before(outbox, sequence, books))
        self._next, self._boot, self._place = coverage.end, boot, (outbox, sequence)
        self.covered.setdefault(boot, Ranges()).add(coverage.first, coverage.end - 1)

    def finish(self, siblings: Iterable["Trail"]) -> StreamAudit:
        """What others have of the same source is no hole: this campaign was not running then."""
        others = [trail for trail in siblings if trail is not self]
        for boot, hole in self._holes:
            left = [hole]
            for trail in others:
                covered = trail.covered.get(boot, Ranges())
                left = [part for first, last in left for part in covered.missing(first, last)]
            self.audit.idle_frames += _size([hole]) - _size(left)
            self.audit.holes += left
        self.audit.counters = dict(self._counters)
        return self.audit

    def _count(self, coverage: Coverage, counters: Counters) -> None:
        self.audit.blocks += 1
        self.audit.samples += counters.samples
        self.audit.frames += coverage.end - coverage.first
        self.audit.missing_frames += coverage.missing
        self._counters.update(msgspec.structs.asdict(counters))

    def _compare(self, coverage: Coverage, expected: int, is_lost: bool) -> None:
        unknown = coverage.first - expected - coverage.missing
        if unknown > 0 and is_lost:
            self.audit.lost_frames += unknown
        elif unknown > 0:
            self._holes.append((self._boot, (expected, expected + unknown - 1)))
        elif coverage.first < expected and self.audit.source.startswith("replay:"):
            # A live source that starts to count anew is no overlap.
            self.audit.overlaps.append((coverage.first, min(expected, coverage.end) - 1))

    def _is_lost_before(self, outbox: str, sequence: int, books: Books) -> bool:
        if self._place is None:
            return False
        before, at = self._place
        if before == outbox:
            return books[self.audit.vehicle, outbox].is_missing_between(at, sequence)
        # A new outbox after a corruption: the newest records of the old one may be gone without a trace.
        return True


def _size(ranges: Iterable[Range]) -> int:
    return sum(last - first + 1 for first, last in ranges)
