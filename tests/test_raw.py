"""Raw frames: what is named goes bit for bit, what is private stays, and the cloud has frames and rows."""

import base64
import collections
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from cy_core.frames import Frames
from cy_core.pick import FramePicker
from edge import block
from edge.campaign import Campaign, SignalRule, compile_campaign
from edge.cli import main
from edge.decoder import Decoder
from edge.errors import InputError
from edge.line import Line
from edge.logs import open_log
from edge.manifest import DecoderManifest, Message, Signal
from edge.message import Block, Clock, Coverage, Quality, Record, pack
from edge.stream import Batch
from edge.table import Table
from edge.train import train
from fleet import raw, table
from fleet.decode import decode
from tests.strategies import batch

EXTENDED, REMOTE, ERROR = 0x80000000, 0x40000000, 0x20000000
DM1, VI = 0x18FECA27, 0x18FEEC27  # the second carries the vehicle's identification
MANIFEST = DecoderManifest(
    ("can0", "can1"),
    (
        Message("can0", 0x10, "BRAKE", 8, signals=(Signal("PRESSURE", 0, 16), Signal("STATE", 16, 8))),
        Message("can0", 0x11, "BRAKE_REAR", 8, signals=(Signal("PRESSURE", 0, 16),)),
        Message("can0", 0x12, "INFO", 8, signals=(Signal("VIN", 0, 64),)),
        Message(
            "can1", DM1, "DM1", 20, True, signals=(Signal("LAMP", 0, 8), Signal("CODES", 64, 64)), protocol="j1939"
        ),
        Message("can1", VI, "VI", 17, True, signals=(Signal("VIN", 0, 64),), protocol="j1939"),
    ),
)
Frame = tuple[int, int, int, int, bytes]


def select(frames: list[str], **fields: Any) -> Any:
    return compile_campaign("raw", Campaign(frames=frames, **fields), MANIFEST)


def picked(entries: list[str], frames: list[Frame]) -> list[Frame]:
    into = Frames()
    select(entries).raw.picker().pick(batch(frames), into)
    return list(into)


