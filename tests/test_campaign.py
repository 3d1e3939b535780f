"""The campaign document: what is refused, with its place and the way out; which rule counts; a thousand of them."""

import collections
import itertools
import random
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cy_core.frames import Frames
from edge import block
from edge.campaign import Campaign, SignalRule, compile_campaign, compile_campaigns
from edge.decoder import Decoder
from edge.errors import InputError
from edge.line import Line
from edge.manifest import DecoderManifest, Message, Signal, no_values
from edge.message import Block, Clock, Coverage
from edge.names import Names
from edge.stream import Batch
from edge.typed import explain
from tests.strategies import batch

MANIFEST = DecoderManifest(
    ("can0",),
    (
        Message("can0", 1, "M", 8, signals=(
            Signal("Speed", 0, 16, factor=0.01, minimum=0, maximum=250),
            Signal("Gear", 16, 3, labels={0: "P", 1: "R", 2: "N", 3: "D"}),
            Signal("Temperature", 24, 8, offset=-40),
            Signal("Ratio", 32, 32, is_float=True),
        )),
    ),
)  # fmt: skip


def rules(signals: dict[str, Any]) -> dict[str, Any]:
    selection = compile_campaign("a", msgspec.convert({"signals": signals}, Campaign), MANIFEST)
    assert selection.rules is not None
    return {name: rule for (name, _, _), rule in zip(MANIFEST.names(), selection.rules, strict=True)}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            {"filter": "every", "period_s": 1},
            r"signals.M.Speed.period_s: means nothing with filter every; it takes max_e",
        ),
        ({"filter": "timebased"}, 'period_s: is missing: filter timebased needs it; as in {"filter": "timebased"'),
        ({"filter": "window", "period_s": 1}, "keep: is missing"),
        ({"filter": "curvelog"}, "max_error: is missing"),
        ({"filter": "timebased", "period_s": 1, "max_error": 1}, "max_error: means nothing"),
        ({"filter": "change", "keep": ["min"]}, "keep: means nothing"),
        ({"max_error": "a bit"}, "'a bit' is no error bound; a number, or a part of the range"),
        ({"max_error": "0..1%"}, "is no error bound"),
        ({"max_error": -1}, "-1.0 is no error bound"),
    ],
)
def test_fields_that_do_not_go_together_are_refused_with_their_place(rule: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        rules({"M.Speed": rule})
    assert str(error.value).startswith("campaign a: signals.M.Speed")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"after_s": 1}, "after_s: needs `when`"),
        ({"cooldown_s": 1}, "cooldown_s: needs `when`"),
        ({"start": "2027-01-01T00:00:00"}, "start: has no time zone"),
        ({"start": "2027-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"}, "end: is not behind start"),
        ({"when": "M.Sped > 1"}, "campaign a: when: column 1: M.Sped is no signal"),
    ],
)
def test_events_and_times_that_make_no_sense_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        compile_campaign("a", msgspec.convert({"signals": {"*": {}}, **fields}, Campaign), MANIFEST)


def test_the_name_of_snapshots_is_taken() -> None:
    with pytest.raises(InputError, match="choose another name"):
        compile_campaign("snapshot", Campaign({"*": SignalRule()}), MANIFEST)


def test_an_unknown_field_is_refused_with_the_closest_one() -> None:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.convert({"signals": {}, "befor_s": 1}, Campaign)
    assert "did you mean before_s?" in explain(error.value, Campaign)


def test_identifiers_of_the_vehicle_leave_it_only_when_they_are_named() -> None:
    messages = (Message("can0", 1, "VIN", 8, signals=(Signal("PART", 0, 8),)),)
    messages += (Message("can0", 2, "Info", 8, signals=(Signal("VIN", 0, 8), Signal("Driving", 8, 8))),)
    of = DecoderManifest(("can0",), messages)

    def kept(*globs: str) -> list[int]:
        return list(compile_campaign("a", Campaign({glob: SignalRule() for glob in globs}), of).keep)

    assert kept("*") == kept("can0.*") == kept("Info.*") == [0, 0, 1]
    assert kept("*", "VIN.*") == kept("can0/VIN/*", "*") == [1, 0, 1]
    assert kept("Info.VIN") == [0, 1, 0]
    with pytest.raises(InputError, match=r"nothing but identifiers of the vehicle; name VIN\.PART"):
        kept("V?N.*")


def test_the_most_specific_entry_counts() -> None:
    found = rules(
        {"*": {"filter": "change"}, "M.*": {"max_error": 1}, "M.Speed": {"filter": "timebased", "period_s": 2}}
    )
    assert [rule[0] for rule in found.values()] == ["window", "every", "every", "every"]
    assert found["M.Temperature"][1] == 1.0


def test_slashes_are_dots_so_that_twins_can_hold_the_names() -> None:
    assert rules({"M/Speed": {"filter": "change"}}) == rules({"M.Speed": {"filter": "change"}})
    assert rules({"can0/M/*": {"filter": "change"}}) == rules({"*": {"filter": "change"}})


