"""What Spark's workers do, without Spark: what lies between their two steps is sorted here as Spark is asked to."""

from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.block import encode_frames
from edge.message import Block, Clock, Coverage, Quality, Record
from edge.train import train
from fleet import spark_tasks as tasks
from fleet import table
from fleet.decode import decode
from fleet.files import files
from fleet.generate import write
from tests.fleet_messages import (
    BOOT_US,
    MANIFEST,
    RECORDED,
    block_of,
    frames_of,
    message_of,
    put,
    record_of,
    rows_in,
    rows_of,
)

ORDER = ("vehicle", "part", "outbox", "sequence", "problem", "enqueued_us")


def shuffled(messages: Path) -> list[pa.RecordBatch]:
    """All records, in heads and blocks, by vehicle; one file a task, as Spark may do it."""
    found = []
    for path in files([messages]):
        found += tasks.records([pa.RecordBatch.from_pydict({"path": [str(path)]})])
    records = pa.Table.from_batches(found, tasks.RECORDS).to_pylist()
    heads = [{**row, "data": None, "part": tasks.HEADS} for row in records]
    rows = heads + [{**row, "part": tasks.BLOCKS} for row in records]
    rows.sort(key=lambda row: [(row[name] is not None, row[name]) for name in ORDER])
    schema = tasks.RECORDS.append(pa.field("part", pa.int32()))
    batches: list[pa.RecordBatch] = pa.Table.from_pylist(rows, schema).to_batches(max_chunksize=7)
    return batches


def written(messages: Path, manifests: Path, out: Path, tables: str = "") -> list[str]:
    """To a table; its problems."""
    problems = []
    for batch in tasks.to_files((str(manifests), tables), str(out / "_staging"))(shuffled(messages)):
        for row in batch.to_pylist():
            if row["folder"]:
                Path(row["folder"]).replace(out / Path(row["folder"]).name)
            problems += [row["problem"]] if row["problem"] else []
    return problems


def flat(messages: Path, manifests: Path) -> tuple[list[dict[str, Any]], list[str]]:
    batches = list(tasks.to_rows((str(manifests), ""))(shuffled(messages)))
    rows = pa.Table.from_batches(batches, tasks.ROWS).to_pylist()
    return [row for row in rows if not row["problem"]], [row["problem"] for row in rows if row["problem"]]


def manifests_in(folder: Path) -> Path:
    made = folder / "manifests"
    made.mkdir(exist_ok=True)
    MANIFEST.save(made / "a.manifest")
    return made


def test_a_generated_fleet_comes_to_the_table_of_the_single_machine(tmp_path: Path) -> None:
    made = tmp_path / "made"
    truth = write(made, vehicles=2, hours=0.2, seed=4)
    decode([made / "messages"], made / "manifests", tmp_path / "single")
    assert written(made / "messages", made / "manifests", tmp_path / "spark") == []
    one, other = table.read(tmp_path / "single"), table.read(tmp_path / "spark")
    assert one.num_rows == truth.samples
    assert other.equals(one)
    assert table.facts(other) == table.facts(one)
    rows, problems = flat(made / "messages", made / "manifests")
    assert (len(rows), problems) == (truth.samples, [])


@given(st.data())
@settings(max_examples=10, deadline=None)
def test_records_in_any_order_and_number_with_any_clocks_are_in_the_table_once(
    tmp_path_factory: Any, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("tasks")
    qualities = data.draw(st.lists(st.sampled_from(list(Quality)), min_size=1, max_size=6))
    offsets = [data.draw(st.sampled_from([0, BOOT_US, BOOT_US + 50_000_000_000])) for _ in qualities]
    lines = [
        message_of(
            [record_of(n, block_of(5 * n, 5 * n + 5, source="can", clock=Clock(bytes([n % 2]) * 16, offset, quality)))]
        )
        for n, (quality, offset) in enumerate(zip(qualities, offsets, strict=True), start=1)
    ]
    sent = data.draw(st.permutations([*lines, *data.draw(st.lists(st.sampled_from(lines), max_size=3))]))
    at = data.draw(st.integers(0, len(sent)))
    messages = put(folder, sent[:at], sent[at:])
    decode([messages], {MANIFEST.hash: MANIFEST}, folder / "single")
    problems = written(messages, manifests_in(folder), folder / "spark")
    if any((folder / "single").rglob("*.parquet")):
        assert table.read(folder / "single").equals(table.read(folder / "spark"))
    else:
        assert not any((folder / "spark").rglob("*.parquet"))
    assert all("its clock cannot be right" in problem for problem in problems)


def test_what_is_wrong_is_a_line_and_a_whole_copy_makes_up_for_a_damaged_one(tmp_path: Path) -> None:
    good = block_of(0, 3)
    flipped = record_of(2, Block(good.data[:-1] + b"?", good.clock, good.coverage, good.counters))
    cut = Record(1, 5, "drive", b"\xff")
    lines = [message_of([cut]), message_of([record_of(1, good), flipped]), message_of([cut]), b"not JSON\n"]
    problems = written(put(tmp_path, lines), manifests_in(tmp_path), tmp_path / "spark")
    assert [problem.partition("/15/")[2] or problem for problem in problems] == [
        "00.json:4: no message in IoT Hub's JSON form (JSONDecodeError: Expecting value: line 1 column 1 (char 0));"
        " left out",
        "truck-7, outbox 00010203: record 2 of drive: the block does not match its checksum; left out",
    ]
    assert rows_in(table.read(tmp_path / "spark")) == rows_of(range(3))
    problems = written(put(tmp_path, [message_of([cut])]), manifests_in(tmp_path), tmp_path / "other")
    assert len(problems) == 1
    assert "00.json:1: record 1: " in problems[0]


def test_records_of_an_unknown_manifest_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "manifests").mkdir()
    messages = put(tmp_path, [message_of([record_of(n, block_of(n, n + 1)) for n in range(1, 6)])])
    problems = written(messages, tmp_path / "manifests", tmp_path / "spark")
    assert problems == [f"truck-7: 5 records need decoder manifest {MANIFEST.hash}, which was not given; left out"]


def test_a_block_that_names_a_model_table_needs_it(tmp_path: Path) -> None:
    frames = frames_of(range(300))
    model = train([(frames, MANIFEST.buses)])
    block = Block(encode_frames(frames, MANIFEST.buses, model), RECORDED, Coverage("replay:drive.log", 0, 300))
    messages = put(tmp_path, [message_of([record_of(1, block)])])
    (tmp_path / "models").mkdir()
    model.save(tmp_path / "models/of the truck")
    (problem,) = written(messages, manifests_in(tmp_path), tmp_path / "without")
    assert f"record 1 of drive: the block needs the model table sha256:{model.sha256[:16]}" in problem
    assert written(messages, manifests_in(tmp_path), tmp_path / "with", str(tmp_path / "models")) == []
    assert rows_in(table.read(tmp_path / "with")) == rows_of(range(300))
