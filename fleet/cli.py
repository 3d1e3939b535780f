"""`bordnetz fleet …`: what runs where the messages arrive."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from edge.progress import Progress

FINDING = 1
PATH = click.Path(path_type=Path)


@click.group()
def fleet() -> None:
    """The cloud side: from messages to tables, and proof that nothing is missing."""


@fleet.command()
@click.argument("folders", type=PATH, nargs=-1, required=True, metavar="DIR…")
@click.option("-o", "--out", type=PATH, required=True, metavar="TABLE", help="Folder of the table; it grows.")
@click.option("--manifest", "manifests", type=PATH, help="Decoder manifest, or a folder of them; the table keeps them.")
@click.option("--tables", type=PATH, help="Folder of model tables that blocks name; the table keeps them.")
@click.option("--jobs", type=click.IntRange(1, 256), default=os.cpu_count() or 1, show_default="one a core")
@click.option("--json", "as_json", is_flag=True, help="The audit as JSON.")
def decode(
    folders: tuple[Path, ...], out: Path, manifests: Path | None, tables: Path | None, jobs: int, as_json: bool
) -> None:
    """Add the messages below DIR… to TABLE, as Parquet by vehicle, campaign and day.

    Exit status 1 if something is missing, or could not be read: the audit says what.
    """
    from fleet.decode import decode as add

    with Progress("decoding", 1.0) as progress:
        found = add(folders, manifests, out, progress.to, jobs, tables=tables)
    _show(found, as_json)


@fleet.command()
@click.argument("table", type=PATH)
@click.option("--json", "as_json", is_flag=True)
def audit(table: Path, as_json: bool) -> None:
    """What arrived of each vehicle and stream: ranges, repeats, gaps explained and unexplained, clocks, errors."""
    from fleet.report import audit as look

    _show(look(table), as_json)


def _show(found: Any, as_json: bool) -> None:
    import msgspec

    if as_json:
        click.echo(json.dumps({"ok": found.ok, **msgspec.to_builtins(found)}, indent=2))
    else:
        click.echo(str(found))
    if not found.ok:
        sys.exit(FINDING)


@fleet.command()
@click.option("-o", "--out", type=PATH, required=True, help="Folder for messages, manifests and the truth.")
@click.option("--vehicles", type=click.IntRange(1, 100_000), default=3, show_default=True)
@click.option("--hours", type=click.FloatRange(0.01, 24 * 366), default=1, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def generate(out: Path, vehicles: int, hours: float, seed: int) -> None:
    """Messages of a made-up fleet, with outages, repeats, evictions and late clocks, and the truth beside them."""
    from fleet.generate import write

    with Progress("driving", 1.0) as progress:
        truth = write(out, vehicles, hours, seed, progress.to)
    click.echo(f"{out}: {truth.messages:,} messages of {vehicles:,} vehicles, {truth.samples:,} samples")


@fleet.command()
@click.argument("table", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="Picture to write: .png or .html.")
@click.option("--vehicle", required=True)
@click.option("--signal", "signals", multiple=True, required=True, metavar="MESSAGE.SIGNAL", help="May be repeated.")
@click.option("--from", "start", metavar="TIME", help="UTC, such as 2026-11-24T15:00.")
@click.option("--to", "end", metavar="TIME")
def plot(table: Path, out: Path, vehicle: str, signals: tuple[str, ...], start: str | None, end: str | None) -> None:
    """Signals of a vehicle over time, as a picture."""
    import pyarrow as pa

    from edge.errors import InputError
    from fleet.plot import plot as draw
    from fleet.plot import time_us
    from fleet.table import read

    start_us, end_us = (time_us(text) if text else None for text in (start, end))
    parts = []
    for name in signals:
        message, _, signal = name.rpartition(".")
        rows = read(table, vehicle=vehicle, message=message, signal=signal, start_us=start_us, end_us=end_us)
        if not rows.num_rows:
            raise InputError(f"--signal {name}", f"is not in the table of {vehicle} then", "MESSAGE.SIGNAL, as in it")
        parts.append(rows)
    panels = draw(pa.concat_tables(parts).unify_dictionaries(), out, vehicle)
    click.echo(f"{out}: {panels} signals, {sum(part.num_rows for part in parts):,} samples")


@fleet.command()
@click.argument("container")
@click.option("-o", "--out", type=PATH, required=True, metavar="DIR", help="Folder to bring the blobs to.")
@click.option("--prefix", default="", help="Only blobs whose name begins so, such as hub/00/2026/11.")
@click.option("--connection-string", envvar="AZURE_STORAGE_CONNECTION_STRING", default="", help="Of the account.")
def fetch(container: str, out: Path, prefix: str, connection_string: str) -> None:
    """Bring what is new in a blob CONTAINER (its name, or its URL with a SAS token) to a folder."""
    from fleet import blobs

    with Progress("fetching", 1.0) as progress:
        brought = blobs.fetch(container, out, prefix, connection_string, progress.to)
    click.echo(f"{out}: {brought.new:,} blobs, {brought.bytes:,} bytes; {brought.known:,} were there")
