"""Frames to a recording, by the suffix of its name; edge/logs.py reads it again, frame for frame.

    .log .log.gz .log.zst     candump -l
    .blf .mf4                 python-can (on the bench only); there can2 is channel 2, any other name its place

Not .asc and .trc: they lose the data of error frames, CAN FD and remote frames. MF4 keeps data, error and remote frames
apart, with nothing but the time between them: those of one microsecond read again kind by kind. A file appears whole or
not at all.
"""

import gzip
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from cy_core.frames import Frames
from edge.errors import InputError

CANDUMP = (".log", ".log.gz", ".log.zst")
PYTHON_CAN = (".blf", ".mf4")
EXTENDED, REMOTE, ERROR = 0x80000000, 0x40000000, 0x20000000
FD, ESI, BRS = 4, 2, 1


class LogWriter(Protocol):
    def write(self, frames: Frames, buses: Sequence[str]) -> None:
        """buses: names by number, as in the frames."""


@contextmanager
def open_log_writer(path: Path) -> Iterator[LogWriter]:
    """Raises InputError: a suffix that is no recording's, python-can is missing, or it cannot be written."""
    if path.name.endswith(CANDUMP):
        with whole_file(path) as file:
            yield CandumpWriter(file)
    elif path.suffix in PYTHON_CAN:
        with _python_can(path) as writer:
            yield writer
    else:
        known = ", ".join((*CANDUMP, *PYTHON_CAN))
        raise InputError(path, "is no kind of recording by its suffix", f"take one of {known}")


class CandumpWriter:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, frames: Frames, buses: Sequence[str]) -> None:
        self._file.write(b"".join(_candump_lines(frames, buses)))


def _candump_lines(frames: Frames, buses: Sequence[str]) -> Iterator[bytes]:
    records = frames.to_bytes()[0]
    for length, (time_us, bus, can_id, flags, data) in zip(records[13::24], frames, strict=True):
        name = f"{can_id & 0x3FFFFFFF:08X}" if can_id & (EXTENDED | ERROR) else f"{can_id & 0x1FFFFFFF:03X}"
        if can_id & REMOTE:
            text = f"#R{length}" if length else "#R"
        else:
            text = (f"##{flags & 3:X}" if flags & FD else "#") + data.hex().upper()
        seconds, micros = divmod(time_us, 1_000_000)
        yield f"({seconds}.{micros:06}) {buses[bus]} {name}{text}\n".encode()


class _PythonCanWriter:
    def __init__(self, writer: Any, message: Any) -> None:
        self._writer = writer
        self._message = message

    def write(self, frames: Frames, buses: Sequence[str]) -> None:
        channels = [_channel(name, place) for place, name in enumerate(buses)]
        records = frames.to_bytes()[0]
        for length, (time_us, bus, can_id, flags, data) in zip(records[13::24], frames, strict=True):
            self._writer.on_message_received(
                self._message(
                    timestamp=time_us / 1e6,
                    arbitration_id=can_id & 0x1FFFFFFF,
                    is_extended_id=bool(can_id & EXTENDED),
                    is_remote_frame=bool(can_id & REMOTE),
                    is_error_frame=bool(can_id & ERROR),
                    is_fd=bool(flags & FD),
                    bitrate_switch=bool(flags & BRS),
                    error_state_indicator=bool(flags & ESI),
                    channel=channels[bus],
                    dlc=length if can_id & REMOTE else len(data),
                    data=None if can_id & REMOTE else data,
                )
            )


def _channel(name: str, place: int) -> int:
    number = re.fullmatch(r"can(\d{1,3})", name)
    return int(number[1]) if number else place


@contextmanager
def _python_can(path: Path) -> Iterator[_PythonCanWriter]:
    try:
        import can
    except ImportError as error:
        raise InputError(path, "writing this form needs python-can", "pip install 'bordnetz[bench]'") from error
    with _whole(path) as part:
        try:
            with can.Logger(part) as writer:
                yield _PythonCanWriter(writer, can.Message)
        except ValueError as error:
            raise InputError(path, f"cannot be written ({error})", "write it as candump's .log") from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears whole or not at all, compressed by its suffix. Raises InputError: it cannot be written."""
    with _whole(path) as part, part.open("wb") as file, _compressed(file, path.suffix) as out:
        yield out


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of the other one at the end."""
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(path, f"cannot be written ({reason})", "give a path in a folder you own") from error
    finally:
        with suppress(OSError):
            part.unlink()


def _compressed(file: BinaryIO, suffix: str) -> AbstractContextManager[Any]:
    if suffix == ".gz":
        return gzip.GzipFile("", "wb", 6, file, mtime=0)  # no name, no time: the same frames are the same file
    if suffix == ".zst":
        import zstandard

        return zstandard.ZstdCompressor().stream_writer(file, closefd=False)
    return nullcontext(file)
