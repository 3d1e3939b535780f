"""An outbox whose files the flash has damaged: what is intact is kept, what is lost is told."""

import random
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from edge.outbox import Outbox
from tests.test_outbox import child, drain, new


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
        reader = child(tmp_path, code)
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
