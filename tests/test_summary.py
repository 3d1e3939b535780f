"""Summaries: against their slow twin, wherever batches are split; from a campaign to a table; damaged blocks."""

import base64
import itertools
import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cy_core.columns import Columns
from cy_core.summarise import KINDS, Summariser
from edge import block, summary
from edge.campaign import DROPPED, Campaign, SignalRule, compile_campaign
from edge.decoder import Decoder
from edge.errors import BlockCorrupt, InputError
from edge.line import Line
from edge.manifest import DecoderManifest, Message, Signal
from edge.message import Block, Clock, Coverage, Quality, Record, pack
from edge.stream import Batch
from edge.summary import Reader, Summaries, Summary, SummingReducer
from tests.reference import reduce as slow
from tests.strategies import PATIENT, batch
from tests.test_reduce import Samples, cut, manifest, signals

EDGES = (10.0, 25.0, 400.0)
CLASSES = len(EDGES) + 2
ALL = sum(KINDS.values())


def summarised(of: DecoderManifest, one: Summary, samples: Samples, cuts: list[int], now_us: int, last: bool) -> Any:
    """Rows of (start, values …) of the only signal."""
    decoder = Decoder(of)
    kernel = Summariser(decoder.plan, Summaries.of(of, [one]).plan, [one.row()])
    into, rows, start = Columns(kernel.into), [], 0
    for end in [*sorted(cuts), len(samples)]:
        frames = batch([(at, 0, 1, 0, (raw & 0xFFFFFFFF).to_bytes(8, "little")) for at, raw in samples[start:end]])
        is_last = end == len(samples)
        until = now_us if is_last else samples[end - 1][0] if end else samples[0][0]
        state = kernel.save()
        for _ in range(2):  # what was saved goes back to where it was
            kernel.restore(state)
            count = kernel.summarise(decoder.decode_batch(frames), into, until, last and is_last)
        found = [row for group in into.groups() for row in _rows(group)]
        assert count == sum(len(row) - 1 for row in found)
        rows += found
        start = end
        if is_last:
            break
    return rows


def _rows(group: Any) -> list[tuple[Any, ...]]:
    return list(zip(group.times, *(values.cast(form) for _, form, values in group.columns), strict=True))


@given(data=st.data(), samples=signals(60), span_us=st.sampled_from([0, 10_000, 35_000, 3_000_000]))
@settings(max_examples=150, **PATIENT)
def test_summaries_are_those_of_their_twin_wherever_batches_are_split(
    data: Any, samples: Samples, span_us: int
) -> None:
    hold_us = data.draw(st.sampled_from([0, 7_000, 10_000]))
    last = data.draw(st.booleans())
    now_us = samples[-1][0] + data.draw(st.sampled_from([0, 1, 9_000, 50_000, 7_000_000]))
    none = ((3, 3), (samples[0][1], samples[0][1] + 1)) if samples[0][1] > 4 else ((3, 3),)
    factor, offset = data.draw(st.sampled_from([(1.0, 0.0), (-0.5, 3.0), (0.1, -40.0)]))

    def is_number(raw: int) -> bool:
        return not any(low <= raw <= high for low, high in none)

    def class_of(raw: int) -> int:
        return sum(edge <= raw * factor + offset for edge in EDGES) if is_number(raw) else CLASSES - 1

    one = Summary(0, ALL, span_us, min(hold_us, span_us or hold_us), factor, offset, EDGES, (), none)
    found = summarised(manifest(), one, samples, cut(data, samples), now_us, last)
    twin = slow.summary(samples, class_of, CLASSES, is_number, span_us, hold_us, now_us, last)
    assert [row[0] for row in found] == [period.start_us for period in twin]
    for (_, mean, count, total, *dwell), period in zip(found, twin, strict=True):
        assert (count, dwell) == (period.count, period.dwell)
        if not period.numbers:
            assert mean != mean
            assert total == 0
            continue
        exact = period.total * Fraction(factor) + period.numbers * Fraction(offset)
        size = abs(period.total * Fraction(factor)) + period.numbers * abs(Fraction(offset))
        assert abs(Fraction(total) - exact) <= size / 2**51
        assert abs(Fraction(mean) - exact / period.numbers) <= size / period.numbers / 2**51


