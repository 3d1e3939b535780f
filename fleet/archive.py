"""All records that arrived from one vehicle, each once, as segments; docs/formats/archive.md gives every byte.

    messages of one run ──► what is new ──► <table>/vehicle=…/_received/000007.segment

A segment appears whole and is never changed, so that what was given once is never needed again: a manifest or a clock
that comes late is applied to what is here. The same message read again changes nothing.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from cy_core.crc32c import crc32c
from edge.durable import write_durably
from edge.errors import BlockCorrupt, InputError
from edge.message import Block, Clock, Counters, Coverage, Eviction, Quality, Record
from fleet.messages import MOST_NAME_BYTES, Received
from fleet.ranges import Ranges

FOLDER = "_received"
FOOTER = struct.Struct("<QQII4s")  # where the index begins, its size, its CRC-32C, 0, magic
MAGIC = b"BNA1"
MOST_COUNTED = 1 << 48  # frames, samples, records: more than any vehicle makes, so that sums fit


class Group(msgspec.Struct, array_like=True, frozen=True):
    """What many records have in common. manifest: 64 hex digits; boot_id may be empty."""

    outbox: str
    manifest: str
    stream: str
    source: str
    boot_id: bytes


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A record: number of its group, where the body is in the segment, and what its block says of itself."""

    group: int
    sequence: int
    offset: int
    size: int
    enqueued_us: int
    utc_offset_us: int
    quality: int
    first: int
    end: int
    missing: int
    samples: int


class Index(msgspec.Struct, array_like=True):
    """messages: a digest of each; began_us: when the first message of an outbox came."""

    messages: list[bytes] = []
    duplicates: dict[str, int] = {}
    began_us: dict[str, int] = {}
    evictions: list[tuple[str, int, int, int, str, str, int]] = []
    groups: list[Group] = []
    counters: list[list[int]] = []  # of groups, but for samples, which entries have
    entries: list[Entry] = []
    damaged: list[tuple[str, int, str, str]] = []  # outbox, sequence, stream, what is wrong


class Stored(NamedTuple):
    """A record of the archive: the number-th of all that ever came, in a segment."""

    number: int
    segment: int
    entry: Entry
    group: Group

    @property
    def clock(self) -> Clock:
        return Clock(self.group.boot_id, self.entry.utc_offset_us, Quality(self.entry.quality))

    @property
    def coverage(self) -> Coverage:
        return Coverage(self.group.source, self.entry.first, self.entry.end, self.entry.missing)

    @property
    def block(self) -> Block:
        """Without its data."""
        return Block(b"", self.clock, self.coverage, Counters(samples=self.entry.samples))


class Archive:
    """sequences: of the records that are here, by outbox. Raises InputError: a segment is damaged, or cannot be read
    or written."""

    def __init__(self, vehicle_folder: Path) -> None:
        self.folder = vehicle_folder / FOLDER
        self.indexes = [_read_index(path) for path in _segments(self.folder)]
        self._messages = {digest for index in self.indexes for digest in index.messages}
        self.sequences: dict[str, Ranges] = {}
        for index in self.indexes:
            for entry in index.entries:
                self.sequences.setdefault(index.groups[entry.group].outbox, Ranges()).add(
                    entry.sequence, entry.sequence
                )

    def add(self, messages: Iterable[Received]) -> int:
        """Keep what is new in a segment of its own; return the number of new records. Durable when it returns."""
        draft = _Draft(self._messages, self.sequences)
        for message in messages:
            draft.take(message)
        if draft.index.messages:
            _write(self.folder, len(self.indexes) + 1, draft)
            self.indexes.append(draft.index)
        return len(draft.index.entries)

    def records(self) -> list[Stored]:
        """In the order in which the vehicle stored them, older outboxes first."""
        began = self.began_us()
        placed = (
            (segment, entry, index.groups[entry.group])
            for segment, index in enumerate(self.indexes, start=1)
            for entry in index.entries
        )
        found = [Stored(number, *place) for number, place in enumerate(placed)]
        return sorted(found, key=lambda r: (began[r.group.outbox], r.group.outbox, r.entry.sequence))

    def began_us(self) -> dict[str, int]:
        began: dict[str, int] = {}
        for index in self.indexes:
            for outbox, time_us in index.began_us.items():
                began[outbox] = min(time_us, began.get(outbox, time_us))
        return began

    def bodies(self, records: Iterable[Stored]) -> Iterator[tuple[Stored, bytes]]:
        """The data of the blocks, in the order asked for; one segment is open at a time."""
        number, file = 0, None
        try:
            for record in records:
                if record.segment != number or file is None:
                    if file is not None:
                        file.close()
                    number = record.segment
                    file = _path(self.folder, number).open("rb")
                file.seek(record.entry.offset)
                yield record, file.read(record.entry.size)
        except OSError as error:
            raise InputError(self.folder, f"cannot be read ({error.strerror})", "look at the disk") from error
        finally:
            if file is not None:
                file.close()

    def evictions(self) -> Iterator[tuple[str, Eviction]]:
        for index in self.indexes:
            for outbox, first, last, count, stream, reason, time_us in index.evictions:
                yield outbox, Eviction(first, last, count, stream, reason, time_us)


