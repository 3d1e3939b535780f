"""Every write-side system call of a program, recorded by strace with its data: what L1's disk is made from.

SQLite's calls and the project's own are seen alike, and nothing in the product knows of it. Calls that this file does
not understand and that could change a file are an error, never passed over.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CALLS = (
    "openat,close,write,pwrite64,ftruncate,fallocate,fsync,fdatasync,rename,unlink,mkdir,lseek,mmap,"
    "open,creat,writev,pwritev,pwritev2,truncate,renameat,renameat2,unlinkat,rmdir,mkdirat,link,linkat,symlink,"
    "symlinkat,sendfile,copy_file_range,splice,dup,dup2,dup3,sync_file_range,fork,vfork,clone,clone3"
)
_LINE = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+|0x[0-9a-f]+|\?)(.*)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


class Call(NamedTuple):
    """texts: the strings among the arguments; numbers: the others, as strace prints them."""

    name: str
    texts: list[bytes]
    others: list[str]
    result: int


class Failed(Exception):
    """The program, or strace, did not end well."""


def record(arguments: list[str], trace: Path) -> None:
    """Run `python -m ARGUMENTS` under strace. Raises Failed."""
    command = ["strace", "-qq", "-xx", "-s", "8000000", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(trace)]
    done = subprocess.run(
        [*command, sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    if done.returncode:
        raise Failed(f"{arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def calls(trace: Path) -> Iterator[Call]:
    """The calls that succeeded, in their order."""
    with trace.open() as lines:
        for line in lines:
            found = _LINE.match(line)
            if found is None:
                if line.startswith(("exit_group", "+++")):
                    continue
                raise Failed(f"strace printed what is not understood: {line[:200]}")
            name, arguments, result, _ = found.groups()
            if result in ("-1", "?"):
                continue
            texts = [bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(arguments)]
            others = [part.strip() for part in _TEXT.sub("", arguments).split(",")]
            yield Call(name, texts, others, int(result, 0))
