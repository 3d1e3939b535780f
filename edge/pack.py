"""A recording to one file of blocks and back: every frame, bit for bit.

    "bordnetz-pack 1\\n" | size of a block, 4 bytes | block | size | block | ...

Each block (edge/block.py) decodes alone, so what is before a damage, and behind it, is still there.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cy_core.codec.raw import FRAMES_MAX
from cy_core.frames import Frames
from edge import block, logs
from edge.errors import BlockCorrupt, InputError, TableMissing
from edge.log_writer import open_log_writer, whole_file
from edge.table import Table

FORMAT = b"bordnetz-pack 1\n"
SIZE = struct.Struct("<I")
BLOCK_MAX_BYTES = 64 << 20


class Result(NamedTuple):
    frames: int
    blocks: int
    bytes: int
    problems: list[str]  # what was wrong with what was read, a line each


def pack(
    log: Path,
    out: Path,
    table: Table,
    batch_seconds: float,
    tick_us: int,
    to: Callable[[float], None] = lambda n: None,
    *,
    mixed: bool = False,
) -> Result:
    """Write a recording as blocks of batch_seconds; to is told how many bytes of the recording are read.

    mixed: as in edge/block.py.
    Raises InputError: the recording is none, or the file cannot be written.
    """
    reader = logs.open_log(log)
    frames, count, blocks, more = Frames(), 0, 0, True
    try:
        with whole_file(out) as file:
            file.write(FORMAT)
            while more:
                more = reader.read(frames, FRAMES_MAX - len(frames))
                parts = list(cut(frames, batch_seconds))
                if more and len(parts) > 1:
                    parts.pop()  # it goes on
                for start, end in parts:
                    made = block.encode_frames(frames, reader.buses, table, tick_us, start, end, mixed=mixed)
                    file.write(SIZE.pack(len(made)) + made)
                done = parts[-1][1] if parts else 0
                frames = frames.slice(done, len(frames))
                count, blocks = count + done, blocks + len(parts)
                to(reader.bytes_read)
            size = file.tell()
    except ValueError as error:
        raise InputError(log, f"cannot be packed ({error})") from error
    finally:
        reader.close()
    return Result(count, blocks, size, reader.problems())


def cut(frames: Frames, seconds: float) -> Iterator[tuple[int, int]]:
    """Where blocks of that many seconds begin and end."""
    times = memoryview(frames.to_bytes()[0]).cast("q")[::3]
    start = 0
    for place, time_us in enumerate(times):
        if time_us - times[start] >= seconds * 1e6 or place - start == FRAMES_MAX:
            yield start, place
            start = place
    if start < len(times):
        yield start, len(times)


def unpack(packed: Path, out: Path, tables: block.Tables, to: Callable[[float], None] = lambda n: None) -> Result:
    """Write the frames of a packed recording in the form of out's suffix.

    Blocks that do not decode are named and left out.

    Raises InputError: no packed recording, a table that is not given, or the file cannot be written.
    """
    problems: list[str] = []
    frames, count, blocks = Frames(), 0, 0
    with open_log_writer(out) as log:
        for number, (place, found) in enumerate(_read_blocks(packed, problems), 1):
            frames.clear()
            try:
                buses = block.decode_frames(found, frames, tables)
            except TableMissing as error:
                raise InputError(packed, str(error), "give it: --table FILE") from error
            except BlockCorrupt as error:
                problems.append(f"block {number} is left out: {error}")
                continue
            log.write(frames, buses)
            count, blocks = count + len(frames), blocks + 1
            to(place)
    return Result(count, blocks, out.stat().st_size, problems)


def _read_blocks(path: Path, problems: list[str]) -> Iterator[tuple[int, bytes]]:
    """(where it ends, bytes) of each block."""
    try:
        with path.open("rb") as file:
            if file.read(len(FORMAT)) != FORMAT:
                raise InputError(path, "is not a packed recording", "bordnetz pack makes one")
            while head := file.read(SIZE.size):
                size = SIZE.unpack(head)[0] if len(head) == SIZE.size else 0
                found = file.read(size) if size <= BLOCK_MAX_BYTES else b""
                if not size or len(found) != size:
                    problems.append(f"is cut or damaged at byte {file.tell()}; all before that was read")
                    return
                yield file.tell(), found
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "bordnetz pack makes one") from error
