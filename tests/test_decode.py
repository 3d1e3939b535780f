"""The decode kernels against their slow twin, on whatever Hypothesis draws, and wherever a batch is split."""

import math
import struct
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cy_core.columns import Columns
from cy_core.decode import BatchDecoder
from cy_core.plan import Plan
from edge.decoder import Decoder
from edge.errors import InputError
from edge.manifest import DecoderManifest, Message, Signal
from tests import strategies
from tests.reference.extract import extract, message_of

NAN = "NaN"


def key(raw: int | float) -> int | float | str:
    """The value, in a form in which NaN is equal to NaN."""
    return NAN if isinstance(raw, float) and math.isnan(raw) else raw


def samples(columns: Columns, manifest: DecoderManifest) -> Counter[tuple[int, str, str, object]]:
    """Every sample of columns as (time, message, signal, raw)."""
    found: Counter[tuple[int, str, str, object]] = Counter()
    for group in columns.groups():
        message = manifest.messages[group.message]
        for index, letter, data in group.columns:
            signal = message.signals[index]
            values = [raw for (raw,) in struct.iter_unpack(f"<{letter}", data)]
            values *= len(group.times) if len(values) == 1 else 1
            assert len(values) == len(group.times)
            found.update(
                (time, message.name, signal.name, key(value)) for time, value in zip(group.times, values, strict=True)
            )
    return found


def expected(frames: list[strategies.Frame], manifest: DecoderManifest) -> Counter[tuple[int, str, str, object]]:
    found: Counter[tuple[int, str, str, object]] = Counter()
    for time_us, bus, can_id, _, payload in frames:
        if message := message_of(bus, can_id, manifest):
            for name, raw in extract(message, payload, can_id & 0x1FFFFFFF).items():
                found[time_us, message.name, name, key(raw)] += 1
    return found


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_batch_decodes_to_what_the_slow_twin_extracts_frame_by_frame(data: st.DataObject) -> None:
    manifest = data.draw(strategies.manifests())
    frames = data.draw(strategies.traffic(manifest))
    assert samples(Decoder(manifest).decode_batch(strategies.batch(frames)), manifest) == expected(frames, manifest)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_columns_can_be_used_again_and_a_batch_may_be_split_anywhere(data: st.DataObject) -> None:
    manifest = data.draw(strategies.manifests())
    frames = data.draw(strategies.traffic(manifest))
    at = data.draw(st.integers(0, len(frames)))
    decoder = Decoder(manifest)
    columns = Columns(decoder.plan)
    found: Counter[tuple[int, str, str, object]] = Counter()
    for part in (frames[:at], frames[at:]):
        found += samples(decoder.decode_batch(strategies.batch(part), columns), manifest)
    assert found == expected(frames, manifest)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_one_frame_decodes_to_labels_and_physical_values(data: st.DataObject) -> None:
    manifest = data.draw(strategies.manifests())
    decoder = Decoder(manifest)
    for _, bus, can_id, _, payload in data.draw(strategies.traffic(manifest, most=15)):
        if bus > 1 or can_id & (strategies.REMOTE | strategies.ERROR):
            continue
        extended, own_id = bool(can_id & strategies.EXTENDED), can_id & 0x1FFFFFFF
        place = decoder.plan.find_message(bus, can_id)
        raw = decoder.decode(manifest.buses[bus], own_id, payload, extended=extended, raw=True)
        physical = decoder.decode(manifest.buses[bus], own_id, payload, extended=extended)
        if place is None:
            assert raw == physical == {}
            continue
        message = manifest.messages[place]
        assert message == message_of(bus, can_id, manifest)
        truth = extract(message, payload, own_id)
        assert list(physical) == [f"{message.name}.{s.name}" for s in message.signals if s.name in truth]
        for signal in message.signals:
            if signal.name in truth:
                name = f"{message.name}.{signal.name}"
                assert key(raw[name]) == key(truth[signal.name])
                assert_same(physical[name], physical_value(signal, truth[signal.name]))


def physical_value(signal: Signal, raw: int | float) -> int | float | str:
    if not signal.is_float and raw in signal.labels:
        return signal.labels[int(raw)]
    if (signal.factor, signal.offset) == (1, 0):
        return raw
    if not signal.is_float and isinstance(signal.factor, int) and isinstance(signal.offset, int):
        return raw * signal.factor + signal.offset
    return float(raw) * signal.factor + signal.offset  # in double precision throughout


def assert_same(found: object, wanted: object) -> None:
    if isinstance(wanted, float) and math.isnan(wanted):
        assert isinstance(found, float)
        assert math.isnan(found)
    else:
        assert found == wanted
        assert type(found) is type(wanted)


