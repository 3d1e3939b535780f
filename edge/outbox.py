"""The outbox: the durable queue between the collector and the uplink, a directory both have open.

    collector ── append(records, cursor) ──►  outbox.db  ──► peek, then ack or set_aside ── uplink
                 durable when it returns      (SQLite, WAL)  what the cloud acknowledged is forgotten

Promised, also across kills and power cuts: what append returned for is delivered by peek until it is
acknowledged, or the ledger says why not; a cursor is committed with its records; a sequence never repeats; a
record whose CRC32C does not match is set aside, never delivered; a corrupted file is salvaged. At the quota
the least important, oldest records go; on a full disk append raises OutboxFull, and goes on once there is
room. One connection in each process, for one thread at a time. Schema and files: docs/formats/outbox.md.
"""
# ruff: noqa: S608 (queries are put together from constants of this file)

import fcntl
import itertools
import logging
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import apsw
import msgspec

from cy_core.crc32c import crc32c
from edge.errors import InputError, OutboxCorrupt, OutboxError, OutboxFull

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 250 * 1024  # so that a record always fits into one message of 255 KiB
MIN_QUOTA_BYTES = 4 << 20
DEFAULT_QUOTA_BYTES = 512 << 20
BALLAST_BYTES = 1 << 20
PAGE_BYTES = 4096
LOG_PAGES = 200  # then the log is copied back into the database, which may make it longer: less than the ballast
BUSY_MS = 10_000
OPEN_SECONDS = 30.0
CHECK_SECONDS = 10.0  # for quick_check; the records have their own checksums
QUARANTINE_RECORDS = 64
PRIORITIES = 256

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE records (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, priority INTEGER, size INTEGER, crc INTEGER,
    outbox BLOB, stream BLOB, manifest BLOB, body BLOB);
CREATE INDEX queue ON records (priority, sequence, size);
CREATE TABLE quarantine (
    id INTEGER PRIMARY KEY AUTOINCREMENT, reason TEXT, detail TEXT, time_us INTEGER,
    sequence INTEGER, priority INTEGER, crc INTEGER, outbox BLOB, stream BLOB, manifest BLOB, body BLOB);
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY AUTOINCREMENT, outbox BLOB, first_sequence INTEGER, last_sequence INTEGER,
    count INTEGER, stream BLOB, reason TEXT, time_us INTEGER, taken INTEGER DEFAULT 0);
