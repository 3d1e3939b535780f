"""An outbox in memory: what edge.outbox.Store promises, in as few lines as it takes.

Tests of what uses an outbox run on it; the suite of tests/test_outbox_contract.py holds it to the real one.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from edge.outbox import PAGE_BYTES, LedgerEntry, NewRecord, Record, Stats


class MemoryOutbox:
    """quota_bytes is of bodies, each reckoned with one page more."""

    def __init__(self, quota_bytes: int = 1 << 40, outbox: bytes = bytes(16)) -> None:
        self.id = outbox
        self.records: dict[int, Record] = {}
        self.cursors: dict[str, bytes] = {}
        self.entries: list[LedgerEntry] = []
        self._quota_bytes = quota_bytes
        self._last = self._evicted = 0

    def append(self, records: Sequence[NewRecord], cursor: tuple[str, bytes] | None = None) -> list[int]:
        for record in records:
            record.check()
        sequences = list(range(self._last + 1, self._last + 1 + len(records)))
        for sequence, new in zip(sequences, records, strict=True):
            self.records[sequence] = Record(sequence, new.priority, new.stream, new.manifest, new.body, self.id)
        self._last += len(records)
        self._put_cursor(cursor)
        over = sum(len(record.body) + PAGE_BYTES for record in self.records.values()) - self._quota_bytes
        if over > 0:
            self.evict(over)
        return sequences

    def cursor(self, name: str) -> bytes | None:
        return self.cursors.get(name)

    def peek(
        self,
        limit_bytes: int,
        limit_records: int,
        after: Mapping[int, int] | None = None,
        *,
        without: Collection[int] = (),
        skip: Collection[int] = (),
        oldest_first: bool = False,
    ) -> list[Record]:
        seen = after or {}
        new = [r for r in self.records.values() if r.priority not in without and r.sequence > seen.get(r.priority, 0)]
        oldest = min((r.sequence, r.priority) for r in new)[1] if new and oldest_first else None
        queue = sorted(new, key=lambda r: (r.priority != oldest, r.priority, r.sequence))
        found: list[Record] = []
        for record in queue:
            if record.sequence in skip:
                continue
            if found and sum(len(r.body) for r in found) + len(record.body) > limit_bytes:
                break
            if len(found) >= limit_records:
                break
            found.append(record)
        return found

    def ack(
        self, sequences: Iterable[int], cursor: tuple[str, bytes] | None = None, entries: Iterable[int] = ()
    ) -> None:
        told = set(entries)
        self.entries = [entry for entry in self.entries if entry.id not in told]
        for sequence in sequences:
            self.records.pop(sequence, None)
        self._put_cursor(cursor)

    def evict(self, need_bytes: int, least: int = 0, reason: str = "quota") -> int:
        freed, gone = 0, []
        for record in sorted(self.records.values(), key=lambda r: (-r.priority, r.sequence)):
            if record.priority < least or freed >= need_bytes:
                break
            freed += len(record.body) + PAGE_BYTES
            gone.append(record)
        for record in gone:
            del self.records[record.sequence]
            at = record.sequence
            self.entries.append(LedgerEntry(at, self.id, at, at, 1, record.stream, reason, 0))
        self._evicted += len(gone)
        return len(gone)

    def ledger(self, limit: int = 100) -> list[LedgerEntry]:
        return self.entries[:limit]

    def stats(self) -> Stats:
        return Stats(len(self.records), sum(len(record.body) for record in self.records.values()), self._evicted)

    def close(self) -> None:
        """There is nothing to close."""

    def _put_cursor(self, cursor: tuple[str, bytes] | None) -> None:
        if cursor is not None:
            self.cursors[cursor[0]] = cursor[1]
