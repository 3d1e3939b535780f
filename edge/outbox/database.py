"""The SQLite file of an outbox: its schema, and the statements that more than one of its callers needs."""
# ruff: noqa: S608 (queries are put together from constants of this file)

import functools
import itertools
import json
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import apsw

from cy_core.crc32c import crc32c
from edge.outbox.records import PAGE_BYTES, Record

FORMAT = 2
LOG_PAGES = 200  # then the log is copied back into the database, which may make it longer: less than the ballast
BUSY_MS = 10_000

FORMAT_1 = """
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
# What format 2 adds, as statements, so that a file made new and one brought up from format 1 have the same schema.
FORMAT_2 = """
ALTER TABLE records ADD COLUMN expires INTEGER;
ALTER TABLE records ADD COLUMN held INTEGER;
ALTER TABLE totals ADD COLUMN age_s INTEGER DEFAULT 0;
ALTER TABLE totals ADD COLUMN boot BLOB;
ALTER TABLE totals ADD COLUMN boot_s INTEGER;
ALTER TABLE totals ADD COLUMN held INTEGER DEFAULT 0;
DROP INDEX queue;
CREATE INDEX queue ON records (held, priority, sequence, size);
CREATE INDEX expiry ON records (expires) WHERE expires IS NOT NULL;
CREATE TRIGGER holding AFTER UPDATE OF held ON records BEGIN
    UPDATE totals SET held = held + (new.held IS NOT NULL) - (old.held IS NOT NULL); END;
CREATE TRIGGER held_removed AFTER DELETE ON records WHEN old.held IS NOT NULL BEGIN
    UPDATE totals SET held = held - 1; END;
