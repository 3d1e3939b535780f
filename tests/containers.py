"""`python -m tests.containers FOLDER`: the images of both modules are built and run, as the deployment locks them down.

    wheels, base (mmdebstrap) ──► an engine of our own ──► docker build ──► EdgeDevice(in_containers) ──► table

The engine, its images and containers are in FOLDER, and it is ended by its process number. Exit 0, with the reason,
where something cannot be had. Sizes and times are printed.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.database import load_databases
from fleet.decode import decode
from simulator import deployment, vehicle
from simulator.demo import ROOT, VEHICLE_FOLDER, adapt, follow
from simulator.device import EdgeDevice
from simulator.template import object_of
from simulator.vehicle.drive import write_log

BASE, DEBIAN = "bordnetz-base:bookworm", "python3,ca-certificates,dash,coreutils,findutils,libc-bin"
START_SECONDS, PATIENCE_S = 60.0, 180.0
# In the container: what a lock of the deployment forbids.
LOCKED = """
import errno, os
try:
    open("/written", "w")
except OSError as error:
    assert error.errno == errno.EROFS, error
else:
    raise SystemExit("the root file system can be written")
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, status["CapEff"]
assert status["NoNewPrivs"].strip() == "1" and os.getuid() == 10001
"""


class Skipped(Exception):
    """Why it cannot be done here."""


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def engine(folder: Path) -> Iterator[None]:
    """dockerd with everything it keeps below folder. Raises Skipped: it does not run here."""
    absent = [tool for tool in ("dockerd", "docker", "mmdebstrap") if not shutil.which(tool)]
    if absent or os.geteuid() != 0:
        raise Skipped(f"it needs root, and {', '.join(absent) or 'dockerd'}: apt-get install docker.io mmdebstrap")
    folder.mkdir(parents=True, exist_ok=True)
    socket = folder / "docker.sock"
    os.environ |= {"DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "0"}
    places = [
        "--data-root",
        str(folder / "data"),
        "--exec-root",
        str(folder / "exec"),
        "--pidfile",
        str(folder / "pid"),
    ]
    with (folder / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen(["dockerd", *places, "-H", f"unix://{socket}"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
            if daemon.poll() is not None or time.monotonic() > deadline:
                last = (folder / "dockerd.log").read_text(errors="replace").strip().splitlines()[-1:]
                raise Skipped(f"dockerd does not run here: {' '.join(last)}")
            time.sleep(0.2)
        yield
    finally:
        daemon.terminate()
        try:
            daemon.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()


def build(folder: Path, images: dict[str, str]) -> None:
    began = time.monotonic()
    wheels = ROOT / "build" / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    # What setup.py has compiled here already is not compiled again.
    own = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", str(wheels)]
    subprocess.run(own, cwd=ROOT, check=True, capture_output=True, text=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--wheel-dir", str(wheels)]
    subprocess.run([*pip, *map(str, wheels.glob("bordnetz-*.whl"))], check=True, capture_output=True, text=True)
    print(f"containers: wheels for both images: {time.monotonic() - began:.1f} s")
    began = time.monotonic()
    base = folder / "base.tar"
    if not base.exists():
        draft = base.with_suffix(".draft.tar")
        make = ["mmdebstrap", "--quiet", "--variant=extract", f"--include={DEBIAN}", "bookworm", str(draft)]
        if subprocess.run(make, check=False).returncode:
            raise Skipped("Debian's packages are out of reach")
        draft.replace(base)
    docker("import", str(base), BASE)
    print(f"containers: base: {size(BASE)} MB, {time.monotonic() - began:.1f} s")
    for module, image in images.items():
        began = time.monotonic()
        file = ROOT / "modules" / module / "Dockerfile.amd64"
        docker("build", "--quiet", "--build-arg", f"BASE={BASE}", "--tag", image, "--file", str(file), str(ROOT))
        own = size(image) - size(BASE)
        print(f"containers: {module}: {own} MB on top of the base, {time.monotonic() - began:.1f} s")


def size(image: str) -> int:
    return round(int(docker("image", "inspect", "--format", "{{.Size}}", image)) / 1e6)


async def run(folder: Path, manifest: dict[str, object], drive: Path) -> None:
    meaning = load_databases(vehicle.databases())
    adapt(manifest, drive, meaning)
    state = folder / "device"
    shutil.rmtree(state, ignore_errors=True)
    async with EdgeDevice(manifest, state, modules_root=ROOT, restart_scale=0.01, in_containers=True) as device:
        place = device.host_path(VEHICLE_FOLDER)
        meaning.save(place / "vehicle.manifest")
        shutil.copyfile(drive, place / drive.name)
        began = time.monotonic()
        device.start_modules()
        async with asyncio.timeout(PATIENCE_S):
            while not all(device.hub.is_connected(name) for name in device.modules):
                await device.hub.changed(PATIENCE_S)
        print(f"containers: both modules connected {time.monotonic() - began:.1f} s after they were started")
        running = docker("ps", "--format", "{{.Names}}").splitlines()
        for name in running:
            docker("exec", name, "python3", "-c", LOCKED)
        networks = {
            name.rpartition("-")[2]: docker("inspect", "-f", "{{.HostConfig.NetworkMode}}", name) for name in running
        }
        assert networks == {"collector": "host", "uplink": "default"}, networks
        print(f"containers: {', '.join(sorted(networks))}: read-only, no capability, no new privileges, user 10001")
        assert await device.kill("collector") is not None
        async with asyncio.timeout(PATIENCE_S):
            collected = await follow(device, state, lambda line: None)
    audit = decode([device.hub.messages_dir], {meaning.hash: meaning}, folder / "table")
    frames = collected["source"]["frames"]
    assert audit.ok, f"something is missing: {folder}/table/_audit.json"
    assert audit.frames == frames > 0, (audit.frames, frames)
    assert not docker("ps", "--all", "--quiet"), "a container was left behind"
    messages = device.hub.counters["messages"]
    print(f"containers: {frames:,} frames in {messages} messages, a kill between; nothing is missing")


def main(folder: Path) -> int:
    try:
        with engine(folder):
            manifest = deployment.expand(ROOT / "deployment.template.json")
            content = deployment.modules_content(manifest, Path("manifest"))
            agent = object_of(object_of(content, "$edgeAgent"), "properties.desired")
            build(folder, {name: module["settings"]["image"] for name, module in object_of(agent, "modules").items()})
            drive = folder / "drive.log"
            write_log(drive, 30, 11)
            shutil.rmtree(folder / "table", ignore_errors=True)
            asyncio.run(run(folder, manifest, drive))
    except Skipped as why:
        print(f"containers: skipped: {why}")
    except subprocess.CalledProcessError as error:
        print(f"containers: {json.dumps(error.cmd)}: {error.stderr}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
