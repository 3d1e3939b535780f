"""`make fuzz`: changed inputs for everything that reads what others wrote, for some seconds.

    corpus/<target>/*  ──mutate──► target ──► only InputError may come out

Each corpus file is our own, and small; what once failed belongs among them. A finding is written to out/fuzz and named
with its seed. Run on a build with EDGE_SANITIZE=1, it also finds what reads or writes where it should not. The
mutations are blind: they follow no coverage.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from cy_core.frames import Frames
from edge import manifest
from edge.database import compile_databases
from edge.decoder import Decoder
from edge.errors import InputError
from edge.logs import open_log
from tests.fuzz.summaries import summaries
from tests.test_transport import MANIFEST

CORPUS = Path(__file__).with_name("corpus")
LONGEST = 1 << 16
SLOWEST_S = 5  # for one input
TOKENS = [
    b"\x00",
    b"\xff",
    b"0",
    b"-1",
    b"4294967295",
    b"18446744073709551616",
    b'"',
    b";",
    b"#",
    b"##",
    b"\n",
    b"(",
    b"|",
    b"@",
]


def log(data: bytes, folder: Path) -> None:
    for suffix in (".log", ".csv.gz", ".txt.zst"):
        path = folder / f"a{suffix}"
        path.write_bytes(data)
        reader, frames = open_log(path), Frames()
        while reader.read(frames, 1000):
            frames.clear()
        reader.problems()
        reader.close()


def database(data: bytes, folder: Path) -> None:
    suffix = next(
        (
            s
            for mark, s in ((b"<NetworkDef", ".kcd"), (b"AUTOSAR", ".arxml"), (b"FormatVersion", ".sym"))
            if mark in data
        ),
        ".dbc",
    )
    path = folder / f"a{suffix}"
    path.write_bytes(data)
    made, _ = compile_databases({"can0": [path]})
    Decoder(made)
    assert manifest.parse(manifest.FORMAT.encode() + made.hash.encode() + b"\n" + made.body).hash == made.hash


def manifest_file(data: bytes, folder: Path) -> None:
    """The hash made right, so that the document is read."""
    import hashlib

    body = data.partition(b"\n")[2].rstrip(b"\n")
    manifest.parse(data)
    head = manifest.FORMAT + hashlib.sha256(body).hexdigest() + "\n"
    Decoder(manifest.parse(head.encode() + body))


def transport(data: bytes, folder: Path) -> None:
    """Bytes as frames: bus, identifier, time step, length, payload; put together and decoded."""
    decoder, frames, messages = Decoder(MANIFEST), Frames(), Frames()
    at, time_us = 0, 0
    while at + 8 <= len(data):
        length = data[at + 7] % 65
        can_id = int.from_bytes(data[at + 1 : at + 5], "little")
        time_us += int.from_bytes(data[at + 5 : at + 7], "little") * 100
        payload = data[at + 8 : at + 8 + length]
        frames.append(time_us, data[at] % 8, can_id, payload, flags=4 if len(payload) > 8 else 0)
        at += 8 + length
    decoder.assembler().assemble(frames, messages)
    columns = decoder.decode_batch(frames, None, messages)
    assert columns.frames == len(frames)
    assert columns.unknown_frames >= 0
    list(columns.groups())


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    "log": log,
    "database": database,
    "manifest": manifest_file,
    "transport": transport,
    "summaries": summaries,
}


def mutated(seeds: list[bytes], draw: random.Random) -> bytes:
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.choice((1, 2, 8, 40)))
        kind = draw.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at:end]
        elif kind == 2:
            data[at:at] = draw.choice(TOKENS)
        elif kind == 3:
            data[at:end] = draw.choice(TOKENS)
        elif kind == 4:
            data[at:at] = data[at:end]
        else:
            other = draw.choice(seeds)
            start = draw.randrange(len(other) + 1)
            data[at:end] = other[start : start + draw.choice((4, 40, 400))]
    return bytes(data[:LONGEST])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="all without one")
    parser.add_argument("--seconds", type=float, default=10, help="for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    findings = 0
    for name in options.targets or TARGETS:
        findings += run(name, options.seconds, options.seed)
    return 1 if findings else 0


def run(name: str, seconds: float, seed: int) -> int:
    seeds = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    draw, count, refused, findings = random.Random(seed), 0, 0, 0
    end = time.monotonic() + seconds
    signal.signal(signal.SIGALRM, too_slow)
    with tempfile.TemporaryDirectory() as folder:
        inputs = list(seeds)
        while time.monotonic() < end and findings < 5:
            data = inputs.pop() if inputs else mutated(seeds, draw)
            count += 1
            signal.alarm(SLOWEST_S)
            try:
                TARGETS[name](data, Path(folder))
            except InputError:
                refused += 1
            except (Exception, TooSlow):
                findings += 1
                keep(name, seed, data)
            finally:
                signal.alarm(0)
    print(f"fuzz {name}: {count:,} inputs, {refused:,} refused in one line, {findings} findings (seed {seed})")
    return findings


class TooSlow(BaseException):
    """Not an Exception, which what is tested may catch."""


def too_slow(number: int, frame: object) -> None:
    raise TooSlow(f"over {SLOWEST_S} s")


def keep(name: str, seed: int, data: bytes) -> None:
    folder = Path("out/fuzz")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{seed}-{len(data)}"
    path.write_bytes(data)
    print(f"fuzz {name}: FINDING, input in {path}\n{traceback.format_exc()}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
