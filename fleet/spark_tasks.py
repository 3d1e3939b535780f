"""What Spark's workers do, from Arrow batches to Arrow batches; without Spark, so that it can be read and tested alone.

paths ──records──► records ──(Spark: by vehicle, sorted)──► to_rows ──► rows
                                                        └─► to_files ─► Parquet, and where it is
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pyarrow as pa

from edge.errors import BlockCorrupt
from edge.message import Clock, Quality
from edge.table import HASH_BYTES, names
from fleet import files as message_files
from fleet.archive import read_block
from fleet.clock import Clocks
from fleet.days import Days
from fleet.decode import load_manifests
from fleet.folder import folder_of
from fleet.lines import Decoded, Lines, decode_block
from fleet.messages import Received, Unreadable
from fleet.rows import ORDER, SCHEMA

RECORDS = pa.schema(
    [
        ("vehicle", pa.string()),
        ("outbox", pa.string()),
        ("sequence", pa.int64()),
        ("stream", pa.string()),
        ("manifest", pa.string()),
        ("enqueued_us", pa.int64()),
        ("boot_id", pa.binary()),
        ("utc_offset_us", pa.int64()),
        ("quality", pa.int32()),
        ("data", pa.binary()),
        ("problem", pa.string()),
    ]
)
ROWS = pa.schema(
    [(field.name, pa.string() if pa.types.is_dictionary(field.type) else field.type) for field in SCHEMA]
    + [(ORDER, pa.int64()), ("vehicle", pa.string()), ("campaign", pa.string()), ("problem", pa.string())]
)
WRITTEN = pa.schema([("folder", pa.string()), ("problem", pa.string())])
HEADS, BLOCKS = 0, 1  # parts of a vehicle's records: what their clocks say, without data; then all of them
BATCH_BYTES, BATCH_ROWS = 16 << 20, 10_000
ROWS_AT_ONCE = 256  # as Python objects
LARGEST = (1 << 63) - 1

Batches = Iterable[pa.RecordBatch]
Row = dict[str, Any]
Known = tuple[str, str]  # folders of manifests and of model tables, or ""


def records(batches: Batches) -> Iterator[pa.RecordBatch]:
    """Files to records."""
    rows: list[Row] = []
    size = 0
    for batch in batches:
        for path in batch.column("path").to_pylist():
            for message in message_files.read(_local(path)):
                if isinstance(message, Received):
                    rows += _of_message(message)
                    size += len(message.body)
                elif isinstance(message, Unreadable):
                    rows.append({"problem": str(message)})
                if size >= BATCH_BYTES or len(rows) >= BATCH_ROWS:
                    yield pa.RecordBatch.from_pylist(rows, RECORDS)
                    rows, size = [], 0
    yield pa.RecordBatch.from_pylist(rows, RECORDS)


def _local(path: str) -> Path:
    """Of a path, or of a URL as Spark gives them."""
    return Path(unquote(urlsplit(path).path) if path.startswith("file:") else path)


def _of_message(message: Received) -> Iterator[Row]:
    envelope = message.envelope
    for record in envelope.records:
        row = {
            "vehicle": message.vehicle,
            "outbox": envelope.outbox_id.hex(),
            "sequence": min(record.sequence, LARGEST),
            "stream": record.stream,
            "manifest": envelope.manifest.hex(),
            "enqueued_us": message.enqueued_us,
        }
        try:
            block = read_block(record)
        except BlockCorrupt as error:
            yield {**row, "problem": f"{message.place}: record {record.sequence}: {error}; left out"}
            continue
        clock = {
            "boot_id": block.clock.boot_id,
            "utc_offset_us": block.clock.utc_offset_us,
            "quality": int(block.clock.quality),
        }
        yield {**row, **clock, "data": block.data}


class _Record(NamedTuple):
    """A block to decode; its offset to UTC, and its place in the order in which the vehicle stored them."""

    row: Row
    offset_us: int
    place: int

    def decode(self, lines: Lines) -> Decoded:
        """Raises BlockCorrupt, which names the record."""
        row, clock = self.row, _clock(self.row)
        try:
            return decode_block(
                lines, row["manifest"], row["data"], clock, self.offset_us, row["enqueued_us"], self.place
            )
        except BlockCorrupt as error:
            place = f"{row['vehicle']}, outbox {row['outbox'][:8]}: record {row['sequence']} of {row['stream']}"
            raise BlockCorrupt(f"{place}: {error}; left out") from error


def _vehicles(batches: Batches) -> Iterator[tuple[str, Iterator[_Record | str]]]:
    """Each vehicle's records, each once, or what is wrong with one; "" is what is of no vehicle."""
    slices = (batch.slice(at, ROWS_AT_ONCE) for batch in batches for at in range(0, batch.num_rows, ROWS_AT_ONCE))
    rows = (row for batch in slices for row in batch.to_pylist())
    for vehicle, of_vehicle in groupby(rows, itemgetter("vehicle")):
        if vehicle is None:
            yield "", (row["problem"] for row in of_vehicle if row["part"] == BLOCKS)
        else:
            yield vehicle, _each_once(of_vehicle)


