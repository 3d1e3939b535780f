"""Databases (DBC, ARXML, KCD, SYM) to a decoder manifest, on the bench: the only file that imports cantools.

    {"can0": [powertrain.dbc, chassis.dbc]} ──► compile_databases ──► manifest + a diagnostic for each oddity

Real databases are dirty. What can be corrected in a way that its owner can follow is corrected, by name; a message
or signal that cannot be used is refused, by name; a file that does not load at all raises one line that names the
place. Nothing is left out silently, but for comments: nothing that decodes needs them, and vehicles hold the manifest
(they make it 1.05 times as long over public databases, up to 1.6 times where a database is well described).
"""

import hashlib
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cantools
import msgspec
from cantools.database import Database
from cantools.database.can import Message as CantoolsMessage
from cantools.database.can import Signal as CantoolsSignal
from cantools.database.conversion import BaseConversion
from cantools.database.errors import Error as CantoolsError
from cantools.database.errors import UnsupportedDatabaseFormatError

from edge.database_arxml import nonlinear_signals
from edge.database_repairs import correct, line_of_message, tidy
from edge.errors import InputError
from edge.manifest import BY_PGN, PROTOCOLS, DecoderManifest, Message, Signal, Source

SUFFIXES = (".dbc", ".arxml", ".kcd", ".sym")
LONGEST_FIELD_BITS = 64
LONGEST_CLASSIC = 8
MAX_CORRECTIONS = 50
FARTHEST_BIT = 8 * 4095  # of the longest message that a transport protocol carries here
# Where a database says how long something is, or where it lies.
PLACES = {
    ".dbc": r"^[ \t]*(?:SG_\s[^:\n]*:\s*(\d+)\|(\d+)@|BO_\s+\d+\s+\w+\s*:\s*(\d+))",
    ".kcd": r"\s(?:offset|length)=\"(\d+)\"",
    ".sym": r"(?:=\S+\s+\w+\s+|^Mux=\S+\s+)(\d+),(\d+)|^DLC=(\d+)",
    ".arxml": r"<(?:START-POSITION|LENGTH|FRAME-LENGTH)>(\d+)<",
}
WIDEST_MULTIPLEXER_RANGE = 1 << 16  # cantools holds every value of a range

# It logs what it finds odd; what matters of that is in our diagnostics.
logging.getLogger("cantools").setLevel(logging.ERROR)


class Diagnostic(msgspec.Struct, frozen=True):
    """Something odd in a database, and what was made of it. line 0 and an empty message: not known, or none."""

    file: str
    line: int
    message: str
    problem: str
    what_was_done: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message + ': ' if self.message else ''}{self.problem}; {self.what_was_done}"


def load_databases(
    databases: Mapping[str, Sequence[Path | str]], protocols: Mapping[str, str] | None = None
) -> DecoderManifest:
    """The manifest of these databases, by bus. Raises InputError: a database that does not load."""
    return compile_databases(databases, protocols)[0]


def compile_databases(
    databases: Mapping[str, Sequence[Path | str]], protocols: Mapping[str, str] | None = None
) -> tuple[DecoderManifest, list[Diagnostic]]:
    """The manifest, and what was odd.

    protocols: of a bus, for what its databases do not say themselves (edge/manifest.py PROTOCOLS). J1939 and NMEA
    2000 hold for its 29-bit messages, ISO-TP for those over eight bytes. A file that describes several buses, one of
    them named as ours, gives only that one's messages. Where two messages have one identifier on one bus, or two
    files one parameter group, the first is kept. Raises InputError: a database that does not load, or no such bus or
    protocol.
    """
    protocols = protocols or {}
    for bus, protocol in protocols.items():
        if bus not in databases:
            raise InputError(f"protocol of {bus!r}", "there is no such bus", f"buses are {', '.join(databases)}")
        if protocol not in PROTOCOLS:
            raise InputError(f"protocol {protocol!r}", "is not known", f"known are {', '.join(PROTOCOLS)}")
    messages: dict[tuple[str, int, bool], Message] = {}
    sources: list[Source] = []
    diagnostics: list[Diagnostic] = []
    for bus, paths in databases.items():
        for path in map(Path, paths):
            content = _read(path)
            sources.append(Source(bus, path.name, hashlib.sha256(content).hexdigest()))
            _File(bus, path, content, diagnostics, protocols.get(bus, "")).add_to(messages)
    buses = tuple(databases)
    ordered = sorted(messages.values(), key=lambda message: (buses.index(message.bus), message.extended, message.id))
    return DecoderManifest(buses, tuple(ordered), tuple(sources)), diagnostics


