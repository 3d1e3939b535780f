"""Signals through the codec and back: exact where asked, and never further off than asked."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cy_core.columns import Columns
from cy_core.frames import Frames
from cy_core.plan import Plan
from cy_core.reduce import Reducer
from edge import block
from edge.decoder import Decoder
from edge.errors import BlockCorrupt
from edge.manifest import DecoderManifest, Message, Signal
from tests import strategies

MANIFEST = DecoderManifest(
    ("can0",),
    (
        Message(
            "can0", 1, "M", 8, signals=(Signal("A", 0, 16, factor=0.5), Signal("B", 16, 12, signed=True, factor=-0.1))
        ),
    ),
)


def rows(columns: Columns) -> list[tuple[int, list[int], list[tuple[int, list[bytes]]]]]:
    """Of each group: message, times, and the bytes of each value."""
    found = []
    for group in columns.groups():
        times, values = group.times.tolist(), []
        for signal, code, data in group.columns:
            size = memoryview(bytes(8)).cast(code).itemsize if code != "e" else 2
            cells = [bytes(data[i : i + size]) for i in range(0, len(data), size)]
            values.append((signal, cells * len(times) if len(cells) == 1 else cells))
        found.append((group.message, times, values))
    return found


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_columns_come_back_exactly(data: st.DataObject) -> None:
    manifest = data.draw(strategies.manifests())
    frames = Frames()
    for time_us, bus, can_id, flags, payload in data.draw(strategies.traffic(manifest)):
        frames.append(time_us, bus, can_id, payload, flags=flags)
    decoder = Decoder(manifest)
    columns = decoder.decode_batch(frames)
    again = block.decode(block.encode(columns), Plan(decoder.manifest))
    by_time = [(message, sorted(times), values) for message, times, values in rows(columns)]
    assert rows(again) == [row for row in by_time if row[2]]


def drive(seed: int, jitter_us: int) -> tuple[Decoder, Columns]:
    source, frames, value = random.Random(seed), Frames(), 30_000
    for i in range(400):
        value = max(0, min(65535, value + source.randint(-900, 900)))
        data = value.to_bytes(2, "little") + (source.randint(0, 4095)).to_bytes(2, "little") + bytes(4)
        frames.append(10_000 * i + source.randint(0, jitter_us) + (5_000_000 if i > 250 else 0), 0, 1, data)
    decoder = Decoder(MANIFEST)
    return decoder, decoder.decode_batch(frames)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([0, 0.25, 0.5, 0.7, 3, 100, 1e9]),
    st.sampled_from([0, 0.05, 0.1, 1.234, 1e6]),
    st.sampled_from([(1, 0), (1000, 0), (1, 1), (1, 500), (1, 20_000)]),
    st.sampled_from([0, 300, 9000]),
)
def test_no_value_and_no_time_is_further_off_than_allowed(
    seed: int, error_a: float, error_b: float, time: tuple[int, int], jitter_us: int
) -> None:
    decoder, columns = drive(seed, jitter_us)
    tick_us, tolerance_us = time
    made = block.encode(columns, max_errors=[error_a, error_b], tick_us=tick_us, tolerance_us=tolerance_us)
    [(_, times, values)], [(_, true_times, true_values)] = (
        rows(block.decode(made, Plan(decoder.manifest))),
        rows(columns),
    )
    allowed_us = tolerance_us or tick_us / 2
    assert all(abs(a - b) <= allowed_us for a, b in zip(times, true_times, strict=True))
    for (_, got), (_, true), factor, error, signed in zip(
        values, true_values, (0.5, 0.1), (error_a, error_b), (False, True), strict=False
    ):
        for a, b in zip(got, true, strict=True):
            units = abs(int.from_bytes(a, "little", signed=signed) - int.from_bytes(b, "little", signed=signed))
            assert units * factor <= error


def changes(seed: int, count: int, source_times: str) -> tuple[Decoder, Columns]:
    """Of each signal the changes, in a group of its own; times repeat, stand still and go back."""
    source, frames, time_us = random.Random(seed), Frames(), 10**9
    steps = {"steady": (10_000, 10_001), "any": (0, 0, 1, 700, -300, 10_000, 3_000_000)}[source_times]
    for _ in range(count):
        time_us += source.choice(steps)
        a, b = source.choice([0, 0, 0, 7, 60_000]), source.randint(0, 2)
        frames.append(time_us, 0, 1, a.to_bytes(2, "little") + b.to_bytes(2, "little") + bytes(4))
    decoder = Decoder(MANIFEST)
    made = Columns(decoder.plan)
    rules = [("change", 0.0, 0, 0, 0, (), False), ("change", 0.0, 40_000, 0, 0, (), False)]
    Reducer(decoder.plan, rules).reduce(decoder.decode_batch(frames), made, time_us)
    return decoder, made


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 60), st.sampled_from(["steady", "any"]), st.sampled_from([1, 500, 10**6]))
def test_groups_that_share_rows_come_back_exactly(seed: int, count: int, times: str, tick_us: int) -> None:
    decoder, columns = changes(seed, count, times)

    def rounded(time_us: int) -> int:
        return (2 * time_us + tick_us) // (2 * tick_us) * tick_us

    again = block.decode(block.encode(columns, tick_us=tick_us), Plan(decoder.manifest))
    assert rows(again) == [(message, [rounded(t) for t in times], values) for message, times, values in rows(columns)]


def test_changes_of_a_drive_take_less_than_all_of_its_samples() -> None:
    """They did not when each change said anew whose it is, and when."""
    decoder, columns = changes(1, 4000, "steady")
    alone = [block.encode(columns, bytes([place == 0, place == 1])) for place in range(2)]
    assert len(block.encode(columns)) < 0.8 * sum(map(len, alone))
    assert decoder.plan.signal_count == 2


def test_a_bound_makes_blocks_smaller() -> None:
    _, columns = drive(1, 300)
    exact = len(block.encode(columns))
    assert len(block.encode(columns, max_errors=[50, 20], tolerance_us=1000)) < 0.55 * exact
    assert exact < len(block.encode_columns(columns))


def test_only_what_is_selected_is_in_the_block() -> None:
    decoder, columns = drive(1, 0)
    [(_, _, values)] = rows(block.decode(block.encode(columns, bytes([0, 1])), Plan(decoder.manifest)))
    assert [signal for signal, _ in values] == [1]
    assert rows(block.decode(block.encode(columns, bytes(2)), Plan(decoder.manifest))) == []


def test_a_block_of_version_1_is_still_read() -> None:
    decoder, columns = drive(3, 300)
    assert rows(block.decode(block.encode_columns(columns), Plan(decoder.manifest))) == rows(columns)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_behind_the_checksum_is_refused_or_decodes(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 3))
    decoder, columns = data.draw(st.sampled_from([drive(seed, 300), changes(seed, 200, "any")]))
    made = block.encode(columns, tolerance_us=data.draw(st.sampled_from([0, 500])))
    content = bytearray(made[block.HEAD.size :])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(8, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged: Any = block._seal(block.SIGNALS, bytes(content[: data.draw(st.integers(8, len(content)))]))
    try:
        block.decode(damaged, Plan(decoder.manifest))
    except BlockCorrupt:
        return


def test_frames_are_no_signals() -> None:
    decoder, columns = drive(1, 0)
    with pytest.raises(BlockCorrupt, match="no frames"):
        block.decode_frames(block.encode(columns), Frames())
    frames = Frames()
    frames.append(0, 0, 1, b"")
    with pytest.raises(BlockCorrupt, match="frames"):
        block.decode(block.encode_frames(frames, ("can0",), block._cold()), Plan(decoder.manifest))
