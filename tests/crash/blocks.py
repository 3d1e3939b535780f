"""L3: ext4 under the real outbox, cut between any two writes of its disk.

    guest: victim ──► ext4 ──► dm-log-writes ──► every write and flush of the disk, in order, and a mark at each
                                    │            line of the history
    here:  writes up to the last flush, and of those behind it none, all, any or a torn beginning ──► mounted (ext4
           recovers its journal) ──► the real Outbox opens it, delivers all, and goes on ──► validator

A mark holds how long the history was: what is cut later knows that much of it. Log format: the kernel's
Documentation/admin-guide/device-mapper/log-writes.rst and drivers/md/dm-log-writes.c. A disk that says it has flushed
and has not is beyond what software can show.
"""

import argparse
import fcntl
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge.errors import EdgeError
from tests.crash import controls, strict
from tests.crash.disk import WAYS, Disk
from tests.crash.history import Event, History, Memory, parse, validate
from tests.crash.layer import Options, Result, missing, workplace
from tests.crash.victim import SETTINGS, Victim, finish
from tests.uml import guest

CONTROL = "synchronous-normal"
DISK_BYTES, LOG_BYTES = 32 << 20, 512 << 20
SECTOR = 512
MAGIC, FLUSH, FUA, DISCARD, MARK = 0x6A736677736872, 1, 2, 4, 8
DM_TARGET_MSG, DM_IOCTL_BYTES = 0xC138FD0E, 312
END = b"dm-log-writes-end"  # the target's own mark, when it is removed
GUEST_SECONDS = 240.0
WORKERS = 2
RECORD = """
dmsetup create lw --table "0 {sectors} log-writes /dev/ubda /dev/ubdb" && dmsetup mknodes &&
mount -t ext4 /dev/mapper/lw /mnt && {victim} && umount /mnt && dmsetup remove lw
"""


@dataclass(frozen=True)
class Entry:
    """A write, with its flags; a mark has its text as data."""

    flags: int
    offset: int
    data: bytes


def run(options: Options) -> Result:
    if lacking := missing(dmsetup="dmsetup", **{"linux.uml": "user-mode-linux", "mkfs.ext4": "e2fsprogs"}):
        return Result(skipped=lacking)
    if why := guest.missing() or _unmountable():
        return Result(skipped=why)
    result = Result()
    lives, states = (7, 300) if options.long else (1, 120)
    for seed in range(options.seed * 100, options.seed * 100 + lives):
        tried, losses = live(seed, states, steps=150 if options.long else 80)
        result.count("crash states", tried)
        result.count("recorded runs")
        result.losses += losses
    result.controls[CONTROL] = bool(live(options.seed, 200, steps=60, control=CONTROL)[1])
    return result


