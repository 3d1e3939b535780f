"""Outboxes of other versions, owners and ages; times to live; what the cloud has not confirmed."""

import os
import struct
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cy_core.crc32c import crc32c
from cy_core.record import checksum
from edge.errors import InputError
from edge.outbox import MIN_QUOTA_BYTES, NewRecord, Outbox, database, salvage
from edge.outbox.database import FORMAT_1
from edge.outbox.records import record_of
from tests.test_outbox import drain, new

DAY = 86_400


class Clock:
    """Seconds of a boot, as a test wants them."""

    def __init__(self) -> None:
        self.boot, self.seconds = b"first", 1000

    def __call__(self) -> tuple[bytes, int]:
        return self.boot, self.seconds


def lasting(ttl_s: int, body: bytes = b"body", priority: int = 5) -> NewRecord:
    return NewRecord(priority, "drive", bytes(32), body, ttl_s)


# Times to live


def test_a_record_whose_time_is_over_goes_and_the_ledger_says_so(tmp_path):
    clock = Clock()
    with Outbox(tmp_path, clock=clock) as outbox:
        outbox.append([lasting(60), lasting(0), lasting(3600)])
        clock.seconds += 59
        assert outbox.expire() == 0
        clock.seconds += 1
        assert outbox.expire() == 1
        assert list(drain(outbox)) == [2, 3]
        [entry] = outbox.ledger()
        assert (entry.first_sequence, entry.count, entry.reason, entry.stream) == (1, 1, "expired", "drive")


def test_a_clock_of_another_boot_expires_nothing_and_the_age_goes_on_from_what_was_kept(tmp_path):
    clock = Clock()
    with Outbox(tmp_path, clock=clock) as outbox:
        outbox.append([lasting(DAY)])
        clock.seconds += DAY // 2
        outbox.expire()
    clock.boot, clock.seconds = b"second", 40 * 365 * DAY
    with Outbox(tmp_path, clock=clock) as outbox:
        assert outbox.expire() == 0
        clock.seconds += DAY // 2
        assert outbox.expire() == 1


def test_at_the_quota_what_has_expired_goes_first_however_important_it_is(tmp_path):
    clock = Clock()
    with Outbox(tmp_path, MIN_QUOTA_BYTES, clock) as outbox:
        outbox.append([lasting(60, bytes(200_000), 0) for _ in range(15)])
        clock.seconds += 60
        while not outbox.stats().evicted:
            outbox.append([new(bytes(200_000), 9)])
        assert [entry.reason for entry in outbox.ledger()] == ["expired"]
        assert outbox.stats().evicted == 15


@given(
    st.integers(0, 2**64 - 1),
    st.binary(min_size=16, max_size=16),
    st.binary(max_size=300),
    st.integers(0, 255),
    st.binary(max_size=40),
    st.binary(max_size=5000),
    st.none() | st.integers(-(2**63), 2**63 - 1),
)
def test_a_checksum_covers_the_record_as_docs_formats_outbox_says(
    sequence, owner, stream, priority, manifest, body, end
):
    covered = struct.pack("<16sQBH", owner, sequence, priority, len(stream))
    covered += b"" if end is None else struct.pack("<q", end)
    right = crc32c(covered + stream + manifest + body)
    assert checksum(sequence, owner, stream, priority, manifest, body, end) == right


@pytest.mark.parametrize(
    "place_and_damage",
    [
        *[(0, -1), (0, 2**64), (0, "1"), (0, None), (1, bytes(15)), (1, "text"), (2, bytes(1 << 16)), (2, None)],
        *[(3, 256), (4, "text"), (5, None), (5, 7), (6, 2**63), (6, "soon")],
    ],
)
def test_what_is_no_record_has_no_checksum_and_no_way_out(place_and_damage):
    place, damage = place_and_damage
    row = [1, bytes(16), b"drive", 5, bytes(32), b"body", None]
    assert record_of((row[0], *row[1:3], *row[3:], checksum(*row))) is not None
    row[place] = damage
    with pytest.raises((TypeError, ValueError, OverflowError)):
        checksum(*row)
    assert record_of((*row, 0)) is None


