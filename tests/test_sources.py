"""Live sources: frames from a socket, and what is said to be missing."""

import json
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cy_core.frames import Frames
from cy_core.receive import CanReceiver
from edge.errors import InputError
from edge.message import Quality
from edge.source import clock, open_source
from edge.source.stream import Stream

EXTENDED = 0x80000000


def received(datagrams: list[bytes], limit: int = 1000) -> tuple[Frames, CanReceiver, int]:
    """What a CanReceiver makes of these datagrams."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver, frames = CanReceiver(), Frames()
    with ours, theirs:
        taken = 0
        for datagram in datagrams:
            theirs.send(datagram)
            taken += receiver.receive(ours.fileno(), frames, 3, limit, utc_offset_us=0, now_us=77)
    return frames, receiver, taken


@given(st.lists(st.tuples(st.integers(0, 0x7FF), st.binary(max_size=64), st.integers(0, 3)), max_size=20))
def test_frames_from_a_raw_can_socket_keep_identifier_flags_and_payload(wanted: list[tuple[int, bytes, int]]) -> None:
    datagrams = [
        struct.pack("=IBBxx", can_id, len(data), flags) + data.ljust(64, b"\xee") for can_id, data, flags in wanted
    ]
    frames, _, taken = received(datagrams)
    assert taken == len(wanted)
    assert list(frames) == [(77, 3, can_id, 4 | flags, data) for can_id, data, flags in wanted]


def test_classic_frames_and_their_flags_are_kept() -> None:
    classic = struct.pack("=IBxxx8s", 0x123 | EXTENDED, 2, b"\x01\x02\xee\xee\xee\xee\xee\xee")
    frames, _, _ = received([classic])
    assert list(frames) == [(77, 3, 0x123 | EXTENDED, 0, b"\x01\x02")]


def test_a_datagram_that_is_no_can_frame_is_counted() -> None:
    frames, receiver, _ = received(
        [b"short", struct.pack("=IBxxx8s", 1, 9, bytes(8)), struct.pack("=IBxxx8s", 1, 8, bytes(8))]
    )
    assert len(frames) == 1
    assert receiver.odd_sizes == 2


def test_a_batch_takes_what_waits_and_never_waits_itself() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        receiver, frames = CanReceiver(), Frames()
        assert receiver.receive(ours.fileno(), frames, 0, 100, 0, 1) == 0
        for n in range(8):
            theirs.send(struct.pack("=IBxxx8s", n, 8, bytes(8)))
        assert receiver.receive(ours.fileno(), frames, 0, 5, 0, 1) == 5
        assert receiver.receive(ours.fileno(), frames, 0, 5, 0, 1) == 3
        theirs.close()
        ours.close()
        with pytest.raises(OSError):
            receiver.receive(999_999, frames, 0, 5, 0, 1)


def test_a_clock_that_jumps_while_a_frame_waits_does_not_misdate_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    hour_us = 3_600_000_000
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
        receiver, frames = CanReceiver(), Frames()
        for jump_us in (0, hour_us, -hour_us):
            theirs.send(struct.pack("=IBxxx8s", 1, 8, bytes(8)))
            offset_us = clock.utc_offset_us()
            # The offset of the second and third call is that of a clock that was set in between.
            receiver.receive(ours.fileno(), frames, 0, 5, offset_us, clock.now_us())
            receiver.receive(ours.fileno(), frames, 0, 5, offset_us, clock.now_us())
            theirs.send(struct.pack("=IBxxx8s", 1, 8, bytes(8)))
            receiver.receive(ours.fileno(), frames, 0, 5, offset_us + jump_us, clock.now_us())
    now_us = clock.now_us()
    assert len(frames) == 6
    assert all(now_us - 10_000_000 < time_us <= now_us for time_us, *_ in frames)


@given(st.lists(st.integers(0, 20)), st.lists(st.integers(0, 20)), st.lists(st.integers(0, 20)))
def test_two_buses_make_one_run_in_the_order_of_time(before: list[int], one: list[int], two: list[int]) -> None:
    frames = Frames()
    for bus, times in enumerate([before, sorted(one), sorted(two)]):
        for time_us in times:
            frames.append(time_us, bus, len(frames), bytes(64 if time_us % 2 else 3), flags=4)
    whole, first = list(frames), len(before)
    frames.merge(first, first + len(one))
    assert list(frames) == whole[:first] + sorted(whole[first:], key=lambda frame: frame[0])


def test_a_bus_that_is_not_there_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="nosuchbus0"):
        open_source("socketcan:nosuchbus0", ("can0",))


def test_the_clock_gives_utc_as_a_time_since_boot_and_an_offset() -> None:
    import time

    read = clock.read_clock()
    utc_us = clock.now_us() + read.utc_offset_us
    assert abs(utc_us - time.time() * 1e6) < 1e6
    assert read.quality in (Quality.SYSTEM, Quality.SYNCHRONISED)
    assert len(read.boot_id) in (0, 16)


class Sender:
    """The other end of a stream source."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()

    def serve(self, source: Stream, *parts: bytes) -> Frames:
        """Let the source connect, send parts, end the connection, and return what the source read."""
        frames = Frames()
        self._listener.settimeout(10)
        connect = source._connect

        def connected() -> bool:
            # The greeting has to lie there before the source, which is in this thread, reads it.
            pending = socket.socket(socket.AF_UNIX)
            pending.connect(str(self.path))
            client, _ = self._listener.accept()
            for part in parts:
                client.sendall(part)
            client.close()
            source._socket = pending
            return source._greet()

        source._connect = connected  # type: ignore[method-assign]
        try:
            source.read(frames, 1000, 0.5)
            while source._socket is not None:
                source.read(frames, 1000, 0.5)
        finally:
            source._connect = connect  # type: ignore[method-assign]
        return frames


