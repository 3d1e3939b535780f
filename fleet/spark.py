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
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql.streaming.query import StreamingQuery

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
FILES_DDL = "path string, modificationTime timestamp, length long, content binary"
# Of a table that a stream makes; readers of a folder of Parquet pass over names that begin so.
CHECKPOINT, RECORDS_FOLDER, STAGING, PROBLEMS = "_checkpoint", "_records", "_staging", "_problems"
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
    decoded = _decode(found.filter("problem is null").drop("problem").dropDuplicates(KEY), manifests)
    return Decoded(decoded.rows, found.filter("problem is not null").select("problem").union(decoded.problems))


def _decode(records: DataFrame, manifests: Path | str) -> Decoded:
    """Of records that are there once, and of all that their vehicles have."""
    clocks = records.drop("data", "stream", "manifest").groupBy("vehicle").applyInArrow(_offsets, OFFSETS_DDL)
    rows = records.join(clocks, KEY).mapInArrow(_decoder(str(manifests)), ROWS_DDL)
    days = f.date_format(f.timestamp_micros("time_us"), "yyyy-MM-dd")
    return Decoded(
        rows.filter("problem is null").drop("problem").withColumn("date", days),
        rows.filter("problem is not null").select("problem"),
    )


def write(rows: DataFrame, table: Path | str) -> None:
    """Parquet as the single machine lays it out: a file for each vehicle, campaign and day, sorted by time."""
    spark = rows.sparkSession
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    ordered = rows.repartition(*PARTITIONS).sortWithinPartitions(*PARTITIONS, "time_us", ORDER)
    plain = ordered.select(*SCHEMA.names, *PARTITIONS)
    plain.write.mode("overwrite").option("compression", "zstd").partitionBy(*PARTITIONS).parquet(str(table))


# -- files as they appear


def stream(
    spark: SparkSession,
    folder: Path | str,
    manifests: Path | str,
    table: Path | str,
    *,
    once: bool = False,
    files_at_a_time: int = 1000,
) -> StreamingQuery:
    """Add files to the table as they appear below folder; once: those that are there now, then end.

    After each batch the table is that of one run over all files so far: records that came again are left out, and a
    vehicle of which something came is written anew, so that late clocks correct its earlier rows. So a batch costs what
    its vehicles have sent into this table so far. A batch that fails half-way is done again, by Spark's checkpoint.
    """
    load_manifests(Path(manifests))
    source = spark.readStream.format("binaryFile").schema(FILES_DDL).option("recursiveFileLookup", "true")
    paths = source.option("maxFilesPerTrigger", files_at_a_time).load(str(folder)).select("path")
    writer = paths.writeStream.option("checkpointLocation", f"{table}/{CHECKPOINT}")
    writer = writer.foreachBatch(lambda batch, number: _add(batch, number, str(manifests), str(table)))
    return (writer.trigger(availableNow=True) if once else writer).start()


def _add(batch: DataFrame, number: int, manifests: str, table: str) -> None:
    spark = batch.sparkSession
    folders = _Folders(spark)
    found = batch.mapInArrow(_records, RECORDS_DDL).persist()
    new = found.filter("problem is null").drop("problem").dropDuplicates(KEY)
    store = f"{table}/{RECORDS_FOLDER}"
    if folders.exists(store):
        known = spark.read.parquet(store).filter(f.col("batch") != number)
        new = new.join(known.select(KEY), KEY, "left_anti")
    new.write.mode("overwrite").parquet(f"{store}/batch={number}")
    senders = spark.read.parquet(f"{store}/batch={number}").select("vehicle").distinct().collect()
    vehicles = [sender.vehicle for sender in senders]
    records = spark.read.parquet(store).drop("batch").filter(f.col("vehicle").isin(vehicles))
    decoded = _decode(records, manifests)
    write(decoded.rows, f"{table}/{STAGING}")
    for folder in folders.within(f"{table}/{STAGING}", "vehicle="):
        folders.replace(f"{table}/{STAGING}/{folder}", f"{table}/{folder}")
    problems = found.filter("problem is not null").select("problem").union(decoded.problems)
    problems.coalesce(1).write.mode("overwrite").text(f"{table}/{PROBLEMS}/batch={number}")
    found.unpersist()


class _Folders:
    """Of whatever file system Spark writes to."""

    def __init__(self, spark: SparkSession) -> None:
        java: Any = spark.sparkContext._jvm
        self._hadoop = java.org.apache.hadoop.fs
        self._settings = spark.sparkContext._jsc.hadoopConfiguration()

    def _open(self, path: str) -> tuple[Any, Any]:
        place = self._hadoop.Path(path)
        return place.getFileSystem(self._settings), place

    def exists(self, path: str) -> bool:
        files, place = self._open(path)
        return bool(files.exists(place))

    def within(self, path: str, prefix: str) -> list[str]:
        files, place = self._open(path)
        names = [status.getPath().getName() for status in files.listStatus(place)]
        return [name for name in names if name.startswith(prefix)]

    def replace(self, source: str, target: str) -> None:
        files, place = self._open(target)
        files.delete(place, True)
        if not files.rename(self._hadoop.Path(source), place):
            raise OSError(f"{source} cannot be moved to {target}")


# -- what runs in the workers


def _records(batches: Batches) -> Iterator[pa.RecordBatch]:
    """Files to records."""
    rows: list[dict[str, Any]] = []
    size = 0
    for batch in batches:
        for path in batch.column("path").to_pylist():
            for message in message_files.read(_local(path)):
                if isinstance(message, Received):
                    rows += _of_message(message)
                    size += len(message.body)
                elif isinstance(message, Unreadable):
                    rows.append({"problem": str(message)})
                if size >= BATCH_BYTES:
                    yield pa.RecordBatch.from_pylist(rows, RECORDS)
                    rows, size = [], 0
    yield pa.RecordBatch.from_pylist(rows, RECORDS)


def _local(path: str) -> Path:
    """Of a path, or of a URL as Spark gives them."""
    return Path(unquote(urlsplit(path).path) if path.startswith("file:") else path)


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
