"""VSS paths in manifests, conditions, campaigns and tables."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from edge import manifest as manifest_files
from edge.campaign import Campaign, SignalRule, compile_campaign
from edge.condition import compile_condition
from edge.errors import InputError
from edge.manifest import DecoderManifest
from edge.names import Names
from edge.vss import add_vss
from edge.vss_signal import VssSignal
from fleet.rows import SCHEMA
from fleet.vss import by_path, one_overlay
from tests.reference.condition import SlowCondition
from tests.reference.vss import vss_value
from tests.strategies import manifests, traffic
from tests.test_condition import hits, logics
from tests.test_vss import MANIFEST, saved, write

STEPS = [
    (("X", 0.0),),
    (("X", 0.0), ("CONST", 3.6), ("DIV", 0.0)),
    (("X", 0.0), ("CONST", -2.0), ("MUL", 0.0), ("CONST", 7.0), ("ADD", 0.0)),
    (("X", 0.0), ("CONST", 0.3), ("MUL", 0.0), ("FLOOR", 0.0)),
    (("CONST", 40.0), ("X", 0.0), ("DIV", 0.0)),
]  # fmt: skip


@st.composite
def with_vss(draw: Any) -> DecoderManifest:
    plain = draw(manifests().filter(lambda made: any(message.signals for message in made.messages)))
    signals = [signal for message in plain.messages for signal in message.signals]
    rows = []
    for number in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(signals) - 1))
        path, raws = f"V.B{number}", st.integers(0, 3)
        kind = draw(st.sampled_from(["steps", "reasons", "numbers", "flags", "texts"]))
        if kind == "steps" or signals[place].is_float:
            rows.append(VssSignal(path, place, "float", steps=draw(st.sampled_from(STEPS))))
        elif kind == "reasons":
            why = draw(st.dictionaries(raws, st.sampled_from(["bad", "worse"]), min_size=1))
            rows.append(VssSignal(path, place, "float", steps=draw(st.sampled_from(STEPS)), values=why))
        else:
            values: Any = {
                "numbers": st.sampled_from([-1, 0, 2.5]),
                "flags": st.booleans(),
                "texts": st.sampled_from("AB"),
            }
            datatype = {"numbers": "float", "flags": "boolean", "texts": "string"}[kind]
            rows.append(
                VssSignal(path, place, datatype, "", None, draw(st.dictionaries(raws, values[kind], min_size=1)))
            )
    return DecoderManifest(plain.buses, plain.messages, (), tuple(rows))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_condition_on_vss_paths_is_true_where_the_slow_twin_says_wherever_batches_are_split(data: Any) -> None:
    manifest = data.draw(with_vss())
    assert manifest_files.parse(saved(manifest)) == manifest
    texts = [(v.path, str(text)) for v in manifest.vss for text in v.values.values() if isinstance(text, str)]
    is_number = {v.path: v.datatype == "float" for v in manifest.vss}
    paths = [path for path, is_one in is_number.items() if is_one]
    own = [f"{message.bus}.{name}" for name, message, _ in manifest.names()]
    text = data.draw(logics(paths or own[:1], texts, 2))
    for flag in (v.path for v in manifest.vss if v.datatype == "boolean"):
        text = f"({text}) {data.draw(st.sampled_from(['and', 'or', 'and not', 'or changed']))} ({flag})"
    if not any(name in text for name in (*is_number, *own)):
        reject()
    frames = data.draw(traffic(manifest, 40))
    cuts = data.draw(st.lists(st.integers(0, len(frames)), max_size=3))
    if "avg(" in text:  # of converted values it is the same number but for its rounding
        reject()
    try:
        compile_condition(text, Names(manifest))
    except InputError as error:
        if "which is no line of its signal" not in str(error):
            raise
        reject()
    if "count(V" in text and not all(v.line for v in manifest.vss):  # counts the signal's samples
        reject()
    assert hits(text, manifest, frames, cuts)[0] == SlowCondition(text, manifest).run(frames)


def vss_manifest(*rows: VssSignal) -> DecoderManifest:
    return DecoderManifest(MANIFEST.buses, MANIFEST.messages, (), rows)


SPEED = VssSignal("Vehicle.Speed", 0, "float", "m/s", (("X", 0.0), ("CONST", 3.6), ("DIV", 0.0)))
MODE = VssSignal("Vehicle.Mode", 1, "string", "", None, {0: "PARK", 4: "DRIVE"})
BELTED = VssSignal("Vehicle.IsBelted", 2, "boolean", "", None, {0: False, 1: True})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Vehicle.Speed > 1000", "is never true: Vehicle.Speed can be 0 to 182.042 m/s"),
        ("Vehicle.Speed", "compare it, as in Vehicle.Speed != 0"),
        ("Vehicle.Sped > 1", "did you mean Vehicle.Speed?"),
        ("Vehicle.Mode == 'PRAK'", "did you mean 'PARK'?"),
        ("Vehicle.Mode > 3", "is a text, not a number"),
        ("avg(Vehicle.IsBelted, 3) > 1", "is no line of its signal; use Motion.Belt"),
        ("Vehicle.IsBelted > 1", "is true or false, not a number"),
    ],
)
def test_a_condition_that_misuses_a_path_is_refused_with_what_would_be_right(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        compile_condition(text, Names(vss_manifest(SPEED, MODE, BELTED)))
    assert said in str(error.value)


def test_a_boolean_is_a_condition_by_itself_and_equals_true_and_false() -> None:
    manifest = vss_manifest(SPEED, BELTED)
    frames = [(n, 0, 1, 0, bytes([0, 40, 8 * on, 0, 0, 0, 0, 0])) for n, on in enumerate((0, 1, 1, 0))]
    for text, expected in (
        ("Vehicle.IsBelted", [1, 2]),
        ("Vehicle.IsBelted == True", [1, 2]),
        ("Vehicle.IsBelted != True and Vehicle.Speed > 28", [0, 3]),
        ("False == Vehicle.IsBelted", [0, 3]),
        ("rising(Vehicle.IsBelted)", [1]),
    ):
        assert hits(text, manifest, frames, [2])[0] == expected, text


def test_a_campaign_may_name_paths_and_a_bound_is_in_the_unit_of_the_name() -> None:
    manifest = vss_manifest(SPEED, MODE)
    names = {"Vehicle.*": SignalRule(), "Vehicle/Speed": SignalRule("change", 1)}
    chosen = compile_campaign("a", Campaign(names), manifest)
    assert chosen.keep == bytes([1, 1, 0, 0, 0, 0])
    assert chosen.rules is not None
    assert chosen.rules[0][1] == pytest.approx(360)  # 1 m/s in steps of 0.01 km/h
    own = compile_campaign("a", Campaign({"Motion.Speed": SignalRule("change", 1)}), manifest)
    assert own.rules is not None
    assert own.rules[0][1] == pytest.approx(100)
    with pytest.raises(InputError, match=r"Vehicle\.Mode is no line of its signal; name Motion\.Gear"):
        compile_campaign("a", Campaign({"Vehicle.*": SignalRule("change", 1)}), manifest)


def test_what_vss_tags_as_private_is_not_meant_by_a_glob_but_by_its_names(tmp_path: Path) -> None:
    tree = {"Vehicle": {"type": "branch", "children": {
        "Home": {"type": "branch", "cybersecurity": {"impact_profiles": ["privacy"]}, "children": {
            "Speed": {"type": "sensor", "datatype": "float"}}},
        "Gear": {"type": "sensor", "datatype": "uint8", "privacy": ["personal"]},
        "Belt": {"type": "sensor", "datatype": "uint8"},
    }}}  # fmt: skip
    pairs = {"Vehicle.Home.Speed": "Speed", "Vehicle.Gear": "Gear", "Vehicle.Belt": "Belt"}
    overlay = {path: {"dbc2vss": {"signal": signal}} for path, signal in pairs.items()}
    files = write(tmp_path / "o.json", overlay), write(tmp_path / "t.json", tree)
    manifest = add_vss(MANIFEST, files[:1], files[1:])[0]
    kept = {
        "*": [0, 0, 1, 1, 1, 1],
        "Vehicle.*": [0, 0, 1, 0, 0, 0],
        "Motion.*": [0, 0, 1, 1, 0, 0],
        "Vehicle.Home.Speed": [1, 0, 0, 0, 0, 0],
        "Motion.Gear": [0, 1, 0, 0, 0, 0],
    }
    for glob, expected in kept.items():
        assert compile_campaign("a", Campaign({glob: SignalRule()}), manifest).keep == bytes(expected), glob
    with pytest.raises(InputError, match="matches nothing but identifiers"):
        compile_campaign("a", Campaign({"Vehicle.Home.*": SignalRule()}), manifest)


@pytest.mark.parametrize(
    "row",
    [
        {"path": "V", "signal": 99},
        {"path": "V", "signal": 0, "steps": [["ADD", 0]]},
        {"path": "V", "signal": 0, "steps": [["X", 0], ["X", 0]]},
        {"path": "V", "signal": 0, "steps": [["SPIN", 0]]},
        {"path": "V", "signal": 0, "steps": []},
        {"path": "V", "signal": 0, "values": {"a": 1}},
    ],
)
def test_a_manifest_whose_paths_make_no_sense_is_refused(row: dict[str, Any]) -> None:
    import hashlib

    body = json.dumps({**json.loads(MANIFEST.body), "vss": [row]}).encode()
    with pytest.raises(InputError, match="is not a valid manifest"):
        manifest_files.parse(f"{manifest_files.FORMAT}{hashlib.sha256(body).hexdigest()}\n".encode() + body)


def test_a_manifest_without_paths_keeps_the_name_that_it_had() -> None:
    assert b"vss" not in MANIFEST.body


# -- tables


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_table_by_path_has_the_values_of_the_slow_twin(data: Any) -> None:
    from cy_core.columns import Columns
    from edge.decoder import Decoder
    from fleet.rows import from_columns
    from tests.strategies import batch

    manifest = data.draw(with_vss())
    decoder = Decoder(manifest)
    rows = from_columns(decoder.decode_batch(batch(data.draw(traffic(manifest))), Columns(decoder.plan)), manifest)
    signals = list(manifest.names())
    wanted = []
    for row in rows.to_pylist():
        for vss in manifest.vss:
            name, message, signal = signals[vss.signal]
            if (row["bus"], f"{row['message']}.{row['signal']}") == (message.bus, name):
                raw = (
                    None
                    if row["value"] is None
                    else row["raw"]
                    if signal.signed or row["raw"] >= 0
                    else row["raw"] + 2**64
                )
                is_float = signal.is_float and raw is not None
                value, text = vss_value(vss, 5 if is_float else raw, row["value"])
                if raw is None:
                    text = row["label"]
                if isinstance(value, bool):
                    value, text = float(value), str(value).lower()
                if value is not None or text is not None:
                    wanted.append((row["time_us"], vss.path, value, text))
    found = [tuple(row.values()) for row in by_path(rows, manifest).to_pylist()]
    assert sorted(found, key=str) == sorted(wanted, key=str)
    assert [row[0] for row in found] == sorted(row[0] for row in found)


def test_an_empty_table_by_path_is_empty() -> None:
    assert by_path(SCHEMA.empty_table(), vss_manifest(SPEED)).num_rows == 0


def test_manifests_that_disagree_on_a_path_are_not_mixed() -> None:
    other = VssSignal("Vehicle.Speed", 0, "float", "km/h")
    assert one_overlay({"a": vss_manifest(SPEED), "b": MANIFEST}) == vss_manifest(SPEED)
    with pytest.raises(InputError, match="choose one with --manifest"):
        one_overlay({"a": vss_manifest(SPEED), "b": vss_manifest(other)})
    with pytest.raises(InputError, match="has no VSS signals"):
        one_overlay({"a": MANIFEST})
