"""What every outbox owes its callers: one suite over the real one and the one in memory."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge.outbox import MAX_BODY_BYTES, PAGE_BYTES, NewRecord, Outbox, Store
from tests.memory_outbox import MemoryOutbox

MANIFEST = bytes(range(32))


def new(body: bytes = b"body", priority: int = 5, stream: str = "drive") -> NewRecord:
    return NewRecord(priority, stream, MANIFEST, body)


@pytest.fixture(params=["memory", "durable"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryOutbox()
    else:
        with Outbox(tmp_path) as opened:
            yield opened


def test_acknowledged_records_are_forgotten_and_the_cursor_is_kept_with_that(store):
    store.append([new(), new(), new()])
    store.ack([1, 3, 99], ("sent", b"3"))
    assert [record.sequence for record in store.peek(1000, 10)] == [2]
    assert store.cursor("sent") == b"3"


def test_evicted_records_are_in_the_ledger(store):
    store.append([new(priority=1), new(priority=9), new(priority=5)])
    assert store.evict(1, least=5, reason="quota") == 1
    [entry] = store.ledger()
    assert (entry.first_sequence, entry.last_sequence, entry.count, entry.reason) == (2, 2, 1, "quota")
    assert store.evict(1 << 30, least=5) == 1
    assert store.stats().evicted == 2
    assert [record.sequence for record in store.peek(1000, 10)] == [1]


def test_with_oldest_first_the_priority_that_waits_longest_begins(store):
    store.append([new(priority=9), new(priority=0), new(priority=9)])
    assert [record.sequence for record in store.peek(1000, 10, oldest_first=True)] == [1, 3, 2]
    assert [record.sequence for record in store.peek(1000, 10, {9: 3}, oldest_first=True)] == [2]


def test_priorities_and_records_can_be_passed_over(store):
    store.append([new(priority=1), new(priority=2), new(priority=1)])
    assert [record.sequence for record in store.peek(1000, 10, without={1})] == [2]
    assert [record.sequence for record in store.peek(1000, 10, skip={1})] == [3, 2]


def test_the_most_important_record_comes_first_and_the_oldest_within_a_priority(store):
    for priority in (5, 0, 9, 0, 5):
        store.append([new(priority=priority)])
    assert [record.sequence for record in store.peek(1000, 10)] == [2, 4, 1, 5, 3]


def test_peek_stays_within_its_limits_but_gives_one_record_at_least(store):
    store.append([new(bytes(100)) for _ in range(10)])
    assert len(store.peek(350, 10)) == 3
    assert len(store.peek(10_000, 4)) == 4
    assert len(store.peek(1, 10)) == 1


def test_peek_goes_on_after_the_last_sequence_of_each_priority(store):
    store.append([new(priority=5), new(priority=1), new(priority=5)])
    assert [record.sequence for record in store.peek(1000, 10, {5: 1, 1: 2})] == [3]
    store.append([new(priority=1)])
    assert [record.sequence for record in store.peek(1000, 10, {5: 3, 1: 2})] == [4]


@pytest.mark.parametrize(
    "record",
    [
        NewRecord(256, "s", MANIFEST, b""),
        NewRecord(-1, "s", MANIFEST, b""),
        NewRecord(0, "s", b"short", b""),
        NewRecord(0, "s" * 256, MANIFEST, b""),
        NewRecord(0, "s", MANIFEST, bytes(MAX_BODY_BYTES + 1)),
    ],
)
def test_a_record_out_of_bounds_is_a_bug_of_the_caller(store, record):
    with pytest.raises(ValueError):
        store.append([new(), record])
    assert store.stats().records == 0


# Against a model


class Model(RuleBasedStateMachine):
    """An outbox does what a dictionary does."""

    def open(self) -> Any:
        return MemoryOutbox()

    @initialize()
    def begin(self) -> None:
        self.outbox = self.open()
        self.records: dict[int, NewRecord] = {}
        self.last = 0
        self.evicted = 0
        self.cursor: bytes | None = None

    def order(self) -> list[int]:
        return sorted(self.records, key=lambda sequence: (self.records[sequence].priority, sequence))

    @rule(
        priorities=st.lists(st.integers(0, 3), max_size=4),
        size=st.integers(0, 5000),
        cursor=st.none() | st.binary(max_size=4),
    )
    def append(self, priorities, size, cursor) -> None:
        records = [new(os.urandom(size), priority, f"s{priority}") for priority in priorities]
        sequences = self.outbox.append(records, None if cursor is None else ("log", cursor))
        assert sequences == list(range(self.last + 1, self.last + 1 + len(records)))
        self.records |= zip(sequences, records, strict=True)
        self.last += len(records)
        self.cursor = self.cursor if cursor is None else cursor

    @rule(
        limit_bytes=st.integers(1, 20_000),
        limit_records=st.integers(1, 10),
        skip=st.integers(0, 5),
        without=st.sets(st.integers(0, 3)),
        oldest_first=st.booleans(),
    )
    def peek_some(self, limit_bytes, limit_records, skip, without, oldest_first) -> None:
        order = [sequence for sequence in self.order() if self.records[sequence].priority not in without]
        if oldest_first and order:
            first = self.records[min(order)].priority
            order.sort(key=lambda sequence: self.records[sequence].priority != first)
        passed_over = set(order[:skip])
        found = self.outbox.peek(
            limit_bytes, limit_records, without=without, skip=passed_over, oldest_first=oldest_first
        )
        assert [record.sequence for record in found] == order[skip:][: len(found)]
        assert len(found) >= min(1, len(order[skip:]))

    @rule(limit_bytes=st.integers(1, 20_000), limit_records=st.integers(1, 10), skip=st.integers(0, 5))
    def peek(self, limit_bytes, limit_records, skip) -> None:
        order = self.order()
        after = {self.records[sequence].priority: sequence for sequence in order[:skip]}
        found = self.outbox.peek(limit_bytes, limit_records, after)
        assert [record.sequence for record in found] == order[skip:][: len(found)]
        assert all(self.records[record.sequence].body == record.body for record in found)
        size = sum(len(record.body) for record in found)
        assert len(found) <= 1 or size <= limit_bytes
        rest = order[skip + len(found) :]
        if rest and len(found) < limit_records:
            assert size + len(self.records[rest[0]].body) > limit_bytes

    @rule(data=st.data())
    def ack(self, data) -> None:
        some = data.draw(st.lists(st.integers(1, self.last + 1), max_size=5))
        self.outbox.ack(some)
        for sequence in some:
            self.records.pop(sequence, None)

    @rule(need=st.integers(1, 15_000), least=st.integers(0, 3))
    def evict(self, need, least) -> None:
        order = sorted(
            (sequence for sequence, record in self.records.items() if record.priority >= least),
            key=lambda sequence: (-self.records[sequence].priority, sequence),
        )
        count = self.outbox.evict(need, least)
        freed = [len(self.records.pop(sequence).body) + PAGE_BYTES for sequence in order[:count]]
        assert count == len(order) or sum(freed) >= need > sum(freed[:-1])
        self.evicted += count

    @invariant()
    def totals_agree(self) -> None:
        stats = self.outbox.stats()
        assert stats.records == len(self.records)
        assert stats.bytes == sum(len(record.body) for record in self.records.values())
        assert stats.evicted == self.evicted == sum(entry.count for entry in self.outbox.ledger(10_000))
        assert self.outbox.cursor("log") == self.cursor


class DurableModel(Model):
    """And the real one remembers it."""

    def open(self) -> Any:
        self.folder = tempfile.TemporaryDirectory()
        return Outbox(self.folder.name)

    @rule()
    def reopen(self) -> None:
        self.outbox.close()
        self.outbox = Outbox(self.folder.name)

    def teardown(self) -> None:
        if hasattr(self, "outbox"):
            self.outbox.close()
            self.folder.cleanup()


SETTINGS = settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
TestMemory = Model.TestCase
TestMemory.settings = SETTINGS
TestDurable = DurableModel.TestCase
TestDurable.settings = SETTINGS
