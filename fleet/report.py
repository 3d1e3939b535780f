"""The audit of a table, from what its archives and builds say; and what was found in files that is no message of ours.

<table>/vehicle=…/_received, _built ──┐
<table>/_findings.json ───────────────┴──► Audit
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge.durable import write_durably
from edge.errors import InputError
from edge.message import Counters, Quality
from fleet.archive import Archive, Stored
from fleet.audit import Audit, OutboxAudit, SequenceBook, StreamAudit, Trail
from fleet.build import Problem, Span, load_outcomes
from fleet.clock import trusted
from fleet.folder import TABLE_FILE, vehicles
from fleet.messages import shown

FINDINGS_FILE = "_findings.json"
MOST_PROBLEMS = 1000  # named, of a file and of a table; the others are counted


class FileFindings(msgspec.Struct):
    """What one file held that is no message of ours."""

    problems: list[str] = []
    more_problems: int = 0
    other_messages: int = 0


class Findings:
    """Of all files ever read; a file that is read again is judged anew."""

    def __init__(self, table: Path) -> None:
        self._path = table / FINDINGS_FILE
        self.files = load_findings(table)

    def begin(self, path: Path) -> None:
        self.files.pop(shown(path), None)

    def problem(self, path: Path, line: str) -> None:
        file = self.files.setdefault(shown(path), FileFindings())
        if len(file.problems) < MOST_PROBLEMS:
            file.problems.append(line)
        else:
            file.more_problems += 1

    def other(self, path: Path) -> None:
        self.files.setdefault(shown(path), FileFindings()).other_messages += 1

    def save(self) -> None:
        write_durably(self._path, [msgspec.json.format(msgspec.json.encode(self.files))])


def load_findings(table: Path) -> dict[str, FileFindings]:
    """Raises InputError: damaged."""
    path = table / FINDINGS_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, FileFindings]) if path.exists() else {}
    except msgspec.MsgspecError as error:
        raise InputError(path, f"is damaged ({error})", "delete it: what is read again is judged anew") from error


def audit(table: Path) -> Audit:
    """What is in the table, and what is missing. Raises InputError: it is no table that `decode` made, or damaged."""
    if not (table / TABLE_FILE).exists():
        raise InputError(table, "holds no table with its archive", "`bordnetz fleet decode` makes one")
    whole = Audit()
    problems = list[str]()
    count = 0
    for _, file in sorted(load_findings(table).items()):
        whole.other_messages += file.other_messages
        count += file.more_problems
        problems += file.problems
    for vehicle, folder in vehicles(table):
        one = _Vehicle(vehicle, folder)
        whole.outboxes += one.outboxes()
        whole.streams += one.streams()
        problems += one.problems()
    count += max(0, len(problems) - MOST_PROBLEMS)
    whole.problems = problems[:MOST_PROBLEMS] + ([f"and {count:,} more problems"] if count else [])
    return whole


class _Vehicle:
    def __init__(self, vehicle: str, folder: Path) -> None:
        self._vehicle = vehicle
        self._archive = Archive(folder)
        self._records = self._archive.records()
        self._outcomes = load_outcomes(folder)
        self._books = {(vehicle, outbox): SequenceBook(vehicle, outbox) for outbox in self._archive.began_us()}
        for record in self._records:
            self._books[vehicle, record.group.outbox].add(record.entry.sequence)
        for outbox, eviction in self._archive.evictions():
            self._books[vehicle, outbox].evict(eviction)
        for outbox, sequence, _, _ in self._damaged():
            self._books[vehicle, outbox].add(sequence)

    def outboxes(self) -> Iterator[OutboxAudit]:
        for (_, outbox), book in self._books.items():
            found = book.audit()
            found.duplicates = sum(index.duplicates.get(outbox, 0) for index in self._archive.indexes)
            yield found

    def streams(self) -> list[StreamAudit]:
        trails: dict[tuple[str, str], Trail] = {}
        for record in self._records:
            key = (record.group.stream, record.group.source)
            trail = trails.setdefault(key, Trail(self._vehicle, *key))
            trail.add(record.group.outbox, record.entry.sequence, record.block, self._books)
            self._note_clock(trail.audit, record)
        found = []
        for (stream, source), trail in trails.items():
            one = trail.finish([other for (_, its), other in trails.items() if its == source])
            one.counters = self._counters(stream, source)
            found.append(one)
        return found

    def problems(self) -> list[str]:
        """Of records: one line each, but those that wait for a manifest in one for all."""
        lines = [self._line(outbox, n, stream, what) for outbox, n, stream, what in self._damaged()]
        waiting = Counter[str]()
        for record in self._records:
            outcome = self._outcome(record)
            if isinstance(outcome, Problem) and outcome.manifest:
                waiting[outcome.manifest] += 1
            elif isinstance(outcome, Problem):
                group = record.group
                lines.append(self._line(group.outbox, record.entry.sequence, group.stream, outcome.reason))
        for manifest, count in sorted(waiting.items()):
            lines.append(
                f"{self._vehicle}: {count:,} records need decoder manifest {manifest}, which was not given; "
                "they are kept, and decoded once it is"
            )
        return lines

    def _line(self, outbox: str, sequence: int, stream: str, what: str) -> str:
        return f"{self._vehicle}, outbox {outbox[:8]}: record {sequence} of {stream}: {what}; left out"

    def _outcome(self, record: Stored) -> object:
        return self._outcomes[record.number] if record.number < len(self._outcomes) else None

    def _note_clock(self, stream: StreamAudit, record: Stored) -> None:
        quality = Quality(trusted(record.clock, record.entry.enqueued_us)).name.lower()
        stream.clocks[quality] = stream.clocks.get(quality, 0) + 1
        outcome = self._outcome(record)
        if isinstance(outcome, Problem):
            stream.undecoded_blocks += 1
        elif isinstance(outcome, Span) and outcome.utc_offset_us != record.entry.utc_offset_us:
            stream.corrected_blocks += 1

    def _counters(self, stream: str, source: str) -> dict[str, int]:
        total = Counter[str]()
        for index in self._archive.indexes:
            for group, counters in zip(index.groups, index.counters, strict=True):
                if (group.stream, group.source) == (stream, source):
                    total.update(dict(zip(Counters.__struct_fields__, counters, strict=True)))
        return dict(total)

    def _damaged(self) -> list[tuple[str, int, str, str]]:
        """Each record once, unless another copy of it was whole."""
        whole = {(record.group.outbox, record.entry.sequence) for record in self._records}
        found = {entry[:2]: entry for index in self._archive.indexes for entry in index.damaged}
        return [entry for key, entry in found.items() if key not in whole]
