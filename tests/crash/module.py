"""A real module, watched: `python -m tests.crash.module collector|uplink HISTORY [--jumps SEED]`.

Its outbox enters into the history what the module asks for and is told. With --jumps, the wall clock that Python gives
it (time.time, time.time_ns) jumps by decades, at its start and every 1.5 s; the monotonic clocks go on, as they do in a
vehicle. The computer's own clock is left alone.
"""

import argparse
import importlib
import random
import time
from pathlib import Path

from edge import module
from edge.outbox import Outbox
from tests.crash.history import History, WatchedOutbox

YEAR_S = 365 * 86_400
JUMP_S = 1.5


def jump(seed: int) -> None:
    chance, real = random.Random(seed), time.time_ns
    offsets = [chance.randrange(-40, 60) * YEAR_S * 10**9 for _ in range(64)]

    def time_ns() -> int:
        return max(0, real() + offsets[int(time.monotonic() / JUMP_S) % len(offsets)])

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("module", choices=("collector", "uplink"))
    parser.add_argument("history", type=Path)
    parser.add_argument("--jumps", type=int, default=0)
    asked = parser.parse_args()
    history = History(asked.history)

    def watched(folder: Path, quota_bytes: int) -> Outbox:
        return WatchedOutbox(folder, history, quota_bytes)

    module.Outbox = watched  # type: ignore[assignment, misc]
    if asked.jumps:
        jump(asked.jumps)
    module.main(importlib.import_module(f"modules.{asked.module}.main").run)


if __name__ == "__main__":
    main()