def test_a_bound_is_never_more_than_what_was_asked_for() -> None:
    assert rules({"M.Speed": {"max_error": 0.05}})["M.Speed"][1] == 5.0
    assert rules({"M.Speed": {"max_error": "0.1%"}})["M.Speed"][1] <= 25.0
    assert rules({"M.Temperature": {"max_error": "10%"}})["M.Temperature"][1] == 25.5
    with pytest.raises(InputError, match=r"M\.Ratio is a float without a range"):
        rules({"M.Ratio": {"max_error": "1%"}})


def test_no_line_is_drawn_through_gears_that_a_glob_meets() -> None:
    found = rules({"*": {"filter": "curvelog", "max_error": 0.5}})
    assert (found["M.Speed"][0], found["M.Gear"][0]) == ("curvelog", "change")


def records(campaigns: dict[str, Campaign], traffic: Frames, cuts: list[int]) -> dict[str, list[bytes]]:
    """The bodies that each campaign got."""
    line, found, start = Line(Decoder(MANIFEST)), collections.defaultdict(list), 0
    selections, refused = compile_campaigns(campaigns, MANIFEST)
    line.select(selections, 0)
    for end in [*sorted(cuts), len(traffic)]:
        cut, last = traffic.slice(start, end), end == len(traffic)
        for record in line.take(Batch(cut, Coverage("s", start, end), Clock(), last=last)):
            found[record.stream].append(record.body)
        start = end
    assert not refused
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=7),
    st.lists(st.tuples(st.sampled_from([0, 10_000, 2_000_000]), st.integers(0, 90)), max_size=60),
    st.lists(st.integers(0, 60), max_size=4),
)
def test_campaigns_that_keep_the_same_get_what_each_would_get_alone(
    numbers: list[int], samples: list[tuple[int, int]], cuts: list[int]
) -> None:
    kinds = [
        Campaign({"*": SignalRule()}),
        Campaign({"M.Speed": SignalRule()}),
        Campaign({"*": SignalRule(filter="change")}),
        Campaign({"*": SignalRule(filter="change")}, when="M.Gear == 'D'", before_s=1, after_s=1),
        Campaign({"*": SignalRule(filter="timebased", period_s=3)}),
        Campaign({"*": SignalRule(filter="timebased", period_s=3)}, when="M.Gear == 'R'", before_s=3, after_s=2),
    ]
    time_us, traffic = 10**9, []
    for step, value in samples:
        time_us += step
        traffic.append((time_us, 0, 1, 0, bytes([value, 0, value % 5, value, 0, 0, 0, 0])))
    frames, ends = batch(traffic), [min(cut, len(traffic)) for cut in cuts]
    campaigns = {f"c{place}": kinds[number] for place, number in enumerate(numbers)}
    together = records(campaigns, frames, ends)
    for name, campaign in campaigns.items():
        assert together[name] == records({name: campaign}, frames, ends)[name]


def test_a_thousand_campaigns_are_served() -> None:
    kinds = [
        Campaign({"*": SignalRule()}),
        Campaign({"M.Speed": SignalRule(filter="curvelog", max_error=1)}),
        Campaign({"*": SignalRule()}, when="rising(M.Speed > 50)", before_s=1, after_s=1),
        Campaign({"Nothing": SignalRule()}),
    ]
    selections, refused = compile_campaigns({f"c{number}": kinds[number % 4] for number in range(1000)}, MANIFEST)
    assert (len(selections), len(refused)) == (750, 250)
    line = Line(Decoder(MANIFEST))
    line.select(selections, 0)
    frames = batch([(at * 10_000, 0, 1, 0, (at * 100).to_bytes(8, "little")) for at in range(100)])
    records = line.take(Batch(frames, Coverage("s", 0, 100), Clock(), last=True))
    assert len(records) == 750


def test_a_hundred_thousand_signals_are_served() -> None:
    messages = tuple(
        Message("can0", 0x10000 + n, f"M{n}", 8, True, tuple(Signal(f"S{i}", i, 1) for i in range(50)))
        for n in range(2000)
    )
    of = DecoderManifest(("can0",), messages)
    names = Names(of)
    campaigns = {"all": Campaign({"*": SignalRule()}), "some": Campaign({"M1?.S?": SignalRule(filter="change")})}
    campaigns |= {f"c{n}": Campaign({f"M{n}.S0": SignalRule()}) for n in range(3)}
    selections = [compile_campaign(name, campaign, names) for name, campaign in campaigns.items()]
    assert [sum(selection.keep) for selection in selections] == [100_000, 100, 1, 1, 1]
    line = Line(Decoder(of))
    line.select(selections, 0)
    frames = batch([(n, 0, 0x80010000 + n, 0, b"\xff" * 8) for n in range(2000)])
    records = {r.stream: r for r in line.take(Batch(frames, Coverage("s", 0, 2000), Clock()))}
    assert set(records) == set(campaigns)
    assert block.decode(Block.decode(records["all"].body).data, line.decoder.plan).samples() == 100_000


