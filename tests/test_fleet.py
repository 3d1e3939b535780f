"""The cloud side: messages in whatever order and number to one table, and an audit that says what is missing."""

import base64
import csv
import itertools
import json
import math
import os
import struct
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cy_core.frames import Frames
from edge import block as blocks
from edge.decoder import Decoder
from edge.errors import InputError
from edge.manifest import DecoderManifest, Message, Signal
from edge.message import Block, Clock, Counters, Coverage, Eviction, Quality, Record, pack
from fleet import table
from fleet.audit import Audit, explain
from fleet.decode import decode, load_manifests, open_table
from fleet.log import decode_log
from fleet.ranges import Ranges, show
from fleet.sort import Sorter, in_order
from tests.reference.extract import extract

VEHICLE = "truck-7"
OUTBOX = bytes(range(16))
MANIFEST = DecoderManifest(
    ("can0", "can1"),
    (
        Message(
            "can0",
            1,
            "ENGINE",
            8,
            signals=(
                Signal("SPEED", 0, 16, factor=0.5, offset=-40),
                Signal("GEAR", 16, 4, labels={0: "P", 1: 'R, "back"'}),
                Signal("COUNTER", 56, 8),
            ),
        ),
        Message("can1", 1, "ENGINE", 8, signals=(Signal("COUNTER", 0, 8), Signal("TEMP", 32, 32, is_float=True))),
    ),
)
DECODER = Decoder(MANIFEST)
SECOND_US = 1_000_000
BOOT_US = 1_795_500_000 * SECOND_US  # 2026-11-24
RECORDED = Clock(quality=Quality.RECORDED)
Row = tuple[int, str, str, str, int | float, float, str | None]


# --- the other end of the line, made by hand


def frames_of(numbers: Iterable[int], start_us: int = 0) -> Frames:
    """Frame n, 10 ms after the one before, on the buses in turn."""
    frames = Frames()
    for n in numbers:
        frames.append(start_us + 10_000 * n, n % 2, 1, struct.pack("<HBxf", n, n % 3, n / 3)[:8])
    return frames


def rows_of(numbers: Iterable[int], start_us: int = 0) -> list[Row]:
    """What the table must say of these frames, from the slow twin."""
    rows: list[Row] = []
    for n in numbers:
        message = MANIFEST.messages[n % 2]
        raws = extract(message, struct.pack("<HBxf", n, n % 3, n / 3)[:8])
        for signal in message.signals:
            raw = raws[signal.name]
            label = signal.labels.get(raw)  # type: ignore[call-overload]
            value = float(raw * signal.factor + signal.offset)
            rows.append((start_us + 10_000 * n, message.bus, "ENGINE", signal.name, raw, value, label))
    return rows


def block_of(
    first: int, end: int, *, missing: int = 0, source: str = "replay:drive.log", clock: Clock = RECORDED
) -> Block:
    columns = DECODER.decode_batch(frames_of(range(first, end)))
    counters = Counters(samples=columns.samples())
    return Block(blocks.encode(columns), clock, Coverage(source, first, end, missing), counters)


def record_of(sequence: int, block: Block, stream: str = "drive") -> Record:
    return Record(sequence, 5, stream, block.encode())


def message_of(
    records: list[Record],
    evictions: Iterable[Eviction] = (),
    *,
    vehicle: str = VEHICLE,
    outbox: bytes = OUTBOX,
    manifest: DecoderManifest = MANIFEST,
    enqueued: str = "2026-11-24T15:00:00.1230000Z",
    **system: str,
) -> bytes:
    """A line as IoT Hub's routing writes it."""
    body = pack(vehicle, outbox, bytes.fromhex(manifest.hash), records, evictions)
    line = {
        "EnqueuedTimeUtc": enqueued,
        "Properties": {},
        "SystemProperties": {
            "connectionDeviceId": vehicle,
            "connectionModuleId": "uplink",
            "contentType": "application/x-protobuf",
            **system,
        },
        "Body": base64.b64encode(body).decode(),
    }
    return json.dumps(line).encode() + b"\n"


