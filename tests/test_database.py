"""Databases to manifests: every recorded vector, the dirt of real files, and the slow twin against a formula."""

import contextlib
import gzip
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.database import Diagnostic, compile_databases, load_databases
from edge.decoder import Decoder
from edge.errors import InputError
from edge.manifest import DecoderManifest, Message, Signal
from tests.reference.extract import extract

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("BORDNETZ_DATA", ROOT / "../shared/data"))
VECTORS = sorted((DATA / "vectors").glob("*.jsonl.gz"))
without_data = pytest.mark.skipif(not VECTORS, reason=f"no recorded data at {DATA} (set BORDNETZ_DATA)")

# Fields wider than 64 bits, which are refused by name.
WIDE = {("cantools__message_layout.kcd", "Message7"), ("cantools__message_layout.kcd", "Message8")}
# A second message with the identifier of another one, which is refused by name.
SECOND = {("canmatrix__test_test.kcd.dbc", "StatusMeasuredPower")}
# The vectors were made after leaving out value tables that our reading of the file can keep.
MORE_LABELS = {
    "opendbc__rivian_primary_actuator.dbc",
    "opendbc__vw_meb_generated.dbc",
    "opendbc__vw_meb_2024_generated.dbc",
}
HEAD = 'VERSION ""\n\nNS_ :\n\tNS_DESC_\n\tCM_\n\nBS_: 1 : 2, 2\n\nBU_: ECU\n\n'


def compile_text(folder: Path, text: str, suffix: str = ".dbc") -> tuple[DecoderManifest, list[Diagnostic]]:
    path = folder / f"dirty{suffix}"
    path.write_text(text, encoding="utf-8")
    return compile_databases({"can0": [path]})


def shape(manifest: DecoderManifest) -> dict[str, list[str]]:
    return {message.name: [signal.name for signal in message.signals] for message in manifest.messages}


# --- every recorded vector


@without_data
@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_every_vector_of_a_database_has_its_raw_and_physical_values_and_labels(path: Path) -> None:
    with gzip.open(path, "rt") as file:
        header, *vectors = map(json.loads, file)
    name = header["database"]
    messages, decoder = messages_by_id(DATA / "databases" / name)
    for vector in vectors:
        if (name, vector["m"]) in WIDE | SECOND:
            continue
        (message,) = [m for m in messages[vector["id"], bool(vector["x"])] if m.name == vector["m"]]
        payload = bytes.fromhex(vector["d"])
        kernel = decoder.decode(message.bus, message.id, payload, extended=message.extended, raw=True)
        slow = extract(message, payload, message.id)
        assert [*kernel] == [f"{message.name}.{signal}" for signal in slow], vector
        assert all(map(same, kernel.values(), slow.values())), vector
        message = message._replace(signals=tuple(signal for signal in message.signals if not signal.of_id))
        found = extract(message, payload)
        if "partial" in vector:
            found = {signal: found[signal] for signal in vector["s"]}
        assert set(found) == set(vector["s"]), vector
        for signal in message.signals:
            if signal.name in found:
                assert_sample(signal, found[signal.name], vector["s"][signal.name], name in MORE_LABELS)


def messages_by_id(path: Path) -> tuple[dict[tuple[int, bool], list[Message]], Decoder]:
    """Of a file that describes several buses, each as a bus of its own."""
    buses = set(re.findall(r'<Bus name="([^"]+)"', path.read_text(errors="replace"))) if path.suffix == ".kcd" else ()
    manifest = load_databases({bus: [path] for bus in sorted(buses)} if len(buses) > 1 else {"can0": [path]})
    found: dict[tuple[int, bool], list[Message]] = {}
    for message in manifest.messages:
        found.setdefault((message.id, message.extended), []).append(message)
    return found, Decoder(manifest)


def assert_sample(signal: Signal, raw: int | float, wanted: list[Any], more_labels: bool) -> None:
    """Physical values to the last bit: they are computed as cantools does."""
    wanted_raw, wanted_value = (float(number) if isinstance(number, str) else number for number in wanted[:2])
    assert same(raw, wanted_raw), (signal, raw, wanted)
    assert same(raw * signal.factor + signal.offset, wanted_value), (signal, raw, wanted)
    label = wanted[2] if len(wanted) > 2 else None
    assert signal.labels.get(raw) == label or (more_labels and label is None), (signal, raw, wanted)  # type: ignore[call-overload]


