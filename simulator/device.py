"""One IoT Edge device: the modules of an expanded manifest, as processes, with all that IoT Edge gives them.

    manifest ──► identities, twins, workload sockets, environment ──► processes, restarted as edgeAgent restarts them
                                     Hub (MQTT over TLS on a loopback address of its own)

A module's image is matched to the folder under modules/ whose module.json names it; it runs as `python -m
modules.<folder>.main`. Bind mounts become folders below <state>/host, and environment values that name a place in
the container are rewritten to them. Several devices run side by side: each takes its own loopback address.
"""

import asyncio
import base64
import functools
import json
import logging
import random
import re
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

from edge.errors import InputError
from simulator import certificates, containers, http
from simulator.agent import Agent, Module, Processes
from simulator.binds import Binds
from simulator.broker import PORT
from simulator.certificates import Authority
from simulator.deployment import create_options, module_of_image, modules_content
from simulator.faults import FaultyHub
from simulator.modulelog import ModuleLog
from simulator.registry import ID, Registry
from simulator.secret import Secret
from simulator.service import POLICY, Service
from simulator.sockets import Sockets
from simulator.template import object_of
from simulator.twin import Rejected, check
from simulator.workload import Workload

log = logging.getLogger(__name__)

HUB_NAME = "simulator.azure-devices.net"
ADDRESS = re.compile(r"[A-Za-z0-9.:-]+")
API_VERSION = "2022-08-03"
HTTPS_PORT = 443
MOST_REQUESTS = 100  # over HTTPS, at a time


