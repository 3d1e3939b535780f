"""Rows in any order in, tables in order of time out, in memory that does not grow with the drive.

rows ──► by group and minute of UTC ──► kept, or put on disk when there are many ──► by time, each table sorted, out
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fleet.folder import DAY_US
from fleet.rows import in_order, whole_table

MINUTE_US = 60_000_000
ROWS_IN_MEMORY = 1_000_000  # about 60 MB, and as much again while they go to disk
ROWS_AT_ONCE = 1 << 16  # of a table that comes out, unless one minute has more
MOST_OPEN_FILES = 16

Place = tuple[str, int]  # group, minute since 1970


class Sorter:
    """Takes tables with the ORDER column, all of one schema; spill is a folder for what memory should not hold."""

    def __init__(self, spill: Path, rows_in_memory: int = ROWS_IN_MEMORY) -> None:
        self._spill = spill
        self._rows_in_memory = rows_in_memory
        self._kept: dict[Place, list[pa.Table]] = {}
        self._rows = 0
        self._files = 0
        self._on_disk: dict[Place, list[tuple[int, int]]] = {}  # file, batch in it
        self._open: dict[int, Any] = {}

    def add(self, rows: pa.Table, group: str = "") -> None:
        if not rows.num_rows:
            return
        minutes = np.asarray(rows["time_us"]) // MINUTE_US
        if minutes.min() == minutes.max():
            self._kept.setdefault((group, int(minutes[0])), []).append(rows)
        else:
            by_minute = np.argsort(minutes, kind="stable")
            rows, minutes = rows.take(by_minute), minutes[by_minute]
            found, starts = np.unique(minutes, return_index=True)
            for minute, start, end in zip(found.tolist(), starts, [*starts[1:], len(minutes)], strict=True):
                self._kept.setdefault((group, minute), []).append(rows.slice(start, end - start))
        self._rows += rows.num_rows
        if self._rows > self._rows_in_memory:
            self._put_on_disk()

    def tables(self, group: str = "") -> Iterator[pa.Table]:
        """Everything of a group, once; by time, and within one time in the manifest's order. Each is of one day."""
        parts: list[pa.Table] = []
        rows, day = 0, 0
        for place in sorted(place for place in self._kept.keys() | self._on_disk.keys() if place[0] == group):
            day_of_place = place[1] * MINUTE_US // DAY_US
            if parts and (rows >= ROWS_AT_ONCE or day_of_place != day):
                yield in_order(pa.concat_tables(parts))
                parts, rows = [], 0
            of_place = [self._read(*where) for where in self._on_disk.pop(place, ())] + self._kept.pop(place, [])
            parts += of_place
            rows += sum(part.num_rows for part in of_place)
            day = day_of_place
        if parts:
            yield in_order(pa.concat_tables(parts))

    def _put_on_disk(self) -> None:
        """One file, a batch for each place."""
        self._spill.mkdir(parents=True, exist_ok=True)
        places = sorted(self._kept)
        sizes = [sum(part.num_rows for part in self._kept[place]) for place in places]
        whole = whole_table(pa.concat_tables([part for place in places for part in self._kept[place]]))
        self._kept, self._rows = {}, 0
        with pa.OSFile(str(self._path(self._files)), "wb") as file, pa.ipc.new_file(file, whole.schema) as writer:
            start = 0
            for number, (place, size) in enumerate(zip(places, sizes, strict=True)):
                writer.write_table(whole.slice(start, size))
                self._on_disk.setdefault(place, []).append((self._files, number))
                start += size
        self._files += 1

    def _read(self, file: int, batch: int) -> pa.Table:
        if file not in self._open:
            while len(self._open) >= MOST_OPEN_FILES:
                del self._open[next(iter(self._open))]
            self._open[file] = pa.ipc.open_file(pa.OSFile(str(self._path(file)), "rb"))
        return pa.Table.from_batches([self._open[file].get_batch(batch)])

    def _path(self, file: int) -> Path:
        return self._spill / f"{file}.arrow"
