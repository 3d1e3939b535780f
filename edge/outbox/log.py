"""Mending the write-ahead log that an unclean stop has left, where the flash has damaged it.

    outbox.db-wal ── SQLite reads it up to the first frame whose checksum is wrong
                  ── is there a commit behind that, and something behind the commit? then it is not the torn end of the
                     last transaction: what was flushed, and acknowledged, would be gone without a word
                  ── mend: every checksum is made anew, up to the last commit; what is wrong inside, a salvage finds

A commit is flushed before the next transaction writes, so a power cut can only tear what is behind the last commit but
one. Damage to the last transaction alone looks like that, and cannot be told from it. The other way round, a flush that
failed leaves a commit that counts for nothing: it is cut off at once, so that nothing is ever written over half of it.
Frames and checksums: https://sqlite.org/fileformat2.html#the_write_ahead_log
"""

import os
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw

from edge.durable import write_durably
from edge.outbox.database import CORRUPT
from edge.outbox.records import PAGE_BYTES

HEADER = struct.Struct(">8I")  # magic, version, page size, checkpoints, salt 1, salt 2, checksum 1, checksum 2
FRAME = struct.Struct(">6I")  # page number, pages of the database after a commit or 0, salts, checksums
FRAME_BYTES = FRAME.size + PAGE_BYTES
MAGIC, VERSION = 0x377F0682, 3007000  # checksums over little-endian words


def is_damaged(database: Path, log: Path) -> bool:
    """Whether something that was flushed lies behind what SQLite can read. Raises apsw.Error, OSError."""
    try:
        readable = _readable(database)
    except CORRUPT:  # copied back already, the database may be longer than what can be read of the log says
        readable = _sound(log)
    heads = list(_heads(log))
    salts = _salts(log, heads)
    ours = [head for head in heads[max(readable, 0) :] if head[2:4] == salts]  # the others are of before a restart
    return any(pages for _, pages, *_ in ours[:-1])


def cut(database: Path, log: Path) -> None:
    """Cut off what is behind the end. Within a write transaction that has written nothing.

    Raises apsw.Error, OSError.
    """
    end = HEADER.size + _readable(database) * FRAME_BYTES
    if end < log.stat().st_size:
        os.truncate(log, end)


def _readable(database: Path) -> int:
    """How many frames SQLite takes."""
    with closing(apsw.Connection(str(database))) as db:
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # it would remove the log
        db.execute("PRAGMA user_version").fetchall()
        return int(db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)[0])


def _sound(log: Path) -> int:
    """The same without SQLite: up to the last commit before a checksum, or a salt, that is wrong."""
    salts, sums, is_sound = _header(log)
    count = 0
    for index, head in enumerate(_heads(log) if is_sound else ()):
        sums = _sums(log, index, sums)
        if head[2:4] != salts or head[4:6] != sums:
            break
        count = index + 1 if head[1] else count
    return count


def mend(log: Path) -> None:
    """Make all checksums right up to the last commit that was flushed, durably. Raises OSError."""
    heads = list(_heads(log))
    salts = _salts(log, heads)
    ours = [index for index, head in enumerate(heads) if head[2:4] == salts]
    commits = [index for index in ours if heads[index][1]]
    if commits[-1] == ours[-1] and not _is_whole(log, heads, range(commits[-2] + 1, commits[-1] + 1), salts):
        commits.pop()  # torn, or damaged: it cannot be told
    write_durably(log, _mended(log, heads[: commits[-1] + 1], salts))


def _is_whole(log: Path, heads: list[tuple[int, ...]], frames: range, salts: tuple[int, ...]) -> bool:
    """Whether each frame's checksum follows from that of the frame before; which itself may be what is damaged."""
    before = frames[0] - 1
    sums = [heads[before][4:6], _sums(log, before, heads[before - 1][4:6])] if before > 0 else [heads[before][4:6]]
    for index in frames:
        if heads[index][2:4] != salts or heads[index][4:6] not in [_sums(log, index, one) for one in sums]:
            return False
        sums = [heads[index][4:6]]
    return True


def _sums(log: Path, index: int, before: tuple[int, ...]) -> tuple[int, int]:
    with log.open("rb") as file:
        file.seek(HEADER.size + index * FRAME_BYTES)
        head, page = file.read(FRAME.size), file.read(PAGE_BYTES)
    return _checksum(page, *_checksum(head[:8], before[0], before[1]))


def _salts(log: Path, heads: list[tuple[int, ...]]) -> tuple[int, ...]:
    """What marks the frames of now; those of before the last restart have others."""
    salts, _, is_sound = _header(log)
    if is_sound:
        return salts
    votes = [head[2:4] for head in heads[:5] if head[0]]  # several, because the damage may reach into them
    return max(votes, key=votes.count, default=salts)


def _header(log: Path) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """Its salts and checksum, and whether it is as it was written."""
    with log.open("rb") as file:
        start = file.read(HEADER.size).ljust(HEADER.size, b"\0")
    fields = HEADER.unpack(start)
    salts, sums = fields[4:6], fields[6:]
    return salts, sums, start[:3] == MAGIC.to_bytes(4)[:3] and _checksum(start[:24], 0, 0) == sums


def _heads(log: Path) -> Iterator[tuple[int, ...]]:
    with log.open("rb") as file:
        count = (os.fstat(file.fileno()).st_size - HEADER.size) // FRAME_BYTES
        for index in range(count):
            file.seek(HEADER.size + index * FRAME_BYTES)
            yield FRAME.unpack(file.read(FRAME.size))


def _mended(log: Path, heads: list[tuple[int, ...]], salts: tuple[int, ...]) -> Iterator[bytes]:
    start = struct.pack(">6I", MAGIC, VERSION, PAGE_BYTES, 0, *salts)
    sums = _checksum(start, 0, 0)
    yield start + struct.pack(">2I", *sums)
    with log.open("rb") as file:
        longest = max(head[1] for head in heads if head[2:4] == salts)
        for index, (number, pages, *_) in enumerate(heads):
            if not 0 < number <= longest:  # it is damaged, and would end the log again
                continue
            file.seek(HEADER.size + index * FRAME_BYTES + FRAME.size)
            page = file.read(PAGE_BYTES)
            head = struct.pack(">2I", number, pages)
            sums = _checksum(page, *_checksum(head, *sums))
            yield head + struct.pack(">4I", *salts, *sums) + page


def _checksum(data: bytes, one: int, two: int) -> tuple[int, int]:
    words = struct.unpack(f"<{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        one = (one + even + two) & 0xFFFFFFFF
        two = (two + odd + one) & 0xFFFFFFFF
    return one, two
