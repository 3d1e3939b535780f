"""`python -m tests.crash`: all layers, or some; a line for each, and what repeats a failure."""

import argparse
import importlib
import logging
import os
import sys
import time

from tests.crash.layer import Options, Result

LAYERS = {
    "L1": ("strict", "a strict disk: what was not flushed is lost, or half there"),
    "L2": ("syscalls", "SIGKILL, EIO and ENOSPC at every write-side system call"),
    "L3": ("blocks", "ext4 in user-mode Linux, cut between any two writes of its disk"),
    "L4": ("cuts", "the modules in user-mode Linux, and its power cut"),
    "L5": ("corrupt", "flipped bits, torn, zeroed, swapped and old pages and files"),
    "L6": ("drive", "a drive over a bad network, with everything killed on the way"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--short", action="store_true", help="the counts of CI (default)")
    length.add_argument("--long", action="store_true", help="the counts of the promise")
    parser.add_argument("--layer", action="append", choices=LAYERS, help="this one; may be given again")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    asked = parser.parse_args()
    logging.disable()  # what is logged of thousands of damaged outboxes
    options = Options(asked.long, int.from_bytes(os.urandom(3)) if asked.seed is None else asked.seed)
    print(f"crash: {'long' if options.long else 'short'} form, --seed {options.seed}", flush=True)
    failed = [name for name in asked.layer or LAYERS if _run(name, options)]
    print(f"crash: {', '.join(failed)} failed" if failed else "crash: nothing lost, every known fault caught")
    return 1 if failed else 0


def _run(name: str, options: Options) -> bool:
    module, what = LAYERS[name]
    began = time.monotonic()
    result: Result = importlib.import_module(f"tests.crash.{module}").run(options)
    tried = ", ".join(f"{number} {kind}" for kind, number in result.tried.items())
    outcome = f"skipped: {result.skipped}" if result.skipped else f"{tried}; {len(result.losses)} losses"
    print(f"{name}  {what}: {outcome} ({time.monotonic() - began:.0f} s)")
    for control, caught in result.controls.items():
        print(f"    {control}: {'caught' if caught else 'NOT CAUGHT'}")
    for loss in result.losses[:20]:
        print(f"    {loss}")
    sys.stdout.flush()
    return result.failed


if __name__ == "__main__":
    sys.exit(main())
