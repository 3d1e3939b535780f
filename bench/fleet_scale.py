"""`make fleet-scale`: what a day of 10 to 1,000 vehicles costs, as a picture: CPU time of all processes, memory of one.

Each size runs in a process of its own, the small ones several times between the others, as a machine that is shared is
not always as fast. Data (some gigabytes for 1,000 vehicles) goes to a temporary folder, or to --folder, and is deleted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.__main__ import machine, show
from fleet.generate import Pace, write

HOURS = 24
PACE = Pace(period_us=10_000_000, block_us=900_000_000)  # three signals every ten seconds, a block every 15 minutes
JOBS = 4
SIZES = (10, 30, 100, 300, 1000)
MOST_REPEATED = 30  # vehicles
PICTURE = Path(__file__).with_suffix(".png")
DECODE = """
import json, os, re, resource, sys, time
from pathlib import Path
from fleet.decode import decode
if __name__ == "__main__":
    start = sum(os.times()[:4])
    audit = decode([sys.argv[1] + "/messages"], sys.argv[1] + "/manifests", sys.argv[2], jobs=int(sys.argv[3]))
    cpu_s = sum(os.times()[:4]) - start  # its workers have ended
    own_kb = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    peak_kb = max(own_kb, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    print(json.dumps({"cpu_s": cpu_s, "peak_mb": peak_kb / 1024, "samples": audit.samples, "ok": audit.ok}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fleet_scale", description=__doc__)
    parser.add_argument("--folder", type=Path, default=None, help="where data may lie for the time")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--draw", type=Path, help="only draw what earlier runs have printed into this file")
    given = parser.parse_args()
    if given.draw:
        lines = [json.loads(line) for line in given.draw.read_text().splitlines()]
        draw([line for line in lines if "vehicles" in line], PICTURE)
        return
    show({"figure": "machine", **machine()})
    figures = []
    for vehicles in _order(given.sizes):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            figures.append(measure(vehicles, Path(folder)))
        show(figures[-1])
    draw(figures, PICTURE)


def _order(sizes: list[int]) -> list[int]:
    """All sizes, and behind each the small ones once more."""
    small = [size for size in sizes if size <= MOST_REPEATED]
    return [each for size in sizes for each in ([size] if size in small else [size, *small])]


def measure(vehicles: int, folder: Path) -> dict[str, Any]:
    """Decode a fleet, then the same messages once more."""
    truth = write(folder / "made", vehicles, HOURS, seed=1, pace=PACE)
    first = _decode(folder, truth.samples)
    again = _decode(folder, truth.samples)
    return {
        "figure": "fleet to a table",
        "vehicles": vehicles,
        "hours": HOURS,
        "messages": truth.messages,
        "samples": truth.samples,
        **first,
        "ms a message": 1e3 * first["cpu_s"] / truth.messages,
        "again, ms a message": 1e3 * again["cpu_s"] / truth.messages,
        "table, MB": sum(path.stat().st_size for path in (folder / "table").rglob("*.parquet")) / 1e6,
    }


def _decode(folder: Path, samples: int) -> dict[str, float]:
    command = [sys.executable, "-c", DECODE, str(folder / "made"), str(folder / "table"), str(JOBS)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (found.pop("ok"), found.pop("samples")) == (True, samples)
    return dict(found)


def draw(figures: list[dict[str, Any]], path: Path) -> None:
    """Of each size the run that cost least."""
    from matplotlib.figure import Figure

    by_cost = sorted(figures, key=lambda figure: figure["cpu_s"], reverse=True)
    least = {figure["vehicles"]: figure for figure in by_cost}
    figures = [least[vehicles] for vehicles in sorted(least)]
    picture = Figure(figsize=(9, 4), layout="constrained")
    cost, memory = picture.subplots(1, 2)
    messages = [figure["messages"] for figure in figures]
    each = min(figure["cpu_s"] / figure["messages"] for figure in figures)
    cost.loglog(messages, [figure["cpu_s"] for figure in figures], "o-", label="measured")
    cost.loglog(messages, [each * count for count in messages], "--", color="gray", label="in proportion")
    cost.set(xlabel="messages", ylabel="CPU seconds", title="messages to a table")
    cost.legend()
    memory.semilogx(messages, [figure["peak_mb"] for figure in figures], "o-")
    memory.set(xlabel="messages", ylabel="MB", title="peak resident memory of a process", ylim=(0, None))
    for panel in (cost, memory):
        panel.grid(alpha=0.3)
        for figure in figures:
            height = figure["cpu_s" if panel is cost else "peak_mb"]
            panel.annotate(f"{figure['vehicles']}", (figure["messages"], height), (4, -12), textcoords="offset points")
    picture.suptitle(f"{HOURS} h of as many vehicles as the numbers say")
    picture.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
