"""The campaign document: what is refused, with its place and the way out; which rule counts; a thousand of them."""

from typing import Any

import msgspec
import pytest

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
