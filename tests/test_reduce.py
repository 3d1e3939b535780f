"""Reductions against their slow twins, at their exact bounds, wherever batches are split; and on a real drive."""

import itertools
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cy_core.columns import Columns
from cy_core.reduce import KEEP, Reducer
from edge.campaign import KEEP_BITS, Campaign, SignalRule, compile_campaign
from edge.decoder import Decoder
from edge.logs import open_log
from edge.manifest import DecoderManifest, Message, Signal
from tests.reference import reduce as slow
from tests.strategies import PATIENT, batch

DATA = Path(os.environ.get("BORDNETZ_DATA", Path(__file__).parents[2] / "shared" / "data"))
RAV4 = DATA / "toyota_rav4_2017"

Samples = list[tuple[int, int]]


def manifest(**signal: Any) -> DecoderManifest:
    return DecoderManifest(("can0",), (Message("can0", 1, "M", 8, signals=(Signal("S", 0, 32, **signal),)),))


def rows(columns: Columns, width: int = 4, signed: bool = False) -> Samples:
    """(time, raw) of the only signal, in the order they are in."""
    found: Samples = []
    for group in columns.groups():
        for _, _, values in group.columns:
            raws = [
                int.from_bytes(values[at : at + width], "little", signed=signed) for at in range(0, len(values), width)
            ]
            found += zip(group.times.tolist(), raws * (len(group.times) if len(raws) == 1 else 1), strict=True)
    return found


def reduced(of: DecoderManifest, rule: Any, samples: Samples, cuts: list[int], last: bool = True) -> Samples:
    decoder = Decoder(of)
    signed = of.messages[0].signals[0].signed
    reducer, into, kept, start = Reducer(decoder.plan, [rule]), Columns(decoder.plan), [], 0
    for end in [*sorted(cuts), len(samples)]:
        frames = batch([(at, 0, 1, 0, (raw & 0xFFFFFFFF).to_bytes(8, "little")) for at, raw in samples[start:end]])
        now_us = samples[end - 1][0] if end else 0
        reducer.reduce(decoder.decode_batch(frames), into, now_us, last and end == len(samples))
        kept += rows(into, signed=signed)
        start = end
    return kept


@st.composite
def signals(draw: Any, most: int = 120) -> Samples:
    """Ramps, noise, steps, repeats; times with jitter."""
    time_us, raw, slope, samples = draw(st.integers(0, 10**12)), draw(st.integers(0, 5000)), 0, []
    for _ in range(draw(st.integers(1, most))):
        samples.append((time_us, raw))
        time_us += draw(st.sampled_from([1, 9_990, 10_000, 10_000, 10_010, 2_000_000]))
        slope = draw(st.sampled_from([slope, slope, slope, 0, 3, -3, 40]))
        raw = max(0, min(2**31 - 1, raw + slope + draw(st.sampled_from([0, 0, 1, -1, 2, -2, 900]))))
    return samples


def cut(data: Any, samples: Samples) -> list[int]:
    return data.draw(st.lists(st.integers(0, len(samples)), max_size=3))


@given(
    data=st.data(), samples=signals(), bound=st.sampled_from([0.0, 1.0, 1.5, 7.0]), hold=st.sampled_from([0, 25_000])
)
@settings(**PATIENT)
def test_change_keeps_what_its_twin_keeps_and_its_bound(data: Any, samples: Samples, bound: float, hold: int) -> None:
    labels = tuple(sorted({samples[0][1], 3}))
    kept = reduced(manifest(), ("change", bound, 0, hold, 0, labels, False), samples, cut(data, samples))
    assert kept == slow.change(samples, Fraction(bound), hold, labels)
    assert slow.error_of_hold(samples, kept) <= bound


