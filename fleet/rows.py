"""Decoded columns to Arrow tables in the long form.

    time_us   int64     microseconds of UTC
    bus, message, signal    dictionary of strings
    raw       int64     the field's integer; a float's IEEE 754 bits; unsigned values from 2^63 on wrap to negative
    value     float64   raw * factor + offset, or the float itself; null where raw says that there is no value
    label     dictionary of strings, null where the raw value has none; of a null, why it is one

One row a sample. Everything is done on whole columns; no Python object is made for a value.
"""

import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cy_core.columns import Columns
from edge.manifest import DecoderManifest, Signal, no_values

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
# On the way to a file, rows also have what orders those of one time: the number of their signal in the manifest, from
# bit 32 on, above the place of their record among all.
ORDER = "_order"
ORDERED = SCHEMA.append(pa.field(ORDER, pa.int64()))
EXACT = 1 << 53  # float64 holds every whole number up to here

Numbers = np.ndarray[Any, Any]


def whole_table(rows: pa.Table) -> pa.Table:
    """The same in one chunk, with one dictionary for each column of strings."""
    return rows.unify_dictionaries().combine_chunks()


def in_order(rows: pa.Table) -> pa.Table:
    """By time, then by the column ORDER; what is equal in both stays in the order it came in."""
    order: Numbers = np.lexsort((np.asarray(rows[ORDER]), np.asarray(rows["time_us"])))
    return whole_table(rows).take(order)


def from_columns(columns: Columns, manifest: DecoderManifest, utc_offset_us: int = 0) -> pa.Table:
    """The samples in order of time, those of one time in the manifest's order. For many, keep a TableMaker."""
    return TableMaker(manifest).table(columns, utc_offset_us)


class Fact(NamedTuple):
    """What a table says of a signal: its name with bus and message, its unit and step.

    max_error is in the signal's unit, time_tolerance_us against the vehicle's own clock. Floats that a campaign
    coarsened say nothing of it: only the campaign does.
    """

    name: str
    unit: str
    step: float

    def document(self, raw: int = 0, time_us: int = 0) -> dict[str, Any]:
        """raw, time_us: how wrong raw values and times may be, as the blocks say."""
        error = raw * abs(float(self.step))
        return {"unit": self.unit, "step": self.step, "max_error": error, "time_tolerance_us": time_us}


class Samples(NamedTuple):
    """Of one manifest: arrays side by side, on the way to Arrow. label: number in the manifest's, -1 is none."""

    time_us: Numbers
    order: Numbers
    raw: Numbers
    value: Numbers
    label: Numbers
    is_null: Numbers

    def where(self, mask: Numbers) -> "Samples":
        return Samples(*(array[mask] for array in self))


SAMPLE_KINDS = (np.int64, np.int64, np.int64, np.float64, np.int32, np.bool_)


class TableMaker:
    """Turns columns of one manifest into tables."""

    def __init__(self, manifest: DecoderManifest) -> None:
        self.manifest = manifest
        signals = [(message, signal) for message in manifest.messages for signal in message.signals]
        self._by_number = [signal for _, signal in signals]
        self._facts = [
            Fact(f"{message.bus}.{message.name}.{signal.name}", signal.unit, signal.factor)
            for message, signal in signals
        ]
        self._firsts = np.cumsum([0, *(len(message.signals) for message in manifest.messages)])
        self._buses = _Names(message.bus for message, _ in signals)
        self._messages = _Names(message.name for message, _ in signals)
        self._signals = _Names(signal.name for _, signal in signals)
        self._labels = _Labels(self._by_number, [no_values(*each) for each in signals])
        self._factors = np.array([float(signal.factor) for signal in self._by_number])
        self._offsets = np.array([float(signal.offset) for signal in self._by_number])
        self._is_plain = [
            _is_linear(signal) and not self._labels.has(number) for number, signal in enumerate(self._by_number)
        ]

    def table(self, columns: Columns, utc_offset_us: int = 0) -> pa.Table:
        """The samples in order of time, those of one time in the manifest's order; time_us is UTC."""
        return in_order(self.rows(columns, utc_offset_us)).select(SCHEMA.names)

    def rows(self, columns: Columns, utc_offset_us: int = 0) -> pa.Table:
        """The samples in no order, with the column ORDER."""
        return self.table_of([self.samples(columns, utc_offset_us)])

    def samples(self, columns: Columns, utc_offset_us: int = 0, place: int = 0) -> Samples:
        """In no order. place: what goes before what, of two of one time and signal; less than 2^32."""
        numbers, times, raws, others, count = [], [], [], [], 0
        for group in columns.groups():
            of_group, first = np.frombuffer(group.times, np.int64), int(self._firsts[group.message])
            for index, letter, data in group.columns:
                column = np.frombuffer(data, letter)
                if len(column) != len(of_group):
                    column = column.repeat(len(of_group))
                if not self._is_plain[first + index]:
                    others.append((first + index, slice(count, count + len(column)), column))
                numbers.append(first + index)
                times.append(of_group)
                raws.append(column.view(f"u{column.itemsize}") if column.dtype.kind == "f" else column)
                count += len(column)
        if not numbers:
            return Samples(*(np.empty(0, kind) for kind in SAMPLE_KINDS))
        sizes = [len(raw) for raw in raws]
        order = np.repeat(np.array(numbers, np.int64) << 32 | place, sizes)
        raw = np.concatenate(raws, dtype=np.int64, casting="unsafe")
        label, is_null = np.full(count, -1, np.int32), np.zeros(count, bool)
        with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN are data
            value = raw * np.repeat(self._factors[numbers], sizes) + np.repeat(self._offsets[numbers], sizes)
            for number, span, column in others:
                value[span] = physical(self._by_number[number], column)
                label[span] = self._labels.codes(number, column)
                is_null[span] = self._labels.nulls(number, column)
        return Samples(np.concatenate(times) + utc_offset_us, order, raw, value, label, is_null)

    def table_of(self, parts: Sequence[Samples]) -> pa.Table:
        """All of them with the columns of SCHEMA and ORDER. Once for many is much cheaper than for each."""
        whole = parts[0] if len(parts) == 1 else Samples(*map(np.concatenate, zip(*parts, strict=True)))
        numbers = whole.order >> 32
        return pa.table(
            [
                pa.array(whole.time_us),
                self._buses.array(numbers),
                self._messages.array(numbers),
                self._signals.array(numbers),
                pa.array(whole.raw),
                pa.array(whole.value, mask=whole.is_null if whole.is_null.any() else None),
                self._labels.array(whole.label),
                pa.array(whole.order),
            ],
            schema=ORDERED,
        )

    def facts(self, columns: Columns) -> set[tuple[int, Fact]]:
        """Of the signals that the columns hold, with their numbers in the manifest."""
        firsts, groups = self._firsts, columns.groups()
        numbers = {int(firsts[group.message]) + index for group in groups for index, _, _ in group.columns}
        return {(number, self._facts[number]) for number in numbers}