PRAGMA user_version = 2;
"""
# The casts keep a flipped type from reaching Python as text that is not UTF-8.
OWNER = "sequence, CAST(outbox AS BLOB), CAST(stream AS BLOB)"
ROW = (
    f"{OWNER}, CAST(priority AS INT), CAST(manifest AS BLOB), CAST(body AS BLOB),"
    " CAST(expires AS INT), CAST(crc AS INT)"
)

ENTRY = "id, outbox, first_sequence, last_sequence, count, CAST(stream AS BLOB), CAST(reason AS TEXT), time_us"
_ENTRY_TYPES = (int, bytes, int, int, int, bytes, str, int)

# Queries are constants: what SQLite does not understand is its own schema.
CORRUPT = (apsw.CorruptError, apsw.NotADBError, apsw.SQLError, apsw.ConstraintError, UnicodeDecodeError)

_SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"

T = TypeVar("T")


class NewerFormat(Exception):
    """The file was made by a later version of this code."""


def connect(path: Path, quota_bytes: int) -> apsw.Connection:
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


def make(db: apsw.Connection, outbox: bytes) -> None:
    """The tables of a new outbox."""
    transact(db, lambda: db.execute(FORMAT_1 + FORMAT_2))
    values = (str(FORMAT), outbox, crc32c(outbox))
    db.execute("INSERT INTO meta VALUES ('format', ?), ('id', ?), ('check', ?)", values)


def check_format(db: apsw.Connection) -> None:
    """Bring a file of format 1 up to this one. Raises NewerFormat; CorruptError: the schema is damaged.

    A flipped bit in the schema would change what statements mean, so it has to be what it was made as.
    """
    said = value(db, "SELECT CAST(value AS TEXT) FROM meta WHERE name = 'format'")
    known = value(db, "PRAGMA user_version")
    if said == str(known) and known > FORMAT:  # said twice: one flipped bit must not make a file newer
        raise NewerFormat(f"it has format {known}, this version knows {FORMAT}")
    if (said, known) == ("1", 0):
        _compare_schema(db, FORMAT_1)
        transact(db, lambda: db.execute(FORMAT_2 + "UPDATE meta SET value = '2' WHERE name = 'format'"))
    elif (said, known) != (str(FORMAT), FORMAT):
        raise apsw.CorruptError("the format is damaged")
    _compare_schema(db, FORMAT_1 + FORMAT_2)


def _compare_schema(db: apsw.Connection, schema: str) -> None:
    if rows(db, _SCHEMA) != _rows_of(schema):
        raise apsw.CorruptError("the schema is damaged")


@functools.cache
def _rows_of(schema: str) -> list[tuple[Any, ...]]:
    with closing(apsw.Connection(":memory:")) as right:
        right.execute(schema)
        return rows(right, _SCHEMA)


def transact(db: apsw.Connection, work: Callable[[], T]) -> T:
    db.execute("BEGIN IMMEDIATE")
    try:
        result = work()
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return result


def rows(db: apsw.Connection, query: str, *bindings: Any) -> list[tuple[Any, ...]]:
    return db.execute(query, bindings).fetchall()


def value(db: apsw.Connection, query: str, *bindings: Any) -> Any:
    found = rows(db, query, *bindings)
    return found[0][0] if found else None


def id_of(db: apsw.Connection) -> bytes:
    outbox = value(db, "SELECT CAST(value AS BLOB) FROM meta WHERE name = 'id'") or b""
    if value(db, "SELECT value FROM meta WHERE name = 'check'") != crc32c(outbox):
        raise apsw.CorruptError("the id is damaged")
    return bytes(outbox)


# The queue


def queue(
    db: apsw.Connection, after: Mapping[int, int], without: Collection[int] = (), oldest_first: bool = False
) -> Iterator[tuple[Any, ...]]:
    """Rows to send: most important first; with oldest_first, the priority whose turn was longest ago goes first."""
    query = f"SELECT {ROW} FROM records WHERE held IS NULL AND priority = ? AND sequence > ? ORDER BY sequence"
    priorities = (priority for priority in _priorities(db) if priority not in without)
    for priority in _oldest_first(db, after, list(priorities)) if oldest_first else priorities:
        with closing(db.execute(query, (priority, after.get(priority, 0)))) as found:
            yield from found


def _priorities(db: apsw.Connection) -> Iterator[int]:
    priority = -1
    while True:
        priority = value(db, "SELECT min(priority) FROM records WHERE held IS NULL AND priority > ?", priority)
        if priority is None:
            return
        yield priority


def _oldest_first(db: apsw.Connection, after: Mapping[int, int], priorities: list[int]) -> list[int]:
    query = "SELECT min(sequence) FROM records WHERE held IS NULL AND priority = ? AND sequence > ?"
    firsts = [(first, p) for p in priorities if (first := value(db, query, p, after.get(p, 0))) is not None]
    oldest = min(firsts, default=(0, None))[1]
    return sorted(priorities, key=lambda priority: (priority != oldest, priority))


def least_important(db: apsw.Connection, least: int) -> Generator[tuple[Any, ...], None, None]:
    """Owners and sizes of records of priority `least` and less important: what to evict first, comes first.

    That is what the hub already has, then the least important, then the oldest.
    """
    query = f"SELECT {OWNER}, CAST(size AS INT) FROM records WHERE"
    with closing(db.execute(query + " held IS NOT NULL AND priority >= ? ORDER BY held", (least,))) as found:
        yield from found
    for priority in reversed(list(_priorities(db))):
        if priority >= least:
            with closing(db.execute(query + " held IS NULL AND priority = ? ORDER BY sequence", (priority,))) as found:
                yield from found


# Records


def insert_all(db: apsw.Connection, records: Iterable[Record]) -> None:
    query = (
        "INSERT INTO records (sequence, priority, size, crc, outbox, stream, manifest, body, expires)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    )
    for record in records:
        row = (record.sequence, record.priority, len(record.body), record.checksum(), record.outbox)
        db.execute(query, (*row, record.stream.encode(), record.manifest, record.body, record.expires))


def delete_all(db: apsw.Connection, sequences: Iterable[int]) -> None:
    """In one statement: as many would drive all others out of the statement cache."""
    db.execute("DELETE FROM records WHERE sequence IN (SELECT value FROM json_each(?))", (json.dumps(list(sequences)),))


def set_sequence(db: apsw.Connection, last: int) -> None:
    db.execute("DELETE FROM sqlite_sequence WHERE name = 'records'")
    db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('records', ?)", (last,))
    db.execute("UPDATE totals SET last_sequence = ?", (last,))


# The ledger


def enter_in_ledger(db: apsw.Connection, gone: list[tuple[bytes, bytes, int]], reason: str) -> None:
    """gone: (outbox, stream, sequence) of records that leave unsent."""
    for (outbox, stream), group in itertools.groupby(sorted(gone), key=lambda item: item[:2]):
        sequences = [sequence for _, _, sequence in group]
        enter_entry(db, outbox, stream, reason, sequences[0], sequences[-1], len(sequences))
    if gone:
        db.execute("UPDATE totals SET evicted = evicted + ?", (len(gone),))


def enter_entry(
    db: apsw.Connection, outbox: bytes, stream: bytes, reason: str, first: int, last: int, count: int
) -> None:
    """Widen the entry of the same kind unless it was handed out already, or add one."""
    same = "WHERE outbox = ? AND stream = ? AND reason = ? AND taken = 0"
    db.execute(
        "UPDATE ledger SET first_sequence = min(first_sequence, ?), last_sequence = max(last_sequence, ?),"
        f" count = count + ?, time_us = ? {same}",
        (first, last, count, now_us(), outbox, stream, reason),
    )
    if db.changes() == 0:
        db.execute(
            "INSERT INTO ledger (outbox, first_sequence, last_sequence, count, stream, reason, time_us)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (outbox, first, last, count, stream, reason, now_us()),
        )


def is_entry(row: tuple[Any, ...]) -> bool:
    """Whether a row of the ledger is one that could have been written; it has no checksum."""
    return all(map(isinstance, row, _ENTRY_TYPES)) and len(row[1]) == 16 and 0 < row[2] <= row[3] and row[4] >= 0


def now_us() -> int:
    return time.time_ns() // 1000


# Age: what times to live are measured by


def age_s(db: apsw.Connection, boot: bytes, boot_s: int) -> int:
    """Seconds that the computer has run or slept since the outbox was made, as far as they were kept."""
    kept, kept_boot, kept_s = rows(db, "SELECT age_s, boot, boot_s FROM totals")[0]
    return int(kept or 0) + (max(0, boot_s - kept_s) if kept_boot == boot and isinstance(kept_s, int) else 0)


def keep_age(db: apsw.Connection, boot: bytes, boot_s: int) -> int:
    age = age_s(db, boot, boot_s)
    db.execute("UPDATE totals SET age_s = ?, boot = ?, boot_s = ?", (age, boot, boot_s))
    return age