def load_with_cantools(path: Path) -> Database:
    """The corrected file as cantools holds it, to compare with. Raises InputError: it does not load."""
    return _File("", path, _read(path), [])._loaded()


class _File:
    """One database, on its way into the manifest."""

    def __init__(self, bus: str, path: Path, content: bytes, diagnostics: list[Diagnostic], protocol: str = "") -> None:
        self._bus = bus
        self._protocol = protocol
        self._path = path
        self._suffix = path.suffix.lower()
        self._diagnostics = diagnostics
        self._text = tidy(self._decoded(content), self._suffix)

    def add_to(self, messages: dict[tuple[str, int, bool], Message]) -> None:
        database = self._loaded()
        nonlinear = nonlinear_signals(self._text) if self._suffix == ".arxml" else {}
        protocol = _protocol_type(database)
        others = {m.pgn: m.name for m in messages.values() if m.bus == self._bus and m.is_by_pgn}
        for source in self._of_our_bus(database):
            self._check(source)
            message = self._message(source, nonlinear, protocol)
            if message.is_by_pgn and (other := others.get(message.pgn)):
                problem = f"parameter group {message.pgn} on {self._bus} is {other} of another database already"
                self._note(source, problem, f"{other} is kept, {source.name} is left out")
                continue
            key = (self._bus, message.id, message.extended)
            if messages.setdefault(key, message) != message:
                other = messages[key].name
                problem = f"identifier {message.id:X} on {self._bus} is {other} already, and means something else there"
                self._note(source, problem, f"{other} is kept, {source.name} is left out")

    def _decoded(self, content: bytes) -> str:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            self._diagnostics.append(Diagnostic(self._path.name, line, "", "is not UTF-8", "read as cp1252"))
            return content.decode("cp1252", "replace")

    def _loaded(self) -> Database:
        """Loaded without cantools' strict checks, which it would apply to the file as a whole; _check does."""
        if self._suffix == ".arxml" and not re.search(r"<(?:AR-PACKAGES|TOP-LEVEL-PACKAGES)\b", self._text):
            problem = "holds no AR-PACKAGES: it is a part of an ARXML file, or none"
            raise InputError(self._path, problem, "give the system description, or the ECU extract")
        self._refuse_far_fields()
        self._refuse_wide_ranges()
        for _ in range(MAX_CORRECTIONS):
            try:
                return self._parsed()
            except Exception as error:  # cantools raises whatever its parsers run into
                cause = _cause(error)
                corrected = correct(self._text, self._suffix, str(cause))
                if corrected is None:
                    line = re.search(r"\bline (\d+)", str(cause))
                    place = f"{self._path}:{line[1]}" if line else self._path
                    raise InputError(place, f"does not load: {_one_line(cause)}", "correct it there") from error
                self._text, corrections = corrected
                self._diagnostics.extend(Diagnostic(self._path.name, *correction) for correction in corrections)
        raise InputError(self._path, f"has more than {MAX_CORRECTIONS} errors", "is it a database?")

    def _parsed(self) -> Database:
        database = cantools.database.load_string(self._text, self._suffix[1:], strict=False)
        if not isinstance(database, Database):
            raise ValueError("it describes diagnostics, not CAN messages")
        return database

    def _refuse_far_fields(self) -> None:
        """cantools makes a character for every bit up to the last one of a message."""
        for found in re.finditer(PLACES[self._suffix], self._text, re.MULTILINE):
            for number in filter(None, found.groups()):
                if len(number) > 9 or int(number) > FARTHEST_BIT:
                    line = self._text.count("\n", 0, found.start(1)) + 1
                    problem = f"a field or message of {number[:20]} bits or bytes is too long"
                    raise InputError(f"{self._path}:{line}", problem, f"a message has at most {FARTHEST_BIT} bits")

    def _refuse_wide_ranges(self) -> None:
        if self._suffix != ".dbc":
            return
        for statement in re.finditer(r"^[ \t]*SG_MUL_VAL_\s+\d+\s+\w+\s+\w+\s+([^;]*);", self._text, re.MULTILINE):
            for low, high in re.findall(r"(\d+)\s*-\s*(\d+)", statement[1]):
                if len(high) > 18 or len(low) > 18 or int(high) - int(low) >= WIDEST_MULTIPLEXER_RANGE:
                    line = self._text.count("\n", 0, statement.start()) + 1
                    raise InputError(
                        f"{self._path}:{line}",
                        f"the multiplexer range {low}-{high} is too wide",
                        f"at most {WIDEST_MULTIPLEXER_RANGE} values",
                    )

    def _of_our_bus(self, database: Database) -> list[CantoolsMessage]:
        buses = {message.bus_name for message in database.messages}
        if len(buses) > 1 and self._bus in buses:
            return [message for message in database.messages if message.bus_name == self._bus]
        if not database.messages:
            self._diagnostics.append(Diagnostic(self._path.name, 0, "", "has no messages", "nothing comes from it"))
        return list(database.messages)

    def _check(self, message: CantoolsMessage) -> None:
        """cantools' strict checks: signals that overlap, or lie outside of the message. They go by name."""
        try:
            message.refresh(strict=len({signal.name for signal in message.signals}) == len(message.signals))
        except CantoolsError as error:
            problem = re.sub(r" in message .*|\.$", "", str(error)).replace("The ", "the ", 1)
            self._note(message, problem, "each is decoded from its own bits, where the payload has them")
        if message.is_container:
            self._note(message, "it is a container of other messages", "what it contains is not decoded")

    def _message(self, source: CantoolsMessage, nonlinear: Mapping[str, str], protocol_type: str) -> Message:
        usable = self._usable(source)
        for signal in usable:
            if signal.name in nonlinear:
                problem = f"{signal.name}: its conversion is not linear ({nonlinear[signal.name]})"
                self._note(source, problem, f"value is raw * {signal.scale:g} + {signal.offset:g}")
        places = {signal.name: place for place, signal in reversed(list(enumerate(usable)))}
        signals = [
            _signal(signal, name, places) for signal, name in zip(usable, self._names(source, usable), strict=True)
        ]
        message = Message(
            self._bus,
            source.frame_id,
            source.name,
            source.length,
            extended=source.is_extended_frame,
            cycle_ms=source.cycle_time or None,
            protocol=self._protocol_of(source, protocol_type),
        )
        return message._replace(signals=(*signals, *_addresses(message, {signal.name for signal in signals})))

    def _protocol_of(self, message: CantoolsMessage, protocol_type: str) -> str:
        if self._protocol.startswith("isotp"):
            return self._protocol if message.length > LONGEST_CLASSIC and not message.is_fd else ""
        if not message.is_extended_frame:
            return ""
        return self._protocol or protocol_type or ("j1939" if message.protocol == "j1939" else "")

    def _usable(self, message: CantoolsMessage) -> list[CantoolsSignal]:
        """The signals that can be decoded; a note for each other, and for what hangs on it."""
        usable: list[CantoolsSignal] = []
        for signal in message.signals:
            if problem := _problem_of(signal):
                self._note(message, f"{signal.name}: {problem}", f"{signal.name} is left out")
            else:
                usable.append(signal)
        reached: set[str | None] = {None}
        while more := {s.name for s in usable if s.multiplexer_signal in reached and s.is_multiplexer} - reached:
            reached |= more
        for signal in usable:
            if (selector := signal.multiplexer_signal) not in reached:
                problem = f"{signal.name} hangs on {selector}, which is no multiplexer selector that can be decoded"
                self._note(message, problem, f"{signal.name} is left out")
        return [signal for signal in usable if signal.multiplexer_signal in reached]

    def _names(self, message: CantoolsMessage, signals: list[CantoolsSignal]) -> list[str]:
        """A name for each signal that no other of the message has."""
        names: list[str] = []
        taken = {signal.name for signal in signals}
        for signal in signals:
            name = signal.name
            if name in names:
                name = next(free for n in range(2, len(signals) + 2) if (free := f"{signal.name}_{n}") not in taken)
                taken.add(name)
                self._note(message, f"it has two signals {signal.name}", f"the second is called {name}")
            names.append(name)
        return names

    def _note(self, message: CantoolsMessage, problem: str, what_was_done: str) -> None:
        dbc_id = message.frame_id | (0x80000000 if message.is_extended_frame else 0)
        line = line_of_message(self._text, self._suffix, message.name, dbc_id)
        self._diagnostics.append(Diagnostic(self._path.name, line, message.name, problem, what_was_done))


