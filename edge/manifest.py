"""The decoder manifest: which bits of which frame are which signal.

Compiled from databases on the bench (`edge/database.py`), it is all that a vehicle and the cloud need to
decode. It is one file, described in docs/formats/manifest.md:

    bordnetz-manifest 1 sha256:<64 hex digits>\\n
    <JSON document, to which the hash belongs>

and it is named by that hash everywhere.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from edge.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path  # not at run time: it takes longer to import than a manifest to read

    from edge.vss_signal import VssSignal

FORMAT = "bordnetz-manifest 1 sha256:"
# How frames of a message are found and put together.
#   j1939, nmea2000     by parameter group; over eight bytes by its transport protocol, or as a fast packet
#   isotp               its frames are segments of ISO 15765-2
#   isotp-length        … and the database puts the low byte of the length in front of the payload
#   isotp-extended      … and the first byte of each frame is an address (extended and mixed addressing)
NOT_AVAILABLE, ERROR, INVALID = "not available", "error", "invalid"
BY_PGN = ("j1939", "nmea2000")
PROTOCOLS = (*BY_PGN, "isotp", "isotp-length", "isotp-extended")


class Signal(NamedTuple):
    """A field of a message.

    start is a bit number as in DBC files: of the least significant bit in little-endian fields, of the most
    significant one in big-endian fields, counted from the least significant bit of the first byte.
    physical = raw * factor + offset. A float's raw value is its IEEE 754 value (16, 32 or 64 bits).
    """

    name: str
    start: int
    length: int
    big_endian: bool = False
    signed: bool = False
    is_float: bool = False
    factor: int | float = 1
    offset: int | float = 0
    unit: str = ""
    minimum: int | float | None = None
    maximum: int | float | None = None
    labels: dict[int, str] = {}  # noqa: RUF012 (never changed)
    comment: str = ""
    # Index, in the message, of the selector this signal hangs on, and the selector's raw values (inclusive
    # ranges) that make it present. None: always present.
    selector: int | None = None
    selected_by: tuple[tuple[int, int], ...] = ()
    # The field lies in the 29-bit identifier instead of the payload: the addresses of a J1939 message.
    of_id: bool = False
    # Raw values: what is sent before there is a value, unless that is zero, and what says that there is none.
    initial: int | float | None = None
    invalid: int | float | None = None

    @property
    def needed_bytes(self) -> int:
        """How long a payload must be to hold the whole field."""
        if self.of_id:
            return 0
        if not self.big_endian:
            return (self.start + self.length + 7) // 8
        msb = 8 * (self.start // 8) + 7 - self.start % 8  # from the top bit of the first byte
        return (msb + self.length + 7) // 8

    def label(self, raw: int) -> str | None:
        return self.labels.get(raw)


class Message(NamedTuple):
    """What the frames of one identifier on one bus mean."""

    bus: str
    id: int
    name: str
    length: int
    extended: bool = False
    signals: tuple[Signal, ...] = ()
    cycle_ms: int | None = None
    comment: str = ""
    protocol: str = ""  # one of PROTOCOLS, or none

    @property
    def is_by_pgn(self) -> bool:
        """Matched by parameter group, whatever priority and source address a frame has."""
        return self.extended and self.protocol in BY_PGN

    @property
    def pgn(self) -> int:
        """SAE J1939-21: the destination address is no part of the group where PDU format is below 240."""
        return pgn_of(self.id)


def pgn_of(can_id: int) -> int:
    return (can_id >> 8) & (0x3FFFF if can_id >> 16 & 0xFF >= 240 else 0x3FF00)


def no_values(message: Message, signal: Signal) -> tuple[tuple[int, int, str], ...]:
    """Ranges of raw values that say there is no value, and what they say: null in tables, never true in a condition.

    By SAE J1939-71 the top byte of a parameter is 255 where it is not available and 254 in an error; below a byte all
    ones are "not available", and of two bits 2 is the error. NMEA 2000 has the two highest values, whatever the size.
    """
    found = []
    if isinstance(signal.invalid, int) and not signal.is_float:
        found.append((signal.invalid, signal.invalid, INVALID))
    if message.is_by_pgn and not signal.of_id and not signal.is_float and signal.length > 1:
        bits = signal.length - signal.signed
        top = (1 << bits) - 1
        if message.protocol == "nmea2000":
            found += [(top, top, NOT_AVAILABLE)] + ([(top - 1, top - 1, ERROR)] if bits > 3 else [])
        elif not signal.signed and bits >= 8:
            found += [(255 << bits - 8, top, NOT_AVAILABLE), (254 << bits - 8, (255 << bits - 8) - 1, ERROR)]
        elif not signal.signed:
            found += [(top, top, NOT_AVAILABLE)] + ([(2, 2, ERROR)] if bits == 2 else [])
    return tuple(found)


class Source(NamedTuple):
    """A database the manifest was compiled from."""

    bus: str
    file: str
    sha256: str


class DecoderManifest:
    """Messages of all buses; a message is known by its index here, in blocks and in columns.

    body is the JSON document and hash its SHA-256, 64 hex digits. A manifest that was read keeps the very bytes that
    it was read from, whatever version of this file wrote them.
    """

    def __init__(
        self,
        buses: tuple[str, ...],
        messages: tuple[Message, ...],
        sources: tuple[Source, ...] = (),
        vss: "tuple[VssSignal, ...]" = (),
        *,
        body: bytes | None = None,
    ) -> None:
        self.buses = buses
        self.messages = messages
        self.sources = sources
        self.vss = vss
        self.body = _document(self) if body is None else body
        self.hash = hashlib.sha256(self.body).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DecoderManifest) and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return f"DecoderManifest({self.buses!r}, {self.messages!r}, {self.sources!r}, {self.vss!r})"

    def _parts(self) -> tuple[object, ...]:
        return self.buses, self.messages, self.sources, self.vss

    def names(self) -> Iterator[tuple[str, Message, Signal]]:
        """Every signal as `Message.Signal`, with its message."""
        for message in self.messages:
            for signal in message.signals:
                yield f"{message.name}.{signal.name}", message, signal

    def save(self, path: "Path | str") -> None:
        with open(path, "wb") as file:
            file.write(FORMAT.encode() + self.hash.encode() + b"\n" + self.body + b"\n")


def load(path: "Path | str") -> DecoderManifest:
    """Read and verify a manifest file.

    Raises InputError: no such file, not a manifest, the hash does not match, or the document is not valid.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "bordnetz compile makes a manifest") from error
    return parse(content, path)


