"""`make bench`: every figure with what it was compared to, in the same run, as JSON lines.

Times are CPU time; where two are compared, they are taken in turn, and the ratio is the median of the pairs. Runs on
the RAV4 recording where BORDNETZ_DATA has it, on the simulated vehicle's drive elsewhere.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import campaigns, compression, decoding, fleet, kinds, modules, outbox, process, simulator, workload

GROUPS: dict[str, Callable[[workload.Workload, Path], Iterator[dict[str, Any]]]] = {
    "decode": decoding.figures,
    "kinds": kinds.figures,
    "campaigns": campaigns.figures,
    "compression": compression.figures,
    "process": process.figures,
    "modules": modules.figures,
    "outbox": outbox.figures,
    "simulator": simulator.figures,
    "fleet": fleet.figures,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("group", nargs="*", choices=[*GROUPS, []], help="which figures; all without one")
    groups = parser.parse_args().group or list(GROUPS)
    with tempfile.TemporaryDirectory() as folder:
        load = workload.load(Path(folder))
        show({"figure": "machine", **machine(), "recording": load.name, "frames": len(load.frames)})
        for group in groups:
            for figure in GROUPS[group](load, Path(folder)):
                show(figure)


def show(figure: dict[str, Any]) -> None:
    print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in figure.items()}))
    sys.stdout.flush()


def machine() -> dict[str, Any]:
    cpus = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout
    return {
        "cpu": cpus[0] if cpus else platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "commit": commit.strip(),
    }


if __name__ == "__main__":
    main()
