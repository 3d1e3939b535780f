"""createOptions as `docker run` takes them; `make containers` runs them in a real engine."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from edge.errors import InputError
from simulator import containers, deployment
from simulator.demo import ROOT
from simulator.device import EdgeDevice, free_address


def host_path(path: str) -> Path:
    return Path("/state/host", path.lstrip("/"))


def options_of(module: str) -> dict[str, Any]:
    content = deployment.modules_content(deployment.expand(ROOT / "deployment.template.json"), Path("manifest"))
    settings = content["$edgeAgent"]["properties.desired"]["modules"][module]["settings"]
    return deployment.create_options(settings)


@pytest.mark.parametrize("module", ["collector", "uplink"])
def test_the_deployments_locks_become_arguments_of_docker_run(module: str) -> None:
    made = containers.arguments(module, options_of(module), host_path)
    assert {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=10001:10001"} <= set(made)
    assert {"--memory=134217728", "--pids-limit=64", "--log-driver=json-file", "--log-opt=max-size=10m"} <= set(made)
    assert "--volume=/state/host/var/lib/bordnetz:/var/lib/bordnetz" in made
    assert ("--network=host" in made) == (module == "collector")


def test_every_kind_of_option_becomes_its_arguments() -> None:
    options = {
        "User": "1:2",
        "Env": ["A=b"],
        "HostConfig": {
            "Binds": ["/a:/b:ro", "/c:/d"],
            "CapAdd": ["NET_RAW"],
            "MemorySwap": 5,
            "NanoCpus": 500_000_000,
            "Tmpfs": {"/tmp": "size=16m", "/run": ""},
        },
    }
    assert containers.arguments("m", options, host_path) == [
        "--cap-add=NET_RAW",
        "--memory-swap=5",
        "--cpus=0.5",
        "--tmpfs=/tmp:size=16m",
        "--tmpfs=/run",
        "--volume=/state/host/a:/b:ro",
        "--volume=/state/host/c:/d",
        "--user=1:2",
        "--env=A=b",
    ]


@pytest.mark.parametrize("options", [{"Entrypoint": ["sh"]}, {"HostConfig": {"Privileged": True}}])
def test_what_is_not_applied_is_refused_and_not_left_away(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is not applied here"):
        containers.arguments("module m", options, host_path)


@pytest.mark.parametrize("options", [{"Privileged": True}, {"NanoCpus": "one"}, {"Tmpfs": ["/tmp"]}, {"LogConfig": 5}])
def test_modules_that_cannot_run_in_containers_are_refused_at_once(tmp_path: Path, options: dict[str, Any]) -> None:
    module = {"settings": {"image": "m:1", "createOptions": json.dumps({"HostConfig": options})}}
    manifest = {"modulesContent": {"$edgeAgent": {"properties.desired": {"modules": {"m": module}}}}}
    with pytest.raises(InputError, match=r"manifest: module m"):
        EdgeDevice(manifest, tmp_path, modules_root=ROOT, in_containers=True, address=free_address())


async def test_a_module_of_somebody_else_runs_as_a_container_and_not_as_a_process(tmp_path: Path, monkeypatch) -> None:
    module = {"settings": {"image": "example.com/metrics:1"}, "restartPolicy": "never"}
    manifest = {"modulesContent": {"$edgeAgent": {"properties.desired": {"modules": {"m": module}}}}}
    async with EdgeDevice(manifest, tmp_path / "p", modules_root=ROOT) as device:
        with pytest.raises(InputError, match=r"module m: no modules/\*/module.json .* names its image; .*--containers"):
            device.start_modules()
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho $*")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    lines: list[bytes] = []
    inside = EdgeDevice(
        manifest,
        tmp_path / "c",
        modules_root=ROOT,
        in_containers=True,
        address=free_address(),
        on_line=lambda name, line: lines.append(line),
    )
    async with inside as device:
        device.start_modules()
        async with asyncio.timeout(10):
            while device.modules["m"].exit_code is None:
                await device.hub.changed(10)
    assert b"example.com/metrics:1" in lines[0]


def test_what_is_switched_off_needs_not_be_applied() -> None:
    assert containers.arguments("m", {"HostConfig": {"Privileged": False, "ReadonlyRootfs": False}}, host_path) == []


def test_secrets_of_the_environment_are_no_arguments() -> None:
    settings, environment = {"image": "i:1", "createOptions": ""}, {"TOKEN": "secret"}
    made = containers.command("n", "m", settings, {"Cmd": ["x"]}, environment, Path("/s/w.sock"), host_path)
    assert made[:4] == ["docker", "run", "--rm", "--name=n"]
    assert made[4:] == ["--volume=/s/w.sock:/s/w.sock", "--env=TOKEN", "i:1", "x"]
    assert not any("secret" in argument for argument in made)
