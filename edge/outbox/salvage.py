"""Making an outbox's database file, checking it after an unclean stop, and saving what is intact of a corrupted one.

    nothing there ──► draft ──► outbox.db
    corrupted     ──► draft, with every record that proves intact ──► outbox.salvaged ──► outbox.db
                      the old file stays as outbox.corrupt

All of it is done by a process that is alone in the directory, can be cut anywhere, and is then done again.
"""
# ruff: noqa: S608 (queries are put together from constants)

import fcntl
import itertools
import logging
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import apsw

from edge.errors import OutboxError
from edge.outbox import database
from edge.outbox.database import CORRUPT
from edge.outbox.files import Files, try_lock
from edge.outbox.records import PAGE_BYTES, record_of

log = logging.getLogger(__name__)

OPEN_SECONDS = 30.0
CHECK_SECONDS = 0.1  # for quick_check; with a large file it goes on beside the work, the records have checksums


def enter(lock: int, files: Files, quota_bytes: int) -> bool:
    """Hold the lock shared, with a database in place. Who is alone makes, checks or salvages it first.

    False: it was not checked to its end. That is left to a Check.
    """
    deadline = time.monotonic() + OPEN_SECONDS
    while True:
        if try_lock(lock, fcntl.LOCK_EX):
            files.drop_ballast()
            is_checked = _prepare(files, quota_bytes)
            fcntl.flock(lock, fcntl.LOCK_SH)
            return is_checked
        if not files.suspect.exists() and try_lock(lock, fcntl.LOCK_SH):
            if files.database.exists():
                return True
            fcntl.flock(lock, fcntl.LOCK_UN)
        if time.monotonic() > deadline:
            raise OutboxError(f"{files.folder}: another process did not let go of it in {OPEN_SECONDS:.0f} s")
        time.sleep(0.02)


class Check:
    """quick_check in a thread of its own, beside the work. A corruption is marked, as by anyone who meets one."""

    def __init__(self, files: Files, quota_bytes: int) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(files, quota_bytes), name="outbox check", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self, files: Files, quota_bytes: int) -> None:
        try:
            with closing(database.connect(files.database, quota_bytes)) as db:
                db.set_progress_handler(self._stopped.is_set, 1000)
                if _is_whole(db):
                    log.info("%s: checked, and whole", files.database)
                    return
        except CORRUPT:
            pass
        except apsw.Error as error:
            log.warning("%s: not checked to its end: %s", files.database, error)
            return
        log.error("%s is corrupted", files.database)
        with suppress(OSError):
            files.suspect.touch()


def _is_whole(db: apsw.Connection) -> bool:
    return database.rows(db, "PRAGMA quick_check(1)") == [("ok",)]


def _prepare(files: Files, quota_bytes: int) -> bool:
    """False: not checked to its end."""
    is_sound: bool | None = True
    if not files.salvaged.exists():
        if not files.database.exists():
            with closing(_draft(files, os.urandom(16), quota_bytes)):
                pass
            _drop_log(files)
            files.draft.rename(files.database)
        elif files.suspect.exists() or _log_was_damaged(files) or (is_sound := _is_sound(files, quota_bytes)) is False:
            _salvage(files, quota_bytes)
    if files.salvaged.exists():
        _put_in_place(files)
    files.sync()
    return is_sound is not None


def _draft(files: Files, outbox: bytes, quota_bytes: int) -> apsw.Connection:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{files.draft}{suffix}").unlink(missing_ok=True)
    db = database.connect(files.draft, quota_bytes)
    database.make(db, outbox)
    return db


def _log_was_damaged(files: Files) -> bool:
    """What is behind the damage is made readable; what the damage has changed is for the salvage to find."""
    if not files.log.exists():
        return False
    from edge.outbox import log as wal  # needed after an unclean stop alone

    if not wal.is_damaged(files.database, files.log):
        return False
    log.error("%s is damaged before its end", files.log)
    files.suspect.touch()
    files.sync()
    wal.mend(files.log)
    return True


def _is_sound(files: Files, quota_bytes: int) -> bool | None:
    """Of the right format; after an unclean stop whole, too, or None: too large to tell at once. Raises NewerFormat."""
    unclean = files.log.exists()
    deadline = time.monotonic() + CHECK_SECONDS
    try:
        with closing(database.connect(files.database, quota_bytes)) as db:
            database.check_format(db)
            db.set_progress_handler(lambda: time.monotonic() > deadline, 1000)
            return not unclean or _is_whole(db)
    except apsw.InterruptError:
        return None
    except CORRUPT:
        return False


def _salvage(files: Files, quota_bytes: int) -> None:
    """Copy what is intact into a new outbox; a new id, because the old one's last sequences may be lost."""
    outbox = os.urandom(16)
    with closing(_draft(files, outbox, quota_bytes)) as new:
        try:
            old = _open_damaged(files, quota_bytes, new)
        except CORRUPT:
            log.error("%s is not a database any more, nothing could be salvaged", files.database)
        else:
            with closing(old):
                saved = _copy_records(old, new)
                database.transact(new, lambda: _copy_rest(old, new, outbox))
            log.error("%s is corrupted, %d records were salvaged", files.database, saved)
    files.draft.rename(files.salvaged)
    files.sync()


