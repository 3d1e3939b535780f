"""VSS: overlays in both forms over trees in all, units, and what campaigns, conditions and tables make of the paths."""

import ast
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge import formula
from edge import manifest as manifest_files
from edge.errors import InputError
from edge.manifest import DecoderManifest, Message, Signal
from edge.units import UNITS, conversion
from edge.vss import add_vss
from edge.vss_signal import VssSignal
from edge.vss_tree import expand, read
from fleet.vss import evaluate
from tests.reference.vss import vss_value

EXAMPLE = Path(__file__).parent.parent / "examples/vss"
GOLDEN = Path(__file__).parent / "golden/vss_van.json"
MANIFEST = DecoderManifest(
    ("can0", "can1"),
    (
        Message("can0", 1, "Motion", 8, signals=(
            Signal("Speed", 0, 16, factor=0.01, unit="km/h"),
            Signal("Gear", 16, 3, labels={0: "P", 1: "R", 4: "D", 7: "SNA"}),
            Signal("Belt", 19, 1, labels={0: "NO", 1: "YES"}),
            Signal("Oil", 24, 8, offset=-40, unit="degC", invalid=255),
        )),
        Message("can0", 2, "Twice", 1, signals=(Signal("X", 0, 8, signed=True),)),
        Message("can1", 2, "Twice", 1, signals=(Signal("X", 0, 8),)),
    ),
)  # fmt: skip
TREE = {
    "Vehicle": {"type": "branch", "children": {
        "Speed": {"type": "sensor", "datatype": "float", "unit": "m/s"},
        "Oil": {"type": "sensor", "datatype": "float", "unit": "fahrenheit"},
        "Gear": {"type": "sensor", "datatype": "int8"},
        "Mode": {"type": "sensor", "datatype": "string", "allowed": ["PARK", "DRIVE"]},
        "Dog": {"type": "sensor", "datatype": "uint8", "enum": {"AKITA": 0, "BOXER": 1}},
        "Seat": {"type": "branch", "instances": ["Row[1,2]", ["Left", "Right"]], "children": {
            "IsBelted": {"type": "sensor", "datatype": "boolean"},
            "Count": {"type": "sensor", "datatype": "uint8", "instantiate": False},
        }},
    }},
}  # fmt: skip


def write(path: Path, text: Any) -> Path:
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def mapped(
    tmp_path: Path, overlay: Any, tree: Any = TREE, suffix: str = ".json"
) -> tuple[dict[str, VssSignal], list[str]]:
    trees = [write(tmp_path / "tree.json", tree)] if tree else []
    manifest, diagnostics = add_vss(MANIFEST, [write(tmp_path / f"overlay{suffix}", overlay)], trees)
    return {vss.path: vss for vss in manifest.vss}, [str(diagnostic) for diagnostic in diagnostics]


def entry(form: str, signal: str, datatype: str = "float", **more: Any) -> dict[str, Any]:
    return {"type": "sensor", "datatype": datatype, form: {"signal": signal, **more}}


# -- overlays


@pytest.mark.parametrize("form", ["dbc2vss", "dbc", "network_serialization"])
def test_an_overlay_in_any_form_maps_a_signal_and_the_units_say_how_to_convert_it(tmp_path: Path, form: str) -> None:
    found, odd = mapped(tmp_path, {"Vehicle.Speed": entry(form, "Speed"), "Vehicle.Oil": entry(form, "Motion.Oil")})
    assert odd == []
    assert vss_value(found["Vehicle.Speed"], 9000, 90.0) == (25.0, None)
    assert vss_value(found["Vehicle.Oil"], 140, 100.0) == (212.0, None)
    assert found["Vehicle.Speed"].unit == "m/s"
    assert found["Vehicle.Speed"].on_change == (form == "network_serialization")
    assert found["Vehicle.Speed"].interval_ms == (0 if form == "network_serialization" else 1000)


def test_a_mapping_goes_by_label_or_physical_value_and_no_other_raw_value_has_one(tmp_path: Path) -> None:
    pairs = [{"from": "P", "to": 0}, {"from": "R", "to": -1}, {"from": 4, "to": 1}]
    found, odd = mapped(tmp_path, {"Vehicle.Gear": entry("dbc2vss", "Gear", "int8", transform={"mapping": pairs})})
    assert odd == []
    assert found["Vehicle.Gear"].values == {0: 0, 1: -1, 4: 1}
    assert found["Vehicle.Gear"].steps is None


