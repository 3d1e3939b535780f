"""The `bordnetz` command. Each subcommand loads what it needs when it runs; nothing here runs in a vehicle.

Exit status: 0 done, 1 a finding (something is wrong with what was looked at), 2 bad use. Errors are one line that
names the place, the problem and the way out.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import click

from edge.errors import EdgeError, InputError
from edge.progress import Progress

FINDING, BAD_USE, INTERRUPTED = 1, 2, 130

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)


class Commands(click.Group):
    """Turns our errors into one line and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeError as error:
            fail(str(error), BAD_USE)
        except BrokenPipeError:
            # The reader of our output has gone (`| head`): that is no error of ours.
            sys.stderr.close()
            sys.exit(0)


def fail(line: str, status: int) -> NoReturn:
    click.echo(f"bordnetz: {line}", err=True)
    sys.exit(status)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bordnetz")
def main() -> None:
    """An edge module runtime for in-vehicle gateways: CAN signals, from the bus to a table in the cloud."""


@main.command()
@click.argument("log", type=FILE, required=False)
@click.option("--manifest", type=FILE, help="Decoder manifest for LOG (see `bordnetz compile`).")
@click.option("--seconds", type=click.FloatRange(1, 3600), default=60, show_default=True, help="Of the drive.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the drive.")
@click.option("-o", "--out", type=PATH, default=Path("out/demo"), show_default=True, help="Folder for the results.")
@click.option("--template", type=FILE, default=None, help="Deployment template instead of the project's own.")
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON.")
def demo(
    log: Path | None, manifest: Path | None, seconds: float, seed: int, out: Path, template: Path | None, as_json: bool
) -> None:
    """The whole line, offline: vehicle, modules, IoT Edge, IoT Hub, table.

    Without LOG on a drive of the simulated vehicle.
    """
    if (log is None) != (manifest is None):
        raise click.UsageError("LOG and --manifest go together: a manifest says what the frames of LOG mean")
    from simulator import demo as line

    try:
        summary = line.run(log, manifest, seconds=seconds, seed=seed, out=out, template=template, say=_say(as_json))
    except line.Interrupted as error:
        fail(str(error), INTERRUPTED)
    click.echo(json.dumps(summary.as_dict(), indent=2) if as_json else summary.text())
    if not summary.ok:
        sys.exit(FINDING)