def live(seed: int, states: int, steps: int, control: str = "") -> tuple[int, list[str]]:
    """Record one run, and try about so many states of it; a control's end once it is caught."""
    with workplace() as folder, tempfile.TemporaryDirectory() as out:
        record(folder, Path(out), seed, steps, control)
        shutil.copyfile(Path(out) / "history", folder / "history")
        with ProcessPoolExecutor(WORKERS) as pool:
            parts = [pool.submit(_try, folder, seed, worker, states // WORKERS, control) for worker in range(WORKERS)]
            found = [part.result() for part in parts]
    return sum(tried for tried, _ in found), [line for _, losses in found for line in losses]


def record(folder: Path, out: Path, seed: int, steps: int, control: str) -> None:
    """Leaves before.img, the disk as it was made, and log.img; in out the history. Raises RuntimeError."""
    before, disk, log = folder / "before.img", folder / "disk.img", folder / "log.img"
    for path, size in ((before, DISK_BYTES), (log, LOG_BYTES)):
        path.touch()
        os.truncate(path, size)
    call("mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", str(before))
    call("cp", "--sparse=always", str(before), str(disk))
    arguments = ["/mnt/outbox", str(out / "history"), "--seed", str(seed), "--steps", str(steps)]
    victim = " ".join([sys.executable, "-m", "tests.crash.blocks", *arguments, "--control", control or "''"])
    script = RECORD.format(sectors=DISK_BYTES // SECTOR, victim=victim)
    modules = ["drivers/md/dm-mod", "drivers/md/dm-log-writes"]
    status = guest.run(["/bin/sh", "-ec", script], out, GUEST_SECONDS, modules=modules, disks=[disk, log])
    if status:
        raise RuntimeError(f"L3: the recording failed:\n{(out / 'console.log').read_text(errors='replace')}")


def entries(log: Path) -> Iterator[Entry]:
    with log.open("rb") as file:
        magic, _, count, sector = struct.unpack_from("<QQQI", file.read(SECTOR))
        if magic != MAGIC:
            raise ValueError(f"{log} is no log of dm-log-writes")
        file.seek(sector)
        for _ in range(count):
            head = file.read(sector)
            at, sectors, flags, length = struct.unpack_from("<QQQQ", head)
            if flags & MARK:
                if (text := head[32 : 32 + length]) != END:
                    yield Entry(flags, 0, text)
            elif not flags & DISCARD:
                yield Entry(flags, at * SECTOR, file.read(sectors * SECTOR))


def _try(folder: Path, seed: int, worker: int, states: int, control: str) -> tuple[int, list[str]]:
    """Replay the log, and cut it where this worker's turn is."""
    chance = random.Random(seed * WORKERS + worker)
    log, told = list(entries(folder / "log.img")), (folder / "history").read_bytes()
    cuts = sorted(chance.choices(range(len(log) + 1), k=states))
    base = folder / f"base-{worker}.img"
    call("cp", "--sparse=always", str(folder / "before.img"), str(base))
    losses, tried, known, pending, at = list[str](), 0, 0, list[Entry](), 0
    with base.open("r+b", buffering=0) as disk:
        for cut in cuts:
            for entry in log[at:cut]:
                if entry.flags & MARK:
                    known = int(entry.data)
                    continue
                if entry.flags & FLUSH:
                    _write(disk.fileno(), pending)
                    pending = []
                if entry.flags & FUA:
                    _write(disk.fileno(), [entry])
                elif entry.data:
                    pending.append(entry)
            at = cut
            way = chance.choice(WAYS)
            tail = list(_survivors(pending, way, chance))
            history = parse(told[:known])
            losses += [
                f"L3 run {seed}, write {cut}, {way}: {line}" for line in _examine(folder, worker, base, tail, history)
            ]
            tried += 1
            if losses and (control or len(losses) > 20):
                break
    return tried, losses


def _survivors(pending: list[Entry], way: str, chance: random.Random) -> Iterator[Entry]:
    if way == "all":
        yield from pending
    elif way == "any":
        yield from (entry for entry in pending if chance.random() < 0.5)
    elif way == "torn" and pending:
        whole = chance.randrange(len(pending))
        yield from pending[:whole]
        last = pending[whole]
        size = SECTOR * chance.randint(0, len(last.data) // SECTOR)
        yield Entry(last.flags, last.offset, last.data[:size])


def _examine(folder: Path, worker: int, base: Path, tail: list[Entry], history: list[Event]) -> list[str]:
    image, place, told = folder / f"state-{worker}.img", folder / f"mount-{worker}", Memory(history)
    image.unlink(missing_ok=True)  # another mount namespace may still have the one before mounted, and would share it
    call("cp", "--sparse=auto", str(base), str(image))
    with image.open("r+b", buffering=0) as disk:
        _write(disk.fileno(), tail)
    told.fault("power cut")
    with _mounted(image, place):
        settings = place / "outbox" / SETTINGS
        files = {f"outbox/{SETTINGS}": settings.read_bytes()} if settings.exists() else {}
        try:
            finish(place / "outbox", told)
        except EdgeError as error:
            return [f"f: {error}"]
    state = strict.State(files, history, "", Disk("", "", {}))
    return [*validate(told.events), *strict._settings(state)]


def _write(disk: int, entries: list[Entry]) -> None:
    for entry in entries:
        os.pwrite(disk, entry.data, entry.offset)


@contextmanager
def _mounted(image: Path, place: Path) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    call("mount", "-t", "ext4", "-o", "loop", str(image), str(place))
    try:
        yield
    finally:
        call("umount", "-l", str(place))


def _unmountable() -> str:
    """Why an image cannot be mounted here."""
    with workplace() as folder:
        image = folder / "probe.img"
        image.touch()
        os.truncate(image, 8 << 20)
        try:
            call("mkfs.ext4", "-q", "-F", str(image))
            with _mounted(image, folder / "mount"):
                return ""
        except (OSError, subprocess.CalledProcessError):
            return "an ext4 image cannot be mounted here: run it as root, where the kernel has loop devices"


def call(*command: str) -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PATH": path})


# In the guest


class MarkedHistory(History):
    """Puts a mark with its own length into the log of the disk after every entry."""

    def enter(self, events: "Iterator[Event] | list[Event]") -> None:  # type: ignore[override]
        super().enter(events)
        text = b"mark %d\0" % os.fstat(self._file).st_size
        body = struct.pack("<Q", 0) + text
        size = DM_IOCTL_BYTES + len(body)
        head = struct.pack("<3I2I", 4, 0, 0, size, DM_IOCTL_BYTES).ljust(48, b"\0") + b"lw".ljust(264, b"\0")
        with open("/dev/mapper/control", "rb", buffering=0) as device:
            fcntl.ioctl(device, DM_TARGET_MSG, bytearray(head + body))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("history", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--control", default="")
    asked = parser.parse_args()
    controls.apply(asked.control)
    victim = Victim(asked.folder, MarkedHistory(asked.history), asked.seed, asked.control)
    victim.run(asked.steps)
    victim.close()


if __name__ == "__main__":
    main()
