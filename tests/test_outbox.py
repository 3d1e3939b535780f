"""The outbox's contract: what was appended is delivered until acknowledged, or the ledger says why not."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

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
    writer = child(tmp_path, "for i in range(300): outbox.append([NewRecord(i % 3, 's', bytes(32), b'%d' % i)])")
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
        writer = child(
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


def child(folder: Path, script: str) -> "subprocess.Popen[str]":
    lines = "\n    ".join(line[12:] if line.startswith(" " * 12) else line for line in script.splitlines())
    code = f"from edge.outbox import *\nwith Outbox({str(folder)!r}) as outbox:\n    {lines}"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_an_outbox_that_is_closed_says_so_also_where_another_process_marks_it(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.close()
    (tmp_path / "outbox.suspect").touch()
    with pytest.raises(OutboxError, match="is closed"):
        outbox.cursor("source")
    outbox.close()