J1939 = DecoderManifest(
    ("can0",),
    (
        Message("can0", 0x18FEF100, "T", 8, True, protocol="j1939", signals=(
            Signal("Temperature", 0, 8, factor=0.5, offset=-40),
            Signal("Speed", 8, 16, factor=0.01, labels={40_000: "calibration"}),
            Signal("Torque", 24, 12, signed=True, factor=-2),
            Signal("Status", 36, 2),
        )),
    ),
)  # fmt: skip


@settings(deadline=None, max_examples=120)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([10_000, 10_003, 2_000_000]),
            st.sampled_from([0, 1, 0xFA, 0xFB, 0xFE, 0xFF]) | st.integers(0, 255),
            st.sampled_from([0xFDFF, 0xFE00, 0xFFFF, 40_000, 39_999]) | st.integers(0, 0xFFFF),
            st.integers(0, 0xFFFF),
        ),
        min_size=1,
        max_size=50,
    ),
    st.tuples(*[st.sampled_from([0, 0.3, 1, 2.5, 1000, "1%", "40%"])] * 4),
    st.sampled_from([{}, {"tick_us": 1000}, {"tick_us": 250_000}, {"time_tolerance_s": 0.02}]),
)
def test_no_sample_is_wrong_by_more_than_its_bound_and_none_that_says_there_is_no_value_becomes_one(
    samples: list[tuple[int, int, int, int]], bounds: tuple[Any, ...], times: dict[str, Any]
) -> None:
    time_us, frames = 10**9, []
    for step, temperature, speed, rest in samples:
        time_us += step
        payload = bytes([temperature]) + speed.to_bytes(2, "little") + rest.to_bytes(2, "little") + bytes(3)
        frames.append((time_us, 0, 0x98FEF127, 0, payload))
    signals = {f"T.{s.name}": SignalRule(max_error=b) for s, b in zip(J1939.messages[0].signals, bounds, strict=True)}
    selection = compile_campaign("a", Campaign(signals, **times), J1939)
    decoder = Decoder(J1939)
    line = Line(decoder)
    line.select([selection], 0)
    made = Batch(batch(frames), Coverage("s", 0, len(frames)), Clock(), last=True)
    [record] = line.take(made)
    columns, time_us, raw = block.decode_bounded(Block.decode(record.body).data, decoder.plan)
    [got], [true] = list(columns.groups()), list(decoder.decode_batch(batch(frames)).groups())
    allowed_us = 20_000 if "time_tolerance_s" in times else times.get("tick_us", 1) // 2
    assert max(abs(a - b) for a, b in zip(got.times, true.times, strict=True)) <= allowed_us == time_us
    for (place, _, values), (_, _, originals), bound in zip(got.columns, true.columns, bounds, strict=True):
        signal = J1939.messages[0].signals[place]
        rule_bound = selection.rules[place][1] if selection.rules else 0
        exact = [*((raw, raw) for raw in signal.labels), *(r[:2] for r in no_values(J1939.messages[0], signal))]
        for a, b in itertools.zip_longest(numbers(values, got, signal), numbers(originals, true, signal)):
            assert abs(a - b) <= rule_bound
            assert a == b or not any(low <= raw <= high for raw in (a, b) for low, high in exact)
            if not isinstance(bound, str):
                assert abs(a - b) * abs(Fraction(str(signal.factor))) <= Fraction(bound)
            assert abs(a - b) <= raw.get(place, 0)


def numbers(values: memoryview, group: Any, signal: Signal) -> list[int]:
    """Raw values, one a row."""
    size = 1 if signal.length <= 8 else 2
    raws = [int.from_bytes(values[i : i + size], "little", signed=signal.signed) for i in range(0, len(values), size)]
    return raws * len(group.times) if len(raws) == 1 else raws


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tick_us": 10, "time_tolerance_s": 1}, "tick_us: means nothing beside time_tolerance_s"),
        ({"frames": ["can0:*"], "time_tolerance_s": 1}, "time_tolerance_s: is not for raw frames; give tick_us"),
    ],
)
def test_times_that_make_no_sense_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        compile_campaign("a", Campaign({"*": SignalRule()}, **fields), MANIFEST)


def test_a_bound_makes_a_campaign_smaller_also_where_some_samples_have_no_value() -> None:
    noise, traffic = random.Random(1), []
    for at in range(1000):
        speed = 0xFFFF if at % 50 == 0 else 20_000 + noise.randint(-300, 300)
        traffic.append((10_000 * at, 0, 0x98FEF127, 0, bytes([100]) + speed.to_bytes(2, "little") + bytes(5)))
    sizes = {}
    for bound in (0, 1.0):
        line = Line(Decoder(J1939))
        line.select([compile_campaign("a", Campaign({"T.Speed": SignalRule(max_error=bound)}), J1939)], 0)
        sizes[bound] = len(line.take(Batch(batch(traffic), Coverage("s", 0, 1000), Clock()))[0].body)
    assert sizes[1.0] < 0.6 * sizes[0]