def test_a_flipped_time_to_live_is_noticed(tmp_path):
    with Outbox(tmp_path) as outbox:
        outbox.append([lasting(3600), lasting(0)])
    with closing(database.apsw.Connection(str(tmp_path / "outbox.db"))) as db:
        db.execute("UPDATE records SET expires = 1 WHERE sequence = 2; UPDATE records SET expires = NULL")
        db.execute("UPDATE records SET expires = NULL WHERE sequence = 1")
    with Outbox(tmp_path) as outbox:
        assert list(drain(outbox)) == [2]
        assert [entry.reason for entry in outbox.ledger()] == ["corrupt"]


# Confirmation


def test_held_records_are_kept_until_confirmed_and_gaps_go_back_into_the_queue(tmp_path):
    with Outbox(tmp_path) as outbox:
        outbox.append([new(priority=i % 2) for i in range(10)])
        outbox.hold(range(1, 9), ("spent", b"8"))
        assert [record.sequence for record in outbox.peek(1000, 10)] == [9, 10]
        assert (outbox.stats().records, outbox.stats().held) == (10, 8)
    with Outbox(tmp_path) as outbox:
        assert outbox.cursor("spent") == b"8"
        assert outbox.confirm(bytes(16), 10, []) == (0, 0)  # of another outbox
        assert outbox.confirm(outbox.id, 6, [(2, 3), (6, 7), (40, 50)]) == (3, 3)
        assert outbox.confirm(outbox.id, 6, [(2, 3), (6, 7)]) == (0, 0)
        assert (outbox.stats().records, outbox.stats().held) == (7, 2)
        assert sorted(drain(outbox)) == [2, 3, 6, 9, 10]
        assert outbox.confirm(outbox.id, 100, []) == (2, 0)
        assert outbox.stats().records == outbox.stats().held == 0


def test_a_gap_may_be_on_its_way_unless_the_hub_took_it_before_something_that_has_arrived(tmp_path):
    clock = Clock()
    with Outbox(tmp_path, clock=clock) as outbox:
        outbox.append([new() for _ in range(5)])
        for sequence in (2, 1, 3, 4):  # the order in which they were sent
            clock.seconds += 1
            outbox.hold([sequence])
        assert outbox.confirm(outbox.id, 4, [(1, 2), (3, 3), (4, 4)]) == (0, 0)
        assert outbox.confirm(outbox.id, 3, [(2, 3)], first=3) == (0, 0)  # of what is before first, it says nothing
        assert outbox.confirm(outbox.id, 4, [(2, 3), (4, 4)]) == (1, 1)
        assert [record.sequence for record in outbox.peek(1000, 10)] == [2, 5]
        assert outbox.confirm(outbox.id, 4, [(1, 3), (2, 2)]) == (1, 1)


def test_at_the_quota_what_the_hub_has_goes_before_what_it_has_not(tmp_path):
    with Outbox(tmp_path) as outbox:
        outbox.append([new(priority=0), new(priority=9)])
        outbox.hold([1])
        outbox.evict(1)
        assert [entry.first_sequence for entry in outbox.ledger()] == [1]
        assert outbox.stats().held == 0


