"""Messages to tables: nothing twice, nothing silently missing.

    folders of messages ──► <table>/vehicle=…/_received/        what arrived, each record once    (fleet/archive.py)
                                       └──► campaign=…/date=…/part-0.parquet                       (fleet/build.py)
                                       └──► <table>/_audit.json                                    (fleet/report.py)

A table grows: give it the messages of a day, and those of the next one to the same table. Messages that it has seen
change nothing, and one can kill it at any time and run it again. Memory holds a batch of messages, or the rows of one
vehicle up to a bound.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import msgspec

from edge import manifest as manifest_files
from edge import table as model_tables
from edge.durable import write_durably
from edge.errors import InputError
from edge.manifest import DecoderManifest
from fleet import files, report
from fleet.archive import Archive
from fleet.audit import Audit
from fleet.build import build, needs_build
from fleet.folder import AUDIT_FILE, MANIFESTS, TABLES, folder_of, kept_tables, open_table, vehicles
from fleet.lines import Lines, Manifests
from fleet.messages import Found, Received, Unreadable

BATCH_BYTES = 64 << 20  # of messages; twice that in memory

Progress = Callable[[float], None]


def decode(
    folders: Iterable[Path | str],
    manifests: Manifests | Path | str | None,
    table: Path | str,
    progress: Progress = lambda part: None,
    jobs: int = 1,
    batch_bytes: int = BATCH_BYTES,
    tables: Path | str | None = None,
) -> Audit:
    """Add all messages below folders to the table, and return what is in it now.

    manifests: by their hash, or a folder of manifest files; those that the table has are known, too. progress gets the
    part that is done, 0 to 1. jobs: processes, each at one vehicle at a time. tables: a folder of model tables; a block
    that names one that is not there waits until it is.
    Raises InputError: no such folder, a manifest file or the table is damaged, another process is at the table, or it
    is a folder of something else.
    """
    table = Path(table)
    paths = [path for path in files.files(folders) if not path.absolute().is_relative_to(table.absolute())]
    with open_table(table):
        known = keep_manifests(manifests, table)
        _keep_tables(tables, table)
        _receive(paths, table, batch_bytes, lambda part: progress(0.3 * part))
        audit = update(table, known, jobs, lambda part: progress(0.3 + 0.6 * part))
    progress(1.0)
    return audit


def update(table: Path, manifests: Manifests, jobs: int = 1, progress: Progress = lambda part: None) -> Audit:
    """Bring the files of an open table up to what its archives hold."""
    _build(table, manifests, jobs, progress)
    audit = report.audit(table)
    write_durably(table / AUDIT_FILE, [msgspec.json.format(msgspec.json.encode(audit))])
    return audit


def load_manifests(folder: Path) -> dict[str, DecoderManifest]:
    """The decoder manifests among the files of a folder, by hash; or that of one file. Raises InputError."""
    if not folder.exists():
        raise InputError(folder, "no such file or folder", "give a decoder manifest, or a folder of them")
    found = {}
    paths = sorted(path for path in folder.glob("[!.]*") if path.is_file())
    for path in [folder] if folder.is_file() else paths:
        with path.open("rb") as file:
            is_one = file.read(len(manifest_files.FORMAT)) == manifest_files.FORMAT.encode()
        if is_one or path == folder:
            manifest = manifest_files.load(path)
            found[manifest.hash] = manifest
    return found


def keep_manifests(given: Manifests | Path | str | None, table: Path) -> Manifests:
    """Those given and those that the table has; it keeps a copy of each, so that it can always be built again."""
    kept = table / MANIFESTS
    found = load_manifests(kept) if kept.is_dir() else {}
    new = given if isinstance(given, Mapping) else load_manifests(Path(given)) if given else {}
    for name, manifest in new.items():
        if name not in found:
            kept.mkdir(exist_ok=True)
            draft = kept / f".{name}.draft"
            manifest.save(draft)
            write_durably(kept / f"{name}.manifest", [draft.read_bytes()])
            draft.unlink()
    return {**found, **new}


def _keep_tables(given: Path | str | None, table: Path) -> None:
    """A copy of each model table, by its name. Raises InputError: no such folder, or one is damaged."""
    if given is None:
        return
    if not Path(given).is_dir():
        raise InputError(given, "is no folder", "give the folder of model tables")
    for path, name in model_tables.names(Path(given)):
        kept = table / TABLES / f"{name}.table"
        if not kept.exists():
            model_tables.load(path)
            kept.parent.mkdir(exist_ok=True)
            write_durably(kept, [path.read_bytes()])


def _receive(paths: list[Path], table: Path, batch_bytes: int, progress: Progress) -> None:
    """Put what is new into the archives, a batch of messages at a time."""
    intake = Intake(table)
    for done, path in enumerate(paths, start=1):
        intake.findings.begin(path)
        for found in files.read(path):
            intake.take(found)
            if intake.bytes >= batch_bytes:
                intake.archive()
        progress(done / len(paths))
    intake.save()


class Intake:
    """Messages on their way into the archives of an open table; bytes: of those not yet there."""

    def __init__(self, table: Path) -> None:
        self.findings = report.Findings(table)
        self.bytes = 0
        self._table = table
        self._batch: dict[str, list[Received]] = {}

    def take(self, found: Found) -> None:
        if isinstance(found, Received):
            self._batch.setdefault(found.vehicle, []).append(found)
            self.bytes += len(found.body)
        elif isinstance(found, Unreadable):
            self.findings.problem(found.place.path, str(found))
        else:
            self.findings.other(found.place.path)

    def archive(self) -> None:
        for vehicle, received in self._batch.items():
            Archive(folder_of(self._table, vehicle)).add(received)
        self._batch, self.bytes = {}, 0

    def save(self) -> None:
        """All that was taken is durable when this returns."""
        self.archive()
        self.findings.save()


def _build(table: Path, manifests: Manifests, jobs: int, progress: Progress) -> None:
    lines = Lines(manifests, kept_tables(table))
    folders = [folder for _, folder in vehicles(table) if needs_build(folder, lines)]
    if jobs == 1 or len(folders) < 2:
        for done, folder in enumerate(folders, start=1):
            build(folder, lines)
            progress(done / len(folders))
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin_worker, (table,)) as pool:
        for done, _ in enumerate(pool.map(_work, folders), start=1):
            progress(done / len(folders))


_lines: Lines | None = None  # of a worker process


def _begin_worker(table: Path) -> None:
    global _lines
    manifests = table / MANIFESTS
    _lines = Lines(load_manifests(manifests) if manifests.is_dir() else {}, kept_tables(table))


def _work(folder: Path) -> None:
    assert _lines is not None
    build(folder, _lines)
