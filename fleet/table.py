"""Tables as people read them; docs/fleet.md, docs/formats/table.md."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq

from edge.errors import InputError
from edge.manifest import DecoderManifest
from fleet.decode import decode
from fleet.folder import PARTITIONS, check, parquet_files
from fleet.rows import SCHEMA, TEXT
from fleet.table_file import FACTS
from fleet.wide import wide as widen


def read(
    folder: Path | str,
    manifests: Mapping[str, DecoderManifest] | Path | None = None,
    *,
    vehicle: str | None = None,
    message: str | None = None,
    signal: str | None = None,
    start_us: int | None = None,
    end_us: int | None = None,
    wide: bool = False,
) -> pa.Table:
    """A folder that `decode` made, or with manifests one of messages, as one table.

    It has the columns of SCHEMA, then vehicle, campaign and date, and is in the order of those and of time; wide (of
    one message) is described in fleet/wide.py. Only what is asked for is read: of a vehicle, a message, a signal, from
    start_us on and before end_us. Raises InputError: there is no table in it, nor a message, or a file is damaged.
    """
    folder = Path(folder)
    if wide and message is None:
        raise InputError("wide", "is a form of one message", 'for example read(folder, message="BRAKE", wide=True)')
    equal = {"vehicle": vehicle, "message": message, "signal": signal}
    tests = [pc.field(name) == value for name, value in equal.items() if value is not None]
    tests += [pc.field("time_us") >= start_us] if start_us is not None else []
    tests += [pc.field("time_us") < end_us] if end_us is not None else []
    if manifests is not None:
        with tempfile.TemporaryDirectory() as scratch:
            decode([folder], manifests, Path(scratch) / "table")
            found = _read(Path(scratch) / "table", tests)
    else:
        check(folder)
        found = _read(folder, tests)
    if wide:
        return widen(found)
    return found


def _read(folder: Path, tests: list[pc.Expression]) -> pa.Table:
    with sound(folder):
        return _of_files(parquet_files(folder), tests)


@contextmanager
def sound(folder: Path) -> Iterator[None]:
    """For reading a table's files. Raises InputError: one is damaged or cannot be read."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        way_out = "delete the vehicle's _built and run `bordnetz fleet decode`: its archive makes the files again"
        raise InputError(folder, f"has a damaged file ({str(error).splitlines()[0]})", way_out) from error


def _of_files(paths: list[str], tests: list[pc.Expression]) -> pa.Table:
    fields = pa.schema([(name, TEXT) for name in PARTITIONS])
    if not paths:
        return pa.schema([*SCHEMA, *fields]).empty_table()
    partitioning = pa.dataset.partitioning(fields, flavor="hive", dictionaries="infer")
    found = pa.dataset.dataset(paths, format="parquet", partitioning=partitioning)
    table = (
        found.to_table(filter=reduce(and_, tests) if tests else None)
        .select([*SCHEMA.names, *PARTITIONS])
        .unify_dictionaries()
    )
    return table.replace_schema_metadata({FACTS: json.dumps(_facts(paths))})


def facts(table: pa.Table) -> dict[str, Any]:
    """What a table that `read` gave says of itself: manifests (hashes), and signals as Fact has them."""
    found: dict[str, Any] = json.loads((table.schema.metadata or {}).get(FACTS, b"{}"))
    return found


def _facts(paths: Iterable[str]) -> dict[str, Any]:
    """Of all files; a signal is as exact as where it is least."""
    manifests, signals = set[str](), dict[str, dict[str, Any]]()
    for path in paths:
        of_file = json.loads((pq.read_schema(path).metadata or {}).get(FACTS, b"{}"))
        manifests.update(of_file.get("manifests", ()))
        for name, fact in of_file.get("signals", {}).items():
            known = signals.setdefault(name, fact)
            for key in ("max_error", "time_tolerance_us"):
                known[key] = max(known[key], fact[key])
    return {"manifests": sorted(manifests), "signals": signals}
