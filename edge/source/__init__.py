"""Where frames come from. Each source says where it is, so that a restarted collector can go on or count the loss.

    replay:/data/drive.log.gz[?speed=1]   a recording; without speed as fast as it can be stored
    socketcan:can0,can1                   the buses of this machine
    stream:/run/bordnetz/bus.sock         frame records from another process

A position is a number of frames since the source's start. A replay can go back to one; a live source cannot: what
lies between the position that was stored last and the one it resumes at is missing, and is said to be.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

from cy_core.frames import Frames
from edge.errors import InputError
from edge.message import Clock


class Source(Protocol):
    missing: int  # frames known to be lost before position; the collector sets it to 0 once that is stored
    live: bool  # frames pass whether they are read or not; a recording waits for its first campaign

    @property
    def name(self) -> str: ...

    @property
    def position(self) -> int:
        """Of the next frame that read() gives."""

    @property
    def overflowed(self) -> int:
        """Of those missing, what the kernel dropped because nobody read."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """The same by bus, since the source was opened; empty where no kernel is between."""

    @property
    def unparsed_lines(self) -> int: ...

    @property
    def problem(self) -> str:
        """Why there are no more frames, or none now; empty where all is well."""

    @property
    def clock(self) -> Clock: ...

    def read(self, frames: Frames, limit: int, timeout_s: float) -> bool:
        """Append up to limit frames, waiting at most timeout_s for the first; False once there are no more ever.

        Raises InputError where the source cannot be read at all.
        """

    def cursor(self) -> bytes:
        """What resume() needs to go on behind the frames read so far."""

    def resume(self, cursor: bytes) -> None:
        """Go on where this cursor was taken, or count what cannot be had again as missing."""

    def close(self) -> None: ...


def open_source(address: str, buses: Sequence[str]) -> Source:
    """The source at this address (BORDNETZ_SOURCE). Raises InputError: no such kind, or it cannot be opened."""
    kind, _, rest = address.partition(":")
    if kind == "replay":
        from edge.source.replay import Replay

        place = urlsplit(rest)
        options = dict(parse_qsl(place.query))
        try:
            speed = float(options.pop("speed", 0))
        except ValueError as error:
            raise InputError(address, "speed is not a number", "for example ?speed=1 is real time") from error
        if options:
            raise InputError(address, f"unknown option {min(options)!r}", "there is ?speed=")
        return Replay(place.path, buses, speed)
    if kind == "socketcan":
        from edge.source.socketcan import SocketCan

        return SocketCan(rest.split(","), buses)
    if kind == "stream":
        from edge.source.stream import Stream

        return Stream(rest, buses)
    raise InputError(f"source {address!r}", "is of no known kind", "replay:LOG, socketcan:INTERFACE,… or stream:SOCKET")
