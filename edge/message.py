"""Messages and blocks: between the rest and protobuf, which only this file imports; records go in by a kernel.

    records of one outbox and manifest + evictions ──► pack ──► bytes of one message ──► unpack ──► Envelope
    Block ──► encode ──► body of a record ──► Block.decode

Bytes from outside are data: whatever does not parse raises BlockCorrupt. docs/formats/message.md
"""

import itertools
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import msgspec
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from cy_core import record
from edge import message_pb2
from edge.errors import BlockCorrupt

if TYPE_CHECKING:
    from cy_core.record import Record as RecordLike

UNIT_BYTES = 4096  # what IoT Hub bills by
FULL = 0.97
MAX_MESSAGE_BYTES = 255 * 1024  # with topic and properties; IoT Hub's own limit is 256 KiB
PROPERTY_BYTES = 128  # what they and the message id add to what is billed


class Record(msgspec.Struct, frozen=True):
    """A record as it arrives; body is an encoded Block."""

    sequence: int
    priority: int
    stream: str
    body: bytes


class Eviction(msgspec.Struct, frozen=True):
    """count records of a stream, with sequences in first..last, left the outbox unsent; time is UTC."""

    first_sequence: int
    last_sequence: int
    count: int
    stream: str
    reason: str
    time_us: int


class Envelope(msgspec.Struct, frozen=True):
    """One message. outbox_id has 16 bytes; manifest has 32, or none where there are no records."""

    vehicle_id: str
    outbox_id: bytes
    manifest: bytes
    records: list[Record]
    evictions: list[Eviction]


class Quality(IntEnum):
    """How far utc_offset_us can be trusted; meanings in message.proto."""

    UNKNOWN = 0
    RECORDED = 1
    SYSTEM = 2
    SYNCHRONISED = 3


class Clock(msgspec.Struct, frozen=True):
    """UTC of a sample = its time in the block + utc_offset_us."""

    boot_id: bytes = b""
    utc_offset_us: int = 0
    quality: Quality = Quality.UNKNOWN


class Coverage(msgspec.Struct, frozen=True):
    """The block is made from frames first..end-1 of the source; missing ones before first are in no block."""

    source: str = ""
    first: int = 0
    end: int = 0
    missing: int = 0


class Counters(msgspec.Struct, frozen=True):
    """What became of those frames; meanings in message.proto."""

    samples: int = 0
    unknown_frames: int = 0
    short_frames: int = 0
    remote_frames: int = 0
    error_frames: int = 0
    unparsed_lines: int = 0
    overflowed_frames: int = 0


class Block(msgspec.Struct, frozen=True):
    """Samples (data: docs/formats/block.md) with what is needed to place and count them."""

    data: bytes
    clock: Clock = Clock()
    coverage: Coverage = Coverage()
    counters: Counters = Counters()

    def encode(self) -> bytes:
        """The body of a record. Raises ValueError if a number does not fit its field."""
        block = message_pb2.Block(
            data=self.data,
            clock=message_pb2.Clock(**msgspec.structs.asdict(self.clock)),
            coverage=message_pb2.Coverage(**msgspec.structs.asdict(self.coverage)),
            counters=message_pb2.Counters(**msgspec.structs.asdict(self.counters)),
        )
        return bytes(block.SerializeToString(deterministic=True))

    @classmethod
    def decode(cls, body: bytes) -> "Block":
        """Raises BlockCorrupt. A clock quality of a later version reads as UNKNOWN."""
        try:
            block = message_pb2.Block.FromString(body)
        except DecodeError as error:
            raise BlockCorrupt(f"not a block: {error}") from error
        clock, counters = block.clock, block.counters
        quality = Quality(clock.quality) if 0 <= clock.quality <= max(Quality) else Quality.UNKNOWN
        return cls(
            block.data,
            Clock(clock.boot_id, clock.utc_offset_us, quality),
            Coverage(block.coverage.source, block.coverage.first, block.coverage.end, block.coverage.missing),
            Counters(**{name: getattr(counters, name) for name in Counters.__struct_fields__}),
        )