def test_a_representation_names_the_network_by_text_or_by_raw_value(tmp_path: Path) -> None:
    gears = [{"text": "P", "value": 0}, {"text": "D", "value": 1}]
    oil = {"math": "x*2", "representation": [{"value": 254, "text": "Failed"}]}
    overlay = {
        "Vehicle.Gear": entry("network_serialization", "Gear", "int8", transform={"representation": gears}),
        "Vehicle.Oil": entry("network_serialization", "Oil", transform=oil, length_bits=8, default=0),
    }
    found, odd = mapped(tmp_path, overlay)
    assert odd == []
    assert found["Vehicle.Gear"].values == {0: 0, 4: 1}
    assert vss_value(found["Vehicle.Oil"], 254, 214.0) == (None, "Failed")
    assert vss_value(found["Vehicle.Oil"], 100, 60.0) == (120.0, None)


def test_labels_that_yaml_takes_for_booleans_are_labels_and_a_flag_needs_no_mapping(tmp_path: Path) -> None:
    text = """
Vehicle.Seat.Row1.Left.IsBelted:
  type: sensor
  datatype: boolean
  dbc2vss:
    signal: Belt
    transform: {mapping: [{from: NO, to: false}, {from: YES, to: true}]}
Vehicle.Seat.Row2.Right.IsBelted: {type: sensor, datatype: boolean, dbc: {signal: Belt}}
"""
    found, odd = mapped(tmp_path, text, suffix=".vspec")
    assert odd == []
    assert [found[f"Vehicle.Seat.{seat}.IsBelted"].values for seat in ("Row1.Left", "Row2.Right")] == 2 * [
        {0: False, 1: True}
    ]


def test_an_enum_of_the_tree_turns_names_to_its_numbers(tmp_path: Path) -> None:
    pairs = [{"from": "P", "to": "AKITA"}, {"from": "D", "to": "BOXER"}]
    found, _ = mapped(tmp_path, {"Vehicle.Dog": entry("dbc2vss", "Gear", "uint8", transform={"mapping": pairs})})
    assert found["Vehicle.Dog"].values == {0: 0, 4: 1}


@pytest.mark.parametrize(
    ("path", "given", "said"),
    [
        ("Vehicle.Sped", entry("dbc2vss", "Speed"), "is not in the tree; is it Vehicle.Speed?"),
        ("Vehicle.Speed", entry("dbc2vss", "Sped"), "Sped is no signal of the databases; is it Speed?"),
        ("Vehicle.Speed", entry("dbc2vss", "X"), "X could be can0.Twice.X, can1.Twice.X: name one of them so"),
        ("Vehicle.Speed", entry("dbc2vss", "Oil"), "Oil is in 'degC', which cannot be converted to 'm/s': give math"),
        ("Vehicle.Speed", entry("dbc2vss", "Speed", transform={"math": "sin(x)"}), "sin(x) is nothing that a formula"),
        ("Vehicle.Speed", entry("dbc2vss", "Speed", transform={"math": "x +"}), "is no formula"),
        ("Vehicle.Speed", entry("dbc2vss", "Speed", transform={"table": 1}), "its transform is not of math"),
        ("Vehicle.Speed", entry("dbc2vss", "Speed", multiplexer=[]), "dbc2vss.multiplexer is not known here"),
        ("Vehicle.Speed", entry("dbc2vss", "Speed", interval_ms="fast"), "is fast, not a number of milliseconds"),
        ("Vehicle.Speed", entry("dbc2vss", "Speed", "float[]"), "has the datatype 'float[]'"),
        ("Vehicle.Speed", {"dbc2vss": 5}, "dbc2vss names no signal"),
        ("Vehicle.Mode", entry("dbc2vss", "Gear", "string"), "'P' is not among its allowed values; is it 'PARK'?"),
        ("Vehicle.Mode", entry("dbc2vss", "Speed", "string"), "is a string, and Speed has no value table"),
        ("Vehicle.Seat.IsBelted", entry("dbc2vss", "Belt", "boolean"), "is not in the tree"),
        ("Vehicle.Seat.Row1.Left.IsBelted", entry("dbc2vss", "Speed", "boolean"), "is a boolean, and Speed is no flag"),
        ("Vehicle.Gear", entry("dbc2vss", "Gear", "int8", transform={"mapping": [{"from": "Q", "to": 1}]}),
         "Gear has no label 'Q'"),
        ("Vehicle.Gear", entry("dbc2vss", "Gear", "int8", transform={"mapping": [{"from": 9, "to": 1}]}),
         "Gear can never be exactly 9"),
        ("Vehicle.Gear", entry("dbc2vss", "Gear", "int8", transform={"mapping": [{"from": "P", "to": "one"}]}),
         "'one' is no int8"),
        ("Vehicle.Gear", entry("dbc2vss", "Gear", "int8", transform={"mapping": "P"}), "is no list of from and to"),
    ],
)  # fmt: skip
def test_what_cannot_be_mapped_is_a_diagnostic_with_its_path_and_the_rest_goes_on(
    tmp_path: Path, path: str, given: dict[str, Any], said: str
) -> None:
    found, odd = mapped(tmp_path, {path: given, "Vehicle.Oil": entry("dbc2vss", "Oil")})
    assert list(found) == ["Vehicle.Oil"]
    assert len(odd) == 1
    assert odd[0].startswith(f"overlay.json: {path}: ")
    assert said in odd[0]
    assert odd[0].endswith("it is left out")


