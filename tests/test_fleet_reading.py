"""Tables as people read them: the examples of docs/fleet.md, the wide form, pictures."""

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.cli import main
from edge.errors import InputError
from fleet import table
from fleet.decode import decode
from fleet.generate import START_US, write
from fleet.rows import TEXT
from fleet.wide import wide
from fleet.wide_table import write as write_wide

DOCS = Path(__file__).resolve().parent.parent / "docs/fleet.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """A table called table."""
    made: Path = tmp_path_factory.mktemp("fleet")
    write(made / "made", vehicles=2, hours=2.2, seed=5)
    assert decode([made / "made/messages"], made / "made/manifests", made / "table").ok
    return made


def example(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    pytest.importorskip({"arrow": "pyarrow"}.get(name, name))
    (code,) = re.findall(rf"```python\n# {name}\n(.*?)```", DOCS.read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(code, found)
    return found


def test_the_arrow_example_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = example("arrow", folder, monkeypatch)
    assert set(found["rows"]["vehicle"].to_pylist()) == {"vehicle-00001"}
    assert set(found["rows"]["signal"].to_pylist()) == {"SPEED"}
    assert found["frames"].num_rows == table.read(folder / "table").num_rows // 3
    assert found["exact"] == 0


def test_the_duckdb_example_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = example("duckdb", folder, monkeypatch)
    assert [row[0] for row in found["fastest"]] == ["vehicle-00000", "vehicle-00001"]
    assert all(200 < speed < 250 for _, speed in found["fastest"])


def test_the_pandas_example_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = example("pandas", folder, monkeypatch)
    assert set(found["by_minute"].index.get_level_values("vehicle")) == {"vehicle-00000", "vehicle-00001"}
    assert found["by_minute"].max() < 500


def test_the_polars_example_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = dict(example("polars", folder, monkeypatch)["by_gear"].iter_rows())
    wanted = Counter(table.read(folder / "table", signal="GEAR")["label"].to_pylist())
    assert counts == wanted


def test_a_time_range_reads_what_lies_in_it(folder: Path) -> None:
    whole = table.read(folder / "table")
    start_us, end_us = START_US + 600_000_000, START_US + 660_000_000
    part = table.read(folder / "table", start_us=start_us, end_us=end_us)
    wanted = [time_us for time_us in whole["time_us"].to_pylist() if start_us <= time_us < end_us]
    assert part["time_us"].to_pylist() == wanted
    assert len(wanted) > 0
    with pytest.raises(InputError, match="wide: is a form of one message"):
        table.read(folder / "table", wide=True)


FRAME = st.fixed_dictionaries({}, optional={"A": st.integers(0, 9), "B": st.integers(0, 9), "C": st.integers(0, 9)})


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("xy"), FRAME), max_size=12))
@settings(max_examples=200, deadline=None)
def test_wide_rows_hold_what_the_long_ones_do(frames: list[tuple[int, str, dict[str, int]]]) -> None:
    """Frames of one time are told apart as far as their signals allow."""
    frames = [frame for frame in frames if frame[2]]
    rows = [
        {"time_us": t, "vehicle": v, "campaign": "c", "bus": "b", "signal": s, "value": float(n), "label": label(n)}
        for t, v, signals in sorted(frames, key=lambda frame: (frame[1], frame[0]))
        for s, n in signals.items()
    ]
    schema = pa.schema(
        [("time_us", pa.int64()), *((name, TEXT) for name in ("vehicle", "campaign", "bus", "signal", "label"))]
    ).append(pa.field("value", pa.float64()))
    found = wide(pa.Table.from_pylist(rows, schema)).to_pylist()
    back = [
        (row["time_us"], row["vehicle"], s, row[s], row.get(f"{s}.label"))
        for row in found
        for s in "ABC"
        if row.get(s) is not None
    ]
    assert Counter(back) == Counter((r["time_us"], r["vehicle"], r["signal"], r["value"], r["label"]) for r in rows)
    most = Counter[tuple[int, str]]()
    for (time_us, vehicle, _), count in Counter((r["time_us"], r["vehicle"], r["signal"]) for r in rows).items():
        most[time_us, vehicle] = max(most[time_us, vehicle], count)
    assert Counter((row["time_us"], row["vehicle"]) for row in found) == most


def label(n: int) -> str | None:
    return f"label {n}" if n < 3 else None


def test_the_wide_form_is_a_folder_of_parquet_for_each_message(folder: Path, tmp_path: Path) -> None:
    out, command = tmp_path / "wide", ["fleet", "wide", str(folder / "table"), "-o", str(tmp_path / "wide")]
    for _ in range(2):  # the second time in its own place
        result = CliRunner().invoke(main, command)
        assert re.fullmatch(rf"{out}: [\d,]+ rows of 1 messages in 4 files\n", result.output), result.output
    found = pa.dataset.dataset(out / "DRIVE", partitioning="hive").to_table()
    expected = table.read(folder / "table", message="DRIVE", wide=True)
    names = ["time_us", "vehicle", "SPEED", "GEAR", "GEAR.label"]
    both = [sorted(rows.select(names).to_pylist(), key=str) for rows in (found, expected)]
    assert both[0] == both[1]
    path = next(out.rglob("part-0.parquet"))
    assert path.relative_to(out).parts[:2] == ("DRIVE", "date=2026-11-24")
    (speed,) = [name for name in table.facts(pq.read_table(path, partitioning=None))["signals"] if "SPEED" in name]
    assert speed == "can0.DRIVE.SPEED"
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).statistics.has_min_max
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]


def test_a_column_that_one_day_lacks_is_null_in_the_wide_form_of_that_day(tmp_path: Path) -> None:
    """A campaign that collects one signal, beside one that collects more."""
    write(tmp_path / "made", vehicles=1, hours=0.2, seed=5)
    decode([tmp_path / "made/messages"], tmp_path / "made/manifests", tmp_path / "table")
    (path,) = (tmp_path / "table").rglob("part-0.parquet")
    rows = pq.read_table(path, partitioning=None)
    other = Path(str(path.parent).replace("campaign=drive", "campaign=speeds")) / path.name
    other.parent.mkdir(parents=True)
    pq.write_table(rows.filter(pc.equal(rows["signal"], "SPEED")), other)
    write_wide(tmp_path / "table", tmp_path / "wide")
    schemas = {pq.read_schema(path).names.__str__() for path in (tmp_path / "wide").rglob("*.parquet")}
    assert schemas == {"['time_us', 'bus', 'COUNTER', 'GEAR', 'GEAR.label', 'SPEED']"}
    (part,) = (tmp_path / "wide").rglob("campaign=speeds/part-0.parquet")
    assert pq.read_table(part, partitioning=None)["GEAR"].null_count == pq.read_metadata(part).num_rows > 0


def test_what_cannot_be_widened_is_one_line_and_changes_nothing(folder: Path, tmp_path: Path) -> None:
    whole = folder / "table"
    other = tmp_path / "other"
    other.mkdir()
    shutil.copytree(whole, tmp_path / "damaged")
    path = next((tmp_path / "damaged").rglob("part-0.parquet"))
    path.write_bytes(path.read_bytes()[:1000])
    for arguments, problem in (
        ([other, "-o", tmp_path / "wide"], "holds no table"),
        ([whole, "-o", other], "is there already, and is no wide table of ours"),
        ([whole, "-o", whole / "wide"], "is in the table"),
        ([whole, "-o", tmp_path / "wide", "--message", "NONE"], "--message NONE: is not in"),
        ([tmp_path / "damaged", "-o", tmp_path / "wide"], "has a damaged file"),
    ):
        result = CliRunner().invoke(main, ["fleet", "wide", *map(str, arguments)])
        assert (result.exit_code, problem in result.output, result.output.count("\n")) == (2, True, 1), result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "other"]


def test_a_damaged_file_of_a_table_is_made_again_from_the_archive(tmp_path: Path) -> None:
    write(tmp_path / "made", vehicles=1, hours=0.2, seed=5)
    decode([tmp_path / "made/messages"], tmp_path / "made/manifests", tmp_path / "table")
    (path,) = (tmp_path / "table").rglob("part-0.parquet")
    before = table.read(tmp_path / "table")
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"has a damaged file .* delete the vehicle's _built"):
        table.read(tmp_path / "table")
    next((tmp_path / "table").glob("*/_built")).unlink()
    assert decode([tmp_path / "made/messages"], None, tmp_path / "table").ok
    assert table.read(tmp_path / "table").equals(before)


@pytest.mark.parametrize(("name", "start"), [("drive.png", b"\x89PNG"), ("drive.html", b"<!doctype html>")])
def test_a_drive_is_drawn(folder: Path, tmp_path: Path, name: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    command = ["fleet", "plot", str(folder / "table"), "-o", str(tmp_path / name), "--vehicle", "vehicle-00000"]
    result = CliRunner().invoke(main, [*command, "--signal", "DRIVE.SPEED", "--signal", "DRIVE.GEAR"])
    assert (result.exit_code, result.output.startswith(f"{tmp_path / name}: 2 signals, ")) == (0, True), result.output
    content = (tmp_path / name).read_bytes()
    assert content.startswith(start)
    assert len(content) > 10_000
    result = CliRunner().invoke(main, [*command, "--signal", "DRIVE.NONE"])
    assert result.exit_code == 2
    assert "--signal DRIVE.NONE: is not in the table of vehicle-00000 then" in result.output
    result = CliRunner().invoke(main, [*command, "--signal", "DRIVE.SPEED", "--from", "noon"])
    assert (result.exit_code, "noon: is no time; for example 2026-11-24T15:00" in result.output) == (2, True)