def test_the_times_of_a_signal_that_is_never_silent_add_up() -> None:
    samples = [(time_us, time_us // 1000 % 50) for time_us in range(1_000_000, 9_000_000, 17_001)]
    one = Summary(0, KINDS["dwell"], 1_000_000, 0, 1.0, 0.0, EDGES, (), ())
    rows = summarised(manifest(), one, samples, list(range(0, len(samples), 7)), samples[-1][0], False)
    assert [sum(row[1:]) for row in rows] == [1_000_000] * len(rows)
    assert len(rows) == 7


def test_a_sum_keeps_what_a_plain_one_loses() -> None:
    of = manifest(is_float=True)
    import struct

    raws = [struct.unpack("<I", struct.pack("<f", value))[0] for value in [1e30] + [1.0] * 1000 + [-1e30]]
    one = Summary(0, KINDS["mean"] | KINDS["sum"], 0, 0, 1.0, 0.0, (), (), ())
    [(_, mean, total)] = summarised(of, one, list(enumerate(raws)), [], 2000, True)
    assert (mean, total) == (1000 / 1002, 1000.0)


def test_what_is_no_number_is_left_out_of_a_mean() -> None:
    import math
    import struct

    values = [1.0, math.nan, 5.0, math.inf]
    raws = [struct.unpack("<I", struct.pack("<f", value))[0] for value in values]
    one = Summary(0, 7, 0, 0, 2.0, 1.0, (), (), ())
    [(start, mean, count, total)] = summarised(manifest(is_float=True), one, list(enumerate(raws)), [], 9, True)
    assert (start, mean, count, total) == (0, 7.0, 4, 14.0)


# From a campaign to a block, and back


SIGNAL = Signal("SPEED", 0, 16, factor=0.1, unit="km/h", labels={65535: "not available"})
GEAR = Signal("GEAR", 16, 8, labels={0: "P", 1: "D", 2: "R"})
VAN = DecoderManifest(("can0",), (Message("can0", 1, "DRIVE", 8, signals=(SIGNAL, GEAR)),))


def drive(count: int = 500) -> list[tuple[int, int, int, int, bytes]]:
    draw = random.Random(1)
    return [
        (1_000_000 + 10_000 * i, 0, 1, 0, draw.randrange(900).to_bytes(2, "little") + bytes([draw.randrange(4)] * 6))
        for i in range(count)
    ]


def run(campaign: Campaign, frames: Any, step: int = 100) -> list[Block]:
    decoder = Decoder(VAN)
    line = Line(decoder)
    line.select([compile_campaign("a", campaign, VAN)], 0)
    blocks = []
    for start in range(0, len(frames), step):
        part = batch(frames[start : start + step])
        end = start + len(part)
        records = line.take(Batch(part, Coverage("s", start, end), Clock(), last=end == len(frames)))
        blocks += [Block.decode(record.body) for record in records]
    assert blocks[0].coverage.first == 0
    for before, after in itertools.pairwise(blocks):
        assert after.coverage.first == before.coverage.end
    assert campaign.when is not None or blocks[-1].coverage.end == len(frames)
    return blocks


def values(blocks: list[Block]) -> dict[str, list[tuple[int, float]]]:
    """Physical values of all summaries, by name."""
    reader, plan, count, found = Reader(VAN), Decoder(VAN).plan, 0, dict[str, list[tuple[int, float]]]()
    for one in blocks:
        if not summary.is_summary(one.data):
            count += block.decode(one.data, plan).samples()
            continue
        summaries, columns = reader.read(one.data)
        count += columns.samples()
        for group in columns.groups():
            fields = summaries.manifest.messages[group.message].signals
            for index, form, raws in group.columns:
                column = list(raws.cast(form))
                column *= len(group.times) if len(column) == 1 else 1
                pairs = [(at, raw * fields[index].factor) for at, raw in zip(group.times, column, strict=True)]
                found.setdefault(fields[index].name, []).extend(pairs)
    assert count == sum(one.counters.samples for one in blocks)
    return found


def test_a_campaign_sends_samples_and_summaries_side_by_side() -> None:
    rule = SignalRule(filter="window", period_s=1, keep=["max", "mean", "count"])
    blocks = run(Campaign({"DRIVE.SPEED": rule, "DRIVE.GEAR": SignalRule(filter="change")}), drive())
    found = values(blocks)
    assert set(found) == {"SPEED#mean", "SPEED#count"}
    assert [count for _, count in found["SPEED#count"]] == [100] * 5
    assert [at for at, _ in found["SPEED#mean"]] == [1_000_000 * n for n in range(1, 6)]
    raws = [int.from_bytes(frame[4][:2], "little") for frame in drive()]
    for number, (_, mean) in enumerate(found["SPEED#mean"]):
        assert mean == pytest.approx(sum(raws[100 * number : 100 * number + 100]) / 1000, rel=1e-12)
    plan = Decoder(VAN).plan
    kept = sum(block.decode(one.data, plan).samples() for one in blocks if not summary.is_summary(one.data))
    assert kept > 100


def test_a_histogram_over_labels_names_each_and_the_rest() -> None:
    found = values(run(Campaign({"DRIVE.GEAR": SignalRule(filter="histogram", period_s=2)}), drive()))
    assert set(found) == {"GEAR#dwell=P", "GEAR#dwell=D", "GEAR#dwell=R", "GEAR#dwell-other"}
    times = [sum(found[name][row][1] for name in found) for row in range(3)]
    assert times == pytest.approx([1.0, 2.0, 1.99])  # 1 to 2, 2 to 4, 4 to 5.99 s


def test_a_histogram_over_an_event_is_one_row_of_it() -> None:
    rule = SignalRule(filter="histogram", classes=[20, 50])
    campaign = Campaign({"DRIVE.SPEED": rule}, when="DRIVE.SPEED > 89.5", before_s=0.5, after_s=0.7)
    found = values(run(campaign, drive()))
    assert set(found) == {"SPEED#dwell<20", "SPEED#dwell[20,50)", "SPEED#dwell>=50", "SPEED#dwell-other"}
    assert all(len(rows) == len(found["SPEED#dwell<20"]) > 0 for rows in found.values())
    for row in range(len(found["SPEED#dwell<20"])):
        assert sum(rows[row][1] for rows in found.values()) >= 1.18


@given(step=st.integers(1, 500))
@settings(max_examples=20, **PATIENT)
def test_blocks_may_end_anywhere(step: int) -> None:
    rules = {
        "DRIVE.SPEED": SignalRule(filter="window", period_s=0.5, keep=["mean", "sum"]),
        "DRIVE.GEAR": SignalRule(filter="histogram", period_s=1),
    }
    assert values(run(Campaign(rules), drive(), step)) == values(run(Campaign(rules), drive(), 500))


def test_what_is_too_large_for_a_record_goes_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {"*": SignalRule(filter="window", period_s=0.01, keep=["sum", "count"])}
    whole = values(run(Campaign(rules), drive(), 500))
    monkeypatch.setattr("edge.line.MAX_DATA_BYTES", 600)
    blocks = run(Campaign(rules), drive(), 500)
    assert max(len(one.data) for one in blocks) <= 600
    assert len(blocks) > 10
    assert values(blocks) == whole


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"filter": "histogram"}, "period_s: is missing: without `when`"),
        ({"filter": "histogram", "period_s": 1, "classes": [3, 2]}, "ascending"),
        ({"filter": "histogram", "period_s": 1, "classes": [3, "a"]}, "mixes"),
        ({"filter": "histogram", "period_s": 1, "classes": ["a"]}, "no label 'a'.*not available"),
        ({"filter": "histogram", "period_s": 1, "classes": list(range(65))}, "65 classes.*at most 64"),
        ({"filter": "histogram", "period_s": 1, "max_hold_s": 2}, "max_hold_s: is longer than period_s"),
        ({"filter": "histogram", "period_s": 1, "max_error": 2}, "max_error: means nothing"),
        ({"filter": "window", "period_s": 1, "keep": ["mean"], "classes": [1]}, "classes: means nothing"),
        ({"filter": "window", "keep": ["mean"]}, "period_s: is missing"),
    ],
)
def test_a_summary_that_makes_no_sense_is_refused_with_the_way_out(rule: dict[str, Any], said: str) -> None:
    import msgspec

    with pytest.raises(InputError, match=said):
        compile_campaign("a", Campaign({"DRIVE.SPEED": msgspec.convert(rule, SignalRule)}), VAN)