def same(one: int | float, other: int | float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


@without_data
def test_all_databases_load_but_these_and_each_says_why_not() -> None:
    refused = {}
    for path in sorted((DATA / "databases").iterdir()):
        if path.suffix.lower() in (".dbc", ".arxml", ".kcd", ".sym"):
            try:
                _, diagnostics = compile_databases({"can0": [path]})
                assert all("\n" not in str(diagnostic) and path.name in str(diagnostic) for diagnostic in diagnostics)
            except InputError as error:
                refused[path.name] = error.problem
    assert refused == {
        "canmatrix__ARXMLCompuMethod1.arxml": "holds no AR-PACKAGES: it is a part of an ARXML file, or none",
    }


@without_data
@pytest.mark.parametrize(
    ("name", "counts", "said"),
    [
        ("canmatrix__from_dbc_test.sym", (2, 2), ":1: is of format 5.0; read as 6.0"),
        (
            "canmatrix__test_test.kcd.sym",
            (25, 155),
            ":81: the name 'RealPower command' has a blank; called RealPower_c",
        ),
        ("cantools__issue_138.sym", (1, 9), ":25: Status: multiplexer M has no bits; left out; its signals are always"),
        (
            "cantools__system-dangling-reference-4.2.arxml",
            (0, 0),
            ":18: message1: refers to /PackageDoesNotExist/Message1",
        ),
        ("canmatrix__ARXML_min_max.arxml", (1, 6), ":405: COMPU-METHOD New_Frame_NewPDU_NewSignal_Encoding has 2 num"),
        (
            "cantools__system-missing-denominator-4.2.arxml",
            (1, 1),
            ":83: COMPU-METHOD Signal1 has 2 numerator and 0 den",
        ),
        ("cantools__system-missing-factor-4.2.arxml", (1, 1), ":83: COMPU-METHOD Signal1 has 1 numerator and 1 denomi"),
    ],
)
def test_a_file_whose_bits_are_clear_loads_and_the_line_of_each_repair_is_told(
    name: str, counts: tuple[int, int], said: str
) -> None:
    manifest, diagnostics = compile_databases({"can0": [DATA / "databases" / name]})
    assert (len(manifest.messages), sum(len(message.signals) for message in manifest.messages)) == counts
    assert any(str(diagnostic).startswith(name + said) for diagnostic in diagnostics), list(map(str, diagnostics))


@without_data
def test_a_symbol_file_of_format_5_means_what_it_means_in_format_6() -> None:
    five, six = (
        {(message.id, message.name): message for message in load_databases({"can0": [path]}).messages}
        for path in (DATA / "databases" / f"cantools__jopp-{version}.sym" for version in ("5.0", "6.0"))
    )
    assert {name for _, name in five} == {"Message1", "Message2", "Symbol1", "Symbol2"}
    common = five.keys() & six.keys()
    assert {name for _, name in common} == {"Message1", "Message2", "Symbol1", "Symbol2"}
    for key in common:  # in the other file, the ids of Message2 have eight digits
        assert five[key] == six[key]._replace(extended=False)


@pytest.mark.parametrize(
    ("numerator", "denominator", "scale", "done"),
    [
        (("-40", "0.5"), ("1",), (0.5, -40), None),
        (("-40", "0.5", "0"), ("2", "0.0"), (0.25, -20), "those beyond the line are zero, and left out"),
        (("0", "1", "3"), ("1",), (1, 0), "which is no line: its signals have their raw values"),
        (("0", "2"), ("0",), (1, 0), "which is no line: its signals have their raw values"),
        (("0", "1"), ("0", "1"), (1, 0), "which is no line: its signals have their raw values"),
        (("7",), ("1",), (1, 0), "which is no line: its signals have their raw values"),
        ((), (), (1, 0), "which is no line: its signals have their raw values"),
    ],
)
@without_data
def test_a_conversion_of_arxml_is_a_line_or_its_signals_are_raw_and_the_method_is_named(
    tmp_path: Path,
    numerator: tuple[str, ...],
    denominator: tuple[str, ...],
    scale: tuple[float, float],
    done: str | None,
) -> None:
    text = (DATA / "databases/cantools__system-missing-factor-4.2.arxml").read_text()
    for tag, values in (("NUMERATOR", numerator), ("DENOMINATOR", denominator)):
        rows = "".join(f"<V>{value}</V>" for value in values)
        text = re.sub(rf"<COMPU-{tag}>.*</COMPU-{tag}>", f"<COMPU-{tag}>{rows}</COMPU-{tag}>", text)
    path = tmp_path / "a.arxml"
    path.write_text(text)
    manifest, diagnostics = compile_databases({"can0": [path]})
    (signal,) = manifest.messages[0].signals
    assert (signal.factor, signal.offset) == scale
    count = f"{len(numerator)} numerator and {len(denominator)} denominator values"
    assert [str(d) for d in diagnostics if "COMPU-METHOD" in d.problem] == (
        [] if done is None else [f"a.arxml:83: COMPU-METHOD Signal1 has {count}; {done}"]
    )


@without_data
def test_a_manifest_is_the_same_on_every_run() -> None:
    path = DATA / "databases/cantools__issue_184_extended_mux_multiple_values.dbc"
    program = "import sys; from edge.database import load_databases; print(load_databases({'c': [sys.argv[1]]}).hash)"
    hashes = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60)
        hashes.add(done.stdout)
    assert hashes == {load_databases({"c": [path]}).hash + "\n"}


