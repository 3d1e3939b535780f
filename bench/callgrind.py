"""Instructions that decoding takes, counted by callgrind: the same number on every run, whatever else the machine does.

    python -m bench.callgrind            compare with bench/callgrind.json: over 10 % more is a failure
    python -m bench.callgrind --update   write it

Two child processes decode the recording in batches of 1024 a different number of times; the difference is decoding
alone. valgrind is a processor of its own: the counted kernels are those that it picks. Without
valgrind, or without the recording, it says so and is done.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FIGURE = Path(__file__).with_name("callgrind.json")
BATCH, FEW, MANY = 1024, 1, 6
ALLOWED = 1.10


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.callgrind", description=__doc__)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        decode(Path(options.folder), options.child)
        return 0
    if shutil.which("valgrind") is None:
        print("callgrind: skipped, valgrind is not installed (apt-get install valgrind)")
        return 0
    from bench import workload

    if not (workload.DATA / "toyota_rav4_2017").is_dir():
        print(f"callgrind: skipped, no RAV4 recording at {workload.DATA} (set BORDNETZ_DATA)")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        frames = prepare(Path(folder))
        per_frame = (instructions(Path(folder), MANY) - instructions(Path(folder), FEW)) / ((MANY - FEW) * frames)
    if options.update:
        FIGURE.write_text(json.dumps({"instructions_per_frame": round(per_frame, 2), "batch": BATCH}) + "\n")
    committed = json.loads(FIGURE.read_text())["instructions_per_frame"]
    ok = per_frame <= ALLOWED * committed
    print(
        json.dumps(
            {
                "figure": f"decode, instructions per frame in batches of {BATCH}",
                "instructions_per_frame": round(per_frame, 2),
                "committed": committed,
                "frames": frames,
                "ok": ok,
            }
        )
    )
    return 0 if ok else 1


def prepare(folder: Path) -> int:
    """The recording's frames that the manifest describes, as records, and the manifest."""
    from bench import workload

    load = workload.load(folder)
    (folder / "frames").write_bytes(load.known.to_bytes()[0])
    return len(load.known)


def decode(folder: Path, times: int) -> None:
    from cy_core.columns import Columns
    from cy_core.frames import Frames
    from edge import manifest
    from edge.decoder import Decoder

    frames, decoder = Frames(), Decoder(manifest.load(folder / "bench.manifest"))
    frames.extend((folder / "frames").read_bytes())
    batches = [frames.slice(start, start + BATCH) for start in range(0, len(frames), BATCH)]
    columns = Columns(decoder.plan)
    for _ in range(times):
        for batch in batches:
            decoder.decode_batch(batch, columns)


def instructions(folder: Path, times: int) -> int:
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", sys.executable, "-m"]
    command += ["bench.callgrind", "--child", str(times), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if found is None or done.returncode:
        raise RuntimeError(f"callgrind gave no count: {done.stderr[-500:]}")
    return int(found[1])


if __name__ == "__main__":
    sys.exit(main())
