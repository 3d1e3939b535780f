"""Tables by VSS path: a view of the long form, made where it is read; what is stored stays as the bus had it.

    time_us   int64     microseconds of UTC
    path      dictionary of strings
    value     float64   in the unit of VSS; 1 and 0 of a boolean; null of a text, and where there is no value
    text      dictionary of strings: that of a string, true or false of a boolean; of a null, why it is one

A raw value that the overlay maps to nothing, or whose formula has no result, has no row. A signal that is mapped to
several paths has a row for each. docs/vss.md, docs/decisions/030-vss.md.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from edge.errors import InputError
from edge.manifest import DecoderManifest
from edge.vss_signal import VssSignal
from fleet.folder import PARTITIONS
from fleet.rows import TEXT, Numbers, whole_table
from fleet.table import read
from fleet.table_file import LAYOUT, draft_of

SCHEMA = pa.schema([("time_us", pa.int64()), ("path", TEXT), ("value", pa.float64()), ("text", TEXT)])
BINARY = {"ADD": np.add, "SUB": np.subtract, "MUL": np.multiply, "DIV": np.divide, "MIN": np.minimum, "MAX": np.maximum}
UNARY = {"NEG": np.negative, "ABS": np.abs, "FLOOR": np.floor, "CEIL": np.ceil, "ROUND": np.rint}


def by_path(rows: pa.Table, manifest: DecoderManifest) -> pa.Table:
    """Rows of a long table by VSS path, in their order; columns beyond the long form (vehicle, …) are kept."""
    rows = whole_table(rows)
    codes = _signal_codes(rows)
    parts: list[tuple[Numbers, ...]] = []
    texts: dict[str, int] = {}
    for place, (vss, key) in enumerate(_named(manifest)):
        code = _code(rows, key)
        at = np.flatnonzero(codes == code) if code is not None else np.empty(0, np.int64)
        if len(at):
            parts.append(_values(rows, at, place, vss, key, texts))
    parts.append(tuple(np.empty(0, kind) for kind in (np.int64, np.int32, np.float64, np.int32)))
    at, path, value, text = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.lexsort((path, at))
    at, path, value, text = at[order], path[order], value[order], text[order]
    columns = [
        rows["time_us"].take(pa.array(at)),
        pa.DictionaryArray.from_arrays(pa.array(path), pa.array([vss.path for vss in manifest.vss], pa.string())),
        pa.array(value, mask=np.isnan(value)),
        pa.DictionaryArray.from_arrays(pa.array(text, mask=text < 0), pa.array(list(texts), pa.string())),
    ]
    more = [name for name in PARTITIONS if name in rows.column_names]
    return pa.table([*columns, *(rows[name].take(pa.array(at)) for name in more)], names=[*SCHEMA.names, *more])


def _values(
    rows: pa.Table, at: Numbers, place: int, vss: VssSignal, key: tuple[str, str, str], texts: dict[str, int]
) -> tuple[Numbers, ...]:
    """(row, path, value, text) of the rows that have something to say; -1 is no text."""
    value = np.asarray(rows["value"].take(pa.array(at)).combine_chunks().to_numpy(zero_copy_only=False), np.float64)
    raw = np.asarray(rows["raw"].take(pa.array(at)))
    text = np.full(len(at), -1, np.int32)
    is_null = np.isnan(value)  # of the long form: the label says why
    for row, why in zip(np.flatnonzero(is_null), _labels(rows, at[is_null]), strict=True):
        if why is not None:
            text[row] = texts.setdefault(why, len(texts))
    result = np.full(len(at), np.nan) if vss.steps is None else evaluate(vss.steps, value)
    for number, meaning in vss.values.items():
        hit = (raw == _wrapped(number)) & ~is_null
        is_text = isinstance(meaning, str)
        result[hit] = np.nan if is_text else float(meaning)
        if is_text or isinstance(meaning, bool):
            text[hit] = texts.setdefault(str(meaning) if is_text else str(meaning).lower(), len(texts))
    kept = ~np.isnan(result) | (text >= 0)
    return at[kept], np.full(int(kept.sum()), place, np.int32), result[kept], text[kept]


def evaluate(steps: tuple[tuple[str, float], ...], x: Numbers) -> Numbers:
    """The program of a VssSignal over physical values; NaN where it has no result."""
    stack: list[Numbers] = []
    with np.errstate(all="ignore"):
        for op, number in steps:
            if op in ("X", "CONST"):
                stack.append(x if op == "X" else np.full(len(x), number))
            elif op in UNARY:
                stack.append(UNARY[op](stack.pop()))
            else:
                other = stack.pop()
                stack.append(BINARY[op](stack.pop(), other))
            stack[-1] = np.where(np.isfinite(stack[-1]), stack[-1], np.nan)
    return stack[0]


def _wrapped(raw: int) -> int:
    """As the column raw has it: unsigned values from 2^63 on are negative there."""
    return raw - (1 << 64) if raw >= 1 << 63 else raw


def _named(manifest: DecoderManifest) -> Iterator[tuple[VssSignal, tuple[str, str, str]]]:
    signals = [(message.bus, message.name, signal.name) for message in manifest.messages for signal in message.signals]
    for vss in manifest.vss:
        yield vss, signals[vss.signal]


def _signal_codes(rows: pa.Table) -> Numbers:
    codes = np.zeros(rows.num_rows, np.int64)
    for name in ("bus", "message", "signal"):
        for chunk in rows[name].chunks:
            codes = codes * len(chunk.dictionary) + np.asarray(chunk.indices)
    return codes


def _code(rows: pa.Table, key: tuple[str, str, str]) -> int | None:
    """What _signal_codes has for this signal; None where no row is of it."""
    code = 0
    for name, text in zip(("bus", "message", "signal"), key, strict=True):
        known = rows[name].chunk(0).dictionary.to_pylist() if rows.num_rows else []
        if text not in known:
            return None
        code = code * len(known) + known.index(text)
    return code


def _labels(rows: pa.Table, at: Numbers) -> list[str | None]:
    labels: list[str | None] = rows["label"].take(pa.array(at)).to_pylist() if len(at) else []
    return labels


def read_vss(folder: Path | str, manifests: Mapping[str, DecoderManifest] | DecoderManifest, **only: Any) -> pa.Table:
    """A folder that `bordnetz fleet decode` made, by VSS path.

    manifests: one whose overlay counts for all rows, or those of the table, by hash. only: as fleet.table.read takes
    them. Raises InputError: no table, or manifests that say different things of a path.
    """
    manifest = manifests if isinstance(manifests, DecoderManifest) else one_overlay(manifests)
    return by_path(read(folder, **only), manifest)


def one_overlay(manifests: Mapping[str, DecoderManifest]) -> DecoderManifest:
    """The manifest that has the VSS signals of all of these. Raises InputError: none has any, or two disagree."""
    found = [manifest for manifest in manifests.values() if manifest.vss]
    if not found:
        raise InputError("decoder manifest", "has no VSS signals", "compile it with --vss OVERLAY")
    known: dict[str, tuple[Any, ...]] = {}
    best = max(found, key=lambda manifest: len(manifest.vss))
    for manifest in found:
        for vss, key in _named(manifest):
            meaning = (*vss[2:6], key)
            if known.setdefault(vss.path, meaning) != meaning:
                raise InputError(
                    vss.path, "is not the same in all manifests of the table", "choose one with --manifest"
                )
    if missing := known.keys() - {vss.path for vss in best.vss}:
        raise InputError(min(missing), "is not in all manifests of the table", "choose one with --manifest")
    return best


@contextmanager
def open_vss_writer(path: Path, manifest: DecoderManifest) -> Iterator["VssFile"]:
    """A writer with write(long table), by suffix .parquet or .csv; the file appears when all of it is there.

    Raises InputError: another suffix, the file cannot be written, or the manifest has no VSS signals.
    """
    one_overlay({"": manifest})
    with draft_of(path) as draft:
        file = VssFile(draft, path.suffix, manifest)
        yield file
        file.close()


class VssFile:
    """Its columns are those of the first table it gets."""

    def __init__(self, path: Path, suffix: str, manifest: DecoderManifest) -> None:
        self._path, self._suffix, self._manifest = path, suffix, manifest
        self._writer: Any = None

    def write(self, rows: pa.Table) -> int:
        """How many rows it is by path."""
        table = by_path(rows, self._manifest)
        self._put(table)
        return int(table.num_rows)

    def close(self) -> None:
        if self._writer is None:
            self._put(SCHEMA.empty_table())
        self._writer.close()

    def _put(self, table: pa.Table) -> None:
        if self._suffix == ".csv":  # in plain strings: its writer has no dictionaries
            table = table.cast(pa.schema([(f.name, pa.string() if f.type == TEXT else f.type) for f in table.schema]))
        if self._writer is None and self._suffix == ".csv":
            plain = pa.csv.WriteOptions(quoting_style="needed")
            self._writer = pa.csv.CSVWriter(self._path, table.schema, write_options=plain)
        elif self._writer is None:
            layout = {**LAYOUT, "use_dictionary": True, "column_encoding": None}
            self._writer = pq.ParquetWriter(self._path, table.schema, **layout)
        self._writer.write_table(table)
