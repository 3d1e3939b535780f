"""Rows of one vehicle to its files, one for each campaign and day; both engines end here.

rows of blocks, in any order ──► by time ──► <vehicle>/campaign=…/date=…/part-0.parquet, each replaced whole
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fleet.folder import DAY_US, PART, campaign_folder, day_folder
from fleet.lines import Bounds, Decoded
from fleet.rows import Fact, Samples, TableMaker
from fleet.sort import Sorter
from fleet.table_file import ParquetFile

ROWS_AT_ONCE = 1 << 16  # small blocks become one table: what Arrow costs is by the table

Day = tuple[str, int]  # campaign, days since 1970


class Days:
    """spill: a folder for what memory should not hold."""

    def __init__(self, vehicle_folder: Path, spill: Path) -> None:
        self._folder = vehicle_folder
        self._sorter = Sorter(spill)
        self._waiting: dict[tuple[str, TableMaker], list[Samples]] = {}
        self._rows = 0  # that wait
        self._known: dict[Day, dict[tuple[str, Fact], Bounds]] = {}

    def add(self, campaign: str, manifest: str, block: Decoded) -> None:
        times = block.samples.time_us
        if not len(times):
            return
        first, last = int(times.min()) // DAY_US, int(times.max()) // DAY_US
        for day in [first] if first == last else np.unique(times // DAY_US).tolist():
            known = self._known.setdefault((campaign, day), {})
            for fact, bound in block.bounds.items():
                before = known.get((manifest, fact), bound)
                known[manifest, fact] = max(before[0], bound[0]), max(before[1], bound[1])
        self._waiting.setdefault((campaign, block.maker), []).append(block.samples)
        self._rows += len(times)
        if self._rows >= ROWS_AT_ONCE:
            self._sort()

    def _sort(self) -> None:
        for (campaign, maker), parts in self._waiting.items():
            self._sorter.add(maker.table_of(parts), campaign)
        self._waiting, self._rows = {}, 0

    def write(self) -> set[Day]:
        """Of which days there are files now."""
        self._sort()
        for campaign in {campaign for campaign, _ in self._known}:
            self._write(campaign)
        return set(self._known)

    def _write(self, campaign: str) -> None:
        tables = self._sorter.tables(campaign)
        rows = next(tables, None)
        while rows is not None:
            day = _day(rows)
            path = day_folder(campaign_folder(self._folder, campaign), day) / PART
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{PART}.draft")
            with ParquetFile(draft, self._facts(campaign, day)) as file:
                while rows is not None and _day(rows) == day:
                    file.write(rows)
                    rows = next(tables, None)
            draft.replace(path)

    def _facts(self, campaign: str, day: int) -> dict[str, Any]:
        used = self._known[campaign, day]
        signals = {fact.name: fact.document(*bounds) for (_, fact), bounds in sorted(used.items())}
        return {"manifests": sorted({manifest for manifest, _ in used}), "signals": signals}


def _day(rows: pa.Table) -> int:
    return int(rows["time_us"][0].as_py()) // DAY_US