def hello(position: int, *buses: str) -> bytes:
    return json.dumps({"format": 1, "position": position, "buses": buses}).encode() + b"\n"


def piece(*frames: tuple[int, int, int, int, bytes]) -> bytes:
    made = Frames()
    for time_us, bus, can_id, flags, data in frames:
        made.append(time_us, bus, can_id, data, flags=flags)
    records, payloads = made.to_bytes()
    return struct.pack("<II", len(records) // 24, len(payloads) // 64) + records + payloads


@pytest.fixture
def sender(tmp_path: Path) -> Sender:
    return Sender(tmp_path / "bus.sock")


def test_frames_of_a_stream_get_this_sides_bus_numbers(sender: Sender) -> None:
    source = Stream(str(sender.path), ("can0", "can1"))
    long = (2, 1, 5, 4, bytes(range(64)))
    found = sender.serve(
        source, hello(0, "can1", "can0", "can7"), piece((1, 0, 5, 0, b"a"), long), piece((3, 2, 5, 0, b""))
    )
    assert list(found) == [(1, 1, 5, 0, b"a"), (2, 0, 5, 4, bytes(range(64))), (3, 2, 5, 0, b"")]
    assert source.position == 3


def test_what_passed_while_nobody_listened_is_missing(sender: Sender) -> None:
    source = Stream(str(sender.path), ("can0",))
    sender.serve(source, hello(100, "can0"), piece((1, 0, 5, 0, b"")))
    assert (source.position, source.missing) == (101, 0)
    sender.serve(source, hello(150, "can0"), piece((1, 0, 5, 0, b"")))
    assert (source.position, source.missing) == (151, 49)
    resumed = Stream(str(sender.path), ("can0",))
    resumed.resume(source.cursor())
    sender.serve(resumed, hello(160, "can0"))
    assert resumed.missing == 9


def test_a_sender_that_begins_to_count_anew_is_no_loss(sender: Sender) -> None:
    source = Stream(str(sender.path), ("can0",))
    source.resume(b'{"frames":1000}')
    sender.serve(source, hello(3, "can0"), piece((1, 0, 5, 0, b"")))
    assert (source.position, source.missing) == (4, 0)


@pytest.mark.parametrize(
    "parts",
    [
        (b"no json\n",),
        (b'{"format": 2, "position": 0, "buses": []}\n',),
        (b"x" * 70_000,),
        (hello(0, "can0"), b"\xff" * 8),
        (hello(0, "can0"), struct.pack("<II", 1, 0) + struct.pack("<qIBBBBQ", 1, 5, 0, 65, 0, 0, 0)),
        (hello(0, "can0"), struct.pack("<II", 1, 0) + struct.pack("<qIBBBBQ", 1, 5, 9, 1, 0, 0, 0)),
        (hello(0, "can0"), piece((1, 0, 5, 0, b"x"))[:-3]),
    ],
)
def test_a_sender_that_does_not_keep_to_the_form_is_left_and_tried_again(
    sender: Sender, parts: tuple[bytes, ...]
) -> None:
    source = Stream(str(sender.path), ("can0",))
    assert len(sender.serve(source, *parts)) == 0
    assert source.problem
    assert len(sender.serve(source, hello(0, "can0"), piece((1, 0, 5, 0, b"x")))) == 1


def test_a_stream_that_nobody_serves_is_waited_for(tmp_path: Path) -> None:
    source = Stream(str(tmp_path / "none.sock"), ("can0",))
    assert source.read(Frames(), 10, 0.0)
    assert "No such file" in source.problem
