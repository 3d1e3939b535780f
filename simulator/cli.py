"""Commands of the simulator: `bordnetz simulate`, and what a second terminal says to it."""

import json
import sys
from pathlib import Path
from typing import Any

import click

FINDING = 1
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
STATE = click.option(
    "--state", type=PATH, default=Path("out/simulate"), show_default=True, help="The simulator's folder."
)


@click.command()
@click.argument("files", type=FILE, nargs=-1, metavar="[DEPLOYMENT] [LAYER]…")
@STATE
@click.option("--log", "recording", type=FILE, help="Replay this recording instead of the deployment's source.")
@click.option("--vehicle", is_flag=True, help="Replay a drive of the simulated vehicle instead.")
@click.option("--manifest", type=FILE, help="Decoder manifest for the modules (see `bordnetz compile`).")
@click.option("--drive-seconds", type=click.FloatRange(1, 3600), default=600, show_default=True, help="Of --vehicle.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of --vehicle.")
@click.option("--speed", type=click.FloatRange(0), default=1, show_default=True, help="Of a replay; 0: at once.")
@click.option("--seconds", type=click.FloatRange(0.1), help="End by itself after so long.")
@click.option("--address", help="Loopback address of the hub; without it a free one is taken.")
@click.option("--device-id", default="simulated-vehicle", show_default=True)
@click.option("--restart-scale", type=click.FloatRange(0), default=1, show_default=True, help="Of restart delays.")
@click.option("--faults", type=FILE, help="A schedule of what goes wrong (see docs/simulator.md).")
@click.option("--containers", is_flag=True, help="Modules as containers, as createOptions say, instead of processes.")
def simulate(
    files: tuple[Path, ...],
    state: Path,
    recording: Path | None,
    vehicle: bool,
    manifest: Path | None,
    drive_seconds: float,
    seed: int,
    speed: float,
    seconds: float | None,
    address: str | None,
    device_id: str,
    restart_scale: float,
    faults: Path | None,
    containers: bool,
) -> None:
    """IoT Edge and IoT Hub for one device, offline, until Ctrl-C.

    DEPLOYMENT is a template or a manifest, ./deployment.template.json by default; LAYERs are layered deployments.
    What IoT Edge would refuse is listed, and the exit status is 1; so it is if a module did not stay up.
    """
    from edge import manifest as manifests
    from edge.errors import InputError
    from simulator import simulate as simulator
    from simulator import switchboard

    if vehicle and recording:
        raise click.UsageError("--log and --vehicle exclude each other")
    if recording and not manifest:
        raise click.UsageError("--log needs --manifest: it says what the frames of the log mean")
    if not files:
        own = Path("deployment.template.json")
        files = (own if own.exists() else simulator.ROOT / own.name,)
    try:
        content = simulator.load(files)
    except simulator.Findings as error:
        for finding in error.findings:
            click.echo(finding)
        sys.exit(FINDING)
    if recording and not recording.is_file():
        raise InputError(recording, "no such file", "give a recording")
    meaning = manifests.load(manifest) if manifest else None
    if vehicle:
        recording, meaning = simulator.drive(state / "drives", drive_seconds, seed, click.echo)
    settings = simulator.Settings(
        state=state,
        address=address,
        device_id=device_id,
        recording=recording,
        manifest=meaning,
        speed=speed,
        seconds=seconds,
        restart_scale=restart_scale,
        faults=switchboard.load(faults) if faults else None,
        in_containers=containers,
    )
    if not simulator.run(content, ", ".join(map(str, files)), settings, click.echo):
        sys.exit(FINDING)


@click.group()
def twin() -> None:
    """The twins of a running simulator."""


@twin.command("get")
@click.argument("module", required=False, default="")
@STATE
def twin_get(module: str, state: Path) -> None:
    """The twin of MODULE, as IoT Hub's service API gives it; without MODULE that of the device."""
    _show(_ask(state, "GET", f"twins{_path(state, module)}"))


@twin.command("set")
@click.argument("module")
@click.argument("patch")
@click.option("--replace", is_flag=True, help="The whole desired section, instead of a patch.")
@STATE
def twin_set(module: str, patch: str, replace: bool, state: Path) -> None:
    """Change the desired properties of MODULE: PATCH is JSON, or @FILE. null deletes."""
    body = {"properties": {"desired": _json(patch)}}
    _show(_ask(state, "PUT" if replace else "PATCH", f"twins{_path(state, module)}", body))


@click.command()
@click.argument("module")
@click.argument("method")
@click.argument("payload", default="null")
@click.option("--timeout", type=click.IntRange(5, 300), default=30, show_default=True, help="Seconds for the answer.")
@STATE
def call(module: str, method: str, payload: str, timeout: int, state: Path) -> None:
    """A direct method of MODULE: PAYLOAD is JSON, or @FILE. Exit status 1 where its answer is no success."""
    body = {"methodName": method, "payload": _json(payload), "responseTimeoutInSeconds": timeout}
    answer = _ask(state, "POST", f"twins{_path(state, module)}/methods", body)
    _show(answer["payload"])
    if not 200 <= answer["status"] < 300:
        click.echo(f"bordnetz: {module} answered {method} with {answer['status']}", err=True)
        sys.exit(FINDING)


@click.command()
@click.argument("changes", nargs=-1, metavar="[NAME=VALUE]…")
@click.option("--clear", is_flag=True, help="First make all well again.")
@STATE
def fault(changes: tuple[str, ...], clear: bool, state: Path) -> None:
    """Throw switches of a running simulator: what goes wrong. Shows them all; docs/simulator.md explains them.

    For example: bordnetz fault upstream_cut=true; bordnetz fault refuse=3 puback_delay_s=2; bordnetz fault --clear
    """
    from simulator.faults import Faults

    wanted: dict[str, Any] = {name: getattr(Faults(), name) for name in Faults.__struct_fields__} if clear else {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise click.UsageError(f"{change} is no NAME=VALUE")
        try:
            wanted[name] = json.loads(text)
        except ValueError:
            wanted[name] = text
    _show(_ask(state, "PATCH", "simulator/faults", wanted) if wanted else _ask(state, "GET", "simulator")["faults"])


@click.command()
@STATE
def status(state: Path) -> None:
    """What a running simulator runs, what waits in it, its counters, faults, and how to reach it."""
    _show(_ask(state, "GET", "simulator"))


def register(main: click.Group) -> None:
    for command in (simulate, twin, call, fault, status):
        main.add_command(command)


def _ask(state: Path, method: str, path: str, document: Any = None) -> Any:
    from simulator import control

    try:
        return control.ask(state, method, f"/{path}", document)
    except control.Refused as error:
        click.echo(f"bordnetz: {error}", err=True)
        sys.exit(FINDING)


def _path(state: Path, module: str) -> str:
    from urllib.parse import quote

    device = quote(_ask(state, "GET", "simulator")["device"], safe="")
    return f"/{device}/modules/{quote(module, safe='')}" if module else f"/{device}"


def _json(text: str) -> Any:
    from edge.errors import InputError
    from simulator import strict

    place = "JSON"
    try:
        if text.startswith("@"):
            place = text[1:]
            text = Path(place).read_text(encoding="utf-8")
        return strict.loads(text)
    except OSError as error:
        raise InputError(place, f"cannot be read ({error.strerror})", "name a file behind the @") from error
    except ValueError as error:
        raise InputError(place, f"is no JSON ({error})", """for example '{"latency_s": 5}'""") from error


def _show(document: Any) -> None:
    click.echo(json.dumps(document, indent=2))
