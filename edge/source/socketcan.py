"""The CAN buses of this machine, through raw sockets.

Needs no privilege beyond the interfaces being up (`ip link set can0 up type can bitrate 500000`), in the network
namespace of the module: in a container that is the host's, see the deployment template.
"""

import fcntl
import logging
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cy_core.frames import Frames
from cy_core.receive import CanReceiver
from edge.errors import InputError
from edge.message import Clock
from edge.source import clock as clocks

log = logging.getLogger(__name__)

RECEIVE_BUFFER_BYTES = 8 << 20  # the default holds some 300 frames
SO_TIMESTAMPNS = 35
SO_RXQ_OVFL = 40
CAN_RAW_ERR_FILTER = 2
CAN_ERROR_MASK = 0x1FFFFFFF
SIOCGIFFLAGS, IFF_UP = 0x8913, 1
RETRY_S = 0.1
RX_PACKETS = 1  # of the numbers behind an interface's name in /proc/net/dev


class SocketCan:
    """A bus that is down or gone is waited for; error frames are received and counted.

    What one read() gives is in the order of time. Frames that this machine sends, and error frames, count among those
    that passed during a restart only where the driver counts them as received.
    """

    live = True
    unparsed_lines = 0

    def __init__(self, interfaces: Sequence[str], buses: Sequence[str]) -> None:
        self.name = f"socketcan:{','.join(interfaces)}"
        self.missing = 0
        self.clock: Clock = clocks.read_clock()
        numbers = {name: number for number, name in enumerate(buses)}
        for interface in interfaces:
            numbers.setdefault(interface, len(numbers))
        self._interfaces = tuple(interfaces)
        self._buses = [_Bus(interface, numbers[interface]) for interface in interfaces]
        self.position = self._frames_on_the_buses()

    def read(self, frames: Frames, limit: int, timeout_s: float) -> bool:
        for bus in self._buses:
            bus.look()
        sockets = [bus.socket for bus in self._buses]
        if not select.select(sockets, [], [], timeout_s)[0]:
            return True
        self.clock = clocks.read_clock()
        first = len(frames)
        for bus in self._buses:
            behind = len(frames)
            taken, dropped = bus.receive(frames, limit, self.clock.utc_offset_us)
            frames.merge(first, behind)
            self.position += taken + dropped
            self.missing += dropped
        return True

    @property
    def dropped(self) -> dict[str, int]:
        return {bus.interface: bus.dropped for bus in self._buses}

    @property
    def overflowed(self) -> int:
        return sum(bus.dropped for bus in self._buses)

    @property
    def problem(self) -> str:
        return ", ".join(f"{bus.interface} is {state}" for bus in self._buses if (state := _state(bus.interface)))

    def cursor(self) -> bytes:
        return msgspec.json.encode({"frames": self.position, "boot_id": clocks.boot_id().hex()})

    def resume(self, cursor: bytes) -> None:
        """The interfaces count on while nobody listens, but not across a boot."""
        place = msgspec.json.decode(cursor)
        if place["boot_id"] == clocks.boot_id().hex():
            self.missing += max(0, self.position - place["frames"])

    def close(self) -> None:
        for bus in self._buses:
            bus.socket.close()

    def _frames_on_the_buses(self) -> int:
        return sum(count for interface, count in _received() if interface in self._interfaces)


class _Bus:
    def __init__(self, interface: str, number: int) -> None:
        self.interface = interface
        self._number = number
        self._receiver = CanReceiver()
        self._dropped = 0  # as the kernel counts, which wraps
        self.dropped = 0
        self._lost = ""  # down or gone
        self._look_at = 0.0
        self.socket = _open(interface)

    def receive(self, frames: Frames, limit: int, utc_offset_us: int) -> tuple[int, int]:
        """Append what waits; return how many frames, and how many the kernel dropped since the last call."""
        try:
            taken = self._receiver.receive(
                self.socket.fileno(), frames, self._number, limit, utc_offset_us, clocks.now_us()
            )
        except OSError as error:  # said once by the kernel: ENETDOWN, ENODEV
            taken = 0
            lost = _state(self.interface)
            if lost != self._lost or not lost:
                log.warning("%s is %s: %s; waiting for it", self.interface, lost or "up", os.strerror(error.errno or 0))
                time.sleep(0 if lost else RETRY_S)
            self._lost = self._lost if self._lost == "gone" else lost
        dropped = (self._receiver.dropped - self._dropped) & 0xFFFFFFFF
        self._dropped = self._receiver.dropped
        self.dropped += dropped
        return taken, dropped

    def look(self) -> None:
        """Whether a bus that was lost is there again: its socket goes on after `down`, and never after `gone`."""
        if not self._lost or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + RETRY_S
        state = _state(self.interface)
        if state == "gone":
            self._lost = state
        elif self._lost == "gone":
            try:
                fresh = _open(self.interface)
            except InputError as error:
                log.debug("%s", error)
                return
            self.socket.close()
            self.socket, self._receiver, self._dropped = fresh, CanReceiver(), 0
            log.info("%s is there again", self.interface)
            self._lost = state
        elif not state:
            log.info("%s is up again", self.interface)
            self._lost = ""


def _open(interface: str) -> socket.socket:
    try:
        bus = socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW)
    except OSError as error:
        raise InputError(
            f"source socketcan:{interface}", f"this kernel has no CAN ({error.strerror})", "load can-raw"
        ) from error
    try:
        for option in (33, socket.SO_RCVBUF):  # SO_RCVBUFFORCE where we may, else up to net.core.rmem_max
            try:
                bus.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER_BYTES)
                break
            except PermissionError:
                continue
        bus.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        bus.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        bus.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_FD_FRAMES, 1)
        bus.setsockopt(socket.SOL_CAN_RAW, CAN_RAW_ERR_FILTER, struct.pack("=I", CAN_ERROR_MASK))
        bus.bind((interface,))
    except OSError as error:
        bus.close()
        raise InputError(
            f"source socketcan:{interface}",
            f"cannot be opened ({error.strerror})",
            "is the interface there, and is the module on the host network?",
        ) from error
    return bus


def _state(interface: str) -> str:
    """Nothing where it is up; else down or gone: netdevice(7), in the network namespace of this process."""
    request = struct.pack("16sH14x", interface.encode()[:15], 0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, SIOCGIFFLAGS, request)
        except OSError:
            return "gone"
    return "" if struct.unpack_from("H", answer, 16)[0] & IFF_UP else "down"


def _received() -> list[tuple[str, int]]:
    """How many frames each interface has received. Not from /sys, which may be that of another network namespace."""
    try:
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
        rows = [line.partition(":") for line in lines]
        return [(name.strip(), int(numbers.split()[RX_PACKETS])) for name, _, numbers in rows]
    except (OSError, ValueError, IndexError):
        return []
