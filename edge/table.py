"""A model table: what is known of a vehicle's traffic before a block begins, named by its SHA-256.

    streams     bus, identifier, flags, length; period; fields of the payload; checksum rules
    contexts    probabilities that training left behind

It makes small blocks small. docs/formats/table.md gives every byte; `bordnetz train` makes one.
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from cy_core.codec.models import LINE_BYTES
from cy_core.codec.signals import SignalCodec
from cy_core.plan import Plan
from edge.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from cy_core.codec.raw import RawCodec

FORMAT = "bordnetz-table 1 sha256:"
BODY_MAX_BYTES = 32 << 20
HASH_BYTES = 8  # of the SHA-256, in a block


class Field(NamedTuple):
    """shift: right, of one of the payload's words of eight bytes, read as a little- or big-endian number."""

    word: int
    big_endian: int
    shift: int
    width: int


class Rule(NamedTuple):
    """A checksum; kinds and constants as in cy_core/codec/checksum.pxd."""

    kind: int
    byte: int
    shift: int
    width: int
    factor: int
    constant: int


class Stream(NamedTuple):
    """can_id with the flags of <linux/can.h>; flags as in struct canfd_frame."""

    bus: str
    can_id: int
    flags: int
    length: int
    period_us: int = 0
    has_selector: bool = False
    fields: tuple[Field, ...] = ()
    rules: tuple[Rule, ...] = ()


class Table:
    """Raises ValueError: streams or contexts that no codec could use."""

    def __init__(self, streams: tuple[Stream, ...] = (), contexts: bytes = b"") -> None:
        for stream in streams:
            _check_cover(stream)
        self.streams = streams
        self.contexts = contexts
        if streams or contexts:
            self.codec  # noqa: B018 (checks them)
        self._signals: SignalCodec | None = None
        rows = json.dumps(streams, separators=(",", ":")).encode()
        self.body = struct.pack("<I", len(rows)) + rows + contexts
        self.sha256 = hashlib.sha256(self.body).hexdigest() if streams or contexts else ""
        self.name = bytes.fromhex(self.sha256)[:HASH_BYTES] or bytes(HASH_BYTES)

    @cached_property
    def codec(self) -> "RawCodec":
        """The codec for frames; made when it is needed, because a collector of signals never does."""
        from cy_core.codec.raw import RawCodec

        return RawCodec(self.streams, self.contexts)

    def signals(self, plan: Plan) -> SignalCodec:
        """The codec for signals of this plan."""
        if self._signals is None or self._signals.plan is not plan:
            self._signals = SignalCodec(plan, self.contexts)
        return self._signals

    def save(self, path: "Path | str") -> None:
        import zstandard

        packed = zstandard.ZstdCompressor(level=19).compress(self.body)
        with open(path, "wb") as file:
            file.write(FORMAT.encode() + self.sha256.encode() + b"\n" + packed)

    @property
    def context_count(self) -> int:
        return len(self.contexts) // LINE_BYTES


def load(path: "Path | str") -> Table:
    """Read and verify a table file. Raises InputError: no such file, not a table, damaged."""
    import zstandard

    try:
        with open(path, "rb") as file:
            content = file.read(2 * BODY_MAX_BYTES)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "bordnetz train makes a table") from error
    head, _, packed = content.partition(b"\n")
    if not head.startswith(FORMAT.encode()):
        raise InputError(path, "is not a model table of format 1", "bordnetz train makes one")
    try:
        body = zstandard.ZstdDecompressor().decompress(packed, max_output_size=BODY_MAX_BYTES)
        if hashlib.sha256(body).hexdigest() != head[len(FORMAT) :].decode("ascii", "replace"):
            raise ValueError("its hash does not match")
        return _parse(body)
    except (zstandard.ZstdError, ValueError, TypeError, KeyError, struct.error, OverflowError) as error:
        raise InputError(path, f"is a damaged table ({error})", "copy or train it again") from error


def find(folder: "Path", sha256: str) -> "Path":
    """The table file of this name (or at least 16 digits of it) in a folder. Raises InputError: there is none."""
    if len(sha256) < 2 * HASH_BYTES or set(sha256) - set("0123456789abcdef"):
        raise InputError(f"table {sha256!r}", "is no SHA-256", "its name, as bordnetz train prints it")
    for path, name in names(folder):
        if name.startswith(sha256):
            return path
    raise InputError(f"table {sha256}", f"is not in {folder}", "put its file there")


def names(folder: "Path") -> "Iterator[tuple[Path, str]]":
    """The table files of a folder, each with the SHA-256 that it says it has: load() verifies it."""
    for path in sorted(folder.glob("[!.]*")):
        with suppress(OSError), path.open("rb") as file:
            head = file.read(len(FORMAT) + 64)
            if head.startswith(FORMAT.encode()):
                yield path, head[len(FORMAT) :].decode("ascii", "replace")


def _parse(body: bytes) -> Table:
    (size,) = struct.unpack_from("<I", body)
    rows: list[Any] = json.loads(body[4 : 4 + size])
    streams = tuple(map(_stream, rows))
    return Table(streams, body[4 + size :])


def _stream(row: list[Any]) -> Stream:
    bus, can_id, flags, length, period_us, has_selector, fields, rules = row
    fields, rules = (Field(*field) for field in fields), (Rule(*rule) for rule in rules)
    return Stream(bus, can_id, flags, length, period_us, has_selector, tuple(fields), tuple(rules))


def _check_cover(stream: Stream) -> None:
    """Each bit of the payload is in a field or in a checksum: else it would be lost."""
    bits = sum(field.width for field in stream.fields) + sum(rule.width for rule in stream.rules)
    if bits != (0 if stream.can_id & 0x40000000 else 8 * stream.length):
        raise ValueError(f"stream {stream.bus} {stream.can_id:X}: its fields do not cover the payload")