def test_a_diagnostic_of_a_yaml_overlay_names_the_line(tmp_path: Path) -> None:
    text = "# a comment\n\nVehicle.Sped:\n  type: sensor\n  datatype: float\n  dbc2vss: {signal: Speed}\n"
    assert mapped(tmp_path, text, suffix=".vspec")[1][0].startswith("overlay.vspec:3: Vehicle.Sped: is not in the tree")


def test_a_new_node_needs_a_description_and_without_a_tree_the_overlay_says_all(tmp_path: Path) -> None:
    node = {**entry("dbc2vss", "Speed"), "unit": "mph"}
    assert not mapped(tmp_path, {"Vehicle.OEM.Speed": node})[0]
    found, odd = mapped(tmp_path, {"Vehicle.OEM.Speed": {**node, "description": "Ours."}})
    assert odd == []
    assert vss_value(found["Vehicle.OEM.Speed"], 0, 160.9344)[0] == pytest.approx(100)
    assert mapped(tmp_path, {"Vehicle.OEM.Speed": node}, tree=None)[0] == found


def test_the_later_of_two_entries_counts_and_is_told(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", {"Vehicle.Gear": entry("dbc2vss", "Gear", "int8")})
    second = write(tmp_path / "b.json", {"Vehicle.Gear": entry("dbc2vss", "Speed", "int8")})
    manifest, odd = add_vss(MANIFEST, [first, second], [])
    assert [vss.signal for vss in manifest.vss] == [0]
    assert "is mapped at a.json: Vehicle.Gear already" in str(odd[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "does not load"),
        ("- 1", "it is no mapping of VSS nodes"),
        ("", "holds no VSS nodes"),
        ("Vehicle.Speed: 5", "is no VSS node"),
        ("\t{", "does not load"),
        ("Vehicle: !!python/object:os.system {}", "does not load"),
    ],
)
def test_a_file_that_is_no_overlay_is_one_error_that_names_it(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"overlay\.vspec") as error:
        mapped(tmp_path, text, suffix=".vspec")
    assert said in str(error.value)


# -- trees


def flat(nodes: dict[str, Any], above: str = "") -> dict[str, Any]:
    found = {}
    for name, node in nodes.items():
        found[above + name] = {key: value for key, value in node.items() if key != "children"}
        found |= flat(node.get("children", {}), f"{above}{name}.")
    return found


def test_a_tree_is_the_same_nested_or_dotted_in_json_or_yaml_with_an_instance_for_each_combination(
    tmp_path: Path,
) -> None:
    trees = []
    for name, document in (("nested.json", TREE), ("flat.json", flat(TREE)), ("flat.yaml", flat(TREE))):
        nodes = {node.path: node for node in read(write(tmp_path / name, document))}
        trees.append({path: node.attributes for path, node in expand(nodes).items()})
    assert trees[0] == trees[1] == trees[2]
    seats = [f"Vehicle.Seat.Row{row}.{side}.IsBelted" for row in (1, 2) for side in ("Left", "Right")]
    assert [path for path in trees[0] if path.startswith("Vehicle.Seat.")] == [*seats, "Vehicle.Seat.Count"]


def test_an_overlay_may_define_the_instances_of_a_branch_anew(tmp_path: Path) -> None:
    overlay = {
        "Vehicle.Seat": {"type": "branch", "instances": ["Only"]},
        "Vehicle.Seat.Only.IsBelted": entry("dbc2vss", "Belt", "boolean"),
        "Vehicle.Seat.Row1.Left.IsBelted": entry("dbc2vss", "Belt", "boolean"),
    }
    found, odd = mapped(tmp_path, overlay)
    assert list(found) == ["Vehicle.Seat.Only.IsBelted"]
    assert len(odd) == 1


