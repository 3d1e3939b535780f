"""Files that survive a power cut as they were, or as they are to be."""

import os
from collections.abc import Iterable
from pathlib import Path


def write_durably(path: Path, parts: Iterable[bytes]) -> None:
    """The file is there as a whole, or not at all; it is durable when this returns. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
