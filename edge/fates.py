"""What became of a campaign's records behind the collector: sent, or evicted. The uplink counts, from its start on.

uplink ──acknowledged──► Fates ──save──► status-uplink.json beside the outbox ──load──► collector's status, doctor
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.outbox import LedgerEntry, Record

STATUS_FILE = "status-uplink.json"
SAVE_S = 5.0
MOST_STREAMS = 1000  # that are counted: a twin has room for fewer campaigns


class Fates:
    """By stream: records that the cloud has acknowledged, and those that left the outbox unsent."""

    def __init__(self) -> None:
        self._streams: dict[str, dict[str, int]] = {}
        self._saved: dict[str, dict[str, int]] = {}
        self._saved_at = -SAVE_S

    def note(self, records: "Iterable[Record]", entries: "Iterable[LedgerEntry]" = ()) -> None:
        """The cloud has these records, and has been told of these entries of the ledger, which are gone."""
        for stream, count in Counter([record.stream for record in records]).items():
            self._of(stream)["sent"] += count
        for entry in entries:
            self._of(entry.stream)["evicted"] += entry.count

    def _of(self, stream: str) -> dict[str, int]:
        if stream not in self._streams and len(self._streams) >= MOST_STREAMS:
            del self._streams[next(iter(self._streams))]
        return self._streams.setdefault(stream, {"sent": 0, "evicted": 0})

    def counts(self, untold: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """By stream; untold: evicted records that are in the ledger still."""
        found = {name: dict(fate) for name, fate in self._streams.items()}
        for name, count in untold.items():
            found.setdefault(name, {"sent": 0, "evicted": 0})["evicted"] += count
        return found

    def save(self, folder: Path, untold: Mapping[str, int]) -> None:
        """Leave them beside the outbox, where they have changed, every few seconds. Raises OSError."""
        counts = self.counts(untold)
        if counts == self._saved or time.monotonic() - self._saved_at < SAVE_S:
            return
        draft = folder / f"{STATUS_FILE}.draft"
        draft.write_text(json.dumps({"streams": counts}))
        draft.replace(folder / STATUS_FILE)
        self._saved, self._saved_at = counts, time.monotonic()


def load(folder: Path) -> dict[str, dict[str, int]]:
    """By stream, as the uplink last left them; nothing where it never did."""
    try:
        found = json.loads((folder / STATUS_FILE).read_text())["streams"]
        return {str(name): {key: int(fate[key]) for key in ("sent", "evicted")} for name, fate in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