def put(folder: Path, *files: Iterable[bytes]) -> Path:
    """Message files as the hub names them."""
    for minute, lines in enumerate(files):
        path = folder / f"messages/hub/00/2026/11/24/15/{minute:02}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(lines))
    return folder / "messages"


def decoded(folder: Path, *files: Iterable[bytes]) -> tuple[list[Row], Audit]:
    audit = decode([put(folder, *files)], {MANIFEST.hash: MANIFEST}, folder / "table")
    return rows_in(table.read(folder / "table")), audit


def rows_in(found: pa.Table) -> list[Row]:
    fields = {(m.bus, m.name, s.name): s for m in MANIFEST.messages for s in m.signals}
    return [
        (time_us, bus, message, signal, table.natural(fields[bus, message, signal], raw, value)[0], value, label)
        for time_us, bus, message, signal, raw, value, label in zip(
            *found.select(table.SCHEMA.names).to_pydict().values(), strict=True
        )
    ]


# --- columns to rows

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
    found = table.from_columns(columns, manifest, offset_us).to_pydict()
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
    found = table.from_columns(SimpleNamespace(groups=lambda: [group]), manifest)
    assert found["raw"].to_pylist() == [-1, 0x3FC00000, -1]
    assert found["value"].to_pylist() == [float((1 << 64) - 1), 1.5, float((1 << 64) - 1)]
    assert found["label"].to_pylist() == [None, None, "SNA"]
    assert found.schema == table.SCHEMA


@given(columns_and_signals())
@settings(max_examples=100, deadline=None)
def test_a_csv_has_the_natural_numbers(tmp_path_factory: Any, made: Any) -> None:
    manifest, columns = made
    path = tmp_path_factory.getbasetemp() / "natural.csv"
    rows = table.from_columns(columns, manifest)
    table.write(rows, path, manifest)
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    fields = {signal.name: signal for signal in manifest.messages[0].signals}
    assert [row["time_us"] for row in found] == [str(time_us) for time_us in rows["time_us"].to_pylist()]
    assert [row["label"] for row in found] == [label or "" for label in rows["label"].to_pylist()]
    for row, raw, value in zip(found, rows["raw"].to_pylist(), rows["value"].to_pylist(), strict=True):
        field = fields[row["signal"]]
        wanted = table.natural(field, raw, value)
        assert same(float(row["raw"]) if field.is_float else int(row["raw"]), wanted[0])
        whole = isinstance(wanted[1], int)
        assert same(
            int(row["value"]) if whole and not row["value"].startswith("-0") else float(row["value"]), wanted[1]
        )


def same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def test_a_csv_quotes_what_needs_it_and_nothing_else(tmp_path: Path) -> None:
    rows = table.from_columns(DECODER.decode_batch(frames_of([4])), MANIFEST)
    table.write(rows, tmp_path / "t.csv", MANIFEST)
    assert (tmp_path / "t.csv").read_text() == (
        "time_us,bus,message,signal,raw,value,label\n"
        "40000,can0,ENGINE,SPEED,4,-38,\n"
        '40000,can0,ENGINE,GEAR,1,1,"R, ""back"""\n'
        "40000,can0,ENGINE,COUNTER,63,63,\n"
    )


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_table_that_fails_half_way_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    rows = table.from_columns(DECODER.decode_batch(frames_of(range(9))), MANIFEST)
    (tmp_path / name).write_text("before")
    with pytest.raises(Interrupted), table.open_writer(tmp_path / name, MANIFEST) as writer:  # noqa: PT012
        writer.write(rows)
        raise Interrupted
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "before"


class Interrupted(BaseException):
    """As from the keyboard."""


