"""Modules as containers, where a Docker engine runs: what their createOptions ask for, as `docker run` takes it.

    createOptions ──arguments──► docker run --rm NAME …, in the foreground: its end is the module's, and its output
    Binds         ──► folders below <state>/host, as for processes          the module's log

The hub has to be where containers on Docker's bridge reach it: hub_address(). What createOptions ask for and is not
applied here is refused, so that nothing looks locked down that is not.
"""

import ipaddress
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge.errors import InputError
from simulator.agent import Module
from simulator.deployment import create_options
from simulator.template import object_of

DOCKER_SECONDS = 30.0
# Of HostConfig, what one argument says; a list repeats it.
PLAIN = {
    "CapAdd": "--cap-add",
    "CapDrop": "--cap-drop",
    "CpuShares": "--cpu-shares",
    "Memory": "--memory",
    "MemoryReservation": "--memory-reservation",
    "MemorySwap": "--memory-swap",
    "NetworkMode": "--network",
    "PidsLimit": "--pids-limit",
    "SecurityOpt": "--security-opt",
    "ShmSize": "--shm-size",
}
OPTIONS = {"Cmd", "Env", "ExposedPorts", "HostConfig", "Labels", "NetworkingConfig", "User"}
HOST_OPTIONS = {*PLAIN, "Binds", "LogConfig", "NanoCpus", "ReadonlyRootfs", "RestartPolicy", "Tmpfs"}


class Containers:
    """How modules of one state folder run. name: begins the names of their containers, the same at every start.

    socket: the path of a module's workload socket. host_path: where a path of the vehicle lies here.
    """

    def __init__(self, name: str, socket: Callable[[str], Path], host_path: Callable[[str], Path]) -> None:
        self._name = name
        self._socket = socket
        self._host_path = host_path

    def command(self, module: Module) -> list[str]:
        settings = object_of(module.definition, "settings")
        options = create_options(settings)
        self.clean(module)
        give_folders(options, self._host_path)
        name, socket = f"{self._name}-{module.name}", self._socket(module.name)
        return command(name, module.name, settings, options, module.environment, socket, self._host_path)

    def clean(self, module: Module) -> None:
        """What `docker run` has left behind when it was killed, or from another time; nothing if there is nothing."""
        _docker("rm", "--force", f"{self._name}-{module.name}")


def arguments(place: str, options: Mapping[str, Any], host_path: Callable[[str], Path]) -> list[str]:
    """createOptions as arguments of `docker run`. Raises InputError: something that is not applied here.

    place: what errors call the module. The restart policy is edgeAgent's; labels and exposed ports change nothing
    for a module.
    """
    host = object_of(options, "HostConfig")
    for known, given, where in ((OPTIONS, options, ""), (HOST_OPTIONS, host, "HostConfig.")):
        for key in sorted(key for key in given.keys() - known if given[key]):
            raise InputError(f"{place}: createOptions.{where}{key}", "is not applied here", "run it as a process")
    for key in ("LogConfig", "Tmpfs"):
        if not isinstance(host.get(key) or {}, dict):
            raise InputError(f"{place}: createOptions.HostConfig.{key}", "is no object", "see Docker's API")
    made: list[str] = []
    for key, argument in PLAIN.items():
        value = host.get(key)
        for entry in value if isinstance(value, list) else [value] if value else []:
            made.append(f"{argument}={entry}")
    if host.get("ReadonlyRootfs"):
        made.append("--read-only")
    if host.get("NanoCpus"):
        made.append(f"--cpus={host['NanoCpus'] / 1e9:g}")
    made += [f"--tmpfs={path}:{how}".rstrip(":") for path, how in object_of(host, "Tmpfs").items()]
    for bind in host.get("Binds") or []:
        outside, _, inside = bind.partition(":")
        made.append(f"--volume={host_path(outside)}:{inside}")
    log = object_of(host, "LogConfig")
    if log:
        made.append(f"--log-driver={log.get('Type', 'json-file')}")
        made += [f"--log-opt={name}={value}" for name, value in object_of(log, "Config").items()]
    if options.get("User"):
        made.append(f"--user={options['User']}")
    made += [f"--env={entry}" for entry in options.get("Env") or []]
    return made


def command(name: str, module: str, settings: Mapping[str, Any], options: Mapping[str, Any],
            environment: Mapping[str, str], socket: Path, host_path: Callable[[str], Path]) -> list[str]:  # fmt: skip
    """`docker run` for a module. Values of its environment are those of this command: secrets are no arguments."""
    made = ["docker", "run", "--rm", f"--name={name}", *arguments(f"module {module}", options, host_path)]
    made += [f"--volume={socket}:{socket}", *(f"--env={key}" for key in environment)]
    return [*made, str(settings["image"]), *(options.get("Cmd") or [])]


def give_folders(options: Mapping[str, Any], host_path: Callable[[str], Path]) -> None:
    """Bound folders belong to the module's user, as whoever prepares a vehicle has to see to; root alone may do it."""
    user, _, group = str(options.get("User", "")).partition(":")
    if os.geteuid() == 0 and user.isdigit():
        for bind in object_of(options, "HostConfig").get("Binds") or []:
            place = host_path(bind.partition(":")[0])
            for path in (place, *place.rglob("*")):
                os.chown(path, int(user), int(group) if group.isdigit() else -1, follow_symlinks=False)


def hub_address() -> str:
    """Of this machine on Docker's bridge. Raises InputError: there is no engine, or it has none."""
    if not shutil.which("docker"):
        raise InputError("simulate --containers", "there is no docker", "apt-get install docker.io")
    try:
        asked = _docker("network", "inspect", "bridge")
    except OSError as error:
        raise InputError("simulate --containers", str(error), "start dockerd") from error
    try:
        config = json.loads(asked.stdout)[0]["IPAM"]["Config"][0]
        return str(config.get("Gateway") or next(ipaddress.ip_network(config["Subnet"]).hosts()))
    except (ValueError, LookupError, TypeError):
        reason = asked.stderr.decode(errors="replace").strip() or "it has no bridge"
        raise InputError("simulate --containers", f"Docker does not answer: {reason}", "start dockerd") from None


def _docker(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """Raises OSError."""
    command = ["docker", *arguments]
    try:
        return subprocess.run(command, capture_output=True, timeout=DOCKER_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"docker {arguments[0]} did not answer in {DOCKER_SECONDS:.0f} s") from error
