"""A candump file to all signal values, as whole processes: start, read, decode, end."""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.workload import ROOT, Workload

OURS = """
import sys
from cy_core.columns import Columns
from cy_core.frames import Frames
from edge import manifest
from edge.decoder import Decoder
from edge.logs import open_log
decoder = Decoder(manifest.load(sys.argv[2]))
log, frames, columns, samples = open_log(sys.argv[1], decoder.manifest.buses), Frames(), Columns(decoder.plan), 0
more = True
while more:
    more = log.read(frames, 16384)
    samples += decoder.decode_batch(frames, columns).samples()
    frames.clear()
print(samples, open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""
PEER = """
import sys
import can, cantools
databases = {}
for argument in sys.argv[2:]:
    bus, path = argument.split("=")
    database = databases.setdefault(bus, cantools.database.Database(strict=False))
    database.add_dbc_file(path)
known = {bus: {message.frame_id for message in database.messages} for bus, database in databases.items()}
samples = 0
for message in can.LogReader(sys.argv[1]):
    if message.arbitration_id in known.get(message.channel, ()):
        samples += len(databases[message.channel].decode_message(message.arbitration_id, message.data))
print(samples, open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""
ROUNDS = 11


def figures(load: Workload, folder: Path) -> Iterator[dict[str, Any]]:
    files = [f"{bus}={path}" for bus, paths in load.databases.items() for path in paths]
    runs = [
        (_run(OURS, [str(load.log), str(load.manifest_path)]), _run(PEER, [str(load.log), *files]))
        for _ in range(ROUNDS)
    ][1:]
    own, peer = zip(*runs, strict=True)
    yield {
        "figure": "candump file to columns, whole process",
        "cpu_s": statistics.median(run[0] for run in own),
        "peak_mb": max(run[1] for run in own),
        "samples": own[0][2],
        "against": "python-can and cantools",
        "against_cpu_s": statistics.median(run[0] for run in peer),
        "against_peak_mb": max(run[1] for run in peer),
        "against_samples": peer[0][2],
        "times_faster": statistics.median(b[0] / a[0] for a, b in runs),
        "asked": 15,
    }


def _run(script: str, arguments: list[str]) -> tuple[float, float, int]:
    """CPU seconds, peak memory in MiB and samples of a fresh interpreter.

    Not ru_maxrss: that begins with what the parent had when it forked.
    """
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        samples, peak_kb = map(int, process.stdout.read().split())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime, peak_kb / 1024, samples
