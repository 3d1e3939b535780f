"""Frame records from another process, over a unix stream socket: a gateway's own reader, or a bench.

    the other side listens and sends:  one line of JSON  {"format": 1, "position": 0, "buses": ["can0", "can1"]}
                                       then pieces:  frames (u32) | payload slots (u32) | records | payloads

position is how many frames there were on the buses before the first one that this connection gives. A batch costs
one system call where datagrams cost one a frame. docs/formats/frame.md has the layout.
"""

import logging
import os
import select
import socket
import struct
import time
from collections.abc import Mapping, Sequence

import msgspec

from cy_core.frames import Frames
from edge.message import Clock, Quality

log = logging.getLogger(__name__)

PIECE = struct.Struct("<II")
RECORD_BYTES = 24
SLOT_BYTES = 64
HELLO_MAX_BYTES = 64 * 1024
PIECE_MAX_FRAMES = 1 << 16
RECONNECT_S = 0.2


class Hello(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    position: int
    buses: list[str]


class Stream:
    """Connects when there is somebody to connect to, and again whenever the connection ends."""

    live = True
    unparsed_lines = 0
    overflowed = 0
    dropped: Mapping[str, int] = {}
    clock = Clock(quality=Quality.SYSTEM)

    def __init__(self, path: str, buses: Sequence[str]) -> None:
        self.name = f"stream:{path}"
        self.position = 0
        self.missing = 0
        self._path = path
        self._numbers = {name: number for number, name in enumerate(buses)}
        self._socket: socket.socket | None = None
        self._received = bytearray()
        self._buses = b""
        self._resumed = False
        self.problem = ""

    def read(self, frames: Frames, limit: int, timeout_s: float) -> bool:
        """A whole piece is taken at once, so limit may be passed by a piece of the sender's size."""
        deadline = time.monotonic() + timeout_s
        try:
            if self._socket is None and not self._connect():
                time.sleep(min(RECONNECT_S, timeout_s))
                return True
            self._take(frames, limit, deadline)
        except (OSError, ValueError, msgspec.DecodeError) as error:
            self._disconnect(str(error))
        return True

    def cursor(self) -> bytes:
        return msgspec.json.encode({"frames": self.position})

    def resume(self, cursor: bytes) -> None:
        self.position = msgspec.json.decode(cursor, type=dict[str, int])["frames"]
        self._resumed = True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> bool:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(5.0)
        try:
            _connect(connection, self._path)
        except OSError as error:
            connection.close()
            self._disconnect(str(error))
            return False
        self._socket = connection
        return self._greet()

    def _greet(self) -> bool:
        """Read the line of JSON. Raises ValueError, msgspec.DecodeError."""
        self._received.clear()
        while b"\n" not in self._received:
            if len(self._received) > HELLO_MAX_BYTES or not self._receive():
                raise ValueError("it sent no line of JSON first")
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        hello = msgspec.json.decode(line, type=Hello)
        if hello.format != 1:
            raise ValueError(f"it sends format {hello.format}, known is 1")
        self._arrive(hello)
        self.problem = ""
        return True

    def _arrive(self, hello: Hello) -> None:
        # A position below ours is a sender that was started anew: its count says nothing about what we missed.
        if self._resumed and hello.position > self.position:
            self.missing += hello.position - self.position
        self.position = hello.position
        self._resumed = True
        for name in hello.buses:
            self._numbers.setdefault(name, len(self._numbers))
        self._buses = bytes(min(self._numbers[name], 255) for name in hello.buses)

    def _take(self, frames: Frames, limit: int, deadline: float) -> None:
        """Take whole pieces until limit or deadline; return as soon as there is something and no more waiting."""
        taken = 0
        while taken < limit:
            piece = self._piece()
            if piece is not None:
                records, payloads = piece
                frames.extend(records, payloads, self._buses)
                self.position += len(records) // RECORD_BYTES
                taken += len(records) // RECORD_BYTES
                continue
            wait = 0.0 if taken else max(0.0, deadline - time.monotonic())
            if self._socket is None or not select.select([self._socket], [], [], wait)[0]:
                return
            if not self._receive():
                raise OSError("the sender closed the connection")

    def _piece(self) -> tuple[bytes, bytes] | None:
        if len(self._received) < PIECE.size:
            return None
        count, slots = PIECE.unpack_from(self._received)
        if count > PIECE_MAX_FRAMES or slots > count:
            raise ValueError(f"it sent a piece of {count} frames with {slots} payload slots")
        middle = PIECE.size + count * RECORD_BYTES
        end = middle + slots * SLOT_BYTES
        if len(self._received) < end:
            return None
        records, payloads = bytes(self._received[PIECE.size : middle]), bytes(self._received[middle:end])
        del self._received[:end]
        return records, payloads

    def _receive(self) -> bool:
        if self._socket is None:
            return False
        received = self._socket.recv(1 << 18)
        self._received += received
        return bool(received)

    def _disconnect(self, reason: str) -> None:
        self.close()
        self._received.clear()
        if reason != self.problem:
            log.warning("%s: %s; trying again", self.name, reason)
            self.problem = reason


def _connect(connection: socket.socket, path: str) -> None:
    """By way of the folder's descriptor: an address has 107 bytes at most, and bind mounts may lie deep."""
    folder, name = os.path.split(os.path.abspath(path))
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        connection.connect(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)
