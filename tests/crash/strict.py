"""L1: the real outbox on a strict disk. Every point of a recorded run is a power cut, in many ways.

    victim under strace ──► calls ──► Disk ──► crash states, a set of files each ──► the real Outbox opens them,
       ▲                                            │                                delivers all, and goes on
       └──────────── one of them is the next run's disk, five times ◄──────┘              └──► validator

Or the next run follows a kill: then the disk is whole, and still not flushed. A state counts once: the same files at
the same point of the history are one state. Some lives begin again with a salvage.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from edge.errors import EdgeError
from tests.crash import trace
from tests.crash.disk import WAYS, Disk
from tests.crash.history import Event, Memory, parse, validate
from tests.crash.layer import Options, Result, missing, workplace
from tests.crash.victim import SETTINGS, finish

CONTROLS = ("synchronous-normal", "early-acknowledgement", "early-delete", "no-directory-sync")
GENERATIONS = 5
STEPS = 45
WORKERS = 2


@dataclass
class State:
    """What a cut left: files by path, what the history said by then, how to come back here, and what was cut."""

    files: dict[str, bytes]
    history: list[Event]
    name: str
    disk: Disk


def run(options: Options) -> Result:
    if lacking := missing(strace="strace"):
        return Result(skipped=lacking)
    result = Result()
    lives, states = (44, 500) if options.long else (4, 120)
    seeds = [options.seed * 1000 + life for life in range(lives)]
    with ProcessPoolExecutor(WORKERS) as pool:
        tries = {control: pool.submit(live, options.seed, states, control) for control in CONTROLS}
        for tried, losses in pool.map(live, seeds, [states] * lives):
            result.count("crash states", tried)
            result.count("recorded runs", GENERATIONS)
            result.losses += losses
        result.controls = {control: bool(future.result()[1]) for control, future in tries.items()}
    return result


def live(seed: int, states: int, control: str = "", generations: int = GENERATIONS) -> tuple[int, list[str]]:
    """One outbox through its generations, about `states` crash states of each. A control's ends once it is caught."""
    chance = random.Random(seed)
    base, tried, losses = State({}, [], f"L1 life {seed}", Disk("", "", {})), 0, list[str]()
    for generation in range(generations):
        for number, state in enumerate(_states(base, seed * 10 + generation, states, control, chance), 1):
            losses += [f"{state.name}: {line}" for line in examine(state)]
            tried += 1
            if losses and (control or len(losses) > 20):
                return tried, losses
            if chance.random() < 1 / number:  # in the end, each is as likely
                next_base = replace(state, disk=deepcopy(state.disk))
        base = next_base
        if chance.random() < 0.3:  # killed, not cut
            base = replace(base, files=base.disk.cut(chance, "all"))
        else:
            if generation == 2 and seed % 2:  # both modules let go of a file that someone found corrupted
                base.files["outbox/outbox.suspect"] = b""
            base = replace(base, disk=Disk("", "", base.files))
    return tried, losses


def _states(base: State, seed: int, wanted: int, control: str, chance: random.Random) -> Iterator[State]:
    """Run the victim on what base left, and cut it everywhere."""
    with workplace() as folder:
        _write(base.files, folder / "disk")
        history, recorded = folder / "history", folder / "trace"
        arguments = ["tests.crash.victim", str(folder / "disk" / "outbox"), str(history)]
        more = ["--seed", str(seed), "--steps", str(STEPS), "--control", control]
        trace.record([*arguments, *more], recorded)
        calls = list(trace.calls(recorded))
    place = str(folder / "disk"), str(history)
    rehearsal, disk = base.disk.killed(*place), base.disk.killed(*place)
    changes = sum(rehearsal.apply(call) for call in calls)
    often, seen, told = wanted / changes, set[bytes](), base.history
    for point, call in enumerate(calls):
        if not disk.apply(call):
            continue
        if call.name == "writev":
            told = [*base.history, *parse(bytes(disk.history))]
        for draw in range(int(often + chance.random())):
            way = WAYS[draw] if draw < len(WAYS) and often > len(WAYS) else chance.choice(WAYS)
            files = disk.cut(chance, way)
            if (mark := _mark(files, len(told))) not in seen:
                seen.add(mark)
                yield State(files, told, f"{base.name.split(':')[0]}: run {seed}, call {point}, {way}", disk)


def _mark(files: dict[str, bytes], told: int) -> bytes:
    mark = blake2b(b"%d" % told, digest_size=16)
    for path, content in sorted(files.items()):
        mark.update(b"%b %d " % (path.encode(), len(content)))
        mark.update(content)
    return mark.digest()


def examine(state: State) -> list[str]:
    """Open what is left with the real outbox, deliver everything, go on, and ask the validator."""
    history = Memory(state.history)
    history.fault("power cut")
    with workplace() as folder:
        _write(state.files, folder)
        try:
            finish(folder / "outbox", history)
        except EdgeError as error:
            return [f"f: {error}"]
    return [*validate(history.events), *_settings(state)]


def _settings(state: State) -> Iterator[str]:
    """The file is one that was being saved, as a whole, and not older than the last one that was."""
    numbers = defaultdict(int, {event.kind: event.sequence for event in state.history})
    content = state.files.get(f"outbox/{SETTINGS}", b"0 .")
    number = int(content.split(b" ")[0] or b"-1")
    if not numbers["saved"] <= number <= numbers["saving"] or not content.endswith(b"."):
        yield f"a: settings {number} are there, {numbers['saved']} were saved"


def _write(files: dict[str, bytes], folder: Path) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