@main.command()
@click.option("-o", "--out", type=FILE, required=True, help="candump log to write; .gz compresses it.")
@click.option("--seconds", type=click.FloatRange(0.1, 24 * 3600), default=60, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def drive(out: Path, seconds: float, seed: int) -> None:
    """A recording of the simulated vehicle."""
    from simulator.vehicle.drive import write_log

    with Progress("driving", seconds) as progress:
        frames = write_log(out, seconds, seed, progress.to)
    click.echo(f"{out}: {frames:,} frames in {seconds:g} s")


@main.command()
@click.argument("databases", type=FILE, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True)
def signals(databases: tuple[Path, ...], as_json: bool) -> None:
    """What can be collected from these databases (DBC, ARXML, KCD, SYM) or decoder manifests."""
    rows = [row for path in databases for row in _signal_rows(path)]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        labels = ", ".join(f"{raw}={text}" for raw, text in list(row["labels"].items())[:4])
        more = ", …" if len(row["labels"]) > 4 else ""
        step = f"{row['factor']:g} {row['unit']}".strip()
        vss = "".join(f"  {path}" for path in row["vss"])
        click.echo(f"{row['name']:{width}}  {row['bits']:2} bit  {step:14} {labels}{more}{vss}".rstrip())
    click.echo(f"{len(rows):,} signals", err=True)


@main.command("compile")
@click.option("--bus", "buses", multiple=True, required=True, metavar="NAME=FILE[,FILE…]", help="Databases of a bus.")
@click.option(
    "--protocol", "protocols", multiple=True, metavar="NAME=PROTOCOL", help="Of a bus: j1939, nmea2000, isotp…"
)
@click.option(
    "--vss", "overlays", multiple=True, metavar="FILE[,FILE…]", help="Overlays that map signals to VSS paths."
)
@click.option("--vss-spec", "trees", multiple=True, metavar="FILE[,FILE…]", help="VSS tree: an export as JSON or YAML.")
@click.option("-o", "--out", type=FILE, required=True, help="Decoder manifest to write.")
@click.option("--strict", is_flag=True, help="Exit with 1, and write nothing, if there was anything to diagnose.")
def compile_manifest(
    buses: tuple[str, ...],
    protocols: tuple[str, ...],
    overlays: tuple[str, ...],
    trees: tuple[str, ...],
    out: Path,
    strict: bool,
) -> None:
    """Build a decoder manifest from databases: all that vehicle and cloud need."""
    from edge.database import compile_databases

    named = dict(protocol.partition("=")[::2] for protocol in protocols)
    manifest, diagnostics = compile_databases(_bus_files(buses), named)
    if trees and not overlays:
        raise click.UsageError("--vss-spec needs --vss: the overlay says which signal is which path")
    if overlays:
        from edge.vss import add_vss

        files, spec = ([Path(name) for text in texts for name in text.split(",")] for texts in (overlays, trees))
        manifest, odd = add_vss(manifest, files, spec)
        diagnostics += odd
    for diagnostic in diagnostics:
        click.echo(str(diagnostic), err=True)
    if strict and diagnostics:
        fail(f"{len(diagnostics)} diagnostics, and --strict: {out} was not written", FINDING)
    _make_folder(out)
    manifest.save(out)
    count = sum(len(message.signals) for message in manifest.messages)
    click.echo(
        f"{out}: {count:,} signals in {len(manifest.messages):,} messages on {', '.join(manifest.buses)}"
        f"{f', {len(manifest.vss):,} VSS paths' if overlays else ''}; "
        f"sha256:{manifest.hash[:16]}…; {len(diagnostics)} diagnostics"
    )


@main.command()
@click.argument("log", type=FILE)
@click.option("--manifest", type=FILE, required=True)
@click.option("-o", "--out", type=FILE, required=True, help="Table to write: .parquet or .csv.")
@click.option("--vss", is_flag=True, help="By VSS path, converted: time_us, path, value, text.")
def decode(log: Path, manifest: Path, out: Path, vss: bool) -> None:
    """A recording to a table of samples: time_us, bus, message, signal, raw, value, label."""
    from edge import manifest as manifests
    from fleet.log import decode_log

    _make_folder(out)
    with Progress("decoding", max(1, log.stat().st_size if log.exists() else 1)) as progress:
        result = decode_log(log, manifests.load(manifest), out, progress.to, vss)
    click.echo(str(result))
    for problem in result.problems:
        click.echo(f"bordnetz: {problem}", err=True)
    if result.problems:
        sys.exit(FINDING)


@main.command()
@click.argument("log", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="Packed recording to write.")
@click.option("--batch-seconds", type=click.FloatRange(0.01, 3600), default=10, show_default=True, help="Of a block.")
@click.option("--resolution-us", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="Of the times.")
@click.option("--table", type=FILE, help="Model table (see `bordnetz train`); unpacking needs it too.")
@click.option("--mixed", is_flag=True, help="Smaller by 4 to 20 %, in over half as much time again.")
def pack(log: Path, out: Path, batch_seconds: float, resolution_us: int, table: Path | None, mixed: bool) -> None:
    """A recording to blocks: every frame, bit for bit, with order, flags and time."""
    from edge import pack as packing
    from edge import table as tables

    _make_folder(out)
    known = tables.load(table) if table else tables.Table()
    with Progress("packing", max(1, log.stat().st_size if log.exists() else 1)) as progress:
        result = packing.pack(log, out, known, batch_seconds, resolution_us, progress.to, mixed=mixed)
    each = f", {result.bytes / result.frames:.2f} bytes a frame" if result.frames else ""
    _report(out, f"{result.frames:,} frames in {result.blocks:,} blocks, {result.bytes:,} bytes{each}", result.problems)


@main.command()
@click.argument("packed", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="Recording to write: .log (.gz, .zst), .blf or .mf4.")
@click.option("--table", "table_files", type=FILE, multiple=True, help="Model table that it was packed with.")
def unpack(packed: Path, out: Path, table_files: tuple[Path, ...]) -> None:
    """A packed recording to the recording that it was made from."""
    from edge import pack as packing
    from edge import table as tables
    from edge.block import Tables

    _make_folder(out)
    known = Tables(tables.load(path) for path in table_files)
    with Progress("unpacking", max(1, packed.stat().st_size if packed.exists() else 1)) as progress:
        result = packing.unpack(packed, out, known, progress.to)
    _report(out, f"{result.frames:,} frames from {result.blocks:,} blocks", result.problems)


@main.command()
@click.argument("logs", type=FILE, nargs=-1, required=True)
@click.option("-o", "--out", type=FILE, required=True, help="Model table to write.")
@click.option("--resolution-us", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="Of the times.")
@click.option("--mixed", is_flag=True, help="For `bordnetz pack --mixed`.")
@click.option("--manifest", type=FILE, help="With --campaigns: a table for blocks of signals, not of frames.")
@click.option("--campaigns", type=FILE, help="What the vehicles collect.")
def train(
    logs: tuple[Path, ...],
    out: Path,
    resolution_us: int,
    mixed: bool,
    manifest: Path | None,
    campaigns: Path | None,
) -> None:
    """Recordings of a vehicle to the model table that makes small blocks of its kind small."""
    from cy_core.frames import Frames
    from edge import manifest as manifests
    from edge import train as training
    from edge.logs import open_log

    if (manifest is None) != (campaigns is None):
        raise InputError("--manifest, --campaigns", "are of use together only", "give both, or none for raw frames")
    _make_folder(out)
    decoder_manifest = manifests.load(manifest) if manifest else None
    recordings, problems = [], []
    for path in logs:
        frames, log = Frames(), open_log(path, decoder_manifest.buses if decoder_manifest else ())
        log.read(frames, training.FRAMES_MOST)
        recordings.append((frames, log.buses))
        problems += [f"{path}: {problem}" for problem in log.problems()]
        log.close()
    if not any(len(frames) for frames, _ in recordings):
        raise InputError(logs[0], "has no frames", "give a recording of the vehicle")
    with Progress("training", 1) as progress:
        if decoder_manifest and campaigns:
            from edge.train_signals import train_signals
            from simulator.check import read_campaigns

            selections = read_campaigns(campaigns, decoder_manifest)
            seen = [frames for frames, _ in recordings]
            table = train_signals(selections, decoder_manifest, seen, progress.to)
        else:
            table = training.train(recordings, resolution_us, progress.to, mixed=mixed)
    try:
        table.save(out)
    except OSError as error:
        raise InputError(out, f"cannot be written ({error.strerror})", "choose another place for -o") from error
    rules = sum(bool(stream.rules) for stream in table.streams)
    text = f"{len(table.streams):,} streams, {rules} checksums, {table.context_count:,} contexts"
    _report(out, f"{text}; sha256:{table.sha256[:16]}…", problems)


@main.command()
@click.argument("campaigns", type=FILE)
@click.option("--manifest", type=FILE, required=True)
@click.option("--log", "logs", type=FILE, multiple=True, required=True, help="Recording; more than one may be given.")
@click.option("--hours-per-day", type=click.FloatRange(0, 24), default=1.5, show_default=True, help="Driven.")
@click.option("--vehicles", type=click.IntRange(1), default=1, show_default=True, help="Of the fleet.")
@click.option("--latency-s", type=click.FloatRange(0.1), default=10, show_default=True, help="Of the uplink.")
@click.option("--price-per-mb", type=click.FloatRange(0), default=0.0, help="Of the mobile network.")
@click.option("--price-per-million-units", type=click.FloatRange(0), default=0.0, help="Of the hub's 4,096 bytes.")
@click.option("--html", type=FILE, help="Write a report with plots to this file, too.")
@click.option("--json", "as_json", is_flag=True)
def plan(
    campaigns: Path,
    manifest: Path,
    logs: tuple[Path, ...],
    hours_per_day: float,
    vehicles: int,
    latency_s: float,
    price_per_mb: float,
    price_per_million_units: float,
    html: Path | None,
    as_json: bool,
) -> None:
    """What campaigns would have collected on recordings: events, samples, bytes, error, cost a month."""
    import msgspec

    from edge import manifest as manifests
    from edge.plan import Usage, backtest
    from edge.plan_text import text
    from simulator.check import read_campaigns

    decoder_manifest = manifests.load(manifest)
    selections = read_campaigns(campaigns, decoder_manifest)
    usage = Usage(hours_per_day, vehicles, price_per_mb, price_per_million_units, latency_s)
    result = backtest(selections, decoder_manifest, logs, usage)
    if html is not None:
        from edge import plan_html, plan_trace

        traces = plan_trace.Traces(result, selections, decoder_manifest)
        backtest(selections, decoder_manifest, logs, usage, watch=traces)
        try:
            html.write_text(plan_html.html(traces), encoding="utf-8")
        except OSError as error:
            raise InputError(
                html, f"cannot be written ({error.strerror})", "choose another place for --html"
            ) from error
    click.echo(msgspec.json.format(msgspec.json.encode(result)).decode() if as_json else text(result))


@main.command()
@click.option("--outbox", type=PATH, default=Path("/var/lib/bordnetz/outbox"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="All that the collector knows of itself.")
def doctor(outbox: Path, as_json: bool) -> None:
    """On the vehicle: why is there no data?"""
    from edge.doctor import bus_lines, examine

    status, sentences = examine(outbox)
    if as_json:
        click.echo(json.dumps({"why": sentences, **status}, indent=2))
    else:
        click.echo("\n".join(sentences) or "all is well: every bus is alive, and every campaign gets its signals")
        click.echo("\n" + "\n".join(bus_lines(status)))
    if sentences:
        sys.exit(FINDING)


@main.command()
@click.argument("files", type=FILE, nargs=-1)
@click.option("--schema", "show_schema", is_flag=True, help="Print the JSON Schema of campaign documents instead.")
@click.option("--manifest", type=FILE, help="Check campaigns and settings against this decoder manifest.")
@click.option("--expand", type=FILE, help="Write the deployment that a template without findings expands to.")
@click.option("--platform", default="amd64", show_default=True, help="Whose images a template takes, or arm64v8.")
@click.option("--json", "as_json", is_flag=True)
def check(
    files: tuple[Path, ...],
    show_schema: bool,
    manifest: Path | None,
    expand: Path | None,
    platform: str,
    as_json: bool,
) -> None:
    """Deployment templates and manifests, campaigns, decoder manifests, databases: what is wrong with them?"""
    if show_schema:
        from edge.campaign import schema

        click.echo(json.dumps(schema(), indent=2))
        return
    if not files:
        raise click.UsageError("give files to check, or --schema")
    from simulator import deployment
    from simulator.check import check_file

    if expand is not None and len(files) != 1:
        raise click.UsageError("--expand takes one template")
    findings = [finding for file in files for finding in check_file(file, manifest, platform)]
    if expand is not None and not findings:
        _make_folder(expand)
        text = json.dumps(deployment.expand(files[0], platform=platform), indent=2) + "\n"
        try:
            expand.write_text(text)
        except OSError as error:
            problem = f"cannot be written ({error.strerror})"
            raise InputError(expand, problem, "choose another place for --expand") from error
    if as_json:
        click.echo(json.dumps(findings, indent=2))
    else:
        for finding in findings:
            click.echo(finding)
        if not findings:
            click.echo(f"{', '.join(map(str, files))}: nothing to complain about")
    if findings:
        sys.exit(FINDING)


def _report(out: Path, text: str, problems: list[str]) -> None:
    click.echo(f"{out}: {text}")
    for problem in problems:
        click.echo(f"bordnetz: {problem}", err=True)
    if problems:
        sys.exit(FINDING)


def _say(quiet: bool) -> Any:
    return lambda line: click.echo(line, err=True) if not quiet else None


def _bus_files(buses: Iterable[str]) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for entry in buses:
        name, equals, paths = entry.partition("=")
        if not equals or not name or not paths:
            raise InputError(f"--bus {entry}", "is not NAME=FILE[,FILE…]", "for example --bus can0=powertrain.dbc")
        files.setdefault(name, []).extend(Path(path) for path in paths.split(","))
    return files


def _signal_rows(path: Path) -> Iterable[dict[str, Any]]:
    manifest = _manifest_of(path)
    paths: dict[int, list[str]] = {}
    for row in manifest.vss:
        paths.setdefault(row.signal, []).append(row.path)
    for place, (name, message, signal) in enumerate(manifest.names()):
        yield {
            "name": name,
            "id": f"{message.id:X}",
            "bits": signal.length,
            "factor": signal.factor,
            "offset": signal.offset,
            "unit": signal.unit,
            "minimum": signal.minimum,
            "maximum": signal.maximum,
            "labels": signal.labels,
            "cycle_ms": message.cycle_ms,
            "vss": paths.get(place, []),
        }


def _manifest_of(path: Path) -> Any:
    from edge import manifest as manifests

    if path.suffix == ".manifest":
        return manifests.load(path)
    from edge.database import load_databases

    return load_databases({"bus": [path]})


def _make_folder(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(out.parent, f"cannot be made ({error.strerror})", "choose another place for -o") from error


# At the end, and cheap: they import nothing but click until a command of theirs runs.
from fleet.cli import fleet  # noqa: E402
from simulator import cli as simulator_cli  # noqa: E402

main.add_command(fleet)
simulator_cli.register(main)
