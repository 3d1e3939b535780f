"""Read recordings, batch by batch, whatever their form.

    candump  .log .log.gz .log.zst    our own reader: text straight to frame records
    others   .asc .blf .trc .mf4 .csv python-can, frame by frame (on the bench only)

A line that is no frame is counted and named; a file that is cut short gives all that is before the cut, and says so.
"""

import gzip
import itertools
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

import zstandard

from cy_core.candump import CandumpReader
from cy_core.frames import Frames
from edge.errors import InputError

if TYPE_CHECKING:
    import can

PIECE_BYTES = 256 * 1024
SKIPPED_AT_ONCE = 16384
CANDUMP = (".log", ".log.gz", ".log.zst")
PYTHON_CAN = (".asc", ".blf", ".trc", ".mf4", ".csv")


class Log(Protocol):
    """A recording that is being read."""

    path: Path
    problem: str  # why it ended early, in one line; empty where it did not

    @property
    def buses(self) -> tuple[str, ...]:
        """Names by number: those asked for first, then those found."""

    @property
    def bad_lines(self) -> int: ...

    def read(self, frames: Frames, limit: int) -> bool:
        """Append up to limit frames; False once there are no more."""

    def skip(self, frames: int) -> None:
        """Leave out the next frames."""

    @property
    def bytes_read(self) -> int:
        """Of the file, roughly: for showing progress."""

    def problems(self) -> list[str]:
        """What was wrong with it, a line each."""

    def close(self) -> None: ...


def open_log(path: Path | str, buses: Iterable[str] = ()) -> Log:
    """Open a recording by its suffix; buses get the first numbers.

    Raises InputError: no such file, or a form that is not known.
    """
    path = Path(path)
    name = path.name.lower()
    if not path.is_file():
        raise InputError(path, "no such file" if not path.exists() else "is not a file", "give a recording")
    if name.endswith(CANDUMP):
        return CandumpLog(path, buses)
    if name.endswith(PYTHON_CAN):
        return PythonCanLog(path, buses)
    raise InputError(path, "this form of log is not known", f"known are {' '.join(CANDUMP + PYTHON_CAN)}")


class CandumpLog:
    def __init__(self, path: Path, buses: Iterable[str] = ()) -> None:
        self.path = path
        self.problem = ""
        self._reader = CandumpReader(buses)
        self._raw, self._file = _open_text(path)
        self._text = b""
        self._at_end = False

    @property
    def buses(self) -> tuple[str, ...]:
        return self._reader.buses

    @property
    def bad_lines(self) -> int:
        return self._reader.bad_lines

    @property
    def bytes_read(self) -> int:
        return self._raw.tell()

    def problems(self) -> list[str]:
        named = [f"line {line}: no frame in {text!r}; left out" for line, text in self._reader.first_bad_lines]
        more = self.bad_lines - len(named)
        return named + ([f"{more} more lines with no frame"] if more else []) + ([self.problem] if self.problem else [])

    def read(self, frames: Frames, limit: int) -> bool:
        wanted = len(frames) + limit
        while len(frames) < wanted:
            done = self._reader.parse(self._text, frames, wanted - len(frames), final=self._at_end)
            self._text = self._text[done:]
            if len(frames) < wanted:
                if self._at_end:
                    return False
                self._fill()
        return True

    def skip(self, frames: int) -> None:
        scratch = Frames()
        while frames > 0 and self.read(scratch, min(frames, SKIPPED_AT_ONCE)):
            frames -= len(scratch)
            scratch.clear()

    def close(self) -> None:
        self._file.close()
        self._raw.close()

    def _fill(self) -> None:
        """Read on, or mark the end of the file."""
        try:
            piece = self._file.read(PIECE_BYTES)
        except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
            piece = b""
            self.problem = f"is cut or damaged after line {self._reader.lines} ({error}); all before that was read"
            # What is left is part of a line, not a line.
            self._text = b""
        if not piece:
            self._at_end = True
        elif b"\n" not in piece and len(self._text) > PIECE_BYTES:
            raise InputError(self.path, f"line {self._reader.lines + 1} is over {PIECE_BYTES} bytes", "is it a log?")
        self._text += piece


def _open_text(path: Path) -> tuple[IO[bytes], IO[bytes] | gzip.GzipFile]:
    """The file, and its text."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "give a recording") from error
    if path.name.lower().endswith(".gz"):
        return file, gzip.GzipFile(fileobj=file)
    if path.name.lower().endswith(".zst"):
        return file, zstandard.ZstdDecompressor().stream_reader(file, closefd=False)
    return file, file


class PythonCanLog:
    def __init__(self, path: Path, buses: Iterable[str] = ()) -> None:
        try:
            import can
        except ImportError as error:
            raise InputError(path, "reading this form needs python-can", "pip install 'bordnetz[bench]'") from error
        self.path = path
        self.problem = ""
        self.bad_lines = 0
        self._names = list(buses)
        self._reader = can.LogReader(path)
        self._messages: Iterator[can.Message] = iter(self._reader)

    @property
    def buses(self) -> tuple[str, ...]:
        return tuple(self._names)

    def read(self, frames: Frames, limit: int) -> bool:
        for message in itertools.islice(self._checked(), limit):
            self._append(message, frames)
            limit -= 1
        return limit == 0

    def skip(self, frames: int) -> None:
        for _ in itertools.islice(self._checked(), frames):
            pass

    def close(self) -> None:
        self._reader.stop()

    @property
    def bytes_read(self) -> int:
        return 0

    def problems(self) -> list[str]:
        return [self.problem] if self.problem else []

    def _checked(self) -> "Iterator[can.Message]":
        try:
            yield from self._messages
        except Exception as error:  # python-can's readers raise whatever their parsing runs into
            self.problem = f"is cut or damaged ({type(error).__name__}: {error}); all before that was read"

    def _append(self, message: "can.Message", frames: Frames) -> None:
        can_id = message.arbitration_id
        can_id |= 0x80000000 if message.is_extended_id else 0
        can_id |= 0x40000000 if message.is_remote_frame else 0
        can_id |= 0x20000000 if message.is_error_frame else 0
        flags = 0
        if message.is_fd:
            flags = 4 | (1 if message.bitrate_switch else 0) | (2 if message.error_state_indicator else 0)
        frames.append(round(message.timestamp * 1e6), self._bus(message.channel), can_id, message.data, flags=flags)

    def _bus(self, channel: object) -> int:
        name = channel if isinstance(channel, str) and not channel.isdigit() else f"can{channel or 0}"
        if name not in self._names:
            self._names.append(name)
        return min(self._names.index(name), 255)
