"""Decoded columns to rows, in order, exact to the last bit; rows to files."""

import csv
import itertools
import math
import struct
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import InputError
from edge.manifest import DecoderManifest, Message, Signal
from fleet.folder import DAY_US
from fleet.log import decode_log
from fleet.rows import SCHEMA, TableMaker, from_columns, in_order, natural
from fleet.sort import Sorter
from fleet.table_file import open_writer, write
from tests.fleet_messages import (
    DECODER,
    MANIFEST,
    SECOND_US,
    frames_of,
    rows_in,
    rows_of,
)

LETTERS = "bBhHiIqQefd"


@st.composite
def columns_and_signals(draw: Any) -> tuple[DecoderManifest, Any]:
    """A message with a signal of each of some kinds, and columns of it as the kernels give them."""
    letters = draw(st.lists(st.sampled_from(LETTERS), min_size=1, max_size=4))
    times = sorted(draw(st.lists(st.integers(-(1 << 50), 1 << 50), min_size=1, max_size=6)))
    made, columns = [], []
    for place, letter in enumerate(letters):
        bits, is_float = 8 * struct.calcsize(letter), letter in "efd"
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if letter.islower() else (0, (1 << bits) - 1)
        numbers = st.floats(width=bits) if is_float else st.integers(low, high)  # type: ignore[arg-type]
        count = draw(st.sampled_from([1, len(times)]))
        values = draw(st.lists(numbers, min_size=count, max_size=count))
        labelled = draw(st.lists(st.sampled_from([v for v in values if v == v and v == int_of(v)] or [0]), max_size=3))
        made.append(
            Signal(
                f"S{place}",
                0,
                bits,
                signed=letter.islower() and not is_float,
                is_float=is_float,
                factor=draw(st.sampled_from([1, 1, 3, -7, 1 << 40, 0.1, 2.5])),
                offset=draw(st.sampled_from([0, 0, -40, (1 << 60) + 1, 0.5])),
                labels={int(raw): f"label {raw}" for raw in labelled},
            )
        )
        columns.append((place, letter, memoryview(struct.pack(f"={count}{letter}", *values))))
    group = SimpleNamespace(message=0, times=memoryview(np.array(times, np.int64)), columns=columns)
    manifest = DecoderManifest(("can0",), (Message("can0", 1, "M", 8, signals=tuple(made)),))
    return manifest, SimpleNamespace(groups=lambda: iter([group]))


def int_of(value: float) -> int | None:
    return int(value) if math.isfinite(value) else None


def expected_rows(manifest: DecoderManifest, columns: Any, offset_us: int) -> list[Any]:
    rows = []
    for group in columns.groups():
        for index, letter, data in group.columns:
            signal = manifest.messages[group.message].signals[index]
            values = [value for (value,) in struct.iter_unpack(f"={letter}", data)]
            for time_us, value in zip(group.times.tolist(), itertools.cycle(values), strict=False):
                label = signal.labels.get(value)
                plain = (signal.factor, signal.offset) == (1, 0)
                scaled = float(value if plain else value * signal.factor + signal.offset)
                rows.append((time_us + offset_us, index, signal.name, letter, value, scaled, label))
    return sorted(rows, key=lambda row: row[:2])


@given(columns_and_signals(), st.integers(-(1 << 52), 1 << 52))
@settings(max_examples=300, deadline=None)
def test_columns_become_rows_with_exact_raw_and_physical_values_and_labels(made: Any, offset_us: int) -> None:
    manifest, columns = made
    found = from_columns(columns, manifest, offset_us).to_pydict()
    wanted = expected_rows(manifest, columns, offset_us)
    assert found["time_us"] == [row[0] for row in wanted]
    assert found["signal"] == [row[2] for row in wanted]
    assert found["label"] == [row[6] for row in wanted]
    assert set(found["bus"]) == {"can0"}
    assert set(found["message"]) == {"M"}
    for raw, value, (_, _, _, letter, number, scaled, _) in zip(found["raw"], found["value"], wanted, strict=True):
        bits = struct.pack(f"<{letter}", number)
        assert raw & ((1 << (8 * len(bits))) - 1) == int.from_bytes(bits, "little")
        assert value == scaled or (math.isnan(value) and math.isnan(scaled))


def test_unsigned_64_bit_values_wrap_and_floats_are_their_bits() -> None:
    signals = (Signal("U", 0, 64), Signal("F", 0, 32, is_float=True), Signal("L", 0, 64, labels={(1 << 64) - 1: "SNA"}))
    manifest = DecoderManifest(("can0",), (Message("can0", 1, "M", 8, signals=signals),))
    ones = b"\xff" * 8
    group = SimpleNamespace(
        message=0,
        times=memoryview(np.array([5], np.int64)),
        columns=[(0, "Q", ones), (1, "f", b"\0\0\xc0\x3f"), (2, "Q", ones)],
    )
    found = from_columns(SimpleNamespace(groups=lambda: [group]), manifest)
    assert found["raw"].to_pylist() == [-1, 0x3FC00000, -1]
    assert found["value"].to_pylist() == [float((1 << 64) - 1), 1.5, float((1 << 64) - 1)]
    assert found["label"].to_pylist() == [None, None, "SNA"]
    assert found.schema == SCHEMA


