"""The outbox: the durable queue between the collector and the uplink, a directory both have open.

    collector ── append(records, cursor) ──►  outbox.db  ──► peek, then ack or set_aside ── uplink
                 durable when it returns      (SQLite, WAL)  what the cloud acknowledged is forgotten

Promised, also across kills and power cuts: what append returned for is delivered by peek until it is
acknowledged, or the ledger says why not; a cursor is committed with its records; a sequence never repeats; a
record whose CRC32C does not match is set aside, never delivered; a corrupted file is salvaged. At the quota
the least important, oldest records go; on a full disk append raises OutboxFull, and goes on once there is
room. Schema and files: docs/formats/outbox.md.

    outbox.py    Outbox: what the modules call          records.py   records, the Store protocol, checksums
    hold.py      opening, retrying, room on the disk    database.py  the SQLite file: schema, statements
    files.py     names, lock, ballast in the folder     salvage.py   making, checking and mending that file
                                                        log.py       mending a damaged write-ahead log
"""

from edge.outbox.files import BALLAST_BYTES
from edge.outbox.outbox import DEFAULT_QUOTA_BYTES, MIN_QUOTA_BYTES, Outbox
from edge.outbox.records import MAX_BODY_BYTES, PAGE_BYTES, LedgerEntry, NewRecord, Record, Stats, Store

__all__ = [
    "BALLAST_BYTES",
    "DEFAULT_QUOTA_BYTES",
    "MAX_BODY_BYTES",
    "MIN_QUOTA_BYTES",
    "PAGE_BYTES",
    "LedgerEntry",
    "NewRecord",
    "Outbox",
    "Record",
    "Stats",
    "Store",
]