def transport(pgn: int, size: int, source: int = 0x27) -> list[Frame]:
    """A broadcast of the transport protocol: announcement and packets (SAE J1939-21, 5.10)."""
    packets = -(-size // 7)
    head = bytes([32, size & 255, size >> 8, packets, 255]) + pgn.to_bytes(3, "little")
    frames = [(0, 1, EXTENDED | 0x1CECFF00 | source, 0, head)]
    frames += [(0, 1, EXTENDED | 0x1CEBFF00 | source, 0, bytes([n + 1]) + bytes([n] * 7)) for n in range(packets)]
    return frames


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("can0", "frames[0]: 'can0' says no frames; as in"),
        ("can7:*", "'can7' is no bus of the manifest; there are can0, can1"),
        ("can0:BRAKES", "'BRAKES' matches no message of can0; did you mean BRAKE?"),
        ("can0:IN*", "matches nothing but identifiers of the vehicle; name INFO"),
        ("can0:0x800", "0x800 is no identifier; 11 bits: at most 0x7FF"),
        ("can0:0x20000000", "0x20000000 is no identifier; 29 bits"),
        ("can1:pgn:EC", "'EC' is no parameter group"),
        ("can1:pgn:0xEC01", "'0xEC01' is no parameter group"),
    ],
)
def test_an_entry_that_names_nothing_is_refused_with_the_way_out(entry: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        select([entry])
    assert str(error.value).startswith("campaign raw: frames[0]")
    assert said in str(error.value)


def test_a_campaign_names_signals_or_frames() -> None:
    with pytest.raises(InputError, match="selects nothing"):
        compile_campaign("a", Campaign(), MANIFEST)
    assert compile_campaign("a", Campaign({"*": SignalRule()}), MANIFEST).raw is None, (
        "no glob over signals means frames"
    )


def test_entries_name_frames_by_bus_identifier_group_and_name() -> None:
    frames: list[Frame] = [
        (1, 0, 0x10, 0, b"\1"), (2, 0, 0x11, 0, b"\2"), (3, 0, 0x7AA, 0, b""), (4, 0, EXTENDED | 0x10, 0, b"\4"),
        (5, 1, EXTENDED | DM1, 0, bytes(8)), (6, 1, EXTENDED | DM1 & 0x3FFFF00 | 0x33, 0, bytes(8)),
        (7, 0, ERROR | 4, 0, bytes(8)), (8, 0, REMOTE | 0x10, 0, b""), (9, 1, 0x10, 4, bytes(64)),
    ]  # fmt: skip
    by = {
        "can0:*": [1, 2, 3, 4, 7, 8],
        "*:*": [1, 2, 3, 4, 5, 6, 7, 8, 9],
        "can0:BRAKE*": [1, 2, 8],
        "can0:BRAKE": [1, 8],
        "*:0x10": [1, 8, 9],
        "can0:0x00000010": [4],
        "can1:pgn:0xFECA": [5, 6],
        "can1:DM1": [5, 6],
    }
    assert {entry: [frame[0] for frame in picked([entry], frames)] for entry in by} == by
    assert picked(list(by), frames) == frames


def test_frames_of_identifiers_stay_unless_they_are_named() -> None:
    info, brake = (1, 0, 0x12, 0, b"WDB12345"), (2, 0, 0x10, 0, b"")
    assert picked(["can0:*"], [info, brake]) == [brake]
    assert (
        picked(["can0:*", "can0:INFO"], [info, brake]) == picked(["can0:0x12", "*:*"], [info, brake]) == [info, brake]
    )


def test_transport_is_kept_or_withheld_by_what_it_carries() -> None:
    codes, vin = transport(0xFECA, 20), transport(0xFEEC, 17)
    mixed = [frame for pair in zip(codes, [*transport(0xFEEC, 17, 0x28), vin[0]], strict=False) for frame in pair]
    assert picked(["can1:*"], codes + vin + codes) == codes + codes
    assert picked(["can1:DM1"], codes + vin) == codes
    assert picked(["can1:VI"], codes + vin) == vin
    assert picked(["*:*"], mixed) == codes, "sessions of several senders at once are told apart"
    assert picked(["can1:*"], vin[1:]) == [], "whose beginning nobody saw"
    assert picked(["can1:*", "can1:pgn:0xEC00", "can1:pgn:0xEB00"], vin) == vin, "named by itself"


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), max_size=6),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=40),
)
def test_of_the_rules_that_match_the_last_one_counts(
    rules: list[tuple[int, int, int, int]], traffic: list[tuple[int, int]]
) -> None:
    frames = batch([(at, bus, can_id, 0, b"") for at, (bus, can_id) in enumerate(traffic)])
    wanted = []
    for at, (bus, can_id) in enumerate(traffic):
        matching = [verdict for on, mask, value, verdict in rules if on == bus and can_id & mask == value]
        wanted += [at] if matching and matching[-1] else []
    into = Frames()
    assert FramePicker(rules).pick(frames, into) == len(wanted)
    assert [frame[0] for frame in into] == wanted


def run(selection: Any, frames: list[Frame], cuts: list[int], table: Table | None = None) -> list[Block]:
    line, found, start = Line(Decoder(MANIFEST)), [], 0
    line.table = table or line.table
    line.select([selection], 0)
    for end in [*sorted(cuts), len(frames)]:
        cut = batch(frames[start:end])
        made = Batch(cut, Coverage("s", start, end), Clock(quality=Quality.RECORDED), last=end == len(frames))
        found += [Block.decode(record.body) for record in line.take(made)]
        start = end
    return found


