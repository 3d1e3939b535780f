"""A recording to a table, without a vehicle in between: `bordnetz decode`."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from cy_core.columns import Columns
from cy_core.frames import Frames
from edge.decoder import Decoder
from edge.logs import open_log
from edge.manifest import DecoderManifest
from fleet.rows import TableMaker
from fleet.sort import Sorter
from fleet.table_file import open_writer
from fleet.vss import open_vss_writer

FRAMES_AT_ONCE = 65_536
COUNTED = (
    "frames",
    "unknown_frames",
    "short_frames",
    "remote_frames",
    "error_frames",
    "segment_frames",
    "assembled_messages",
)


class DecodedLog(msgspec.Struct):
    """What became of the frames. problems: one line each, empty where all of the log was read."""

    out: str
    frames: int = 0
    samples: int = 0
    unknown_frames: int = 0
    short_frames: int = 0
    remote_frames: int = 0
    error_frames: int = 0
    segment_frames: int = 0
    assembled_messages: int = 0
    failed_sessions: int = 0
    problems: list[str] = []

    def __str__(self) -> str:
        told = {
            "of no message in the manifest": self.unknown_frames,
            "shorter than their message": self.short_frames,
            "remote": self.remote_frames,
            "error": self.error_frames,
            "parts of messages": self.segment_frames,
        }
        rest = "".join(f", {count:,} {what}" for what, count in told.items() if count)
        if self.segment_frames:
            rest += f"; {self.assembled_messages:,} messages put together, {self.failed_sessions:,} that failed"
        return f"{self.out}: {self.samples:,} samples from {self.frames:,} frames{rest}"


def decode_log(
    log: Path,
    manifest: DecoderManifest,
    out: Path,
    progress: Callable[[int], None] = lambda done: None,
    by_vss: bool = False,
) -> DecodedLog:
    """Write the samples of log, in order of time, to out (.parquet or .csv); by_vss: as fleet/vss.py has them.

    progress gets the bytes of log done with, roughly.

    Raises InputError: log cannot be opened, or out cannot be written; by_vss of a manifest without VSS signals.
    """
    open_out = open_vss_writer if by_vss else open_writer
    decoder, maker = Decoder(manifest), TableMaker(manifest)
    result = DecodedLog(str(out))
    columns, frames, messages, assembler = Columns(decoder.plan), Frames(), Frames(), decoder.assembler()
    with closing(open_log(log, manifest.buses)) as reader, open_out(out, manifest) as writer, _scratch(out) as spill:
        sorter = Sorter(spill)
        more = True
        while more:
            more = reader.read(frames, FRAMES_AT_ONCE)
            assembler.assemble(frames, messages)
            decoder.decode_batch(frames, columns, messages)
            sorter.add(maker.rows(columns))
            _count(result, columns)
            frames.clear()
            messages.clear()
            progress(reader.bytes_read)
        for rows in sorter.tables():
            writer.write(rows)
        result.failed_sessions = sum(failed for _, failed, _ in assembler.counters().values())
        result.problems = [f"{log}: {problem}" for problem in reader.problems()]
    return result


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder beside out, on the same disk."""
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        yield Path(folder)


def _count(result: DecodedLog, columns: Columns) -> None:
    result.samples += columns.samples()
    for name in COUNTED:
        setattr(result, name, getattr(result, name) + getattr(columns, name))
