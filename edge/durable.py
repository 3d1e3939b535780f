"""Files that survive a power cut as they were, or as they are to be."""

import os
from collections.abc import Iterable
from pathlib import Path


def write_durably(path: Path, parts: Iterable[bytes]) -> None:
    """The file is there as a whole, or not at all; it is durable when this returns. Raises OSError."""
    if not path.parent.is_dir():
        make_folder(path.parent)
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make it and what leads to it; what its parent does not name durably is lost with all that is in it."""
    missing = not folder.is_dir()
    if missing:
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
    try:
        sync_folder(folder.parent)  # also of one that was there: who made it may have been killed before this
    except OSError:  # not everybody may read what is above
        if missing:
            raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
