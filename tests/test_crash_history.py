"""The validator of `make crash` finds each kind of loss, and nothing in a history without one."""

import struct
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge.outbox import MIN_QUOTA_BYTES, NewRecord
from tests.crash import blocks
from tests.crash.history import Event, History, WatchedOutbox, digest, drain, read, validate

A = "aa" * 16


@dataclass
class Story:
    """Records 1, 2, 3 of one stream: attempted, acknowledged and delivered."""

    events: list[Event] = field(default_factory=list)

    def add(self, kind: str, sequence: int, body: bytes | None = None, stream: str = "drive") -> None:
        self.events.append(Event(kind, stream, sequence, digest(body or b"%d" % sequence), A))

    def lose(self, first: int, last: int, count: int, stream: str = "drive") -> None:
        self.events.append(Event("evicted", stream, first, "", A, last, count, "quota"))

    def ended(self) -> list[Event]:
        return [*self.events, Event("drained", time_s=2.0)]


@pytest.fixture
def story() -> Story:
    made = Story()
    for sequence in (1, 2, 3):
        made.add("attempted", sequence)
        made.add("acknowledged", sequence)
    return made


def claims(story: Story) -> set[str]:
    return {line[0] for line in validate(story.ended())}


def test_a_whole_history_is_right_and_so_is_one_with_repeats(story):
    for sequence in (1, 2, 1, 2, 3):
        story.add("delivered", sequence)
    assert claims(story) == set()


def test_what_is_missing_must_be_in_the_ledger_with_its_number(story):
    story.add("delivered", 2)
    assert claims(story) == {"a"}
    story.lose(1, 3, 1)
    assert claims(story) == {"a"}
    story.lose(3, 3, 1)
    assert claims(story) == set()


def test_what_a_salvage_lost_is_accounted_for_without_a_stream(story):
    story.add("delivered", 2)
    story.lose(1, 3, 2, stream="")
    assert claims(story) == set()


def test_a_ledger_that_invents_losses_is_found(story):
    for sequence in (1, 2, 3):
        story.add("delivered", sequence)
    story.lose(1, 3, 4)
    assert claims(story) == {"e"}


def test_a_counter_that_differs_from_the_ledger_is_found(story):
    for sequence in (1, 2, 3):
        story.add("delivered", sequence)
    story.events.append(Event("counted", count=1))
    assert claims(story) == {"e"}


def test_one_record_under_two_sequences_is_found(story):
    for sequence in (1, 2, 3):
        story.add("delivered", sequence)
    story.add("delivered", 4, b"3")
    assert claims(story) == {"b"}


def test_another_order_is_found(story):
    for sequence in (1, 3, 2):
        story.add("delivered", sequence)
    assert claims(story) == {"c"}


def test_what_nobody_stored_is_found(story):
    for sequence in (1, 2, 3):
        story.add("delivered", sequence)
    story.add("delivered", 4, b"made up")
    assert claims(story) == {"d"}


def test_a_sequence_given_twice_is_found(story):
    for sequence in (1, 2, 3):
        story.add("delivered", sequence)
    story.add("attempted", 3, b"another")
    story.add("acknowledged", 3, b"another")
    assert "a" in claims(story)


def test_what_is_not_drained_in_time_after_the_last_fault_is_found(story):
    for sequence in (1, 2, 3):
        story.add("delivered", sequence)
    story.events.append(Event("fault", time_s=1.0))
    assert claims(story) == set()
    assert validate(story.ended(), drain_within_s=0.5)[0].startswith("f:")
    assert validate(story.events)[0].startswith("f:")


def test_the_history_of_a_real_outbox_at_its_quota_is_right(tmp_path: Path):
    history = History(tmp_path / "history")
    with WatchedOutbox(tmp_path / "outbox", history, MIN_QUOTA_BYTES) as outbox:
        for n in range(30):
            outbox.append([NewRecord(5, f"s{n % 2}", bytes(32), b"%d" % n + bytes(200_000))])
        assert outbox.stats().evicted > 0
        drain(outbox, history)
    history.close()
    assert validate(read(tmp_path / "history")) == []


def test_the_marks_of_a_recorded_disk_are_those_of_the_history_and_not_the_devices_own(tmp_path: Path) -> None:
    """L3's log, as dm-log-writes has it: a head, then a sector for each entry and the data of writes."""

    def entry(flags: int, text: bytes = b"", sectors: int = 0) -> bytes:
        head = struct.pack("<QQQQ", 2, sectors, flags, len(text)) + text
        return head.ljust(blocks.SECTOR, b"\0") + sectors * blocks.SECTOR * b"x"

    parts = [entry(blocks.MARK, b"17"), entry(blocks.FLUSH, sectors=1), entry(blocks.MARK, b"dm-log-writes-end")]
    head = struct.pack("<QQQI", blocks.MAGIC, 1, len(parts), blocks.SECTOR).ljust(blocks.SECTOR, b"\0")
    (tmp_path / "log.img").write_bytes(head + b"".join(parts))
    found = [(entry.flags, entry.offset, entry.data) for entry in blocks.entries(tmp_path / "log.img")]
    assert found == [(blocks.MARK, 0, b"17"), (blocks.FLUSH, 2 * blocks.SECTOR, blocks.SECTOR * b"x")]
