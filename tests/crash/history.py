"""The history of a run, kept outside the victim, and the validator that decides whether anything was lost.

    producer ── attempted, acknowledged ──► history file ◄── delivered, evicted ── consumer or cloud
                                                 │
    tester ──── fault, counted, drained ─────────┴──► validate(read(path)) ──► [] or what is wrong, a line each

What a layer needs:

    history = History(path)                    append only; a call is one writev(2), so that a kill tears no line
    WatchedOutbox(folder, history, …)          an Outbox that enters what its producer asks and is told
    drain(outbox, history)                     deliver everything left, enter the ledger and the counter: the liveness
    history.message(bytes)                     what a cloud received: delivered and evicted, from one message
    history.fault("power cut")                 before the last of which nothing need be drained
    validate(read(path), drain_within_s=60)    independent of edge.outbox: it looks at the lines alone

A line is a JSON array, the fields of Event in their order. (outbox, sequence) names a record; digest is the SHA-256
of its body, and no two records that a producer makes are alike. Claims:

    a  every acknowledged record is delivered, or the ledger accounts for it
    b  without repeats by (outbox, sequence) each is delivered once
    c  the records of a stream come, for the first time, in the order in which they were made
    d  what is delivered was enqueued, in that stream, byte for byte
    e  what the outbox counts as lost is what the ledger says; and the ledger invents nothing
    f  after the last fault everything is drained, in time
"""

import hashlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge import message
from edge.outbox import NewRecord, Outbox


