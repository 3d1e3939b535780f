"""The files of an outbox directory: their names, the lock that says who may mend them, and the ballast."""

import errno
import fcntl
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from edge.durable import make_folder, sync_folder
from edge.errors import InputError

log = logging.getLogger(__name__)

BALLAST_BYTES = 1 << 20
INDEX_BYTES = 32 * 1024  # what SQLite takes at once
BALLAST_SECONDS = 10.0


class Files:
    """Raises InputError: the directory cannot hold an outbox, or what is in it belongs to somebody else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "outbox.db"
        self.log = folder / "outbox.db-wal"  # SQLite's write-ahead log: it stays only after an unclean stop
        self.index = folder / "outbox.db-shm"
        self.ballast = folder / "outbox.ballast"
        self.suspect = folder / "outbox.suspect"  # someone met a corruption: who is alone next salvages
        self.draft = folder / "outbox.draft"  # a database not yet complete
        self.salvaged = folder / "outbox.salvaged"  # complete, to take the place of the corrupted one
        self.corrupt = folder / "outbox.corrupt"
        self._ballast_due = 0.0

    def open_lock(self) -> int:
        try:
            make_folder(self.folder)
            self._check_access()
            return os.open(self.folder / "outbox.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            problem = f"cannot hold the outbox ({error.strerror})"
            raise InputError(self.folder, problem, self._way_out()) from error

    def _check_access(self) -> None:
        """SQLite would open what it may only read, and fail at the first record."""
        if os.statvfs(self.folder).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        for path in (self.folder, self.database, self.log, self.index):
            if path.exists() and not os.access(path, os.R_OK | os.W_OK | (os.X_OK if path == self.folder else 0)):
                raise PermissionError(0, f"{path.name} is not to be written by user {os.geteuid()}")

    def _way_out(self) -> str:
        try:
            owner = self.folder.stat().st_uid
        except OSError:
            return "bind a writable directory"
        if owner != os.geteuid():
            return f"it belongs to user {owner}: give it to user {os.geteuid()}, or run the module as {owner}"
        return "bind a writable directory"

    def sync(self) -> None:
        sync_folder(self.folder)

    def free_bytes(self) -> int:
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    def is_full(self) -> bool:
        """Whether there is no room even for the index of the log."""
        try:
            return self.free_bytes() < INDEX_BYTES
        except OSError:
            return False

    def drop_ballast(self) -> bool:
        """Give the disk its last reserve if it is full; False if it is not, or there is none."""
        if self.free_bytes() >= BALLAST_BYTES or not self.ballast.exists():
            return False
        self.ballast.unlink(missing_ok=True)
        log.warning("disk full: let go of the ballast, %d KiB, in %s", BALLAST_BYTES // 1024, self.folder)
        return True

    def keep_ballast(self) -> None:
        """Make the ballast again once the disk has room for it many times over."""
        if time.monotonic() < self._ballast_due:
            return
        self._ballast_due = time.monotonic() + BALLAST_SECONDS
        if self.ballast.exists() or self.free_bytes() < 4 * BALLAST_BYTES:
            return
        try:
            with self.ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
        except OSError:
            with suppress(OSError):
                self.ballast.unlink(missing_ok=True)


def try_lock(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
