"""The modules as they run in a vehicle, beside its packages alone: peak memory, and how soon they do their work."""

import asyncio
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.workload import ROOT, Workload
from simulator import deployment
from simulator.demo import VEHICLE_FOLDER, adapt, follow, status
from simulator.device import EdgeDevice

ASKED_MB = {"collector": 48, "uplink": 64}
FOREIGN = ("cantools", "numpy", "pyarrow", "click", "can")


def figures(load: Workload, folder: Path) -> Iterator[dict[str, Any]]:
    python = vehicle_python(ROOT / "build" / "vehicle")
    measured = asyncio.run(_measure(load, folder, python))
    for module, asked in ASKED_MB.items():
        yield {"figure": f"{module}: peak resident memory", "mb": measured[module]["peak_mb"], "asked_at_most": asked}
    again = asyncio.run(_measure(load, folder, python, fresh=False))
    for name, run in (("first start, settings from the twin", measured), ("restart, settings kept", again)):
        yield {
            "figure": f"collector: process start to first frames stored, {name}",
            "seconds": run["collector"]["first_stored_s"],
            "asked_at_most": 1,
        }
        yield {
            "figure": f"uplink: process start to first message acknowledged, {name}",
            "seconds": run["uplink"]["first_sent_s"],
        }
    loaded = subprocess.run(
        [sys.executable, "-c", "import modules.collector.main, sys; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    yield {"figure": "collector imports", "of": FOREIGN, "found": sorted(set(FOREIGN) & set(loaded)), "asked": []}


def vehicle_python(folder: Path) -> str:
    """Of an environment like the image's: some of what the bench has is loaded by libraries wherever they find it."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *packages], check=True)
        (folder / ".ready").touch()
    return str(python)


async def _measure(load: Workload, folder: Path, python: str, fresh: bool = True) -> dict[str, dict[str, Any]]:
    state = folder / "device"
    manifest = adapt(deployment.expand(ROOT / "deployment.template.json"), load.log, load.manifest)
    async with EdgeDevice(manifest, state, modules_root=ROOT, python=python) as device:
        place = device.host_path(VEHICLE_FOLDER)
        # Another name is another recording: a restart begins it from its start.
        name = "bench.log" if fresh else "again.log"
        shutil.copyfile(load.log, place / name)
        shutil.copyfile(load.manifest_path, place / "vehicle.manifest")
        device.modules["collector"].environment["BORDNETZ_SOURCE"] = f"replay:{place / name}"
        device.start_modules()
        await follow(device, state, lambda line: None)
        found = {}
        for module in ASKED_MB:
            said = await status(device.hub, module)
            text = Path(f"/proc/{device.modules[module].pid}/status").read_text()
            peak = re.search(r"VmHWM:\s+(\d+) kB", text)
            found[module] = {**(said or {}), "peak_mb": int(peak[1]) / 1024 if peak else None}
        return found
