"""The decoder manifest: which bits of which frame are which signal.

Compiled from databases on the bench (`edge/database.py`), it is all that a vehicle and the cloud need to
decode. It is one file, described in docs/formats/manifest.md:

    bordnetz-manifest 1 sha256:<64 hex digits>\\n
    <JSON document, to which the hash belongs>

and it is named by that hash everywhere.
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import msgspec

from edge.errors import InputError

FORMAT = "bordnetz-manifest 1 sha256:"


class Signal(msgspec.Struct, frozen=True, omit_defaults=True):
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
    labels: dict[int, str] = {}
    comment: str = ""
    # Index, in the message, of the selector this signal hangs on, and the selector's raw values (inclusive
    # ranges) that make it present. None: always present.
    selector: int | None = None
    selected_by: tuple[tuple[int, int], ...] = ()

    @property
    def needed_bytes(self) -> int:
        """How long a payload must be to hold the whole field."""
        if not self.big_endian:
            return (self.start + self.length + 7) // 8
        msb = 8 * (self.start // 8) + 7 - self.start % 8  # from the top bit of the first byte
        return (msb + self.length + 7) // 8

    def label(self, raw: int) -> str | None:
        return self.labels.get(raw)


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the frames of one identifier on one bus mean."""

    bus: str
    id: int
    name: str
    length: int
    extended: bool = False
    signals: tuple[Signal, ...] = ()
    cycle_ms: int | None = None
    comment: str = ""


class Source(msgspec.Struct, frozen=True):
    """A database the manifest was compiled from."""

    bus: str
    file: str
    sha256: str


class DecoderManifest(msgspec.Struct, frozen=True, dict=True):
    """Messages of all buses; a message is known by its index here, in blocks and in columns."""

    buses: tuple[str, ...]
    messages: tuple[Message, ...]
    sources: tuple[Source, ...] = ()

    @cached_property
    def body(self) -> bytes:
        return msgspec.json.encode(self)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the document, 64 hex digits."""
        return hashlib.sha256(self.body).hexdigest()

    def names(self) -> Iterator[tuple[str, Message, Signal]]:
        """Every signal as `Message.Signal`, with its message."""
        for message in self.messages:
            for signal in message.signals:
                yield f"{message.name}.{signal.name}", message, signal

    def save(self, path: Path | str) -> None:
        Path(path).write_bytes(FORMAT.encode() + self.hash.encode() + b"\n" + self.body + b"\n")


def load(path: Path | str) -> DecoderManifest:
    """Read and verify a manifest file.

    Raises InputError: no such file, not a manifest, the hash does not match, or the document is not valid.
    """
    try:
        content = Path(path).read_bytes()
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
        manifest = msgspec.json.decode(body, type=DecoderManifest)
    except msgspec.DecodeError as error:
        raise InputError(place, f"is not a valid manifest ({error})", "compile it again") from error
    # The hash names these very bytes, whatever version of the encoder wrote them.
    manifest.__dict__["body"], manifest.__dict__["hash"] = body, found
    return manifest
