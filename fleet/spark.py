"""The same tables on Apache Spark, for fleets that one machine cannot hold; the only file that imports pyspark.

    files ──mapInArrow──► records ──repartition by vehicle, sort──► of a vehicle: clocks, then blocks
                                                                       ├──mapInArrow──► rows, as a DataFrame
                                                                       └──mapInArrow──► Parquet, a folder each vehicle

Spark shuffles, retries and schedules; the steps in between are those of the single machine (fleet/files.py, clock.py,
lines.py, days.py), and so are the rows and the files. What is shuffled are blocks, a twentieth of the size of their
rows. Files, manifests and tables must be where the driver and the workers can reach them under one path.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql.streaming.query import StreamingQuery

from edge.durable import write_durably
from edge.errors import InputError
from fleet import spark_tasks as tasks
from fleet.decode import load_manifests
from fleet.files import files as files_below
from fleet.rows import ORDER
from fleet.spark_tasks import BLOCKS, HEADS, Known

KEY = ["vehicle", "outbox", "sequence"]
RECORDS_DDL = (
    "vehicle string, outbox string, sequence long, stream string, manifest string, enqueued_us long, boot_id binary, "
    "utc_offset_us long, quality int, data binary, problem string"
)
ROWS_DDL = (
    "time_us long, bus string, message string, signal string, raw long, value double, label string, "
    f"{ORDER} long, vehicle string, campaign string, problem string"
)
WRITTEN_DDL = "folder string, problem string"
FILES_DDL = "path string, modificationTime timestamp, length long, content binary"
# Of a table that Spark makes; readers of a folder of Parquet pass over names that begin so.
CHECKPOINT, RECORDS_FOLDER, STAGING, PROBLEMS = "_checkpoint", "_records", "_staging", "_problems"


class Decoded(NamedTuple):
    """rows: columns of SCHEMA, vehicle, campaign, date (and the order of rows of one time); problems: one line each."""

    rows: DataFrame
    problems: DataFrame


def decode(
    spark: SparkSession, folders: Iterable[Path | str], manifests: Path | str, tables: Path | str | None = None
) -> Decoded:
    """Rows for whatever Spark does with them, lazily; for files, `write` is several times as fast.

    manifests, tables: folders, as fleet.decode.decode takes them. Raises InputError: no such folder, or a manifest
    file is damaged.
    """
    found = _by_vehicle(_records_of(spark, folders)).mapInArrow(tasks.to_rows(_known(manifests, tables)), ROWS_DDL)
    rows = found.filter("problem is null").drop("problem")
    days = f.date_format(f.timestamp_micros("time_us"), "yyyy-MM-dd")
    return Decoded(rows.withColumn("date", days), found.filter("problem is not null").select("problem"))


def write(
    spark: SparkSession,
    folders: Iterable[Path | str],
    manifests: Path | str,
    table: Path | str,
    tables: Path | str | None = None,
) -> list[str]:
    """All messages below folders to a table as the single machine lays it out; return its problems, one line each.

    Vehicles that the table has are replaced. Raises InputError as decode does.
    """
    return _write(_records_of(spark, folders), _known(manifests, tables), Path(table).absolute())


def _known(manifests: Path | str, tables: Path | str | None) -> Known:
    """Where the workers find them. Raises InputError: what is there cannot be read."""
    load_manifests(Path(manifests))
    if tables is not None and not Path(tables).is_dir():
        raise InputError(tables, "is no folder", "give the folder of model tables")
    return str(Path(manifests).absolute()), str(Path(tables).absolute()) if tables else ""


def _records_of(spark: SparkSession, folders: Iterable[Path | str]) -> DataFrame:
    paths = [(str(path.absolute()),) for path in files_below(folders)]
    files = spark.createDataFrame(paths, "path string").repartition(max(1, min(len(paths), _width(spark))))
    return files.mapInArrow(tasks.records, RECORDS_DDL)


def _by_vehicle(records: DataFrame) -> DataFrame:
    """All of a vehicle in one partition and one after the other: HEADS, then BLOCKS; copies of a record side by side,
    a whole one first."""
    parts = records.withColumn("part", f.explode(f.array(f.lit(HEADS), f.lit(BLOCKS))))
    parts = parts.withColumn("data", f.when(f.col("part") == BLOCKS, f.col("data")))
    spread = parts.repartition(_width(records.sparkSession), "vehicle")
    return spread.sortWithinPartitions("vehicle", "part", "outbox", "sequence", "problem", "enqueued_us")


def _width(spark: SparkSession) -> int:
    return 4 * int(spark.sparkContext.defaultParallelism)


def _write(records: DataFrame, known: Known, table: Path) -> list[str]:
    """Each task writes to a place of its own; what those that count have written goes into the table at the end."""
    staging = table / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    written = _by_vehicle(records).mapInArrow(tasks.to_files(known, str(staging)), WRITTEN_DDL).collect()
    for row in written:
        if row.folder:
            made = Path(row.folder)
            shutil.rmtree(table / made.name, ignore_errors=True)
            made.replace(table / made.name)
    shutil.rmtree(staging, ignore_errors=True)
    return [row.problem for row in written if row.problem]


# -- files as they appear


def stream(
    spark: SparkSession,
    folder: Path | str,
    manifests: Path | str,
    table: Path | str,
    tables: Path | str | None = None,
    *,
    once: bool = False,
    files_at_a_time: int = 1000,
) -> StreamingQuery:
    """Add files to the table as they appear below folder; once: those that are there now, then end.

    After each batch the table is that of one run over all files so far: records that came again are left out, and a
    vehicle of which something came is written anew, so that late clocks correct its earlier rows. So a batch costs what
    its vehicles have sent into this table so far. A batch that fails half-way is done again, by Spark's checkpoint.
    """
    known, place = _known(manifests, tables), Path(table).absolute()
    source = spark.readStream.format("binaryFile").schema(FILES_DDL).option("recursiveFileLookup", "true")
    paths = source.option("maxFilesPerTrigger", files_at_a_time).load(str(folder)).select("path")
    writer = paths.writeStream.option("checkpointLocation", _url(place / CHECKPOINT))
    writer = writer.foreachBatch(lambda batch, number: _add(batch, number, known, place))
    return (writer.trigger(availableNow=True) if once else writer).start()


def _add(batch: DataFrame, number: int, known: Known, table: Path) -> None:
    spark, store = batch.sparkSession, table / RECORDS_FOLDER
    found = batch.mapInArrow(tasks.records, RECORDS_DDL).persist()
    new = found.filter("problem is null").dropDuplicates(KEY)
    if store.exists():
        before = spark.read.parquet(_url(store)).filter(f.col("batch") != number)
        new = new.join(before.select(KEY), KEY, "left_anti")
    new.write.mode("overwrite").parquet(_url(store / f"batch={number}"))
    senders = spark.read.parquet(_url(store / f"batch={number}")).select("vehicle").distinct().collect()
    kept = spark.read.parquet(_url(store)).drop("batch")
    damaged = found.filter("problem is not null")
    told = damaged.join(kept.select(KEY), KEY, "left_anti").select("problem")
    problems = [row.problem for row in told.collect()]
    problems += _write(kept.filter(f.col("vehicle").isin([sender.vehicle for sender in senders])), known, table)
    (table / PROBLEMS).mkdir(exist_ok=True)
    write_durably(table / PROBLEMS / f"{number:06}.txt", [f"{problem}\n".encode() for problem in problems])
    found.unpersist()


def _url(path: Path) -> str:
    """As Hadoop reads them, which decodes nothing."""
    return f"file://{path.absolute()}"
