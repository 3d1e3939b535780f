"""The same tables on Apache Spark, for fleets that one machine cannot hold; the only file that imports pyspark.

    files ──mapInArrow──► records ──dropDuplicates──► each once ─────────────┬──join──mapInArrow──► rows ──► Parquet
                                                       └──applyInArrow──► offset to UTC, by vehicle
                                                                           (of all blocks of a boot)

Spark reads, shuffles, retries and writes; the steps in between are those of the single machine (fleet/files.py,
clock.py, build.py), and so are the rows. Files must be where the workers can read them.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from edge.errors import BlockCorrupt
from edge.message import Clock, Quality
from fleet import files as message_files
from fleet.archive import read_block
from fleet.build import Lines, decode_rows, rank
from fleet.clock import Clocks
from fleet.decode import load_manifests
from fleet.messages import Received, Unreadable
from fleet.table import ORDER, PARTITIONS, SCHEMA

KEY = ["vehicle", "outbox", "sequence"]
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
KEYS_DDL = "vehicle string, outbox string, sequence long"
RECORDS_DDL = (
    f"{KEYS_DDL}, stream string, manifest string, enqueued_us long, boot_id binary, utc_offset_us long, quality int, "
    "data binary, problem string"
)
OFFSETS_DDL = f"{KEYS_DDL}, offset_us long, place long"
ROWS = pa.schema(
    [(field.name, pa.string() if pa.types.is_dictionary(field.type) else field.type) for field in SCHEMA]
    + [(ORDER, pa.int64()), ("vehicle", pa.string()), ("campaign", pa.string()), ("problem", pa.string())]
)
ROWS_DDL = (
    "time_us long, bus string, message string, signal string, raw long, value double, label string, "
    f"{ORDER} long, vehicle string, campaign string, problem string"
)
Batches = Iterable[pa.RecordBatch]
BATCH_BYTES = 16 << 20


class Decoded(NamedTuple):
    """rows: columns of SCHEMA, vehicle, campaign, date (and the order of rows of one time); problems: one line each."""

    rows: DataFrame
    problems: DataFrame


def decode(spark: SparkSession, folders: Iterable[Path | str], manifests: Path | str) -> Decoded:
    """Lazy, as all of Spark. Raises InputError: no such folder, or a manifest file is damaged."""
    paths = [(str(path),) for path in message_files.files(folders)]
    load_manifests(Path(manifests))
    width = max(1, min(len(paths), 4 * spark.sparkContext.defaultParallelism))
    files = spark.createDataFrame(paths, "path string").repartition(width)
    found = files.mapInArrow(_records, RECORDS_DDL).persist()
    records = found.filter("problem is null").drop("problem").dropDuplicates(KEY)
    clocks = records.drop("data", "stream", "manifest").groupBy("vehicle").applyInArrow(_offsets, OFFSETS_DDL)
    rows = records.join(clocks, KEY).mapInArrow(_decoder(str(manifests)), ROWS_DDL)
    days = f.date_format(f.timestamp_micros("time_us"), "yyyy-MM-dd")
    problems = found.filter("problem is not null").select("problem")
    return Decoded(
        rows.filter("problem is null").drop("problem").withColumn("date", days),
        problems.union(rows.filter("problem is not null").select("problem")),
    )


def write(rows: DataFrame, table: Path | str) -> None:
    """Parquet as the single machine lays it out: a file for each vehicle, campaign and day, sorted by time."""
    spark = rows.sparkSession
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    ordered = rows.repartition(*PARTITIONS).sortWithinPartitions(*PARTITIONS, "time_us", ORDER)
    plain = ordered.select(*SCHEMA.names, *PARTITIONS)
    plain.write.mode("overwrite").option("compression", "zstd").partitionBy(*PARTITIONS).parquet(str(table))


# -- what runs in the workers


def _records(batches: Batches) -> Iterator[pa.RecordBatch]:
    """Files to records."""
    rows: list[dict[str, Any]] = []
    size = 0
    for batch in batches:
        for path in batch.column("path").to_pylist():
            for message in message_files.read(Path(path)):
                if isinstance(message, Received):
                    rows += _of_message(message)
                    size += len(message.body)
                elif isinstance(message, Unreadable):
                    rows.append({"problem": str(message)})
                if size >= BATCH_BYTES:
                    yield pa.RecordBatch.from_pylist(rows, RECORDS)
                    rows, size = [], 0
    yield pa.RecordBatch.from_pylist(rows, RECORDS)


def _of_message(message: Received) -> Iterator[dict[str, Any]]:
    envelope = message.envelope
    for record in envelope.records:
        row = {
            "vehicle": message.vehicle,
            "outbox": envelope.outbox_id.hex(),
            "sequence": record.sequence,
            "stream": record.stream,
            "manifest": envelope.manifest.hex(),
            "enqueued_us": message.enqueued_us,
        }
        try:
            block = read_block(record)
        except BlockCorrupt as error:
            yield {"problem": f"{message.place}: record {record.sequence}: {error}; left out"}
            continue
        clock = {
            "boot_id": block.clock.boot_id,
            "utc_offset_us": block.clock.utc_offset_us,
            "quality": int(block.clock.quality),
        }
        yield {**row, **clock, "data": block.data}


def _clock(row: dict[str, Any]) -> Clock:
    return Clock(row["boot_id"], row["utc_offset_us"], Quality(row["quality"]))


def _offsets(records: pa.Table) -> pa.Table:
    """Of one vehicle: the offset that each block gets, and its place in the order in which they were stored."""
    rows = records.to_pylist()
    began: dict[str, int] = {}
    clocks = Clocks()
    for row in rows:
        began[row["outbox"]] = min(row["enqueued_us"], began.get(row["outbox"], row["enqueued_us"]))
        clocks.add(row["sequence"], _clock(row), row["enqueued_us"])
    rows.sort(key=lambda row: (began[row["outbox"]], row["outbox"], row["sequence"]))
    return pa.table(
        {
            **{name: [row[name] for row in rows] for name in KEY},
            "offset_us": [clocks.utc_offset_us(row["sequence"], _clock(row), row["enqueued_us"]) for row in rows],
            "place": range(len(rows)),
        },
        schema=pa.schema([*(RECORDS.field(name) for name in KEY), ("offset_us", pa.int64()), ("place", pa.int64())]),
    )


def _decoder(manifests: str) -> Callable[[Batches], Iterator[pa.RecordBatch]]:
    def decode_batches(batches: Batches) -> Iterator[pa.RecordBatch]:
        """Records with their offsets to rows."""
        for batch in batches:
            for row in batch.to_pylist():
                yield from _rows(_lines(manifests), row)

    return decode_batches


@cache
def _lines(manifests: str) -> Lines:
    return Lines(load_manifests(Path(manifests)))


def _rows(lines: Lines, row: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    try:
        found, _ = decode_rows(lines, row["manifest"], row["data"], _clock(row), row["offset_us"], row["enqueued_us"])
    except BlockCorrupt as error:
        place = f"{row['vehicle']}, outbox {row['outbox'][:8]}: record {row['sequence']} of {row['stream']}"
        yield pa.RecordBatch.from_pylist([{"problem": f"{place}: {error}; left out"}], ROWS)
        return
    found = found.set_column(found.num_columns - 1, ORDER, rank(found, row["place"]))
    for name, value in (("vehicle", row["vehicle"]), ("campaign", row["stream"]), ("problem", None)):
        found = found.append_column(name, pa.repeat(pa.scalar(value, pa.string()), found.num_rows))
    yield from found.cast(ROWS).to_batches()