# --- the dirt of real files


def test_what_is_clean_has_no_diagnostics(tmp_path: Path) -> None:
    manifest, diagnostics = compile_text(tmp_path, HEAD + 'BO_ 1 M: 8 ECU\n SG_ A : 0|8@1+ (0.5,-4) [0|9] "km/h" ECU\n')
    assert diagnostics == []
    assert manifest.messages == (
        Message(
            "can0", 1, "M", 8, signals=(Signal("A", 0, 8, factor=0.5, offset=-4, unit="km/h", minimum=0, maximum=9),)
        ),
    )


@pytest.mark.parametrize(
    ("body", "line", "message", "problem", "messages"),
    [
        (
            'BO_ 1 M: 2 ECU\n SG_ A : 0|9@1+ (1,0) [0|0] "" ECU\n SG_ B : 8|8@1+ (1,0) [0|0] "" ECU\n',
            11,
            "M",
            "the signals B and A are overlapping",
            {"M": ["A", "B"]},
        ),
        (
            'BO_ 1 M: 1 ECU\n SG_ A : 0|9@1+ (1,0) [0|0] "" ECU\n',
            11,
            "M",
            "the signal A does not fit",
            {"M": ["A"]},
        ),
        (
            'BO_ 217056256 M: 8 ECU\n SG_ A : 0|9@1+ (1,0) [0|0] "" ECU\nVAL_ 217056256 A 1 "one" ;\n',
            11,
            "M",
            "identifier CF00400 is longer than 11 bits",
            {"M": ["A"]},
        ),
        (
            'BO_ 1 M: 8 ECU\n SG_ A : 0|8@1+ (1,0) [0|0] "" ECU\nVAL_ 1 B 1 "one" ;\n',
            13,
            "",
            "VAL_ of a signal B that message 1 does not have",
            {"M": ["A"]},
        ),
        (
            'BO_ 1 M: 8 ECU\n SG_ A : 0|8@1+ (1,0) [0|0] "" ECU\nCM_ SG_ 1 "whose?";\nCM_ SG_ 1 A "fine";\n',
            13,
            "",
            "cannot be read: CM_ SG_ 1",
            {"M": ["A"]},
        ),
        (
            'CM_ "no end"\nBO_ 1 M: 8 ECU\n SG_ A : 0|8@1+ (1,0) [0|0] "" ECU\n',
            11,
            "",
            "CM_ does not end with ;",
            {"M": ["A"]},
        ),
        (
            'BO_ 1 M: 8 ECU\n SG_ A : 0|8@1+ (one,0) [0|0] "" ECU\n SG_ B : 8|8@1+ (1,0) [0|0] "" ECU\n',
            12,
            "M",
            "cannot be read: SG_ A",
            {"M": ["B"]},
        ),
        (
            'BO_ 1 M 8 ECU\n SG_ A : 0|8@1+ (1,0) [0|0] "" ECU\nBO_ 2 N: 8 ECU\n',
            11,
            "M",
            "cannot be read: BO_ 1 M 8",
            {"N": []},
        ),
        (
            'BO_ 1 M: 8 ECU\n SG_ A : 0|0@1+ (1,0) [0|0] "" ECU\n SG_ B : 8|8@1+ (1,0) [0|0] "" ECU\n',
            12,
            "M",
            "signal A has no bits",
            {"M": ["B"]},
        ),
        (
            'BO_ 1 M: 64 ECU\n SG_ A : 0|65@1+ (1,0) [0|0] "" ECU\n SG_ B : 72|8@1+ (1,0) [0|0] "" ECU\n',
            11,
            "M",
            "A: a field of 65 bits",
            {"M": ["B"]},
        ),
        (
            'BO_ 1 M: 8 ECU\n SG_ A m : 0|4@1+ (1,0) [0|0] "" ECU\n SG_ B m1 : 8|8@1+ (1,0) [0|0] "" ECU\n'
            "SG_MUL_VAL_ 1 B A 1-1;\n",
            11,
            "M",
            "B hangs on A, which is no multiplexer selector",
            {"M": ["A"]},
        ),
        (
            'BO_ 1 M: 8 ECU\n SG_ A : 0|8@1+ (1,0) [0|0] "" ECU\nBO_ 1 N: 8 ECU\n SG_ A : 0|9@1+ (1,0) [0|0] "" ECU\n',
            13,
            "N",
            "identifier 1 on can0 is M already",
            {"M": ["A"]},
        ),
        (
            'BO_ 1 M: 8 ECU\n SG_ A : 0|8@1+ (1,0) [0|0] "" ECU\n SG_ A : 8|8@1+ (1,0) [0|0] "" ECU\n',
            11,
            "M",
            "it has two signals A",
            {"M": ["A", "A_2"]},
        ),
    ],
)
def test_dirt_is_named_with_its_place_and_what_became_of_it(
    tmp_path: Path, body: str, line: int, message: str, problem: str, messages: dict[str, list[str]]
) -> None:
    manifest, diagnostics = compile_text(tmp_path, HEAD + body)
    assert shape(manifest) == messages
    (diagnostic,) = diagnostics
    assert (diagnostic.file, diagnostic.line, diagnostic.message) == ("dirty.dbc", line, message)
    assert diagnostic.problem.startswith(problem)
    assert str(diagnostic).startswith(f"dirty.dbc:{line}: ")
    Decoder(manifest)