def test_classes_are_missing_where_a_signal_has_no_labels() -> None:
    of = DecoderManifest(("can0",), (Message("can0", 1, "M", 8, signals=(Signal("S", 0, 8),)),))
    with pytest.raises(InputError, match=r"classes: is missing: M\.S has no labels"):
        compile_campaign("a", Campaign({"M.S": SignalRule(filter="histogram", period_s=1)}), of)


def test_a_campaign_cannot_ask_for_more_memory_than_there_is() -> None:
    fields = tuple(Signal(f"S{n}", 0, 8) for n in range(200))
    of = DecoderManifest(("can0",), (Message("can0", 1, "M", 8, signals=fields),))
    rule = SignalRule(filter="histogram", period_s=1, classes=[float(edge) for edge in range(60)])
    with pytest.raises(InputError, match="summaries and classes"):
        compile_campaign("a", Campaign({"*": rule}), of)


def test_a_summary_is_a_signal_of_its_own_in_the_table(tmp_path: Path) -> None:
    from fleet import table
    from fleet.decode import decode

    rules = {
        "DRIVE.SPEED": SignalRule(filter="window", period_s=1, keep=["last", "mean"]),
        "DRIVE.GEAR": SignalRule(filter="histogram", period_s=1, classes=["P", "R"]),
    }
    blocks = run(Campaign(rules), drive())
    clock = Clock(utc_offset_us=1_795_500_000_000_000, quality=Quality.RECORDED)
    records = [
        Record(number, 5, "a", Block(one.data, clock, one.coverage, one.counters).encode())
        for number, one in enumerate(blocks, start=1)
    ]
    line = {
        "SystemProperties": {"connectionDeviceId": "van", "contentType": "application/x-protobuf"},
        "EnqueuedTimeUtc": "2026-11-24T15:00:00.1230000Z",
        "Body": base64.b64encode(pack("van", bytes(16), bytes.fromhex(VAN.hash), records)).decode(),
    }
    (tmp_path / "messages").mkdir()
    (tmp_path / "messages" / "a.json").write_text(json.dumps(line))
    audit = decode([tmp_path / "messages"], {VAN.hash: VAN}, tmp_path / "table")
    assert audit.ok, str(audit)
    assert audit.samples == sum(one.counters.samples for one in blocks)
    rows = table.read(tmp_path / "table", message="DRIVE")
    found = rows.select(["signal", "time_us", "value"]).to_pylist()
    for name, wanted in values(blocks).items():
        own = [(row["time_us"] - clock.utc_offset_us, row["value"]) for row in found if row["signal"] == name]
        assert own == [(at, pytest.approx(value)) for at, value in wanted]
    assert {row["signal"] for row in found} >= {"SPEED", "SPEED#mean", "GEAR#dwell=P", "GEAR#dwell-other"}
    facts = table.facts(rows)["signals"]
    assert (facts["can0.DRIVE.SPEED#mean"]["unit"], facts["can0.DRIVE.GEAR#dwell=P"]["unit"]) == ("km/h", "s")
    wide = table.read(tmp_path / "table", message="DRIVE", wide=True)
    assert "SPEED#mean" in wide.column_names


