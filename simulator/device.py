"""One IoT Edge device: the modules of an expanded manifest, as processes, with all that IoT Edge gives them.

    manifest ──► identities, twins, workload sockets, environment ──► processes, restarted as edgeAgent restarts them
                                     Hub (MQTT over TLS on a loopback address of its own)

A module's image is matched to the folder under modules/ whose module.json names it; it runs as `python -m
modules.<folder>.main`. Bind mounts become folders below <state>/host, and environment values that name a place in
the container are rewritten to them. Several devices run side by side: each takes its own loopback address.
"""

import asyncio
import base64
import ctypes
import functools
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from edge.errors import InputError
from simulator import certificates, containers, http
from simulator.binds import Binds
from simulator.certificates import Authority
from simulator.deployment import create_options, module_of_image, modules_content
from simulator.faults import FaultyHub
from simulator.hub import PORT
from simulator.modulelog import ModuleLog
from simulator.registry import Registry
from simulator.service import POLICY, Service
from simulator.tasks import Tasks
from simulator.template import object_of
from simulator.twin import Rejected, check
from simulator.workload import Workload

log = logging.getLogger(__name__)

HUB_NAME = "simulator.azure-devices.net"
API_VERSION = "2022-08-03"
HTTPS_PORT = 443
MOST_REQUESTS = 100  # over HTTPS, at a time
BACKOFF_SECONDS, BACKOFF_MOST_SECONDS = 10.0, 300.0
MOST_RESTARTS = 20
HEALTHY_SECONDS = 600.0
STOP_SECONDS = 10.0
LAST_ORDER = (1 << 32) - 1
LOG_SECONDS = 2.0  # for what is still in the pipe of a module that has ended
PR_SET_PDEATHSIG = 1
RUNTIME_FOLDER = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")  # noqa: S108
LIBC = ctypes.CDLL(None)  # not in the child: threads that hold locks do not live on there


class Module:
    """A module of the manifest, and its process. state: stopped, running, backoff or failed."""

    def __init__(
        self, name: str, manifest: dict[str, Any], folder: str | None, environment: dict[str, str], log: ModuleLog
    ) -> None:
        self.name = name
        self.folder = folder
        self.environment = environment
        self.log = log
        self.restart_policy: str = manifest.get("restartPolicy", "always")
        self.startup_order: int = manifest.get("startupOrder", LAST_ORDER)
        self.wanted: bool = manifest.get("status", "running") == "running"
        self.process: asyncio.subprocess.Process | None = None
        self.state = "stopped"
        self.restarts = 0
        self.exit_code: int | None = None
        self.definition = manifest
        self.stopping = asyncio.Event()
        self.supervision: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.process.returncode is None else None