@given(columns_and_signals())
@settings(max_examples=100, deadline=None)
def test_a_csv_has_the_natural_numbers(tmp_path_factory: Any, made: Any) -> None:
    manifest, columns = made
    path = tmp_path_factory.getbasetemp() / "natural.csv"
    rows = from_columns(columns, manifest)
    write(rows, path, manifest)
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    fields = {signal.name: signal for signal in manifest.messages[0].signals}
    assert [row["time_us"] for row in found] == [str(time_us) for time_us in rows["time_us"].to_pylist()]
    assert [row["label"] for row in found] == [label or "" for label in rows["label"].to_pylist()]
    for row, raw, value in zip(found, rows["raw"].to_pylist(), rows["value"].to_pylist(), strict=True):
        field = fields[row["signal"]]
        wanted = natural(field, raw, value)
        assert same(float(row["raw"]) if field.is_float else int(row["raw"]), wanted[0])
        whole = isinstance(wanted[1], int)
        assert same(
            int(row["value"]) if whole and not row["value"].startswith("-0") else float(row["value"]), wanted[1]
        )


def same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def test_a_csv_quotes_what_needs_it_and_nothing_else(tmp_path: Path) -> None:
    rows = from_columns(DECODER.decode_batch(frames_of([4])), MANIFEST)
    write(rows, tmp_path / "t.csv", MANIFEST)
    assert (tmp_path / "t.csv").read_text() == (
        "time_us,bus,message,signal,raw,value,label\n"
        "40000,can0,ENGINE,SPEED,4,-38,\n"
        '40000,can0,ENGINE,GEAR,1,1,"R, ""back"""\n'
        "40000,can0,ENGINE,COUNTER,63,63,\n"
    )


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_table_that_fails_half_way_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    rows = from_columns(DECODER.decode_batch(frames_of(range(9))), MANIFEST)
    (tmp_path / name).write_text("before")
    with pytest.raises(Interrupted), open_writer(tmp_path / name, MANIFEST) as writer:  # noqa: PT012
        writer.write(rows)
        raise Interrupted
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "before"


class Interrupted(BaseException):
    """As from the keyboard."""


def test_a_table_of_an_unknown_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t\.xlsx: is no kind of table by its suffix; take \.parquet or \.csv"):
        write(SCHEMA.empty_table(), tmp_path / "t.xlsx", MANIFEST)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_rows_in_any_order_come_out_in_order_in_little_memory(tmp_path_factory: Any, data: st.DataObject) -> None:
    maker = TableMaker(MANIFEST)
    evening_us = DAY_US - 100 * SECOND_US
    numbers = data.draw(st.lists(st.integers(0, 20_000), max_size=60))
    parts = [(numbers[at : at + 7], data.draw(st.sampled_from("ab"))) for at in range(0, len(numbers), 7)]
    sorter = Sorter(tmp_path_factory.mktemp("spill"), rows_in_memory=data.draw(st.integers(1, 100)))
    for part, group in parts:
        sorter.add(maker.rows(DECODER.decode_batch(frames_of(part, evening_us))), group)
    for group in "ab":
        tables = list(sorter.tables(group))
        assert all(len({time // DAY_US for time in found["time_us"].to_pylist()}) == 1 for found in tables)
        found = [row for one in tables for row in rows_in(one)]
        wanted = [n for part, its in parts if its == group for n in part]
        assert Counter(found) == Counter(rows_of(wanted, evening_us))
        whole = in_order(pa.concat_tables(tables)) if tables else None
        assert whole is None or rows_in(whole) == found


def test_a_recording_becomes_a_table_in_order_of_time(tmp_path: Path) -> None:
    lines = [f"({n // 100}.{n % 100:02}0000) can{n % 2} 001#{payload(n)}" for n in [*range(40, 80), *range(40)]]
    (tmp_path / "drive.log").write_text("\n".join([*lines, "no frame", "(0.5) can0 7FF#00"]) + "\n")
    parts: list[int] = []
    result = decode_log(tmp_path / "drive.log", MANIFEST, tmp_path / "t.parquet", parts.append)
    assert rows_in(pq.read_table(tmp_path / "t.parquet")) == rows_of(range(80))
    assert (result.frames, result.samples, result.unknown_frames) == (81, len(rows_of(range(80))), 1)
    assert len(result.problems) == 1
    assert "line 81" in result.problems[0]
    assert parts[-1] == (tmp_path / "drive.log").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drive.log", "t.parquet"]
    with pytest.raises(InputError, match=r"cannot be written .*; choose another place"):
        decode_log(tmp_path / "drive.log", MANIFEST, tmp_path / "nowhere/t.parquet")


def payload(n: int) -> str:
    return struct.pack("<HBxf", n, n % 3, n / 3).hex().upper()