def _is_linear(signal: Signal) -> bool:
    """Is raw * factor + offset in float64 what physical() says, for all that the field's column can hold?"""
    bits = next(size for size in (8, 16, 32, 64) if signal.length <= size)
    if signal.is_float or (bits == 64 and not signal.signed):
        return False
    return not isinstance(signal.factor, int) or abs(signal.factor) << bits < EXACT - abs(signal.offset)


def physical(signal: Signal, column: Numbers) -> Numbers:
    """raw * factor + offset to the last bit of what exact whole numbers and then float64 give."""
    value: Numbers = column.astype(np.float64)
    if (signal.factor, signal.offset) == (1, 0):
        return value
    scaled: Numbers = value * float(signal.factor) + float(signal.offset)
    if column.dtype.kind in "iu" and isinstance(signal.factor, int):
        longest = max(abs(int(np.iinfo(column.dtype).min)), int(np.iinfo(column.dtype).max))
        if longest * abs(signal.factor) + abs(signal.offset) >= EXACT:  # else float64 holds all that is whole
            for place in np.flatnonzero(np.abs(value) * abs(signal.factor) + abs(signal.offset) >= EXACT):
                scaled[place] = float(int(column[place]) * signal.factor + signal.offset)
    return scaled


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

    def __init__(self, signals: list[Signal], no_values: list[tuple[tuple[int, int, str], ...]]) -> None:
        known: dict[str, int] = {}
        self._of: list[tuple[Numbers, Numbers] | None] = []
        self._nulls = [
            [(low, high, known.setdefault(label, len(known))) for low, high, label in ranges] for ranges in no_values
        ]
        for signal in signals:
            kind = np.float64 if signal.is_float else np.int64 if signal.signed else np.uint64
            keys = [raw for raw in sorted(signal.labels) if _fits(raw, kind)]
            codes = [known.setdefault(signal.labels[raw], len(known)) for raw in keys]
            self._of.append((np.array(keys, kind), np.array(codes, np.int32)) if keys else None)
        self._names = pa.array(known, pa.string())

    def has(self, number: int) -> bool:
        """Has this signal labels, or raw values that say that there is no value?"""
        return bool(self._of[number] or self._nulls[number])

    def codes(self, number: int, column: Numbers) -> Numbers:
        found: Numbers = np.full(len(column), -1, np.int32)
        for low, high, code in self._nulls[number]:
            found[(column >= low) & (column <= high)] = code
        labels = self._of[number]
        if labels is None:
            return found
        keys, codes = labels
        raw = column.astype(keys.dtype)
        places = np.minimum(np.searchsorted(keys, raw), len(keys) - 1)
        own: Numbers = np.where(keys[places] == raw, codes[places], found)
        return own

    def nulls(self, number: int, column: Numbers) -> Numbers:
        """Which of the raw values say that there is no value."""
        found: Numbers = np.zeros(len(column), bool)
        for low, high, _ in self._nulls[number]:
            found |= (column >= low) & (column <= high)
        return found

    def array(self, codes: Numbers) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), self._names)


def _fits(raw: int, kind: type) -> bool:
    if kind is np.float64:
        return abs(raw) <= sys.float_info.max and float(raw) == raw
    return bool(np.iinfo(kind).min <= raw <= np.iinfo(kind).max)


def natural(signal: Signal, raw: int, value: float | None) -> tuple[int | float, int | float | None]:
    """raw and value of one row as the numbers that they are: whole ones as int, exact beyond 2^53."""
    if signal.is_float:
        size = signal.length // 8
        bits = (raw & ((1 << signal.length) - 1)).to_bytes(size, "little")
        return struct.unpack({2: "<e", 4: "<f", 8: "<d"}[size], bits)[0], value
    if not signal.signed and raw < 0:
        raw += 1 << 64
    if value is not None and isinstance(signal.factor, int) and isinstance(signal.offset, int):
        return raw, raw * signal.factor + signal.offset
    return raw, value
