"""Rows in any order in, tables in order of time out, in memory that does not grow with the drive.

rows ──► by minute of UTC ──► kept, or put on disk when there are many ──► minute by minute, each sorted, out
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from fleet.table import ORDER, Numbers

MINUTE_US = 60_000_000
ROWS_IN_MEMORY = 2_000_000  # about 100 MB


class Sorter:
    """Takes tables with the ORDER column, all of one schema; spill is a folder for what memory should not hold."""

    def __init__(self, spill: Path, rows_in_memory: int = ROWS_IN_MEMORY) -> None:
        self._spill = spill
        self._rows_in_memory = rows_in_memory
        self._kept: dict[int, list[pa.Table]] = {}
        self._rows = 0
        self._files: dict[int, list[Path]] = {}

    def add(self, rows: pa.Table) -> None:
        if not rows.num_rows:
            return
        minutes = np.asarray(rows["time_us"]) // MINUTE_US
        if minutes.min() == minutes.max():
            self._kept.setdefault(int(minutes[0]), []).append(rows)
        else:
            by_minute = np.argsort(minutes, kind="stable")
            rows, minutes = rows.take(by_minute), minutes[by_minute]
            found, starts = np.unique(minutes, return_index=True)
            for minute, start, end in zip(found.tolist(), starts, [*starts[1:], len(minutes)], strict=True):
                self._kept.setdefault(minute, []).append(rows.slice(start, end - start))
        self._rows += rows.num_rows
        if self._rows > self._rows_in_memory:
            self._put_on_disk()

    def tables(self) -> Iterator[pa.Table]:
        """Everything, once; by time, and within one time in the manifest's order."""
        for minute in sorted(self._kept.keys() | self._files.keys()):
            parts = [_read(path) for path in self._files.pop(minute, ())] + self._kept.pop(minute, [])
            yield in_order(pa.concat_tables(parts))

    def _put_on_disk(self) -> None:
        self._spill.mkdir(parents=True, exist_ok=True)
        for minute, parts in self._kept.items():
            files = self._files.setdefault(minute, [])
            path = self._spill / f"{minute}-{len(files)}.arrow"
            table = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            files.append(path)
        self._kept = {}
        self._rows = 0


def in_order(rows: pa.Table) -> pa.Table:
    """By time, then by the manifest; what is equal in both stays in the order it came in."""
    order: Numbers = np.lexsort((np.asarray(rows[ORDER]), np.asarray(rows["time_us"])))
    return rows.unify_dictionaries().combine_chunks().take(order)


def _read(path: Path) -> pa.Table:
    with pa.OSFile(str(path), "rb") as file:
        table = pa.ipc.open_file(file).read_all()
    path.unlink()
    return table