# Damage


def stored() -> bytes:
    rules = {
        "DRIVE.SPEED": SignalRule(filter="window", period_s=1, keep=["mean"]),
        "DRIVE.GEAR": SignalRule("histogram", period_s=1),
    }
    return next(one.data for one in run(Campaign(rules), drive()) if summary.is_summary(one.data))


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), cut_at=st.integers(0, 10_000))
@settings(max_examples=60, **PATIENT)
def test_a_damaged_block_is_no_block(place: int, bit: int, cut_at: int) -> None:
    data = bytearray(DATA)
    data[place % len(data)] ^= 1 << bit
    for damaged in (bytes(data), DATA[: cut_at % len(DATA)]):
        with pytest.raises(BlockCorrupt):
            Reader(VAN).read(damaged)


DATA = stored()


@pytest.mark.parametrize(
    "form",
    [
        b"", b"[]", b"{}", b"[[],[[0,1,0,-1]]]", b"[[],[[0,1,8,-1]]]", b"[[],[[0,1,1,0]]]", b"[[],[[1,2,1,-1]]]",
        b"[[],[[-1,2,1,-1]]]", b"[[],[[0,4294967296,1,-1]]]", b"[[[1,2]],[[0,1,8,1]]]", b'[[[1,"a"]],[[0,1,8,0]]]',
        b"[[]," + b"[" * 5000, b"[[],[" + b",".join([b"[0,2,7,-1]"] * 1000) + b"]]",
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_is_refused(form: bytes) -> None:
    from cy_core.crc32c import crc32c

    rest = summary.SIZE.pack(len(form)) + form + DATA[-40:]
    made = block.HEAD.pack(block.MAGIC, *summary.FORM, crc32c(rest)) + rest
    with pytest.raises(BlockCorrupt, match="does not say what it sums up"):
        Reader(VAN).read(made)


def test_a_reader_keeps_a_bounded_number_of_forms() -> None:
    reader = Reader(VAN)
    for edge in range(3 * summary.MOST_KNOWN):
        one = Summary(0, KINDS["dwell"], 1000, 0, 1.0, 0.0, (float(edge),), (), ())
        decoder = Decoder(VAN)
        made = SummingReducer(decoder.plan, [DROPPED] * 2, [one])
        made.reduce(decoder.decode_batch(batch(drive(3))), Columns(decoder.plan), 9_000_000, True)
        [(data, count)] = made.summaries(1 << 18)
        assert reader.read(data)[1].samples() == count
    assert len(reader._known) <= summary.MOST_KNOWN


def test_the_kinds_are_those_of_the_kernel() -> None:
    assert summary.KINDS == KINDS
    assert json.loads(summary.describe([])) == [[], []]
