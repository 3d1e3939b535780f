"""Blocks to rows: the decoders of all manifests, and what a block needs beside its own.

Both engines decode with this: fleet/build.py on one machine, fleet/spark.py on many.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from cy_core.columns import Columns
from cy_core.frames import Frames
from edge import block as blocks
from edge.decoder import Decoder
from edge.errors import BlockCorrupt
from edge.manifest import DecoderManifest
from edge.message import Clock
from edge.summary import Reader, is_summary
from edge.table import Table
from edge.table import load as load_table
from fleet.clock import bounds_us
from fleet.rows import Fact, Samples, TableMaker

NO_BUS = 255  # that a manifest describes
# Of a block, some hundred megabytes as arrays: a constant signal of a million rows takes a few bytes of a message. What
# vehicles put into 255 KB has less than half as many.
MOST_SAMPLES = 1 << 23

Manifests = Mapping[str, DecoderManifest]
Bounds = tuple[int, int]  # of a signal: how wrong raw values may be, and times in microseconds


class Lines:
    """Decoders by manifest, made when first needed; model tables by the names that blocks have for them."""

    def __init__(self, manifests: Manifests, models: Mapping[str, Path] | None = None) -> None:
        self.manifests = manifests
        self.models = Models(models or {})
        self._lines: dict[str, Line] = {}

    def get(self, manifest: str) -> "Line | None":
        if manifest not in self._lines:
            if manifest not in self.manifests:
                return None
            decoder = Decoder(self.manifests[manifest])
            own = decoder.manifest
            self._lines[manifest] = Line(decoder, TableMaker(own), Columns(decoder.plan), Reader(own))
        return self._lines[manifest]


class Models(blocks.Tables):
    """Files of model tables, by the names that blocks have for them; each is read when a block needs it."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        super().__init__()
        self._paths = paths

    def __contains__(self, name: str) -> bool:
        return name in self._paths

    def __getitem__(self, name: bytes) -> Table:
        """Raises TableMissing."""
        if name not in self._tables and name.hex() in self:
            self._tables[name] = load_table(self._paths[name.hex()])
        return super().__getitem__(name)


class Line(NamedTuple):
    decoder: Decoder
    maker: TableMaker
    columns: Columns
    summaries: Reader


class Decoded(NamedTuple):
    """A block's samples, how to make them a table, and how exact its signals are."""

    samples: Samples
    maker: TableMaker
    bounds: dict[Fact, Bounds]

    def table(self) -> pa.Table:
        return self.maker.table_of([self.samples])


def decode_block(
    lines: Lines, manifest: str, data: bytes, clock: Clock, utc_offset_us: int, enqueued_us: int, place: int
) -> Decoded:
    """place: of the record among all of its vehicle.

    Raises BlockCorrupt: the block is damaged, its manifest or table is not there, or its time cannot be.
    """
    line = lines.get(manifest)
    if line is None:
        raise BlockCorrupt(f"needs decoder manifest {manifest}, which was not given")
    maker, time_us, raw = line.maker, 0, dict[int, int]()
    if is_summary(data):
        summaries, columns = line.summaries.read(data)
        maker = TableMaker(summaries.manifest)
    elif blocks.holds_frames(data):
        columns = _columns_of_frames(line, data, lines.models)
    else:
        columns, time_us, raw = blocks.decode_bounded(data, line.decoder.plan, line.columns, lines.models)
    if columns.samples() > MOST_SAMPLES:
        raise BlockCorrupt(f"it holds {columns.samples():,} samples, more than the {MOST_SAMPLES:,} that are allowed")
    samples = maker.samples(columns, utc_offset_us, place)
    _check_times(samples.time_us, clock, enqueued_us)
    return Decoded(samples, maker, {fact: (raw.get(number, 0), time_us) for number, fact in maker.facts(columns)})


def _columns_of_frames(line: Line, data: bytes, models: Models) -> Columns:
    """What the raw frames of a block mean; a message whose first segments lie in the block before is not among it."""
    raw, frames, messages = Frames(), Frames(), Frames()
    names = blocks.decode_frames(data, raw, models)
    buses = line.decoder.manifest.buses
    frames.extend(*raw.to_bytes(), bytes(buses.index(name) if name in buses else NO_BUS for name in names))
    line.decoder.assembler().assemble(frames, messages)
    return line.decoder.decode_batch(frames, line.columns, messages)


def _check_times(times: Any, clock: Clock, enqueued_us: int) -> None:
    """Raises BlockCorrupt: a clock that cannot be."""
    if not len(times):
        return
    first, last = bounds_us(clock, enqueued_us)
    if not first <= times.min() <= times.max() <= last:
        taken, received = _show(int(times.min())), _show(enqueued_us)
        raise BlockCorrupt(f"its clock cannot be right: samples of {taken}, received {received}")


def _show(time_us: int) -> str:
    try:
        return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{time_us} µs of UTC"