def count_segments(vehicle_folder: Path) -> int:
    return len(_segments(vehicle_folder / FOLDER))


def read_block(record: Record) -> Block:
    """Raises BlockCorrupt: no block, or one that says of itself what cannot be."""
    block = Block.decode(record.body)
    coverage = block.coverage
    if not 0 < len(quote(record.stream, safe="")) <= MOST_NAME_BYTES:
        raise BlockCorrupt(f"no campaign has a name of {len(record.stream)} characters like this one's")
    if coverage.end < coverage.first:
        raise BlockCorrupt(f"it covers frames {coverage.first} to {coverage.end}")
    most = max(record.sequence, coverage.end, coverage.missing, *msgspec.structs.astuple(block.counters))
    if most > MOST_COUNTED:
        raise BlockCorrupt(f"it counts to {most}")
    return block


class _Draft:
    """A segment in the making."""

    def __init__(self, messages: set[bytes], sequences: dict[str, Ranges]) -> None:
        self.index = Index()
        self.bodies: list[bytes] = []
        self._messages = messages
        self._sequences = sequences
        self._groups: dict[Group, int] = {}
        self._size = 0

    def take(self, message: Received) -> None:
        digest = blake2b(message.body + struct.pack("<q", message.enqueued_us), digest_size=12).digest()
        if digest in self._messages:
            return
        self._messages.add(digest)
        index, outbox = self.index, message.envelope.outbox_id.hex()
        index.messages.append(digest)
        index.began_us[outbox] = min(message.enqueued_us, index.began_us.get(outbox, message.enqueued_us))
        index.evictions += [(outbox, *msgspec.structs.astuple(eviction)) for eviction in message.envelope.evictions]
        known = self._sequences.setdefault(outbox, Ranges())
        for record in message.envelope.records:
            if record.sequence in known:
                index.duplicates[outbox] = index.duplicates.get(outbox, 0) + 1
                continue
            try:
                block = read_block(record)
            except BlockCorrupt as error:
                index.damaged.append((outbox, record.sequence, record.stream[:MOST_NAME_BYTES], str(error)))
                continue  # another copy of it may be whole
            known.add(record.sequence, record.sequence)
            self._keep(message, record.sequence, record.stream, block)

    def _keep(self, message: Received, sequence: int, stream: str, block: Block) -> None:
        envelope, clock, coverage = message.envelope, block.clock, block.coverage
        group = Group(envelope.outbox_id.hex(), envelope.manifest.hex(), stream, coverage.source, clock.boot_id)
        number = self._groups.setdefault(group, len(self._groups))
        if number == len(self.index.groups):
            self.index.groups.append(group)
            self.index.counters.append([0] * len(Counters.__struct_fields__))
        counters = msgspec.structs.astuple(block.counters)
        self.index.counters[number] = [a + b for a, b in zip(self.index.counters[number], counters, strict=True)]
        place = (number, sequence, self._size, len(block.data), message.enqueued_us)
        frames = (coverage.first, coverage.end, coverage.missing)
        self.index.entries.append(
            Entry(*place, clock.utc_offset_us, int(clock.quality), *frames, block.counters.samples)
        )
        self.bodies.append(block.data)
        self._size += len(block.data)


def _segments(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.segment")) if folder.is_dir() else []
    for number, path in enumerate(found, start=1):
        if path != _path(folder, number):
            raise InputError(_path(folder, number), "is missing", "put it back: it holds what a vehicle sent")
    return found


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.segment"


def _write(folder: Path, number: int, draft: _Draft) -> None:
    index = msgspec.msgpack.encode(draft.index)
    size = sum(map(len, draft.bodies))
    footer = FOOTER.pack(size, len(index), crc32c(index), 0, MAGIC)
    write_durably(_path(folder, number), [*draft.bodies, index, footer])


def _read_index(path: Path) -> Index:
    way_out = "give the messages to a new table, or take the file from a backup"
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - FOOTER.size))
            footer = file.read()
            if len(footer) != FOOTER.size or not footer.endswith(MAGIC):
                raise InputError(path, "is no segment of messages, or is cut", way_out)
            start, size, crc, _, _ = FOOTER.unpack(footer)
            if start + size + FOOTER.size != end:
                raise InputError(path, "is not of the size that its footer says", way_out)
            file.seek(start)
            content = file.read(size)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "look at the disk") from error
    if crc32c(content) != crc:
        raise InputError(path, "does not match its checksum", way_out)
    try:
        return msgspec.msgpack.decode(content, type=Index)
    except msgspec.MsgspecError as error:
        raise InputError(path, f"is of another version ({error})", "take the version that wrote it") from error
