"""L5: flash that does not keep what it was given. Files of a stopped outbox are damaged, and it has to go on.

    victim ──► files, and older ones of the same outbox ──► one damage ──► finish ──► validator

Damaged may be any byte of the database or its log: then nothing wrong is delivered, nothing is stuck, and what is
missing lies in the ledger's ranges (how many it was may be lost with the page that said so). Where the damage leaves an
older state that is whole in itself, nobody can see it, and records since then are missing unaccounted: of a file cut
short, deleted or replaced by an older one, only b, c, d and f are asked.
"""

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from tests.crash import controls
from tests.crash.history import Event, Memory, validate
from tests.crash.layer import Options, Result, workplace
from tests.crash.victim import Victim, finish

PAGE = 4096
DATABASE, LOG = "outbox.db", "outbox.db-wal"
CONTROLS = ("no-checksum",)
STEPS = 60

Files = dict[str, bytes]


class Stopped(NamedTuple):
    """An outbox that was stopped in the middle, the same one earlier, and what was promised of it."""

    now: Files
    before: Files
    history: list[Event]


def flip(stopped: Stopped, name: str, chance: random.Random) -> Files:
    content = bytearray(stopped.now[name])
    if end := len(content) if name == DATABASE else _flushed(content, 1):
        content[chance.randrange(end)] ^= 1 << chance.randrange(8)
    return {name: bytes(content)}


def zero(stopped: Stopped, name: str, chance: random.Random) -> Files:
    content = bytearray(stopped.now[name])
    at = _page(_whole(content, name), chance)
    if _whole(content, name):
        content[at : at + PAGE] = bytes(len(content[at : at + PAGE]))
    return {name: bytes(content)}


def swap(stopped: Stopped, name: str, chance: random.Random) -> Files:
    content = bytearray(stopped.now[name])
    one, other = _page(_whole(content, name), chance), _page(_whole(content, name), chance)
    first, second = content[one : one + PAGE], content[other : other + PAGE]
    if len(first) == len(second):
        content[one : one + PAGE], content[other : other + PAGE] = second, first
    return {name: bytes(content)}


def old_page(stopped: Stopped, name: str, chance: random.Random) -> Files:
    """A write that the flash has lost."""
    content, old = bytearray(stopped.now[name]), stopped.before[name]
    at = _page(old[: len(content)], chance)
    content[at : at + PAGE] = old[at : at + PAGE]
    return {name: bytes(content)}


def cut_short(stopped: Stopped, name: str, chance: random.Random) -> Files:
    return {name: stopped.now[name][: chance.randrange(len(stopped.now[name]))]}


def old_file(stopped: Stopped, name: str, chance: random.Random) -> Files:
    return {name: stopped.before[name]}


def old_files(stopped: Stopped, name: str, chance: random.Random) -> Files:
    return stopped.before


def deleted(stopped: Stopped, name: str, chance: random.Random) -> Files:
    return {name: b""}


Damage = Callable[[Stopped, str, random.Random], Files]
DAMAGES: list[tuple[Damage, str, str]] = [  # what, to which file, and which claims hold all the same
    (flip, DATABASE, "abcdf"),
    (flip, LOG, "abdf"),
    (zero, DATABASE, "abcdf"),
    (swap, DATABASE, "abcdf"),
    (zero, LOG, "abdf"),
    (swap, LOG, "abdf"),
    (old_page, DATABASE, "df"),
    (cut_short, DATABASE, "df"),
    (cut_short, LOG, "df"),
    (old_file, DATABASE, "df"),
    (old_file, LOG, "df"),
    (old_files, DATABASE, "df"),
    (deleted, DATABASE, "df"),
    (deleted, LOG, "df"),
]


def _whole(content: bytearray, name: str) -> bytearray:
    return content if name == DATABASE else content[: _flushed(content, 2)]


def _flushed(log: bytearray, commits: int) -> int:
    """The length of the log up to its last commit but so many: damage before that must be seen.

    A page of zeros may hide the commit in it, so that one more is needed than for a bit.
    """
    heads = range(32, len(log) - 24, 24 + PAGE)
    ends = [at + 24 + PAGE for at in heads if any(log[at + 4 : at + 8]) and log[at + 8 : at + 16] == log[16:24]]
    return ends[-1 - commits] if len(ends) > commits else 0


def _page(content: bytes | bytearray, chance: random.Random) -> int:
    return PAGE * chance.randrange(max(1, len(content) // PAGE))


def run(options: Options) -> Result:
    result = Result()
    seeds = range(options.seed * 1000, options.seed * 1000 + (250 if options.long else 14))
    with ProcessPoolExecutor(2) as pool:
        for tried, losses in pool.map(damage_all, seeds):
            for what, number in tried.items():
                result.count(what, number)
            result.losses += losses
        result.controls = {
            control: any(losses for _, losses in pool.map(damage_all, seeds, repeat(control))) for control in CONTROLS
        }
    return result


def damage_all(seed: int, control: str = "") -> tuple[Counter[str], list[str]]:
    """One outbox, damaged in every way, each twice."""
    losses: list[str] = []
    tried: Counter[str] = Counter()
    stopped = stop(seed)
    with controls.applied(control):
        for number, (damage, name, claims) in enumerate(DAMAGES * 2):
            chance = random.Random(seed * 100 + number)
            files = stopped.now | damage(stopped, name, chance)
            found, outcome = examine(files, stopped, claims)
            losses += [f"L5 seed {seed} {damage.__name__} {name} {number}: {line}" for line in found]
            tried.update(["damaged outboxes", *outcome])
    return tried, losses


def stop(seed: int) -> Stopped:
    history = Memory()
    with workplace() as folder:
        victim = Victim(folder, history, seed)
        victim.run(STEPS // 2)
        victim.append()  # so that there is something in the log
        if seed % 2:  # this one was damaged before
            (folder / "outbox.suspect").touch()
            victim.append()
        before = _files(folder)
        victim.run(STEPS // 2)
        victim.append()
        now = _files(folder)
        victim.close()
    return Stopped(now, before, history.events)


def _files(folder: Path) -> Files:
    return {name: (folder / name).read_bytes() for name in (DATABASE, LOG)}


def examine(files: Files, stopped: Stopped, claims: str) -> tuple[list[str], list[str]]:
    """What is wrong, and what else came of it."""
    history = Memory(stopped.history)
    history.fault("damage")
    with workplace() as folder:
        for name, content in files.items():
            if content:
                (folder / name).write_bytes(content)
        try:
            finish(folder, history)
        except Exception as error:
            return [f"f: {type(error).__name__}: {error}"], []
    outcome = []
    if began_anew(history.events, stopped.history):
        outcome, claims = ["begun anew"], "df"
    elif "b" in claims and reads_again(history.events, stopped.history):
        outcome, claims = ["read again"], claims.replace("b", "").replace("c", "")
    found = validate(history.events, claims=claims)
    return [line for line in found if not line.startswith("a: the ledger accounts")], outcome


def began_anew(events: list[Event], before: list[Event]) -> bool:
    """Not even the old outbox's name could be read: a new one, with a name of its own, and nothing in it."""
    names = {event.outbox for event in before if event.kind == "acknowledged"}
    return events[-2].outbox not in names and not any(event.reason == "salvage" for event in events)


def reads_again(events: list[Event], before: list[Event]) -> bool:
    """The page with the cursors was lost: the source is read again from its beginning, under new names."""
    known = {event.digest for event in before if event.kind == "acknowledged"}
    return any(event.kind == "attempted" and event.digest in known for event in events[len(before) :])