@given(
    data=st.data(), samples=signals(), keep=st.sets(st.sampled_from(sorted(KEEP)), min_size=1), negative=st.booleans()
)
@settings(**PATIENT)
def test_windows_keep_what_their_twin_keeps(data: Any, samples: Samples, keep: set[str], negative: bool) -> None:
    span_us, last = data.draw(st.sampled_from([1, 10_000, 50_000, 3_000_000])), data.draw(st.booleans())
    rule = ("window", 0.0, span_us, 0, sum(KEEP[name] for name in keep), (), negative)
    kept = reduced(manifest(), rule, samples, cut(data, samples), last)
    assert kept == slow.window(samples, span_us, keep, negative, samples[-1][0], last)


@given(
    data=st.data(), samples=signals(), bound=st.sampled_from([0.5, 1.0, 2.0, 50.0]), hold=st.sampled_from([0, 30_000])
)
@example(None, [(0, 0), (1, 1), (2, 4), (3, 3)], 1.0, 0)
@settings(max_examples=300, **PATIENT)
def test_no_sample_is_further_from_the_line_than_the_bound(
    data: Any, samples: Samples, bound: float, hold: int
) -> None:
    cuts = cut(data, samples) if data is not None else []
    kept = reduced(manifest(), ("curvelog", bound, 0, hold, 0, (7,), False), samples, cuts)
    assert set(kept) <= set(samples)
    assert kept[0] == samples[0]
    assert kept[-1] == samples[-1]
    assert slow.error_of_lines(samples, kept) <= Fraction(bound)
    assert all(sample in kept for sample in samples if sample[1] == 7)
    if hold:
        gaps = [(b - a, (a, b)) for (a, _), (b, _) in itertools.pairwise(kept)]
        steps = {(a, b) for (a, _), (b, _) in itertools.pairwise(samples)}
        assert all(gap <= hold or pair in steps for gap, pair in gaps)


@given(data=st.data(), samples=signals(60), kind=st.sampled_from(["curvelog", "change", "window"]))
@settings(**PATIENT)
def test_a_signal_on_several_multiplexer_pages_is_one_signal(data: Any, samples: Samples, kind: str) -> None:
    shared = Signal("S", 8, 32)
    pages = tuple(Signal(f"P{n}", 40, 8, selector=1, selected_by=((n, n),)) for n in range(3))
    of = DecoderManifest(("can0",), (Message("can0", 1, "M", 8, signals=(shared, Signal("Page", 0, 8), *pages)),))
    decoder, dropped = Decoder(of), ("drop", 0.0, 0, 0, 0, (), False)
    rule = (kind, 2.0 if kind != "window" else 0.0, 20_000, 0, 15, (), False)
    payloads = [bytes([data.draw(st.integers(0, 4))]) + raw.to_bytes(4, "little") + bytes(3) for _, raw in samples]
    frames = batch([(at, 0, 1, 0, payload) for (at, _), payload in zip(samples, payloads, strict=True)])
    into = Columns(decoder.plan)
    reducer = Reducer(decoder.plan, [rule] + [dropped] * 4)
    reducer.reduce(decoder.decode_batch(frames), into, samples[-1][0], True)
    alone = reduced(manifest(), rule, samples, [])
    assert rows(into) == alone


def test_a_ramp_is_two_samples() -> None:
    ramp = [(at * 10_000, 3 * at) for at in range(500)]
    assert reduced(manifest(), ("curvelog", 1.0, 0, 0, 0, (), False), ramp, []) == [ramp[0], ramp[-1]]


@given(
    raws=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=50),
    bound=st.sampled_from([1.0, 2.9, 1000.0, 2.0**31, 2.0**70]),
    labels=st.sets(st.integers(-5, 5)),
    signed=st.booleans(),
)
@settings(**PATIENT)
def test_coarse_integers_stay_within_the_bound_and_the_field_and_labels_exact(
    raws: list[int], bound: float, labels: set[int], signed: bool
) -> None:
    raws = raws if signed else [raw + 2**31 for raw in raws]
    of = manifest(signed=signed)
    kept = reduced(of, ("every", bound, 0, 0, 0, tuple(sorted(labels)), False), list(enumerate(raws)), [])
    for (_, coarse), raw in zip(kept, raws, strict=True):
        assert abs(coarse - raw) <= bound
        assert raw not in labels or coarse == raw
        assert coarse not in labels or coarse == raw


