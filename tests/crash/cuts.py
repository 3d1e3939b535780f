"""L4: real power cuts. The modules of the deployment run on ext4 in a guest, which is killed.

    guest: recording ──► collector ──► outbox on ext4 ──► uplink ──► hub ─┐
                            └──────────── history ◄───────────────────────┘  written through to this machine's files
    here:  SIGKILL to the guest, again and again on the same disk; a last life drains everything ──► validator

What the guest had in memory is gone, as is what its kernel had not yet written. Its disk writes at once what it is told
to write, so what a disk itself may forget or tear is left to L3.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from edge.database import load_databases
from edge.outbox import Outbox
from simulator import deployment, vehicle
from simulator.demo import ROOT, VEHICLE_FOLDER, adapt, follow
from simulator.device import EdgeDevice
from simulator.vehicle.drive import write_log
from tests.crash.blocks import call
from tests.crash.history import History, parse, settle, validate
from tests.crash.layer import Options, Result, missing
from tests.uml import guest

CONTROL = "synchronous-normal"
DISK_BYTES = 64 << 20
PATIENCE_S = 240.0  # for one life
SCRIPT = 'mkdir -p "{vehicle}" && mount -t ext4 /dev/ubda "{vehicle}" && exec "{python}" -m tests.crash.cuts "{out}"'


def run(options: Options) -> Result:
    if lacking := missing(**{"linux.uml": "user-mode-linux", "mkfs.ext4": "e2fsprogs"}):
        return Result(skipped=lacking)
    if why := guest.missing():
        return Result(skipped=why)
    result = Result()
    cuts = 15 if options.long else 2
    with ThreadPoolExecutor() as pool:
        control = pool.submit(live, options.seed, 1, CONTROL)
        result.losses = [f"L4 seed {options.seed}: {line}" for line in live(options.seed, cuts)]
        result.count("power cuts", cuts)
        result.controls[CONTROL] = bool(control.result())
    return result


def live(seed: int, cuts: int, control: str = "") -> list[str]:
    """One disk through its power cuts, and what the validator says of it at the end."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        out, disk, history = Path(place) / "out", Path(place) / "disk.img", Path(place) / "out" / "history"
        out.mkdir()
        disk.touch()
        os.truncate(disk, DISK_BYTES)
        call("mkfs.ext4", "-q", "-F", str(disk))
        write_log(out / "drive.log", 10.0 + 6.0 * cuts, seed)
        (out / "control").write_text(control)
        history.touch()
        for _ in range(cuts):
            _cut(out, disk, history, chance)
        (out / "last").touch()
        with _guest(out, disk) as last:
            last.wait(PATIENCE_S)
        if not (out / "status").exists() or (out / "status").read_text().strip() != "0":
            console = (out / "console.log").read_text(errors="replace")
            return [f"f: the modules do not come to their end: {' | '.join(console.splitlines()[-8:])}"]
        History(history).drained()  # by the clock of this machine, as the faults are
        return validate(parse(history.read_bytes()), drain_within_s=PATIENCE_S)


def _cut(out: Path, disk: Path, history: Path, chance: random.Random) -> None:
    """Let the modules store and send something, and a little more; then cut."""
    begun, deadline = len(history.read_bytes()), time.monotonic() + PATIENCE_S
    with _guest(out, disk) as machine:
        while history.read_bytes()[begun:].count(b'["acknowledged"') < 5:
            if machine.poll() is not None or time.monotonic() > deadline:
                console = (out / "console.log").read_text(errors="replace")
                raise RuntimeError(f"L4: the guest stores nothing:\n{console}")
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 1.5))
        guest.end(machine)
        History(history).fault("power cut")


def _guest(out: Path, disk: Path) -> "AbstractContextManager[subprocess.Popen[bytes]]":
    place = out / "device" / "host" / VEHICLE_FOLDER.lstrip("/")
    command = SCRIPT.format(vehicle=place, python=sys.executable, out=out)
    return guest.started(["/bin/sh", "-c", command], out, modules=[], disks=[disk])


# In the guest


async def _live(out: Path) -> None:
    meaning = load_databases(vehicle.databases())
    last = (out / "last").exists()
    manifest = adapt(deployment.expand(ROOT / "deployment.template.json"), out / "drive.log", meaning)
    content = manifest["modulesContent"]
    modules = content["$edgeAgent"]["properties.desired"]["modules"]
    if not last:
        modules["collector"]["env"]["BORDNETZ_SOURCE"]["value"] += "?speed=1"
    content["collector"]["properties.desired"].update(durable_s=0.2)
    content["uplink"]["properties.desired"].update(latency_s=0.2, retry_min_s=0.1, message_units=2)
    os.environ["PYTHONPATH"] = f"{ROOT / 'tests' / 'crash' / 'watch'}:{ROOT}"
    os.environ["CRASH_HISTORY"] = str(out / "history")
    os.environ["CRASH_CONTROL"] = (out / "control").read_text()
    history = History(out / "history")
    async with EdgeDevice(manifest, out / "device", modules_root=ROOT, restart_scale=0.01) as device:
        folder = device.host_path(VEHICLE_FOLDER)
        meaning.save(folder / "vehicle.manifest")
        if not (folder / "drive.log").exists():
            (folder / "drive.log").symlink_to(out / "drive.log")
        device.hub.on_message = lambda identity, bag, body: history.message(body)
        device.start_modules()
        await follow(device, out, print)
        for name in device.modules:
            await device.kill(name, signal.SIGTERM)
    with Outbox(folder / "outbox") as outbox:
        settle(outbox, history)


if __name__ == "__main__":
    asyncio.run(_live(Path(sys.argv[1])))