def test_a_table_of_an_unknown_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t\.xlsx: is no kind of table by its suffix; take \.parquet or \.csv"):
        table.write(table.SCHEMA.empty_table(), tmp_path / "t.xlsx", MANIFEST)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_rows_in_any_order_come_out_in_order_in_little_memory(tmp_path_factory: Any, data: st.DataObject) -> None:
    maker = table.TableMaker(MANIFEST)
    numbers = data.draw(st.lists(st.integers(0, 20_000), max_size=60))
    parts = [numbers[at : at + 7] for at in range(0, len(numbers), 7)]
    sorter = Sorter(tmp_path_factory.mktemp("spill"), rows_in_memory=data.draw(st.integers(1, 100)))
    for part in parts:
        sorter.add(maker.rows(DECODER.decode_batch(frames_of(part))))
    tables = list(sorter.tables())
    assert all(len({time // 60_000_000 for time in found["time_us"].to_pylist()}) == 1 for found in tables)
    found = [row for one in tables for row in rows_in(one)]
    assert Counter(found) == Counter(rows_of(numbers))
    whole = in_order(pa.concat_tables(tables)) if tables else None
    assert whole is None or rows_in(whole) == found


# --- ranges and gaps


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(-1, 6))), st.integers(-2, 45), st.integers(-2, 45))
def test_ranges_are_a_set_of_numbers(added: list[tuple[int, int]], first: int, last: int) -> None:
    ranges, numbers = Ranges(), set()
    for start, more in added:
        ranges.add(start, start + more)
        numbers |= set(range(start, start + more + 1))
    assert {n for low, high in ranges for n in range(low, high + 1)} == numbers
    assert [n for n in range(-2, 50) if n in ranges] == sorted(numbers)
    assert ranges.last == max(numbers, default=None)
    assert all(high + 1 < low for (_, high), (low, _) in itertools.pairwise(ranges))
    absent = ranges.missing(first, last)
    assert [n for low, high in absent for n in range(low, high + 1)] == sorted(set(range(first, last + 1)) - numbers)


def eviction(first: int, last: int, count: int, stream: str = "drive", reason: str = "quota") -> Eviction:
    return Eviction(first, last, count, stream, reason, 0)


@given(
    st.sets(st.integers(1, 14), max_size=9),
    st.lists(st.tuples(st.integers(1, 14), st.integers(0, 8), st.integers(0, 4)), max_size=4),
)
@settings(max_examples=300)
def test_evictions_explain_as_many_missing_records_as_they_can(
    missing: set[int], drawn: list[tuple[int, int, int]]
) -> None:
    evictions = [eviction(first, first + more, count) for first, more, count in drawn]
    explained, gaps = explain(list(Ranges((n, n) for n in missing)), evictions)
    numbers = [n for first, last in explained + gaps for n in range(first, last + 1)]
    assert sorted(numbers) == sorted(missing)
    assert sum(last - first + 1 for first, last in explained) == most_matched(sorted(missing), evictions)


def most_matched(missing: list[int], evictions: list[Eviction]) -> int:
    """The size of a greatest matching, by augmenting paths."""
    slots = [e for e in evictions for _ in range(e.count)]
    owner: dict[int, int] = {}

    def place(number: int, seen: set[int]) -> bool:
        for slot, one in enumerate(slots):
            if one.first_sequence <= number <= one.last_sequence and slot not in seen:
                seen.add(slot)
                if slot not in owner or place(owner[slot], seen):
                    owner[slot] = number
                    return True
        return False

    return sum(place(number, set()) for number in missing)


def test_ranges_are_shown_to_people() -> None:
    assert show([]) == "none"
    assert show([(3, 3), (7, 9)]) == "3, 7-9"
    assert show([(n, n) for n in range(0, 40, 2)]) == "0, 2, 4, 6, 8, 10, 12, 14 and 12 more"