def raw_frames(blocks: list[Block]) -> list[Frame]:
    into = Frames()
    for one in blocks:
        if block.holds_frames(one.data):
            assert block.decode_frames(one.data, into) == MANIFEST.buses
    return list(into)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.sampled_from([1, 1000, 400_000, 2_000_000]), st.sampled_from([0x10, 0x11, 0x500]),
                       st.integers(0, 200)), max_size=50),
    st.lists(st.integers(0, 50), max_size=4),
    st.sampled_from([{}, {"BRAKE.*": SignalRule(filter="change")}]),
)  # fmt: skip
def test_the_frames_of_an_event_go_bit_for_bit_wherever_batches_are_split(
    steps: list[tuple[int, int, int]], cuts: list[int], signals: dict[str, SignalRule]
) -> None:
    time_us, frames = 10**9, []
    for step, can_id, value in steps:
        time_us += step
        frames.append((time_us, 0, can_id, 0, bytes([value]) + bytes(7)))
    window = {"when": "BRAKE.PRESSURE > 150", "before_s": 1, "after_s": 0.5}
    cuts = [min(cut, len(frames)) for cut in cuts]
    blocks = run(select(["can0:0x500", "can0:BRAKE"], signals=signals, **window), frames, cuts)
    hits = [frame[0] for frame in frames if frame[2] == 0x10 and frame[4][0] > 150]
    inside = [f for f in frames if any(hit - 1_000_000 <= f[0] <= hit + 500_000 for hit in hits)]
    assert raw_frames(blocks) == [frame for frame in inside if frame[2] != 0x11]
    covered = [(one.coverage.first, one.coverage.end) for one in blocks]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(covered)), "frames are counted once"


def test_the_cloud_has_rows_of_raw_frames_and_gives_the_frames_back(tmp_path: Path) -> None:
    frames: list[Frame] = []
    for at in range(300):
        time_us = 1_795_500_000_000_000 + 10_000 * at
        frames.append((time_us, 0, 0x10, 0, at.to_bytes(2, "little") + bytes(6)))
        frames.append((time_us + 7, 0, 0x7A0, 0, bytes([at & 255])))
        if at % 100 == 50:
            frames += [(time_us + 10 + n, *frame[1:]) for n, frame in enumerate(transport(0xFECA, 20))]
    blocks = run(select(["can0:*", "can1:*"]), frames, [250])
    signals = run(compile_campaign("s", Campaign({"*": SignalRule()}), MANIFEST), frames, [250])
    records = [Record(n + 1, 3, "raw", one.encode()) for n, one in enumerate(blocks)]
    records += [Record(len(records) + n + 1, 3, "signals", one.encode()) for n, one in enumerate(signals)]
    put(tmp_path / "hub", records)
    audit = decode([tmp_path / "hub"], {MANIFEST.hash: MANIFEST}, tmp_path / "table")
    assert audit.ok, str(audit)
    rows = collections.defaultdict(list)
    for row in table.read(tmp_path / "table").to_pylist():
        rows[row["campaign"]].append((row["time_us"], row["bus"], row["message"], row["signal"], row["raw"]))
    assert len(rows["raw"]) == 300 * 2 + 3 * 2
    assert sorted(rows["raw"]) == sorted(rows["signals"])
    captures = list(raw.captures(tmp_path / "table"))
    assert [frame for capture in captures for frame in capture.frames] == frames
    assert {(capture.vehicle, capture.campaign, capture.buses) for capture in captures} == {
        ("van-7", "raw", ("can0", "can1"))
    }
    assert list(raw.captures(tmp_path / "table", campaign="signals")) == []
    for suffix in (".log", ".blf", ".mf4"):
        assert exported(tmp_path, f"all{suffix}") == [(f[0], MANIFEST.buses[f[1]], *f[2:]) for f in frames]
    inside = [f for f in frames if 1_795_500_001_000_000 <= f[0] < 1_795_500_002_000_000]
    times = ["--from", "2026-11-24T06:00:01", "--to", "2026-11-24T06:00:02"]
    assert exported(tmp_path, "part.log", *times) == [(f[0], MANIFEST.buses[f[1]], *f[2:]) for f in inside]
    with pytest.raises(InputError, match="van-7 signals: has no raw frames then; there are: van-7 raw"):
        raw.export(tmp_path / "table", tmp_path / "none.log", "van-7", "signals")
    assert not (tmp_path / "none.log").exists()


