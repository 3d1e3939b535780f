"""An outbox on a disk that is full, or takes what is written and fails to flush it (EIO or ENOSPC of fdatasync)."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from edge.errors import OutboxError, OutboxFull
from edge.outbox import NewRecord, Outbox
from tests.test_outbox import drain, new


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


class Disk(apsw.VFS):
    """SQLite's own, but that flushing fails while it is broken."""

    def __init__(self) -> None:
        super().__init__("breakable", "unix", makedefault=True)
        self.is_broken = False

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return File(self, name, flags)


class File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("unix", name, flags)  # type: ignore[arg-type]
        self._disk = disk

    def xSync(self, flags: int) -> None:
        if self._disk.is_broken:
            raise apsw.IOError("the flush failed")
        super().xSync(flags)


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.unregister()


def batch(first: int, count: int, size: int) -> tuple[list[NewRecord], tuple[str, bytes]]:
    """Records, and the cursor behind them."""
    records = [NewRecord(1, "drive", bytes(32), b"%d " % n + bytes(size)) for n in range(first, first + count)]
    return records, ("source", b"%d" % (first + count))


def fail(outbox: Outbox, disk: Disk) -> None:
    """Commits that fail, the later ones shorter: they lie over the earlier in part."""
    disk.is_broken = True
    for count in (9, 3, 1):
        with pytest.raises(OutboxError, match="flush failed"):
            outbox.append(*batch(1, count, 5000))
    disk.is_broken = False


def test_what_failed_commits_left_in_the_log_is_not_taken_for_damage_after_a_kill(tmp_path: Path, disk: Disk) -> None:
    with Outbox(tmp_path / "outbox") as outbox:
        outbox.append(*batch(0, 1, 100))
        fail(outbox, disk)
        shutil.copytree(tmp_path / "outbox", tmp_path / "killed")
        with Outbox(tmp_path / "killed") as found:
            assert found.id == outbox.id
            assert [record.sequence for record in found.peek(1 << 20, 100)] == [1]
            assert found.cursor("source") == b"1"
            assert found.ledger() == []
        assert not (tmp_path / "killed/outbox.corrupt").exists()


def test_once_the_disk_can_flush_again_every_record_is_stored_once(tmp_path: Path, disk: Disk) -> None:
    with Outbox(tmp_path / "outbox") as outbox, Outbox(tmp_path / "outbox") as other:
        outbox.append(*batch(0, 1, 100))
        fail(outbox, disk)
        assert len(other.peek(1 << 20, 100)) == 1
        outbox.append(*batch(1, 4, 5000))
        fail(other, disk)
        shutil.copytree(tmp_path / "outbox", tmp_path / "killed")
        with Outbox(tmp_path / "killed") as found:
            assert [r.body[:1] for r in found.peek(1 << 20, 100)] == [b"0", b"1", b"2", b"3", b"4"]
            assert found.id == outbox.id
