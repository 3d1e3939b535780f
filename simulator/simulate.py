"""`bordnetz simulate`: be the device of a deployment, and the cloud behind it, until Ctrl-C.

    template or manifest [+ layers] ──► checked ──► EdgeDevice ──► lines on the terminal
                                                        ▲ control socket: bordnetz twin, call, fault, status

All state lies in one folder: twins, sessions, certificates, the modules' logs and files, what the cloud received.
"""

import asyncio
import json
import shutil
import signal
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import InputError
from edge.manifest import DecoderManifest
from simulator import demo, deployment, layers
from simulator.control import Control, held
from simulator.demo import VEHICLE_FOLDER
from simulator.device import EdgeDevice
from simulator.http import Answer, BadRequest, Request
from simulator.switchboard import Schedule, Switchboard
from simulator.tasks import Tasks
from simulator.telemetry import Bag
from simulator.template import object_of

ROOT = demo.ROOT
Say = Callable[[str], None]
SHOWN_CHARACTERS = 100
LOUD = (b"<0>", b"<1>", b"<2>", b"<3>", b"<4>", b"docker: ")  # what a module logs as a warning, or worse


class Findings(Exception):
    """What IoT Edge would refuse, one line each."""

    def __init__(self, findings: list[str]) -> None:
        self.findings = findings
        super().__init__(f"{len(findings)} findings")


class Settings(msgspec.Struct, frozen=True):
    """recording: replayed instead of the source that the deployment names; manifest: what its frames mean.

    faults: a schedule of what goes wrong.
    """

    state: Path
    address: str | None = None
    device_id: str = "simulated-vehicle"
    recording: Path | None = None
    manifest: DecoderManifest | None = None
    speed: float = 1.0
    seconds: float | None = None
    restart_scale: float = 1.0
    faults: Schedule | None = None
    in_containers: bool = False


def load(files: Sequence[Path]) -> dict[str, Any]:
    """The manifest of a template or deployment, with layered ones laid on it. Raises InputError, Findings."""
    findings = [finding for file in files for finding in deployment.check(file)]
    if findings:
        raise Findings(findings)
    base, *above = (deployment.modules_content(deployment.expand(file), file) for file in files)
    if layers.is_layered(base):
        raise InputError(files[0], "is a layered deployment", "give the deployment it is laid on first")
    for file, content in zip(files[1:], above, strict=True):
        if not layers.is_layered(content):
            raise InputError(file, "is no layered deployment", "a device has one deployment, and layers on it")
    manifest = {"modulesContent": layers.lay(base, above)}
    if findings := deployment.check_manifest(manifest, files[-1]):
        raise Findings(findings)
    return manifest


def drive(folder: Path, seconds: float, seed: int, say: Say) -> tuple[Path, DecoderManifest]:
    """A recording of the simulated vehicle, made unless it is there, and what its frames mean."""
    from edge.database import load_databases
    from simulator.vehicle import databases
    from simulator.vehicle.drive import write_log

    path = folder / f"drive-{seconds:g}s-seed{seed}.log.gz"
    if not path.exists():
        say(f"making a drive of {seconds:g} s; {path} is kept for the next time")
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"draft-{path.name}")
        write_log(draft, seconds, seed, None)
        draft.replace(path)
    return path, load_databases(databases())


def run(manifest: dict[str, Any], name: str, settings: Settings, say: Say) -> bool:
    """Until SIGINT, SIGTERM or the end of settings.seconds; false if a module did not stay up.

    Raises InputError; BrokenPipeError, once all has ended in order: nobody reads any longer what say is told.
    """
    with held(settings.state):
        try:
            return asyncio.run(Simulation(manifest, name, settings, say).run())
        except BrokenPipeError:
            raise
        except OSError as error:
            place, problem = error.filename or settings.state, f"cannot be written ({error.strerror or error})"
            raise InputError(place, problem, "make room there, or choose another folder with --state") from error


