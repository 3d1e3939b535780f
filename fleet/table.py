"""Decoded columns to Arrow tables in the long form, and those to files.

    time_us   int64     microseconds of UTC
    bus, message, signal    dictionary of strings
    raw       int64     the field's integer; a float's IEEE 754 bits; unsigned values from 2^63 on wrap to negative
    value     float64   raw * factor + offset, or the float itself
    label     dictionary of strings, null where the raw value has none

One row a sample. Everything is done on whole columns; no Python object is made for a value.
"""

import csv
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cy_core.columns import Columns
from edge.errors import InputError
from edge.manifest import DecoderManifest, Signal

TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("time_us", pa.int64()),
        ("bus", TEXT),
        ("message", TEXT),
        ("signal", TEXT),
        ("raw", pa.int64()),
        ("value", pa.float64()),
        ("label", TEXT),
    ]
)

Numbers = np.ndarray[Any, Any]


class TableMaker:
    """Turns columns of one manifest into tables."""

    def __init__(self, manifest: DecoderManifest) -> None:
        self.manifest = manifest
        signals = [(message, signal) for message in manifest.messages for signal in message.signals]
        self._firsts = np.cumsum([0, *(len(message.signals) for message in manifest.messages)])
        self._buses = _Names(message.bus for message, _ in signals)
        self._messages = _Names(message.name for message, _ in signals)
        self._signals = _Names(signal.name for _, signal in signals)
        self._labels = _Labels([signal for _, signal in signals])

    def table(self, columns: Columns, utc_offset_us: int = 0) -> pa.Table:
        """The samples in order of time, those of one time in the manifest's order; time_us is UTC."""
        parts = [part for group in columns.groups() for part in self._group(group)]
        if not parts:
            return SCHEMA.empty_table()
        times, numbers, raws, values, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        order = np.lexsort((numbers, times))
        numbers = numbers[order]
        return pa.table(
            [
                pa.array(times[order] + utc_offset_us),
                self._buses.array(numbers),
                self._messages.array(numbers),
                self._signals.array(numbers),
                pa.array(raws[order]),
                pa.array(values[order]),
                self._labels.array(labels[order]),
            ],
            schema=SCHEMA,
        )

    def _group(self, group: Any) -> Iterator[tuple[Numbers, ...]]:
        times = np.frombuffer(group.times, np.int64)
        first = self._firsts[group.message]
        signals = self.manifest.messages[group.message].signals
        for index, letter, data in group.columns:
            column = np.frombuffer(data, letter)
            raw, value, label = self._column(first + index, signals[index], column)
            if len(column) != len(times):
                raw, value, label = (np.repeat(array, len(times)) for array in (raw, value, label))
            yield times, np.full(len(times), first + index, np.int32), raw, value, label

    def _column(self, number: int, signal: Signal, column: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        if signal.is_float:
            raw = column.view(f"u{column.itemsize}").astype(np.int64)
        else:
            raw = column.astype(np.int64)
        value = column.astype(np.float64)
        if (signal.factor, signal.offset) != (1, 0):
            value = value * signal.factor + signal.offset
        return raw, value, self._labels.codes(number, raw)


class _Names:
    """A dictionary of strings, and which of them each signal has."""

    def __init__(self, names: Iterable[str]) -> None:
        known: dict[str, int] = {}
        self._codes = np.array([known.setdefault(name, len(known)) for name in names], np.int32)
        self._names = pa.array(known, pa.string())

    def array(self, numbers: Numbers) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(self._codes[numbers]), self._names)


class _Labels:
    """All labels of all signals; -1 is none."""

    def __init__(self, signals: list[Signal]) -> None:
        known: dict[str, int] = {}
        self._of: list[tuple[Numbers, Numbers] | None] = []
        for signal in signals:
            codes = {raw: known.setdefault(label, len(known)) for raw, label in sorted(signal.labels.items())}
            keys = [raw for raw in codes if -(1 << 63) <= raw < 1 << 63]
            self._of.append(
                (np.array(keys, np.int64), np.array([codes[raw] for raw in keys], np.int32))
                if keys and not signal.is_float
                else None
            )
        self._names = pa.array(known, pa.string())

    def codes(self, number: int, raw: Numbers) -> Numbers:
        labels = self._of[number]
        if labels is None:
            return np.full(len(raw), -1, np.int32)
        keys, codes = labels
        places = np.minimum(np.searchsorted(keys, raw), len(keys) - 1)
        found: Numbers = np.where(keys[places] == raw, codes[places], np.int32(-1))
        return found

    def array(self, codes: Numbers) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), self._names)


# -- files -------------------------------------------------------------------------------------------------------


@contextmanager
def open_writer(path: Path, manifest: DecoderManifest) -> Iterator[Any]:
    """A writer with write(table), by suffix .parquet or .csv; the file appears when all of it is there.

    Raises InputError: another suffix, or the file cannot be written.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise InputError(path, "is no kind of table by its suffix", "take .parquet or .csv")
    draft = path.with_name(f".{path.name}.draft")
    try:
        with _ParquetFile(draft) if path.suffix == ".parquet" else _CsvFile(draft, manifest) as file:
            yield file
        draft.replace(path)
    except OSError as error:
        raise InputError(path, f"cannot be written ({error.strerror or error})", "choose another place") from error
    finally:
        draft.unlink(missing_ok=True)


class _ParquetFile:
    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")

    def __enter__(self) -> "_ParquetFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)


class _CsvFile:
    """raw is written as the number it is: a float for floats, unsigned for unsigned fields."""

    def __init__(self, path: Path, manifest: DecoderManifest) -> None:
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(SCHEMA.names)
        self._signals = {
            (message.bus, message.name, s.name): s for message in manifest.messages for s in message.signals
        }

    def __enter__(self) -> "_CsvFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, table: pa.Table) -> None:
        for time_us, bus, message, signal, raw, value, label in zip(*table.to_pydict().values(), strict=True):
            field = self._signals[bus, message, signal]
            self._writer.writerow([time_us, bus, message, signal, *natural(field, raw, value), label or ""])


def natural(signal: Signal, raw: int, value: float) -> tuple[int | float, int | float]:
    """raw and value as the numbers that they are: whole ones as int, exact beyond 2^53."""
    if signal.is_float:
        size = signal.length // 8
        return struct.unpack({2: "<e", 4: "<f", 8: "<d"}[size], raw.to_bytes(size + 1, "little", signed=True)[:size])[
            0
        ], value
    if not signal.signed and raw < 0:
        raw += 1 << 64
    if isinstance(signal.factor, int) and isinstance(signal.offset, int):
        return raw, raw * signal.factor + signal.offset
    return raw, value


def read(folder: Path | str) -> pa.Table:
    """All tables of a folder that `decode` made, with the columns vehicle and date. Raises InputError: none there."""
    if not any(Path(folder).rglob("*.parquet")):
        raise InputError(folder, "holds no table", "`bordnetz fleet decode` makes one")
    return pq.read_table(folder, partitioning="hive")
