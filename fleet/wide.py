"""Rows of one message from the long form to the wide one: a row for each frame, a column for each signal.

    time_us, vehicle, campaign, bus, then <signal> (float64) and, where it has labels, <signal>.label

A signal that a frame did not have (another multiplexer group, another campaign) is null.
"""

import numpy as np
import pyarrow as pa

from fleet.rows import Numbers, whole_table

KEYS = ("vehicle", "campaign", "bus", "time_us")


def wide(rows: pa.Table) -> pa.Table:
    """rows are of one message, as `fleet.table.read(…, message=…)` gives them; the order is kept."""
    rows = whole_table(rows)
    signals = _codes(rows["signal"])
    frame, first_rows = _frames([_codes(rows[name]) for name in KEYS], signals)
    columns = {name: rows[name].take(pa.array(first_rows)) for name in ("time_us", "vehicle", "campaign", "bus")}
    values = np.asarray(rows["value"])
    names = rows["signal"].chunk(0).dictionary.to_pylist() if rows.num_rows else []
    for code, name in enumerate(names):
        of_signal = np.flatnonzero(signals == code)
        if len(of_signal):
            place = np.full(len(first_rows), -1, np.int64)
            place[frame[of_signal]] = of_signal
            where = pa.array(place, mask=place < 0)
            columns[name] = pa.chunked_array([pa.array(values)]).take(where)
            labels = rows["label"].take(where)
            if labels.null_count < len(labels):
                columns[f"{name}.label"] = labels
    return pa.table(columns).replace_schema_metadata(rows.schema.metadata)


def _frames(keys: list[Numbers], signals: Numbers) -> tuple[Numbers, Numbers]:
    """For each row the number of its frame, and for each frame its first row.

    Two frames of one time are told apart by a signal being there twice: its second value is of the second frame.
    """
    count = len(signals)
    by_signal = np.lexsort((np.arange(count), signals, *reversed(keys)))
    again = _same_as_before([*keys, signals], by_signal)
    starts = np.flatnonzero(~again)
    nth = np.empty(count, np.int64)
    nth[by_signal] = np.arange(count) - np.repeat(starts, np.diff([*starts, count]))
    by_frame = np.lexsort((np.arange(count), nth, *reversed(keys)))
    new = ~_same_as_before([*keys, nth], by_frame)
    frame = np.empty(count, np.int64)
    frame[by_frame] = np.cumsum(new) - 1
    return frame, by_frame[new]


def _same_as_before(columns: list[Numbers], order: Numbers) -> Numbers:
    same = np.ones(len(order), bool)
    for column in columns:
        ordered = column[order]
        same[1:] &= ordered[1:] == ordered[:-1]
    same[:1] = False
    return same


def _codes(column: pa.ChunkedArray) -> Numbers:
    """Numbers that are equal where the values are, and in their order for those of sorted partitions."""
    if not len(column):
        return np.empty(0, np.int64)
    chunk = column.chunk(0)
    codes: Numbers = np.asarray(chunk.indices if pa.types.is_dictionary(chunk.type) else chunk)
    return codes
