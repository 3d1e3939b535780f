"""A table as a whole: it grows, nothing is twice in it, and a run that comes again changes nothing."""

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fleet
from edge.errors import InputError
from edge.message import Clock, Quality
from fleet import table
from fleet.decode import decode
from fleet.folder import open_table
from fleet.rows import SCHEMA
from tests.fleet_messages import (
    BOOT_US,
    MANIFEST,
    VEHICLE,
    block_of,
    decoded,
    message_of,
    put,
    record_of,
    rows_in,
    rows_of,
)


def test_messages_of_an_unknown_manifest_are_kept_until_it_is_there(tmp_path: Path) -> None:
    line = message_of([record_of(1, block_of(0, 3))])
    messages = put(tmp_path, [line, line])
    (tmp_path / "manifests").mkdir()
    audit = decode([messages], tmp_path / "manifests", tmp_path / "table")
    assert audit.problems == [
        f"truck-7: 1 records need decoder manifest {MANIFEST.hash}, which was not given; "
        "they are kept, and decoded once it is"
    ]
    assert not audit.ok
    MANIFEST.save(tmp_path / "manifests/a.manifest")
    (tmp_path / "manifests/notes.txt").write_text("not a manifest")
    put(tmp_path, [])  # the messages need not be there any more
    audit = decode([messages], tmp_path / "manifests", tmp_path / "table")
    assert audit.ok, str(audit)
    found = table.read(tmp_path / "table")
    assert rows_in(found) == rows_of(range(3))
    assert found.column_names == [*SCHEMA.names, "vehicle", "campaign", "date"]


@pytest.mark.parametrize("vehicle", ["0042", "...", "a?b=c d%2F", "grün", "x" * 128])
def test_any_vehicle_has_its_folder_inside_the_table(tmp_path: Path, vehicle: str) -> None:
    lines = [
        message_of([record_of(1, block_of(0, 2), "c")], vehicle=vehicle),
        message_of([record_of(1, block_of(0, 2))]),
    ]
    audit = decode([put(tmp_path, lines)], {MANIFEST.hash: MANIFEST}, tmp_path / "table")
    found = table.read(tmp_path / "table")
    assert audit.ok
    assert Counter(found["vehicle"].to_pylist()) == {vehicle: 5, VEHICLE: 5}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["messages", "table"]
    assert set(found["campaign"].to_pylist()) == {"c", "drive"}
    assert set(found["date"].to_pylist()) == {"1970-01-01"}


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("_")
    }


def test_what_was_given_before_changes_nothing(tmp_path: Path) -> None:
    lines = [message_of([record_of(n, block_of(3 * n, 3 * n + 3))]) for n in range(1, 7)]
    _, first = decoded(tmp_path, lines[:4], [lines[1]])
    before = state_of(tmp_path / "table")
    rows, again = decoded(tmp_path, lines[:4], [lines[1]])
    assert state_of(tmp_path / "table") == before
    assert again == first
    assert again.outboxes[0].duplicates == 0  # the same message, read twice
    rows, audit = decoded(tmp_path, lines[2:])
    assert rows == rows_of(range(3, 21))
    assert audit.ok, str(audit)
    assert audit.samples == len(rows)


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_a_table_that_grew_in_runs_is_that_of_one_run(tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("runs")
    clocks = [
        Clock(bytes([n % 2]) * 16, data.draw(st.sampled_from([0, BOOT_US, BOOT_US + 50_000_000_000])), quality)
        for n, quality in enumerate(data.draw(st.lists(st.sampled_from(list(Quality)), min_size=2, max_size=8)))
    ]
    lines = [
        message_of([record_of(n, block_of(5 * n, 5 * n + 7, source="can", clock=clock), "ab"[n % 2])])
        for n, clock in enumerate(clocks, start=1)
    ]
    shuffled = data.draw(st.permutations(lines))
    at = data.draw(st.integers(0, len(lines)))
    for part in (shuffled[:at], shuffled[at:]):
        decoded(folder / "runs", part)
    decoded(folder / "once", lines)
    runs, once = (decode([], {}, folder / name / "table") for name in ("runs", "once"))
    assert runs.streams == once.streams
    found = [folder / name / "table" for name in ("runs", "once")]
    if any(found[1].rglob("*.parquet")):
        assert table.read(found[0]).equals(table.read(found[1]))
    else:
        assert not any(found[0].rglob("*.parquet"))


def test_two_processes_do_not_write_one_table(tmp_path: Path) -> None:
    with open_table(tmp_path / "table"), pytest.raises(InputError, match="is being written by another process"):
        decode([], {}, tmp_path / "table")


def test_a_damaged_segment_is_named_and_what_was_built_can_be_built_again(tmp_path: Path) -> None:
    rows, _ = decoded(tmp_path, [message_of([record_of(1, block_of(0, 3))])])
    (built,) = (tmp_path / "table").rglob("_built")
    built.write_bytes(b"?")
    assert decoded(tmp_path)[0] == rows
    (segment,) = (tmp_path / "table").rglob("*.segment")
    content = segment.read_bytes()
    for damaged in (content[:-1], content[: len(content) // 2], content[:-40] + b"?" + content[-39:], b""):
        segment.write_bytes(damaged)
        with pytest.raises(InputError, match=r"000001\.segment: (is|does)"):
            decoded(tmp_path)


def test_nothing_to_decode_is_an_empty_table(tmp_path: Path) -> None:
    found = table.read(put(tmp_path, []), {})
    assert found.num_rows == 0
    assert found.column_names == [*SCHEMA.names, "vehicle", "campaign", "date"]


def test_no_two_modules_of_the_fleet_import_each_other() -> None:
    """Not even inside of functions: what reads stands on what decodes, that on what builds, that on rows."""
    paths = {path.stem: path for path in Path(fleet.__path__[0]).glob("*.py")}
    needs: dict[str, set[str]] = {}
    for name, path in paths.items():
        found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        needs[name] = {node.module.removeprefix("fleet.") for node in found if node.module}
        needs[name] |= {alias.name for node in found if node.module == "fleet" for alias in node.names}
        needs[name] &= paths.keys()
    assert list(TopologicalSorter(needs).static_order())
    assert needs["table"] >= {"decode", "rows"}
