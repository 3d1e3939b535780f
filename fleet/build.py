"""A vehicle's archive to its Parquet files, as much of it as has changed.

    archive ──► records never decoded, or with another offset to UTC than before ──► days that change
       └──────► all records of those days ──► rows, sorted ──► campaign=…/date=…/part-0.parquet, each replaced whole

What was built is written down last (_built). A build that was killed is done again from what was written down before,
and comes to the same files.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import msgspec
import numpy as np
import pyarrow as pa

from cy_core.columns import Columns
from cy_core.frames import Frames
from edge import block as blocks
from edge.decoder import Decoder
from edge.durable import write_durably
from edge.errors import BlockCorrupt, TableMissing
from edge.manifest import DecoderManifest
from edge.message import Clock
from edge.summary import Reader, is_summary
from edge.table import HASH_BYTES, Table
from edge.table import load as load_table
from fleet.archive import Archive, Stored, count_segments
from fleet.clock import Clocks, bounds_us
from fleet.sort import Sorter
from fleet.table import ORDER, Fact, ParquetFile, TableMaker

STATE_FILE = "_built"
SPILL = "_spill"
PART = "part-0.parquet"
DAY_US = 86_400_000_000
NO_BUS = 255  # that a manifest describes

Manifests = Mapping[str, DecoderManifest]
Day = tuple[str, int]  # campaign, days since 1970
Bounds = tuple[int, int]  # of a signal: how wrong raw values may be, and times in microseconds


class Span(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A record that is in the table: times of its first and last sample in the block, and the offset to UTC used."""

    first_us: int
    last_us: int
    utc_offset_us: int

    def days(self, utc_offset_us: int) -> range:
        if self.last_us < self.first_us:
            return range(0)
        return range((self.first_us + utc_offset_us) // DAY_US, (self.last_us + utc_offset_us) // DAY_US + 1)


class Problem(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """Why a record is not in the table; manifest, model_table: the one it waits for, or empty."""

    reason: str
    manifest: str = ""
    model_table: str = ""


class State(msgspec.Struct, array_like=True):
    """outcomes: of each record of the archive, by its number."""

    segments: int = 0
    outcomes: list[Any] = []


class Lines:
    """Decoders by manifest, made when first needed; model tables by the names that blocks have for them."""

    def __init__(self, manifests: Manifests, models: Iterable[Path] = ()) -> None:
        self.manifests = manifests
        self.models = Models(models)
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
    """Files of model tables; each is read when a block needs it."""

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        super().__init__()
        self._paths = {path.stem[: 2 * HASH_BYTES]: path for path in paths}

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


def load_outcomes(folder: Path) -> list[Span | Problem | None]:
    state = _load(folder)
    return state.outcomes if state else []


def needs_build(folder: Path, lines: Lines) -> bool:
    """Is there a record that no build has seen, or one that waits for a manifest or model table that is here now?"""
    state = _load(folder)
    if state is None or state.segments != count_segments(folder):
        return True
    waiting = [outcome for outcome in state.outcomes if isinstance(outcome, Problem)]
    return any(one.manifest in lines.manifests or one.model_table in lines.models for one in waiting)


def build(folder: Path, lines: Lines) -> None:
    """Bring the files of the vehicle in folder to what its archive says. Raises InputError, OSError."""
    shutil.rmtree(folder / SPILL, ignore_errors=True)
    _Build(folder, lines).run()
    shutil.rmtree(folder / SPILL, ignore_errors=True)


class _Build:
    def __init__(self, folder: Path, lines: Lines) -> None:
        self._folder = folder
        self._lines = lines
        self._archive = Archive(folder)
        self._records = self._archive.records()
        self._ranks = {record.number: rank for rank, record in enumerate(self._records)}
        self._offsets = _offsets(self._records)
        self._sorters: dict[str, Sorter] = {}
        self._signals: dict[Day, dict[tuple[str, Fact], Bounds]] = {}
        state = _load(folder)
        self._outcomes = list(state.outcomes) if state else []
        self._outcomes += [None] * (len(self._records) - len(self._outcomes))
        self._dirty: set[Day] = set(_days_on_disk(folder)) if state is None else set()

    def run(self) -> None:
        fresh = [record for record in self._records if not isinstance(self._outcomes[record.number], Span)]
        for record, data in self._archive.bodies(_by_place(fresh)):
            self._decode_first(record, data)
        done = {record.number for record in fresh}
        others = [record for record in self._records if record.number not in done]
        self._note_moved(others)
        again = [record for record in others if not self._dirty.isdisjoint(self._days(record))]
        for record, data in self._archive.bodies(_by_place(again)):
            self._decode_again(record, data)
        for campaign in {campaign for campaign, _ in self._dirty}:
            self._write(campaign)
        state = State(len(self._archive.indexes), self._outcomes)
        write_durably(self._folder / STATE_FILE, [msgspec.msgpack.encode(state)])

    def _note_moved(self, records: Iterable[Stored]) -> None:
        """A day that a record leaves changes as much as the one it goes to."""
        for record in records:
            span, offset_us = self._outcomes[record.number], self._offsets[record.number]
            if span.utc_offset_us != offset_us:
                self._dirty.update((record.group.stream, day) for day in span.days(span.utc_offset_us))
                self._outcomes[record.number] = Span(span.first_us, span.last_us, offset_us)
                self._dirty.update(self._days(record))

    def _days(self, record: Stored) -> Iterator[Day]:
        for day in self._outcomes[record.number].days(self._offsets[record.number]):
            yield record.group.stream, day

    def _decode_first(self, record: Stored, data: bytes) -> None:
        try:
            rows = self._rows(record, data)
        except BlockCorrupt as error:
            self._leave_out(record, error)
            return
        times, offset_us = np.asarray(rows["time_us"]), self._offsets[record.number]
        first, last = (int(times.min()), int(times.max())) if len(times) else (0, -1)
        span = Span(first - offset_us, last - offset_us, offset_us) if len(times) else Span(0, -1, offset_us)
        self._outcomes[record.number] = span
        self._dirty.update(self._days(record))
        self._add(record, rows)

    def _decode_again(self, record: Stored, data: bytes) -> None:
        try:
            rows = self._rows(record, data)
        except BlockCorrupt as error:  # its manifest is no longer there, or a better clock makes no sense
            self._leave_out(record, error)
            return
        days = np.asarray(rows["time_us"]) // DAY_US
        wanted = [day for campaign, day in self._days(record) if (campaign, day) in self._dirty]
        self._add(record, rows.filter(pa.array(np.isin(days, wanted))))

    def _leave_out(self, record: Stored, error: BlockCorrupt) -> None:
        waits_for = "" if self._lines.get(record.group.manifest) else record.group.manifest
        model_table = error.name if isinstance(error, TableMissing) else ""
        self._outcomes[record.number] = Problem(str(error), waits_for, model_table)

    def _rows(self, record: Stored, data: bytes) -> pa.Table:
        """With the rank of the record behind the number of the signal. Raises BlockCorrupt."""
        manifest, offset_us = record.group.manifest, self._offsets[record.number]
        rows, bounds = decode_rows(self._lines, manifest, data, record.clock, offset_us, record.entry.enqueued_us)
        for day in np.unique(np.asarray(rows["time_us"]) // DAY_US).tolist():
            known = self._signals.setdefault((record.group.stream, day), {})
            for fact, bound in bounds.items():
                before = known.get((manifest, fact), bound)
                known[manifest, fact] = max(before[0], bound[0]), max(before[1], bound[1])
        return rows.set_column(rows.num_columns - 1, ORDER, rank(rows, self._ranks[record.number]))

    def _add(self, record: Stored, rows: pa.Table) -> None:
        campaign = record.group.stream
        if campaign not in self._sorters:
            self._sorters[campaign] = Sorter(self._folder / SPILL / str(len(self._sorters)))
        self._sorters[campaign].add(rows)

    def _write(self, campaign: str) -> None:
        folder = self._folder / f"campaign={quote(campaign, safe='')}"
        left = {day for name, day in self._dirty if name == campaign}
        tables = self._sorters.pop(campaign).tables() if campaign in self._sorters else iter(())
        rows = next(tables, None)
        while rows is not None:
            day = _day(rows)
            path = folder / f"date={_date(day)}" / PART
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{PART}.draft")
            with ParquetFile(draft, self._facts(campaign, day)) as file:
                while rows is not None and _day(rows) == day:
                    file.write(rows)
                    rows = next(tables, None)
            draft.replace(path)
            left.remove(day)
        for day in left:  # nothing is of this day any more
            shutil.rmtree(folder / f"date={_date(day)}", ignore_errors=True)

    def _facts(self, campaign: str, day: int) -> dict[str, Any]:
        used = self._signals.get((campaign, day), {})
        facts: dict[str, Any] = {"manifests": sorted({manifest for manifest, _ in used}), "signals": {}}
        facts["signals"] = {fact.name: fact.document(*bounds) for (_, fact), bounds in sorted(used.items())}
        return facts


def decode_rows(
    lines: Lines, manifest: str, data: bytes, clock: Clock, utc_offset_us: int, enqueued_us: int
) -> tuple[pa.Table, dict[Fact, Bounds]]:
    """The rows of a block, in no order, and of each of its signals how exact they are.

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
    rows = maker.rows(columns, utc_offset_us)
    _check_times(np.asarray(rows["time_us"]), clock, enqueued_us)
    return rows, {fact: (raw.get(number, 0), time_us) for number, fact in maker.facts(columns)}


def _columns_of_frames(line: Line, data: bytes, models: Models) -> Columns:
    """What the raw frames of a block mean; a message whose first segments lie in the block before is not among it."""
    raw, frames, messages = Frames(), Frames(), Frames()
    names = blocks.decode_frames(data, raw, models)
    buses = line.decoder.manifest.buses
    frames.extend(*raw.to_bytes(), bytes(buses.index(name) if name in buses else NO_BUS for name in names))
    line.decoder.assembler().assemble(frames, messages)
    return line.decoder.decode_batch(frames, line.columns, messages)


def rank(rows: pa.Table, place: int) -> pa.Array:
    """The order of rows of one time: as in the manifest, then by the place of the record among all."""
    return pa.array(np.asarray(rows[ORDER]).astype(np.int64) << 32 | place)


def _offsets(records: Iterable[Stored]) -> dict[int, int]:
    clocks, records = Clocks(), list(records)
    for record in records:
        clocks.add(record.entry.sequence, record.clock, record.entry.enqueued_us)
    return {r.number: clocks.utc_offset_us(r.entry.sequence, r.clock, r.entry.enqueued_us) for r in records}


def _by_place(records: Iterable[Stored]) -> list[Stored]:
    return sorted(records, key=lambda record: record.number)


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


def _day(rows: pa.Table) -> int:
    return int(rows["time_us"][0].as_py()) // DAY_US


def _date(day: int) -> date:
    return date.fromordinal(date(1970, 1, 1).toordinal() + day)


def _days_on_disk(folder: Path) -> Iterator[Day]:
    for path in folder.glob("campaign=*/date=*"):
        day = date.fromisoformat(path.name.removeprefix("date="))
        yield unquote(path.parent.name.removeprefix("campaign=")), day.toordinal() - date(1970, 1, 1).toordinal()


def _load(folder: Path) -> State | None:
    """What was built; None if nobody knows: then all of it is built again."""
    try:
        content = (folder / STATE_FILE).read_bytes()
        plain = msgspec.msgpack.decode(content)
        outcomes = [_outcome(value) for value in plain[1]]
        return State(plain[0], outcomes)
    except (OSError, msgspec.MsgspecError, ValueError, TypeError, IndexError):
        return None


def _outcome(value: Any) -> Span | Problem | None:
    if value is None:
        return None
    return Span(*value) if len(value) == 3 and isinstance(value[0], int) else Problem(*value[1:4])
