"""Raw frames that vehicles sent, out of a table's archive: for whoever wants the recording back.

<table>/vehicle=…/_received ──► captures() ──► frames of each raw block, in the order in which the vehicle stored them
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cy_core.frames import Frames
from edge import block as blocks
from edge.errors import BlockCorrupt
from fleet.archive import Archive
from fleet.build import Models
from fleet.clock import Clocks
from fleet.decode import kept_tables, vehicles


class Capture(NamedTuple):
    """The frames of one block. Times are of the vehicle's clock; with utc_offset_us they are microseconds of UTC."""

    vehicle: str
    campaign: str
    sequence: int
    buses: tuple[str, ...]
    frames: Frames
    utc_offset_us: int


def captures(table: Path | str, vehicle: str | None = None, campaign: str | None = None) -> Iterator[Capture]:
    """Every raw block; of one vehicle, of one campaign. Blocks that do not decode are left out: the audit has them.

    Raises InputError: the archive is damaged.
    """
    models = Models(kept_tables(Path(table)))
    for name, folder in vehicles(Path(table)):
        if vehicle is not None and name != vehicle:
            continue
        archive, clocks = Archive(folder), Clocks()
        records = archive.records()
        for record in records:
            clocks.add(record.entry.sequence, record.clock, record.entry.enqueued_us)
        for record, data in archive.bodies(r for r in records if campaign in (None, r.group.stream)):
            frames = Frames()
            try:
                if not blocks.holds_frames(data):
                    continue
                buses = blocks.decode_frames(data, frames, models)
            except BlockCorrupt:
                continue
            offset_us = clocks.utc_offset_us(record.entry.sequence, record.clock, record.entry.enqueued_us)
            yield Capture(name, record.group.stream, record.entry.sequence, buses, frames, offset_us)