def test_identifiers_without_bit_31_are_marked_wherever_they_are_named(tmp_path: Path) -> None:
    text = HEAD + (
        'BO_ 217056256 M: 8 ECU\n SG_ A : 0|32@1- (1,0) [0|0] "" ECU\n'
        'CM_ BO_ 217056256 "CM_ BO_ 217056256";\nVAL_ 217056256 A 217056256 "VAL_ 217056256 A" ;\n'
        "SIG_VALTYPE_ 217056256 A : 1;\n"
    )
    (message,) = compile_text(tmp_path, text)[0].messages
    assert (message.id, message.extended) == (0xCF00400, True)
    assert message.signals == (Signal("A", 0, 32, is_float=True, labels={217056256: "VAL_ 217056256 A"}),)


def test_other_tools_sections_and_comments_are_understood(tmp_path: Path) -> None:
    text = (
        '/* licence "\n */\nVERSION "1"\n\nNS_ :\n  NS_DESC_\n\n'
        'BO_ 263 M: 8 XXX // the first\n SG_ A : 7|8@0+ (1,0) [0|0] "// unit" XXX\n'
    )
    manifest, diagnostics = compile_text(tmp_path, text)
    assert diagnostics == []
    assert manifest.messages[0].signals == (Signal("A", 7, 8, big_endian=True, unit="// unit"),)


