"""The simulated device: modules as real processes with what IoT Edge gives them, and none left behind."""

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import InputError
from simulator import agent as agent_file
from simulator import modulelog
from simulator.agent import backoff_seconds
from simulator.binds import Binds
from simulator.broker import PORT
from simulator.device import EdgeDevice, free_address
from simulator.modulelog import ModuleLog

SECONDS = 15
ROOT = Path(__file__).resolve().parent.parent
PROBE = """
import json, os, signal, subprocess, sys
kind = os.environ.get("KIND", "")
if kind == "ends":
    sys.exit(3)
if kind == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "1000"]).pid if kind == "parent" else 0
print(json.dumps({"pid": os.getpid(), "child": child, "cwd": os.getcwd(), "env": dict(os.environ)}), flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one module, the probe, which says who it is and waits."""
    folder = tmp_path / "repository" / "modules" / "probe"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "main.py").write_text(PROBE)
    (folder / "module.json").write_text(json.dumps({"image": {"repository": "registry.example/probe"}}))
    return tmp_path / "repository"


def manifest(**modules: dict[str, Any]) -> dict[str, Any]:
    base = {"type": "docker", "status": "running", "restartPolicy": "always", "settings": {"image": "probe:1-amd64"}}
    definitions = {name: {**base, **module} for name, module in modules.items()}
    return {"modulesContent": {"$edgeAgent": {"properties.desired": {"modules": definitions}}}}


def kind(name: str) -> dict[str, Any]:
    return {"env": {"KIND": {"value": name}}}


class Running:
    """A device and what its modules have said."""

    def __init__(self, device: EdgeDevice, lines: "asyncio.Queue[tuple[str, bytes]]") -> None:
        self.device = device
        self._lines = lines

    async def next_start(self) -> dict[str, Any]:
        _, line = await asyncio.wait_for(self._lines.get(), SECONDS)
        return json.loads(line)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():
                await self.device.hub.changed(SECONDS)


@asynccontextmanager
async def running(root: Path, manifest: dict[str, Any], **options: Any) -> AsyncIterator[Running]:
    lines: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    options = {"restart_scale": 0.0001, **options}
    state = root.parent / "state"
    async with EdgeDevice(
        manifest, state, modules_root=root, on_line=lambda name, line: lines.put_nowait((name, line)), **options
    ) as device:
        device.start_modules()
        yield Running(device, lines)


async def is_gone(pid: int) -> bool:
    """Wait for the end of a process that may be anyone's child."""
    try:
        number = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool((await asyncio.to_thread(select.select, [number], [], [], SECONDS))[0])
    finally:
        os.close(number)


# -- processes ---------------------------------------------------------------------------------------------------


@pytest.mark.process
async def test_a_module_runs_with_the_environment_that_iot_edge_gives_it(root, monkeypatch):
    monkeypatch.setenv("IOTEDGE_MODULEID", "from outside")
    monkeypatch.setenv("BORDNETZ_OUTBOX", "from outside")
    options = json.dumps({"HostConfig": {"Binds": ["/var/lib/x:/data:rw"]}})
    module = {
        "settings": {
            "image": "localhost:5000/probe:2-arm64v8",
            "createOptions": options[:20],
            "createOptions01": options[20:],
        },
        "env": {
            "TEXT": {"value": "replay:/data/drive.log"},
            "TRUTH": {"value": True},
            "NUMBER": {"value": 1.5},
            "IOTEDGE_MODULEID": {"value": "somebody else"},
        },
    }
    async with running(root, manifest(one=module)) as run:
        start = await run.next_start()
        env, device = start["env"], run.device
        assert start["pid"] == device.modules["one"].pid
        assert start["cwd"] == str(root)
        expected = {
            "IOTEDGE_IOTHUBHOSTNAME": "simulator.azure-devices.net",
            "IOTEDGE_GATEWAYHOSTNAME": device.address,
            "IOTEDGE_DEVICEID": "simulated-vehicle",
            "IOTEDGE_MODULEID": "one",
            "IOTEDGE_MODULEGENERATIONID": "1",
            "IOTEDGE_WORKLOADURI": device.environment("one")["IOTEDGE_WORKLOADURI"],
            "IOTEDGE_APIVERSION": "2022-08-03",
            "IOTEDGE_AUTHSCHEME": "sasToken",
            "RuntimeLogLevel": "Information",
            "TEXT": f"replay:{device.host_path('/var/lib/x')}/drive.log",
            "TRUTH": "true",
            "NUMBER": "1.5",
        }
        assert {name: env.get(name) for name in expected} == expected
        assert "BORDNETZ_OUTBOX" not in env
        assert device.host_path("/var/lib/x").is_dir()
        assert (root.parent / "state" / "logs" / "one.log").stat().st_size > 0