def _open_damaged(files: Files, quota_bytes: int, new: apsw.Connection) -> apsw.Connection:
    """Raises one of CORRUPT. Where the schema cannot be read, a first page is put there: every outbox has the same."""
    try:
        old = database.connect(files.database, quota_bytes)
        try:
            with suppress(apsw.FullError):
                database.check_format(old)
            return old
        except BaseException:
            old.close()
            raise
    except CORRUPT:
        _put_first_page(files.database, new)
        return database.connect(files.database, quota_bytes)


def _put_first_page(path: Path, new: apsw.Connection) -> None:
    """The header says how long the file is, and knows no free pages: it is only read from now on."""
    page = bytearray(new.serialize("main")[:PAGE_BYTES])
    page[28:40] = struct.pack(">3I", path.stat().st_size // PAGE_BYTES, 0, 0)
    with path.open("r+b") as file:
        file.write(page)
        file.flush()
        os.fsync(file.fileno())


def _copy_records(old: apsw.Connection, new: apsw.Connection) -> int:
    """Every record that can still be read, found by the index and from both ends of the table."""
    orders = ("NOT INDEXED ORDER BY sequence", "NOT INDEXED ORDER BY sequence DESC", "INDEXED BY queue")
    found = {row[0] for order in orders for row in _readable(old, f"SELECT sequence FROM records {order}")}
    queue, saved = iter(sorted(sequence for sequence in found if isinstance(sequence, int))), 0
    query = f"SELECT {database.ROW} FROM records NOT INDEXED WHERE sequence = ?"
    while some := list(itertools.islice(queue, 50)):
        intact = [record for one in some for row in _readable(old, query, one) if (record := record_of(row))]
        try:
            database.transact(new, lambda: database.insert_all(new, intact))  # noqa: B023
        except apsw.FullError:
            break
        saved += len(intact)
    return saved


def _copy_rest(old: apsw.Connection, new: apsw.Connection, outbox: bytes) -> None:
    """Cursors, ledger and totals; sequences go on where the old outbox stopped."""
    for row in _readable(old, "SELECT CAST(name AS TEXT), CAST(value AS BLOB) FROM cursors"):
        new.execute("INSERT OR IGNORE INTO cursors VALUES (?, ?)", row)
    for entry in _readable(old, f"SELECT {database.ENTRY}, CAST(taken AS INT) FROM ledger"):
        if database.is_entry(entry[:-1]):
            new.execute("INSERT OR IGNORE INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", entry)
    newest = database.rows(new, "SELECT sequence, outbox FROM records ORDER BY sequence DESC LIMIT 1")
    last, old_id = newest[0] if newest else (0, None)
    with suppress(*CORRUPT):
        old_id = database.id_of(old)
    lost = 0
    for waiting, evicted, seq, age in _readable(old, "SELECT records, evicted, last_sequence, age_s FROM totals"):
        if all(isinstance(number, int) for number in (waiting, evicted, seq, age)):
            last = max(last, seq)
            lost = max(0, waiting - database.value(new, "SELECT records FROM totals"))
            new.execute("UPDATE totals SET evicted = ?, age_s = ?", (evicted, age))
    database.set_sequence(new, last)
    if old_id and last:
        new.execute("INSERT INTO meta VALUES ('previous', ?)", (old_id,))
        database.enter_entry(new, old_id, b"", "corrupt", 1, last, lost)
        database.enter_entry(new, outbox, b"", "salvage", 1, last, 0)
        for older, end in _older(old, new, old_id, last):  # some of the lost ones may be theirs
            database.enter_entry(new, older, b"", "corrupt", 1, end, 0)
        new.execute("UPDATE totals SET evicted = evicted + ?", (lost,))


def _older(old: apsw.Connection, new: apsw.Connection, old_id: bytes, last: int) -> Iterator[tuple[bytes, int]]:
    """Outboxes before the corrupted one whose records it still held, and where theirs ended at the latest."""
    first = database.value(new, "SELECT min(sequence) FROM records WHERE outbox = ?", old_id)
    held = {row[0] for row in database.rows(new, "SELECT DISTINCT outbox FROM records")}
    held |= {row[0] for row in _readable(old, "SELECT CAST(value AS BLOB) FROM meta WHERE name = 'previous'")}
    for older in sorted(held - {old_id}):
        if len(older) == 16:
            yield older, first - 1 if first else last


def _readable(db: apsw.Connection, query: str, *bindings: Any) -> Iterator[tuple[Any, ...]]:
    """Rows up to the first one that cannot be read."""
    with suppress(apsw.Error, UnicodeDecodeError), closing(db.execute(query, bindings)) as found:
        yield from found


def _put_in_place(files: Files) -> None:
    """Finish a salvage. Can be cut anywhere and done again."""
    _drop_log(files)
    with suppress(FileNotFoundError):
        files.database.replace(files.corrupt)
    files.sync()
    files.salvaged.replace(files.database)
    files.sync()
    files.suspect.unlink(missing_ok=True)


def _drop_log(files: Files) -> None:
    """An old log must never meet a new database."""
    files.log.unlink(missing_ok=True)
    files.index.unlink(missing_ok=True)
    files.sync()
