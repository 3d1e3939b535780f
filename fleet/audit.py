"""What arrived, and whether anything is missing: for each vehicle, outbox and stream.

Sequences say what the outbox stored: a gap is either explained by the vehicle's own ledger of evictions, or it is
not. Coverage says which frames of the source went into blocks: a hole is either one that the collector knew of when
it came back (frames missing on a live bus), or it is not.
"""

from collections import Counter
from collections.abc import Iterable

import msgspec

from edge.message import Counters, Coverage, Eviction

Range = tuple[int, int]  # inclusive


class StreamAudit(msgspec.Struct):
    """One stream (campaign) from one source of one vehicle."""

    vehicle: str
    stream: str
    source: str
    blocks: int = 0
    samples: int = 0
    frames: int = 0
    missing_frames: int = 0  # known to the collector: on the bus, but in no block
    holes: list[Range] = []  # frames in no block, and nobody said so
    overlaps: list[Range] = []  # frames in two blocks
    counters: dict[str, int] = {}
    next_frame: int | None = None

    def add(self, coverage: Coverage, counters: Counters) -> None:
        """Blocks come in the order of their sequence."""
        self.blocks += 1
        self.samples += counters.samples
        self.frames += coverage.end - coverage.first
        self.missing_frames += coverage.missing
        total = Counter(self.counters)
        total.update(msgspec.structs.asdict(counters))
        self.counters = dict(total)
        expected = self.next_frame if self.next_frame is not None else coverage.first
        if coverage.first > expected + coverage.missing:
            self.holes.append((expected, coverage.first - 1))
        elif coverage.first < expected and self.source.startswith("replay:"):
            # A live source that starts to count anew is no overlap.
            self.overlaps.append((coverage.first, min(expected, coverage.end) - 1))
        self.next_frame = coverage.end


class OutboxAudit(msgspec.Struct):
    """One outbox of one vehicle."""

    vehicle: str
    outbox: str
    received: list[Range] = []
    duplicates: int = 0
    evicted: dict[str, int] = {}  # records, by reason
    explained: list[Range] = []
    gaps: list[Range] = []


class Audit(msgspec.Struct):
    outboxes: list[OutboxAudit] = []
    streams: list[StreamAudit] = []
    problems: list[str] = []

    @property
    def ok(self) -> bool:
        """Nothing is missing that nobody explains, nothing was counted twice, everything could be read."""
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
        lines = []
        for outbox in self.outboxes:
            evicted = ", ".join(f"{count} {reason}" for reason, count in sorted(outbox.evicted.items())) or "none"
            lines.append(
                f"{outbox.vehicle} outbox {outbox.outbox[:8]}: records {_ranges(outbox.received)}, "
                f"{outbox.duplicates} repeats dropped, evicted {evicted}, gaps {_ranges(outbox.gaps)}"
            )
        for stream in self.streams:
            lines.append(
                f"{stream.vehicle} {stream.stream} from {stream.source}: {stream.samples:,} samples of "
                f"{stream.frames:,} frames, {stream.missing_frames:,} frames missing on the bus, "
                f"holes {_ranges(stream.holes)}, overlaps {_ranges(stream.overlaps)}"
            )
        return "\n".join([*lines, *self.problems])


class SequenceBook:
    """Collects the sequences of one outbox."""

    def __init__(self, vehicle: str, outbox: str) -> None:
        self._audit = OutboxAudit(vehicle, outbox)
        self._received: set[int] = set()
        self._evicted: dict[tuple[int, int, str, str], Eviction] = {}

    def add(self, sequence: int) -> bool:
        """True if this sequence is new."""
        if sequence in self._received:
            self._audit.duplicates += 1
            return False
        self._received.add(sequence)
        return True

    def evict(self, eviction: Eviction) -> None:
        """Ledger entries may come again, like any other part of a message, and grow while they wait."""
        self._evicted[eviction.first_sequence, eviction.last_sequence, eviction.stream, eviction.reason] = eviction

    def audit(self) -> OutboxAudit:
        evicted = Counter[str]()
        gone: set[int] = set()
        for eviction in self._evicted.values():
            evicted[eviction.reason] += eviction.count
            gone.update(range(eviction.first_sequence, eviction.last_sequence + 1))
        missing = set(range(1, max(self._received | gone, default=0) + 1)) - self._received
        self._audit.received = ranges(self._received)
        self._audit.evicted = dict(evicted)
        self._audit.explained = ranges(missing & gone)
        self._audit.gaps = ranges(missing - gone)
        return self._audit


def ranges(numbers: Iterable[int]) -> list[Range]:
    """Inclusive ranges, ascending."""
    found: list[Range] = []
    for number in sorted(numbers):
        if found and found[-1][1] + 1 == number:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found


def _ranges(found: list[Range]) -> str:
    shown = [f"{low}" if low == high else f"{low}-{high}" for low, high in found[:8]]
    return ", ".join(shown) + (f" and {len(found) - 8} more" if len(found) > 8 else "") if found else "none"