@pytest.mark.process
async def test_a_killed_module_is_started_again_with_another_pid(root):
    async with running(root, manifest(one={})) as run:
        first = await run.next_start()
        assert await run.device.kill("one", signal.SIGKILL) == -signal.SIGKILL
        second = await run.next_start()
        module = run.device.modules["one"]
        assert second["pid"] == module.pid != first["pid"]
        assert (module.restarts, module.state) == (1, "running")
        assert second["env"] == first["env"]


@pytest.mark.process
async def test_a_module_that_never_stays_up_has_failed_after_twenty_restarts(root, monkeypatch):
    monkeypatch.setattr(agent_file, "MOST_RESTARTS", 3)
    async with running(root, manifest(one=kind("ends")), restart_scale=1e-6) as run:
        module = run.device.modules["one"]
        monkeypatch.setattr(agent_file, "HEALTHY_SECONDS", 1e9)
        await run.until(lambda: module.state == "failed")
        assert (module.restarts, module.exit_code, module.pid) == (3, 3, None)


@pytest.mark.process
async def test_the_count_of_restarts_clears_when_a_module_has_run_for_long(root, monkeypatch):
    monkeypatch.setattr(agent_file, "HEALTHY_SECONDS", 0)
    async with running(root, manifest(one={})) as run:
        for _ in range(3):
            await run.next_start()
            await run.device.kill("one")
        await run.next_start()
        assert run.device.modules["one"].restarts == 1


@pytest.mark.process
@pytest.mark.parametrize("policy", ["never", "on-failure"])
async def test_only_the_policy_always_restarts(root, policy):
    async with running(root, manifest(one={**kind("ends"), "restartPolicy": policy})) as run:
        await run.until(lambda: run.device.modules["one"].state == "stopped")
        assert run.device.modules["one"].restarts == 0


