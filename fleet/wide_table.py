"""A table to its wide form, message by message: a row for each frame, a column for each signal.

<out>/_wide.json
<out>/<message>/date=…/vehicle=…/campaign=…/part-0.parquet     columns as in fleet/wide.py; those of a message are alike

The folder is made anew each time, beside the one that is there, and takes its place once it is whole.
"""

import json
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from edge.errors import InputError
from fleet.folder import PART, PARTITIONS, check
from fleet.table import facts, read, sound
from fleet.table_file import FACTS, LAYOUT

MARK, CONTENT = "_wide.json", '{"format": 1}\n'
FIRST = ("time_us", "bus")  # then the signals, by name; vehicle and campaign are in the path


class Written(NamedTuple):
    messages: int
    files: int
    rows: int


def write(
    table: Path, out: Path, messages: Collection[str] = (), progress: Callable[[float], None] = lambda part: None
) -> Written:
    """Write these messages of a table, or all. A day of a vehicle's message is what must fit in memory.

    Raises InputError: there is no table, no such message in it, something else is at out, or it cannot be written.
    """
    check(table)
    if table.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(out, "is in the table", "choose a place outside: what reads the table would find it there")
    if out.exists() and not (out / MARK).is_file():
        raise InputError(out, "is there already, and is no wide table of ours", "choose another place")
    draft, old = (out.with_name(f".{out.name}.{name}") for name in ("draft", "old"))
    try:
        for left in (draft, old):
            shutil.rmtree(left, ignore_errors=True)
        draft.mkdir(parents=True)
        (draft / MARK).write_text(CONTENT)
        written = _write(table, draft, set(messages), progress)
        if out.exists():
            out.replace(old)
        draft.replace(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(out, f"cannot be written ({error.strerror or error})", "choose another place") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return written


def _write(table: Path, out: Path, wanted: set[str], progress: Callable[[float], None]) -> Written:
    pattern = "/".join(f"{name}=*" for name in PARTITIONS)
    paths, files, rows = sorted(table.glob(f"{pattern}/{PART}")), 0, 0
    columns: dict[str, dict[str, pa.DataType]] = {}
    for done, path in enumerate(paths, start=1):
        for message in _messages(path):
            if wanted and message not in wanted:
                continue
            found = _of_message(read(path.parent, message=message, wide=True), message)
            columns.setdefault(message, {}).update(zip(found.column_names, found.schema.types, strict=True))
            vehicle, campaign, day = path.parent.relative_to(table).parts
            _store(found, out / quote(message, safe="") / day / vehicle / campaign / PART)
            files, rows = files + 1, rows + found.num_rows
        progress(0.9 * done / len(paths))
    if missing := sorted(wanted - columns.keys()):
        raise InputError(f"--message {missing[0]}", f"is not in {table}", "give a message as the table has it")
    for message, known in columns.items():
        _make_alike(out / quote(message, safe=""), known)
    return Written(len(columns), files, rows)


def _messages(path: Path) -> Iterator[str]:
    with sound(path.parent):
        column = pq.read_table(path, columns=["message"], partitioning=None)["message"]
    yield from sorted(column.unique().to_pylist())


def _of_message(rows: pa.Table, message: str) -> pa.Table:
    """Without what the path says; of the facts, those of its signals."""
    known = facts(rows)
    signals = {name: fact for name, fact in known["signals"].items() if name.split(".", 1)[1].startswith(f"{message}.")}
    names = sorted(set(rows.column_names) - {*FIRST, "vehicle", "campaign"})
    return rows.select([*FIRST, *names]).replace_schema_metadata({FACTS: json.dumps({**known, "signals": signals})})


def _make_alike(folder: Path, columns: dict[str, pa.DataType]) -> None:
    """A file lacks the columns of which its day had nothing: they are null there."""
    names = [*FIRST, *sorted(columns.keys() - set(FIRST))]
    for path in folder.rglob(PART):
        if pq.read_schema(path).names != names:
            found = pq.read_table(path, partitioning=None)
            for name in columns.keys() - set(found.column_names):
                found = found.append_column(name, pa.nulls(found.num_rows, columns[name]))
            _store(found.select(names), path)


def _store(rows: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    dictionaries = [name for name in rows.column_names if name != "time_us"]
    pq.write_table(rows.unify_dictionaries(), path, **{**LAYOUT, "use_dictionary": dictionaries})
