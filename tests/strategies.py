"""Random manifests and traffic for property tests: unaligned, overlapping, multiplexed, short, unknown, all of it."""

from typing import Any

from hypothesis import HealthCheck
from hypothesis import strategies as st

from cy_core.frames import Frames
from edge.manifest import DecoderManifest, Message, Signal

# Settings of property tests: on a busy machine all is slow, and nothing is wrong.
PATIENT: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
EXTENDED, REMOTE, ERROR = 0x80000000, 0x40000000, 0x20000000


@st.composite
def signals(draw: Any, payload_bits: int, name: str, selectors: list[tuple[int, int]]) -> Signal:
    """A field somewhere in the payload; with selectors [(index, length)] perhaps hanging on one of them."""
    is_float = draw(st.booleans()) and payload_bits >= 16
    if is_float:
        length = draw(st.sampled_from([size for size in (16, 32, 64) if size <= payload_bits]))
    else:
        length = draw(st.integers(1, min(64, payload_bits)))
    first = draw(st.integers(0, payload_bits - length))
    big_endian = draw(st.booleans())
    # first counts from the top bit of the first byte for big-endian fields, from its lowest bit for the others.
    start = 8 * (first // 8) + 7 - first % 8 if big_endian else first
    selector, selected_by = None, ()
    if selectors and draw(st.booleans()):
        selector, bits = draw(st.sampled_from(selectors))
        low = draw(st.integers(0, (1 << bits) - 1))
        selected_by = ((low, draw(st.integers(low, (1 << bits) - 1))),)
    return Signal(
        name,
        start,
        length,
        big_endian=big_endian,
        signed=draw(st.booleans()) and not is_float,
        is_float=is_float,
        factor=draw(st.sampled_from([1, 1, 2, -3, 0.1, 0.01])),
        offset=draw(st.sampled_from([0, 0, -40, 0.5])),
        labels=draw(st.dictionaries(st.integers(0, 3), st.sampled_from(["off", "on"]), max_size=2)),
        selector=selector,
        selected_by=selected_by,
    )


@st.composite
def messages(draw: Any, bus: str, number: int, longest: int = 64) -> Message:
    length = draw(st.sampled_from([size for size in (1, 2, 3, 7, 8, 12, 64) if size <= longest]))
    made: list[Signal] = []
    for index in range(draw(st.integers(0, 6))):
        selectors = [(place, s.length) for place, s in enumerate(made) if s.length <= 4 and not s.signed]
        made.append(draw(signals(8 * length, f"S{index}", selectors)))
    extended = draw(st.booleans())
    protocol = draw(st.sampled_from(["", "j1939"])) if extended else ""
    if protocol:
        made += [Signal("SOURCE", 0, 8, of_id=True), Signal("PRIORITY", 26, 3, of_id=True)]
    can_id = 0x18FE0000 + (number << 8) if extended else 0x100 + number
    return Message(bus, can_id, f"M{number}", length, extended, tuple(made), protocol=protocol)


@st.composite
def manifests(draw: Any, longest: int = 64) -> DecoderManifest:
    buses = ("can0", "can1")
    made = [
        draw(messages(bus, number, longest))
        for number, bus in enumerate(draw(st.lists(st.sampled_from(buses), min_size=1, max_size=5)))
    ]
    return DecoderManifest(buses, tuple(made))


Frame = tuple[int, int, int, int, bytes]  # time_us, bus, can_id with its flags, flags, payload


@st.composite
def traffic(draw: Any, manifest: DecoderManifest, most: int = 60) -> list[Frame]:
    """Frames of the manifest's messages, whole and short, among others that it does not know."""
    frames: list[Frame] = []
    time_us = draw(st.integers(0, 1 << 50))
    for _ in range(draw(st.integers(0, most))):
        time_us += draw(st.sampled_from([0, 1, 999, 20_000, 3_000_000]))
        kind = draw(st.integers(0, 9))
        if kind == 0:
            frames.append((time_us, draw(st.integers(0, 3)), draw(st.sampled_from([0x7FF, EXTENDED | 5])), 0, b"\x01"))
            continue
        if kind == 1:
            frames.append((time_us, 0, draw(st.sampled_from([REMOTE | 0x100, ERROR | 4])), 0, b""))
            continue
        message = draw(st.sampled_from(manifest.messages))
        size = message.length if kind > 3 else draw(st.integers(0, 64))
        repeat = draw(st.integers(1, 3))
        payload = draw(st.sampled_from([bytes(size), bytes([255] * size)]) | st.binary(min_size=size, max_size=size))
        can_id = message.id | (EXTENDED if message.extended else 0)
        if message.is_by_pgn:  # of any priority and source
            can_id = can_id & ~0x1C0000FF | draw(st.integers(0, 7)) << 26 | draw(st.integers(0, 255))
        for _ in range(repeat):
            frames.append((time_us, manifest.buses.index(message.bus), can_id, 4 if size > 8 else 0, payload))
    return frames


def batch(frames: list[Frame]) -> Frames:
    made = Frames()
    for time_us, bus, can_id, flags, payload in frames:
        made.append(time_us, bus, can_id, payload, flags=flags)
    return made