@pytest.mark.process
async def test_modules_start_in_startup_order_and_stopped_ones_do_not(root, monkeypatch):
    started = []
    create = asyncio.create_subprocess_exec

    async def record(*command: str, env: dict[str, str], **options: Any) -> Any:
        started.append(env["IOTEDGE_MODULEID"])
        return await create(*command, env=env, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", record)
    modules = {"last": {}, "second": {"startupOrder": 2}, "first": {"startupOrder": 1}, "off": {"status": "stopped"}}
    async with running(root, manifest(**modules)) as run:
        for _ in range(3):
            await run.next_start()
        assert started == ["first", "second", "last"]
        assert run.device.modules["off"].state == "stopped"


@pytest.mark.process
@pytest.mark.parametrize("how", ["", "stubborn", "parent"])
async def test_stopping_the_device_leaves_no_process(root, monkeypatch, how):
    monkeypatch.setattr(agent_file, "STOP_SECONDS", 0.2)
    async with running(root, manifest(one=kind(how), two={})) as run:
        starts = [await run.next_start(), await run.next_start()]
    for start in starts:
        assert not Path(f"/proc/{start['pid']}").exists()
        assert not start["child"] or await is_gone(start["child"])
    ends = sorted(module.exit_code for module in run.device.modules.values())
    assert ends == sorted([-signal.SIGKILL if how == "stubborn" else -signal.SIGTERM, -signal.SIGTERM])
    assert not Path(run.device.environment("one")["IOTEDGE_WORKLOADURI"][7:]).exists()


@pytest.mark.process
async def test_stopping_while_modules_start_leaves_no_process(root):
    async with running(root, manifest(one={}, two={})) as run:
        await run.until(lambda: any(module.pid for module in run.device.modules.values()))
    assert [module.pid for module in run.device.modules.values()] == [None, None]


@pytest.mark.process
async def test_modules_end_with_a_simulator_that_is_killed(root):
    script = (
        "import asyncio, json, sys; from pathlib import Path; from simulator.device import EdgeDevice\n"
        "async def run():\n"
        "    async with EdgeDevice(json.loads(sys.argv[1]), Path(sys.argv[2]), modules_root=Path(sys.argv[3]),\n"
        "                          on_line=lambda name, line: print(line.decode(), flush=True)) as device:\n"
        "        device.start_modules()\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(run())\n"
    )
    command = [sys.executable, "-c", script, json.dumps(manifest(one={})), str(root.parent / "state"), str(root)]
    process = await asyncio.to_thread(
        lambda: subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    )
    try:
        line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), SECONDS)
        pid = json.loads(line)["pid"]
        assert Path(f"/proc/{pid}").exists()
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
        process.stdout.close()
    assert await is_gone(pid)


@pytest.mark.process
async def test_two_devices_run_side_by_side(root, tmp_path):
    async with running(root, manifest(one={})) as run:
        async with EdgeDevice(manifest(one={}), tmp_path / "other", modules_root=root) as other:
            assert other.address != run.device.address
            assert (
                other.environment("one")["IOTEDGE_WORKLOADURI"] != run.device.environment("one")["IOTEDGE_WORKLOADURI"]
            )
        assert (await run.next_start())["pid"]


# -- the manifest ------------------------------------------------------------------------------------------------


async def test_identities_need_no_images_but_starting_modules_does(tmp_path):
    async with EdgeDevice(manifest(one={}), tmp_path / "state", modules_root=tmp_path) as device:
        assert device.environment("one")["IOTEDGE_MODULEID"] == "one"
        with pytest.raises(InputError, match=r"module one: no modules/\*/module\.json .* names its image; leave"):
            device.start_modules()


@pytest.mark.parametrize(
    "module",
    [
        {"settings": {"createOptions": "{"}},
        {"settings": {"createOptions": {"HostConfig": {"Binds": ["volume"]}}}},
        {"settings": {"createOptions": {"HostConfig": {"Binds": [1]}}}},
        {"env": {"NAME": "value"}},
        {"env": {"NAME": {}}},
    ],
)
async def test_a_manifest_that_cannot_be_run_is_named(tmp_path, module):
    with pytest.raises(InputError, match=r"^manifest: module one: .*; see bordnetz check$"):
        EdgeDevice(manifest(one=module), tmp_path / "state", modules_root=tmp_path)


async def test_desired_properties_that_no_twin_can_hold_are_named_and_nothing_keeps_running(tmp_path):
    document = manifest(one={})
    document["modulesContent"]["one"] = {"properties.desired": {"a.b": 1}}
    device = EdgeDevice(document, tmp_path / "state", modules_root=tmp_path)
    with pytest.raises(InputError, match=r"manifest: one\.properties\.desired"):
        await device.__aenter__()
    assert not Path(device.environment("one")["IOTEDGE_WORKLOADURI"][7:]).exists()


async def test_an_address_that_is_taken_is_named(tmp_path):
    address = free_address()
    device = EdgeDevice(manifest(), tmp_path / "state", modules_root=tmp_path, address=address)
    with (
        socket.create_server((address, PORT)),
        pytest.raises(InputError, match=f"{address}:8883: cannot be listened on"),
    ):
        await device.__aenter__()


