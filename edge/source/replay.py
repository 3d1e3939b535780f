"""A recording as a source: the same frames at any speed, and after a kill exactly from where it was stored."""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from cy_core.frames import Frames
from edge.errors import InputError
from edge.logs import open_log
from edge.message import Clock, Quality

log = logging.getLogger(__name__)

HEAD_BYTES = 1 << 16


class Replay:
    """speed: 1 is real time, 0 as fast as frames are taken. The clock is the recording's."""

    live = False
    missing = 0
    overflowed = 0
    dropped: Mapping[str, int] = {}
    problem = ""
    clock = Clock(quality=Quality.RECORDED)

    def __init__(self, path: str, buses: Sequence[str], speed: float = 0) -> None:
        self._log = open_log(path, buses)
        self._speed = speed
        self._started: tuple[float, int] | None = None
        self._waiting = Frames()
        self._finished = False
        self._lines_before = 0
        self.name = f"replay:{Path(path).name}:{_digest(Path(path))}"
        self.position = 0

    @property
    def unparsed_lines(self) -> int:
        return self._log.bad_lines - self._lines_before

    def read(self, frames: Frames, limit: int, timeout_s: float) -> bool:
        if not self._speed:
            return self._take(frames, limit)
        if not len(self._waiting) and not self._finished:
            # One at a time costs little at real time, and none is taken before its time has come.
            self._finished = not self._log.read(self._waiting, 1)
        if not len(self._waiting):
            return False
        delay = self._due() - time.monotonic()
        if delay > timeout_s:
            time.sleep(timeout_s)
            return True
        if delay > 0:
            time.sleep(delay)
        frames.extend(*self._waiting.to_bytes())
        self.position += len(self._waiting)
        self._waiting.clear()
        return True

    def cursor(self) -> bytes:
        return msgspec.json.encode({"frames": self.position, "unparsed_lines": self._log.bad_lines})

    def resume(self, cursor: bytes) -> None:
        place = msgspec.json.decode(cursor, type=dict[str, int])
        self._log.skip(place["frames"])
        self.position = place["frames"]
        self._lines_before = place["unparsed_lines"]

    def close(self) -> None:
        self._log.close()

    def _take(self, frames: Frames, limit: int) -> bool:
        before = len(frames)
        more = self._log.read(frames, limit)
        self.position += len(frames) - before
        if not more and not self._finished:
            self._finished = True
            if self._log.problem:
                self.problem = f"{Path(self._log.path).name} {self._log.problem}"
                log.warning("%s %s", self._log.path, self._log.problem)
        return more

    def _due(self) -> float:
        """When the waiting frame is due, in time.monotonic()."""
        time_us = self._waiting.first_time_us or 0
        if self._started is None:
            self._started = time.monotonic(), time_us
        start, start_us = self._started
        return start + (time_us - start_us) / 1e6 / self._speed


def _digest(path: Path) -> str:
    """Tells recordings of one name apart: eight hex digits of the size and the first 64 KiB."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        return hashlib.sha256(b"%d:" % path.stat().st_size + head).hexdigest()[:8]
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "give a recording") from error
