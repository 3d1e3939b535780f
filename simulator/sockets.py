"""Where the workload sockets of a state folder lie: a socket's path has 107 bytes at most, and the folder may lie deep.

<runtime folder>/bordnetz-<digest of the state folder>-<process>/<digest of the module>.sock
"""

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

RUNTIME_FOLDER = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")  # noqa: S108


class Sockets:
    """name: of this state folder, the same for every process."""

    def __init__(self, state: Path) -> None:
        sweep(RUNTIME_FOLDER)
        self.name = f"bordnetz-{_digest(str(state))[:12]}"
        self._folder = RUNTIME_FOLDER / f"{self.name}-{os.getpid()}"

    def path(self, module: str) -> Path:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return self._folder / f"{_digest(module)[:8]}.sock"

    def remove(self, module: str) -> None:
        self.path(module).unlink(missing_ok=True)

    def remove_folder(self) -> None:
        with suppress(OSError):
            self._folder.rmdir()


def sweep(folder: Path) -> None:
    """Remove what simulators that were killed have left behind: folders of sockets, by the process that made them."""
    for left in folder.glob("bordnetz-????????????-*"):
        number = left.name.rpartition("-")[2]
        with suppress(FileNotFoundError):  # another simulator sweeps too
            if number.isdecimal() and not Path("/proc", number).exists() and left.lstat().st_uid == os.getuid():
                shutil.rmtree(left, ignore_errors=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
