"""Tables to CSV, a column at a time: raw and value as the numbers that they are, a float for floats, all of a 64-bit
integer, unsigned for unsigned fields."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from edge.manifest import DecoderManifest, Signal
from fleet.rows import EXACT, whole_table

ROWS_AT_ONCE = 1 << 18
LONG = 10**9  # a float that is longer may be written with an exponent


class CsvFile:
    """Takes tables of one manifest, with the columns of these names."""

    def __init__(self, path: Path, names: Iterable[str], manifest: DecoderManifest) -> None:
        self._names = list(names)
        self._signals = {
            (message.bus, message.name, s.name): s for message in manifest.messages for s in message.signals
        }
        self._file = path.open("wb")
        self._file.write(",".join(self._names).encode() + b"\n")

    def __enter__(self) -> "CsvFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, table: pa.Table) -> None:
        for start in range(0, table.num_rows, ROWS_AT_ONCE):
            self._write(whole_table(table.slice(start, ROWS_AT_ONCE)))

    def _write(self, table: pa.Table) -> None:
        names = [_whole(table[name]) for name in ("bus", "message", "signal")]
        raw, value = self._numbers(names, np.asarray(table["raw"]), np.asarray(table["value"]))
        cells = [
            pc.cast(_whole(table["time_us"]), pa.string()),
            *map(_text, names),
            raw,
            pc.if_else(pc.is_null(_whole(table["value"])), "", value),
            pc.binary_join_element_wise(_text(_whole(table["label"])).fill_null(""), "\n", ""),
        ]
        lines = pc.binary_join_element_wise(*cells, ",")
        # The strings lie one behind the other: what they lie in is the text.
        _, ends, text = lines.buffers()
        bounds = np.frombuffer(ends, np.int32)[lines.offset : lines.offset + len(lines) + 1]
        self._file.write(memoryview(text)[bounds[0] : bounds[-1]])

    def _numbers(self, names: list[Any], raw: Any, value: Any) -> tuple[pa.Array, pa.Array]:
        texts, values = pc.cast(pa.array(raw), pa.string()), pc.cast(pa.array(value), pa.string())
        for signal, rows in self._of_signals(names):
            if signal.is_float:
                bits = raw[rows].astype(f"u{signal.length // 8}")
                plain = bits.view(f"f{signal.length // 8}").astype(np.float64)
                texts = _put(texts, rows, pc.cast(pa.array(plain), pa.string()))
            elif signal.length == 64 and not signal.signed:
                texts = _put(texts, rows, pc.cast(pa.array(raw[rows].astype(np.uint64)), pa.string()))
            if isinstance(signal.factor, int) and isinstance(signal.offset, int) and not signal.is_float:
                long = rows[np.abs(value[rows]) >= LONG]
                values = _put(values, long, _whole_numbers(signal, raw[long], value[long]))
        return texts, values

    def _of_signals(self, names: list[Any]) -> Iterable[tuple[Signal, Any]]:
        """Those signals whose text is not simply that of their number, each with its rows."""
        sizes = [len(array.dictionary) for array in names]
        codes = np.zeros(len(names[0]), np.int64)
        for array, size in zip(names, sizes, strict=True):
            codes = codes * size + np.asarray(array.indices)
        for code in np.unique(codes).tolist():
            bus, rest = divmod(code, sizes[1] * sizes[2])
            message, place = divmod(rest, sizes[2])
            key = tuple(array.dictionary[n].as_py() for array, n in zip(names, (bus, message, place), strict=True))
            signal = self._signals[key]
            if signal.is_float or signal.length > 24 or abs(signal.factor) > 16 or abs(signal.offset) > 1 << 28:
                yield signal, np.flatnonzero(codes == code)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()


def _text(array: pa.DictionaryArray) -> pa.Array:
    """Quoted where CSV wants it; a dictionary is short."""
    return pa.array(map(_cell, array.dictionary.to_pylist()), pa.string()).take(array.indices)


def _cell(text: str) -> str:
    if not text:
        return text
    cell = io.StringIO()
    csv.writer(cell, lineterminator="").writerow([text])
    return cell.getvalue()


def _put(texts: pa.Array, rows: Any, new: pa.Array) -> pa.Array:
    mask = np.zeros(len(texts), bool)
    mask[rows] = True
    return pc.replace_with_mask(texts, pa.array(mask), new)


def _whole_numbers(signal: Signal, raw: Any, value: Any) -> pa.Array:
    """Physical values that are whole, with all their digits."""
    texts = np.array([""] * len(value), object)
    short = np.abs(value) < EXACT
    texts[short] = value[short].astype(np.int64).astype(str)
    wrapped = 0 if signal.signed else (1 << 64) - 1
    for place in np.flatnonzero(~short):
        number = int(raw[place])
        texts[place] = str((number & wrapped if wrapped else number) * signal.factor + signal.offset)
    return pa.array(texts, pa.string())