CREATE TABLE cursors (name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE totals (records INTEGER, bytes INTEGER, evicted INTEGER, last_sequence INTEGER);
INSERT INTO totals VALUES (0, 0, 0, 0);
CREATE TRIGGER stored AFTER INSERT ON records BEGIN
    UPDATE totals SET records = records + 1, bytes = bytes + new.size, last_sequence = new.sequence; END;
CREATE TRIGGER removed AFTER DELETE ON records BEGIN
    UPDATE totals SET records = records - 1, bytes = bytes - old.size; END;
"""
# The casts keep a flipped type from reaching Python as text that is not UTF-8.
OWNER = "sequence, CAST(outbox AS BLOB), CAST(stream AS BLOB)"
ROW = f"{OWNER}, CAST(priority AS INT), CAST(manifest AS BLOB), CAST(body AS BLOB), CAST(crc AS INT)"
_HEAD = struct.Struct("<16sQBH")

# Queries are constants: what SQLite does not understand is its own schema.
CORRUPT = (apsw.CorruptError, apsw.NotADBError, apsw.SQLError, apsw.ConstraintError, UnicodeDecodeError)

T = TypeVar("T")


class NewRecord(msgspec.Struct, frozen=True):
    """What the collector stores: priority 0 (sent first) to 255, stream (campaign), manifest hash, block."""

    priority: int
    stream: str
    manifest: bytes
    body: bytes


class Record(msgspec.Struct, frozen=True):
    """A stored record. (outbox, sequence) names it for ever; outbox is another id only after a salvage."""

    sequence: int
    priority: int
    stream: str
    manifest: bytes
    body: bytes
    outbox: bytes


class LedgerEntry(msgspec.Struct, frozen=True):
    """count records of a stream, all with sequences first..last, left the outbox unsent; time_us is UTC."""

    id: int
    outbox: bytes
    first_sequence: int
    last_sequence: int
    count: int
    stream: str
    reason: str
    time_us: int


class Stats(msgspec.Struct, frozen=True):
    """records and bytes (of bodies) now waiting; evicted counts all records ever entered in the ledger."""

    records: int
    bytes: int
    evicted: int


class Outbox:
    """Open the outbox in a directory, and make it there if there is none.

    quota_bytes bounds the database file. The log (1 MiB and the largest append), the ballast (1 MiB) and, after a
    corruption, the file put aside come on top. Raises InputError (place or quota), OutboxError.
    """

    def __init__(self, path: Path | str, quota_bytes: int = DEFAULT_QUOTA_BYTES) -> None:
        if quota_bytes < MIN_QUOTA_BYTES:
            raise InputError("outbox quota", f"{quota_bytes} bytes is too small", f"give at least {MIN_QUOTA_BYTES}")
        self._files = _Files(Path(path))
        self._quota_bytes = quota_bytes
        self._ballast_due = 0.0
        self._lock = self._files.open_lock()
        try:
            self._open()
        except BaseException:
            os.close(self._lock)
            raise
        self._keep_ballast()

    def _open(self) -> None:
        try:
            self._enter()
        except OutboxCorrupt as error:  # now marked: the second time it is salvaged
            log.error("%s", error)
            self._enter()

    def _enter(self) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        with _translated(self._files):
            _enter(self._lock, self._files, self._quota_bytes)
            self._db = _connect(self._files.database, self._quota_bytes)
            _check_schema(self._db)
            self._may_grow = True
            self.id = _id_of(self._db)
            self._ids = {self.id, _value(self._db, "SELECT value FROM meta WHERE name = 'previous'")}
            self._version = _value(self._db, "PRAGMA data_version")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close; the last one out folds the log into the database, which marks a clean stop."""
        with suppress(apsw.Error):
            self._db.close()
        with suppress(OSError):
            os.close(self._lock)

    # The collector's side

    def append(self, records: Sequence[NewRecord], cursor: tuple[str, bytes] | None = None) -> list[int]:
        """Store records, and the cursor (name, value) with them, in one transaction; return their sequences.

        Durable when it returns. At the quota the least important, oldest records make room; those may be the
        new ones: they get a sequence and an entry in the ledger, too. Raises OutboxFull (the disk is full;
        nothing was stored), ValueError (a record out of bounds), OutboxError.
        """
        for record in records:
            _check_bounds(record)
        need = sum(len(record.body) + PAGE_BYTES for record in records)
        refused = PRIORITIES  # records of this priority and less important ones
        while True:
            try:
                return self._write(lambda: self._insert(records, cursor, refused))  # noqa: B023
            except OutboxFull:
                least = max((record.priority for record in records if record.priority < refused), default=None)
                if least is None or self._read(self._room_bytes) > 4 * need:
                    raise  # it is not for the quota: evicting more would not help
                if not self.evict(need, least):
                    refused = least
                need *= 2

    def cursor(self, name: str) -> bytes | None:
        """The cursor last committed under this name."""
        value: bytes | None = self._read(lambda: _value(self._db, "SELECT value FROM cursors WHERE name = ?", name))
        return value

    def evict(self, need_bytes: int, least: int = 0, reason: str = "quota") -> int:
        """Remove records of priority `least` or less important until need_bytes are free; return how many.

        Least important first, oldest first; in the ledger in the same transaction. A record counts as its
        body and a page.
        """
        return self._write(lambda: self._evict(need_bytes, least, reason))

    # The uplink's side

    def changed(self) -> bool:
        """Whether the other process has committed anything since the last call; costs microseconds."""
        before, self._version = self._version, self._read(lambda: _value(self._db, "PRAGMA data_version"))
        return bool(before != self._version)

    def peek(self, limit_bytes: int, limit_records: int, after: Mapping[int, int] | None = None) -> list[Record]:
        """The records to send next: most important first, oldest first within a priority.

        As many as limit_bytes of bodies hold, but one at least. after[priority] is the last sequence the
        caller already has of that priority. Corrupted records are set aside and entered in the ledger.
        """
        found, corrupt = self._read(lambda: self._peek(limit_bytes, limit_records, after or {}))
        if corrupt:
            log.error("%d corrupted records set aside, the first is sequence %d", len(corrupt), corrupt[0])
            with suppress(OutboxFull):  # the next peek tries again
                self.set_aside(corrupt, "corrupt", "checksum does not match")
        return found

    def ack(self, sequences: Iterable[int]) -> None:
        """Forget records that the cloud has."""
        rows = [(sequence,) for sequence in sequences]
        self._write(lambda: self._db.executemany("DELETE FROM records WHERE sequence = ?", rows))
        self._keep_ballast()

    def set_aside(self, sequences: Sequence[int], reason: str, detail: str = "") -> None:
        """Take records that cannot be sent out of the queue; the newest 64 are kept for a look."""
        try:
            self._write(lambda: self._set_aside(sequences, reason, detail, keep=True))
        except OutboxFull:  # no room for copies
            self._write(lambda: self._set_aside(sequences, reason, detail, keep=False))

    def ledger(self, limit: int = 100) -> list[LedgerEntry]:
        """The oldest entries. They do not change once handed out, so sending one twice is harmless."""
        fresh = self._read(lambda: _value(self._db, "SELECT 1 FROM ledger WHERE taken = 0"))
        return (self._write if fresh else self._read)(lambda: self._take_ledger(limit))

    def forget_evictions(self, ids: Iterable[int]) -> None:
        """Remove ledger entries that the cloud has."""
        rows = [(entry,) for entry in ids]
        self._write(lambda: self._db.executemany("DELETE FROM ledger WHERE id = ?", rows))

    def stats(self) -> Stats:
        """From kept totals: no scan."""
        return self._read(lambda: Stats(*_rows(self._db, "SELECT records, bytes, evicted FROM totals")[0]))

    # Inside transactions

    def _insert(self, records: Sequence[NewRecord], cursor: tuple[str, bytes] | None, refused: int) -> list[int]:
        last = _value(self._db, "SELECT last_sequence FROM totals")
        if last != (_value(self._db, "SELECT seq FROM sqlite_sequence WHERE name = 'records'") or 0):
            raise apsw.CorruptError("a sequence might be given twice")
        sequences = list(range(last + 1, last + 1 + len(records)))
        gone = []
        for sequence, new in zip(sequences, records, strict=True):
            if new.priority >= refused:
                gone.append((self.id, new.stream.encode(), sequence))
            else:
                record = Record(sequence, new.priority, new.stream, new.manifest, new.body, self.id)
                _insert_record(self._db, record)
        _enter_in_ledger(self._db, gone, "quota")
        if gone:
            _set_sequence(self._db, sequences[-1])
        if cursor is not None:
            self._db.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?)", cursor)
        return sequences

    def _evict(self, need_bytes: int, least: int, reason: str) -> int:
        query = f"SELECT {OWNER}, CAST(size AS INT) FROM records WHERE priority >= ?"
        freed, gone = 0, []
        with closing(self._db.execute(query + " ORDER BY priority DESC, sequence", (least,))) as rows:
            for sequence, outbox, stream, size in rows:
                gone.append(self._owner(sequence, outbox, stream))
                freed += (size or 0) + PAGE_BYTES
                if freed >= need_bytes:
                    break
        self._db.executemany("DELETE FROM records WHERE sequence = ?", [(sequence,) for _, _, sequence in gone])
        _enter_in_ledger(self._db, gone, reason)
        return len(gone)

    def _set_aside(self, sequences: Sequence[int], reason: str, detail: str, *, keep: bool) -> None:
        gone = []
        for sequence in sequences:
            owners = _rows(self._db, f"SELECT {OWNER} FROM records WHERE sequence = ?", sequence)
            gone += [self._owner(*owner) for owner in owners]
            if keep:
                columns = "sequence, priority, crc, outbox, stream, manifest, body"
                self._db.execute(
                    f"INSERT INTO quarantine (reason, detail, time_us, {columns})"
                    f" SELECT ?, ?, ?, {columns} FROM records WHERE sequence = ?",
                    (reason, detail, _now_us(), sequence),
                )
            self._db.execute("DELETE FROM records WHERE sequence = ?", (sequence,))
        self._db.execute(
            "DELETE FROM quarantine WHERE id IN (SELECT id FROM"
            " (SELECT id, row_number() OVER newest AS number, sum(length(body)) OVER newest AS bytes"
            " FROM quarantine WINDOW newest AS (ORDER BY id DESC)) WHERE number > ? OR bytes > ?)",
            (QUARANTINE_RECORDS, self._quota_bytes // 8),
        )
        _enter_in_ledger(self._db, gone, reason)

    def _take_ledger(self, limit: int) -> list[LedgerEntry]:
        columns = "id, outbox, first_sequence, last_sequence, count, CAST(stream AS BLOB), reason, time_us"
        rows = _rows(self._db, f"SELECT {columns} FROM ledger ORDER BY id LIMIT ?", limit)
        if rows:
            self._db.execute("UPDATE ledger SET taken = 1 WHERE id <= ? AND taken = 0", (rows[-1][0],))
        return [LedgerEntry(*row[:5], _text(row[5]), *row[6:]) for row in rows]  # type: ignore[call-arg]

    def _owner(self, sequence: int, outbox: bytes | None, stream: bytes | None) -> tuple[bytes, bytes, int]:
        """Whose a record is; a flipped bit must not make up an outbox."""
        return (outbox if outbox in self._ids else self.id, stream or b"", sequence)  # type: ignore[return-value]

    # Reading

    def _peek(self, limit_bytes: int, limit_records: int, after: Mapping[int, int]) -> tuple[list[Record], list[int]]:
        found: list[Record] = []
        corrupt: list[int] = []
        size = 0
        for row in self._queue(after):
            record = _record(row)
            if record is None:
                corrupt.append(row[0])
                continue
            size += len(record.body)
            if found and size > limit_bytes:
                break
            found.append(record)
            if len(found) >= limit_records:
                break
        if not found and not corrupt and not after:
            self._check_empty()
        return found, corrupt

    def _check_empty(self) -> None:
        """Nothing to deliver must mean nothing stored: a flipped bit can hide records without an error."""
        self._db.execute("BEGIN")  # one snapshot: the other process goes on appending
        try:
            if next(self._queue({}), None) is None and _value(self._db, "SELECT records FROM totals"):
                raise apsw.CorruptError("there are records that cannot be found")
        finally:
            self._db.execute("ROLLBACK")

    def _queue(self, after: Mapping[int, int]) -> Iterator[tuple[Any, ...]]:
        query = f"SELECT {ROW} FROM records WHERE priority = ? AND sequence > ? ORDER BY sequence"
        priority = -1
        while True:
            priority = _value(self._db, "SELECT min(priority) FROM records WHERE priority > ?", priority)
            if priority is None:
                return
            with closing(self._db.execute(query, (priority, after.get(priority, 0)))) as rows:
                yield from rows

    def _read(self, work: Callable[[], T]) -> T:
        """Run work. After a corruption, whoever met it, the outbox is opened again and salvaged by one of us.

        Sequences outlive a salvage, so that work means the same before and after.
        """
        try:
            with _translated(self._files):
                if self._files.suspect.exists():
                    raise apsw.CorruptError("another process found it corrupted")
                return work()
        except OutboxCorrupt:
            with suppress(apsw.Error):
                self._db.close()
            self._open()
        with _translated(self._files):
            return work()

    # Room

    def _write(self, work: Callable[[], T]) -> T:
        """Run work in a transaction. On a full disk the ballast is let go and work runs once more."""
        self._limit_growth()
        try:
            return self._read(lambda: _transact(self._db, work))
        except OutboxError:
            if not _drop_ballast(self._files):
                raise
            with suppress(OutboxError):  # what is in the log already needs the room first
                self._read(lambda: _rows(self._db, "PRAGMA wal_checkpoint(RESTART)"))
            return self._read(lambda: _transact(self._db, work))

    def _limit_growth(self) -> None:
        """While the disk is short of room, make do with the pages the file has; eviction frees some.

        SQLite would still take what makes the file longer into its log, and then could not copy it back.
        """
        may_grow = _free_bytes(self._files) > 2 * BALLAST_BYTES
        if may_grow != self._may_grow:
            self._may_grow = may_grow
            pages = self._quota_bytes // PAGE_BYTES if may_grow else 1  # 1: as many as there are
            self._read(lambda: _rows(self._db, f"PRAGMA max_page_count = {pages}"))

    def _room_bytes(self) -> int:
        """What can still be stored within the quota, roughly."""
        pages = [_value(self._db, f"PRAGMA {name}") for name in ("max_page_count", "page_count", "freelist_count")]
        return int(pages[0] - pages[1] + pages[2]) * PAGE_BYTES

    def _keep_ballast(self) -> None:
        """Make the ballast again once the disk has room for it many times over."""
        if time.monotonic() < self._ballast_due:
            return
        self._ballast_due = time.monotonic() + 10.0
        ballast = self._files.ballast
        if ballast.exists() or _free_bytes(self._files) < 4 * BALLAST_BYTES:
            return
        try:
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
        except OSError:
            ballast.unlink(missing_ok=True)


class _Files:
    """The files of an outbox directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "outbox.db"
        self.ballast = folder / "outbox.ballast"
        self.suspect = folder / "outbox.suspect"  # someone met a corruption: who is alone next salvages
        self.draft = folder / "outbox.draft"  # a database not yet complete
        self.salvaged = folder / "outbox.salvaged"  # complete, to take the place of the corrupted one
        self.corrupt = folder / "outbox.corrupt"

    def open_lock(self) -> int:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return os.open(self.folder / "outbox.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            problem = f"cannot hold the outbox ({error.strerror})"
            raise InputError(self.folder, problem, "bind a writable directory") from error

    def sync(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _free_bytes(files: _Files) -> int:
    disk = os.statvfs(files.folder)
    return disk.f_bavail * disk.f_frsize


def _drop_ballast(files: _Files) -> bool:
    """Give the disk its last reserve if it is full; False if it is not, or there is none."""
    if _free_bytes(files) >= BALLAST_BYTES or not files.ballast.exists():
        return False
    files.ballast.unlink(missing_ok=True)
    log.warning("disk full: let go of the ballast, %d KiB, in %s", BALLAST_BYTES // 1024, files.folder)
    return True


# Opening, checking, salvaging


def _enter(lock: int, files: _Files, quota_bytes: int) -> None:
    """Hold the lock shared, with a database in place. Who is alone makes, checks or salvages it first."""
    deadline = time.monotonic() + OPEN_SECONDS
    while True:
        if _try_lock(lock, fcntl.LOCK_EX):
            _drop_ballast(files)
            _prepare(files, quota_bytes)
            fcntl.flock(lock, fcntl.LOCK_SH)
            return
        if not files.suspect.exists() and _try_lock(lock, fcntl.LOCK_SH):
            if files.database.exists():
                return
            fcntl.flock(lock, fcntl.LOCK_UN)
        if time.monotonic() > deadline:
            raise OutboxError(f"{files.folder}: another process did not let go of it in {OPEN_SECONDS:.0f} s")
        time.sleep(0.02)


def _try_lock(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _prepare(files: _Files, quota_bytes: int) -> None:
    if not files.salvaged.exists():
        if not files.database.exists():
            with closing(_draft(files, os.urandom(16), quota_bytes)):
                pass
            files.draft.rename(files.database)
        elif files.suspect.exists() or (_log_of(files).exists() and not _is_sound(files, quota_bytes)):
            _salvage(files, quota_bytes)
    if files.salvaged.exists():
        _put_in_place(files)
    files.sync()


def _log_of(files: _Files) -> Path:
    """SQLite's write-ahead log: it stays only after an unclean stop."""
    return Path(f"{files.database}-wal")


def _draft(files: _Files, outbox: bytes, quota_bytes: int) -> apsw.Connection:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{files.draft}{suffix}").unlink(missing_ok=True)
    db = _connect(files.draft, quota_bytes)
    _transact(db, lambda: db.execute(SCHEMA))
    db.execute("INSERT INTO meta VALUES ('format', '1'), ('id', ?), ('check', ?)", (outbox, crc32c(outbox)))
    return db


def _is_sound(files: _Files, quota_bytes: int) -> bool:
    deadline = time.monotonic() + CHECK_SECONDS
    try:
        with closing(_connect(files.database, quota_bytes)) as db:
            _check_schema(db)
            db.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            return _rows(db, "PRAGMA quick_check(1)") == [("ok",)]
    except apsw.InterruptError:
        log.warning("%s: not checked to its end in %.0f s", files.database, CHECK_SECONDS)
        return True
    except CORRUPT:
        return False


def _salvage(files: _Files, quota_bytes: int) -> None:
    """Copy what is intact into a new outbox; a new id, because the old one's last sequences may be lost."""
    outbox = os.urandom(16)
    with closing(_draft(files, outbox, quota_bytes)) as new:
        try:
            old = _connect(files.database, quota_bytes)
        except CORRUPT:
            log.error("%s is not a database any more, nothing could be salvaged", files.database)
        else:
            with closing(old):
                saved = _copy_records(old, new)
                _transact(new, lambda: _copy_rest(old, new, outbox))
            log.error("%s is corrupted, %d records were salvaged", files.database, saved)
    files.draft.rename(files.salvaged)
    files.sync()


def _copy_records(old: apsw.Connection, new: apsw.Connection) -> int:
    """Every record that can still be read, found by the index and from both ends of the table."""
    orders = ("NOT INDEXED ORDER BY sequence", "NOT INDEXED ORDER BY sequence DESC", "INDEXED BY queue")
    found = {row[0] for order in orders for row in _readable(old, f"SELECT sequence FROM records {order}")}
    queue, saved = iter(sorted(sequence for sequence in found if isinstance(sequence, int))), 0
    query = f"SELECT {ROW} FROM records NOT INDEXED WHERE sequence = ?"
    while some := list(itertools.islice(queue, 50)):
        intact = [record for one in some for row in _readable(old, query, one) if (record := _record(row))]
        try:
            _transact(new, lambda: _insert_all(new, intact))  # noqa: B023
        except apsw.FullError:
            break
        saved += len(intact)
    return saved


def _copy_rest(old: apsw.Connection, new: apsw.Connection, outbox: bytes) -> None:
    """Cursors, ledger and totals; sequences go on where the old outbox stopped."""
    for table in ("cursors", "ledger"):
        for row in _readable(old, f"SELECT * FROM {table}"):
            new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    newest = _rows(new, "SELECT sequence, outbox FROM records ORDER BY sequence DESC LIMIT 1")
    last, old_id = newest[0] if newest else (0, None)
    with suppress(*CORRUPT):
        old_id = _id_of(old)
    lost = 0
    for waiting, evicted, seq in _readable(old, "SELECT records, evicted, last_sequence FROM totals"):
        if all(isinstance(number, int) for number in (waiting, evicted, seq)):
            last = max(last, seq)
            lost = max(0, waiting - _value(new, "SELECT records FROM totals"))
            new.execute("UPDATE totals SET evicted = ?", (evicted,))
    _set_sequence(new, last)
    if old_id and last:
        new.execute("INSERT INTO meta VALUES ('previous', ?)", (old_id,))
        _enter_entry(new, old_id, b"", "corrupt", 1, last, lost)
        _enter_entry(new, outbox, b"", "salvage", 1, last, 0)
        new.execute("UPDATE totals SET evicted = evicted + ?", (lost,))


def _readable(db: apsw.Connection, query: str, *bindings: Any) -> Iterator[tuple[Any, ...]]:
    """Rows up to the first one that cannot be read."""
    with suppress(apsw.Error, UnicodeDecodeError), closing(db.execute(query, bindings)) as rows:
        yield from rows


def _put_in_place(files: _Files) -> None:
    """Finish a salvage. Can be cut anywhere and done again; the old log never meets the new database."""
    _log_of(files).unlink(missing_ok=True)
    Path(f"{files.database}-shm").unlink(missing_ok=True)
    files.sync()
    with suppress(FileNotFoundError):
        files.database.replace(files.corrupt)
    files.sync()
    files.salvaged.replace(files.database)
    files.sync()
    files.suspect.unlink(missing_ok=True)


# SQLite


def _connect(path: Path, quota_bytes: int) -> apsw.Connection:
    db = apsw.Connection(str(path))
    try:
        db.set_busy_timeout(BUSY_MS)
        db.execute(
            f"PRAGMA page_size = {PAGE_BYTES}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
            f"PRAGMA secure_delete = OFF; PRAGMA wal_autocheckpoint = {LOG_PAGES};"
            f"PRAGMA journal_size_limit = {LOG_PAGES * PAGE_BYTES}; PRAGMA temp_store = MEMORY;"
            f"PRAGMA cache_size = -2000; PRAGMA max_page_count = {quota_bytes // PAGE_BYTES}"
        ).fetchall()
    except BaseException:
        db.close()
        raise
    return db


def _check_schema(db: apsw.Connection) -> None:
    """A flipped bit in the schema would change what statements mean."""
    query = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY rowid"
    with closing(apsw.Connection(":memory:")) as right:
        right.execute(SCHEMA)
        if _rows(db, query) != _rows(right, query):
            raise apsw.CorruptError("the schema is damaged")


def _transact(db: apsw.Connection, work: Callable[[], T]) -> T:
    db.execute("BEGIN IMMEDIATE")
    try:
        result = work()
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return result


@contextmanager
def _translated(files: _Files) -> Iterator[None]:
    """SQLite's errors as ours. A corruption is marked, so that every process lets go and one salvages."""
    try:
        yield
    except CORRUPT as error:
        files.suspect.touch()
        raise OutboxCorrupt(f"{files.database}: {error}") from error
    except apsw.FullError as error:
        raise OutboxFull(f"{files.database}: no room left, on the disk or under the quota") from error
    except apsw.Error as error:
        raise OutboxError(f"{files.database}: {error}") from error


def _rows(db: apsw.Connection, query: str, *bindings: Any) -> list[tuple[Any, ...]]:
    return db.execute(query, bindings).fetchall()


def _id_of(db: apsw.Connection) -> bytes:
    outbox = _value(db, "SELECT CAST(value AS BLOB) FROM meta WHERE name = 'id'") or b""
    if _value(db, "SELECT value FROM meta WHERE name = 'check'") != crc32c(outbox):
        raise apsw.CorruptError("the id is damaged")
    return bytes(outbox)


def _value(db: apsw.Connection, query: str, *bindings: Any) -> Any:
    rows = _rows(db, query, *bindings)
    return rows[0][0] if rows else None


# Records and the ledger


def _check_bounds(record: NewRecord) -> None:
    if not 0 <= record.priority < PRIORITIES:
        raise ValueError(f"priority {record.priority} is not in 0..{PRIORITIES - 1}")
    if len(record.manifest) != 32:
        raise ValueError(f"a manifest hash has 32 bytes, not {len(record.manifest)}")
    if len(record.body) > MAX_BODY_BYTES:
        raise ValueError(f"a body of {len(record.body)} bytes cannot be sent; the most is {MAX_BODY_BYTES}")
    if len(record.stream.encode()) > 255:
        raise ValueError(f"the stream name {record.stream[:40]!r}… is longer than 255 bytes")


def _insert_all(db: apsw.Connection, records: list[Record]) -> None:
    for record in records:
        _insert_record(db, record)


def _insert_record(db: apsw.Connection, record: Record) -> None:
    stream = record.stream.encode()
    crc = _checksum(record.sequence, record.outbox, stream, record.priority, record.manifest, record.body)
    row = (record.sequence, record.priority, len(record.body), crc, record.outbox, stream)
    db.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, record.manifest, record.body))


