"""Known faults, put into this process from outside: what the layers are there for must catch each of them.

synchronous-normal       the log is not flushed at a commit
early-acknowledgement    the producer is told before the commit
early-delete             a record leaves the outbox before the cloud has it
no-checksum              a record's CRC is not looked at
no-directory-sync        new names are not flushed
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from edge import durable
from edge.outbox import NewRecord, Record, database, files, outbox, records, salvage
from edge.outbox.files import Files
from tests.crash.history import WatchedOutbox


class EarlyOutbox(WatchedOutbox):
    """Says that the records are stored, and then stores them."""

    def append(self, records: Sequence[NewRecord], cursor: tuple[str, bytes] | None = None) -> list[int]:
        self.history.attempted(records)
        last = self._read(lambda: database.value(self._db, "SELECT last_sequence FROM totals"))
        self.history.acknowledged(self.id, range(last + 1, last + 1 + len(records)), records)
        return super(WatchedOutbox, self).append(records, cursor)


def deliver_late(opened: WatchedOutbox, records: list[Record], forget: Callable[[Iterable[int]], None]) -> None:
    """Forgets the records, and then delivers them."""
    forget(record.sequence for record in records)
    opened.history.delivered(b"", records)


def unflushed(path: Path, quota_bytes: int, connect: Any = database.connect) -> apsw.Connection:
    db = connect(path, quota_bytes)
    db.execute("PRAGMA synchronous = NORMAL")
    return db


def unchecked(row: tuple[Any, ...]) -> Record:
    sequence, owner, stream, priority, manifest, body, expires, _ = row
    return Record(sequence, priority, stream.decode("utf-8", "replace"), manifest, body, owner, expires)


def apply(control: str) -> None:
    """Put a fault into this process, for good. Those of the order of calls are the caller's (victim.py)."""
    if control == "synchronous-normal":
        database.connect = unflushed
    elif control == "no-checksum":
        outbox.record_of = salvage.record_of = unchecked
    elif control == "no-directory-sync":
        Files.sync = lambda self: None  # type: ignore[method-assign]
        durable.sync_folder = files.sync_folder = lambda folder: None


@contextmanager
def applied(control: str) -> Iterator[None]:
    """The fault no-checksum, or none, for a while."""
    try:
        apply(control)
        yield
    finally:
        outbox.record_of = salvage.record_of = records.record_of
