"""Conditions against their slow twin, on whatever Hypothesis draws, wherever a batch is split; and their errors."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cy_core.assemble import Assembler
from cy_core.frames import Frames
from cy_core.traffic import Traffic
from edge.condition import compile_condition
from edge.decoder import Decoder
from edge.errors import InputError
from edge.manifest import DecoderManifest, Message, Signal
from edge.names import Names
from tests.reference.condition import SlowCondition
from tests.strategies import Frame, batch, manifests, traffic
from tests.test_transport import MANIFEST as TRANSPORT
from tests.test_transport import as_isotp, broken_traffic

MANIFEST = DecoderManifest(
    ("can0", "can1"),
    (
        Message("can0", 1, "Motion", 8, signals=(
            Signal("Speed", 0, 16, factor=0.01, unit="km/h"), Signal("Gear", 16, 3, labels={0: "P", 1: "R", 4: "D"})
        )),
        Message("can0", 2, "Twice", 1, signals=(Signal("X", 0, 8, signed=True),)),
        Message("can1", 2, "Twice", 1, signals=(Signal("X", 0, 8),)),
    ),
)  # fmt: skip


def hits(text: str, manifest: DecoderManifest, frames: list[Frame], cuts: list[int], cooldown_us: int = 0) -> Any:
    """The numbers of the frames that are hits, with the batch split at cuts."""
    plan = Decoder(manifest).plan
    condition = compile_condition(text, Names(manifest)).condition(plan, cooldown_us)
    seen, assembler, found, start = Traffic(plan), Assembler(plan), [], 0
    for end in [*sorted(cuts), len(frames)]:
        piece = batch(frames[start:end])
        assembler.assemble(piece, Frames())
        seen.note(piece, assembler)
        found += [start + number for number in condition.run(piece, seen)]
        start = end
    return found, condition


@st.composite
def numbers(draw: Any, signals: list[str], depth: int) -> str:
    kind = draw(st.integers(0, 7 if depth else 1))
    if kind == 0:
        return repr(draw(st.sampled_from([0, 1, 3, 0.5, 40, 255, 1000.25])))
    if kind == 1:
        return draw(st.sampled_from(signals))
    inner = numbers(signals, depth - 1)
    if kind == 2:
        return f"({draw(inner)} {draw(st.sampled_from('+-*/'))} {draw(inner)})"
    if kind == 3:
        return f"abs({draw(inner)})"
    if kind == 4:
        return f"(-{draw(inner)})"
    if kind == 5:
        return f"{draw(st.sampled_from(['min', 'max']))}({draw(inner)}, {draw(inner)})"
    window = draw(st.sampled_from(["avg", "min_s", "max_s", "count"]))
    return f"{window}({draw(st.sampled_from(signals))}, {draw(st.sampled_from([0.001, 0.02, 3, 4.5]))})"


@st.composite
def logics(draw: Any, signals: list[str], labelled: list[tuple[str, str]], depth: int = 3) -> str:
    kind = draw(st.integers(0, 8 if depth else 1))
    if kind == 0 and labelled:
        name, label = draw(st.sampled_from(labelled))
        return f"{name} {draw(st.sampled_from(['==', '!=']))} {label!r}"
    if kind <= 1:
        # "+ 0" on both sides: a comparison that can never be true is refused, and here it is wanted.
        op = draw(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]))
        return f"{draw(numbers(signals, depth))} + 0 {op} {draw(numbers(signals, depth))} + 0"
    inner = logics(signals, labelled, depth - 1)
    if kind == 2:
        return f"(not {draw(inner)})"
    if kind <= 4:
        return f"({draw(inner)} {draw(st.sampled_from(['and', 'or']))} {draw(inner)})"
    if kind == 5:
        return f"{draw(st.sampled_from(['rising', 'falling', 'changed']))}({draw(inner)})"
    if kind == 6:
        return f"changed({draw(numbers(signals, depth - 1))})"
    if kind == 7:
        return f"for_s({draw(inner)}, {draw(st.sampled_from([0.001, 0.02, 3, 3.001]))})"
    return f"stale({draw(st.sampled_from(signals))}, {draw(st.sampled_from([0.001, 0.02, 3]))})"


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_condition_is_true_at_the_frames_that_the_slow_twin_says_wherever_batches_are_split(data: Any) -> None:
    manifest = data.draw(manifests().filter(lambda made: any(m.signals for m in made.messages)))
    full = [(f"{m.bus}.{name}", signal) for name, m, signal in manifest.names()]
    labelled = [(name, label) for name, signal in full if not signal.is_float for label in signal.labels.values()]
    text = data.draw(logics([name for name, _ in full], labelled))
    if not any(name in text for name, _ in full):
        text = f"{text} and {full[0][0]} + 0 >= 0 + 0"
    frames = data.draw(traffic(manifest))
    cuts = data.draw(st.lists(st.integers(0, len(frames)), max_size=4))
    cooldown_us = data.draw(st.sampled_from([0, 1, 20_000, 5_000_000]))
    slow = SlowCondition(text, manifest, cooldown_us)
    expected = slow.run(frames)
    found, condition = hits(text, manifest, frames, cuts, cooldown_us)
    assert found == expected
    assert (condition.evaluated, condition.cooled) == (slow.evaluated, slow.cooled)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_condition_sees_a_message_in_segments_at_its_last_frame_wherever_batches_are_split(data: Any) -> None:
    frames = data.draw(broken_traffic())
    names = [f"{message.bus}.{name}" for name, message, _ in TRANSPORT.names()]
    text = data.draw(logics(names, [], 2))
    if not any(name in text for name in names):
        text = f"{text} or {names[1]} + 0 > 40 + 0"
    cuts = data.draw(st.lists(st.integers(0, len(frames)), max_size=4))
    slow = SlowCondition(text, TRANSPORT)
    expected = slow.run(frames)
    found, condition = hits(text, TRANSPORT, frames, cuts)
    assert found == expected
    assert condition.evaluated == slow.evaluated


@pytest.mark.parametrize("split", range(9))
def test_a_message_in_segments_is_seen_once_with_its_last_byte_at_the_time_of_its_last_frame(split: int) -> None:
    payload = bytes(40) + bytes(range(10)) + b"\x63" + bytes(11)
    sent = [(1000 * number, *frame) for number, frame in enumerate(as_isotp(payload, 2, 0x7E8))]
    frames: list[Frame] = [(time_us, bus, can_id, 0, data) for time_us, bus, can_id, data in sent]
    found, condition = hits("car.ENGINE.W == 99 and ENGINE.V == 0", TRANSPORT, frames, [split])
    assert found == [len(frames) - 1]
    assert condition.state()[0][1:] == (99.0, frames[-1][0], 1)


def test_a_condition_on_segments_needs_to_know_what_was_put_together_of_these_very_frames() -> None:
    plan = Decoder(TRANSPORT).plan
    assembler, seen = Assembler(plan), Traffic(plan)
    with pytest.raises(ValueError, match="has not assembled these 1 frames"):
        seen.note(batch([(0, 2, 0x7E8, 0, bytes(8))]), assembler)


def motion(time_s: float, speed: float, gear: int = 0) -> Frame:
    return round(time_s * 1e6), 0, 1, 0, round(speed * 100).to_bytes(2, "little") + bytes([gear]) + bytes(5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Motion.Speed > 50", [1, 2, 4]),
        ("rising(Motion.Speed > 50)", [1, 4]),
        ("falling(Motion.Speed > 50)", [3]),
        ("changed(Motion.Gear)", [2, 4]),
        ("Motion.Gear == 'D'", [2, 3]),
        ("Motion.Gear != 'D' and 20 < Motion.Speed < 70", [0, 1, 4]),
        ("for_s(Motion.Speed > 50, 1)", [2]),
        ("stale(Motion.Speed, 5)", []),
        ("avg(Motion.Speed, 2.5) > 60", [3, 4]),
        ("max_s(Motion.Speed, 1.5) == 80", [2, 3]),
        ("count(Motion.Speed, 1.5) < 2", [0]),
        ("abs(Motion.Speed - 40) <= 10", [0, 3]),
        ("Motion.Speed / 0 > 1 or not (Motion.Speed / 0 > 1)", []),
    ],
)
def test_conditions_mean_what_they_say(text: str, expected: list[int]) -> None:
    frames = [motion(0, 40), motion(1, 60), motion(2, 80, 4), motion(3, 45, 4), motion(4, 60)]
    assert hits(text, MANIFEST, frames, [])[0] == expected


def test_silence_is_noticed_at_the_first_frame_behind_it() -> None:
    other = [(time_us, 1, 2, 0, b"\x01") for time_us in (4_900_000, 5_000_000, 5_100_000)]
    assert hits("stale(Motion.Speed, 5)", MANIFEST, [motion(0, 1), *other], [])[0] == [2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Motion.Sped > 5", "column 1: Motion.Sped is no signal of the manifest; did you mean Motion.Speed?"),
        ("Motion.Speed >", "is no expression"),
        ("Motion.Speed", "is a number, not true or false; compare it, as in Motion.Speed != 0"),
        ("Motion.Speed and Motion.Gear == 1", "not true or false"),
        ("Motion.Gear == 'DD'", "Motion.Gear has no label 'DD'; did you mean 'D'?"),
        ("Motion.Gear > 'D'", "labels have no order"),
        ("Motion.Speed == 'fast'", "has no label 'fast'; compare it with a number"),
        ("Motion.Speed > 700", "is never true: Motion.Speed can be 0 to 655.35 km/h"),
        ("-1 > Motion.Speed", "is never true"),
        ("Twice.X > 1", "Twice.X is on can0 and can1; say can0.Twice.X"),
        ("risen(Motion.Speed > 1)", "there is no function risen; did you mean rising?"),
        ("for_s(Motion.Speed > 1)", "for_s does not take 1 arguments; as in for_s"),
        ("avg(Motion.Speed + 1, 5) > 2", "avg is of a signal"),
        ("stale(Motion.Speed, Motion.Gear)", "is no number of seconds"),
        ("(Motion.Speed > 1) + 2 > 3", "is true or false, not a number"),
        ("Motion.Speed ** 2 > 3", "use [+] - [*] /"),
        ("Motion.Speed in (1, 2)", "only < <= > >= == != compare"),
        ("__import__('os').system('x')", "there is no function"),
        ("1 > 2", "names no signal"),
        ("lambda: 1", "not true or false"),
        ("(" * 300 + "1" + ")" * 300, "no expression"),
        ("not " * 1000 + "Motion.Speed > 1", "nested too deeply|no expression|takes"),
        ("x" * 5000, "has 5000 characters"),
        ("a\0b", "is no expression"),
        ("Motion.Speed > (" + "(1 + Motion.Speed) * (" * 70 + "1" + ")" * 70 + ")", "nested too deeply|no expression"),
        ("min(Motion.Speed) > 1", "min does not take 1 arguments"),
    ],
)
def test_a_condition_that_cannot_run_says_where_why_and_what_instead(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        compile_condition(text, Names(MANIFEST), "campaign a: when")


@given(text=st.text(alphabet="Motion.SpeedGear <>=!()andort'\"1,-+*/x", max_size=40))
def test_no_text_whatever_crashes_the_parser(text: str) -> None:
    try:
        compile_condition(text, Names(MANIFEST))
    except InputError as error:
        assert str(error).startswith("when")  # noqa: PT017
