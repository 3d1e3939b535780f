"""The campaign document: what is refused, with its place and the way out; which rule counts; a thousand of them."""

import collections
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cy_core.frames import Frames
from edge.campaign import Campaign, SignalRule, compile_campaign, compile_campaigns
from edge.decoder import Decoder
from edge.errors import InputError
from edge.line import Batch, Line
from edge.manifest import DecoderManifest, Message, Signal
from edge.message import Clock, Coverage
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