# --- messages to tables


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_comes_however_often_in_whatever_order_is_in_the_table_once_and_the_rest_is_audited(
    tmp_path_factory: Any, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 12))
    records = {n: record_of(n, block_of(5 * n - 5, 5 * n)) for n in range(1, count + 1)}
    arrived = data.draw(st.sets(st.sampled_from(sorted(records)), min_size=1))
    evicted = data.draw(st.sets(st.sampled_from(sorted(records)))) - arrived
    evictions = [eviction(first, last, last - first + 1) for first, last in Ranges((n, n) for n in evicted)]
    sent = [*sorted(arrived), *data.draw(st.lists(st.sampled_from(sorted(arrived)), max_size=6))]
    sent = data.draw(st.permutations(sent))
    lines = [
        message_of([records[n]], data.draw(st.sampled_from([(), evictions])), enqueued=f"2026-11-24T15:00:{second:02}Z")
        for second, n in enumerate(sent)
    ]
    lines.append(message_of([], evictions))
    at = data.draw(st.integers(0, len(lines)))
    rows, audit = decoded(tmp_path_factory.mktemp("fleet"), lines[:at], lines[at:])

    wanted = [row for n in sorted(arrived) for row in rows_of(range(5 * n - 5, 5 * n))]
    assert rows == wanted
    (outbox,) = audit.outboxes
    gaps = set(range(1, max(arrived | evicted) + 1)) - arrived - evicted
    assert outbox.duplicates == len(sent) - len(arrived)
    assert outbox.received == list(Ranges((n, n) for n in arrived))
    assert outbox.explained == list(Ranges((n, n) for n in evicted))
    assert outbox.gaps == list(Ranges((n, n) for n in gaps))
    assert outbox.evicted == ({"quota": len(evicted)} if evicted else {})
    (stream,) = audit.streams
    lost = sum(n not in arrived for n in range(min(arrived), max(arrived)))
    assert (stream.blocks, stream.frames, stream.lost_frames) == (len(arrived), 5 * len(arrived), 5 * lost)
    assert (stream.samples, stream.counters["samples"], stream.holes) == (len(rows), len(rows), [])
    assert audit.ok == (not gaps)
    assert ("UNEXPLAINED" in str(audit)) == bool(gaps)


def test_an_eviction_explains_no_more_records_than_it_counts(tmp_path: Path) -> None:
    records = [record_of(n, block_of(n, n + 1)) for n in (1, 5)]
    _, audit = decoded(tmp_path, [message_of(records, [eviction(2, 4, 2, "other")])])
    assert audit.outboxes[0].explained == [(2, 3)]
    assert audit.outboxes[0].gaps == [(4, 4)]
    assert not audit.ok


def test_an_outbox_made_by_a_salvage_begins_where_the_old_one_ended(tmp_path: Path) -> None:
    entry = eviction(1, 6, 0, "", "salvage")
    _, audit = decoded(tmp_path, [message_of([record_of(n, block_of(n, n + 1)) for n in (7, 8)], [entry])])
    assert audit.ok, str(audit)
    gone = eviction(1, 6, 1, "", "corrupt")
    old = message_of([record_of(n, block_of(n, n + 1)) for n in (1, 4)], [gone], outbox=bytes(16))
    _, audit = decoded(tmp_path / "old", [old])
    assert audit.outboxes[0].explained == [(2, 3), (5, 6)]
    assert audit.ok, str(audit)