class EvictionLike(Protocol):
    """What pack needs of an eviction; edge.outbox.LedgerEntry is one."""

    @property
    def first_sequence(self) -> int: ...
    @property
    def last_sequence(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def stream(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def time_us(self) -> int: ...


def pack(
    vehicle_id: str,
    outbox_id: bytes,
    manifest: bytes,
    records: "Iterable[RecordLike]",
    evictions: Iterable[EvictionLike] = (),
) -> bytes:
    """The bytes of one message."""
    head = message_pb2.Envelope(vehicle_id=vehicle_id, outbox_id=outbox_id, manifest=manifest)
    tail = message_pb2.Envelope(evictions=[_eviction(eviction) for eviction in evictions])
    ends = [bytes(end.SerializeToString(deterministic=True)) for end in (head, tail)]
    return record.pack(ends[0], list(records), ends[1])


def unpack(body: bytes) -> Envelope:
    """Raises BlockCorrupt: not an envelope, or ids of a wrong length."""
    try:
        envelope = message_pb2.Envelope.FromString(body)
    except DecodeError as error:
        raise BlockCorrupt(f"not a message: {error}") from error
    if len(envelope.outbox_id) != 16:
        raise BlockCorrupt(f"not a message: its outbox id has {len(envelope.outbox_id)} bytes, not 16")
    if len(envelope.manifest) != 32 and (envelope.records or envelope.manifest):
        raise BlockCorrupt(f"not a message: its manifest hash has {len(envelope.manifest)} bytes, not 32")
    return Envelope(
        envelope.vehicle_id,
        envelope.outbox_id,
        envelope.manifest,
        [Record(one.sequence, one.priority, one.stream, one.body) for one in envelope.records],
        [
            Eviction(**{name: getattr(eviction, name) for name in Eviction.__struct_fields__})
            for eviction in envelope.evictions
        ],
    )


def fit(vehicle_id: str, sizes: Sequence[int], evictions: Sequence[EvictionLike], limit_bytes: int) -> tuple[int, int]:
    """How many of the first evictions and records fit into a message of limit_bytes; evictions go first.

    sizes: message_bytes of the records. Exact: the sizes are those of the encoding. (0, 0) if not even the first fits.
    """
    size = _head_bytes(vehicle_id)
    kept_evictions, size = _take((_field_bytes(_eviction(one).ByteSize()) for one in evictions), size, limit_bytes)
    kept_records, size = _take(sizes, size, limit_bytes)
    return kept_records, kept_evictions


def fill(vehicle_id: str, sizes: Sequence[int], evictions: Sequence[EvictionLike]) -> int:
    """How many of the first records to send so that little is billed for nothing: units are billed whole.

    As many as fill their units to FULL; where no number does, the number among the last three quarters of the bytes
    that fills them best.
    """
    size = _head_bytes(vehicle_id)
    size += sum(_field_bytes(_eviction(eviction).ByteSize()) for eviction in evictions) + PROPERTY_BYTES
    ends = list(itertools.accumulate(sizes, initial=size))[1:]
    best, best_fill = len(ends), 0.0
    for count in range(len(ends), 0, -1):
        if 4 * ends[count - 1] < ends[-1]:
            break
        filled = ends[count - 1] / (-(-ends[count - 1] // UNIT_BYTES) * UNIT_BYTES)
        if filled > best_fill:
            best, best_fill = count, filled
        if best_fill >= FULL:
            break
    return best


@lru_cache(16)
def _head_bytes(vehicle_id: str) -> int:
    return len(pack(vehicle_id, bytes(16), bytes(32), ()))


def _take(sizes: Iterable[int], size: int, limit_bytes: int) -> tuple[int, int]:
    taken = 0
    for item in sizes:
        if size + item > limit_bytes:
            break
        size += item
        taken += 1
    return taken, size


def _field_bytes(length: int) -> int:
    """A field of this length with its tag and length prefix."""
    return 1 + max(1, (length.bit_length() + 6) // 7) + length


def _eviction(eviction: EvictionLike) -> message_pb2.Eviction:
    return message_pb2.Eviction(**{name: getattr(eviction, name) for name in Eviction.__struct_fields__})
