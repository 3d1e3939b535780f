"""A generated fleet with everything that goes wrong on the way, against the truth that was written beside it."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from edge.cli import main
from edge.errors import InputError
from fleet import table
from fleet.decode import decode
from fleet.generate import read_truth, write


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("fleet") / "made"
    write(folder, vehicles=3, hours=3, seed=7)
    return folder


@pytest.fixture(scope="module")
def whole(fleet: Path, tmp_path_factory: Any) -> Path:
    """The table of all of it, made in one run by two processes."""
    folder: Path = tmp_path_factory.mktemp("whole") / "table"
    audit = decode([fleet / "messages"], fleet / "manifests", folder, jobs=2)
    assert audit.ok, str(audit)
    return folder


def test_the_table_is_the_truth(fleet: Path, whole: Path) -> None:
    truth, found = read_truth(fleet), table.read(whole)
    assert sum(record.evicted for vehicle in truth.vehicles for record in vehicle.records) > 0
    assert found.num_rows == truth.samples
    assert list(zip(*found.select(["vehicle", "time_us", "signal", "value"]).to_pydict().values(), strict=True)) == [
        (vehicle.vehicle, *row) for vehicle in truth.vehicles for row in vehicle.rows()
    ]


def test_the_audit_is_the_truth(fleet: Path, whole: Path) -> None:
    truth, audit = read_truth(fleet), json.loads((whole / "_audit.json").read_bytes())
    for vehicle, outbox, stream in zip(truth.vehicles, audit["outboxes"], audit["streams"], strict=True):
        evicted = [record.sequence for record in vehicle.records if record.evicted]
        explained = [n for first, last in outbox["explained"] for n in range(first, last + 1)]
        assert (outbox["vehicle"], outbox["gaps"], explained) == (vehicle.vehicle, [], evicted)
        assert outbox["duplicates"] == vehicle.repeats
        assert outbox["evicted"] == ({"quota": len(evicted)} if evicted else {})
        assert stream["blocks"] == len(vehicle.records) - len(evicted)
        assert stream["lost_frames"] <= 100 * len(evicted)  # fewer: what a boot began or ended with is not missed
        assert stream["holes"] == stream["overlaps"] == []
        assert stream["corrected_blocks"] == sum(
            count for quality, count in stream["clocks"].items() if quality != "synchronised"
        )


def test_the_same_seed_gives_the_same_fleet(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, 2, 0.5, seed=3)
    files = [
        {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b")
    ]
    assert files[0] == files[1]
    with pytest.raises(InputError, match="is not empty; give a new folder"):
        write(tmp_path / "a", 1, 1, 1)


def test_files_are_sorted_have_statistics_of_their_pages_and_say_how_exact_they_are(fleet: Path, whole: Path) -> None:
    paths = sorted(whole.rglob("*.parquet"))
    assert {path.parent.name for path in paths} == {"date=2026-11-23", "date=2026-11-24"}
    for path in paths:
        file = pq.ParquetFile(path)
        times = file.read(["time_us"])["time_us"].to_pylist()
        assert times == sorted(times)
        column = file.metadata.row_group(0).column(0)
        assert (column.statistics.min, column.has_column_index) == (times[0], True)
    facts = table.facts(table.read(whole))
    assert facts["signals"]["can0.DRIVE.SPEED"] == {
        "unit": "km/h",
        "step": facts["signals"]["can0.DRIVE.SPEED"]["step"],
        "max_error": 0.0,
        "time_tolerance_us": 0,
    }
    assert sorted(f"{name}.manifest" for name in facts["manifests"]) == sorted(
        path.name for path in (whole / "_manifests").iterdir()
    )


def test_a_table_made_in_pieces_in_small_batches_is_the_same(fleet: Path, whole: Path, tmp_path: Path) -> None:
    messages = sorted((fleet / "messages/hub").iterdir())
    (tmp_path / "first").mkdir()
    (tmp_path / "first/0.manifest").write_bytes((fleet / "manifests/0.manifest").read_bytes())
    audit = decode(messages[1:], tmp_path / "first", tmp_path / "table", batch_bytes=20_000)
    assert not audit.ok  # half of it waits for the other manifest
    assert "records need decoder manifest" in audit.problems[0]
    decode(messages, None, tmp_path / "table")
    audit = decode([], fleet / "manifests", tmp_path / "table")
    assert audit.ok, str(audit)
    assert table.read(tmp_path / "table").equals(table.read(whole))


@pytest.mark.process
def test_a_run_killed_anywhere_and_started_again_ends_in_the_same_table(
    fleet: Path, whole: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLABLE, str(fleet), str(tmp_path / "table")]
    kills = 0
    for after in (1, 4, 9, 2, 15, 30):
        process = subprocess.Popen([*command, str(after)])
        code = process.wait(timeout=60)
        assert code in (0, -signal.SIGKILL)
        kills += code == -signal.SIGKILL
    assert kills >= 3
    audit = decode([fleet / "messages"], fleet / "manifests", tmp_path / "table")
    assert audit.ok, str(audit)
    assert table.read(tmp_path / "table").equals(table.read(whole))
    left = [path for path in (tmp_path / "table").rglob("*") if "draft" in path.name or "spill" in path.name]
    assert left == []


# Kills itself when it is about to make the nth file appear.
KILLABLE = """
import os, signal, sys
from pathlib import Path
from fleet.decode import decode
left = int(sys.argv[3])
replace = Path.replace
def replace_or_die(self, target):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = replace_or_die
decode([sys.argv[1] + "/messages"], sys.argv[1] + "/manifests", sys.argv[2], batch_bytes=400_000)
"""


def test_the_commands_say_what_is_missing_by_their_exit_status(tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["fleet", *map(str, arguments)])
        return result.exit_code, result.output

    code, text = run("generate", "-o", tmp_path / "made", "--vehicles", 2, "--hours", 0.5, "--seed", 2)
    assert (code, "messages of 2 vehicles" in text) == (0, True)
    made = tmp_path / "made"
    code, text = run("decode", made / "messages", "-o", tmp_path / "table", "--jobs", 1)
    assert (code, "NOT DECODED" in text) == (1, True)
    code, text = run("decode", made / "messages", "-o", tmp_path / "table", "--manifest", made / "manifests")
    assert code == 0, text
    assert text.endswith("nothing is missing that is not explained\n")
    code, text = run("audit", tmp_path / "table", "--json")
    report = json.loads(text)
    assert (code, report["ok"], len(report["outboxes"])) == (0, True, 2)
    assert run("audit", made)[0] == 2
    assert run("decode", tmp_path / "none", "-o", tmp_path / "table") == (
        2,
        f"bordnetz: {tmp_path}/none: is no folder of messages; give the folder that IoT Hub's routing writes to\n",
    )
    (made / "messages/notes.txt").write_text("?")
    code, text = run("decode", made / "messages", "-o", tmp_path / "table")
    assert (code, "notes.txt: is no file of messages" in text) == (1, True)
