"""The outbox as the modules call it: one connection in each process, for one thread at a time.

Every call is one transaction, on the files as hold.py has them: what is corrupted is mended, and the call made again.
"""
# ruff: noqa: S608 (queries are put together from constants)

import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import apsw

from edge.errors import InputError, OutboxFull
from edge.outbox import database
from edge.outbox.database import OWNER, rows, value
from edge.outbox.hold import Hold
from edge.outbox.records import PAGE_BYTES, PRIORITIES, LedgerEntry, NewRecord, Record, Stats, record_of

log = logging.getLogger(__name__)

MIN_QUOTA_BYTES = 4 << 20
DEFAULT_QUOTA_BYTES = 512 << 20
QUARANTINE_RECORDS = 64
EXPIRED = "expired"


def seconds_of_boot() -> tuple[bytes, int]:
    """Which boot of the computer this is, and for how many seconds it has run or slept since."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().encode()
    return boot, int(time.clock_gettime(time.CLOCK_BOOTTIME))


class Outbox(Hold):
    """Open the outbox in a directory, and make it there if there is none.

    quota_bytes bounds the database file. The log (1 MiB and the largest append), the ballast (1 MiB) and, after a
    corruption, the file put aside come on top. clock says which boot this is and how old it is in seconds: what
    times to live are counted by. Raises InputError (place, owner, quota, a file of a later version), OutboxError.
    """

    def __init__(
        self,
        path: Path | str,
        quota_bytes: int = DEFAULT_QUOTA_BYTES,
        clock: Callable[[], tuple[bytes, int]] = seconds_of_boot,
    ) -> None:
        if quota_bytes < MIN_QUOTA_BYTES:
            raise InputError("outbox quota", f"{quota_bytes} bytes is too small", f"give at least {MIN_QUOTA_BYTES}")
        self._clock = clock
        super().__init__(Path(path), quota_bytes)

    # The collector's side

    def append(self, records: Sequence[NewRecord], cursor: tuple[str, bytes] | None = None) -> list[int]:
        """Store records, and the cursor (name, value) with them, in one transaction; return their sequences.

        Durable when it returns. At the quota the least important, oldest records make room; those may be the
        new ones: they get a sequence and an entry in the ledger, too. Raises OutboxFull (the disk is full;
        nothing was stored), ValueError (a record out of bounds), OutboxError.
        """
        for record in records:
            record.check()
        need = sum(len(record.body) + PAGE_BYTES for record in records)
        refused = PRIORITIES  # records of this priority and less important ones
        while True:
            try:
                return self._write(lambda: self._insert(records, cursor, refused))  # noqa: B023
            except OutboxFull:
                least = max((record.priority for record in records if record.priority < refused), default=None)
                if least is None or self._read(self._room_bytes) > 4 * need:
                    raise  # it is not for the quota: evicting more would not help
                if not self.expire() and not self.evict(need, least):
                    refused = least
                need *= 2

    def cursor(self, name: str) -> bytes | None:
        """The cursor last committed under this name."""
        found: bytes | None = self._read(lambda: value(self._db, "SELECT value FROM cursors WHERE name = ?", name))
        return found

    def evict(self, need_bytes: int, least: int = 0, reason: str = "quota") -> int:
        """Remove records of priority `least` or less important until need_bytes are free; return how many.

        What the hub already has first, then least important first, oldest first; in the ledger in the same
        transaction. A record counts as its body and a page.
        """
        return self._write(lambda: self._evict(need_bytes, least, reason))

    def expire(self) -> int:
        """Remove the records whose time to live is over, and note how old the outbox is; return how many went."""
        return self._write(self._expire)

    # The uplink's side

    def changed(self) -> bool:
        """Whether the other process has committed anything since the last call; costs microseconds."""
        before, self._version = self._version, self._read(lambda: value(self._db, "PRAGMA data_version"))
        return bool(before != self._version)

    def peek(
        self,
        limit_bytes: int,
        limit_records: int,
        after: Mapping[int, int] | None = None,
        *,
        without: Collection[int] = (),
        skip: Collection[int] = (),
        oldest_first: bool = False,
    ) -> list[Record]:
        """The records to send next: most important first, oldest first within a priority.

        As many as limit_bytes of bodies hold, but one at least. after[priority] is the last sequence the
        caller already has of that priority; priorities in `without` and sequences in `skip` are passed over. With
        oldest_first the priority of the oldest record comes first. Corrupted records are set aside and entered in
        the ledger.
        """
        whole = not (after or without or skip)

        def look() -> tuple[list[Record], list[int]]:
            queue = database.queue(self._db, after or {}, without, oldest_first)
            return self._peek(queue, limit_bytes, limit_records, skip, whole)

        found, corrupt = self._read(look)
        if corrupt:
            log.error("%d corrupted records set aside, the first is sequence %d", len(corrupt), corrupt[0])
            with suppress(OutboxFull):  # the next peek tries again
                self.set_aside(corrupt, "corrupt", "checksum does not match")
        return found

    def ack(
        self, sequences: Iterable[int], cursor: tuple[str, bytes] | None = None, entries: Iterable[int] = ()
    ) -> None:
        """Forget records and ledger entries that the cloud has, and keep the cursor, in one transaction."""
        gone, told = list(sequences), [(entry,) for entry in entries]
        self._write(lambda: self._ack(gone, cursor, told))
        self._files.keep_ballast()

    def hold(self, sequences: Iterable[int], cursor: tuple[str, bytes] | None = None) -> None:
        """Keep records that the hub has taken until the cloud confirms them; peek does not give them any more."""
        gone = list(sequences)
        self._write(lambda: self._hold(gone, cursor))

    def confirm(self, outbox: bytes, until: int, gaps: Sequence[tuple[int, int]], first: int = 1) -> tuple[int, int]:
        """The cloud has the records first..until of this outbox id, except those in gaps (inclusive ranges).

        Held ones that it has are forgotten. Held ones that it misses go back into the queue, if the hub took them
        before one that it has: others may be on their way. Returns how many of each.
        """
        return self._write(lambda: self._confirm(outbox, until, gaps, first))

    def reclaim(self, seconds: int) -> int:
        """Put back into the queue what has been held for longer than this; return how many.

        Of the newest records the cloud cannot know that it misses them.
        """
        return self._write(lambda: self._reclaim(seconds)) if self.stats().held else 0

    def release(self) -> int:
        """Forget all that is held: confirmation is not asked for any more. Returns how many."""
        if not self.stats().held:
            return 0
        return self._write(self._release)

    def record(self, sequence: int) -> Record | None:
        """One record that is in the queue."""
        query = f"SELECT {database.ROW} FROM records WHERE sequence = ? AND held IS NULL"
        found = self._read(lambda: rows(self._db, query, sequence))
        return record_of(found[0]) if found else None

    def set_aside(self, sequences: Sequence[int], reason: str, detail: str = "") -> None:
        """Take records that cannot be sent out of the queue; the newest 64 are kept for a look."""
        try:
            self._write(lambda: self._set_aside(sequences, reason, detail, keep=True))
        except OutboxFull:  # no room for copies
            self._write(lambda: self._set_aside(sequences, reason, detail, keep=False))

    def ledger(self, limit: int = 100) -> list[LedgerEntry]:
        """The oldest entries. They do not change once handed out, so sending one twice is harmless."""
        fresh = self._read(lambda: value(self._db, "SELECT 1 FROM ledger WHERE taken = 0"))
        return (self._write if fresh else self._read)(lambda: self._take_ledger(limit))

    def untold(self) -> dict[str, int]:
        """Of each stream, how many records are in the ledger: they left unsent, and the cloud may not know of it."""
        query = "SELECT stream, sum(count) FROM ledger GROUP BY stream"
        found = self._read(lambda: rows(self._db, query))
        return {stream.decode(errors="replace"): count for stream, count in found}

    def stats(self) -> Stats:
        """From kept totals: no scan."""
        return self._read(lambda: Stats(*rows(self._db, "SELECT records, bytes, evicted, held FROM totals")[0]))

    # Inside transactions

    def _insert(self, records: Sequence[NewRecord], cursor: tuple[str, bytes] | None, refused: int) -> list[int]:
        last = value(self._db, "SELECT last_sequence FROM totals")
        if last != (value(self._db, "SELECT seq FROM sqlite_sequence WHERE name = 'records'") or 0):
            raise apsw.CorruptError("a sequence might be given twice")
        age_s = database.keep_age(self._db, *self._clock()) if any(record.ttl_s for record in records) else 0
        sequences = list(range(last + 1, last + 1 + len(records)))
        kept, gone = [], []
        for sequence, new in zip(sequences, records, strict=True):
            if new.priority >= refused:
                gone.append((self.id, new.stream.encode(), sequence))
            else:
                expires = age_s + new.ttl_s if new.ttl_s else None
                kept.append(Record(sequence, new.priority, new.stream, new.manifest, new.body, self.id, expires))
        database.insert_all(self._db, kept)
        database.enter_in_ledger(self._db, gone, "quota")
        if gone:
            database.set_sequence(self._db, sequences[-1])
        self._put_cursor(cursor)
        return sequences

    def _put_cursor(self, cursor: tuple[str, bytes] | None) -> None:
        if cursor is not None:
            self._db.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?)", cursor)

    def _ack(self, sequences: list[int], cursor: tuple[str, bytes] | None, entries: list[tuple[int]]) -> None:
        database.delete_all(self._db, sequences)
        self._db.executemany("DELETE FROM ledger WHERE id = ?", entries)
        self._put_cursor(cursor)

    def _hold(self, sequences: list[int], cursor: tuple[str, bytes] | None) -> None:
        age_s = database.keep_age(self._db, *self._clock())
        which = "sequence IN (SELECT value FROM json_each(?))"
        self._db.execute(f"UPDATE records SET held = ? WHERE {which}", (age_s, json.dumps(sequences)))
        self._put_cursor(cursor)

    def _confirm(self, outbox: bytes, until: int, gaps: Sequence[tuple[int, int]], first: int) -> tuple[int, int]:
        held = "held IS NOT NULL AND outbox = ? AND sequence BETWEEN ? AND ?"
        back = gone = 0
        newest = -1
        for low, high in [*sorted(gaps), (until + 1, until)]:
            there = (outbox, first, min(low - 1, until))
            newest = max(newest, value(self._db, f"SELECT ifnull(max(held), -1) FROM records WHERE {held}", *there))
            self._db.execute(f"DELETE FROM records WHERE {held}", there)
            gone += self._db.changes()
            first = max(first, high + 1)
        for low, high in gaps:
            missing = (outbox, low, min(high, until), newest)
            self._db.execute(f"UPDATE records SET held = NULL WHERE {held} AND held <= ?", missing)
            back += self._db.changes()
        return gone, back

    def _reclaim(self, seconds: int) -> int:
        age_s = database.keep_age(self._db, *self._clock())
        self._db.execute("UPDATE records SET held = NULL WHERE held <= ?", (age_s - seconds,))
        return int(self._db.changes())

    def _release(self) -> int:
        self._db.execute("DELETE FROM records WHERE held IS NOT NULL")
        return int(self._db.changes())

    def _evict(self, need_bytes: int, least: int, reason: str) -> int:
        freed, gone = 0, []
        with closing(database.least_important(self._db, least)) as candidates:
            for sequence, outbox, stream, size in candidates:
                gone.append(self._owner(sequence, outbox, stream))
                freed += (size or 0) + PAGE_BYTES
                if freed >= need_bytes:
                    break
        return self._remove(gone, reason)

    def _expire(self) -> int:
        age_s = database.keep_age(self._db, *self._clock())
        # What is held the hub has taken: it may be there, and costs nothing more to send.
        old = rows(self._db, f"SELECT {OWNER} FROM records WHERE expires <= ? AND held IS NULL", age_s)
        return self._remove([self._owner(*owner) for owner in old], EXPIRED)

    def _remove(self, gone: list[tuple[bytes, bytes, int]], reason: str) -> int:
        database.delete_all(self._db, (sequence for _, _, sequence in gone))
        database.enter_in_ledger(self._db, gone, reason)
        return len(gone)

    def _set_aside(self, sequences: Sequence[int], reason: str, detail: str, *, keep: bool) -> None:
        gone = []
        for sequence in sequences:
            owners = rows(self._db, f"SELECT {OWNER} FROM records WHERE sequence = ?", sequence)
            gone += [self._owner(*owner) for owner in owners]
            if keep:
                columns = "sequence, priority, crc, outbox, stream, manifest, body"
                self._db.execute(
                    f"INSERT INTO quarantine (reason, detail, time_us, {columns})"
                    f" SELECT ?, ?, ?, {columns} FROM records WHERE sequence = ?",
                    (reason, detail, database.now_us(), sequence),
                )
            self._db.execute("DELETE FROM records WHERE sequence = ?", (sequence,))
        self._db.execute(
            "DELETE FROM quarantine WHERE id IN (SELECT id FROM"
            " (SELECT id, row_number() OVER newest AS number, sum(length(body)) OVER newest AS bytes"
            " FROM quarantine WINDOW newest AS (ORDER BY id DESC)) WHERE number > ? OR bytes > ?)",
            (QUARANTINE_RECORDS, self._quota_bytes // 8),
        )
        database.enter_in_ledger(self._db, gone, reason)

    def _take_ledger(self, limit: int) -> list[LedgerEntry]:
        found = rows(self._db, f"SELECT {database.ENTRY} FROM ledger ORDER BY id LIMIT ?", limit)
        if not all(map(database.is_entry, found)):
            raise apsw.CorruptError("an entry of the ledger is damaged")
        if found:
            self._db.execute("UPDATE ledger SET taken = 1 WHERE id <= ? AND taken = 0", (found[-1][0],))
        return [LedgerEntry(*row[:5], row[5].decode("utf-8", "replace"), *row[6:]) for row in found]  # type: ignore[call-arg]

    def _owner(self, sequence: int, outbox: bytes | None, stream: bytes | None) -> tuple[bytes, bytes, int]:
        """Whose a record is; a flipped bit must not make up an outbox."""
        return (outbox if outbox in self._ids else self.id, stream or b"", sequence)  # type: ignore[return-value]

    # Reading

    def _peek(
        self, queue: Iterator[tuple[Any, ...]], limit_bytes: int, limit_records: int, skip: Collection[int], whole: bool
    ) -> tuple[list[Record], list[int]]:
        found: list[Record] = []
        corrupt: list[int] = []
        size = 0
        for row in queue:
            record = record_of(row)
            if record is None:
                corrupt.append(row[0])
                continue
            if record.sequence in skip:
                continue
            size += len(record.body)
            if found and size > limit_bytes:
                break
            found.append(record)
            if len(found) >= limit_records:
                break
        if not found and not corrupt and whole:
            self._check_empty()
        return found, corrupt

    def _check_empty(self) -> None:
        """Nothing to deliver must mean nothing stored: a flipped bit can hide records without an error."""
        self._db.execute("BEGIN")  # one snapshot: the other process goes on appending
        try:
            if next(database.queue(self._db, {}), None) is None and value(
                self._db, "SELECT records > held FROM totals"
            ):
                raise apsw.CorruptError("there are records that cannot be found")
        finally:
            self._db.execute("ROLLBACK")