class Event(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """kind: attempted, acknowledged, delivered, evicted, counted, fault or drained.

    evicted: count records of stream (of any, where it is empty) with sequences in sequence..last; counted: count is
    what the outbox says it lost in all; fault, drained: time_s by the tester's monotonic clock, reason says which.
    """

    kind: str
    stream: str = ""
    sequence: int = 0
    digest: str = ""
    outbox: str = ""
    last: int = 0
    count: int = 0
    reason: str = ""
    time_s: float = 0.0


class History:
    """Writes to the history. Several processes may have it open."""

    def __init__(self, path: Path | str) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def close(self) -> None:
        os.close(self._file)

    def attempted(self, records: Iterable[NewRecord]) -> None:
        self.enter(Event("attempted", new.stream, digest=digest(new.body)) for new in records)

    def acknowledged(self, outbox: bytes, sequences: Sequence[int], records: Sequence[NewRecord]) -> None:
        pairs = zip(sequences, records, strict=True)
        self.enter(Event("acknowledged", new.stream, n, digest(new.body), outbox.hex()) for n, new in pairs)

    def delivered(self, outbox: bytes, records: Iterable[Any]) -> None:
        """records: of an Outbox, which name their outbox, or of a message."""
        self.enter(
            Event("delivered", r.stream, r.sequence, digest(r.body), getattr(r, "outbox", outbox).hex())
            for r in records
        )

    def evicted(self, outbox: bytes, entries: Iterable[Any]) -> None:
        """entries: LedgerEntry, or message.Eviction."""
        self.enter(
            Event("evicted", e.stream, e.first_sequence, "", getattr(e, "outbox", outbox).hex(), e.last_sequence,
                  e.count, e.reason)
            for e in entries
        )  # fmt: skip

    def message(self, data: bytes) -> None:
        """What came to the cloud in one message."""
        envelope = message.unpack(data)
        self.delivered(envelope.outbox_id, envelope.records)
        self.evicted(envelope.outbox_id, envelope.evictions)

    def counted(self, outbox: Outbox) -> None:
        self.enter([Event("counted", outbox=outbox.id.hex(), count=outbox.stats().evicted)])

    def fault(self, what: str) -> None:
        self.enter([Event("fault", reason=what, time_s=time.monotonic())])

    def drained(self) -> None:
        self.enter([Event("drained", time_s=time.monotonic())])

    def enter(self, events: Iterable[Event]) -> None:
        lines = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
        while lines:  # writev: no victim uses it, so that a fault in what it does use leaves the history alone
            lines = lines[os.writev(self._file, [lines]) :]


class Memory(History):
    """A history of this process alone."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.events = list(events)

    def close(self) -> None:
        pass

    def enter(self, events: Iterable[Event]) -> None:
        self.events += events


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class WatchedOutbox(Outbox):
    """Enters into the history what its producer asks for, and what it is told."""

    def __init__(self, path: Path | str, history: History, *more: Any) -> None:
        self.history = history
        super().__init__(path, *more)

    def append(self, records: Sequence[NewRecord], cursor: tuple[str, bytes] | None = None) -> list[int]:
        self.history.attempted(records)
        sequences = super().append(records, cursor)
        self.history.acknowledged(self.id, sequences, records)
        return sequences


def drain(outbox: Outbox, history: History, limit_records: int = 50) -> int:
    """Deliver and acknowledge everything, as an uplink would; return how many records came."""
    delivered = 0
    while records := outbox.peek(1 << 20, limit_records):
        history.delivered(b"", records)
        outbox.ack(record.sequence for record in records)
        delivered += len(records)
    settle(outbox, history)
    history.drained()
    return delivered


def settle(outbox: Outbox, history: History) -> None:
    """Enter the ledger, whole, and the counter."""
    while entries := outbox.ledger():
        history.evicted(b"", entries)
        outbox.ack([], entries=[entry.id for entry in entries])
    history.counted(outbox)


def read(path: Path) -> list[Event]:
    return parse(path.read_bytes())


def parse(lines: bytes) -> list[Event]:
    """A line that has no end was being written when the victim was cut: it says nothing."""
    return [msgspec.json.decode(line, type=Event) for line in lines.split(b"\n")[:-1]]


Name = tuple[str, int]  # outbox, sequence


def validate(events: Iterable[Event], drain_within_s: float = 60.0, claims: Collection[str] = "abcdef") -> list[str]:
    """What is wrong with a history, a line each that begins with the claim's letter; [] if nothing is."""
    by_kind: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_kind[event.kind].append(event)
    attempted = {(e.stream, e.digest): n for n, e in reversed(list(enumerate(by_kind["attempted"])))}
    acknowledged = {(e.outbox, e.sequence): e for e in by_kind["acknowledged"]}
    delivered = {(e.outbox, e.sequence): e for e in reversed(by_kind["delivered"])}  # first, and in what order
    ledger = list(dict.fromkeys(by_kind["evicted"]))  # told twice is the same
    found = [
        *(_numbered_twice(by_kind["acknowledged"], acknowledged)),
        *(_lost(acknowledged, delivered, ledger)),
        *(_twice(by_kind["delivered"])),
        *(_out_of_order(by_kind["delivered"], attempted)),
        *(_altered(by_kind["delivered"], attempted, acknowledged)),
        *(_miscounted(ledger, by_kind["counted"], acknowledged, attempted)),
        *(_stuck(by_kind["fault"], by_kind["drained"], drain_within_s)),
    ]
    return [line for line in found if line[0] in claims]


def _numbered_twice(events: list[Event], last: dict[Name, Event]) -> Iterable[str]:
    for event in events:
        if last[event.outbox, event.sequence].digest != event.digest:
            yield f"a: sequence {event.sequence} was given to two records; the cloud drops one as a repeat"


def _lost(acknowledged: dict[Name, Event], delivered: dict[Name, Event], ledger: list[Event]) -> Iterable[str]:
    missing: dict[tuple[str, str], list[int]] = defaultdict(list)
    for (outbox, sequence), event in acknowledged.items():
        if (outbox, sequence) not in delivered:
            missing[outbox, event.stream].append(sequence)
    unexplained: Counter[str] = Counter()
    for (outbox, stream), sequences in missing.items():
        mine = [e for e in ledger if e.outbox == outbox and e.stream in (stream, "")]
        for sequence in sequences:
            if not any(e.sequence <= sequence <= e.last for e in mine):
                yield f"a: sequence {sequence} of {stream} was acknowledged; it neither came nor is in the ledger"
        unexplained[outbox] += max(0, len(sequences) - sum(e.count for e in mine if e.stream))
    for outbox, count in unexplained.items():  # what an entry without a stream may account for
        if count > (known := sum(e.count for e in ledger if e.outbox == outbox and not e.stream)):
            yield f"a: the ledger accounts for {count - known} records less than are missing"


def _twice(delivered: list[Event]) -> Iterable[str]:
    names: dict[tuple[str, str], Name] = {}
    digests: dict[Name, str] = {}
    for event in delivered:
        name = (event.outbox, event.sequence)
        if names.setdefault((event.stream, event.digest), name) != name:
            yield f"b: one record of {event.stream} came as {names[event.stream, event.digest][1]} and {event.sequence}"
        if digests.setdefault(name, event.digest) != event.digest:
            yield f"b: two records came with sequence {event.sequence}"


def _out_of_order(delivered: list[Event], attempted: dict[tuple[str, str], int]) -> Iterable[str]:
    newest: dict[str, tuple[int, int]] = {}
    seen: set[Name] = set()
    for event in delivered:
        name = (event.outbox, event.sequence)
        if name in seen:
            continue
        seen.add(name)
        at = (event.sequence, attempted.get((event.stream, event.digest), -1))
        before = newest.get(event.stream, at)
        if at[0] < before[0] or -1 < at[1] < before[1]:
            yield f"c: sequence {event.sequence} of {event.stream} came after {before[0]}"
        newest[event.stream] = max(at, before)


def _altered(
    delivered: list[Event], attempted: dict[tuple[str, str], int], acknowledged: dict[Name, Event]
) -> Iterable[str]:
    for event in delivered:
        promised = acknowledged.get((event.outbox, event.sequence))
        if (event.stream, event.digest) not in attempted:
            yield f"d: sequence {event.sequence} of {event.stream} is not what anybody stored"
        elif promised and (promised.stream, promised.digest) != (event.stream, event.digest):
            yield f"d: sequence {event.sequence} of {event.stream} is another record than the acknowledged one"


def _miscounted(
    ledger: list[Event],
    counted: list[Event],
    acknowledged: dict[Name, Event],
    attempted: dict[tuple[str, str], int],
) -> Iterable[str]:
    said = sum(entry.count for entry in ledger)
    if counted and counted[-1].count != said:
        yield f"e: the outbox counts {counted[-1].count} lost records, its ledger {said}"
    sure = {(event.stream, event.digest) for event in acknowledged.values()}
    doubtful = len(attempted) - len(sure)  # may have been stored, their producer never heard of it
    for e in ledger:
        known = sum(
            outbox == e.outbox and e.sequence <= sequence <= e.last and e.stream in (event.stream, "")
            for (outbox, sequence), event in acknowledged.items()
        )
        if e.count > known + doubtful:
            yield f"e: the ledger says that {e.count} of {known} records in {e.sequence}..{e.last} went ({e.reason})"


def _stuck(faults: list[Event], drained: list[Event], within_s: float) -> Iterable[str]:
    last = faults[-1].time_s if faults else 0.0
    if not drained or drained[-1].time_s < last:
        yield "f: not drained after the last fault"
    elif faults and drained[-1].time_s - last > within_s:
        yield f"f: drained {drained[-1].time_s - last:.1f} s after the last fault, {within_s:.0f} s allowed"
