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
@click.argument("table", type=PATH)
@click.option("--module", default="uplink", show_default=True, help="Whose twin; '' is that of the device itself.")
@click.option("--print", "only_print", is_flag=True, help="Only print the patches, for tools that write twins.")
def confirm(table: Path, module: str, only_print: bool) -> None:
    """Tell the vehicles what TABLE has of their records, so that they can forget them and send again what is missing.

    Written are the twins of an IoT Hub, those that say `confirm`: IOTHUB_SERVICE_CONNECTION_STRING names it. --print
    prints a line of JSON for each vehicle instead. Exit status 1 if a vehicle could not be told.
    """
    from fleet import confirm as confirming

    twins = None if only_print else confirming.IoTHubTwins(os.environ.get(confirming.VARIABLE, ""))
    told = asking = records = gaps = problems = 0
    with Progress("confirming", 1.0) as progress:
        for found in confirming.confirm(table, twins, module, progress.to):
            if only_print:
                click.echo(json.dumps({"vehicle": found.vehicle, "module": module, "desired": found.patch}))
            if found.problem:
                click.echo(f"{found.vehicle}: {found.problem}", err=True)
            problems += bool(found.problem)
            told += bool(found.patch)
            asking += found.asks and not found.problem
            records, gaps = records + found.records, gaps + found.gaps
    if not only_print:
        click.echo(f"{asking:,} vehicles ask, {told:,} were told news: {records:,} records are here, {gaps:,} are not")
    if problems:
        sys.exit(FINDING)


@fleet.command()
@click.option("-o", "--out", type=PATH, required=True, help="Folder for messages, manifests and the truth.")
@click.option("--vehicles", type=click.IntRange(1, 100_000), default=3, show_default=True)
@click.option("--hours", type=click.FloatRange(0.01, 24 * 366), default=1, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--period", type=click.FloatRange(0.001, 60), default=0.1, show_default=True, help="Seconds a frame.")
@click.option("--block", type=click.FloatRange(0.1, 3600), default=10, show_default=True, help="Seconds a block.")
def generate(out: Path, vehicles: int, hours: float, seed: int, period: float, block: float) -> None:
    """Messages of a made-up fleet, with outages, repeats, evictions and late clocks, and the truth beside them."""
    from fleet.generate import Pace, write

    pace = Pace(round(period * 1e6), round(block * 1e6))
    if not pace.frames:
        raise click.BadParameter("a block is at least one --period", param_hint="--block")
    with Progress("driving", 1.0) as progress:
        truth = write(out, vehicles, hours, seed, progress.to, pace)
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
@click.argument("table", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="Table to write: .parquet or .csv.")
@click.option("--manifest", type=PATH, help="Decoder manifest whose VSS signals count, instead of the table's own.")
def vss(table: Path, out: Path, manifest: Path | None) -> None:
    """A TABLE by VSS path, with converted values: time_us, path, value, text, vehicle, campaign, date."""
    from edge.manifest import load
    from fleet.decode import load_manifests
    from fleet.folder import MANIFESTS, check, vehicles
    from fleet.table import read
    from fleet.vss import one_overlay, open_vss_writer

    check(table)
    overlay = load(manifest) if manifest else one_overlay(load_manifests(table / MANIFESTS))
    rows = 0
    with open_vss_writer(out, overlay) as writer:
        for vehicle, _ in vehicles(table):  # one at a time is what must fit in memory
            rows += writer.write(read(table, vehicle=vehicle))
    click.echo(f"{out}: {rows:,} rows of {len(overlay.vss):,} VSS paths")


@fleet.command()
@click.argument("table", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, metavar="DIR", help="Folder to write, made anew each time.")
@click.option("--message", "messages", multiple=True, help="Only this one; may be repeated.")
def wide(table: Path, out: Path, messages: tuple[str, ...]) -> None:
    """TABLE with a row for each frame and a column for each signal, as Parquet by message, day and vehicle."""
    from fleet.wide_table import write

    with Progress("widening", 1.0) as progress:
        written = write(table, out, messages, progress.to)
    click.echo(f"{out}: {written.rows:,} rows of {written.messages:,} messages in {written.files:,} files")


@fleet.command()
@click.argument("table", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="Recording to write: .log (.gz, .zst), .blf or .mf4.")
@click.option("--vehicle", required=True)
@click.option("--campaign", required=True, help="One that collects raw frames.")
@click.option("--from", "start", metavar="TIME", help="UTC, such as 2026-11-24T15:00.")
@click.option("--to", "end", metavar="TIME")
def export(table: Path, out: Path, vehicle: str, campaign: str, start: str | None, end: str | None) -> None:
    """Raw frames of a vehicle's campaign, as the recording that they are part of."""
    from fleet.plot import time_us
    from fleet.raw import export as write

    start_us, end_us = (time_us(text) if text else None for text in (start, end))
    count = write(table, out, vehicle, campaign, start_us, end_us)
    click.echo(f"{out}: {count:,} frames")


@fleet.command()
@click.argument("hub", required=False, default="")
@click.option("-o", "--out", type=PATH, required=True, metavar="TABLE", help="Folder of the table; it grows.")
@click.option("--manifest", "manifests", type=PATH, help="Decoder manifest, or a folder of them; the table keeps them.")
@click.option("--once", is_flag=True, help="End when all that is there now has come; without it, at Ctrl-C.")
@click.option("--build-seconds", type=click.FloatRange(1), default=60, show_default=True, help="Between two builds.")
@click.option("--jobs", type=click.IntRange(1, 256), default=os.cpu_count() or 1, show_default="one a core")
@click.option("--json", "as_json", is_flag=True, help="The audit as JSON.")
def follow(
    hub: str, out: Path, manifests: Path | None, once: bool, build_seconds: float, jobs: int, as_json: bool
) -> None:
    """Add events to TABLE as they come: of the Event Hub whose connection string is in
    EVENTHUB_CONNECTION_STRING, or of HUB, kafka://HOST:PORT/TOPIC.

    Where it goes on is kept in the table. Exit status 1 if something is missing, or could not be read.
    """
    from edge.errors import InputError
    from fleet import eventhub

    text = hub or os.environ.get("EVENTHUB_CONNECTION_STRING", "")
    if not text:
        way_out = "set EVENTHUB_CONNECTION_STRING, or give kafka://HOST:PORT/TOPIC"
        raise InputError("event hub", "none was named", way_out)
    if hub and not hub.startswith("kafka://"):
        way_out = "a connection string goes into EVENTHUB_CONNECTION_STRING, where others do not see it"
        raise InputError("event hub", "HUB is no kafka://HOST:PORT/TOPIC", way_out)
    found = eventhub.follow(
        eventhub.eventhub_of(text), out, manifests, once=once, build_s=build_seconds, jobs=jobs, say=click.echo
    )
    _show(found, as_json)


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
