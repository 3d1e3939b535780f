"""`make fuzz`: changed inputs for everything that reads what others wrote, for some seconds each.

    corpus/<target>/* ──► libFuzzer ──change──► target ──► read, or refused in one line
                              ▲                    │
                              └── new branches ◄───┴──► a finding: out/fuzz/<target>-crash-…

The kernels are instrumented (`EDGE_SANITIZE=1`) for AddressSanitizer, UndefinedBehaviorSanitizer and the branches that
are taken. An input that takes a new one is changed further, and kept in out/fuzz/corpus for the next run. Corpus files
are our own, and small; what once failed belongs among them (tests/test_fuzz.py runs them all). Before anything else,
two planted defects must be found.
"""

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz import sanitized
from tests.fuzz.targets import CORPUS, PLANTED, TARGETS

OUT = Path("out/fuzz")
PLANTED_SECONDS = 60  # a second or two are usual
SLOWEST_S = 10  # for one input
LIMITS = [f"-timeout={SLOWEST_S}", "-rss_limit_mb=1024", "-max_len=4096"]
STATUS = re.compile(r"#(\d+)\s.* cov: (\d+) ")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="all without one")
    parser.add_argument("--seconds", type=int, default=10, help="for each target, at most")
    parser.add_argument("--runs", type=int, default=-1, help="inputs for each target, at most")
    parser.add_argument("--seed", type=int, default=0, help="the same inputs again, for the same corpus; 0: others")
    parser.add_argument("--merge", action="store_true", help="add what out/fuzz/corpus has found, as few as will do")
    options = parser.parse_args()
    if sanitized.missing():
        print(f"fuzz: skipped, there is no {sanitized.missing()}", file=sys.stderr)
        return 0
    names = options.targets or list(TARGETS)
    if options.merge:
        return max(map(merge, names))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        if not all(pool.map(is_seen, PLANTED)):
            return 1
        return 0 if all(list(pool.map(lambda name: is_clean(name, options), names))) else 1


def drive(name: str, flags: list[str]) -> subprocess.CompletedProcess[str]:
    OUT.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.drive", name, f"-artifact_prefix={OUT}/{name}-", *LIMITS, *flags]
    return subprocess.run(command, env=sanitized.environment(), capture_output=True, text=True, errors="replace")


def is_seen(name: str) -> bool:
    began = time.monotonic()
    result = drive(name, [f"-max_total_time={PLANTED_SECONDS}"])
    found = result.returncode != 0 and PLANTED[name][1] in result.stderr
    for path in OUT.glob(f"{name}-*"):
        path.unlink()
    print(f"fuzz {name}: {f'found in {time.monotonic() - began:.0f} s' if found else 'NOT FOUND: ' + result.stderr}")
    return found


def is_clean(name: str, options: argparse.Namespace) -> bool:
    kept = OUT / "corpus" / name
    kept.mkdir(parents=True, exist_ok=True)
    words = CORPUS / f"{name}.dict"
    flags = [f"-dict={words}"] if words.exists() else []
    flags += [f"-max_total_time={options.seconds}", f"-runs={options.runs}", f"-seed={options.seed}"]
    result = drive(name, [*flags, str(kept), str(CORPUS / name)])
    inputs, branches = (STATUS.findall(result.stderr) or [("0", "0")])[-1]
    said = "nothing found" if result.returncode == 0 else f"FINDING\n{result.stderr[-6000:]}"
    print(f"fuzz {name}: {int(inputs):,} inputs, {int(branches):,} branches, {said}", flush=True)
    return result.returncode == 0


def merge(name: str) -> int:
    """Rewrite corpus/<target> with the fewest and smallest inputs that take all branches known."""
    smallest = OUT / "merged" / name
    shutil.rmtree(smallest, ignore_errors=True)
    smallest.mkdir(parents=True)
    result = drive(name, ["-merge=1", str(smallest), str(CORPUS / name), str(OUT / "corpus" / name)])
    print(f"fuzz {name}: {len(list(smallest.iterdir()))} inputs in {smallest}")
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