class EdgeDevice:
    """`async with EdgeDevice(manifest, state, modules_root=…) as device: device.start_modules()`.

    address: a loopback address on which port 8883 is free (None: find one). restart_scale shortens edgeAgent's
    waiting times; 1 is as on a vehicle. on_line gets each line that a module writes, with the module's name. python
    runs the modules. A manifest whose images are not built here still gives identities: only start_modules needs the
    images.
    in_containers: modules run under Docker (simulator/containers.py) instead of as processes.
    Raises InputError: the manifest is wrong.
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        state: Path,
        *,
        modules_root: Path,
        address: str | None = None,
        device_id: str = "simulated-vehicle",
        restart_scale: float = 1.0,
        on_line: Callable[[str, bytes], None] | None = None,
        python: str = sys.executable,
        in_containers: bool = False,
    ) -> None:
        self._in_containers = in_containers
        self._content = modules_content(manifest, Path("manifest"))
        self._state = state.absolute()
        self._root = modules_root.absolute()
        self._scale = restart_scale
        self._on_line = on_line
        self._python = python
        self.device_id = device_id
        self.address = address or (containers.hub_address() if in_containers else free_address())
        state.mkdir(parents=True, exist_ok=True)
        sweep(RUNTIME_FOLDER)
        self._secret_bytes = self._secret()
        self._keys = {name: self._key(name) for name in ["", "$edgeHub", "$edgeAgent", *self._definitions()]}
        self._binds = Binds(self._state / "host")
        self.hub = FaultyHub(HUB_NAME, device_id, self.address, self._state, self._keys)
        self.modules = {name: self._module(name, definition) for name, definition in self._definitions().items()}
        self.registry = Registry(self.hub, self._state / "registry.json")
        self.service = Service(self, self.registry, self._key(POLICY))
        self._https = http.Server(
            self.service.answer_outside, name="https request", most_body_bytes=1 << 20, most_requests=MOST_REQUESTS
        )
        self._workloads: dict[str, Workload] = {}
        self._tasks = Tasks()
        self._are_wanted = False
        self._deploying = asyncio.Lock()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def _start(self) -> None:
        self._ca, self._certificate, self._key_file = certificates.make(
            self._state / "certificates", self.address, ["localhost"]
        )
        for client in sorted((self._state / "certificates" / "clients").glob("*.pem")):
            self.hub.trust(client)
        for name in self.modules:
            await self._open_workload(name)
        self._set_twins()
        try:
            await self.hub.start(self._certificate, self._key_file)
        except OSError as error:
            place = f"simulator: {self.address}:{PORT}"
            raise InputError(place, f"cannot be listened on ({error.strerror})", "take another address") from error
        try:
            await self._https.start_tls(self.address, HTTPS_PORT, self.hub.tls)
        except OSError as error:
            # An ordinary user may not: all but the service API and methods between modules works all the same.
            log.warning("no HTTPS on %s:%d (%s)", self.address, HTTPS_PORT, error.strerror)

    @property
    def connection_string(self) -> str:
        """For the service SDK, which has to trust certificates/ca.pem of the state folder."""
        key = base64.b64encode(self._key(POLICY)).decode()
        return f"HostName={self.address};SharedAccessKeyName={POLICY};SharedAccessKey={key}"

    @property
    def ca_file(self) -> Path:
        return self._ca

    def start_modules(self) -> None:
        """Start what the manifest wants running, in startupOrder. Raises InputError: an image is not built here."""
        _check_images(self.modules.values(), self._root)
        self._are_wanted = True
        self._launch(self.modules.values())

    async def deploy(self, manifest: dict[str, Any]) -> None:
        """Become what another manifest says: changed modules are stopped and made anew, others go on.

        A manifest that cannot be run changes nothing. Raises InputError.
        """
        async with self._deploying:
            before, self._content = self._content, modules_content(manifest, Path("manifest"))
            try:
                modules = {name: self._module(name, definition) for name, definition in self._definitions().items()}
                _check_images(modules.values() if self._are_wanted else (), self._root)
                self._check_twins()
            except InputError:
                self._content = before
                raise
            old = self.modules
            stays = {name for name in modules if name in old and old[name].definition == modules[name].definition}
            await asyncio.gather(*(_stop(module) for name, module in old.items() if name not in stays))
            for name in old.keys() - modules.keys():
                await self._workloads.pop(name).stop()
                self._socket(name).unlink(missing_ok=True)
                self.hub.remove_identity(name)
            self.modules = {name: old[name] if name in stays else module for name, module in modules.items()}
            for name in modules.keys() - old.keys():
                self.hub.add_identity(name, self._key(name))
                await self._open_workload(name)
            self._set_twins()
            if self._are_wanted:
                self._launch(module for name, module in self.modules.items() if name not in stays)

    def _launch(self, modules: Iterable[Module]) -> None:
        for module in sorted(modules, key=lambda module: module.startup_order):
            if module.wanted:
                module.supervision = self._tasks.start(self._supervise(module), f"module {module.name}")

    async def _open_workload(self, name: str) -> None:
        identity = f"{HUB_NAME}/{self.device_id}/{name}"
        workload = Workload(identity, self._key(name), Authority(self._ca.parent), self.modules)
        await workload.start(self._socket(name))
        self._workloads[name] = workload

    async def serve_workloads(self, are_up: bool) -> None:
        """Close the workload sockets, or open them again."""
        for name, workload in self._workloads.items():
            await (workload.start(self._socket(name)) if are_up else workload.stop())

    def show_certificate(self, *, expired: bool) -> None:
        """To who connects from now on: the hub's own, or one that has expired."""
        shown = certificates.expired(self._certificate) if expired else self._certificate
        self.hub.tls.load_cert_chain(shown, self._key_file)

    def _definitions(self) -> dict[str, Any]:
        return object_of(object_of(object_of(self._content, "$edgeAgent"), "properties.desired"), "modules")

    def _check_twins(self) -> None:
        for name in self._content:
            try:
                check(object_of(object_of(self._content, name), "properties.desired"))
            except Rejected as error:
                raise InputError(f"manifest: {name}.properties.desired", str(error), "see bordnetz check") from error

    def _set_twins(self) -> None:
        self._check_twins()
        for name in ["$edgeAgent", "$edgeHub", *self.modules]:
            self.hub.set_desired(name, object_of(object_of(self._content, name), "properties.desired"))

    async def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int | None:
        """Send a signal to a module's process, wait for its end and return its exit status; edgeAgent restarts it.

        None where there is no process just now.
        """
        process = self.modules[name].process
        if process is None or process.returncode is not None:
            return None
        _signal(process, number)
        return await process.wait()

    async def stop(self) -> None:
        """Stop modules (SIGTERM, after a while SIGKILL), hub and workload sockets."""
        for module in self.modules.values():
            module.stopping.set()
        await self._tasks.join()
        await self.hub.stop()
        await self._https.stop()
        for name, workload in self._workloads.items():
            await workload.stop()
            self._socket(name).unlink(missing_ok=True)
        with suppress(OSError):
            self._sockets().rmdir()

    def environment(self, name: str) -> dict[str, str]:
        """What IoT Edge adds to a module's environment."""
        return {
            "IOTEDGE_IOTHUBHOSTNAME": HUB_NAME,
            "IOTEDGE_GATEWAYHOSTNAME": self.address,
            "IOTEDGE_DEVICEID": self.device_id,
            "IOTEDGE_MODULEID": name,
            "IOTEDGE_MODULEGENERATIONID": "1",
            "IOTEDGE_WORKLOADURI": f"unix://{self._socket(name)}",
            "IOTEDGE_APIVERSION": API_VERSION,
            "IOTEDGE_AUTHSCHEME": "sasToken",
        }

    def host_path(self, path: str) -> Path:
        """Where a path of the vehicle's own file system lies here."""
        return self._binds.host_path(path)

    def _module(self, name: str, definition: dict[str, Any]) -> Module:
        place, settings = f"manifest: module {name}", object_of(definition, "settings")
        try:
            binds = object_of(create_options(settings), "HostConfig").get("Binds") or []
            own = {key: _env_text(entry["value"]) for key, entry in object_of(definition, "env").items()}
            rewritten = self._binds.rewrite(own, binds)
            environment = own if self._in_containers else rewritten
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(place, f"env, createOptions or Binds are wrong ({error})", "see bordnetz check") from error
        folder = module_of_image(self._root, str(settings.get("image")))
        runtime = {"RuntimeLogLevel": "Information"}
        listener = functools.partial(self._on_line, name) if self._on_line else None
        log_file = ModuleLog(self._state / "logs" / f"{name}.log", listener)
        return Module(name, definition, folder, {**runtime, **environment, **self.environment(name)}, log_file)

    async def _supervise(self, module: Module) -> None:
        """Run a module's process, and restart it as edgeAgent does."""
        while not module.stopping.is_set():
            started = self.hub.clock.now()
            await self._run(module)
            if module.stopping.is_set() or module.restart_policy != "always":
                break
            if self.hub.clock.now() - started > HEALTHY_SECONDS * self._scale:
                module.restarts = 0
            if module.restarts >= MOST_RESTARTS:
                log.error("module %s failed: restarted %d times", module.name, module.restarts)
                self._set_state(module, "failed")
                return
            delay = backoff_seconds(module.restarts) * self._scale
            module.restarts += 1
            self._set_state(module, "backoff")
            patience = asyncio.create_task(self.hub.clock.sleep(delay), name=f"restart of {module.name}")
            stopping = asyncio.create_task(module.stopping.wait(), name=f"stop of {module.name}")
            await asyncio.wait([patience, stopping], return_when=asyncio.FIRST_COMPLETED)
            patience.cancel()
            stopping.cancel()
        self._set_state(module, "stopped")

    def _set_state(self, module: Module, state: str) -> None:
        module.state = state
        self.hub.tell()

    def _command(self, module: Module) -> list[str]:
        if not self._in_containers:
            return [self._python, "-m", f"modules.{module.folder}.main"]
        settings = object_of(module.definition, "settings")
        options = create_options(settings)
        containers.remove(self._container(module))
        containers.give_folders(options, self.host_path)
        return containers.command(
            self._container(module), module.name, settings, options, module.environment, self._socket(module.name),
            self.host_path,
        )  # fmt: skip

    def _container(self, module: Module) -> str:
        """Its container's name: the same at every start with this state."""
        return f"{self._sockets().name.rpartition('-')[0]}-{module.name}"

    async def _run(self, module: Module) -> None:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("IOTEDGE_", "BORDNETZ_"))}
        # A pipe of our own: with asyncio's, the end of a process is not seen while a child of it holds the pipe open.
        reading, writing = os.pipe()
        try:
            module.process = process = await asyncio.create_subprocess_exec(
                *await asyncio.to_thread(self._command, module),
                cwd=self._root,
                env={**inherited, **module.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=asyncio.subprocess.STDOUT,
                process_group=0,  # a Ctrl-C is for the simulator, which stops its modules in order
                preexec_fn=functools.partial(_die_with_parent, os.getpid()),
            )
        except OSError as error:
            log.error("module %s cannot be started: %s", module.name, error)
            os.close(reading)
            return
        finally:
            os.close(writing)
        self._set_state(module, "running")
        output = asyncio.create_task(module.log.follow(reading), name=f"log of {module.name}")
        ended, stopping = asyncio.create_task(process.wait()), asyncio.create_task(module.stopping.wait())
        try:
            await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._end(process)
            module.exit_code = await ended
        finally:
            stopping.cancel()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what the module has left behind
            if self._in_containers:
                await asyncio.to_thread(containers.remove, self._container(module))
            await asyncio.wait([output], timeout=LOG_SECONDS)
            output.cancel()
        log.info("module %s ended with %s", module.name, module.exit_code)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        _signal(process, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            _signal(process, signal.SIGKILL)

    def _sockets(self) -> Path:
        # A socket's path has 107 bytes at most; the state folder may lie deep.
        digest = hashlib.sha256(str(self._state).encode()).hexdigest()[:12]
        folder = RUNTIME_FOLDER / f"bordnetz-{digest}-{os.getpid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _socket(self, name: str) -> Path:
        return self._sockets() / f"{hashlib.sha256(name.encode()).hexdigest()[:8]}.sock"

    def _key(self, name: str) -> bytes:
        return hashlib.sha256(self._secret_bytes + name.encode()).digest()

    def _secret(self) -> bytes:
        """What the module keys are made from: random, once for each state folder."""
        path = self._state / "identity.json"
        if not path.exists():
            draft = path.with_suffix(".draft")
            draft.touch(mode=0o600)
            draft.write_text(json.dumps({"secret": os.urandom(32).hex()}))
            draft.replace(path)
        return bytes.fromhex(json.loads(path.read_text())["secret"])


def _check_images(modules: Iterable[Module], root: Path) -> None:
    for module in modules:
        if module.folder is None:
            place = f"module {module.name}"
            raise InputError(place, f"no modules/*/module.json below {root} names its image", "build it")


async def _stop(module: Module) -> None:
    module.stopping.set()
    if module.supervision is not None:
        await asyncio.wait([module.supervision])


def backoff_seconds(restarts: int) -> float:
    """How long edgeAgent waits before it starts a module again that it has restarted so often."""
    return min(BACKOFF_SECONDS * 2.0**restarts, BACKOFF_MOST_SECONDS)


def sweep(folder: Path) -> None:
    """Remove what simulators that were killed have left behind: folders of sockets, by the process that made them."""
    for left in folder.glob("bordnetz-????????????-*"):
        number = left.name.rpartition("-")[2]
        if number.isdecimal() and not Path("/proc", number).exists() and left.lstat().st_uid == os.getuid():
            shutil.rmtree(left, ignore_errors=True)


def free_address() -> str:
    """A loopback address on which the hub's port can be bound. Raises InputError: there is none."""
    for _ in range(100):
        address = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        with socket.socket() as probe:
            try:
                probe.bind((address, PORT))
            except OSError:
                continue
            return address
    raise InputError("simulator", f"port {PORT} cannot be bound on any loopback address", "does the system allow it?")


def _env_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    # Not process.send_signal: it may fetch the exit status of a process that has just ended, which is then lost.
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _die_with_parent(parent: int) -> None:
    """In the child, before exec: end when the simulator does, however it ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)
