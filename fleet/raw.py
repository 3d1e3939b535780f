"""Raw frames that vehicles sent, out of a table's archive: for whoever wants the recording back.

<table>/vehicle=…/_received ──► captures() ──► frames of each raw block, in the order in which the vehicle stored them
                                            └──► export() ──► candump, BLF or MF4, with times of UTC
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cy_core.frames import Frames
from edge import block as blocks
from edge.errors import BlockCorrupt, InputError
from edge.log_writer import open_log_writer
from fleet.archive import Archive
from fleet.clock import Clocks
from fleet.folder import check, kept_tables, vehicles
from fleet.lines import Models


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


def export(
    table: Path | str, out: Path, vehicle: str, campaign: str, start_us: int | None = None, end_us: int | None = None
) -> int:
    """Write the frames of one vehicle's campaign, from start_us on and before end_us (UTC); how many there were.

    The form is that of out's suffix (edge/log_writer.py). Raises InputError: there are none, or it cannot be written.
    """
    check(Path(table))
    count = 0
    with open_log_writer(out) as log:
        for capture in captures(table, vehicle, campaign):
            frames = _in_utc(capture, start_us, end_us)
            log.write(frames, capture.buses)
            count += len(frames)
        if not count:
            known = sorted({(found.vehicle, found.campaign) for found in captures(table)})
            names = ", ".join(f"{name} {stream}" for name, stream in known[:10]) or "none in the table"
            raise InputError(f"{vehicle} {campaign}", "has no raw frames then", f"there are: {names}")
    return count


def _in_utc(capture: Capture, start_us: int | None, end_us: int | None) -> Frames:
    records, payloads = capture.frames.to_bytes()
    slots = np.frombuffer(records, np.int64).reshape(-1, 3).copy()  # docs/formats/frame.md: time, then id and payload
    slots[:, 0] += capture.utc_offset_us
    frames = Frames()
    frames.extend(slots.tobytes(), payloads)
    if start_us is None and end_us is None:
        return frames
    kept = Frames()
    low, high = start_us or 0, end_us if end_us is not None else 1 << 62
    for place, time_us in enumerate(slots[:, 0].tolist()):
        if low <= time_us < high:
            kept.extend(*frames.slice(place, place + 1).to_bytes())
    return kept
