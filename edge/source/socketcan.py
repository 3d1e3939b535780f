"""The CAN buses of this machine, through raw sockets.

Needs no privilege beyond the interfaces being up (`ip link set can0 up type can bitrate 500000`), in the network
namespace of the module: in a container that is the host's, see the deployment template.
"""

import logging
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


class SocketCan:
    """A bus that is down is waited for; error frames are received and counted."""

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
        sockets = [bus.socket for bus in self._buses]
        if not select.select(sockets, [], [], timeout_s)[0]:
            return True
        self.clock = clocks.read_clock()
        for bus in self._buses:
            taken, dropped = bus.receive(frames, limit, self.clock.utc_offset_us)
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
        return ", ".join(f"{bus.interface} is down" for bus in self._buses if bus.is_down)

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
        return sum(_received_by(interface) for interface in self._interfaces)


class _Bus:
    def __init__(self, interface: str, number: int) -> None:
        self.interface = interface
        self._number = number
        self._receiver = CanReceiver()
        self._dropped = 0  # as the kernel counts, which wraps
        self.dropped = 0
        self.is_down = False
        self.socket = _open(interface)

    def receive(self, frames: Frames, limit: int, utc_offset_us: int) -> tuple[int, int]:
        """Append what waits; return how many frames, and how many the kernel dropped since the last call."""
        try:
            taken = self._receiver.receive(
                self.socket.fileno(), frames, self._number, limit, utc_offset_us, clocks.now_us()
            )
            self.is_down = False
        except OSError as error:
            taken = 0
            if not self.is_down:
                log.warning("%s: %s; waiting for it", self.interface, error.strerror)
            self.is_down = True
            time.sleep(0.1)
        dropped = (self._receiver.dropped - self._dropped) & 0xFFFFFFFF
        self._dropped = self._receiver.dropped
        self.dropped += dropped
        return taken, dropped


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


def _received_by(interface: str) -> int:
    try:
        return int(Path(f"/sys/class/net/{interface}/statistics/rx_packets").read_text())
    except (OSError, ValueError):
        return 0
