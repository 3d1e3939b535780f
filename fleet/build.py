"""A vehicle's archive to its Parquet files, as much of it as has changed.

    archive ──► records never decoded, or with another offset to UTC than before ──► days that change
       └──────► all records of those days ──► rows, sorted ──► campaign=…/date=…/part-0.parquet, each replaced whole

What was built is written down last (_built). A build that was killed is done again from what was written down before,
and comes to the same files.
"""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge.durable import write_durably
from edge.errors import BlockCorrupt, TableMissing
from fleet.archive import Archive, Stored, count_segments
from fleet.clock import Clocks
from fleet.days import Day, Days
from fleet.folder import DAY_US, campaign_folder, day_folder, days_of
from fleet.lines import Decoded, Lines, decode_block

STATE_FILE = "_built"
SPILL = "_spill"


class Span(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A record that is in the table: times of its first and last sample in the block, and the offset to UTC used."""

    first_us: int
    last_us: int
    utc_offset_us: int

    def days(self, utc_offset_us: int) -> range:
        if self.last_us < self.first_us:
            return range(0)
        return range((self.first_us + utc_offset_us) // DAY_US, (self.last_us + utc_offset_us) // DAY_US + 1)


class Problem(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """Why a record is not in the table; manifest, model_table: the one it waits for, or empty."""

    reason: str
    manifest: str = ""
    model_table: str = ""


class State(msgspec.Struct, array_like=True):
    """outcomes: of each record of the archive, by its number."""

    segments: int = 0
    outcomes: list[Any] = []


def load_outcomes(folder: Path) -> list[Span | Problem | None]:
    state = _load(folder)
    return state.outcomes if state else []


def needs_build(folder: Path, lines: Lines) -> bool:
    """Is there a record that no build has seen, or one that waits for a manifest or model table that is here now?"""
    state = _load(folder)
    if state is None or state.segments != count_segments(folder):
        return True
    waiting = [outcome for outcome in state.outcomes if isinstance(outcome, Problem)]
    return any(one.manifest in lines.manifests or one.model_table in lines.models for one in waiting)


def build(folder: Path, lines: Lines) -> None:
    """Bring the files of the vehicle in folder to what its archive says. Raises InputError, OSError."""
    shutil.rmtree(folder / SPILL, ignore_errors=True)
    _Build(folder, lines).run()
    shutil.rmtree(folder / SPILL, ignore_errors=True)


class _Build:
    def __init__(self, folder: Path, lines: Lines) -> None:
        self._folder = folder
        self._lines = lines
        self._archive = Archive(folder)
        self._records = self._archive.records()
        self._ranks = {record.number: rank for rank, record in enumerate(self._records)}
        self._offsets = _offsets(self._records)
        self._files = Days(folder, folder / SPILL)
        state = _load(folder)
        self._outcomes = list(state.outcomes) if state else []
        self._outcomes += [None] * (len(self._records) - len(self._outcomes))
        self._dirty: set[Day] = set(days_of(folder)) if state is None else set()

    def run(self) -> None:
        fresh = [record for record in self._records if not isinstance(self._outcomes[record.number], Span)]
        for record, data in self._archive.bodies(_by_place(fresh)):
            self._decode_first(record, data)
        done = {record.number for record in fresh}
        others = [record for record in self._records if record.number not in done]
        self._note_moved(others)
        again = [record for record in others if not self._dirty.isdisjoint(self._days(record))]
        for record, data in self._archive.bodies(_by_place(again)):
            self._decode_again(record, data)
        for campaign, day in self._dirty - self._files.write():  # nothing is of this day any more
            shutil.rmtree(day_folder(campaign_folder(self._folder, campaign), day), ignore_errors=True)
        state = State(len(self._archive.indexes), self._outcomes)
        write_durably(self._folder / STATE_FILE, [msgspec.msgpack.encode(state)])

    def _note_moved(self, records: Iterable[Stored]) -> None:
        """A day that a record leaves changes as much as the one it goes to."""
        for record in records:
            span, offset_us = self._outcomes[record.number], self._offsets[record.number]
            if span.utc_offset_us != offset_us:
                self._dirty.update((record.group.stream, day) for day in span.days(span.utc_offset_us))
                self._outcomes[record.number] = Span(span.first_us, span.last_us, offset_us)
                self._dirty.update(self._days(record))

    def _days(self, record: Stored) -> Iterator[Day]:
        for day in self._outcomes[record.number].days(self._offsets[record.number]):
            yield record.group.stream, day

    def _decode_first(self, record: Stored, data: bytes) -> None:
        try:
            decoded = self._decode(record, data)
        except BlockCorrupt as error:
            self._leave_out(record, error)
            return
        times, offset_us = decoded.samples.time_us, self._offsets[record.number]
        first, last = (int(times.min()), int(times.max())) if len(times) else (0, -1)
        span = Span(first - offset_us, last - offset_us, offset_us) if len(times) else Span(0, -1, offset_us)
        self._outcomes[record.number] = span
        self._dirty.update(self._days(record))
        self._files.add(record.group.stream, record.group.manifest, decoded)

    def _decode_again(self, record: Stored, data: bytes) -> None:
        try:
            decoded = self._decode(record, data)
        except BlockCorrupt as error:  # its manifest is no longer there, or a better clock makes no sense
            self._leave_out(record, error)
            return
        days = decoded.samples.time_us // DAY_US
        wanted = [day for campaign, day in self._days(record) if (campaign, day) in self._dirty]
        of_days = decoded._replace(samples=decoded.samples.where(np.isin(days, wanted)))
        self._files.add(record.group.stream, record.group.manifest, of_days)

    def _leave_out(self, record: Stored, error: BlockCorrupt) -> None:
        waits_for = "" if self._lines.get(record.group.manifest) else record.group.manifest
        model_table = error.name if isinstance(error, TableMissing) else ""
        self._outcomes[record.number] = Problem(str(error), waits_for, model_table)

    def _decode(self, record: Stored, data: bytes) -> Decoded:
        """Raises BlockCorrupt."""
        number, entry, group = record.number, record.entry, record.group
        return decode_block(
            self._lines,
            group.manifest,
            data,
            record.clock,
            self._offsets[number],
            entry.enqueued_us,
            self._ranks[number],
        )


def _offsets(records: Iterable[Stored]) -> dict[int, int]:
    clocks, records = Clocks(), list(records)
    for record in records:
        clocks.add(record.entry.sequence, record.clock, record.entry.enqueued_us)
    return {r.number: clocks.utc_offset_us(r.entry.sequence, r.clock, r.entry.enqueued_us) for r in records}


def _by_place(records: Iterable[Stored]) -> list[Stored]:
    return sorted(records, key=lambda record: record.number)


def _load(folder: Path) -> State | None:
    """What was built; None if nobody knows: then all of it is built again."""
    try:
        content = (folder / STATE_FILE).read_bytes()
        plain = msgspec.msgpack.decode(content)
        outcomes = [_outcome(value) for value in plain[1]]
        return State(plain[0], outcomes)
    except (OSError, msgspec.MsgspecError, ValueError, TypeError, IndexError):
        return None


def _outcome(value: Any) -> Span | Problem | None:
    if value is None:
        return None
    return Span(*value) if len(value) == 3 and isinstance(value[0], int) else Problem(*value[1:4])
