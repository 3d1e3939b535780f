"""What every layer takes and gives. A layer is a module with `run(options) -> Result`; __main__ names them all."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """long: the counts of `make crash-long`. Everything random in a layer comes from seed."""

    long: bool = False
    seed: int = 1


@dataclass
class Result:
    """tried: of what how many, as in {"crash states": 1000}. controls: whether each known fault was caught.

    losses: what the validator said, with what repeats it in front. skipped: why the layer could not run here.
    """

    tried: dict[str, int] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)
    controls: dict[str, bool] = field(default_factory=dict)
    skipped: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.losses) or not all(self.controls.values())

    def count(self, what: str, number: int = 1) -> None:
        self.tried[what] = self.tried.get(what, 0) + number


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder in memory, where there is one: what is cut here is a model's disk, or a process, never the power."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="crash-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def missing(**programs: str) -> str:
    """program=Debian package: installs what is not there if it may, and says what is still missing; "" for nothing."""
    names = sorted({package for program, package in programs.items() if not _has(program)})
    if names and os.geteuid() == 0 and shutil.which("apt-get"):
        install = ["apt-get", "install", "-y", "--no-install-recommends", *names]
        subprocess.run(install, stdin=subprocess.DEVNULL, capture_output=True, timeout=300, check=False)
    names = sorted({package for program, package in programs.items() if not _has(program)})
    return f"needs {', '.join(names)}: apt-get install {' '.join(names)}" if names else ""


def _has(program: str) -> bool:
    return any(shutil.which(program, path=path) for path in (None, "/usr/sbin:/sbin"))
