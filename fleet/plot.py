"""A drive from a table as a picture: one panel for each signal, over time; the only file that imports matplotlib."""

import html
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from edge.errors import InputError
from fleet.table import facts

MOST_POINTS = 20_000  # in a panel: beyond that, lowest and highest of each stretch are drawn
PANEL_INCHES = (12, 1.8)


def plot(rows: pa.Table, out: Path, title: str = "") -> int:
    """Draw every signal of rows (the long form, of one vehicle) to out (.png or .html); return the number of panels.

    Raises InputError: there is nothing to draw, another suffix, matplotlib is missing, or out cannot be written.
    """
    if out.suffix not in (".png", ".html"):
        raise InputError(out, "is no kind of picture by its suffix", "take .png or .html")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(out, "needs matplotlib, which is not installed", "pip install 'bordnetz[plot]'") from error
    if not rows.num_rows:
        raise InputError(out, "there is nothing to draw", "see `bordnetz fleet audit` for what the table has")
    series = _series(rows)
    figure = Figure(figsize=(PANEL_INCHES[0], PANEL_INCHES[1] * len(series) + 0.6), layout="constrained")
    panels = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (name, times, values, labels) in zip(panels, series, strict=True):
        _draw(panel, name, times, values, labels)
    panels[0].set_title(title)
    panels[-1].set_xlabel("UTC")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".png":
            figure.savefig(out, dpi=110)
        else:
            picture = io.StringIO()
            figure.savefig(picture, format="svg")
            svg = picture.getvalue()
            head = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title>"
            out.write_text(head + svg[svg.index("<svg") :])
    except OSError as error:
        raise InputError(out, f"cannot be written ({error.strerror})", "choose another place") from error
    return len(series)


def _series(rows: pa.Table) -> list[tuple[str, Any, Any, dict[float, str]]]:
    """(name with unit, times, values, labels) of each signal."""
    units = {name: fact["unit"] for name, fact in facts(rows).get("signals", {}).items()}
    found = []
    names = rows.select(["bus", "message", "signal"]).group_by(["bus", "message", "signal"]).aggregate([])
    for row in sorted(names.to_pylist(), key=lambda row: (row["message"], row["signal"], row["bus"])):
        mask = np.ones(rows.num_rows, bool)
        for column in ("bus", "message", "signal"):
            mask &= np.asarray(rows[column].cast(pa.string())) == row[column]
        one = rows.filter(pa.array(mask))
        values = np.asarray(one["value"])
        known = one.select(["value", "label"]).group_by(["value", "label"]).aggregate([]).to_pylist()
        labels = {pair["value"]: pair["label"] for pair in known if pair["label"] is not None}
        unit = units.get(f"{row['bus']}.{row['message']}.{row['signal']}", "")
        name = f"{row['message']}.{row['signal']}" + (f"\n{unit}" if unit else "")
        found.append((name, *_thinned(np.asarray(one["time_us"]), values), labels))
    return found


def _thinned(times: Any, values: Any) -> tuple[Any, Any]:
    """What a panel can show: no peak is lost."""
    if len(times) > MOST_POINTS:
        edges = np.linspace(0, len(times), MOST_POINTS // 2 + 1).astype(int)[:-1]
        stretches = np.split(values, edges[1:])
        lowest = edges + [int(np.argmin(part)) for part in stretches]
        highest = edges + [int(np.argmax(part)) for part in stretches]
        places = np.unique(np.concatenate((lowest, highest)))
        times, values = times[places], values[places]
    return times.astype("datetime64[us]"), values


def _draw(panel: Any, name: str, times: Any, values: Any, labels: dict[float, str]) -> None:
    panel.plot(times, values, linewidth=0.8, drawstyle="steps-post" if labels else "default")
    panel.set_ylabel(name, fontsize=7)
    panel.grid(alpha=0.3)
    if labels and len(labels) <= 12:
        panel.set_yticks(list(labels), list(labels.values()), fontsize=7)


def time_us(text: str) -> int:
    """A time as people write it, of UTC where it says no other. Raises InputError."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(text, "is no time", "for example 2026-11-24T15:00") from error
    return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1e6)
