"""Databases (DBC, ARXML, KCD, SYM) to a decoder manifest, on the bench: the only file that imports cantools.

    {"can0": [powertrain.dbc, chassis.dbc]} ──► compile_databases ──► manifest + one diagnostic per oddity

Real databases are dirty. A file that only loads without cantools' strict checks is loaded so, and each message
that broke them is named; a message that cannot be used is refused, by name; a file that cannot be loaded at all
raises one line. Nothing is left out silently.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cantools
import msgspec
from cantools.database import Database
from cantools.database.can import Message as CantoolsMessage
from cantools.database.can import Signal as CantoolsSignal
from cantools.database.conversion import BaseConversion

from edge.errors import InputError
from edge.manifest import DecoderManifest, Message, Signal, Source

SUFFIXES = (".dbc", ".arxml", ".kcd", ".sym")
ENCODINGS = {".dbc": "cp1252", ".sym": "cp1252"}  # what these formats say; UTF-8 is tried first, as files disagree
LONGEST_FIELD_BITS = 64

# It logs what it finds odd; what matters of that is in our diagnostics.
logging.getLogger("cantools").setLevel(logging.ERROR)


class Diagnostic(msgspec.Struct, frozen=True):
    """Something odd in a database, and what was made of it."""

    file: str
    message: str
    problem: str
    done: str

    def __str__(self) -> str:
        place = f"{self.file}: {self.message}" if self.message else self.file
        return f"{place}: {self.problem}; {self.done}"


def load_databases(databases: Mapping[str, Sequence[Path | str]]) -> DecoderManifest:
    """The manifest of these databases, by bus. Raises InputError: a database that does not load."""
    return compile_databases(databases)[0]


def compile_databases(
    databases: Mapping[str, Sequence[Path | str]],
) -> tuple[DecoderManifest, list[Diagnostic]]:
    """The manifest, and what was odd. Raises InputError: a database that does not load."""
    compiler = _Compiler()
    for bus, paths in databases.items():
        for path in paths:
            compiler.add(bus, Path(path))
    messages = sorted(compiler.messages.values(), key=lambda message: compiler.place(message, list(databases)))
    return DecoderManifest(tuple(databases), tuple(messages), tuple(compiler.sources)), compiler.diagnostics


class _Compiler:
    def __init__(self) -> None:
        self.messages: dict[tuple[str, int, bool], Message] = {}
        self.sources: list[Source] = []
        self.diagnostics: list[Diagnostic] = []
        self._file = ""

    @staticmethod
    def place(message: Message, buses: list[str]) -> tuple[int, bool, int]:
        return buses.index(message.bus), message.extended, message.id

    def add(self, bus: str, path: Path) -> None:
        self._file = path.name
        content = _read(path)
        self.sources.append(Source(bus, path.name, hashlib.sha256(content).hexdigest()))
        database = self._load(path, content)
        for message in database.messages:
            self._add_message(bus, message)

    def _load(self, path: Path, content: bytes) -> Database:
        text = self._text(path, content)
        try:
            return _parse(path, text, strict=True)
        except Exception as strict_error:  # cantools raises whatever its parsers run into
            try:
                database = _parse(path, text, strict=False)
            except Exception as error:
                raise InputError(path, f"does not load ({_one_line(error)})", "correct it where it says") from error
            self._note("", _one_line(strict_error), "loaded without strict checks")
            return database

    def _text(self, path: Path, content: bytes) -> str:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            encoding = ENCODINGS.get(path.suffix.lower(), "latin-1")
            self._note("", f"byte {error.start} is not UTF-8", f"read as {encoding}")
            return content.decode(encoding, "replace")

    def _add_message(self, bus: str, source: CantoolsMessage) -> None:
        signals: list[CantoolsSignal] = list(source.signals)
        usable = self._usable(source, signals)
        message = Message(
            bus,
            source.frame_id,
            source.name,
            source.length,
            extended=source.is_extended_frame,
            signals=tuple(self._signal(source.name, signal, usable) for signal in usable),
            cycle_ms=source.cycle_time,
        )
        key = (bus, message.id, message.extended)
        if key in self.messages and self.messages[key] != message:
            other = self.messages[key].name
            self._note(source.name, f"identifier {message.id:X} on {bus} is {other} already", f"{other} is kept")
        self.messages.setdefault(key, message)

    def _usable(self, message: CantoolsMessage, signals: Iterable[CantoolsSignal]) -> list[CantoolsSignal]:
        """The signals that can be decoded; the others get a diagnostic, and so do what hangs on them."""
        usable: list[CantoolsSignal] = []
        refused: set[str] = set()
        for signal in signals:
            problem = _problem_of(signal)
            if problem:
                refused.add(signal.name)
                self._note(f"{message.name}.{signal.name}", problem, "left out")
            else:
                usable.append(signal)
        while orphans := [signal for signal in usable if signal.multiplexer_signal in refused]:
            for signal in orphans:
                refused.add(signal.name)
                self._note(f"{message.name}.{signal.name}", f"hangs on {signal.multiplexer_signal}", "left out")
            usable = [signal for signal in usable if signal.name not in refused]
        return usable

    def _signal(self, message: str, source: CantoolsSignal, siblings: list[CantoolsSignal]) -> Signal:
        factor, offset = _scale(source.conversion)
        selector = None
        if source.multiplexer_signal is not None:
            selector = [signal.name for signal in siblings].index(source.multiplexer_signal)
        if not hasattr(source.conversion, "scale"):
            self._note(f"{message}.{source.name}", "its conversion is not linear", "physical is raw")
        return Signal(
            source.name,
            source.start,
            source.length,
            big_endian=source.byte_order == "big_endian",
            signed=source.is_signed,
            is_float=source.is_float,
            factor=factor,
            offset=offset,
            unit=source.unit or "",
            minimum=_number(source.minimum),
            maximum=_number(source.maximum),
            labels={int(raw): str(label) for raw, label in sorted((source.choices or {}).items())},
            selector=selector,
            selected_by=_ranges(source.multiplexer_ids or []) if selector is not None else (),
        )

    def _note(self, message: str, problem: str, done: str) -> None:
        self.diagnostics.append(Diagnostic(self._file, message, problem, done))


def _read(path: Path) -> bytes:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(path, "is no database by its suffix", f"known are {' '.join(SUFFIXES)}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "give a database file") from error


def _parse(path: Path, text: str, *, strict: bool) -> Database:
    database = cantools.database.load_string(text, path.suffix[1:].lower(), strict=strict, prune_choices=False)
    if not isinstance(database, Database):
        raise ValueError("it describes diagnostics, not CAN messages")
    return database


def _problem_of(signal: CantoolsSignal) -> str | None:
    if not 1 <= signal.length <= LONGEST_FIELD_BITS:
        return f"a field of {signal.length} bits"
    if signal.is_float and signal.length not in (16, 32, 64):
        return f"a floating-point field of {signal.length} bits"
    return None


def _scale(conversion: BaseConversion) -> tuple[int | float, int | float]:
    """Factor and offset: whole where cantools' own result is a whole number, exactly as given otherwise."""
    factor, offset = getattr(conversion, "scale", 1), getattr(conversion, "offset", 0)
    if float(factor).is_integer() and float(offset).is_integer():
        return int(factor), int(offset)
    return float(factor), float(offset)


def _number(value: Any) -> int | float | None:
    """Bounds may be Decimals; whole ones stay whole."""
    if value is None:
        return None
    return int(value) if float(value).is_integer() else float(value)


def _ranges(values: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Inclusive ranges that hold these values."""
    ranges: list[tuple[int, int]] = []
    for value in sorted(set(values)):
        if ranges and ranges[-1][1] + 1 == value:
            ranges[-1] = ranges[-1][0], value
        else:
            ranges.append((value, value))
    return tuple(ranges)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
