"""Which records make the next message: urgency, fairness, cost, and what it is filled to.

    outbox ── peek ──► most important first; each eighth message begins with the oldest record of all
                 └───► without what the day's budget or a metered network forbids
                         └──► as many as fill n x 4096 bytes best ──► Message

A Chooser is used in the outbox's thread. It is told what is in flight; it knows nothing of the network.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Protocol

import msgspec

from cy_core.record import message_bytes
from edge.budget import CURSOR, Budget
from edge.errors import OutboxFull
from edge.message import MAX_MESSAGE_BYTES, PROPERTY_BYTES, UNIT_BYTES, fill, fit, pack
from edge.outbox import LedgerEntry, Record, Store
from edge.outbox.records import PRIORITIES

log = logging.getLogger(__name__)

TOPIC_BYTES = 768  # topic with everything percent-encoded, for the longest device and module names
MAX_RECORDS = 1000
MAX_EVICTIONS = 50
FAIR_TURN = 8  # of so many messages, one begins with the oldest record


class Message(msgspec.Struct, frozen=True):
    id: str
    body: bytes
    records: list[Record]
    evictions: list[LedgerEntry]
    sizes: list[int]  # encoded, of the records

    @property
    def units(self) -> int:
        """What is billed."""
        return -(-(len(self.body) + PROPERTY_BYTES) // UNIT_BYTES)


class Limits(msgspec.Struct, frozen=True):
    """message_units: the size of a message; latency_s: how long it may wait to be filled; daily_bytes: by priority;
    metered_priority: the least important one that goes out over a metered network."""

    message_units: int = 32
    latency_s: float = 5.0
    daily_bytes: dict[int, int] = {}
    metered_priority: int = 3

    @property
    def message_bytes(self) -> int:
        """The most that one message's body may have."""
        return min(self.message_units * UNIT_BYTES - PROPERTY_BYTES, MAX_MESSAGE_BYTES - TOPIC_BYTES)


class Flying(msgspec.Struct):
    """What must not be chosen, or only alone. after: by priority, the last sequence in flight."""

    after: dict[int, int] = {}
    records: int = 0
    entries: set[int] = set()
    alone: set[int] = set()
    deferred: set[int] = set()

    def add(self, message: Message) -> None:
        """It goes out, too; the next one begins behind it."""
        self.records += len(message.records)
        self.entries.update(entry.id for entry in message.evictions)
        for priority, sequence in {record.priority: record.sequence for record in message.records}.items():
            self.after[priority] = max(sequence, self.after.get(priority, 0))


class Queue(Store, Protocol):
    """What a Chooser asks of an outbox."""

    def ledger(self, limit: int = 100) -> list[LedgerEntry]: ...

    def cursor(self, name: str) -> bytes | None: ...


