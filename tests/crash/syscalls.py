"""L2: a fault at every write-side system call of the victim, put there by strace.

    victim, stopped at its start ──► strace attached: at the N-th call of one kind, SIGKILL, EIO or ENOSPC
                                     (once, or from then on) ──► the file system as it is ──► finish ──► validator

What the kernel has in memory survives a kill: that what was acknowledged was flushed too, only L1 and L3 can tell. An
error must come out of the outbox as one of its own.
"""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from edge.errors import EdgeError
from tests.crash import controls, trace
from tests.crash.history import History, Memory, read, validate
from tests.crash.layer import Options, Result, missing, workplace
from tests.crash.victim import Victim, finish

CALLS = ("pwrite64", "write", "fdatasync", "fsync", "ftruncate", "fallocate", "unlink", "rename", "mkdir", "writev")
FAULTS = ("signal=KILL", "error=EIO", "error=ENOSPC")
CONTROLS = {"early-acknowledgement": "pwrite64", "early-delete": "writev"}  # and the calls at which a kill shows it
OFTEN = ("pwrite64", "fdatasync", "writev")
ENDED, REFUSED, UNEXPECTED = 0, 1, 2


class Point(NamedTuple):
    call: str
    number: int
    fault: str
    lasting: bool

    def __str__(self) -> str:
        return f"inject={self.call}:{self.fault}:when={self.number}{'+' if self.lasting else ''}"


def run(options: Options) -> Result:
    if lacking := missing(strace="strace"):
        return Result(skipped=lacking)
    result = Result()
    seeds = [options.seed + n for n in range(4 if options.long else 1)]
    steps = 60 if options.long else 25
    with ProcessPoolExecutor(2) as pool:
        for seed in seeds:
            points = every = _points(seed, steps)
            if not options.long:  # all of the rare calls, some of the others
                points = [p for p in every if p.call not in OFTEN]
                points += random.Random(seed).sample([p for p in every if p.call in OFTEN], 150)
            for losses in pool.map(cut, repeat(seed), repeat(steps), points, chunksize=4):
                result.losses += losses
            result.count("points", len(points))
        for control, call in CONTROLS.items():
            kills = [p for p in every if p.call == call and p.fault == FAULTS[0]]
            some = random.Random(options.seed).sample(kills, min(80, len(kills)))
            result.controls[control] = any(pool.map(cut, repeat(seeds[-1]), repeat(steps), some, repeat(control)))
    return result


def _points(seed: int, steps: int) -> list[Point]:
    """Every call that the script makes in the outbox's folder, with each fault."""
    with workplace() as folder:
        (folder / "history").touch()
        arguments = [str(folder / "disk" / "outbox"), str(folder / "history"), "--seed", str(seed)]
        trace.record(["tests.crash.victim", *arguments, "--steps", str(steps)], folder / "trace")
        counts = Counter(call.name for call in trace.calls(folder / "trace") if call.name in CALLS)
    return [
        Point(call, number, fault, lasting)
        for call in CALLS
        for number in range(1, counts[call] + 1)
        for fault in (FAULTS if call != "writev" else FAULTS[:1])  # writev is the history's
        for lasting in ((False, True) if fault != FAULTS[0] else (False,))
    ]


def cut(seed: int, steps: int, point: Point, control: str = "") -> list[str]:
    """Run the victim with one fault, and see what is left of it. [] where nothing is lost."""
    with workplace() as folder:
        ended = _run(folder, seed, steps, point, control)
        history = Memory(read(folder / "history"))
        history.fault(str(point))
        try:
            finish(folder / "disk" / "outbox", history)
            losses = validate(history.events)
        except EdgeError as error:
            losses = [f"f: {error}"]
    if ended == UNEXPECTED:
        losses.append("an error came out of the outbox that is none of its own")
    return [f"L2 seed {seed} steps {steps} {point}: {line}" for line in losses]


def _run(folder: Path, seed: int, steps: int, point: Point, control: str) -> int:
    """How the victim ended; < 0: by a signal."""
    victim = os.fork()
    if victim == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(_victim(folder, seed, steps, control))
    os.waitpid(victim, os.WUNTRACED)
    with _injected(victim, point):
        os.kill(victim, signal.SIGCONT)
        _, status = os.waitpid(victim, 0)
    return os.waitstatus_to_exitcode(status)


def _victim(folder: Path, seed: int, steps: int, control: str) -> int:
    try:
        controls.apply(control)
        victim = Victim(folder / "disk" / "outbox", History(folder / "history"), seed, control)
        victim.run(steps)
        victim.close()
    except EdgeError:
        return REFUSED
    except BaseException:
        import traceback

        traceback.print_exc()
        return UNEXPECTED
    return ENDED


@contextmanager
def _injected(process: int, point: Point) -> Iterator[None]:
    command = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={point.call}", "-e", str(point), "-p", str(process)]
    tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while "TracerPid:\t0\n" in Path(f"/proc/{process}/status").read_text():
        if tracer.poll() is not None or time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            raise trace.Failed("strace did not attach")
        time.sleep(0.001)
    try:
        yield
    finally:
        tracer.wait(60)