def test_a_file_that_is_not_utf_8_is_read_as_cp1252(tmp_path: Path) -> None:
    path = tmp_path / "old.DBC"
    path.write_bytes((HEAD + 'BO_ 1 M: 8 ECU\n SG_ A : 0|8@1+ (1,0) [0|0] "°C" ECU\n').encode("cp1252"))
    manifest, (diagnostic,) = compile_databases({"can0": [path]})
    assert manifest.messages[0].signals[0].unit == "°C"
    assert str(diagnostic) == "old.DBC:12: is not UTF-8; read as cp1252"


def test_the_first_of_two_databases_keeps_an_identifier_and_equal_ones_are_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one.dbc", tmp_path / "two.dbc"
    one.write_text(HEAD + 'BO_ 1 M: 8 ECU\n SG_ A : 0|8@1+ (1,0) [0|0] "" ECU\nBO_ 2 S: 8 ECU\n')
    two.write_text(HEAD + 'BO_ 1 M: 8 ECU\n SG_ A : 0|8@1+ (2,0) [0|0] "" ECU\nBO_ 2 S: 8 ECU\n')
    manifest, (diagnostic,) = compile_databases({"can0": [one, two], "can1": [two]})
    assert [message.signals[0].factor for message in manifest.messages if message.id == 1] == [1, 2]
    assert str(diagnostic).startswith("two.dbc:11: M: identifier 1 on can0 is M already, and means something else")
    assert [(source.bus, source.file) for source in manifest.sources] == [
        ("can0", "one.dbc"),
        ("can0", "two.dbc"),
        ("can1", "two.dbc"),
    ]


def test_a_file_with_several_buses_gives_the_one_that_is_named_as_ours(tmp_path: Path) -> None:
    path = tmp_path / "car.kcd"
    path.write_text(
        '<NetworkDefinition xmlns="http://kayak.2codeornot2code.org/1.0"><Document/>'
        '<Bus name="motor"><Message id="0x1" name="M" length="8"><Signal name="A" offset="0"/></Message></Bus>'
        '<Bus name="body"><Message id="0x18FF1234" name="B" length="8"><Signal name="A" offset="0"/></Message></Bus>'
        "</NetworkDefinition>"
    )
    manifest, diagnostics = compile_databases({"motor": [path], "body": [path]})
    assert [(message.bus, message.name, message.extended) for message in manifest.messages] == [
        ("motor", "M", False),
        ("body", "B", True),
    ]
    assert "0x18FF1234 is longer than 11 bits" in diagnostics[0].problem
    assert [message.name for message in load_databases({"can0": [path]}).messages] == ["M", "B"]


def test_nested_and_ranged_multiplexing_is_kept(tmp_path: Path) -> None:
    text = HEAD + (
        "BO_ 1 M: 8 ECU\n"
        ' SG_ S M : 0|4@1+ (1,0) [0|0] "" ECU\n'
        ' SG_ T m2M : 4|4@1+ (1,0) [0|0] "" ECU\n'
        ' SG_ A m1 : 8|8@1+ (1,0) [0|0] "" ECU\n'
        ' SG_ B m0 : 8|8@1+ (1,0) [0|0] "" ECU\n'
        "SG_MUL_VAL_ 1 T S 2-2;\nSG_MUL_VAL_ 1 A S 1-1, 4-6, 9-9;\nSG_MUL_VAL_ 1 B T 0-3;\n"
    )
    (message,) = compile_text(tmp_path, text)[0].messages
    by_name = {signal.name: signal for signal in message.signals}
    hangs = {
        name: (message.signals[s.selector].name, s.selected_by) for name, s in by_name.items() if s.selector is not None
    }
    assert hangs == {"T": ("S", ((2, 2),)), "A": ("S", ((1, 1), (4, 6), (9, 9))), "B": ("T", ((0, 3),))}
    assert extract(message, b"\x32\x07") == {"S": 2, "T": 3, "B": 7}
    assert extract(message, b"\x05\x07") == {"S": 5, "A": 7}
    assert extract(message, b"\x07\x07") == {"S": 7}


