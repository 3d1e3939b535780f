"""The collector on real SocketCAN: `make socketcan` runs this in a guest (tests/uml/__main__.py).

    vcan, vxcan ──► kernel ──► edge/source/socketcan.py ──► collector, a process ──► outbox, opened here

Nothing is sent before the collector says that it collects, and everything is waited for, so a slow machine only takes
longer.
"""

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cy_core.columns import Columns
from cy_core.frames import Frames
from edge import block
from edge.database import load_databases
from edge.decoder import Decoder
from edge.doctor import STATUS_FILE
from edge.manifest import DecoderManifest, Message, Signal
from edge.message import Block
from edge.outbox import Outbox
from edge.source import clock
from edge.source.replay import Replay
from edge.source.socketcan import SocketCan
from edge.twin import Kept
from simulator import vehicle
from simulator.demo import everything

ROOT = Path(__file__).resolve().parents[2]
DRIVE = Path(os.environ["BORDNETZ_GUEST_OUT"]) / "drive.log"
PATIENCE_S = 60.0
ERROR_FRAME = 0x20000000
BRS, ESI, FD = 1, 2, 4
MANIFEST = DecoderManifest(
    ("can0", "can1"),
    (
        Message("can0", 0x100, "Motion", 8, signals=(Signal("Count", 0, 32), Signal("Low", 32, 8))),
        Message("can1", 0x200, "Cells", 64, signals=(Signal("Count", 0, 32), Signal("Last", 480, 32))),
    ),
)


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def until(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"{PATIENCE_S:.0f} s without: {what}"
        time.sleep(0.02)


class Bus:
    """The rest of the bus: sends Motion (classic) or Cells (CAN FD), counted from 0."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.sent = 0
        self._socket = socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW)
        self._socket.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_FD_FRAMES, 1)
        self._socket.bind((interface,))

    def motion(self, count: int) -> None:
        for _ in range(count):
            self.raw(0x100, struct.pack("<IB3x", self.sent, self.sent & 0xFF))
            self.sent += 1

    def cells(self, count: int, flags: int = BRS) -> None:
        for _ in range(count):
            data = struct.pack("<I56xI", self.sent, ~self.sent & 0xFFFFFFFF)
            self._socket.send(struct.pack("=IBB2x", 0x200, 64, flags) + data)
            self.sent += 1

    def raw(self, can_id: int, data: bytes) -> None:
        self._socket.send(struct.pack("=IB3x8s", can_id, len(data), data))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(autouse=True)
def buses() -> None:
    """Three buses that are up; made where the last test has left none."""
    for name in ("can0", "can1", "can2"):
        if not Path("/sys/class/net", name).exists():
            run("ip", "link", "add", name, "mtu", "72", "up", "type", "vcan")


@pytest.fixture
def can0(buses: None) -> Iterator[Bus]:
    bus = Bus("can0")
    yield bus
    bus.close()


@pytest.fixture
def can1(buses: None) -> Iterator[Bus]:
    bus = Bus("can1")
    yield bus
    bus.close()


def values(columns: Columns) -> dict[str, list[object]]:
    """Of each signal; in order of time, but one value of a selector after another."""
    found: dict[str, list[object]] = {}
    for group in columns.groups():
        message = columns.plan.manifest.messages[group.message]
        for number, letter, column in group.columns:
            name, times = f"{message.name}.{message.signals[number].name}", len(group.times)
            own = column.cast(letter).tolist()
            found.setdefault(name, []).extend(own if len(own) == times else own * times)  # one value: it is constant
    return found


class Collector:
    """The module as a process, without a network: its settings are those that were kept."""

    def __init__(self, folder: Path, source: str, manifest: DecoderManifest = MANIFEST, prefix: tuple[str, ...] = ()):
        self.folder, self.source, self.prefix = folder, source, prefix
        self.plan = Decoder(manifest).plan
        self._log = folder.parent / f"{folder.name}.log"
        if not folder.exists():
            folder.mkdir(mode=0o777)
            folder.chmod(0o777)
            manifest.save(folder.parent / "vehicle.manifest")
            settings = {"campaigns": {"all": everything(manifest)}, "durable_s": 0.2}
            (folder / "settings-collector.json").write_bytes(msgspec.json.encode(Kept(settings=settings)))
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "BORDNETZ_SOURCE": f"socketcan:{self.source}",
            "BORDNETZ_MANIFEST": str(self.folder.parent / "vehicle.manifest"),
            "BORDNETZ_OUTBOX": str(self.folder),
            "BORDNETZ_CLOUD": "mqtts://127.0.0.1:1",
            "BORDNETZ_VEHICLE": "van",
        }
        command = [*self.prefix, sys.executable, "-m", "modules.collector.main"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd="/", env=environment, stdout=log, stderr=log)
        until("a collector that collects", lambda: b"collecting all" in self.said() or self.ended())
        assert not self.ended(), self.said()
        self.outbox = Outbox(self.folder)
        return self.process

    def ended(self) -> bool:
        return self.process.poll() is not None

    def said(self) -> bytes:
        return self._log.read_bytes()

    def blocks(self) -> list[Block]:
        return [Block.decode(record.body) for record in self.outbox.peek(1 << 30, 100_000)]

    def values(self, name: str) -> list[object]:
        """Of one signal, in the order of the outbox."""
        return [
            value for stored in self.blocks() for value in values(block.decode(stored.data, self.plan)).get(name, [])
        ]

    def covered(self) -> int:
        return max((stored.coverage.end for stored in self.blocks()), default=0)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)
        self.outbox.close()


@pytest.fixture
def collectors() -> Iterator[Callable[..., Collector]]:
    """Collectors in a folder that every user may enter; killed at the end."""
    made: list[Collector] = []
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)

        def make(source: str, **options: Any) -> Collector:
            made.append(Collector(Path(place) / f"outbox-{len(made)}", source, **options))
            return made[-1]

        yield make
        for collector in made:
            if not collector.ended():
                collector.stop(signal.SIGKILL)


def read(source: SocketCan, count: int) -> Frames:
    frames = Frames()
    until(f"{count} frames", lambda: source.read(frames, 10_000, 0.1) and len(frames) >= count)
    return frames


# The source, in this process


def test_a_can_fd_frame_keeps_64_bytes_its_bit_rate_switch_and_error_state(can1: Bus) -> None:
    source = SocketCan(["can1"], ["can0", "can1"])
    for flags in (0, BRS, ESI, BRS | ESI):
        can1.cells(1, flags)
    found = list(read(source, 4))
    assert [flags for _, _, _, flags, _ in found] == [FD, FD | BRS, FD | ESI, FD | BRS | ESI]
    assert [(bus, can_id, data[:4], data[60:]) for _, bus, can_id, _, data in found] == [
        (1, 0x200, struct.pack("<I", n), struct.pack("<I", ~n & 0xFFFFFFFF)) for n in range(4)
    ]


def test_frames_carry_the_time_at_which_the_kernel_had_them(can0: Bus) -> None:
    source = SocketCan(["can0"], ["can0"])
    windows = []
    for _ in range(20):
        before = clock.now_us()
        can0.motion(1)
        windows.append((before, clock.now_us()))
        time.sleep(0.005)
    found = [time_us for time_us, *_ in read(source, 20)]
    assert all(before - 1000 <= at <= after + 1000 for at, (before, after) in zip(found, windows, strict=True))


def test_frames_of_several_buses_come_in_the_order_of_time(can0: Bus, can1: Bus) -> None:
    source = SocketCan(["can0", "can1"], ["can0", "can1"])
    for _ in range(50):
        can0.motion(1)
        can1.cells(1)
    found = list(read(source, 100))
    assert [at for at, *_ in found] == sorted(at for at, *_ in found)
    assert [bus for _, bus, *_ in found] == [0, 1] * 50


@pytest.mark.parametrize("jump_s", [-40 * 365 * 86_400, -3600, 3600, 10 * 365 * 86_400])
def test_a_clock_that_jumps_misdates_no_frame_that_waits(can0: Bus, jump_s: int) -> None:
    source = SocketCan(["can0"], ["can0"])
    can0.motion(1)
    read(source, 1)
    now = time.time()
    try:
        before = clock.now_us()
        can0.motion(3)
        time.clock_settime(time.CLOCK_REALTIME, now + jump_s)
        can0.motion(3)
        found = [at for at, *_ in read(source, 6)]
        assert all(before - 1000 <= at <= clock.now_us() for at in found)
        assert source.clock.utc_offset_us == pytest.approx((now + jump_s) * 1e6 - before, abs=5e6)
    finally:
        time.clock_settime(time.CLOCK_REALTIME, now)


def test_of_two_buses_the_one_that_is_down_is_named_until_it_is_up(can0: Bus) -> None:
    source = SocketCan(["can0", "can1"], ["can0", "can1"])
    run("ip", "link", "set", "can1", "down")
    can0.motion(3)
    read(source, 3)
    can0.motion(3)
    read(source, 3)
    assert source.problem == "can1 is down"
    run("ip", "link", "set", "can1", "up")
    assert source.problem == ""


def test_an_interface_that_is_down_at_the_start_is_waited_for(can1: Bus) -> None:
    run("ip", "link", "set", "can1", "down")
    source = SocketCan(["can1"], ["can0", "can1"])
    assert source.problem == "can1 is down"
    source.read(Frames(), 10, 0.1)
    run("ip", "link", "set", "can1", "up")
    Bus("can1").cells(2)
    assert len(read(source, 2)) == 2


# The module, as a process


def test_error_frames_are_counted_and_not_taken_for_messages(collectors: Callable[..., Collector], can0: Bus) -> None:
    collector = collectors("can0")
    can0.raw(ERROR_FRAME | 0x100, bytes(8))  # CAN_ERR_RESTARTED has the number of Motion
    can0.raw(ERROR_FRAME | 0x40, bytes(8))  # CAN_ERR_BUSOFF
    can0.motion(5)
    until("all frames", lambda: len(collector.values("Motion.Count")) == 5)
    assert sum(stored.counters.error_frames for stored in collector.blocks()) == 2
    assert sum(stored.counters.unknown_frames for stored in collector.blocks()) == 0


def test_a_collector_outlives_an_interface_that_goes_down(collectors: Callable[..., Collector], can0: Bus) -> None:
    collector = collectors("can0")
    can0.motion(10)
    until("frames before", lambda: len(collector.values("Motion.Count")) == 10)
    run("ip", "link", "set", "can0", "down")
    until("a word of it", lambda: b"can0 is down" in collector.said())
    until("its status", lambda: b"can0 is down" in (collector.folder / STATUS_FILE).read_bytes())
    run("ip", "link", "set", "can0", "up")
    Bus("can0").motion(10)
    until("frames behind", lambda: len(collector.values("Motion.Count")) == 20)
    assert collector.values("Motion.Count") == [*range(10), *range(10)]


def test_a_collector_outlives_an_interface_that_goes_away(collectors: Callable[..., Collector]) -> None:
    collector = collectors("can0")
    first = Bus("can0")
    first.motion(5)
    until("frames before", lambda: len(collector.values("Motion.Count")) == 5)
    run("ip", "link", "delete", "can0")
    until("a word of it", lambda: b"can0 is gone" in collector.said())
    run("ip", "link", "add", "can0", "mtu", "72", "up", "type", "vcan")
    until("a word of it", lambda: b"can0 is there again" in collector.said())
    second = Bus("can0")
    second.motion(5)
    until("frames behind", lambda: len(collector.values("Motion.Count")) == 10)
    assert not collector.ended()


def test_a_bus_that_is_not_there_is_an_error_of_one_line(collectors: Callable[..., Collector]) -> None:
    with pytest.raises(AssertionError, match=r"can7.*is the interface there"):
        collectors("can7")


UNPRIVILEGED = ("setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", "--no-new-privs", "--bounding-set=-all")


def test_what_the_kernel_drops_is_counted_to_the_frame(collectors: Callable[..., Collector], can0: Bus) -> None:
    collector = collectors("can0", prefix=UNPRIVILEGED)  # whose socket holds what net.core.rmem_max allows
    can0.motion(1)
    until("the first frame", lambda: len(collector.values("Motion.Count")) == 1)
    collector.process.send_signal(signal.SIGSTOP)
    can0.motion(3000)
    collector.process.send_signal(signal.SIGCONT)
    until("what was held", lambda: len(collector.values("Motion.Count")) > 100)
    can0.motion(1)  # with which the kernel says how many it has dropped
    until("the last frame", lambda: 3001 in collector.values("Motion.Count"))
    counts, blocks = collector.values("Motion.Count"), collector.blocks()
    dropped = 3002 - len(counts)
    assert counts == [*range(3001 - dropped), 3001]
    assert dropped > 1000
    assert sum(stored.coverage.missing for stored in blocks) == dropped
    assert sum(stored.counters.overflowed_frames for stored in blocks) == dropped
    assert blocks[-1].coverage.end - blocks[0].coverage.first == 3002


def test_frames_that_pass_while_the_collector_is_dead_are_missing(
    collectors: Callable[..., Collector], can0: Bus
) -> None:
    collector = collectors("can0")
    can0.motion(10)
    until("frames before", lambda: len(collector.values("Motion.Count")) == 10)
    collector.stop(signal.SIGKILL)
    can0.motion(7)
    collector.start()
    can0.motion(10)
    until("frames behind", lambda: len(collector.values("Motion.Count")) == 20)
    assert collector.values("Motion.Count") == [*range(10), *range(17, 27)]
    assert sum(stored.coverage.missing for stored in collector.blocks()) == 7


def test_a_collector_without_privileges_listens_in_a_namespace_of_its_own(
    collectors: Callable[..., Collector],
) -> None:
    run("ip", "netns", "add", "module")
    run("ip", "link", "add", "vehicle0", "mtu", "72", "up", "type", "vxcan", "peer", "name", "can0", "netns", "module")
    run("ip", "-n", "module", "link", "set", "can0", "up")
    inside = ("nsenter", "--net=/run/netns/module", *UNPRIVILEGED)  # /sys stays that of this namespace
    try:
        vehicle0 = Bus("vehicle0")
        vehicle0.motion(3)
        collector = collectors("can0", prefix=inside)
        uid = next(
            line for line in Path(f"/proc/{collector.process.pid}/status").read_text().splitlines() if "Uid" in line
        )
        assert uid.split()[1:] == ["10001"] * 4
        vehicle0.motion(10)
        until("frames before", lambda: len(collector.values("Motion.Count")) == 10)
        assert collector.covered() == 13  # it has counted those that passed before it listened
        collector.stop(signal.SIGKILL)
        vehicle0.motion(4)
        collector.start()
        vehicle0.motion(1)
        until("frames behind", lambda: len(collector.values("Motion.Count")) == 11)
        assert sum(stored.coverage.missing for stored in collector.blocks()) == 4
    finally:
        run("ip", "netns", "delete", "module")


def test_a_recording_played_at_its_own_pace_arrives_whole(collectors: Callable[..., Collector]) -> None:
    meaning = load_databases(vehicle.databases())
    recorded, wanted = Frames(), Frames()
    Replay(str(DRIVE), meaning.buses).read(recorded, 1_000_000, 0)
    source = SocketCan(meaning.buses, meaning.buses)
    collector = collectors(",".join(meaning.buses), manifest=meaning)
    start = collector.covered()
    began = time.monotonic()
    with subprocess.Popen(["canplayer", "-I", str(DRIVE)]) as player:
        found = read(source, len(recorded))
        assert player.wait(PATIENCE_S) == 0
    assert time.monotonic() - began > 0.9 * (recorded.last_time_us - recorded.first_time_us) / 1e6
    assert not source.missing
    for bus in range(len(meaning.buses)):  # between buses, reads that follow each other may overlap by a moment
        assert [frame[2:] for frame in found if frame[1] == bus] == [frame[2:] for frame in recorded if frame[1] == bus]
    until("all frames", lambda: collector.covered() - start >= len(recorded))
    collector.stop()
    with Outbox(collector.folder) as outbox:
        blocks = [Block.decode(record.body) for record in outbox.peek(1 << 30, 100_000)]
    decoder = Decoder(meaning)
    decoder.assembler().assemble(recorded, wanted)
    whole = decoder.decode_batch(recorded, assembled=wanted)
    assert sum(stored.coverage.missing for stored in blocks) == 0
    assert sum(stored.counters.samples for stored in blocks) == whole.samples()
    got: dict[str, list[object]] = {}
    for stored in blocks:
        for name, column in values(block.decode(stored.data, decoder.plan)).items():
            got.setdefault(name, []).extend(column)
    assert {name: sorted(map(repr, column)) for name, column in got.items()} == {
        name: sorted(map(repr, column)) for name, column in values(whole).items()
    }