def exported(folder: Path, name: str, *options: str) -> list[tuple[int, str, int, int, bytes]]:
    """What `bordnetz fleet export` wrote, read again."""
    command = ["fleet", "export", str(folder / "table"), "-o", str(folder / name), "--vehicle", "van-7"]
    done = CliRunner().invoke(main, [*command, "--campaign", "raw", *options])
    assert done.exit_code == 0, done.output
    reader, frames = open_log(folder / name), Frames()
    while reader.read(frames, 1000):
        pass
    names = reader.buses
    reader.close()
    return [(time_us, names[bus], *rest) for time_us, bus, *rest in frames]


def put(folder: Path, records: list[Record]) -> None:
    """A message file as the hub writes it."""
    manifest = bytes.fromhex(MANIFEST.hash)
    system = {"connectionDeviceId": "van-7", "contentType": "application/x-protobuf"}
    line = {
        "EnqueuedTimeUtc": "2026-11-25T15:00:00.1230000Z",
        "Properties": {},
        "SystemProperties": system,
        "Body": base64.b64encode(pack("van-7", bytes(16), manifest, records)).decode(),
    }
    folder.mkdir()
    (folder / "one.json").write_text(json.dumps(line))


def test_blocks_that_name_a_model_table_wait_until_it_is_there(tmp_path: Path) -> None:
    start_us = 1_795_500_000_000_000
    frames: list[Frame] = [
        (start_us + 10_000 * at, 0, 0x10, 0, at.to_bytes(2, "little") + bytes(6)) for at in range(400)
    ]
    model, other = train([(batch(frames), MANIFEST.buses)]), train([(batch(frames[:100]), MANIFEST.buses)])
    bounds = {"*": SignalRule(max_error=2)}
    blocks = run(select(["can0:*"]), frames, [], model)
    blocks += run(compile_campaign("s", Campaign(bounds, tick_us=1000), MANIFEST), frames, [], model)
    assert len(blocks[0].data) < len(run(select(["can0:*"]), frames, [])[0].data)
    put(
        tmp_path / "hub",
        [Record(n + 1, 3, stream, b.encode()) for n, (stream, b) in enumerate(zip("ab", blocks, strict=True))],
    )
    (tmp_path / "models").mkdir()
    other.save(tmp_path / "models" / "other.table")
    (tmp_path / "models" / "readme.txt").write_text("no table")

    def rows(jobs: int, **given: Any) -> tuple[list[str], list[str]]:
        audit = decode([tmp_path / "hub"], {MANIFEST.hash: MANIFEST}, tmp_path / "table", jobs=jobs, **given)
        return audit.problems, table.read(tmp_path / "table")["campaign"].to_pylist()

    for folder in (None, tmp_path / "models"):
        problems, campaigns = rows(1, tables=folder)
        assert len(problems) == 2
        assert all(f"needs the model table sha256:{model.sha256[:16]}" in problem for problem in problems)
        assert campaigns == []
    model.save(tmp_path / "models" / "any-name")
    problems, campaigns = rows(2, tables=tmp_path / "models")
    assert (problems, collections.Counter(campaigns)) == ([], {"a": 800, "b": 800})
    assert rows(1)[0] == [], "the table has a copy"
    [capture] = raw.captures(tmp_path / "table")
    assert list(capture.frames) == frames
    exact = table.facts(table.read(tmp_path / "table"))["signals"]["can0.BRAKE.PRESSURE"]
    assert (exact["max_error"], exact["time_tolerance_us"]) == (2.0, 500)
    with pytest.raises(InputError, match="no folder"):
        rows(1, tables=tmp_path / "nothing")
