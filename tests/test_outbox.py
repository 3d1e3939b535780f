"""The outbox's contract: what was appended is delivered until acknowledged, or the ledger says why not."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cy_core.crc32c import crc32c, crc32c_by_tables
from edge.errors import InputError, OutboxError, OutboxFull
from edge.outbox import MIN_QUOTA_BYTES, NewRecord, Outbox

MANIFEST = bytes(range(32))


def new(body: bytes = b"body", priority: int = 5, stream: str = "drive") -> NewRecord:
    return NewRecord(priority, stream, MANIFEST, body)


def drain(outbox: Outbox) -> dict[int, bytes]:
    """Everything that can be delivered, acknowledged bit by bit."""
    delivered = {}
    while records := outbox.peek(100_000, 50):
        delivered |= {record.sequence: record.body for record in records}
        outbox.ack(record.sequence for record in records)
    return delivered


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path) as opened:
        yield opened


def test_crc32c_gives_the_published_check_value():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283


@given(st.binary(max_size=100), st.integers(0, 2**32 - 1))
def test_crc32c_in_hardware_is_the_one_by_tables(data, start):
    assert crc32c(data, start) == crc32c_by_tables(data, start)


def test_crc32c_of_more_than_is_done_at_once_is_the_one_by_tables():
    data = random.Random(1).randbytes((1 << 20) + 3)
    assert crc32c(data) == crc32c_by_tables(data)


def test_what_was_appended_comes_back_as_it_was(outbox):
    [sequence] = outbox.append([NewRecord(3, "Fährt", MANIFEST, b"\0body")])
    [record] = outbox.peek(1, 1)
    assert (record.sequence, record.priority, record.stream) == (sequence, 3, "Fährt")
    assert (record.manifest, record.body, record.outbox) == (MANIFEST, b"\0body", outbox.id)


def test_sequences_are_never_given_twice_not_even_after_all_were_acknowledged(tmp_path):
    with Outbox(tmp_path) as outbox:
        outbox.ack(outbox.append([new(), new()]))
    with Outbox(tmp_path) as outbox:
        assert outbox.append([new()]) == [3]


def test_a_cursor_is_kept_with_the_records_it_was_committed_with(tmp_path):
    with Outbox(tmp_path) as outbox:
        assert outbox.cursor("log") is None
        outbox.append([new()], ("log", b"17"))
        outbox.append([], ("log", b"18"))
    with Outbox(tmp_path) as outbox:
        assert outbox.cursor("log") == b"18"
        assert outbox.stats().records == 1


def test_the_id_stays_the_same_and_is_another_one_for_another_outbox(tmp_path):
    with Outbox(tmp_path / "a") as outbox:
        first = outbox.id
    with Outbox(tmp_path / "a") as again, Outbox(tmp_path / "b") as other:
        assert again.id == first != other.id
        assert len(first) == 16


def test_a_place_that_cannot_hold_an_outbox_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        Outbox(tmp_path / "file")
    with pytest.raises(InputError, match="too small"):
        Outbox(tmp_path / "new", 1000)


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, OutboxError), (errno.ENOSPC, OutboxFull)])
@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_disk_that_fails_while_an_outbox_is_made_is_an_error_of_ours_and_the_next_start_goes_on(
    tmp_path, monkeypatch, call, number, kind
):
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(kind, match=os.strerror(number)):
            Outbox(tmp_path)
    with Outbox(tmp_path) as outbox:
        assert outbox.append([new()]) == [1]


# Quota and ledger


def test_at_the_quota_the_least_important_and_oldest_go_and_the_ledger_says_so(tmp_path):
    with Outbox(tmp_path, MIN_QUOTA_BYTES) as outbox:
        kept = outbox.append([new(bytes(50_000), priority=1) for _ in range(10)])
        sent = [outbox.append([new(bytes(50_000), 7, f"s{i % 2}")])[0] for i in range(200)]
        left = list(drain(outbox))
        assert left[:10] == kept
        assert left[10:] == sent[-len(left[10:]) :]
        gone = outbox.ledger()
        assert {(entry.stream, entry.reason, entry.outbox) for entry in gone} == {
            ("s0", "quota", outbox.id),
            ("s1", "quota", outbox.id),
        }
        assert sum(entry.count for entry in gone) == 210 - len(left) == outbox.stats().evicted
        assert min(entry.first_sequence for entry in gone) == sent[0]
        assert max(entry.last_sequence for entry in gone) == left[10] - 1
    assert (tmp_path / "outbox.db").stat().st_size <= MIN_QUOTA_BYTES


def test_a_new_record_less_important_than_all_others_at_the_quota_is_itself_evicted_and_the_cursor_moves(tmp_path):
    with Outbox(tmp_path, MIN_QUOTA_BYTES) as outbox:
        while outbox.stats().evicted == 0:
            outbox.append([new(bytes(100_000), priority=1)])
        before = outbox.stats()
        [sequence, important] = outbox.append([new(bytes(100_000), 2, "late"), new(b"", 0)], ("log", b"end"))
        assert outbox.cursor("log") == b"end"
        assert [entry.first_sequence for entry in outbox.ledger() if entry.stream == "late"] == [sequence]
        assert outbox.peek(10, 1)[0].sequence == important
        assert outbox.stats().evicted == before.evicted + 1
        assert outbox.append([new()]) == [important + 1]


def test_a_ledger_entry_does_not_change_once_handed_out_and_goes_when_forgotten(outbox):
    outbox.append([new() for _ in range(6)])
    outbox.evict(1)
    outbox.evict(1)
    [entry] = outbox.ledger()
    assert (entry.first_sequence, entry.last_sequence, entry.count) == (1, 2, 2)
    outbox.evict(1, reason="expired")
    outbox.evict(1)
    assert outbox.ledger()[0] == entry
    assert [(entry.first_sequence, entry.reason) for entry in outbox.ledger()] == [
        (1, "quota"),
        (3, "expired"),
        (4, "quota"),
    ]
    outbox.ack([], entries=[entry.id])
    assert len(outbox.ledger()) == 2


def test_records_set_aside_are_in_the_ledger_and_in_the_queue_no_more(outbox):
    outbox.append([new(), new(), new()])
    outbox.set_aside([2], "rejected", "too large for anyone")
    assert list(drain(outbox)) == [1, 3]
    [entry] = outbox.ledger()
    assert (entry.first_sequence, entry.count, entry.reason) == (2, 1, "rejected")


def test_records_can_be_set_aside_at_the_quota_where_there_is_no_room_for_copies(tmp_path):
    with Outbox(tmp_path, MIN_QUOTA_BYTES) as outbox:
        while outbox.stats().evicted == 0:
            outbox.append([new(bytes(200_000))])
        waiting = [record.sequence for record in outbox.peek(1 << 30, 1000)]
        for sequence in waiting:
            outbox.set_aside([sequence], "rejected")
        assert outbox.stats().records == 0
        outbox.append([new(bytes(200_000))])
        assert outbox.stats().records == 1


# Two processes


def test_the_other_one_sees_what_was_appended_and_that_something_has(tmp_path):
    with Outbox(tmp_path) as collector, Outbox(tmp_path) as uplink:
        assert not uplink.changed()
        collector.append([new()])
        assert uplink.changed()
        assert not uplink.changed()
        assert len(uplink.peek(100, 10)) == 1


@pytest.mark.process
def test_two_processes_append_and_acknowledge_at_the_same_time(tmp_path):
    writer = _child(tmp_path, "for i in range(300): outbox.append([NewRecord(i % 3, 's', bytes(32), b'%d' % i)])")
    delivered: dict[int, bytes] = {}
    with Outbox(tmp_path) as outbox:
        while writer.poll() is None or outbox.stats().records:
            delivered |= drain(outbox)
    assert writer.returncode == 0
    assert sorted(int(body) for body in delivered.values()) == list(range(300))


# Kills


@pytest.mark.process
def test_a_kill_while_appending_loses_nothing_acknowledged_and_the_cursor_agrees_with_the_records(tmp_path):
    seed = random.Random(4)
    done = 0
    for _ in range(6):
        writer = _child(
            tmp_path,
            """
            n = int(outbox.cursor('log') or 0)
            while True:
                batch = [NewRecord(n % 2, 's', bytes(32), b'%d ' % (n + i) * 200) for i in range(n % 4 + 1)]
                outbox.append(batch, ('log', b'%d' % (n + len(batch))))
                n += len(batch)
                print(n, flush=True)
            """,
        )
        assert writer.stdout
        for _ in range(seed.randrange(1, 40)):
            acknowledged = int(writer.stdout.readline())
        threading.Timer(seed.random() / 500, writer.kill).start()
        assert writer.wait() == -signal.SIGKILL
        acknowledged = int([str(acknowledged), *writer.stdout.read().split()][-1])
        with Outbox(tmp_path) as outbox:
            cursor = int(outbox.cursor("log") or 0)
            assert cursor >= acknowledged > done
            delivered = sorted(int(body.split()[0]) for body in drain(outbox).values())
            assert delivered == list(range(done, cursor))
            done = cursor


def _child(folder: Path, script: str) -> "subprocess.Popen[str]":
    lines = "\n    ".join(line[12:] if line.startswith(" " * 12) else line for line in script.splitlines())
    code = f"from edge.outbox import *\nwith Outbox({str(folder)!r}) as outbox:\n    {lines}"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


# Corruption


def test_a_flipped_bit_in_a_body_costs_that_record_and_is_in_the_ledger(tmp_path):
    bodies = [bytes([65 + i]) * 20_000 for i in range(10)]
    with Outbox(tmp_path) as outbox:
        outbox.append([new(body) for body in bodies])
    file = tmp_path / "outbox.db"
    content = bytearray(file.read_bytes())
    content[content.index(b"D" * 4000) + 2] ^= 0x10
    file.write_bytes(content)
    with Outbox(tmp_path) as outbox:
        assert list(drain(outbox)) == [1, 2, 3, 5, 6, 7, 8, 9, 10]
        [entry] = outbox.ledger()
        assert (entry.first_sequence, entry.count, entry.reason, entry.stream) == (4, 1, "corrupt", "drive")


def test_flipped_bits_anywhere_never_deliver_a_wrong_record_and_never_stop_the_outbox(tmp_path):
    seed = random.Random(11)
    bodies = {i + 1: seed.randbytes(seed.choice((60, 900, 7000))) for i in range(60)}
    with Outbox(tmp_path) as outbox:
        first_id = outbox.id
        for sequence, body in bodies.items():
            outbox.append([new(body, sequence % 3, "s" * 20)], ("log", b"%d" % sequence))
    clean = (tmp_path / "outbox.db").read_bytes()
    (tmp_path / "outbox.ballast").unlink()
    losses = 0
    for round_ in range(120):
        # All over the file, and more often in the first pages: header, schema, meta, tops of the trees.
        content = bytearray(clean)
        for _ in range(3):
            at = seed.randrange(len(clean) if round_ % 2 else 12 * 4096)
            content[at] ^= 1 << seed.randrange(8)
        folder = tmp_path / str(round_)
        folder.mkdir()
        (folder / "outbox.db").write_bytes(content)
        if round_ % 3 == 0:
            (folder / "outbox.db-wal").touch()  # an unclean stop: the file is checked on opening
        with Outbox(folder) as outbox:
            delivered = drain(outbox)
            assert delivered.items() <= bodies.items()
            missing = bodies.keys() - delivered.keys()
            told = outbox.ledger()
            explained = all(any(e.first_sequence <= s <= e.last_sequence for e in told) for s in missing)
            assert explained or (outbox.id != first_id and not delivered)  # not even its name could be read
            losses += len(missing)
            assert outbox.append([new(b"next")])[0] > max(delivered, default=0)
            assert list(drain(outbox).values()) == [b"next"]
    assert 0 < losses < 120 * 15


def test_a_salvaged_outbox_has_a_new_id_and_its_records_keep_the_old_one(tmp_path):
    with Outbox(tmp_path) as outbox:
        old = outbox.id
        outbox.append([new(b"%d" % i) for i in range(5)], ("log", b"5"))
        outbox.ack([1])
    (tmp_path / "outbox.suspect").touch()
    with Outbox(tmp_path) as outbox:
        assert outbox.id != old
        assert outbox.cursor("log") == b"5"
        assert {record.outbox for record in outbox.peek(1000, 10)} == {old}
        assert outbox.append([new()]) == [6]
        told = {(entry.outbox, entry.first_sequence, entry.last_sequence) for entry in outbox.ledger()}
        assert told == {(old, 1, 5), (outbox.id, 1, 5)}
        assert sorted(drain(outbox)) == [2, 3, 4, 5, 6]
    assert (tmp_path / "outbox.corrupt").exists()


def test_a_second_salvage_says_that_records_of_the_first_outbox_may_be_lost(tmp_path):
    with Outbox(tmp_path) as outbox:
        first = outbox.id
        outbox.append([new(b"record %d " % n + bytes(3000)) for n in range(20)])
    (tmp_path / "outbox.suspect").touch()
    with Outbox(tmp_path) as outbox:
        outbox.ack([], entries=[entry.id for entry in outbox.ledger()])
        outbox.append([new()])
    content = bytearray((tmp_path / "outbox.db").read_bytes())
    page = content.index(b"record 7 ") // 4096 * 4096
    content[page : page + 4096] = bytes(4096)
    (tmp_path / "outbox.db").write_bytes(content)
    (tmp_path / "outbox.suspect").touch()
    with Outbox(tmp_path) as outbox:
        told = {(entry.outbox, entry.first_sequence, entry.last_sequence) for entry in outbox.ledger()}
        assert (first, 1, 20) in told
        assert sum(entry.count for entry in outbox.ledger()) == 20 + 1 - len(drain(outbox)) > 0


def test_a_file_that_is_no_database_any_more_is_put_aside_and_a_new_outbox_begun(tmp_path):
    with Outbox(tmp_path) as outbox:
        outbox.append([new()])
    (tmp_path / "outbox.db").write_bytes(bytes(8192))
    with Outbox(tmp_path) as outbox:
        assert outbox.append([new(b"next")])
        assert list(drain(outbox).values()) == [b"next"]


@pytest.mark.process
def test_when_one_process_meets_a_corruption_the_other_lets_go_and_both_go_on(tmp_path):
    code = (
        "print('open', flush=True)\n            while outbox.stats().records: pass\n            print(outbox.id.hex())"
    )
    with Outbox(tmp_path) as outbox:
        outbox.append([new(b"%d" % i) for i in range(5)])
        reader = _child(tmp_path, code)
        assert reader.stdout
        reader.stdout.readline()
        (tmp_path / "outbox.suspect").touch()
        assert sorted(drain(outbox)) == [1, 2, 3, 4, 5]
        assert reader.stdout.readline().strip() == outbox.id.hex()
        assert reader.wait() == 0


@pytest.mark.parametrize("page", [bytes(4096), b"\xff" * 4096])
def test_an_outbox_whose_first_page_is_lost_keeps_its_records_and_its_cursors(tmp_path, page):
    with Outbox(tmp_path) as outbox:
        before = outbox.id
        outbox.append([new(b"%d" % n + bytes(3000)) for n in range(50)], ("log", b"50"))
        outbox.ack([1, 2])
    with (tmp_path / "outbox.db").open("r+b") as file:
        file.write(page)
    with Outbox(tmp_path) as outbox:
        assert {record.outbox for record in outbox.peek(1 << 20, 50)} == {before}
        assert sorted(drain(outbox)) == list(range(3, 51))
        assert outbox.cursor("log") == b"50"
        assert outbox.append([new()]) == [51]


def _stopped(folder: Path, copy: Path, bodies: list[bytes]) -> bytes:
    """An outbox with one transaction for each body, as a power cut leaves it; returns its id."""
    with Outbox(folder) as outbox:
        for body in bodies:
            outbox.append([new(body)])
        copy.mkdir()
        for name in ("outbox.db", "outbox.db-wal"):
            (copy / name).write_bytes((folder / name).read_bytes())
        return outbox.id


@pytest.mark.parametrize("where", ["a body", "a frame", "the header"])
def test_a_flipped_bit_in_the_log_costs_one_record_at_most_and_not_all_that_was_committed_behind_it(tmp_path, where):
    bodies = [b"%d" % n + bytes(3000) + b"end" for n in range(10)]
    _stopped(tmp_path / "outbox", tmp_path / "copy", bodies)
    log = tmp_path / "copy" / "outbox.db-wal"
    content = bytearray(log.read_bytes())
    body = content.index(bodies[3])
    at = {"a body": body + 100, "a frame": 32 + (body - 32) // 4120 * 4120 + 17, "the header": 20}[where]
    content[at] ^= 1
    log.write_bytes(content)
    with Outbox(tmp_path / "copy") as outbox:
        [lost] = [entry for entry in outbox.ledger() if entry.reason == "corrupt"]
        delivered = drain(outbox)
        assert delivered == {n + 1: body for n, body in enumerate(bodies) if n != 3 or where != "a body"}
        assert lost.count == len(bodies) - len(delivered)
        assert outbox.append([new()]) == [11]


@pytest.mark.parametrize("where", ["a frame", "the header"])
def test_damage_in_a_log_that_the_database_is_ahead_of_costs_nothing_that_was_committed_behind_it(tmp_path, where):
    """It was copied back, all of it or a part, so the database says that it has more pages than can be found."""
    bodies = [b"%d" % n + bytes(3000) for n in range(20)]
    folder, copy = tmp_path / "outbox", tmp_path / "copy"
    with Outbox(folder) as outbox, closing(apsw.Connection(str(folder / "outbox.db"))) as db:
        outbox.append([], ("log", b"0"))  # without the first page, which says how long the database is
        log, pages = folder / "outbox.db-wal", folder / "outbox.db"
        behind, before = log.stat().st_size, pages.stat().st_size
        for body in bodies:
            outbox.append([new(body)])
        db.execute("SELECT * FROM totals").fetchall()  # else it knows of no log
        assert db.wal_checkpoint() > (0, 0)
        content, database = bytearray(log.read_bytes()), pages.read_bytes()
    if where == "a frame":
        content[behind : behind + 4120] = bytes(4120)
    else:
        content[24] ^= 1  # of its own checksum
        database = database[:before]
    copy.mkdir()
    (copy / "outbox.db").write_bytes(database)
    (copy / "outbox.db-wal").write_bytes(content)
    with Outbox(copy) as outbox:
        assert drain(outbox) == {n + 1: body for n, body in enumerate(bodies)}


def test_the_torn_end_of_a_log_is_no_damage(tmp_path):
    before = _stopped(tmp_path / "outbox", tmp_path / "copy", [b"%d" % n for n in range(5)])
    log = tmp_path / "copy" / "outbox.db-wal"
    content = bytearray(log.read_bytes())
    content[-2 * 4120 + 500] ^= 1  # in the last transaction
    log.write_bytes(content)
    with Outbox(tmp_path / "copy") as outbox:
        assert outbox.id == before
        assert sorted(drain(outbox)) == [1, 2, 3, 4]
        assert not outbox.ledger()


def test_what_an_older_log_has_left_behind_a_torn_end_is_no_damage_either(tmp_path):
    """The first frame of the last transaction is lost, the others are there; where it was, lies an old commit."""
    log, database = tmp_path / "outbox" / "outbox.db-wal", tmp_path / "outbox" / "outbox.db"
    with Outbox(tmp_path / "outbox") as outbox:
        before = outbox.id
        for n in range(1, 1000):
            kept, old = database.read_bytes(), log.read_bytes()
            outbox.append([new(b"%d" % n + bytes(n % 7 * 900))])
            now = log.read_bytes()
            at = next((at for at in range(32, len(old), 4120) if old[at : at + 4120] != now[at : at + 4120]), None)
            if (
                n > 100
                and at
                and at > 32
                and any(old[at + 4 : at + 8])
                and old[at + 8 : at + 16] != now[at + 8 : at + 16]
            ):
                break
        else:
            pytest.fail("the log never began again")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "outbox.db").write_bytes(kept)
    (tmp_path / "copy" / "outbox.db-wal").write_bytes(now[:at] + old[at : at + 4120] + now[at + 4120 :])
    with Outbox(tmp_path / "copy") as outbox:
        assert outbox.id == before
        assert sorted(drain(outbox)) == list(range(1, n))


def test_a_log_whose_database_is_gone_does_not_keep_an_outbox_from_beginning_anew(tmp_path):
    before = _stopped(tmp_path / "outbox", tmp_path / "copy", [b"1", b"2"])
    (tmp_path / "copy" / "outbox.db").unlink()
    with Outbox(tmp_path / "copy") as outbox:
        assert outbox.id != before
        assert outbox.append([new(b"next")]) == [1]
        assert drain(outbox) == {1: b"next"}


@pytest.mark.parametrize(
    "damage", ["stream = NULL", "count = 'x'", "first_sequence = last_sequence + 1", "outbox = x'00'"]
)
def test_a_damaged_entry_of_the_ledger_stops_nobody(tmp_path, damage):
    with Outbox(tmp_path) as outbox:
        outbox.append([new(), new(), new()])
        outbox.evict(1)
        outbox.set_aside([2], "rejected")
    with closing(apsw.Connection(str(tmp_path / "outbox.db"))) as db:
        db.execute(f"UPDATE ledger SET {damage} WHERE reason = 'quota'")
    with Outbox(tmp_path) as outbox:
        assert "rejected" in {entry.reason for entry in outbox.ledger()}
        assert list(drain(outbox)) == [3]


# Full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """12 MB, and so far below the outbox's quota."""
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(tmp_path)], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"a small disk needs the right to mount: {mount.stderr.strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_on_a_full_disk_nothing_wedges_and_all_goes_on_once_there_is_room(small_disk):
    hog = small_disk / "hog"
    with Outbox(small_disk / "outbox") as outbox:
        outbox.append([new(bytes(20_000)) for _ in range(50)])
        _fill(hog)
        stored = 50
        full = 0
        for _ in range(300):  # the ballast goes, then the oldest records
            try:
                outbox.append([new(bytes(20_000))])
                stored += 1
            except OutboxFull:
                full += 1
        _fill(hog)
        assert stored + full == 350
        stats = outbox.stats()
        waiting = outbox.peek(1 << 30, 10_000)
        assert len(waiting) == stats.records == stored - stats.evicted > 0
        outbox.ack([record.sequence for record in waiting[:20]])
        hog.unlink()
        outbox.append([new(b"next")])
        assert len(drain(outbox)) == stats.records - 20 + 1
        assert sum(entry.count for entry in outbox.ledger()) == stats.evicted


def test_an_outbox_can_be_opened_and_drained_on_a_full_disk(small_disk):
    with Outbox(small_disk / "outbox") as outbox:
        outbox.append([new(bytes(20_000)) for _ in range(50)])
    _fill(small_disk / "hog")
    with Outbox(small_disk / "outbox") as outbox:
        assert len(drain(outbox)) == 50


def _fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def test_an_outbox_that_is_closed_says_so_also_where_another_process_marks_it(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.close()
    (tmp_path / "outbox.suspect").touch()
    with pytest.raises(OutboxError, match="is closed"):
        outbox.cursor("source")
    outbox.close()
