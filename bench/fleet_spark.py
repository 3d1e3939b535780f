"""Spark in two worker processes beside the single machine's two, on the same messages; part of `make fleet-spark`.

Start-up is not counted: the workers have decoded a small fleet before. Both are taken in turn, and their wall times and
the CPU times of all processes below this one are compared; a machine that is shared shows in the former.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from pyspark.sql import SparkSession

from bench.__main__ import machine, show
from fleet import spark as on_spark
from fleet.decode import decode
from fleet.generate import write

ROOT = Path(__file__).resolve().parent.parent
VEHICLES, HOURS = 8, 8
ROUNDS = 3
WORKERS = 2


def session() -> SparkSession:
    """Two worker processes of one core each, and nothing that asks the network."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    return (
        SparkSession.builder.master(f"local-cluster[{WORKERS},1,1024]")
        .appName("bordnetz")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.executorEnv.PYTHONPATH", str(ROOT))
        .config("spark.sql.shuffle.partitions", "6")
        .config("spark.sql.session.timeZone", "UTC")
        .getOrCreate()
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fleet_spark", description=__doc__)
    parser.add_argument("--vehicles", type=int, default=VEHICLES)
    given = parser.parse_args()
    show({"figure": "machine", **machine()})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "small", 4, 0.5, seed=2)
        truth = write(folder / "made", given.vehicles, HOURS, seed=1)
        spark = session()
        on_spark.write(spark, [folder / "small/messages"], folder / "small/manifests", folder / "warm")
        both = {
            "spark": lambda out: on_spark.write(spark, [folder / "made/messages"], folder / "made/manifests", out),
            "single": lambda out: decode([folder / "made/messages"], folder / "made/manifests", out, jobs=WORKERS),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in both}
        for number in range(ROUNDS):
            for name, run in both.items():
                clock = _all_cpu_s if name == "spark" else _own_cpu_s
                wall, cpu = _seconds(run, folder / f"{name}-{number}", clock)
                show({"figure": f"{name}, round {number}", "wall s": wall, "CPU s": cpu})
                found[name].append((wall, cpu))
        spark.stop()
    show(_figure(truth, found))


def _figure(truth: Any, found: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    pairs = list(zip(found["spark"], found["single"], strict=True))
    return {
        "figure": "Spark in two worker processes against two processes of one machine",
        "messages": truth.messages,
        "samples": truth.samples,
        **{f"{name}, wall s": median(wall for wall, _ in times) for name, times in found.items()},
        **{f"{name}, CPU s": median(cpu for _, cpu in times) for name, times in found.items()},
        "times, wall": median(ours[0] / theirs[0] for ours, theirs in pairs),
        "times, CPU": median(ours[1] / theirs[1] for ours, theirs in pairs),
        "asked": 1.5,
    }


def _seconds(run: Callable[[Path], Any], out: Path, cpu_s: Callable[[], float]) -> tuple[float, float]:
    wall, cpu = time.monotonic(), cpu_s()
    run(out)
    return time.monotonic() - wall, cpu_s() - cpu


def _own_cpu_s() -> float:
    """Of this process and those below it that have ended, as those of decode have when it returns."""
    return sum(os.times()[:4])


def _all_cpu_s() -> float:
    """Of this process and all below it, as Spark's live on."""
    parents, seconds, ticks = dict[int, int](), dict[int, float](), os.sysconf("SC_CLK_TCK")
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
        seconds[int(path.parent.name)] = sum(map(int, fields[11:15])) / ticks
    return sum(used for pid, used in seconds.items() if _is_ours(pid, parents))


def _is_ours(pid: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != os.getpid():
        pid = parents[pid]
    return pid == os.getpid()


if __name__ == "__main__":
    main()