MORE_WORDS = ["signal", "transform", "math", "mapping", "representation", "from", "to"]
WORDS = [*MORE_WORDS, "value", "text", "interval_ms", "type", "datatype", "unit", "children", "instances"]
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 1e308])
PAIRS = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(["P", "D"]) | NUMBERS, "to": NUMBERS | st.booleans() | st.text()}),
    max_size=3,
)
MAPPING = st.fixed_dictionaries(
    {"signal": st.sampled_from(["Speed", "Gear", "Twice.X", "Belt"])},
    optional={
        "transform": st.fixed_dictionaries({"mapping": PAIRS}) | st.fixed_dictionaries({"math": st.text("x+-*/(1.e )")})
    },
)
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["Speed", "Gear", "float", "x*2", "P", "\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)


@given(document=st.dictionaries(st.sampled_from(["Vehicle.Speed", "Vehicle.Gear", "Vehicle"]), st.fixed_dictionaries(
    {}, optional={"datatype": st.sampled_from(["float", "int8", "string", "boolean"]), "dbc2vss": MAPPING | JUNK,
                  "network_serialization": JUNK, "instances": JUNK, "children": JUNK, "allowed": JUNK, "type": JUNK}
) | JUNK, min_size=1))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_whatever_an_overlay_holds_is_mapped_or_told_in_one_line(document: Any, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        manifest, odd = add_vss(MANIFEST, [write(folder / "junk.json", document)], [])
    except InputError as error:
        manifest, odd = MANIFEST, [str(error)]  # type: ignore[list-item]
    assert all("\n" not in str(diagnostic) for diagnostic in odd)
    assert manifest_files.parse(saved(manifest)) == manifest


def saved(manifest: DecoderManifest) -> bytes:
    return f"{manifest_files.FORMAT}{manifest.hash}\n".encode() + manifest.body + b"\n"


# -- units and formulas


@given(
    pair=st.sampled_from([(a, b) for a in UNITS for b in UNITS if UNITS[a].kind == UNITS[b].kind]),
    x=st.floats(-1e6, 1e6),
)
def test_a_unit_converts_to_any_of_its_kind_and_back(pair: tuple[str, str], x: float) -> None:
    there, back = conversion(*pair), conversion(*reversed(pair))
    assert there is not None
    assert back is not None
    one = VssSignal("V", 0, steps=there)
    assert one.line is not None
    value = vss_value(one, 0, x)[0]
    exact = (
        x * UNITS[pair[0]].factor.__float__() + float(UNITS[pair[0]].offset) - float(UNITS[pair[1]].offset)
    ) / float(UNITS[pair[1]].factor)
    assert value == pytest.approx(exact, rel=1e-12, abs=1e-6 * float(1 / UNITS[pair[1]].factor))
    assert vss_value(VssSignal("V", 0, steps=back), 0, value)[0] == pytest.approx(x, rel=1e-9, abs=1e-6)  # type: ignore


def test_units_that_differ_in_kind_or_could_be_two_do_not_convert() -> None:
    assert conversion("km/h", "degC") is None
    assert conversion("MW", "mW") == (("X", 0.0), ("CONST", 1e9), ("MUL", 0.0))
    assert conversion("KN", "N") is None  # knots or kilonewtons
    assert conversion("furlong", "m") is None
    assert conversion("furlong", "Furlong") == (("X", 0.0),)


@st.composite
def formulas(draw: Any, depth: int = 3) -> str:
    kind = draw(st.integers(0, 4 if depth else 1))
    if kind < 2:
        return "x" if kind else repr(draw(st.sampled_from([0, 1, 2.5, 40, 1e9])))
    inner = formulas(depth - 1)
    if kind == 2:
        return f"({draw(inner)} {draw(st.sampled_from('+-*/'))} {draw(inner)})"
    if kind == 3:
        return f"{draw(st.sampled_from(['floor', 'ceil', 'abs', '-', 'round']))}({draw(inner)})"
    return f"{draw(st.sampled_from(['min', 'max']))}({draw(inner)}, {draw(inner)})"


def python_value(text: str, x: float) -> float:
    """NaN where Python divides by zero, or a part of the formula overflows: Python would go on with infinity."""
    names = {"floor": math.floor, "ceil": math.ceil, "x": x}
    operations = [
        n for n in ast.walk(ast.parse(text, mode="eval")) if isinstance(n, ast.BinOp | ast.UnaryOp | ast.Call)
    ]
    try:
        values = [eval(compile(ast.Expression(part), "formula", "eval"), names) for part in operations]
        return float(values[0]) if all(map(math.isfinite, values)) else math.nan
    except (ZeroDivisionError, OverflowError, ValueError):
        return math.nan


@given(text=formulas().map(lambda text: f"x + {text}"), x=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=5))
@example(text="x + ((1 / x) / x)", x=[3.137630986517639e-271])
def test_a_formula_has_the_value_that_python_gives_it(text: str, x: list[float]) -> None:
    steps = formula.parse(text, "here")
    for value, found in zip(x, evaluate(steps, pa.array(x, pa.float64()).to_numpy()), strict=True):
        wanted = python_value(text, value)
        assert found == wanted or (math.isnan(found) and math.isnan(wanted))
