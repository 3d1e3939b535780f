"""Records as they go in and come out, how each proves to be what was stored, and what any outbox can do."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from cy_core.record import checksum

MAX_BODY_BYTES = 250 * 1024  # so that a record always fits into one message of 255 KiB
MAX_TTL_S = 10 * 365 * 86_400
PRIORITIES = 256
PAGE_BYTES = 4096  # of the database; what a record costs beyond its body is reckoned as one page


class NewRecord(msgspec.Struct, frozen=True):
    """What the collector stores: priority 0 (sent first) to 255, stream (campaign), manifest hash, block.

    ttl_s: after so many seconds it is not worth sending any more; 0: it always is. Counted is the time that the
    computer runs or sleeps, not the time that it is switched off: a clock that jumps expires nothing.
    """

    priority: int
    stream: str
    manifest: bytes
    body: bytes
    ttl_s: int = 0

    def check(self) -> None:
        """Raises ValueError: out of bounds."""
        if not 0 <= self.priority < PRIORITIES:
            raise ValueError(f"priority {self.priority} is not in 0..{PRIORITIES - 1}")
        if len(self.manifest) != 32:
            raise ValueError(f"a manifest hash has 32 bytes, not {len(self.manifest)}")
        if len(self.body) > MAX_BODY_BYTES:
            raise ValueError(f"a body of {len(self.body)} bytes cannot be sent; the most is {MAX_BODY_BYTES}")
        if len(self.stream.encode()) > 255:
            raise ValueError(f"the stream name {self.stream[:40]!r}… is longer than 255 bytes")
        if not 0 <= self.ttl_s <= MAX_TTL_S:
            raise ValueError(f"a time to live of {self.ttl_s} s is not in 0..{MAX_TTL_S}")


class Record(msgspec.Struct, frozen=True):
    """A stored record. (outbox, sequence) names it for ever; outbox is another id only after a salvage.

    expires: the age of the outbox, in seconds, at which it goes; None: never.
    """

    sequence: int
    priority: int
    stream: str
    manifest: bytes
    body: bytes
    outbox: bytes
    expires: int | None = None

    def checksum(self) -> int:
        stream = self.stream.encode()
        return checksum(self.sequence, self.outbox, stream, self.priority, self.manifest, self.body, self.expires)


class LedgerEntry(msgspec.Struct, frozen=True):
    """count records of a stream, all with sequences first..last, left the outbox unsent; time_us is UTC."""

    id: int
    outbox: bytes
    first_sequence: int
    last_sequence: int
    count: int
    stream: str
    reason: str
    time_us: int


class Stats(msgspec.Struct, frozen=True):
    """records and bytes (of bodies) now held; evicted counts all records ever entered in the ledger.

    held: those of records that the hub has taken and the cloud has not confirmed yet.
    """

    records: int
    bytes: int
    evicted: int
    held: int = 0


class Store(Protocol):
    """The five calls that make an outbox; tests/memory_outbox.py is another one, and one suite runs over both.

    What each promises is said at edge.outbox.Outbox.
    """

    def append(self, records: Sequence[NewRecord], cursor: tuple[str, bytes] | None = None) -> list[int]: ...

    def peek(
        self,
        limit_bytes: int,
        limit_records: int,
        after: Mapping[int, int] | None = None,
        *,
        without: Collection[int] = (),
        skip: Collection[int] = (),
        oldest_first: bool = False,
    ) -> list[Record]: ...

    def ack(
        self, sequences: Iterable[int], cursor: tuple[str, bytes] | None = None, entries: Iterable[int] = ()
    ) -> None: ...

    def evict(self, need_bytes: int, least: int = 0, reason: str = "quota") -> int: ...

    def stats(self) -> Stats: ...


def record_of(row: tuple[Any, ...]) -> Record | None:
    """The record of a row (sequence, outbox, stream, priority, manifest, body, expires, crc), or None if it is
    not what was stored."""
    sequence, outbox, stream, priority, manifest, body, expires, crc = row
    try:
        if crc == checksum(sequence, outbox, stream, priority, manifest, body, expires):
            return Record(sequence, priority, stream.decode(), manifest, body, outbox, expires)
    except (TypeError, ValueError, OverflowError):
        pass
    return None