def _each_once(rows: Iterable[Row]) -> Iterator[_Record | str]:
    """rows: the HEADS of one vehicle, then its BLOCKS."""
    clocks, places = Clocks(), dict[tuple[str, int], int]()
    for part, of_part in groupby(rows, itemgetter("part")):
        if part == HEADS:
            clocks, places = _heads(of_part)
            continue
        for key, copies in groupby(of_part, itemgetter("outbox", "sequence")):
            row = next(copies)
            if row["problem"]:
                yield row["problem"]
            else:
                yield _Record(row, clocks.utc_offset_us(key[1], _clock(row), row["enqueued_us"]), places[key])


def _heads(rows: Iterable[Row]) -> tuple[Clocks, dict[tuple[str, int], int]]:
    """All clocks of a vehicle, and the place of each record."""
    clocks, began, keys = Clocks(), dict[str, int](), list[tuple[str, int]]()
    for key, copies in groupby(rows, itemgetter("outbox", "sequence")):
        whole = [row for row in copies if not row["problem"]]
        for row in whole[:1]:
            clocks.add(key[1], _clock(row), row["enqueued_us"])
            began[key[0]] = min(row["enqueued_us"], began.get(key[0], row["enqueued_us"]))
            keys.append(key)
    keys.sort(key=lambda key: (began[key[0]], *key))
    return clocks, {key: place for place, key in enumerate(keys)}


def _clock(row: Row) -> Clock:
    return Clock(row["boot_id"], row["utc_offset_us"], Quality(row["quality"]))


@cache
def _lines(manifests: str, tables: str) -> Lines:
    models = names(Path(tables)) if tables else ()
    return Lines(load_manifests(Path(manifests)), {name[: 2 * HASH_BYTES]: path for path, name in models})


def to_rows(known: Known) -> Callable[[Batches], Iterator[pa.RecordBatch]]:
    def decode_batches(batches: Batches) -> Iterator[pa.RecordBatch]:
        for vehicle, records in _vehicles(batches):
            for record in records:
                yield from _flat(vehicle, record, _lines(*known))

    return decode_batches


def _flat(vehicle: str, record: _Record | str, lines: Lines) -> Iterator[pa.RecordBatch]:
    try:
        if isinstance(record, str):
            raise BlockCorrupt(record)
        rows = record.decode(lines).table()
    except BlockCorrupt as error:
        yield pa.RecordBatch.from_pylist([{"problem": str(error)}], ROWS)
        return
    for name, value in (("vehicle", vehicle), ("campaign", record.row["stream"]), ("problem", None)):
        rows = rows.append_column(name, pa.repeat(pa.scalar(value, pa.string()), rows.num_rows))
    yield from rows.cast(ROWS).to_batches()


def to_files(known: Known, staging: str) -> Callable[[Batches], Iterator[pa.RecordBatch]]:
    def write_batches(batches: Batches) -> Iterator[pa.RecordBatch]:
        """Into a folder that no other try of this task writes to."""
        place = Path(staging) / uuid4().hex
        for vehicle, records in _vehicles(batches):
            found = _write_vehicle(place, vehicle, records, _lines(*known))
            yield pa.RecordBatch.from_pylist(list(found), WRITTEN)

    return write_batches


def _write_vehicle(place: Path, vehicle: str, records: Iterable[_Record | str], lines: Lines) -> Iterator[Row]:
    """Its folder, and what is wrong with its records: a line each, but one for all that lack the same manifest."""
    folder, missing = folder_of(place, vehicle), Counter[str]()
    with TemporaryDirectory() as spill:
        days = Days(folder, Path(spill))
        for record in records:
            if isinstance(record, str):
                yield {"problem": record}
            elif lines.get(record.row["manifest"]) is None:
                missing[record.row["manifest"]] += 1
            else:
                try:
                    days.add(record.row["stream"], record.row["manifest"], record.decode(lines))
                except BlockCorrupt as error:
                    yield {"problem": str(error)}
        if vehicle:
            folder.mkdir(parents=True)
            days.write()
            yield {"folder": str(folder)}
    for manifest, count in sorted(missing.items()):
        what = f"{count:,} records need decoder manifest {manifest}, which was not given; left out"
        yield {"problem": f"{vehicle}: {what}"}
