"""Messages to tables: nothing twice, nothing silently missing.

    folders of messages ──► records, each (vehicle, outbox, sequence) once ──► blocks ──► rows
                                         └──► audit                            └──► <table>/vehicle=…/campaign=…/date=…/

The table appears as a whole, in place of the one before, or not at all. Memory holds the compressed blocks of what
is decoded in one go, and the rows of one block.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from edge import block as blocks
from edge.decoder import Decoder
from edge.errors import BlockCorrupt, InputError
from edge.manifest import DecoderManifest
from edge.message import Block, Envelope, Record
from fleet import messages
from fleet.audit import Audit, SequenceBook, StreamAudit
from fleet.table import TableMaker, open_writer

AUDIT_FILE = "_audit.json"  # readers of a folder of Parquet pass over names that begin so
DAY_US = 86_400_000_000


def decode(
    folders: Iterable[Path],
    manifests: Mapping[str, DecoderManifest],
    table: Path,
    progress: Callable[[float], None] = lambda part: None,
) -> Audit:
    """Write the table of all messages below folders; progress gets the part that is done, 0 to 1.

    manifests: by their hash. A message that names another is reported in the audit and left out. Raises InputError:
    no such folder, or table is a folder of something else.
    """
    _check_place(table)
    inbox = _Inbox(manifests)
    for message in messages.read(messages.files(folders)):
        inbox.take(message)
    draft = table.with_name(f".{table.name}.{os.getpid()}.draft")
    try:
        draft.mkdir(parents=True)
        with _Tables(draft) as tables:
            for done, (vehicle, record, manifest) in enumerate(inbox.records()):
                inbox.decode(vehicle, record, manifest, tables)
                progress(done / max(1, len(inbox)))
        audit = inbox.audit()
        (draft / AUDIT_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(audit)))
        _replace(table, draft)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return audit


class _Inbox:
    def __init__(self, manifests: Mapping[str, DecoderManifest]) -> None:
        self._manifests = manifests
        self._books: dict[tuple[str, str], SequenceBook] = {}
        self._streams: dict[tuple[str, str, str], StreamAudit] = {}
        self._records: list[tuple[str, str, Record, str]] = []
        self._lines: dict[str, tuple[Decoder, TableMaker]] = {}
        self._problems: list[str] = []

    def __len__(self) -> int:
        return len(self._records)

    def take(self, message: messages.Received | messages.Unreadable) -> None:
        if isinstance(message, messages.Unreadable):
            self._problems.append(str(message))
            return
        envelope: Envelope = message.envelope
        outbox, manifest = envelope.outbox_id.hex(), envelope.manifest.hex()
        book = self._books.setdefault((envelope.vehicle_id, outbox), SequenceBook(envelope.vehicle_id, outbox))
        for eviction in envelope.evictions:
            book.evict(eviction)
        if envelope.records and manifest not in self._manifests:
            self._problems.append(f"{message.place}: there is no decoder manifest {manifest[:16]}…; left out")
            return
        for record in envelope.records:
            if book.add(record.sequence):
                self._records.append((envelope.vehicle_id, outbox, record, manifest))

    def records(self) -> Iterable[tuple[str, Record, str]]:
        """In the order in which each outbox stored them."""
        self._records.sort(key=lambda entry: (entry[0], entry[1], entry[2].sequence))
        return ((vehicle, record, manifest) for vehicle, _, record, manifest in self._records)

    def decode(self, vehicle: str, record: Record, manifest: str, tables: "_Tables") -> None:
        place = f"{vehicle} record {record.sequence} of {record.stream}"
        try:
            block = Block.decode(record.body)
            decoder, maker = self._line(manifest)
            columns = blocks.decode(block.data, decoder.plan)
        except BlockCorrupt as error:
            self._problems.append(f"{place}: {error}; left out")
            return
        source = block.coverage.source
        key = (vehicle, record.stream, source)
        self._streams.setdefault(key, StreamAudit(*key)).add(block.coverage, block.counters)
        tables.write(vehicle, record.stream, maker.table(columns, block.clock.utc_offset_us), maker.manifest)

    def audit(self) -> Audit:
        return Audit([book.audit() for book in self._books.values()], list(self._streams.values()), self._problems)

    def _line(self, manifest: str) -> tuple[Decoder, TableMaker]:
        if manifest not in self._lines:
            self._lines[manifest] = Decoder(self._manifests[manifest]), TableMaker(self._manifests[manifest])
        return self._lines[manifest]


class _Tables:
    """Writers of the partitions, opened when the first row comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = ExitStack()
        self._writers: dict[Path, Any] = {}

    def __enter__(self) -> "_Tables":
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def write(self, vehicle: str, campaign: str, table: pa.Table, manifest: DecoderManifest) -> None:
        days = np.asarray(table["time_us"]) // DAY_US
        for day in np.unique(days).tolist():
            date = datetime.fromtimestamp(day * 86_400, UTC).date()
            path = self._folder / f"vehicle={vehicle}" / f"campaign={campaign}" / f"date={date}" / "part-0.parquet"
            if path not in self._writers:
                path.parent.mkdir(parents=True)
                self._writers[path] = self._open.enter_context(open_writer(path, manifest))
            self._writers[path].write(table.filter(pa.array(days == day)))


def _check_place(table: Path) -> None:
    if table.exists() and not (table.is_dir() and ((table / AUDIT_FILE).exists() or not any(table.iterdir()))):
        raise InputError(table, "is there already, and is no table of ours", "choose another place for the table")


def _replace(table: Path, draft: Path) -> None:
    """Put draft in table's place; what was there goes."""
    old = table.with_name(f".{table.name}.{os.getpid()}.old")
    if table.exists():
        table.rename(old)
    draft.rename(table)
    shutil.rmtree(old, ignore_errors=True)