def parse(content: bytes, place: object = "manifest") -> DecoderManifest:
    """The manifest in these bytes; place is named in errors."""
    head, _, body = content.partition(b"\n")
    if not head.startswith(FORMAT.encode()):
        raise InputError(
            place,
            "is not a decoder manifest of format 1",
            "compile it: bordnetz compile --bus NAME=DATABASE -o FILE",
        )
    body = body.rstrip(b"\n")
    named = head[len(FORMAT) :].decode("ascii", "replace").strip()
    found = hashlib.sha256(body).hexdigest()
    if named != found:
        raise InputError(
            place, f"hash does not match: says {named[:16]}…, is {found[:16]}…", "copy or compile it again"
        )
    try:
        return _manifest(json.loads(body), body)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(place, f"is not a valid manifest ({error})", "compile it again") from error


# The document: the fields by name, without those that have their default. Plain json and tuples, because a module
# reads it at its start and the typed decoders of larger libraries take longer to import than all else together.


def _document(manifest: DecoderManifest) -> bytes:
    messages = [
        {**_object(message), "signals": [_object(signal) for signal in message.signals]}
        for message in manifest.messages
    ]
    document: dict[str, Any] = {
        "buses": manifest.buses,
        "messages": messages,
        "sources": [source._asdict() for source in manifest.sources],
    }
    if manifest.vss:
        document["vss"] = [_object(row) for row in manifest.vss]
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _object(row: "Signal | Message | VssSignal") -> dict[str, Any]:
    defaults = row._field_defaults
    return {
        name: value
        for name, value in zip(row._fields, row, strict=True)
        if name not in defaults or type(value) is not type(defaults[name]) or value != defaults[name]
    }


def _manifest(document: dict[str, Any], body: bytes) -> DecoderManifest:
    messages = tuple(
        Message(**{**message, "signals": tuple(_signal(signal) for signal in message.get("signals", ()))})
        for message in document["messages"]
    )
    for message in messages:
        if message.protocol not in ("", *PROTOCOLS):
            raise ValueError(f"{message.name} has the protocol {message.protocol!r}")
    sources = tuple(Source(**source) for source in document.get("sources", ()))
    count = sum(len(message.signals) for message in messages)
    vss: tuple[VssSignal, ...] = ()
    if "vss" in document:
        from edge.vss_signal import parse_vss  # only where there are any: a vehicle's memory is tight

        vss = tuple(parse_vss(row, count) for row in document["vss"])
    return DecoderManifest(tuple(document["buses"]), messages, sources, vss, body=body)


def _signal(row: dict[str, Any]) -> Signal:
    if "labels" in row:
        row["labels"] = {int(raw): label for raw, label in row["labels"].items()}
    if "selected_by" in row:
        row["selected_by"] = tuple((low, high) for low, high in row["selected_by"])
    return Signal(**row)