class Chooser:
    """metered says whether the network costs by the byte just now."""

    def __init__(self, outbox: Queue, vehicle_id: str, metered: Callable[[], bool] = lambda: False) -> None:
        self._outbox = outbox
        self._vehicle_id = vehicle_id
        self._metered = metered
        self._turn = 0
        self.budget = Budget(outbox.cursor(CURSOR))
        self.waiting_for_budget: list[int] = []  # priorities

    def choose(self, limits: Limits, flying: Flying, room: int, is_due: bool) -> tuple[list[Message], bool]:
        """Up to `room` messages of what is not in flight, and whether more is there that does not fill one.

        is_due: what there is goes out, even if waiting might fill a message; for one message only, where waiting is
        asked for at all.
        """
        waiting = self._waiting(flying)  # before looking: what comes in between is no reason to hurry
        entries = self._entries(flying.entries)
        chosen: list[Message] = []
        while len(chosen) < room and (found := self._next(limits, flying, waiting, entries)):
            message, is_urgent = found
            if not (is_urgent or is_due):
                return chosen, True
            is_due = is_due and (is_urgent or not limits.latency_s)
            self.commit(message)
            flying.add(message)
            waiting -= len(message.records)
            entries = [entry for entry in entries if entry.id not in flying.entries]
            chosen.append(message)
        return chosen, False

    def _next(
        self, limits: Limits, flying: Flying, waiting: int, entries: list[LedgerEntry]
    ) -> tuple[Message, bool] | None:
        """A message, and whether waiting cannot fill it."""
        records, left = self._records(limits, flying)
        if not records:
            told = self._of_evictions(entries)
            return (told, False) if told else None
        group = _group(records, flying.alone)
        first = group[0]
        own = [entry for entry in entries if entry.outbox == first.outbox and first.sequence not in flying.alone]
        sizes = message_bytes(group)
        count, evictions = fit(self._vehicle_id, sizes, own, limits.message_bytes)
        if 0 < count < len(group) or (count < waiting and len(group) == len(records)):
            count = fill(self._vehicle_id, sizes[:count], own[:evictions])
        if count == 0:  # a record larger than the unit goes alone
            count, evictions = 1, 0
        count = max(1, _affordable(group[:count], sizes, left))
        message = self._pack(first.outbox, first.manifest, group[:count], own[:evictions], sizes[:count])
        return message, count < waiting or first.priority == 0

    def _waiting(self, flying: Flying) -> int:
        stats = self._outbox.stats()
        return stats.records - stats.held - flying.records

    def single(self, record: Record) -> Message:
        """A message of nothing but this record."""
        return self._pack(record.outbox, record.manifest, [record], [], message_bytes([record]))

    def commit(self, message: Message) -> None:
        """It goes out: charge it, and let the next one have its turn."""
        self._turn += 1
        self.budget.charge(_charges(message))

    def take_back(self, message: Message) -> None:
        """It does not go out after all."""
        self._turn -= 1
        self.budget.charge({priority: -charge for priority, charge in _charges(message).items()})

    def cursor(self) -> tuple[str, bytes]:
        """To be kept with an acknowledgement."""
        return CURSOR, self.budget.encode()

    def _entries(self, flying: Collection[int]) -> list[LedgerEntry]:
        with suppress(OutboxFull):  # they wait; what can be sent makes room
            entries = self._outbox.ledger(MAX_EVICTIONS + len(flying))
            return [entry for entry in entries if entry.id not in flying][:MAX_EVICTIONS]
        return []

    def _records(self, limits: Limits, flying: Flying) -> tuple[list[Record], Mapping[int, int]]:
        """The records to look at, of which at least the first can be paid, and what each priority has left."""
        left = self.budget.left(limits.daily_bytes)
        without = {priority for priority, rest in left.items() if rest < 2 * UNIT_BYTES}
        if self._metered():
            without.update(range(limits.metered_priority + 1, PRIORITIES))
        while True:
            records = self._outbox.peek(
                limits.message_bytes,
                MAX_RECORDS,
                flying.after,
                without=without,
                skip=flying.deferred,
                oldest_first=self._turn % FAIR_TURN == FAIR_TURN - 1,
            )
            if not records or _affordable(records[:1], message_bytes(records[:1]), left):
                self.waiting_for_budget = sorted(priority for priority in without if priority in left)
                return records, left
            without.add(records[0].priority)

    def _of_evictions(self, entries: list[LedgerEntry]) -> Message | None:
        own = [entry for entry in entries if entry.outbox == entries[0].outbox]
        return self._pack(own[0].outbox, b"", [], own, []) if own else None

    def _pack(
        self, outbox: bytes, manifest: bytes, records: list[Record], evictions: list[LedgerEntry], sizes: list[int]
    ) -> Message:
        body = pack(self._vehicle_id, outbox, manifest, records, evictions)
        ends = (records[0].sequence, records[-1].sequence) if records else (f"e{evictions[0].id}", evictions[-1].id)
        return Message(f"{outbox.hex()[:8]}-{ends[0]}-{ends[1]}", body, records, evictions, sizes)


def _charges(message: Message) -> Counter[int]:
    if not message.records:
        return Counter()
    first = message.records[0].priority  # pays for what the envelope adds, and the last unit's rest
    charges = Counter({first: message.units * UNIT_BYTES})
    for record, size in zip(message.records, message.sizes, strict=True):
        if record.priority != first:
            charges[record.priority] += size
            charges[first] -= size
    return charges


def _group(records: list[Record], alone: Collection[int]) -> list[Record]:
    """The first ones, as far as they can share a message."""
    first = records[0]
    if first.sequence in alone:
        return records[:1]
    for count, record in enumerate(records):
        if record.outbox != first.outbox or record.manifest != first.manifest or record.sequence in alone:
            return records[:count]
    return records


def _affordable(records: list[Record], sizes: list[int], left: Mapping[int, int]) -> int:
    """How many of the first ones the day's budgets pay for; the first pays for the envelope, and the last unit."""
    spent = Counter[int]()
    for count, record in enumerate(records if left else ()):
        spent[record.priority] += sizes[count] + (0 if count else 2 * UNIT_BYTES)
        if record.priority in left and spent[record.priority] > left[record.priority]:
            return count
    return len(records)
