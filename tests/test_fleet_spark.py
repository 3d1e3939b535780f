"""`make fleet-spark`: a generated fleet on Spark, in two worker processes, one of which is killed half-way."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fleet import table
from fleet.decode import decode
from fleet.generate import write
from fleet.rows import ORDER

pytest.importorskip("pyspark")
if not shutil.which("java"):
    pytest.skip("Spark needs Java", allow_module_level=True)

from pyspark.sql import SparkSession

from bench import fleet_spark
from fleet import spark as on_spark

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def session() -> Iterator[SparkSession]:
    made = fleet_spark.session()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("fleet")
    write(folder / "made", vehicles=4, hours=3, seed=9)
    (folder / "made/messages/notes.txt").write_text("?")
    decode([folder / "made/messages"], folder / "made/manifests", folder / "table")
    return folder


def test_rows_are_those_of_the_single_machine_though_a_worker_is_killed_half_way(
    session: SparkSession, fleet: Path
) -> None:
    problems: list[str] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            problems.extend(
                on_spark.write(session, [fleet / "made/messages"], fleet / "made/manifests", fleet / "spark")
            )
        except BaseException as error:
            failures.append(error)

    before = executors()
    assert len(before) == 2
    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive() and not tasks_done(session):
        time.sleep(0.02)
    assert thread.is_alive(), failures  # half-way
    os.kill(before[0], signal.SIGKILL)
    thread.join(timeout=300)
    assert not thread.is_alive()
    assert failures == []
    assert before[0] not in executors()
    (problem,) = problems
    assert "notes.txt: is no file of messages by its name" in problem
    assert_same(table.read(fleet / "spark"), table.read(fleet / "table"))
    assert sorted(path.name for path in (fleet / "spark").iterdir()) == [f"vehicle=vehicle-{n:05}" for n in range(4)]


def test_a_stream_of_files_makes_the_table_of_one_run_whatever_order_they_come_in(
    session: SparkSession, fleet: Path, tmp_path: Path
) -> None:
    files = sorted(path for path in (fleet / "made/messages").rglob("*.json"))
    landing, out = tmp_path / "landing", tmp_path / "table"
    for part in (files[1::2], files[::2], files[:3]):  # the last come again, under other names
        for path in part:
            place = landing / f"{len(list(landing.rglob('*.json'))):04}" / path.name
            place.parent.mkdir(parents=True)
            shutil.copy(path, place)
        on_spark.stream(session, landing, fleet / "made/manifests", out, once=True).awaitTermination(300)
    assert_same(table.read(out), table.read(fleet / "table"))
    kept = session.read.parquet(str(out / on_spark.RECORDS_FOLDER))
    assert kept.count() == kept.select(on_spark.KEY).distinct().count()


def assert_same(rows: pa.Table, wanted: pa.Table) -> None:
    assert rows.num_rows == wanted.num_rows > 0
    for name in wanted.column_names:
        assert rows[name].to_pylist() == wanted[name].to_pylist(), name
    assert table.facts(rows) == table.facts(wanted)


def test_as_a_data_frame_the_rows_are_the_same_but_those_whose_manifest_is_missing(
    session: SparkSession, fleet: Path, tmp_path: Path
) -> None:
    (tmp_path / "manifests").mkdir()
    shutil.copy(fleet / "made/manifests/0.manifest", tmp_path / "manifests")
    decode([fleet / "made/messages"], tmp_path / "manifests", tmp_path / "table")
    wanted = table.read(tmp_path / "table")
    found = on_spark.decode(session, [fleet / "made/messages"], tmp_path / "manifests")
    lines = [row.problem for row in found.problems.collect()]
    assert sum("needs decoder manifest" in line for line in lines) > 1000
    rows = found.rows.orderBy("vehicle", "campaign", "time_us", ORDER).toArrow()
    for name in wanted.column_names:
        assert rows[name].to_pylist() == [str(v) if name == "date" else v for v in wanted[name].to_pylist()], name


def tasks_done(session: SparkSession) -> int:
    tracker = session.sparkContext.statusTracker()
    stages = [tracker.getStageInfo(number) for number in tracker.getActiveStageIds()]
    return sum(stage.numCompletedTasks for stage in stages if stage)


def executors() -> list[int]:
    """Executor processes below this one."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if b"CoarseGrainedExecutorBackend" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue

    def is_ours(pid: int) -> bool:
        while pid in parents:
            if pid == os.getpid():
                return True
            pid = parents[pid]
        return False

    return sorted(pid for pid in found if is_ours(pid))