def test_what_is_no_message_of_ours_is_named_with_its_line_and_the_rest_is_read(tmp_path: Path) -> None:
    good = message_of([record_of(1, block_of(0, 3))])
    spoofed = message_of([record_of(2, block_of(3, 6))], connectionDeviceId="another")
    other = message_of([], contentType="application/json")
    broken = json.dumps({**json.loads(good), "Body": base64.b64encode(b"\xff\xff").decode()}).encode() + b"\n"
    rows, audit = decoded(tmp_path, [b"not JSON\n", b"[]\n", good, spoofed, other], [broken, good[: len(good) // 2]])
    assert rows == rows_of(range(3))
    assert audit.other_messages == 1
    assert not audit.ok
    places = [problem.partition("/15/")[2].partition(" ")[0] for problem in audit.problems]
    assert places == ["00.json:1:", "00.json:2:", "00.json:4:", "01.json:1:", "01.json:2:"]
    assert "a message of 'truck-7' that 'another' sent" in audit.problems[2]


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_no_line_stops_the_reading(tmp_path_factory: Any, line: bytes) -> None:
    folder = tmp_path_factory.mktemp("lines")
    body = base64.b64encode(line).decode()
    system = {"connectionDeviceId": VEHICLE}
    wrapped = json.dumps({"EnqueuedTimeUtc": "2026-11-24T15:00:00Z", "SystemProperties": system, "Body": body})
    rows, _ = decoded(folder, [line + b"\n", wrapped.encode() + b"\n", message_of([record_of(1, block_of(0, 3))])])
    assert rows == rows_of(range(3))


def test_a_block_that_does_not_decode_is_named_and_the_rest_is_decoded(tmp_path: Path) -> None:
    damaged = block_of(3, 6)
    flipped = Block(damaged.data[:-1] + b"?", damaged.clock, damaged.coverage, damaged.counters)
    backwards = Block(damaged.data, damaged.clock, Coverage("replay:drive.log", 9, 6), damaged.counters)
    records = [
        record_of(1, block_of(0, 3)),
        record_of(2, flipped),
        record_of(3, backwards),
        record_of(4, block_of(6, 9)),
    ]
    rows, audit = decoded(tmp_path, [message_of(records)])
    assert rows == rows_of([*range(3), *range(6, 9)])
    assert audit.problems == [
        "truck-7, outbox 00010203: record 3 of drive: it covers frames 9 to 6; left out",
        "truck-7, outbox 00010203: record 2 of drive: the block does not match its checksum; left out",
    ]
    assert [stream.undecoded_blocks for stream in audit.streams] == [1]
    assert not audit.ok


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
    assert found.column_names == [*table.SCHEMA.names, "vehicle", "campaign", "date"]


def test_a_damaged_manifest_file_is_refused(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path / "a.manifest")
    content = (tmp_path / "a.manifest").read_bytes()
    (tmp_path / "a.manifest").write_bytes(content.replace(b"SPEED", b"SPEEE"))
    with pytest.raises(InputError, match="hash does not match"):
        load_manifests(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        load_manifests(tmp_path / "missing")


# --- time


def test_samples_are_dated_in_utc_and_filed_by_day(tmp_path: Path) -> None:
    midnight_us = 1_795_564_800 * SECOND_US  # 2026-11-25, nine hours ahead of the cloud's clock
    boot_us = midnight_us - 25_000
    clock = Clock(bytes(16), boot_us, Quality.SYNCHRONISED)
    rows, _ = decoded(tmp_path, [message_of([record_of(1, block_of(0, 6, source="can", clock=clock))])])
    assert rows == rows_of(range(6), boot_us)
    days = {path.parent.name: pq.read_table(path, partitioning=None).num_rows for path in tmp_path.rglob("*.parquet")}
    assert days == {"date=2026-11-24": len(rows_of(range(3))), "date=2026-11-25": len(rows_of(range(3, 6)))}


def test_a_clock_that_is_set_late_dates_the_earlier_blocks_of_its_boot_too(tmp_path: Path) -> None:
    boots = [bytes([n]) * 16 for n in range(2)]
    clocks = [
        Clock(boots[0], 0, Quality.UNKNOWN),
        Clock(boots[0], BOOT_US + 7, Quality.SYSTEM),
        Clock(boots[0], BOOT_US + 5_000_000, Quality.SYNCHRONISED),
        Clock(boots[0], BOOT_US + 5_000_003, Quality.SYNCHRONISED),
        Clock(boots[0], BOOT_US + 9, Quality.SYSTEM),
        Clock(boots[1], BOOT_US + 11, Quality.SYSTEM),
    ]
    lines = [
        message_of([record_of(n, block_of(n, n + 1, source="can", clock=clock))])
        for n, clock in enumerate(clocks, start=1)
    ]
    rows, audit = decoded(tmp_path, lines[::-1])
    offsets = [5_000_000, 5_000_000, 5_000_000, 5_000_003, 5_000_003, 11]
    assert Counter(rows) == Counter(row for n, at in enumerate(offsets, start=1) for row in rows_of([n], BOOT_US + at))
    (stream,) = audit.streams
    assert (stream.clocks, stream.corrected_blocks) == ({"unknown": 1, "system": 3, "synchronised": 2}, 3)


@pytest.mark.parametrize("offset_us", [0, 4_300_000_000 * SECOND_US, 1 << 62, -(1 << 62)])  # 1970, 2106, …
def test_a_clock_that_cannot_be_right_is_named_and_stops_nothing(tmp_path: Path, offset_us: int) -> None:
    wild = Clock(bytes(16), offset_us, Quality.SYNCHRONISED)
    records = [record_of(1, block_of(0, 3)), record_of(2, block_of(3, 6, source="can", clock=wild))]
    rows, audit = decoded(tmp_path, [message_of(records)])
    assert rows == rows_of(range(3))
    assert "record 2 of drive: its clock cannot be right: samples of " in audit.problems[0]
    assert not audit.ok


def test_a_record_with_an_impossible_clock_waits_for_a_better_one_of_its_boot(tmp_path: Path) -> None:
    wild, right = Clock(bytes(16), 7, Quality.SYNCHRONISED), Clock(bytes(16), BOOT_US, Quality.SYSTEM)
    assert not decoded(tmp_path, [message_of([record_of(1, block_of(0, 3, source="can", clock=wild))])])[0]
    line = message_of([record_of(2, block_of(3, 6, source="can", clock=right))])
    rows, audit = decoded(tmp_path, [line])
    assert rows == rows_of(range(6), BOOT_US)
    assert audit.ok, str(audit)


def test_an_anchor_that_comes_in_a_later_run_moves_rows_to_another_day(tmp_path: Path) -> None:
    midnight_us = 1_795_478_400 * SECOND_US  # 2026-11-24
    early = Clock(bytes(16), midnight_us - 50_000, Quality.SYSTEM)
    right = Clock(bytes(16), midnight_us, Quality.SYNCHRONISED)
    decoded(tmp_path, [message_of([record_of(1, block_of(0, 3, source="can", clock=early))])])
    assert dates(tmp_path) == {"date=2026-11-23"}
    rows, _ = decoded(tmp_path, [message_of([record_of(2, block_of(3, 6, source="can", clock=right))])])
    assert rows == rows_of(range(6), midnight_us)
    assert dates(tmp_path) == {"date=2026-11-24"}


def dates(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("date=*")}


# --- frames of the source


def test_frames_missing_on_a_live_bus_are_counted_and_holes_that_nobody_knows_of_are_not_excused(
    tmp_path: Path,
) -> None:
    spans = [(100, 105, 0), (110, 115, 5), (120, 125, 2)]
    records = [
        record_of(n, block_of(first, end, missing=missing, source="socketcan:can0"))
        for n, (first, end, missing) in enumerate(spans, start=1)
    ]
    _, audit = decoded(tmp_path, [message_of(records)])
    (stream,) = audit.streams
    assert (stream.frames, stream.missing_frames, stream.holes) == (15, 7, [(115, 117)])
    assert not audit.ok
    assert "7 frames missing on the bus; UNEXPLAINED: no block has frames 115-117" in str(audit)


def test_a_live_source_that_starts_anew_has_neither_hole_nor_overlap(tmp_path: Path) -> None:
    boots = [Clock(bytes([n]) * 16, BOOT_US, Quality.SYSTEM) for n in range(2)]
    blocks_ = [
        block_of(50, 55, source="can", clock=boots[0]),
        block_of(90, 95, source="can", clock=boots[1]),
        block_of(10, 15, source="can", clock=boots[1]),
    ]
    _, audit = decoded(tmp_path, [message_of([record_of(n, block) for n, block in enumerate(blocks_, start=1)])])
    assert audit.ok, str(audit)


def test_what_a_campaign_did_not_collect_while_another_did_is_no_hole(tmp_path: Path) -> None:
    records = [
        record_of(1, block_of(0, 5), "a"),
        record_of(2, block_of(0, 5), "b"),
        record_of(3, block_of(5, 10), "b"),
        record_of(4, block_of(10, 15), "a"),
        record_of(5, block_of(12, 15), "b"),
    ]
    rows, audit = decoded(tmp_path, [message_of(records)])
    streams = {stream.stream: stream for stream in audit.streams}
    assert (streams["a"].idle_frames, streams["a"].holes) == (5, [])
    assert (streams["b"].idle_frames, streams["b"].holes) == (2, [])
    assert audit.ok, str(audit)
    assert Counter(rows) == Counter(rows_of([*range(5), *range(10, 15)]) + rows_of([*range(10), *range(12, 15)]))


def test_frames_of_a_recording_that_come_twice_are_named(tmp_path: Path) -> None:
    _, audit = decoded(tmp_path, [message_of([record_of(1, block_of(0, 5)), record_of(2, block_of(3, 8))])])
    assert audit.streams[0].overlaps == [(3, 4)]
    assert not audit.ok
    assert "TWICE: frames 3-4" in str(audit)


# --- the table as a whole


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


@pytest.mark.parametrize("vehicle", ["../../etc", "a/b", "a\\b", "..", ".", "a\nb"])
def test_a_vehicle_that_is_called_like_a_path_is_not_let_in(tmp_path: Path, vehicle: str) -> None:
    bad, good = (message_of([record_of(1, block_of(0, 2))], vehicle=name) for name in (vehicle, VEHICLE))
    rows, audit = decoded(tmp_path, [bad, good])
    assert rows == rows_of(range(2))
    assert f"00.json:1: no device is called {vehicle!r}: that is a path; left out" in audit.problems[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["messages", "table"]


def test_what_cannot_be_counted_or_named_is_left_out(tmp_path: Path) -> None:
    good, most = block_of(0, 3), (1 << 64) - 1
    bad = [
        record_of(2, Block(good.data, good.clock, Coverage("x", 0, most), good.counters)),
        record_of(3, Block(good.data, good.clock, good.coverage, Counters(samples=most))),
        record_of(most, good),
        record_of(4, good, stream="ü" * 200),
        record_of(5, good, stream=""),
    ]
    long = message_of([record_of(1, good)], vehicle="ü" * 128)
    rows, audit = decoded(tmp_path, [message_of([record_of(1, good), *bad]), message_of(bad), long])
    assert rows == rows_of(range(3))
    assert len(audit.problems) == 6
    assert "the device's name of 128 characters is too long for a folder" in audit.problems[0]
    assert f"record 2 of drive: it counts to {most}; left out" in audit.problems[1]


def test_a_file_whose_name_is_no_text_is_named(tmp_path: Path) -> None:
    put(tmp_path, [message_of([record_of(1, block_of(0, 3))])])
    (tmp_path / "messages" / os.fsdecode(b"\xff.json")).write_bytes(b"?\n")
    audit = decode([tmp_path / "messages"], {MANIFEST.hash: MANIFEST}, tmp_path / "table")
    assert "messages/\N{REPLACEMENT CHARACTER}.json:1: no message in IoT Hub's JSON form" in audit.problems[0]


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


def test_a_file_that_is_no_file_of_messages_is_named(tmp_path: Path) -> None:
    put(tmp_path, [message_of([record_of(1, block_of(0, 3))])])
    (tmp_path / "messages/photo.jpg").write_bytes(b"\xff\xd8")
    audit = decode([tmp_path / "messages"], {MANIFEST.hash: MANIFEST}, tmp_path / "table")
    assert "photo.jpg: is no file of messages by its name (.json or .avro); left out" in audit.problems[0]
    (tmp_path / "messages/photo.jpg").unlink()
    torn = message_of([record_of(2, block_of(3, 6))])
    path = tmp_path / "messages/late.json"
    path.write_bytes(torn[:99])
    assert len(decode([tmp_path / "messages"], None, tmp_path / "table").problems) == 2
    path.write_bytes(torn)  # a hub had been writing it
    assert len(decode([tmp_path / "messages"], None, tmp_path / "table").problems) == 1


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    messages = put(tmp_path, [])
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("dear")
    with pytest.raises(InputError, match="home: is there already, and is no table of ours"):
        decode([messages], {}, tmp_path / "home")
    assert (tmp_path / "home/letter.txt").exists()
    with pytest.raises(InputError, match="nowhere: is no folder of messages"):
        decode([tmp_path / "nowhere"], {}, tmp_path / "table")
    with pytest.raises(InputError, match="holds no table"):
        table.read(tmp_path / "home")


def test_nothing_to_decode_is_an_empty_table(tmp_path: Path) -> None:
    found = table.read(put(tmp_path, []), {})
    assert found.num_rows == 0
    assert found.column_names == [*table.SCHEMA.names, "vehicle", "campaign", "date"]


# --- recordings


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