def _checksum(sequence: int, outbox: bytes, stream: bytes, priority: int, manifest: bytes, body: bytes) -> int:
    head = _HEAD.pack(outbox, sequence, priority, len(stream))
    return crc32c(body, crc32c(head + stream + manifest))


def _record(row: tuple[Any, ...]) -> Record | None:
    """The record of a row, or None if it is not what was stored."""
    sequence, outbox, stream, priority, manifest, body, crc = row
    try:
        if len(outbox) != 16 or crc != _checksum(sequence, outbox, stream, priority, manifest, body):
            return None
        return Record(sequence, priority, stream.decode(), manifest, body, outbox)
    except (TypeError, ValueError, struct.error):
        return None


def _set_sequence(db: apsw.Connection, last: int) -> None:
    db.execute("DELETE FROM sqlite_sequence WHERE name = 'records'")
    db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('records', ?)", (last,))
    db.execute("UPDATE totals SET last_sequence = ?", (last,))


def _enter_in_ledger(db: apsw.Connection, gone: list[tuple[bytes, bytes, int]], reason: str) -> None:
    """gone: (outbox, stream, sequence) of records that leave unsent."""
    for (outbox, stream), group in itertools.groupby(sorted(gone), key=lambda item: item[:2]):
        sequences = [sequence for _, _, sequence in group]
        _enter_entry(db, outbox, stream, reason, sequences[0], sequences[-1], len(sequences))
    if gone:
        db.execute("UPDATE totals SET evicted = evicted + ?", (len(gone),))


def _enter_entry(
    db: apsw.Connection, outbox: bytes, stream: bytes, reason: str, first: int, last: int, count: int
) -> None:
    """Widen the entry of the same kind unless it was handed out already, or add one."""
    same = "WHERE outbox = ? AND stream = ? AND reason = ? AND taken = 0"
    db.execute(
        "UPDATE ledger SET first_sequence = min(first_sequence, ?), last_sequence = max(last_sequence, ?),"
        f" count = count + ?, time_us = ? {same}",
        (first, last, count, _now_us(), outbox, stream, reason),
    )
    if db.changes() == 0:
        db.execute(
            "INSERT INTO ledger (outbox, first_sequence, last_sequence, count, stream, reason, time_us)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (outbox, first, last, count, stream, reason, _now_us()),
        )


def _text(stream: bytes) -> str:
    return stream.decode("utf-8", "replace")


def _now_us() -> int:
    return time.time_ns() // 1000
