"""Messages in several frames: as the slow twin on broken traffic, whole on good traffic, and on real recordings."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cy_core.assemble import Assembler
from cy_core.frames import Frames
from cy_core.plan import Plan
from edge import manifest as manifests
from edge.database import load_databases
from edge.decoder import Decoder
from edge.errors import InputError
from edge.logs import open_log
from edge.manifest import DecoderManifest, Message, Signal
from tests.reference.extract import extract
from tests.reference.transport import EXTENDED, Frame, Transport
from tests.strategies import batch
from tests.test_decode import samples

DATA = Path(os.environ.get("BORDNETZ_DATA", Path(__file__).parent.parent / "../shared/data"))
without_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no recorded data at {DATA} (set BORDNETZ_DATA)")
REMOTE, ERROR = 0x40000000, 0x20000000

TAIL = (Signal("FIRST", 0, 8), Signal("LAST", 8 * 299, 8), Signal("SOURCE", 0, 8, of_id=True))
MANIFEST = DecoderManifest(
    ("truck", "boat", "car", "bmw", "logger"),
    (
        Message("truck", 0x18FEF100, "SPEED", 8, True, (Signal("V", 0, 8),), protocol="j1939"),
        Message("truck", 0x18FECA00, "FAULTS", 300, True, TAIL, protocol="j1939"),
        Message("boat", 0x09F80103, "POSITION", 8, True, (Signal("V", 0, 8),), protocol="nmea2000"),
        Message("boat", 0x0DF80503, "GNSS", 51, True, (Signal("V", 0, 8), Signal("W", 400, 8)), protocol="nmea2000"),
        Message("car", 0x7E8, "ENGINE", 62, False, (Signal("V", 0, 8), Signal("W", 400, 8)), protocol="isotp"),
        Message("car", 0x18DAF110, "GEAR", 62, True, (Signal("V", 0, 8),), protocol="isotp"),
        Message("bmw", 0x612, "BATTERY", 62, False, (Signal("V", 0, 8),), protocol="isotp-extended"),
        Message("logger", 0x7EC, "ANSWER", 62, False, (Signal("LENGTH", 0, 8),), protocol="isotp-length"),
    ),
)


def assembled(manifest: DecoderManifest, *parts: list[Frame]) -> tuple[list[Any], dict[int, tuple[int, int, int]]]:
    assembler, messages = Assembler(Plan(manifest)), Frames()
    for part in parts:
        assembler.assemble(batch(part), messages)
    return [(time_us, bus, can_id, data) for time_us, bus, can_id, _, data in messages], assembler.counters()


# --- how the protocols send a payload: (bus, can_id, data) of each frame


def as_bam(payload: bytes, source: int, destination: int = 0xFF, group: int = 0xFECA) -> list[tuple[int, int, bytes]]:
    packets = -(-len(payload) // 7)
    head = bytes([32 if destination == 0xFF else 16]) + len(payload).to_bytes(2, "little") + bytes([packets, 0xFF])
    frames = [(0, EXTENDED | 0x1CEC0000 | destination << 8 | source, head + group.to_bytes(3, "little"))]
    for number in range(packets):
        part = payload[7 * number : 7 * number + 7].ljust(7, b"\xff")
        frames.append((0, EXTENDED | 0x1CEB0000 | destination << 8 | source, bytes([number + 1]) + part))
    return frames


def as_fast_packet(payload: bytes, source: int, sequence: int) -> list[tuple[int, int, bytes]]:
    can_id, first = EXTENDED | 0x0DF80500 | source, bytes([sequence << 5, len(payload)]) + payload[:6]
    rest = [payload[at : at + 7] for at in range(6, len(payload), 7)]
    parts = [first, *(bytes([sequence << 5 | number]) + part for number, part in enumerate(rest, 1))]
    return [(1, can_id, part.ljust(8, b"\xff")) for part in parts]


def as_isotp(
    payload: bytes, bus: int, can_id: int, width: int = 8, address: bytes = b""
) -> list[tuple[int, int, bytes]]:
    room = width - len(address)
    if len(payload) < min(room, 8 - len(address)):
        return [(bus, can_id, address + bytes([len(payload)]) + payload)]
    if len(payload) <= room - 2:
        return [(bus, can_id, (address + bytes([0, len(payload)]) + payload).ljust(width, b"\xcc"))]
    frames = [address + (0x1000 | len(payload)).to_bytes(2, "big") + payload[: room - 2]]
    rest = payload[room - 2 :]
    for number, at in enumerate(range(0, len(rest), room - 1), 1):
        frames.append(address + bytes([0x20 | number % 16]) + rest[at : at + room - 1])
    return [(bus, can_id, frame) for frame in frames]


Sent = tuple[list[tuple[int, int, bytes]], tuple[int, int, bytes]]  # its frames, and what should come of them


@st.composite
def messages(draw: st.DrawFn) -> Sent:
    kind = draw(st.integers(0, 5))
    payload = draw(st.binary(min_size=9, max_size=60) | st.binary(min_size=200, max_size=223))
    source = draw(st.integers(0, 3))
    if kind == 0:
        return as_bam(payload, source), (0, EXTENDED | 0x1CFECA00 | source, payload)
    if kind == 1:
        can_id = EXTENDED | 0x1CEF0500 | source
        return as_bam(payload, source, 5, 0xEF00), (0, can_id, payload)
    if kind == 2:
        return as_fast_packet(payload, source, draw(st.integers(0, 7))), (1, EXTENDED | 0x0DF80500 | source, payload)
    if kind == 3:
        can_id, width = draw(st.sampled_from([0x7E8, EXTENDED | 0x18DAF110])), draw(st.sampled_from([8, 12, 64]))
        return as_isotp(payload, 2, can_id, width), (2, can_id, payload)
    if kind == 4:
        return as_isotp(payload, 3, 0x612, address=bytes([source])), (3, 0x612, payload)
    return as_isotp(payload, 4, 0x7EC), (4, 0x7EC, bytes([len(payload)]) + payload)


def frame(time_us: int, bus: int, can_id: int, data: bytes) -> Frame:
    return time_us, bus, can_id, 4 if len(data) > 8 else 0, data


@st.composite
def broken_traffic(draw: st.DrawFn) -> list[Frame]:
    """Sessions that interleave, with frames lost, repeated, cut, changed and late, and control frames among them."""
    waiting = [list(frames) for frames, _ in draw(st.lists(messages(), min_size=1, max_size=6))]
    found: list[Frame] = []
    time_us = 0
    while waiting and len(found) < 200:
        sending = draw(st.sampled_from(waiting))
        bus, can_id, data = sending.pop(0)
        waiting = [frames for frames in waiting if frames]
        time_us += draw(
            st.sampled_from([0, 50, 50_000, 50_000, 700_000, 1_100_000]) if draw(st.booleans()) else st.just(99)
        )
        what = draw(st.integers(0, 40))
        if what == 1:
            data = data[: draw(st.integers(0, len(data)))]
        elif what == 2:
            place = draw(st.integers(0, len(data) - 1))
            data = data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
        elif what == 3:
            can_id |= draw(st.sampled_from([REMOTE, ERROR, EXTENDED]))
        elif what == 4:
            control = bytes([draw(st.sampled_from([17, 19, 255])), 2, draw(st.integers(0, 5)), 255, 255, 0, 0xEF, 0])
            found.append(frame(time_us, 0, EXTENDED | 0x1CEC0005 | draw(st.integers(0, 3)) << 8, control))
        if what != 5:
            found.append(frame(time_us, bus, can_id, b"" if can_id & REMOTE else data))
        if what == 6:
            found.append(found[-1])
    return found


@given(broken_traffic(), st.data())
@settings(max_examples=400, deadline=None)
def test_broken_traffic_gives_what_the_slow_twin_gives_wherever_it_is_split(
    traffic: list[Frame], data: st.DataObject
) -> None:
    twin = Transport(MANIFEST)
    twin.feed(traffic)
    at = data.draw(st.integers(0, len(traffic)))
    found, counters = assembled(MANIFEST, traffic[:at], traffic[at:])
    assert found == twin.messages
    half = Assembler(Plan(MANIFEST))
    half.assemble(batch(traffic[:at]), first := Frames())
    other = Assembler(Plan(MANIFEST))  # as after a restart
    other.restore(half.save())
    other.assemble(batch(traffic[at:]), rest := Frames())
    assert [(f[0], f[1], f[2], f[4]) for f in (*first, *rest)] == twin.messages
    buses = set(twin.assembled) | set(twin.failed) | set(twin.stray)
    assert counters == {bus: (twin.assembled[bus], twin.failed[bus], twin.stray[bus]) for bus in buses}


@given(broken_traffic(), st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_sessions_are_refused_or_go_on_and_never_reach_beyond_their_memory(
    traffic: list[Frame], data: st.DataObject
) -> None:
    assembler = Assembler(Plan(MANIFEST))
    assembler.assemble(batch(traffic[:-1]), Frames())
    saved = bytearray(assembler.save() + bytes(1))[:-1]
    for _ in range(data.draw(st.integers(1, 4)) if saved else 0):
        saved[data.draw(st.integers(0, len(saved) - 1))] = data.draw(st.integers(0, 255))
    try:
        assembler.restore(bytes(saved[: data.draw(st.integers(0, len(saved)))]))
    except ValueError as error:
        if "damaged at byte" not in str(error):
            raise
    assembler.assemble(batch(traffic), Frames())
    with pytest.raises(ValueError, match="damaged at byte 0"):
        assembler.restore(b"\x01" * 7)
    assert assembler.save() == b""


@given(st.lists(messages(), min_size=1, max_size=8), st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_is_sent_comes_whole_and_at_the_time_of_its_last_frame(sent: list[Sent], data: st.DataObject) -> None:
    by_session: dict[tuple[int, int, int], list[Sent]] = {}
    for frames, message in sent:  # those of one session one after the other
        bus, can_id, first = frames[0]
        by_session.setdefault(
            (bus, can_id & 0xFFFF00FF if bus == 0 else can_id, first[0] if bus in (1, 3) else 0), []
        ).append((frames, message))
    queues = [[f for frames, _ in session for f in frames] for session in by_session.values()]
    traffic: list[Frame] = []
    while any(queues):
        queue = data.draw(st.sampled_from([queue for queue in queues if queue]))
        traffic.append(frame(len(traffic), *queue.pop(0)))
    found, counters = assembled(MANIFEST, traffic)
    assert sorted(message[1:] for message in found) == sorted(message for _, message in sent)
    assert not any(failed or stray for _, failed, stray in counters.values())
    by_time = {time_us: can_id for time_us, _, can_id, _, _ in traffic}
    assert all(time_us in by_time for time_us, *_ in found)


def test_a_receiver_that_asks_again_gets_the_message_whole() -> None:
    payload = bytes(range(40))
    control, *packets = as_bam(payload, 3, 5, 0xEF00)
    again = (0, EXTENDED | 0x1CEC0305, bytes([17, 4, 3, 255, 255, 0, 0xEF, 0]))
    sent = [control, *packets[:5], again, *packets[2:]]
    found, counters = assembled(MANIFEST, [frame(n, *each) for n, each in enumerate(sent)])
    assert [data for *_, data in found] == [payload]
    assert counters == {0: (1, 0, 0)}


def test_the_number_of_open_sessions_is_bounded_and_those_given_up_are_counted() -> None:
    starts = [frame(n, *as_bam(bytes(20), n % 250, n // 250)[0]) for n in range(1000)]
    _, counters = assembled(MANIFEST, starts)
    assert counters == {0: (0, 1000 - 64, 0)}


def test_messages_in_segments_are_decoded_to_their_last_byte_beside_single_frames() -> None:
    payload = bytes(range(150)) * 2
    single = frame(9, 0, EXTENDED | 0x0CFEF121, b"\x07" + bytes(7))
    traffic = [frame(n, *each) for n, each in enumerate(as_bam(payload, 0x21))] + [
        single,
        frame(10, 2, 0x7E8, b"\x30\0\0"),
    ]
    decoder, whole = Decoder(MANIFEST), Frames()
    decoder.assembler().assemble(batch(traffic), whole)
    columns = decoder.decode_batch(batch(traffic), None, whole)
    last_us = traffic[-3][0]
    assert samples(columns, MANIFEST) == {
        (9, "SPEED", "V", 7): 1,
        **{(last_us, "FAULTS", name, raw): 1 for name, raw in extract(MANIFEST.messages[1], payload, 0x21).items()},
    }
    assert (columns.segment_frames, columns.unknown_frames, columns.assembled_messages) == (len(traffic) - 1, 0, 1)
    assert decoder.decode("truck", 0x1CFECA21, payload, extended=True) == {
        "FAULTS.FIRST": 0,
        "FAULTS.LAST": 149,
        "FAULTS.SOURCE": 0x21,
    }


@pytest.mark.parametrize("can_id", [0x18FEF121, 0x0CFEF1FE, 0x00FEF100])
def test_a_parameter_group_is_found_whatever_its_priority_and_source(can_id: int) -> None:
    decoder = Decoder(MANIFEST)
    assert decoder.decode("truck", can_id, b"\x05" + bytes(7), extended=True)["SPEED.V"] == 5
    assert decoder.decode("truck", can_id & 0x7FF, b"\x05" + bytes(7)) == {}
    for flags in (0, REMOTE | EXTENDED, ERROR | EXTENDED, REMOTE, ERROR):
        columns = decoder.decode_batch(batch([(0, 0, can_id & 0x1FFFFFFF | flags, 0, b"")]))
        assert columns.samples() == 0


def test_raw_values_that_say_there_is_none() -> None:
    message = MANIFEST.messages[0]
    byte, bits, word = Signal("A", 0, 8), Signal("B", 0, 2), Signal("C", 0, 16)
    assert manifests.no_values(message, byte) == ((255, 255, "not available"), (254, 254, "error"))
    assert manifests.no_values(message, bits) == ((3, 3, "not available"), (2, 2, "error"))
    assert manifests.no_values(message, word) == ((0xFF00, 0xFFFF, "not available"), (0xFE00, 0xFEFF, "error"))
    assert manifests.no_values(message, Signal("D", 0, 8, of_id=True)) == ()
    assert manifests.no_values(Message("car", 1, "M", 8), byte._replace(invalid=9)) == ((9, 9, "invalid"),)
    boat = MANIFEST.messages[2]
    assert manifests.no_values(boat, word._replace(signed=True)) == (
        (0x7FFF, 0x7FFF, "not available"),
        (0x7FFE, 0x7FFE, "error"),
    )


# --- real recordings


def frames_of(path: Path, manifest: DecoderManifest) -> Frames:
    log, found = open_log(path, manifest.buses), Frames()
    while log.read(found, 100_000):
        pass
    return found


UDS = {"hyundai-ev": "tp_uds.dbc", "nissan-leaf": "tp_uds_nissan.dbc", "kia-ev-1": "tp_uds.dbc"}  # log: its database


@without_data
def test_there_is_a_test_for_every_recording_with_messages_in_segments() -> None:
    with gzip.open(DATA / "uds_isotp_ev" / "isotp.jsonl.gz", "rt") as file:
        assert {json.loads(line)["log"] for line in file} == {f"{log}.log" for log in UDS}
    assert [path.parent.name for path in DATA.glob("*/isotp.jsonl.gz")] == ["uds_isotp_ev"]


@without_data
@pytest.mark.parametrize("log", UDS)
def test_requests_and_answers_are_put_together_and_decoded_as_in_the_reference_and_no_others(log: str) -> None:
    folder = DATA / "uds_isotp_ev"
    with gzip.open(folder / "isotp.jsonl.gz", "rt") as file:
        wanted = [line for line in map(json.loads, file) if line["log"] == f"{log}.log"]
    known = load_databases({"can1": [folder / UDS[log]]}, {"can1": "isotp-length"})
    others = {int(line["id"], 16) for line in wanted} - {message.id for message in known.messages}
    plain = tuple(Message("can1", can_id, f"ID_{can_id:X}", 4095, protocol="isotp") for can_id in sorted(others))
    manifest = DecoderManifest(("can1",), (*known.messages, *plain))
    decoder, whole = Decoder(manifest), Frames()
    assembler = decoder.assembler()
    assembler.assemble(frames_of(folder / f"{log}.log.gz", manifest), whole)
    found = {(time_us, can_id): data for time_us, bus, can_id, _, data in whole if bus == 0}
    lengths = {message.id for message in known.messages}  # their payload begins with it
    for line in wanted:
        can_id, payload = int(line["id"], 16), bytes.fromhex(line["payload"])
        data = found.pop((line["timestamp_us_last_frame"], can_id))
        assert data == (bytes([len(payload) & 0xFF]) if can_id in lengths else b"") + payload
        values, raws = decoder.decode("can1", can_id, data), decoder.decode("can1", can_id, data, raw=True)
        for name, (raw, value) in line.get("signals", {}).items():
            assert (raws[f"{line['message']}.{name}"], values[f"{line['message']}.{name}"]) == (raw, value)
    assert found == {}
    assert assembler.counters()[0][0] == len(wanted)


@without_data
def test_broadcasts_of_a_tractor_are_put_together_without_a_loss() -> None:
    folder = DATA / "j1939_truck_idle"
    manifest = load_databases({"can1": [folder / "j1939_common.dbc"]})
    frames, whole = frames_of(folder / "tractor.log.gz", manifest), Frames()
    assembler = Decoder(manifest).assembler()
    assembler.assemble(frames, whole)
    announced = [f for f in frames if f[1] == 0 and f[2] >> 16 & 0xFF == 0xEC and f[4][0] == 32]
    found = [(can_id, len(data)) for _, _, can_id, _, data in whole]
    assert len(announced) == 16
    # Engine configuration, and once the vehicle identification.
    assert {can_id for can_id, _ in found} == {0x9CFEE300, 0x9CFEEC00}
    assert [announcement[4][1] for announcement in announced] == [length for _, length in found]
    assert assembler.counters() == {0: (16, 0, 0)}


def test_protocols_are_named_by_bus_and_refused_where_they_mean_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.dbc"
    path.write_text('VERSION ""\n\nBS_:\n\nBU_:\n\nBO_ 2566844672 M: 8 ECU\n SG_ V : 0|8@1+ (1,0) [0|0] "" ECU\n\n')
    (message,) = load_databases({"can0": [path]}, {"can0": "j1939"}).messages
    assert (message.protocol, [signal.name for signal in message.signals]) == ("j1939", ["V", "SourceAddress"])
    (plain,) = load_databases({"can0": [path]}).messages
    assert (plain.protocol, len(plain.signals)) == ("", 1)
    with pytest.raises(InputError, match="is not known"):
        load_databases({"can0": [path]}, {"can0": "flexray"})
    with pytest.raises(InputError, match="no such bus"):
        load_databases({"can0": [path]}, {"can1": "j1939"})
