"""What is missing, and who says why."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.message import Clock, Eviction, Quality
from fleet.audit import explain
from fleet.ranges import Ranges, show
from tests.fleet_messages import BOOT_US, block_of, decoded, eviction, message_of, record_of, rows_of


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(-1, 6))), st.integers(-2, 45), st.integers(-2, 45))
def test_ranges_are_a_set_of_numbers(added: list[tuple[int, int]], first: int, last: int) -> None:
    ranges, numbers = Ranges(), set()
    for start, more in added:
        ranges.add(start, start + more)
        numbers |= set(range(start, start + more + 1))
    assert {n for low, high in ranges for n in range(low, high + 1)} == numbers
    assert [n for n in range(-2, 50) if n in ranges] == sorted(numbers)
    assert ranges.last == max(numbers, default=None)
    assert all(high + 1 < low for (_, high), (low, _) in itertools.pairwise(ranges))
    absent = ranges.missing(first, last)
    assert [n for low, high in absent for n in range(low, high + 1)] == sorted(set(range(first, last + 1)) - numbers)


@given(
    st.sets(st.integers(1, 14), max_size=9),
    st.lists(st.tuples(st.integers(1, 14), st.integers(0, 8), st.integers(0, 4)), max_size=4),
)
@settings(max_examples=300)
def test_evictions_explain_as_many_missing_records_as_they_can(
    missing: set[int], drawn: list[tuple[int, int, int]]
) -> None:
    evictions = [eviction(first, first + more, count) for first, more, count in drawn]
    explained, gaps = explain(list(Ranges((n, n) for n in missing)), evictions)
    numbers = [n for first, last in explained + gaps for n in range(first, last + 1)]
    assert sorted(numbers) == sorted(missing)
    assert sum(last - first + 1 for first, last in explained) == most_matched(sorted(missing), evictions)


def most_matched(missing: list[int], evictions: list[Eviction]) -> int:
    """The size of a greatest matching, by augmenting paths."""
    slots = [e for e in evictions for _ in range(e.count)]
    owner: dict[int, int] = {}

    def place(number: int, seen: set[int]) -> bool:
        for slot, one in enumerate(slots):
            if one.first_sequence <= number <= one.last_sequence and slot not in seen:
                seen.add(slot)
                if slot not in owner or place(owner[slot], seen):
                    owner[slot] = number
                    return True
        return False

    return sum(place(number, set()) for number in missing)


def test_ranges_are_shown_to_people() -> None:
    assert show([]) == "none"
    assert show([(3, 3), (7, 9)]) == "3, 7-9"
    assert show([(n, n) for n in range(0, 40, 2)]) == "0, 2, 4, 6, 8, 10, 12, 14 and 12 more"


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_comes_however_often_in_whatever_order_is_in_the_table_once_and_the_rest_is_audited(
    tmp_path_factory: Any, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 12))
    records = {n: record_of(n, block_of(5 * n - 5, 5 * n)) for n in range(1, count + 1)}
    arrived = data.draw(st.sets(st.sampled_from(sorted(records)), min_size=1))
    evicted = data.draw(st.sets(st.sampled_from(sorted(records)))) - arrived
    evictions = [eviction(first, last, last - first + 1) for first, last in Ranges((n, n) for n in evicted)]
    sent = [*sorted(arrived), *data.draw(st.lists(st.sampled_from(sorted(arrived)), max_size=6))]
    sent = data.draw(st.permutations(sent))
    lines = [
        message_of([records[n]], data.draw(st.sampled_from([(), evictions])), enqueued=f"2026-11-24T15:00:{second:02}Z")
        for second, n in enumerate(sent)
    ]
    lines.append(message_of([], evictions))
    at = data.draw(st.integers(0, len(lines)))
    rows, audit = decoded(tmp_path_factory.mktemp("fleet"), lines[:at], lines[at:])

    wanted = [row for n in sorted(arrived) for row in rows_of(range(5 * n - 5, 5 * n))]
    assert rows == wanted
    (outbox,) = audit.outboxes
    gaps = set(range(1, max(arrived | evicted) + 1)) - arrived - evicted
    assert outbox.duplicates == len(sent) - len(arrived)
    assert outbox.received == list(Ranges((n, n) for n in arrived))
    assert outbox.explained == list(Ranges((n, n) for n in evicted))
    assert outbox.gaps == list(Ranges((n, n) for n in gaps))
    assert outbox.evicted == ({"quota": len(evicted)} if evicted else {})
    (stream,) = audit.streams
    lost = sum(n not in arrived for n in range(min(arrived), max(arrived)))
    assert (stream.blocks, stream.frames, stream.lost_frames) == (len(arrived), 5 * len(arrived), 5 * lost)
    assert (stream.samples, stream.counters["samples"], stream.holes) == (len(rows), len(rows), [])
    assert audit.ok == (not gaps)
    assert ("UNEXPLAINED" in str(audit)) == bool(gaps)


def test_an_eviction_explains_no_more_records_than_it_counts(tmp_path: Path) -> None:
    records = [record_of(n, block_of(n, n + 1)) for n in (1, 5)]
    _, audit = decoded(tmp_path, [message_of(records, [eviction(2, 4, 2, "other")])])
    assert audit.outboxes[0].explained == [(2, 3)]
    assert audit.outboxes[0].gaps == [(4, 4)]
    assert not audit.ok


def test_an_outbox_made_by_a_salvage_begins_where_the_old_one_ended(tmp_path: Path) -> None:
    entry = eviction(1, 6, 0, "", "salvage")
    _, audit = decoded(tmp_path, [message_of([record_of(n, block_of(n, n + 1)) for n in (7, 8)], [entry])])
    assert audit.ok, str(audit)
    gone = eviction(1, 6, 1, "", "corrupt")
    old = message_of([record_of(n, block_of(n, n + 1)) for n in (1, 4)], [gone], outbox=bytes(16))
    _, audit = decoded(tmp_path / "old", [old])
    assert audit.outboxes[0].explained == [(2, 3), (5, 6)]
    assert audit.ok, str(audit)


def test_frames_missing_on_a_live_bus_are_counted_and_holes_that_nobody_knows_of_are_not_excused(
    tmp_path: Path,
) -> None:
    spans = [(100, 105, 0), (110, 115, 5), (120, 125, 2)]
    records = [
        record_of(n, block_of(first, end, missing=missing, source="socketcan:can0"))
        for n, (first, end, missing) in enumerate(spans, start=1)
    ]
    _, audit = decoded(tmp_path, [message_of(records)])
    (stream,) = audit.streams
    assert (stream.frames, stream.missing_frames, stream.holes) == (15, 7, [(115, 117)])
    assert not audit.ok
    assert "7 frames missing on the bus; UNEXPLAINED: no block has frames 115-117" in str(audit)


def test_a_live_source_that_starts_anew_has_neither_hole_nor_overlap(tmp_path: Path) -> None:
    boots = [Clock(bytes([n]) * 16, BOOT_US, Quality.SYSTEM) for n in range(2)]
    blocks_ = [
        block_of(50, 55, source="can", clock=boots[0]),
        block_of(90, 95, source="can", clock=boots[1]),
        block_of(10, 15, source="can", clock=boots[1]),
    ]
    _, audit = decoded(tmp_path, [message_of([record_of(n, block) for n, block in enumerate(blocks_, start=1)])])
    assert audit.ok, str(audit)


def test_what_a_campaign_did_not_collect_while_another_did_is_no_hole(tmp_path: Path) -> None:
    records = [
        record_of(1, block_of(0, 5), "a"),
        record_of(2, block_of(0, 5), "b"),
        record_of(3, block_of(5, 10), "b"),
        record_of(4, block_of(10, 15), "a"),
        record_of(5, block_of(12, 15), "b"),
    ]
    rows, audit = decoded(tmp_path, [message_of(records)])
    streams = {stream.stream: stream for stream in audit.streams}
    assert (streams["a"].idle_frames, streams["a"].holes) == (5, [])
    assert (streams["b"].idle_frames, streams["b"].holes) == (2, [])
    assert audit.ok, str(audit)
    assert Counter(rows) == Counter(rows_of([*range(5), *range(10, 15)]) + rows_of([*range(10), *range(12, 15)]))


def test_frames_of_a_recording_that_come_twice_are_named(tmp_path: Path) -> None:
    _, audit = decoded(tmp_path, [message_of([record_of(1, block_of(0, 5)), record_of(2, block_of(3, 8))])])
    assert audit.streams[0].overlaps == [(3, 4)]
    assert not audit.ok
    assert "TWICE: frames 3-4" in str(audit)