class EdgeDevice:
    """`async with EdgeDevice(manifest, state, modules_root=…) as device: device.start_modules()`.

    address: a loopback address on which port 8883 is free (None: find one). restart_scale shortens edgeAgent's
    waiting times; 1 is as on a vehicle. on_line gets each line that a module writes, with the module's name. python
    runs the modules. A manifest whose images are not built here still gives identities: only start_modules needs the
    images.
    in_containers: modules run under Docker (simulator/containers.py) instead of as processes.
    adjust: changes each manifest, those of deploy too, before it is run.
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
        adjust: Callable[[dict[str, Any]], None] = lambda manifest: None,
    ) -> None:
        if not ID.fullmatch(device_id):
            way_out = "1 to 128 letters, digits and -:.+%_#*?!(),=@$'"
            raise InputError("simulator", f"the device id {device_id!r} is none", way_out)
        if address is not None and not ADDRESS.fullmatch(address):
            raise InputError("simulator", f"the address {address!r} is none", "for example 127.1.2.3")
        self._in_containers = in_containers
        self._adjust = adjust
        self._adjust(manifest)
        self._content = modules_content(manifest, Path("manifest"))
        self._state = state.absolute()
        self._root = modules_root.absolute()
        self._on_line = on_line
        self.device_id = device_id
        self.address = address or (containers.hub_address() if in_containers else free_address())
        state.mkdir(parents=True, exist_ok=True)
        self._sockets = Sockets(self._state)
        self._secret = Secret(self._state / "identity.json")
        self._binds = Binds(self._state / "host")
        keys = {name: self._secret.key(name) for name in ["", "$edgeHub", "$edgeAgent", *self._definitions()]}
        self.hub = FaultyHub(HUB_NAME, device_id, self.address, self._state, keys)
        launcher = (
            containers.Containers(self._sockets.name, self._sockets.path, self.host_path)
            if in_containers
            else Processes(python)
        )
        self._agent = Agent(self._root, launcher, self.hub.clock, restart_scale, self.hub.tell)
        self.modules = {name: self._module(name, definition) for name, definition in self._definitions().items()}
        self.registry = Registry(self.hub, self._state / "registry.json")
        self.service = Service(self, self.registry, self._secret.key(POLICY))
        self._https = http.Server(
            self.service.answer_outside, name="https request", most_body_bytes=1 << 20, most_requests=MOST_REQUESTS
        )
        self._workloads: dict[str, Workload] = {}
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
            try:
                self.hub.trust(client)
            except ssl.SSLError as error:
                raise InputError(client, f"is no certificate ({error.reason})", "PEM is read") from error
        for name in self.modules:
            await self._open_workload(name)
        self._set_twins()
        try:
            await self.hub.start(self._certificate, self._key_file)
        except ssl.SSLError as error:
            what = f"{self._certificate.name} and its key cannot be read ({error.reason})"
            raise certificates.damaged(self._certificate.parent, what) from error
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
        key = base64.b64encode(self._secret.key(POLICY)).decode()
        return f"HostName={self.address};SharedAccessKeyName={POLICY};SharedAccessKey={key}"

    @property
    def ca_file(self) -> Path:
        return self._ca

    def start_modules(self) -> None:
        """Start what the manifest wants running, in startupOrder. Raises InputError: an image is not built here."""
        self._check_images(self.modules.values())
        self._are_wanted = True
        self._agent.launch(self.modules.values())

    async def deploy(self, manifest: dict[str, Any]) -> None:
        """Become what another manifest says: changed modules are stopped and made anew, others go on.

        A manifest that cannot be run changes nothing. Raises InputError.
        """
        self._adjust(manifest)
        async with self._deploying:
            before, self._content = self._content, modules_content(manifest, Path("manifest"))
            try:
                modules = {name: self._module(name, definition) for name, definition in self._definitions().items()}
                self._check_images(modules.values() if self._are_wanted else ())
                self._check_twins()
            except InputError:
                self._content = before
                raise
            old = self.modules
            stays = {name for name in modules if name in old and old[name].definition == modules[name].definition}
            await self._agent.stop(module for name, module in old.items() if name not in stays)
            for name in old.keys() - modules.keys():
                await self._workloads.pop(name).stop()
                self._sockets.remove(name)
                self.hub.remove_identity(name)
            self.modules = {name: old[name] if name in stays else module for name, module in modules.items()}
            for name in modules.keys() - old.keys():
                self.hub.add_identity(name, self._secret.key(name))
                await self._open_workload(name)
            self._set_twins()
            if self._are_wanted:
                self._agent.launch(module for name, module in self.modules.items() if name not in stays)

    async def _open_workload(self, name: str) -> None:
        identity = f"{HUB_NAME}/{self.device_id}/{name}"
        workload = Workload(identity, self._secret.key(name), Authority(self._ca.parent))
        await workload.start(self._sockets.path(name))
        self._workloads[name] = workload

    async def serve_workloads(self, are_up: bool) -> None:
        """Close the workload sockets, or open them again."""
        for name, workload in self._workloads.items():
            await (workload.start(self._sockets.path(name)) if are_up else workload.stop())

    def show_certificate(self, *, expired: bool) -> None:
        """To who connects from now on: the hub's own, or one that has expired."""
        shown = certificates.expired(self._certificate) if expired else self._certificate
        self.hub.tls.load_cert_chain(shown, self._key_file)

    def _check_images(self, modules: Iterable[Module]) -> None:
        """Docker has images of its own; a process needs the module's folder."""
        for module in () if self._in_containers else modules:
            if module.folder is None:
                what = f"no modules/*/module.json below {self._root} names its image"
                raise InputError(f"module {module.name}", what, "leave it away, or run the images with --containers")

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
        return await self._agent.kill(self.modules[name], number)

    async def stop(self) -> None:
        """Stop modules (SIGTERM, after a while SIGKILL), hub and workload sockets."""
        await self._agent.stop(self.modules.values())
        await self.hub.stop()
        await self._https.stop()
        for name, workload in self._workloads.items():
            await workload.stop()
            self._sockets.remove(name)
        self._sockets.remove_folder()

    def environment(self, name: str) -> dict[str, str]:
        """What IoT Edge adds to a module's environment."""
        return {
            "IOTEDGE_IOTHUBHOSTNAME": HUB_NAME,
            "IOTEDGE_GATEWAYHOSTNAME": self.address,
            "IOTEDGE_DEVICEID": self.device_id,
            "IOTEDGE_MODULEID": name,
            "IOTEDGE_MODULEGENERATIONID": "1",
            "IOTEDGE_WORKLOADURI": f"unix://{self._sockets.path(name)}",
            "IOTEDGE_APIVERSION": API_VERSION,
            "IOTEDGE_AUTHSCHEME": "sasToken",
        }

    def host_path(self, path: str) -> Path:
        """Where a path of the vehicle's own file system lies here."""
        return self._binds.host_path(path)

    def _module(self, name: str, definition: dict[str, Any]) -> Module:
        place, settings = f"manifest: module {name}", object_of(definition, "settings")
        try:
            options = create_options(settings)
            binds = object_of(options, "HostConfig").get("Binds") or []
            own = {key: _env_text(entry["value"]) for key, entry in object_of(definition, "env").items()}
            rewritten = self._binds.rewrite(own, binds)
            environment = own if self._in_containers else rewritten
            if self._in_containers:
                containers.arguments(place, options, self.host_path)  # what cannot be applied is refused now
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(place, f"env, createOptions or Binds are wrong ({error})", "see bordnetz check") from error
        folder = module_of_image(self._root, str(settings.get("image")))
        runtime = {"RuntimeLogLevel": "Information"}
        listener = functools.partial(self._on_line, name) if self._on_line else None
        log_file = ModuleLog(self._state / "logs" / f"{name}.log", listener)
        return Module(name, definition, folder, {**runtime, **environment, **self.environment(name)}, log_file)


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