@given(
    values=st.lists(st.floats(width=32) | st.floats(-100, 100, width=32), min_size=1, max_size=50),
    bound=st.sampled_from([0.01, 1.0, 3.3]),
)
@settings(**PATIENT)
def test_coarse_floats_stay_within_the_bound(values: list[float], bound: float) -> None:
    import math
    import struct

    of = manifest(is_float=True)
    bits = [int.from_bytes(struct.pack("<f", value), "little") for value in values]
    kept = reduced(of, ("every", bound, 0, 0, 0, (), False), list(enumerate(bits)), [])
    for (_, coarse), value in zip(kept, values, strict=True):
        (found,) = struct.unpack("<f", coarse.to_bytes(4, "little"))
        assert math.isnan(found) if math.isnan(value) else found == value or abs(found - value) <= bound


def test_the_names_of_kept_samples_are_those_of_the_kernel() -> None:
    assert KEEP_BITS == KEEP


@pytest.mark.skipif(not RAV4.is_dir(), reason=f"no recordings at {DATA}: set BORDNETZ_DATA")
@pytest.mark.parametrize("error", ["0.1%", "1%", 0.05])
def test_bounds_hold_for_every_signal_of_a_real_drive(error: str | float) -> None:
    from edge.database import load_databases

    of = load_databases({"can0": [RAV4 / "toyota_new_mc_pt_generated.dbc"], "can1": [RAV4 / "toyota_adas.dbc"]})
    decoder = Decoder(of)
    log = open_log(RAV4 / "rav4.log.gz", of.buses)
    from cy_core.frames import Frames

    frames = Frames()
    log.read(frames, 30_000)
    columns, into, sizes = decoder.decode_batch(frames), Columns(decoder.plan), {}
    for name in ("curvelog", "change", "every"):
        selection = compile_campaign("a", Campaign({"*": SignalRule(filter=name, max_error=error)}), of)
        assert selection.rules is not None
        reducer = Reducer(decoder.plan, selection.rules)
        sizes[name] = reducer.reduce(columns, into, 0, True)
        bounds = {number: Fraction(rule[1]) for number, rule in enumerate(selection.rules)}
        before, after = by_signal(columns, of), by_signal(into, of)
        measure = {"curvelog": slow.error_of_lines, "change": slow.error_of_hold, "every": slow.error_of_hold}[name]
        for number, samples in before.items():
            if not selection.keep[number]:  # an identifier of the vehicle, which "*" leaves out
                assert number not in after
                continue
            # The lines of a batch of 16,384 frames end there, as those of a block do.
            assert kind_error(measure, samples, after[number], selection.rules[number][0]) <= bounds[number]
    assert sizes["curvelog"] < sizes["every"]


def kind_error(measure: Any, samples: Samples, kept: Samples, kind: str) -> Any:
    if len({at for at, _ in samples}) != len(samples):
        return 0  # two samples at one time: no line is defined
    return slow.error_of_hold(samples, kept) if kind == "change" else measure(samples, kept)


def by_signal(columns: Columns, of: DecoderManifest) -> dict[int, Samples]:
    firsts, count = [], 0
    for message in of.messages:
        firsts.append(count)
        count += len(message.signals)
    found: dict[int, Samples] = {}
    for group in columns.groups():
        for index, form, values in group.columns:
            raws = values.cast(form).tolist()
            pairs = zip(group.times.tolist(), raws * (len(group.times) if len(raws) == 1 else 1), strict=False)
            found.setdefault(firsts[group.message] + index, []).extend(pairs)
    return found
