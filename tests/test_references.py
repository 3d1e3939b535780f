"""Recordings as others decode them: every row of every reference, by `bordnetz decode`."""

import collections
import csv
import gzip
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from edge import manifest as manifests
from edge.database import load_databases
from fleet.log import decode_log

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("BORDNETZ_DATA", ROOT / "../shared/data"))
REFERENCES = sorted(DATA.glob("*/*.ref.csv.gz"))
ADDRESSES = {"SourceAddress", "DestinationAddress"}
# The reference was made without value tables that our reading of the database can keep.
MORE_LABELS = {"meb-fd.ref.csv.gz"}
Key = tuple[str, str, str]  # time, bus, message
Sample = tuple[str, float, float | None, str]  # signal, raw, value, label


def databases_of(log: Path) -> dict[str, list[Path]]:
    """As the folder's README lists them."""
    found: dict[str, list[Path]] = {}
    for line in (log.parent / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 6 and cells[1] == log.name.removesuffix(".gz") and cells[4].startswith("`"):
            found[cells[2]] = [log.parent / name for name in re.findall(r"`([^`]+)`", cells[4])]
    return found


@pytest.mark.skipif(not REFERENCES, reason=f"no recorded data at {DATA} (set BORDNETZ_DATA)")
@pytest.mark.parametrize("reference", REFERENCES, ids=lambda path: path.name.removesuffix(".ref.csv.gz"))
def test_a_recording_decodes_to_every_row_of_its_reference_and_to_no_other(reference: Path, tmp_path: Path) -> None:
    log = reference.with_name(reference.name.replace(".ref.csv.gz", ".log.gz"))
    manifest, out = load_databases(databases_of(log)), tmp_path / "table.csv"
    assert decode_log(log, manifest, out).problems == []
    ranges = {(m.bus, m.name, s.name): manifests.no_values(m, s) for m in manifest.messages for s in m.signals}
    wanted: dict[Key, collections.Counter[Sample]] = collections.defaultdict(collections.Counter)
    labelled = set()
    for row in rows(gzip.open(reference, "rt")):  # noqa: SIM115 (rows closes it)
        key = row["timestamp_us"], row["bus"], row["message"]
        raw, value, label = float(row["raw"]), float(row["physical"]), row["label"]
        whys = [why for low, high, why in ranges[row["bus"], row["message"], row["signal"]] if low <= raw <= high]
        labelled |= {(row["message"], row["signal"])} if label else set()
        sample = (row["signal"], raw, None if whys else value, label or (whys[0] if whys else ""))
        wanted[key][sample] += 1
    found: dict[Key, collections.Counter[Sample]] = collections.defaultdict(collections.Counter)
    for row in rows(out.open()):
        key = row["time_us"], row["bus"], row["message"]
        if key in wanted and row["signal"] not in ADDRESSES:
            value = float(row["value"]) if row["value"] else None
            has_label = reference.name not in MORE_LABELS or (row["message"], row["signal"]) in labelled
            found[key][row["signal"], float(row["raw"]), value, row["label"] if has_label else ""] += 1
    assert wanted
    for key, samples in wanted.items():
        assert not samples - found[key], key
        if max(found[key].values()) == 1:  # else it came twice in one microsecond, and the reference may have one
            assert found[key] == samples, key


def rows(file: IO[str]) -> Iterator[dict[str, str]]:
    with file:
        yield from csv.DictReader(file)
