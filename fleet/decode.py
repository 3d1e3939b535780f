"""Messages to tables: nothing twice, nothing silently missing.

    folders of messages ──first pass──► index: where is each (vehicle, outbox, sequence), and what time was it
                                          │
        again, in the vehicle's order ────┴──► blocks ──► rows ──► <table>/vehicle=…/campaign=…/date=…/part-0.parquet
                                                 └──► audit ──► <table>/_audit.json

The table appears as a whole, in place of the one before, or not at all. Memory holds a line of the index for each
record, and a bounded number of rows. Records of a manifest that is not there are kept as messages in
<table>/_undecoded/, to be decoded when it is.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
import numpy as np
import pyarrow as pa

from edge import block as blocks
from edge import manifest as manifest_files
from edge.decoder import Decoder
from edge.errors import BlockCorrupt, InputError
from edge.manifest import DecoderManifest
from edge.message import Block, Record
from fleet import messages
from fleet.audit import Audit, SequenceBook, Trail
from fleet.clock import Clocks
from fleet.messages import Place, Received
from fleet.sort import Sorter
from fleet.table import ParquetFile, TableMaker

AUDIT_FILE = "_audit.json"  # readers of a folder of Parquet pass over names that begin so
UNDECODED = "_undecoded"
TIMES_US = (-62_135_596_800_000_000, 253_402_300_800_000_000)  # years 1 to 9999
MOST_PROBLEMS = 1000

Manifests = Mapping[str, DecoderManifest]
Progress = Callable[[float], None]


def decode(
    folders: Iterable[Path | str],
    manifests: Manifests | Path | str,
    table: Path | str,
    progress: Progress = lambda part: None,
) -> Audit:
    """Write the table of all messages below folders; progress gets the part that is done, 0 to 1.

    manifests: by their hash, or a folder of manifest files. Raises InputError: no such folder, a manifest file that
    is damaged, or table is a folder of something else.
    """
    table = Path(table)
    _check_place(table)
    known = manifests if isinstance(manifests, Mapping) else load_manifests(Path(manifests))
    index = _Index(known)
    paths = messages.files(folders)
    for done, path in enumerate(paths, start=1):
        for message in messages.read([path]):
            index.take(message)
        progress(0.3 * done / len(paths))
    draft = table.with_name(f".{table.name}.{os.getpid()}.draft")
    try:
        draft.mkdir(parents=True)
        audit = _Writing(index, known, draft).run(lambda part: progress(0.3 + 0.7 * part))
        (draft / AUDIT_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(audit)))
        _replace(table, draft)
    except OSError as error:
        raise InputError(table, f"cannot be written ({error.strerror or error})", "choose another place") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return audit


def load_manifests(folder: Path) -> dict[str, DecoderManifest]:
    """The decoder manifests among the files of a folder, by hash; or that of one file. Raises InputError."""
    if not folder.exists():
        raise InputError(folder, "no such file or folder", "give a decoder manifest, or a folder of them")
    found = {}
    for path in [folder] if folder.is_file() else sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            is_one = file.read(len(manifest_files.FORMAT)) == manifest_files.FORMAT.encode()
        if is_one or path == folder:
            manifest = manifest_files.load(path)
            found[manifest.hash] = manifest
    return found


class _Entry(NamedTuple):
    """Where a record is: the nth of the message at that place."""

    vehicle: str
    outbox: str
    sequence: int
    place: Place
    nth: int


class _Index:
    """What the messages hold, in whatever order and however often they came."""

    def __init__(self, manifests: Manifests) -> None:
        self._manifests = manifests
        self._began_us: dict[tuple[str, str], int] = {}
        self._entries: list[_Entry] = []
        self._problem_count = 0
        self.books: dict[tuple[str, str], SequenceBook] = {}
        self.clocks = Clocks()
        self.problems: list[str] = []
        self.undecoded: dict[str, list[Place]] = {}
        self.other_messages = 0

    def take(self, message: Received | messages.Unreadable | messages.Other) -> None:
        if isinstance(message, messages.Other):
            self.other_messages += 1
        elif isinstance(message, messages.Unreadable):
            self.problem(str(message))
        else:
            self._take(message)

    def problem(self, line: str) -> None:
        """There may be as many as lines in the folders: the first thousand are named."""
        self._problem_count += 1
        if self._problem_count <= MOST_PROBLEMS:
            self.problems.append(line)

    def all_problems(self) -> list[str]:
        more = self._problem_count - MOST_PROBLEMS
        missing = [
            f"{len(places):,} messages need decoder manifest {manifest}, which was not given; kept in {UNDECODED}/"
            for manifest, places in sorted(self.undecoded.items())
        ]
        return self.problems + missing + ([f"and {more:,} more problems"] if more > 0 else [])

    def entries(self) -> list[_Entry]:
        """In the order in which each vehicle stored them, older outboxes first."""
        return sorted(self._entries, key=lambda e: (e.vehicle, self._began_us[e[:2]], e.outbox, e.sequence))

    def _take(self, message: Received) -> None:
        envelope, key = message.envelope, (message.vehicle, message.envelope.outbox_id.hex())
        book = self.books.setdefault(key, SequenceBook(*key))
        self._began_us[key] = min(message.enqueued_us, self._began_us.get(key, message.enqueued_us))
        for eviction in envelope.evictions:
            book.evict(eviction)
        fresh = [(nth, record) for nth, record in enumerate(envelope.records) if book.add(record.sequence)]
        manifest = envelope.manifest.hex()
        if fresh and manifest not in self._manifests:
            self.undecoded.setdefault(manifest, []).append(message.place)
        for nth, record in fresh:
            self._entries.append(_Entry(*key, record.sequence, message.place, nth))
            try:
                self.clocks.add(message.vehicle, record.sequence, Block.decode(record.body).clock)
            except BlockCorrupt:
                continue  # decoding says so


class _Writing:
    """The second pass."""

    def __init__(self, index: _Index, manifests: Manifests, folder: Path) -> None:
        self._index = index
        self._manifests = manifests
        self._folder = folder
        self._lines: dict[str, tuple[Decoder, TableMaker]] = {}
        self._trails: dict[tuple[str, str, str], Trail] = {}
        self._sorters: dict[tuple[str, str], Sorter] = {}
        self._message = lru_cache(maxsize=16)(_message)

    def run(self, progress: Progress) -> Audit:
        outboxes = [book.audit() for book in self._index.books.values()]
        entries = self._index.entries()
        vehicle = ""
        for done, entry in enumerate(entries, start=1):
            if entry.vehicle != vehicle:
                self._write_tables()
                vehicle = entry.vehicle
            self._decode(entry)
            progress(done / len(entries))
        self._write_tables()
        self._keep_undecoded()
        streams = [trail.finish(self._siblings(trail)) for trail in self._trails.values()]
        return Audit(outboxes, streams, self._index.all_problems(), self._index.other_messages)

    def _decode(self, entry: _Entry) -> None:
        message = self._message(entry.place)
        record = message.envelope.records[entry.nth]
        manifest = message.envelope.manifest.hex()
        try:
            block = Block.decode(record.body)
            if block.coverage.end < block.coverage.first:
                raise BlockCorrupt(f"it covers frames {block.coverage.first} to {block.coverage.end}")
            self._follow(entry, record, block)
            if manifest in self._manifests:
                decoder, maker = self._line(manifest)
                columns = blocks.decode(block.data, decoder.plan)
                offset_us = self._index.clocks.utc_offset_us(entry.vehicle, entry.sequence, block.clock)
                rows = maker.rows(columns, offset_us)
                _check_times(rows)
                self._sorter(entry.vehicle, record.stream).add(rows)
        except BlockCorrupt as error:
            self._index.problem(f"{entry.place}: record {entry.sequence} of {record.stream}: {error}; left out")

    def _follow(self, entry: _Entry, record: Record, block: Block) -> None:
        key = (entry.vehicle, record.stream, block.coverage.source)
        trail = self._trails.setdefault(key, Trail(*key))
        trail.add(entry.outbox, entry.sequence, block, self._index.books)

    def _siblings(self, trail: Trail) -> Iterator[Trail]:
        for other in self._trails.values():
            if (other.audit.vehicle, other.audit.source) == (trail.audit.vehicle, trail.audit.source):
                yield other

    def _line(self, manifest: str) -> tuple[Decoder, TableMaker]:
        if manifest not in self._lines:
            self._lines[manifest] = Decoder(self._manifests[manifest]), TableMaker(self._manifests[manifest])
        return self._lines[manifest]

    def _sorter(self, vehicle: str, campaign: str) -> Sorter:
        key = (vehicle, campaign)
        if key not in self._sorters:
            self._sorters[key] = Sorter(self._folder / "_spill" / str(len(self._sorters)))
        return self._sorters[key]

    def _write_tables(self) -> None:
        """Of the vehicle that is done."""
        for (vehicle, campaign), sorter in self._sorters.items():
            partition = self._folder / f"vehicle={quote(vehicle, safe='')}" / f"campaign={quote(campaign, safe='')}"
            _write_days(sorter, partition)
        self._sorters.clear()
        shutil.rmtree(self._folder / "_spill", ignore_errors=True)

    def _keep_undecoded(self) -> None:
        for manifest, places in self._index.undecoded.items():
            path = self._folder / UNDECODED / f"{manifest}.json"
            path.parent.mkdir(exist_ok=True)
            with path.open("wb") as file:
                file.writelines(messages.line_at(place).rstrip(b"\n") + b"\n" for place in places)


def _message(place: Place) -> Received:
    message = messages.parse(place, messages.line_at(place))
    if not isinstance(message, Received):
        raise InputError(place, "has changed while it was decoded", "decode again")
    return message


def _check_times(rows: pa.Table) -> None:
    """Raises BlockCorrupt: a clock beyond the calendar."""
    times = np.asarray(rows["time_us"])
    if len(times) and not TIMES_US[0] <= times.min() <= times.max() < TIMES_US[1]:
        raise BlockCorrupt(f"its samples are of {times.min()} to {times.max()} microseconds of UTC")


def _write_days(sorter: Sorter, partition: Path) -> None:
    with ExitStack() as day:
        open_day, file = None, None
        for rows in sorter.tables():
            # A table is of one minute, so it is of one day.
            date = _date(rows)
            if date != open_day:
                day.close()
                folder = partition / f"date={date}"
                folder.mkdir(parents=True)
                open_day, file = date, day.enter_context(ParquetFile(folder / "part-0.parquet"))
            assert file is not None
            file.write(rows)


def _date(rows: pa.Table) -> Any:
    return datetime.fromtimestamp(rows["time_us"][0].as_py() // 1_000_000, UTC).date()


def _check_place(table: Path) -> None:
    if table.exists() and not (table.is_dir() and ((table / AUDIT_FILE).exists() or not any(table.iterdir()))):
        raise InputError(table, "is there already, and is no table of ours", "choose another place for the table")


def _replace(table: Path, draft: Path) -> None:
    """Put draft in table's place; what was there goes."""
    if not table.exists():
        draft.rename(table)
        return
    old = table.with_name(f".{table.name}.{os.getpid()}.old")
    table.rename(old)
    try:
        draft.rename(table)
    except BaseException:
        old.rename(table)
        raise
    shutil.rmtree(old, ignore_errors=True)
