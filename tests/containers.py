"""`python -m tests.containers FOLDER [arm64v8]`: both modules' images, built and run as the deployment locks them down.

    wheels, base (mmdebstrap) ──► an engine of our own ──► docker build ──► EdgeDevice(in_containers) ──► table

The engine, its images and containers are in FOLDER, and it is ended by its process number. Images of arm64v8 are built
and run on an emulated processor (qemu-user), which the kernel is told of as long as it takes. Exit 0, with the reason,
where something cannot be had. Sizes and times are printed.
"""

import asyncio
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from edge.database import load_databases
from fleet.decode import decode
from simulator import deployment, vehicle
from simulator.demo import ROOT, VEHICLE_FOLDER, adapt, follow
from simulator.device import EdgeDevice
from simulator.template import object_of
from simulator.vehicle.drive import write_log

DEBIAN = "python3,ca-certificates,dash,coreutils,findutils,libc-bin"
START_SECONDS, PATIENCE_S = 60.0, 180.0
MANYLINUX = ("manylinux_2_28", "manylinux2014")
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


class Processor(NamedTuple):
    """As our Dockerfiles call it; as Debian and Docker do."""

    name: str
    debian: str

    @property
    def base(self) -> str:
        return f"bordnetz-base:bookworm-{self.name}"


AMD64, ARM64 = Processor("amd64", "amd64"), Processor("arm64v8", "arm64")
# binfmt_misc: the head of a program for arm64, and which of its bits count. F: the interpreter is opened now, and so is
# there in containers too.
RULE = r":{name}:M::\x7fELF\x02\x01\x01\x00{zeros}\x02\x00\xb7\x00:{ones}\x00{more}\xfe\xff\xff\xff:{qemu}:F"


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
        # It leaves this mount behind, and then the folder cannot be deleted.
        subprocess.run(["umount", folder / "exec/netns/default"], capture_output=True, check=False)


@contextmanager
def emulated() -> Iterator[None]:
    """Programs for arm64 run here, in containers too. Raises Skipped: the kernel does not take it."""
    qemu, name = shutil.which("qemu-aarch64-static"), f"bordnetz-{os.getpid()}"
    if qemu is None:
        raise Skipped("there is no qemu-aarch64-static: apt-get install qemu-user-static")
    rule = RULE.format(name=name, zeros=r"\x00" * 8, ones=r"\xff" * 7, more=r"\xff" * 8, qemu=qemu)
    with TemporaryDirectory() as place:
        mount = ["mount", "-t", "binfmt_misc", "binfmt_misc", place]
        if subprocess.run(mount, check=False).returncode:
            raise Skipped("binfmt_misc cannot be mounted, so the kernel cannot be told how programs for arm64 run")
        try:
            try:
                Path(place, "register").write_text(rule)
            except OSError as error:
                raise Skipped(f"the kernel does not take how programs for arm64 run ({error.strerror})") from error
            try:
                yield
            finally:
                Path(place, name).write_text("-1")
        finally:
            subprocess.run(["umount", place], check=False)


def make_wheels(processor: Processor) -> None:
    wheels = ROOT / "build" / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    # What setup.py has compiled already is not compiled again.
    own = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", str(wheels)]
    if processor is ARM64:
        own = ["tests/arm64/wheel", "build/arm64", sys.executable, str(wheels)]
    done = subprocess.run(own, cwd=ROOT, check=True, capture_output=True, text=True)
    if not any(wheels.glob("bordnetz-*.whl")):
        raise Skipped(done.stdout.strip())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    subprocess.run([*pip, "wheel", "--wheel-dir", wheels, *needed], check=True, capture_output=True, text=True)
    if processor is AMD64:
        return
    there = ["--only-binary=:all:", "--python-version=3.11", *(f"--platform={tag}_aarch64" for tag in MANYLINUX)]
    for wheel in wheels.glob("*x86_64.whl"):
        package, version = wheel.name.split("-")[:2]
        fetch = [*pip, "download", "--no-deps", "--dest", wheels, *there, f"{package}=={version}"]
        subprocess.run(fetch, check=True, capture_output=True, text=True)
        wheel.unlink()


def build(folder: Path, processor: Processor, images: dict[str, str]) -> None:
    began = time.monotonic()
    make_wheels(processor)
    print(f"containers: wheels for both images: {time.monotonic() - began:.1f} s", flush=True)
    began = time.monotonic()
    base = folder / f"base-{processor.name}.tar"
    if not base.exists():
        draft = base.with_suffix(".draft.tar")
        make = ["mmdebstrap", "--quiet", f"--architectures={processor.debian}", "--variant=extract"]
        if subprocess.run([*make, f"--include={DEBIAN}", "bookworm", str(draft)], check=False).returncode:
            raise Skipped("Debian's packages are out of reach")
        draft.replace(base)
    load(base, processor)
    print(f"containers: base: {size(processor.base)} MB, {time.monotonic() - began:.1f} s", flush=True)
    for module, image in images.items():
        began = time.monotonic()
        file = str(ROOT / "modules" / module / f"Dockerfile.{processor.name}")
        docker("build", "--quiet", f"--build-arg=BASE={processor.base}", "--tag", image, "--file", file, str(ROOT))
        assert docker("image", "inspect", "--format", "{{.Architecture}}", image) == processor.debian
        own = size(image) - size(processor.base)
        print(f"containers: {module}: {own} MB on top of the base, {time.monotonic() - began:.1f} s", flush=True)


def load(root: Path, processor: Processor) -> None:
    """An image of one layer, which says what processor it is for: `docker import` says that of the engine."""
    digest = hashlib.sha256(root.read_bytes()).hexdigest()
    layers = {"type": "layers", "diff_ids": [f"sha256:{digest}"]}
    config = {"architecture": processor.debian, "os": "linux", "config": {}, "rootfs": layers}
    manifest = [{"Config": "config.json", "RepoTags": [processor.base], "Layers": ["layer.tar"]}]
    with TemporaryDirectory(dir=root.parent) as folder:
        archive = Path(folder, "image.tar")
        with tarfile.open(archive, "w") as image:
            image.add(root, "layer.tar")
            for name, document in (("config.json", config), ("manifest.json", manifest)):
                data = json.dumps(document).encode()
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                image.addfile(entry, io.BytesIO(data))
        docker("load", "--quiet", "--input", str(archive))


def size(image: str) -> int:
    return round(int(docker("image", "inspect", "--format", "{{.Size}}", image)) / 1e6)


async def run(folder: Path, manifest: dict[str, Any], drive: Path) -> None:
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


def main(folder: Path, processor: Processor) -> int:
    try:
        with emulated() if processor is ARM64 else nullcontext(), engine(folder):
            manifest = deployment.expand(ROOT / "deployment.template.json")
            content = deployment.modules_content(manifest, Path("manifest"))
            modules = object_of(object_of(object_of(content, "$edgeAgent"), "properties.desired"), "modules")
            for module in modules.values():  # the template names those of amd64
                module["settings"]["image"] = module["settings"]["image"].replace("-amd64", f"-{processor.name}")
            build(folder, processor, {name: module["settings"]["image"] for name, module in modules.items()})
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
    sys.exit(main(Path(sys.argv[1]).absolute(), ARM64 if sys.argv[2:] == [ARM64.name] else AMD64))