def test_a_conversion_that_is_not_linear_is_named(tmp_path: Path) -> None:
    source = DATA / "databases/cantools__system-4.2.arxml"
    if not source.exists():
        pytest.skip(f"no recorded data at {DATA} (set BORDNETZ_DATA)")
    assert [d for d in compile_databases({"can0": [source]})[1] if "linear" in d.problem] == []
    text = source.read_text().replace("<CATEGORY>LINEAR</CATEGORY>", "<CATEGORY>RAT_FUNC</CATEGORY>")
    assert [str(d).partition(": ")[2] for d in compile_text(tmp_path, text, ".arxml")[1] if "linear" in d.problem] == [
        "Message1: signal1: its conversion is not linear (RAT_FUNC); value is raw * 1 + 0"
    ]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.txt", "", r"a\.txt: is no database by its suffix; known are \.dbc"),
        ("a.dbc", "nothing at all", r"a\.dbc:1: does not load: Invalid syntax"),
        ("a.kcd", "<a>\n<b></a>", r"a\.kcd:2: does not load: mismatched tag"),
        ("a.sym", "FormatVersion=4.0\n", r"a\.sym: does not load: Only SYM version 6.0"),
        ("a.arxml", "<AUTOSAR/>", r"a\.arxml: holds no AR-PACKAGES"),
        (
            "a.dbc",
            HEAD + "SG_MUL_VAL_ 1 A B 0-4294967295;",
            r"a\.dbc:11: the multiplexer range 0-4294967295 is too wide",
        ),
        (
            "a.dbc",
            HEAD + 'BO_ 1 M: 8 ECU\n SG_ A : 4294967295|8@1+ (1,0) [0|0] "" ECU\n',
            r"a\.dbc:12: a field or message of 4294967295 bits or bytes is too long",
        ),
        ("missing.dbc", None, r"missing\.dbc: cannot be read \(No such file"),
    ],
)
def test_what_cannot_be_loaded_is_one_line_with_the_place(
    tmp_path: Path, name: str, content: str | None, error: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=error) as raised:
        load_databases({"can0": [tmp_path / name]})
    assert "\n" not in str(raised.value)


def test_a_broken_file_of_many_errors_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than 50 errors"):
        compile_text(tmp_path, HEAD + 'CM_ 1 "x";\n' * 60)


@given(st.text(alphabet=' \n;:|@+-()[],"SGBOVALCM_/*1289xA', max_size=300))
@settings(max_examples=150, deadline=None)
def test_no_text_makes_the_loader_raise_anything_but_its_one_error(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.dbc"
    path.write_text(HEAD + 'BO_ 1 M: 8 ECU\n SG_ A : 0|8@1+ (1,0) [0|0] "" ECU\n' + text)
    with contextlib.suppress(InputError):
        Decoder(load_databases({"can0": [path]}))


# --- the slow twin


@given(st.data())
@settings(max_examples=300)
def test_the_slow_twin_agrees_with_shifts_of_the_whole_payload(data: st.DataObject) -> None:
    payload = data.draw(st.binary(min_size=1, max_size=64))
    bits = 8 * len(payload)
    length = data.draw(st.integers(1, min(64, bits)))
    first = data.draw(st.integers(0, bits - length))
    big_endian, signed = data.draw(st.booleans()), data.draw(st.booleans())
    if big_endian:
        start = 8 * (first // 8) + 7 - first % 8
        wanted = int.from_bytes(payload, "big") >> (bits - first - length)
    else:
        start = first
        wanted = int.from_bytes(payload, "little") >> first
    wanted &= (1 << length) - 1
    if signed and wanted >= 1 << (length - 1):
        wanted -= 1 << length
    signal = Signal("A", start, length, big_endian=big_endian, signed=signed)
    message = Message("can0", 1, "M", len(payload), signals=(signal,))
    assert extract(message, payload) == {"A": wanted}
    assert extract(message, payload[: signal.needed_bytes]) == {"A": wanted}
    assert extract(message, payload[: signal.needed_bytes - 1]) == {}