def test_every_frame_is_counted_as_what_it_is() -> None:
    manifest = DecoderManifest(
        ("can0",), (Message("can0", 1, "M", 8, signals=(Signal("A", 0, 8), Signal("B", 56, 8))),)
    )
    frames = strategies.batch(
        [
            (1, 0, 1, 0, bytes(8)),
            (2, 0, 1, 0, b"\x07"),  # A is there, B is not
            (3, 0, 2, 0, b""),  # no such message
            (4, 7, 1, 0, bytes(8)),  # no such bus
            (5, 0, 1 | strategies.REMOTE, 0, b""),
            (6, 0, 4 | strategies.ERROR, 0, bytes(8)),
        ]
    )
    columns = Decoder(manifest).decode_batch(frames)
    counted = (
        columns.frames,
        columns.unknown_frames,
        columns.short_frames,
        columns.remote_frames,
        columns.error_frames,
    )
    assert counted == (6, 2, 1, 1, 1)
    assert samples(columns, manifest) == Counter({(1, "M", "A", 0): 1, (1, "M", "B", 0): 1, (2, "M", "A", 7): 1})
    assert columns.samples() == 3
    assert columns.samples(b"\x01\x00") == 2


def test_a_whole_log_in_one_buffer_keeps_every_sample() -> None:
    manifest = DecoderManifest(("can0",), (Message("can0", 1, "M", 8, signals=(Signal("A", 0, 17),)),))
    frames = [(n, 0, 1, 0, n.to_bytes(8, "little")) for n in range(40_000)]
    assert samples(Decoder(manifest).decode_batch(strategies.batch(frames)), manifest) == expected(frames, manifest)


def test_columns_that_are_being_looked_at_are_not_overwritten() -> None:
    manifest = DecoderManifest(("can0",), (Message("can0", 1, "M", 8, signals=(Signal("A", 0, 8),)),))
    decoder = Decoder(manifest)
    columns = decoder.decode_batch(strategies.batch([(1, 0, 1, 0, bytes(8))]))
    group = next(columns.groups())
    with pytest.raises(ValueError, match="looked at"):
        decoder.decode_batch(strategies.batch([]), columns)
    assert group.times.tolist() == [1]


def test_columns_of_another_manifest_are_refused() -> None:
    manifest = DecoderManifest(("can0",), ())
    with pytest.raises(ValueError, match="another plan"):
        BatchDecoder(Plan(manifest)).decode_batch(strategies.batch([]), Columns(Plan(manifest)))


@pytest.mark.parametrize(
    "signal",
    [Signal("A", 0, 65), Signal("A", 0, 0), Signal("A", -1, 4), Signal("A", 0, 20, is_float=True)],
)
def test_a_field_that_no_frame_could_hold_is_refused_by_name(signal: Signal) -> None:
    with pytest.raises(InputError, match=r"M\.A"):
        Decoder(DecoderManifest(("can0",), (Message("can0", 1, "M", 8, signals=(signal,)),)))


def test_selectors_in_a_ring_are_refused() -> None:
    ring = (Signal("A", 0, 4, selector=1, selected_by=((0, 0),)), Signal("B", 4, 4, selector=0, selected_by=((0, 0),)))
    with pytest.raises(InputError, match="ring"):
        Decoder(DecoderManifest(("can0",), (Message("can0", 1, "M", 8, signals=ring),)))


def test_a_64_bit_integer_stays_exact() -> None:
    signal = Signal("A", 0, 64, factor=3, offset=-1)
    decoder = Decoder(DecoderManifest(("can0",), (Message("can0", 1, "M", 8, signals=(signal,)),)))
    assert decoder.decode("can0", 1, bytes([255] * 8)) == {"M.A": 3 * (2**64 - 1) - 1}


def test_more_sets_of_signals_than_are_remembered_decode_all_the_same() -> None:
    switches = tuple(Signal(f"SWITCH_{n}", n, 1) for n in range(13))
    switched = tuple(Signal(f"VALUE_{n}", 16 + n, 9, selector=n, selected_by=((1, 1),)) for n in range(13))
    manifest = DecoderManifest(("can0",), (Message("can0", 1, "M", 8, signals=switches + switched),))
    frames = [(n, 0, 1, 0, (n * 0x9E3779B9 << 16 | n).to_bytes(8, "little")) for n in range(4_500)]
    decoder = Decoder(manifest)
    columns = Columns(decoder.plan)
    for part in (frames, frames[:50], frames[-50:]):
        assert samples(decoder.decode_batch(strategies.batch(part), columns), manifest) == expected(part, manifest)
        assert len(list(columns.groups())) == len(part)
