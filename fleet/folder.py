"""Where things are in the folder of a table, and who may write there.

_table.json _audit.json _findings.json _manifests/ _tables/     of all vehicles
vehicle=…/_received/ _built                                     the archive, and what was built from it
vehicle=…/campaign=…/date=…/part-0.parquet                      the rows
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from urllib.parse import quote, unquote

from edge.errors import InputError
from edge.table import HASH_BYTES

TABLE_FILE = "_table.json"  # readers of a folder of Parquet pass over names that begin so
AUDIT_FILE = "_audit.json"
MANIFESTS = "_manifests"
TABLES = "_tables"
PARTITIONS = ("vehicle", "campaign", "date")
PART = "part-0.parquet"
DAY_US = 86_400_000_000


@contextmanager
def open_table(table: Path) -> Iterator[None]:
    """The table as ours alone. Raises InputError as decode does, and whenever it cannot be written."""
    ours = not table.exists() or (table.is_dir() and ((table / TABLE_FILE).exists() or not any(table.iterdir())))
    if not ours:
        raise InputError(table, "is there already, and is no table of ours", "choose another place for the table")
    try:
        table.mkdir(parents=True, exist_ok=True)
        with (table / TABLE_FILE).open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(table, "is being written by another process", "wait for it to end") from error
            file.seek(0)
            _check_version(table, file.read())
            yield
    except OSError as error:
        raise InputError(table, f"cannot be written ({error.strerror or error})", "choose another place") from error


def _check_version(table: Path, content: bytes) -> None:
    if not content:  # made just now, or a kill came between
        with (table / TABLE_FILE).open("r+b") as file:
            file.write(b'{"format": 1}\n')
            os.fsync(file.fileno())
    elif content != b'{"format": 1}\n':
        raise InputError(table / TABLE_FILE, "is of no known version", "take the version that wrote it")


def check(folder: Path) -> None:
    """Raises InputError: there is no table in it."""
    if not (folder / TABLE_FILE).exists() and not parquet_files(folder):
        raise InputError(folder, "holds no table", "`bordnetz fleet decode` makes one")


def parquet_files(folder: Path) -> list[str]:
    """As Spark and Arrow do, without what lies in folders whose name begins with _ or a dot."""
    found = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    return [str(path) for path in found if not any(part[0] in "_." for part in path.relative_to(folder).parts)]


def kept_tables(table: Path) -> dict[str, Path]:
    """The model tables that a table has copies of, by the names that blocks have for them."""
    return {path.stem[: 2 * HASH_BYTES]: path for path in (table / TABLES).glob("*.table")}


def folder_of(table: Path, vehicle: str) -> Path:
    return table / f"vehicle={quote(vehicle, safe='')}"


def vehicles(table: Path) -> list[tuple[str, Path]]:
    """Those that the table has, with their folders."""
    found = sorted(table.glob("vehicle=*"))
    return [(unquote(folder.name.removeprefix("vehicle=")), folder) for folder in found]


def campaign_folder(vehicle_folder: Path, campaign: str) -> Path:
    return vehicle_folder / f"campaign={quote(campaign, safe='')}"


def day_folder(campaign_folder: Path, day: int) -> Path:
    """day: since 1970."""
    return campaign_folder / f"date={date.fromordinal(_EPOCH + day)}"


def days_of(vehicle_folder: Path) -> Iterator[tuple[str, int]]:
    """(campaign, day since 1970) of those that have a folder."""
    for path in vehicle_folder.glob("campaign=*/date=[0-9]*"):
        day = date.fromisoformat(path.name.removeprefix("date="))
        yield unquote(path.parent.name.removeprefix("campaign=")), day.toordinal() - _EPOCH


_EPOCH = date(1970, 1, 1).toordinal()
