"""Tables of rows to files: Parquet, laid out for questions of time, or CSV. A file appears when all of it is there."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from edge.errors import InputError
from edge.manifest import DecoderManifest
from fleet.csv_file import CsvFile
from fleet.rows import SCHEMA

FACTS = b"bordnetz"  # in the metadata of the schema, as JSON: manifests (hashes), and signals as Fact has them
# Sorted by time: differences are small, and the page index finds a time without reading the rest.
LAYOUT: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["bus", "message", "signal", "label", "raw", "value"],
    "column_encoding": {"time_us": "DELTA_BINARY_PACKED"},
    "write_page_index": True,
    "sorting_columns": [pq.SortingColumn(0)],
}
ROWS_IN_GROUP = 1 << 18
SUFFIXES = (".parquet", ".csv")


def write(table: pa.Table, path: Path | str, manifest: DecoderManifest) -> None:
    """Write a table of this manifest to .parquet or .csv; see open_writer."""
    with open_writer(Path(path), manifest) as writer:
        writer.write(table)


@contextmanager
def open_writer(path: Path, manifest: DecoderManifest) -> Iterator[Any]:
    """A writer with write(table), by suffix .parquet or .csv; see draft_of for what it raises."""
    with draft_of(path) as draft, _file(draft, path.suffix, manifest) as file:
        yield file


def _file(path: Path, suffix: str, manifest: DecoderManifest) -> Any:
    return ParquetFile(path) if suffix == ".parquet" else CsvFile(path, SCHEMA.names, manifest)


@contextmanager
def draft_of(path: Path, suffixes: Sequence[str] = SUFFIXES) -> Iterator[Path]:
    """A place to write the file to, which becomes path if nothing goes wrong.

    Raises InputError: it has another suffix, or cannot be written.
    """
    if path.suffix not in suffixes:
        raise InputError(path, "is no kind of table by its suffix", f"take {' or '.join(suffixes)}")
    draft = path.with_name(f".{path.name}.draft")
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        raise InputError(path, f"cannot be written ({error.strerror or error})", "choose another place") from error
    finally:
        draft.unlink(missing_ok=True)


class ParquetFile:
    """Small tables are put together to row groups of a useful size; facts go into the metadata of the schema."""

    def __init__(self, path: Path, facts: Mapping[str, Any] | None = None) -> None:
        schema = SCHEMA.with_metadata({FACTS: json.dumps(facts)}) if facts else SCHEMA
        self._writer = pq.ParquetWriter(path, schema, **LAYOUT)
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> "ParquetFile":
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table.select(SCHEMA.names))
        if sum(part.num_rows for part in self._waiting) >= ROWS_IN_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting).unify_dictionaries())
            self._waiting = []
