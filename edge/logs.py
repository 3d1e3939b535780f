"""Read recordings, batch by batch, whatever their form.

    text     .log .csv .txt, also .gz, .zst    our own readers, straight to frame records: candump, csv of python-can,
                                               SavvyCAN's CRTD, GVRET, BUSMASTER and Microchip; told by how they begin
    others   .asc .blf .trc .mf4               python-can, frame by frame (on the bench only)

A line that is no frame is counted and named; a file that is cut short gives all that is before the cut, and says so.
"""

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any, Protocol

from cy_core import text_logs
from cy_core.candump import CandumpReader
from cy_core.frames import Frames
from cy_core.line_reader import LineReader
from edge.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path  # not at run time: it takes longer to import than a minute of traffic to read

    import can

PIECE_BYTES = 64 * 1024
SKIPPED_AT_ONCE = 16384
TEXT = tuple(form + packed for form in (".log", ".csv", ".txt") for packed in ("", ".gz", ".zst"))
PYTHON_CAN = (".asc", ".blf", ".trc", ".mf4")
HEAD_BYTES = 4096
# What a text form begins with; a candump log otherwise.
FORMS: tuple[tuple[bytes, type[LineReader]], ...] = (
    (rb"timestamp,arbitration_id,", text_logs.CsvReader),
    (rb"Time Stamp,ID,", text_logs.GvretReader),
    (rb"\*\*\*BUSMASTER", text_logs.BusmasterReader),
    (rb"//-+\s+Microchip", text_logs.MicrochipReader),
    (rb"\d+\.\d+ \d*[A-Z]", text_logs.CrtdReader),
)


class Log(Protocol):
    """A recording that is being read."""

    path: str
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


def open_log(path: "Path | str", buses: Iterable[str] = ()) -> Log:
    """Open a recording by its suffix; buses get the first numbers.

    Raises InputError: no such file, or a form that is not known.
    """
    path = os.fspath(path)
    name = path.lower()
    if not os.path.isfile(path):
        raise InputError(path, "is not a file" if os.path.exists(path) else "no such file", "give a recording")
    if name.endswith(TEXT):
        return TextLog(path, buses)
    if name.endswith(PYTHON_CAN):
        return PythonCanLog(path, buses)
    raise InputError(path, "this form of log is not known", f"known are {' '.join(TEXT + PYTHON_CAN)}")


class TextLog:
    def __init__(self, path: str, buses: Iterable[str] = ()) -> None:
        self.path = path
        self.problem = ""
        self._raw, self._file, self._damage = _open_text(path)
        self._buffer = bytearray(2 * PIECE_BYTES)
        self._text = memoryview(self._buffer)[:0]  # the part of the buffer that is read, but not parsed
        self._start = 0
        self._at_end = False
        self._reader: LineReader = CandumpReader(buses)
        self._fill()
        head = bytes(self._text[:HEAD_BYTES])
        form = next((reader for start, reader in FORMS if re.match(start, head)), CandumpReader)
        self._reader = form(buses)

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
            self._start += done
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
        """Read on behind what is left, or mark the end of the file."""
        left = len(self._text)
        if left > PIECE_BYTES:
            raise InputError(self.path, f"line {self._reader.lines + 1} is over {PIECE_BYTES} bytes", "is it a log?")
        self._buffer[:left] = self._buffer[self._start : self._start + left]
        self._start = 0
        try:
            size = self._file.readinto1(memoryview(self._buffer)[left : left + PIECE_BYTES])
        except self._damage as error:
            self.problem = f"is cut or damaged after line {self._reader.lines} ({error}); all before that was read"
            left = size = 0  # what is left is part of a line, not a line
        self._at_end = not size
        self._text = memoryview(self._buffer)[: left + size]


def _open_text(path: str) -> tuple[IO[bytes], Any, tuple[type[Exception], ...]]:
    """The file, its text, and what reading that raises where it is damaged."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (the log closes it)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "give a recording") from error
    if path.lower().endswith(".gz"):
        import gzip
        import zlib

        return file, gzip.GzipFile(fileobj=file), (EOFError, OSError, zlib.error)
    if path.lower().endswith(".zst"):
        import zstandard

        return file, _ZstdText(file), (EOFError, OSError, zstandard.ZstdError)
    return file, file, (OSError,)


class _ZstdText:
    """The text of a zstd file; unlike the library's own reader it tells a file that is cut from one that ends."""

    def __init__(self, file: IO[bytes]) -> None:
        import zstandard

        self._file = file
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame = self._decompressor.decompressobj()
        self._is_between = True  # two frames, where a file may end
        self._text = b""

    def readinto1(self, buffer: memoryview) -> int:
        while not self._text:
            packed = self._frame.unused_data or self._file.read(PIECE_BYTES // 8)
            if not packed:
                if self._is_between:
                    return 0
                raise EOFError("the zstd stream ends in the middle")
            if self._frame.eof:
                self._frame = self._decompressor.decompressobj()
            self._text = self._frame.decompress(packed)
            self._is_between = self._frame.eof
        part = self._text[: len(buffer)]
        buffer[: len(part)] = part
        self._text = self._text[len(part) :]
        return len(part)

    def close(self) -> None:
        self._text = b""


class PythonCanLog:
    def __init__(self, path: str, buses: Iterable[str] = ()) -> None:
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
