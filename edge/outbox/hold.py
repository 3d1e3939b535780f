"""One process's hold on the files of an outbox: opens them, runs work on them, and mends them.

    read, write ──► work ──► result
                     ├───── a corruption ──► marked, let go, opened again (salvage.py), and work runs once more
                     └───── a full disk  ──► the ballast goes, and work runs once more

What goes wrong inside SQLite or the disk becomes an error of ours here.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

import apsw

from edge.errors import InputError, OutboxCorrupt, OutboxError, OutboxFull
from edge.outbox import database, salvage
from edge.outbox.database import CORRUPT, rows, transact, value
from edge.outbox.files import BALLAST_BYTES, Files
from edge.outbox.records import PAGE_BYTES

log = logging.getLogger(__name__)

T = TypeVar("T")


class Hold:
    """Raises InputError (place, owner, a file of a later version), OutboxError."""

    def __init__(self, path: Path, quota_bytes: int) -> None:
        self._files = Files(path)
        self._suspect = str(self._files.suspect)
        self._quota_bytes = quota_bytes
        self._lock = self._files.open_lock()
        self._check: salvage.Check | None = None
        try:
            self._open()
        except BaseException:
            os.close(self._lock)
            raise
        self._files.keep_ballast()

    def _open(self) -> None:
        try:
            self._enter()
        except OutboxCorrupt as error:  # now marked: the second time it is salvaged
            log.error("%s", error)
            self._enter()

    def _enter(self) -> None:
        self._end_check()
        with _translated(self._files):
            if self._lock < 0:
                raise OutboxError(f"{self._files.folder}: is closed")
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            is_checked = salvage.enter(self._lock, self._files, self._quota_bytes)
            self._db = database.connect(self._files.database, self._quota_bytes)
            database.check_format(self._db)
            self._may_grow = True
            self.id = database.id_of(self._db)
            self._ids = {self.id, value(self._db, "SELECT value FROM meta WHERE name = 'previous'")}
            self._version = value(self._db, "PRAGMA data_version")
        if not is_checked:
            self._check = salvage.Check(self._files, self._quota_bytes)

    def _end_check(self) -> None:
        if self._check is not None:
            self._check.stop()
            self._check = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close; the last one out folds the log into the database, which marks a clean stop."""
        self._end_check()
        with suppress(apsw.Error):
            self._db.close()
        with suppress(OSError):
            os.close(self._lock)
        self._lock = -1

    def _read(self, work: Callable[[], T]) -> T:
        """Run work. After a corruption, whoever met it, the outbox is opened again and salvaged by one of us.

        Sequences outlive a salvage, so that work means the same before and after.
        """
        try:
            with _translated(self._files):
                if os.path.exists(self._suspect):  # as text: at each call
                    raise apsw.CorruptError("another process found it corrupted")
                return work()
        except OutboxCorrupt:
            with suppress(apsw.Error):
                self._db.close()
            self._open()
        with _translated(self._files):
            return work()

    def _write(self, work: Callable[[], T]) -> T:
        """Run work in a transaction. On a full disk the ballast is let go and work runs once more."""
        self._limit_growth()
        try:
            return self._transact(work)
        except OutboxError:
            if not self._files.drop_ballast():
                raise
            with suppress(OutboxError):  # what is in the log already needs the room first
                self._read(lambda: rows(self._db, "PRAGMA wal_checkpoint(RESTART)"))
            return self._transact(work)

    def _transact(self, work: Callable[[], T]) -> T:
        try:
            return self._read(lambda: transact(self._db, work))
        except OutboxError as error:
            if isinstance(error.__cause__, apsw.IOError):
                self._cut_log()
            raise

    def _cut_log(self) -> None:
        """A commit whose flush failed is still in the log, and half of it may be once the next is written over it."""
        from edge.outbox import log as wal  # needed after an error of the disk alone

        with suppress(OutboxError):
            self._read(lambda: transact(self._db, lambda: wal.cut(self._files.database, self._files.log)))

    def _limit_growth(self) -> None:
        """While the disk is short of room, make do with the pages the file has; eviction frees some.

        SQLite would still take what makes the file longer into its log, and then could not copy it back.
        """
        may_grow = self._files.free_bytes() > 2 * BALLAST_BYTES
        if may_grow != self._may_grow:
            self._may_grow = may_grow
            pages = self._quota_bytes // PAGE_BYTES if may_grow else 1  # 1: as many as there are
            self._read(lambda: rows(self._db, f"PRAGMA max_page_count = {pages}"))

    def _room_bytes(self) -> int:
        """What can still be stored within the quota, roughly."""
        pages = [value(self._db, f"PRAGMA {name}") for name in ("max_page_count", "page_count", "freelist_count")]
        return int(pages[0] - pages[1] + pages[2]) * PAGE_BYTES


@contextmanager
def _translated(files: Files) -> Iterator[None]:
    """SQLite's and the disk's errors as ours. A corruption is marked: every process lets go, and one salvages."""
    try:
        yield
    except database.NewerFormat as error:
        way_out = "update the module, or give it an outbox directory of its own"
        raise InputError(files.database, f"belongs to a later version: {error}", way_out) from error
    except CORRUPT as error:
        with suppress(OSError):  # on a full disk: then the next one to meet it marks it
            files.suspect.touch()
        raise OutboxCorrupt(f"{files.database}: {error}") from error
    except apsw.FullError as error:
        raise OutboxFull(f"{files.database}: no room left, on the disk or under the quota") from error
    except apsw.IOError as error:
        if files.is_full():  # SQLite's index of the log has an error of its own for that
            raise OutboxFull(f"{files.database}: no room left on the disk ({error})") from error
        raise OutboxError(f"{files.database}: {error}") from error
    except apsw.Error as error:
        raise OutboxError(f"{files.database}: {error}") from error
    except OSError as error:
        kind = OutboxFull if error.errno == errno.ENOSPC else OutboxError
        raise kind(f"{files.folder}: {error.strerror}") from error