async def test_module_keys_and_certificates_stay_the_same_in_one_state_folder(tmp_path):
    address, seen = free_address(), []
    for _ in range(2):
        async with EdgeDevice(manifest(one={}), tmp_path / "state", modules_root=tmp_path, address=address) as device:
            seen.append((device.hub.identities.keys, (tmp_path / "state" / "certificates" / "ca.pem").read_bytes()))
    assert seen[0] == seen[1]
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "state").rglob("*") if path.suffix == ".key"}
    assert modes | {(tmp_path / "state" / "identity.json").stat().st_mode & 0o777} == {0o600}


def test_waiting_times_double_up_to_five_minutes():
    assert [backoff_seconds(restarts) for restarts in range(7)] == [10, 20, 40, 80, 160, 300, 300]


# -- binds and logs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/data", "{x}"),
        ("/data/", "{x}/"),
        ("/data/outbox", "{x}/outbox"),
        ("replay:/data/drive.log", "replay:{x}/drive.log"),
        ("/data/a,/data/b", "{x}/a,{x}/b"),
        ("unix:///data/bus.sock", "unix://{x}/bus.sock"),
        ("/data/deep/file", "{y}/file"),
        ("/database", "/database"),
        ("/data.old", "/data.old"),
        ("/mnt/data", "/mnt/data"),
        ("data", "data"),
        ("/tmp/x", "{z}/x"),
    ],
)
def test_paths_of_the_container_are_named_where_they_lie_here(tmp_path, value, expected):
    binds = Binds(tmp_path)
    mounts = ["/var/x:/data", "/var/y:/data/deep/:ro", "volume:/tmp"]
    places = {"x": tmp_path / "var/x", "y": tmp_path / "var/y", "z": tmp_path / "volume"}
    assert binds.rewrite({"NAME": value}, mounts) == {"NAME": expected.format_map(places)}
    assert all(place.is_dir() for place in places.values())


def test_a_bind_may_name_a_file_that_is_there(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hosts").write_text("")
    assert Binds(tmp_path).rewrite({"H": "/h"}, ["/etc/hosts:/h:ro"]) == {"H": str(tmp_path / "etc/hosts")}


@given(st.text("/.abc", max_size=20))
def test_no_bind_leads_out_of_the_state_folder(path):
    place = Binds(Path("/state/host")).host_path(path)
    assert Path(os.path.normpath(place)).is_relative_to("/state/host")


async def follow(log: ModuleLog, *pieces: bytes) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"".join(pieces))
    os.close(writing)
    await asyncio.wait_for(log.follow(reading), SECONDS)


async def test_a_log_is_rotated_while_its_module_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(modulelog, "LOG_BYTES", 1000)
    monkeypatch.setattr(modulelog, "LINE_BYTES", 100)
    await follow(ModuleLog(tmp_path / "logs" / "one.log"), b"x" * 99 + b"\n" + b"y" * 4000)
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) in (["one.log", "one.log.1"], ["one.log.1"])
    assert sum(path.stat().st_size for path in (tmp_path / "logs").iterdir()) <= 2 * 1100


async def test_a_listener_gets_whole_lines_and_endless_ones_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(modulelog, "LINE_BYTES", 8)
    lines: list[bytes] = []
    await follow(ModuleLog(tmp_path / "one.log", lines.append), b"one\ntwo\n", b"and a long one\nlast")
    assert b"".join(lines) == b"onetwoand a long onelast"
    assert lines[:2] == [b"one", b"two"]
    assert max(map(len, lines)) <= 16
    assert (tmp_path / "one.log").read_bytes() == b"one\ntwo\nand a long one\nlast"


async def test_a_log_that_cannot_be_written_does_not_stop_the_module(tmp_path):
    (tmp_path / "one.log").mkdir()
    lines: list[bytes] = []
    await follow(ModuleLog(tmp_path / "one.log", lines.append), b"a\nb\n")
    assert lines == [b"a", b"b"]