# Checking what was not closed


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_file_too_large_to_check_at_once_is_in_use_at_once_and_its_corruption_is_found_beside_the_work(
    tmp_path, monkeypatch, is_damaged
):
    monkeypatch.setattr(salvage, "CHECK_SECONDS", -1.0)
    with Outbox(tmp_path) as outbox:
        for _ in range(4):
            outbox.append([new(bytes(3000), priority=i % 7) for i in range(500)])
        first = outbox.id
    with (tmp_path / "outbox.db").open("r+b") as file:
        page = find_page(file.read(), b"\x0a") if is_damaged else None  # a leaf of an index
        if page is not None:
            file.seek(page + 8)
            file.write(bytes(range(256)) * 8)
    (tmp_path / "outbox.db-wal").touch()  # an unclean stop
    with Outbox(tmp_path) as outbox:
        assert outbox.id == first
        check = outbox._check  # which may end before the next line, or after it
        assert outbox.append([new(b"next")]) == [2001]
        check._thread.join(60)
        assert not check._thread.is_alive()
        delivered = {}
        while records := outbox.peek(1 << 20, 1000):
            delivered |= {record.sequence: record.body for record in records}
            outbox.ack(delivered)
        assert sorted(delivered) == list(range(1, 2002))
        assert (outbox.id != first) == is_damaged


def find_page(content: bytes, kind: bytes) -> int:
    return max(at for at in range(4096, len(content), 4096) if content[at : at + 1] == kind)


# Versions


def test_an_outbox_of_format_1_is_taken_over_with_all_it_holds(tmp_path):
    old_id = bytes(range(16))
    with closing(database.apsw.Connection(str(tmp_path / "outbox.db"))) as db:
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        db.execute(FORMAT_1)
        db.execute("INSERT INTO meta VALUES ('format', '1'), ('id', ?), ('check', ?)", (old_id, crc32c(old_id)))
        head = old_id + (1).to_bytes(8, "little") + b"\x05" + (5).to_bytes(2, "little") + b"drive" + bytes(32)
        row = (1, 5, 4, crc32c(head + b"body"), old_id, b"drive", bytes(32), b"body")
        db.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        db.execute("INSERT INTO cursors VALUES ('log', x'37')")
    with Outbox(tmp_path) as outbox:
        assert (outbox.id, outbox.cursor("log")) == (old_id, b"7")
        assert outbox.append([lasting(60)]) == [2]
        assert drain(outbox) == {1: b"body", 2: b"body"}
    assert not (tmp_path / "outbox.corrupt").exists()


def test_an_outbox_of_a_newer_version_is_left_alone_and_named(tmp_path):
    with Outbox(tmp_path) as outbox:
        outbox.append([new()])
    with closing(database.apsw.Connection(str(tmp_path / "outbox.db"))) as db:
        db.execute("PRAGMA user_version = 3; UPDATE meta SET value = '3' WHERE name = 'format'; CREATE TABLE more (a)")
    for suspect in (False, True):
        if suspect:
            (tmp_path / "outbox.suspect").touch()
        with pytest.raises(InputError, match=r"outbox\.db: belongs to a later version: it has format 3.*update"):
            Outbox(tmp_path)
    with closing(database.apsw.Connection(str(tmp_path / "outbox.db"))) as db:
        assert db.execute("SELECT count(*) FROM records").fetchall() == [(1,)]
    assert not (tmp_path / "outbox.corrupt").exists()


# Places


@pytest.mark.process
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_directory_of_somebody_else_is_named_with_its_owner(mode):
    if os.geteuid():
        pytest.skip("only root can act as somebody else")
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(place) / "outbox"
        with Outbox(folder):
            pass
        folder.chmod(mode)
        code = f"""
import os
from edge.errors import InputError
from edge.outbox import Outbox
os.setgid(65534)
os.setuid(65534)
try:
    Outbox({str(folder)!r})
except InputError as error:
    print(error)
"""
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "cannot hold the outbox" in said
    assert "it belongs to user 0: give it to user 65534" in said
    assert said.count("\n") == 1


def test_a_read_only_disk_is_one_line(tmp_path):
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"a read-only disk needs the right to mount: {mount.stderr.strip()}")
    try:
        with pytest.raises(InputError, match=r"cannot hold the outbox \(Read-only file system\); bind a writable"):
            Outbox(Path(tmp_path) / "outbox")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