def _read(path: Path) -> bytes:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(path, "is no database by its suffix", f"known are {' '.join(SUFFIXES)}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "give a database file") from error


def _problem_of(signal: CantoolsSignal) -> str | None:
    if not 1 <= signal.length <= LONGEST_FIELD_BITS or signal.start < 0:
        return f"a field of {signal.length} bits at bit {signal.start}; up to {LONGEST_FIELD_BITS} can be decoded"
    if signal.is_float and signal.length not in (16, 32, 64):
        return f"a floating-point field of {signal.length} bits"
    if not math.isfinite(signal.scale) or not math.isfinite(signal.offset):
        return f"its factor or offset is not a number: ({signal.scale},{signal.offset})"
    return None


def _protocol_type(database: Database) -> str:
    """What the database says that all of its 29-bit messages are."""
    specifics = database.dbc
    attribute = specifics.attributes.get("ProtocolType") if specifics else None
    name = str(attribute.value).upper().replace(" ", "") if attribute else ""
    return {"J1939": BY_PGN[0], "NMEA2000": BY_PGN[1]}.get(name, "")


def _addresses(message: Message, taken: set[str]) -> Iterable[Signal]:
    """Who sent a frame of a parameter group, and to whom where the group has a destination."""
    if not message.is_by_pgn:
        return
    for name, start, is_there in (
        ("SourceAddress", 0, True),
        ("DestinationAddress", 8, message.id >> 16 & 0xFF < 240),
    ):
        if is_there:
            yield Signal(name if name not in taken else f"J1939_{name}", start, 8, of_id=True)


def _signal(source: CantoolsSignal, name: str, places: Mapping[str, int]) -> Signal:
    factor, offset = _scale(source.conversion)
    selector = source.multiplexer_signal
    return Signal(
        name,
        source.start,
        source.length,
        big_endian=source.byte_order == "big_endian",
        signed=source.is_signed and not source.is_float,
        is_float=source.is_float,
        factor=factor,
        offset=offset,
        unit=source.unit or "",
        minimum=_number(source.minimum),
        maximum=_number(source.maximum),
        labels={int(raw): str(label) for raw, label in sorted((source.choices or {}).items()) if raw == int(raw)},
        selector=None if selector is None else places[selector],
        selected_by=() if selector is None else _ranges(source.multiplexer_ids or ()),
        initial=_raw(source.raw_initial) or None,
        invalid=_raw(source.raw_invalid),
    )


def _scale(conversion: BaseConversion) -> tuple[int | float, int | float]:
    """Factor and offset, whole or not as cantools computes with them: a whole pair gives whole physical values."""
    factor, offset = conversion.scale, conversion.offset
    if float(factor).is_integer() and float(offset).is_integer():
        return int(factor), int(offset)
    return (
        factor if isinstance(factor, int) else float(factor),
        offset if isinstance(offset, int) else float(offset),
    )


def _raw(value: Any) -> int | float | None:
    return None if not isinstance(value, int | float) else _number(value)


def _number(value: Any) -> int | float | None:
    """A bound: whole where it is, None where there is none."""
    if value is None or not math.isfinite(value):
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


def _cause(error: Exception) -> Exception:
    """What went wrong in the parser of that format."""
    if isinstance(error, UnsupportedDatabaseFormatError):
        return error.e_arxml or error.e_dbc or error.e_kcd or error.e_sym or error
    return error


def _one_line(error: Exception) -> str:
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split())[:200]) or "no reason given"
    return text if isinstance(error, CantoolsError) or " line " in text else f"{text} ({type(error).__name__})"