class Simulation:
    def __init__(self, manifest: dict[str, Any], name: str, settings: Settings, say: Say) -> None:
        self._name = name
        self._settings = settings
        self._out = say
        self._stop = asyncio.Event()
        self._nobody_reads: BrokenPipeError | None = None
        if settings.recording and not _sources(manifest):
            raise InputError("manifest", "no module has a BORDNETZ_SOURCE to replace", "leave --log and --vehicle away")
        self._device = EdgeDevice(
            manifest,
            settings.state,
            modules_root=ROOT,
            address=settings.address,
            device_id=settings.device_id,
            restart_scale=settings.restart_scale,
            on_line=self._on_line,
            in_containers=settings.in_containers,
            adjust=self._adjust,
        )
        self._device.hub.on_message = self._on_message
        self._switches = Switchboard(self._device)
        self._tasks = Tasks()
        self._states: dict[str, str] = {}

    async def run(self) -> bool:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        control = Control(self._settings.state, self.answer)
        async with self._device as device:
            self._bring_files()
            self._greet()
            device.start_modules()
            await control.start()
            self._tasks.start(self._watch(), "simulate: watch")
            if self._settings.faults:
                self._tasks.start(self._switches.run(self._settings.faults), "simulate: faults")
            try:
                async with asyncio.timeout(self._settings.seconds):
                    await self._stop.wait()
            except TimeoutError:
                pass
            finally:
                await self._tasks.end()
                await self._switches.stop()
                await control.stop()
                down = sorted(name for name, module in device.modules.items() if module.is_down)
                self._say("stopping the modules")
        counters = device.hub.counters
        self._say(f"{counters['messages']:,} messages, {counters['body_bytes']:,} bytes in {device.hub.messages_dir}")
        for module in down:
            self._say(f"{module} did not stay up: see {self._log(module)}")
        if self._nobody_reads:
            raise self._nobody_reads
        return not down

    async def answer(self, request: Request) -> Answer:
        """On the control socket."""
        match request.method, request.parts:
            case "GET", ("simulator",):
                return Answer(200, self._status())
            case "PATCH", ("simulator", "faults"):
                changes = request.json()
                if not isinstance(changes, dict):
                    raise BadRequest(400, "faults come as an object")
                try:
                    thrown = await self._switches.throw(changes)
                except InputError as error:
                    raise BadRequest(400, str(error)) from error
                self._tell(f"faults: {json.dumps(thrown.on())}")
                return Answer(200, msgspec.structs.asdict(thrown))
            case _, ("simulator", *_):
                raise BadRequest(404, "known are GET /simulator and PATCH /simulator/faults")
        return await self._device.service.answer(request)

    def _status(self) -> dict[str, Any]:
        device = self._device
        return {
            "device": device.device_id,
            "address": device.address,
            "connectionString": device.connection_string,
            "caFile": str(device.ca_file),
            "messages": str(device.hub.messages_dir),
            "faults": msgspec.structs.asdict(device.hub.faults),
            "waiting": device.hub.router.waiting(),
            "counters": dict(device.hub.counters),
            "modules": {
                name: {
                    "state": module.state,
                    "pid": module.pid,
                    "restarts": module.restarts,
                    "exitCode": module.exit_code,
                    "connected": device.hub.is_connected(name),
                }
                for name, module in device.modules.items()
            },
        }

    def _adjust(self, manifest: dict[str, Any]) -> None:
        """What is applied later replays the recording, too."""
        recording = self._settings.recording
        if recording:
            for source in _sources(manifest):
                source["value"] = f"replay:{VEHICLE_FOLDER}/{recording.name}?speed={self._settings.speed:g}"

    def _bring_files(self) -> None:
        """What the modules find in the vehicle's folder: the decoder manifest, and the recording."""
        folder = self._device.host_path(VEHICLE_FOLDER)
        folder.mkdir(parents=True, exist_ok=True)
        if self._settings.manifest:
            self._settings.manifest.save(folder / "vehicle.manifest")
        recording = self._settings.recording
        if recording:
            if (folder / recording.name).exists():
                self._say(
                    f"{recording.name} goes on where the last run with this state stopped; another --state begins anew"
                )
            shutil.copyfile(recording, folder / recording.name)

    def _greet(self) -> None:
        device, state = self._device, self._settings.state
        self._say(f"{device.device_id} runs {', '.join(device.modules)} of {self._name}; Ctrl-C ends it")
        self._say(f"  hub on {device.address}:8883, state in {state}")
        self._say(f"  from another terminal: bordnetz twin get uplink --state {state}")
        for module in device.modules.values():
            for problem in problems_of(module.environment):
                self._say(f"  {module.name}: {problem}")

    def _on_message(self, identity: str, bag: Bag, body: bytes) -> None:
        device, module = self._device.hub.identities.names_of(identity)
        who = module if device == self._device.device_id else f"{device}/{module}".rstrip("/")
        properties = " ".join(f"{name}={value}" for name, value in bag.items())
        self._tell(f"{who or device}: {len(body):,} bytes {properties} {_readable(body)}".rstrip())

    def _on_line(self, module: str, line: bytes) -> None:
        if line.startswith(LOUD):
            self._tell(f"{module}: {line.decode(errors='replace')}")

    async def _watch(self) -> None:
        """Say how modules fare."""
        while True:
            for name, module in self._device.modules.items():
                connected = " and connected" if self._device.hub.is_connected(name) else ""
                ended = f" (it ended with {module.exit_code}), see {self._log(name)}" if module.is_down else ""
                state = f"{module.state}{connected}{ended}"
                if self._states.get(name, "stopped") != state:
                    self._tell(f"{name}: {state}")
                self._states[name] = state
            try:
                await self._device.hub.changed(60)
            except TimeoutError:
                continue

    def _log(self, module: str) -> Path:
        return self._settings.state / "logs" / f"{module}.log"

    def _say(self, line: str) -> None:
        try:
            self._out(line)
        except BrokenPipeError as error:  # that is no reason to refuse messages
            self._nobody_reads = error
            self._stop.set()

    def _tell(self, line: str) -> None:
        self._say(f"{datetime.now().astimezone():%H:%M:%S} {line}")


def problems_of(environment: dict[str, str]) -> list[str]:
    """What a module will not find on this machine, with the way out."""
    problems = []
    kind, _, buses = environment.get("BORDNETZ_SOURCE", "").partition(":")
    if kind == "socketcan":
        absent = [bus for bus in buses.partition("?")[0].split(",") if not Path("/sys/class/net", bus).exists()]
        if absent:
            way_out = "it waits for them; --vehicle or --log replays instead"
            problems.append(f"this machine has no CAN interface {', '.join(absent)}: {way_out}")
    manifest = environment.get("BORDNETZ_MANIFEST")
    if manifest and not Path(manifest).exists():
        problems.append(f"there is no decoder manifest {manifest}: give one with --manifest")
    return problems


def _sources(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Where modules' environments name what they read."""
    content = deployment.modules_content(manifest, Path("manifest"))
    modules = object_of(object_of(object_of(content, "$edgeAgent"), "properties.desired"), "modules")
    environments = [object_of(module, "env") for module in modules.values()]
    return [env["BORDNETZ_SOURCE"] for env in environments if object_of(env, "BORDNETZ_SOURCE")]


def _readable(body: bytes) -> str:
    """The beginning of a body that is text."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return ""
    short = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
    return short if short.isprintable() else json.dumps(short)
