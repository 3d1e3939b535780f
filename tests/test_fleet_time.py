"""What time it was, as far as anyone knows, and when nobody does."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from edge.message import Clock, Quality
from tests.fleet_messages import BOOT_US, SECOND_US, block_of, decoded, message_of, record_of, rows_of


def test_samples_are_dated_in_utc_and_filed_by_day(tmp_path: Path) -> None:
    midnight_us = 1_795_564_800 * SECOND_US  # 2026-11-25, nine hours ahead of the cloud's clock
    boot_us = midnight_us - 25_000
    clock = Clock(bytes(16), boot_us, Quality.SYNCHRONISED)
    rows, _ = decoded(tmp_path, [message_of([record_of(1, block_of(0, 6, source="can", clock=clock))])])
    assert rows == rows_of(range(6), boot_us)
    days = {path.parent.name: pq.read_table(path, partitioning=None).num_rows for path in tmp_path.rglob("*.parquet")}
    assert days == {"date=2026-11-24": len(rows_of(range(3))), "date=2026-11-25": len(rows_of(range(3, 6)))}


def test_a_clock_that_is_set_late_dates_the_earlier_blocks_of_its_boot_too(tmp_path: Path) -> None:
    boots = [bytes([n]) * 16 for n in range(2)]
    clocks = [
        Clock(boots[0], 0, Quality.UNKNOWN),
        Clock(boots[0], BOOT_US + 7, Quality.SYSTEM),
        Clock(boots[0], BOOT_US + 5_000_000, Quality.SYNCHRONISED),
        Clock(boots[0], BOOT_US + 5_000_003, Quality.SYNCHRONISED),
        Clock(boots[0], BOOT_US + 9, Quality.SYSTEM),
        Clock(boots[1], BOOT_US + 11, Quality.SYSTEM),
    ]
    lines = [
        message_of([record_of(n, block_of(n, n + 1, source="can", clock=clock))])
        for n, clock in enumerate(clocks, start=1)
    ]
    rows, audit = decoded(tmp_path, lines[::-1])
    offsets = [5_000_000, 5_000_000, 5_000_000, 5_000_003, 5_000_003, 11]
    assert Counter(rows) == Counter(row for n, at in enumerate(offsets, start=1) for row in rows_of([n], BOOT_US + at))
    (stream,) = audit.streams
    assert (stream.clocks, stream.corrected_blocks) == ({"unknown": 1, "system": 3, "synchronised": 2}, 3)


@pytest.mark.parametrize("offset_us", [0, 4_300_000_000 * SECOND_US, 1 << 62, -(1 << 62)])  # 1970, 2106, …
def test_a_clock_that_cannot_be_right_is_named_and_stops_nothing(tmp_path: Path, offset_us: int) -> None:
    wild = Clock(bytes(16), offset_us, Quality.SYNCHRONISED)
    records = [record_of(1, block_of(0, 3)), record_of(2, block_of(3, 6, source="can", clock=wild))]
    rows, audit = decoded(tmp_path, [message_of(records)])
    assert rows == rows_of(range(3))
    assert "record 2 of drive: its clock cannot be right: samples of " in audit.problems[0]
    assert not audit.ok


def test_a_record_with_an_impossible_clock_waits_for_a_better_one_of_its_boot(tmp_path: Path) -> None:
    wild, right = Clock(bytes(16), 7, Quality.SYNCHRONISED), Clock(bytes(16), BOOT_US, Quality.SYSTEM)
    assert not decoded(tmp_path, [message_of([record_of(1, block_of(0, 3, source="can", clock=wild))])])[0]
    line = message_of([record_of(2, block_of(3, 6, source="can", clock=right))])
    rows, audit = decoded(tmp_path, [line])
    assert rows == rows_of(range(6), BOOT_US)
    assert audit.ok, str(audit)


def test_an_anchor_that_comes_in_a_later_run_moves_rows_to_another_day(tmp_path: Path) -> None:
    midnight_us = 1_795_478_400 * SECOND_US  # 2026-11-24
    early = Clock(bytes(16), midnight_us - 50_000, Quality.SYSTEM)
    right = Clock(bytes(16), midnight_us, Quality.SYNCHRONISED)
    decoded(tmp_path, [message_of([record_of(1, block_of(0, 3, source="can", clock=early))])])
    assert dates(tmp_path) == {"date=2026-11-23"}
    rows, _ = decoded(tmp_path, [message_of([record_of(2, block_of(3, 6, source="can", clock=right))])])
    assert rows == rows_of(range(6), midnight_us)
    assert dates(tmp_path) == {"date=2026-11-24"}


def dates(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("date=*")}
