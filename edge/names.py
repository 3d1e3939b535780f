"""The names that a person may use for signals, in campaigns and in conditions; and what a signal's bits can say."""

import fnmatch
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from edge.manifest import DecoderManifest, Message, Signal

if TYPE_CHECKING:
    from edge.vss_signal import VssSignal


class Names:
    """Signals of a manifest by the names that a person may use: Message.Signal, bus.Message.Signal, or a VSS path."""

    def __init__(self, manifest: DecoderManifest) -> None:
        self.signals: list[tuple[str, Message, Signal]] = list(manifest.names())
        self.buses = manifest.buses
        self.vss = {row.path: row for row in manifest.vss}
        self._places: dict[str, list[int]] = {}
        for place, (name, message, _) in enumerate(self.signals):
            self._places.setdefault(name, []).append(place)
            self._places.setdefault(f"{message.bus}.{name}", []).append(place)
        for row in manifest.vss:
            self._places.setdefault(row.path, []).append(row.signal)
        self._tagged = {row.signal for row in manifest.vss if row.private}

    def find(self, name: str) -> list[int]:
        return self._places.get(name, [])

    def matches(self, glob: str) -> "dict[int, list[VssSignal]]":
        """The signals that a name or a glob means, in their order; with the VSS paths, where it is by those alone."""
        fits = re.compile(fnmatch.translate(glob)).match
        found: dict[int, list[VssSignal]] = {}
        own: set[int] = set()
        for name, places in self._places.items() if glob not in self._places else [(glob, self._places[glob])]:
            if name == glob or fits(name):
                row = self.vss.get(name)
                for place in places:
                    found.setdefault(place, []).extend([row] if row else [])
                own.update(() if row else places)
        return {place: [] if place in own else found[place] for place in sorted(found)}

    def is_tagged(self, place: int) -> bool:
        """Whether VSS tags this signal as private."""
        return place in self._tagged

    def closest(self, name: str) -> str:
        """The way out for a name that is not there."""
        return closest(name, self._places)


def physical_range(signal: Signal) -> tuple[float, float]:
    """What the signal's bits can say; without limit for floats."""
    if signal.is_float:
        return -math.inf, math.inf
    low, high = raw_range(signal)
    ends = sorted((low * signal.factor + signal.offset, high * signal.factor + signal.offset))
    return float(ends[0]), float(ends[1])


def raw_range(signal: Signal) -> tuple[int, int]:
    if signal.signed:
        return -(1 << (signal.length - 1)), (1 << (signal.length - 1)) - 1
    return 0, (1 << signal.length) - 1


def closest(name: str, known: Iterable[str]) -> str:
    """The way out for a name that is none of these."""
    folded = {one.lower(): one for one in known}
    near = close(name.lower(), folded, n=1, cutoff=0.5)
    return f"did you mean {folded[near[0]]}?" if near else "`bordnetz signals` lists what there is"


def close(word: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """Words like this one, the likest first."""
    import difflib  # here: a vehicle needs it only where something is wrong

    return difflib.get_close_matches(word, list(known), n, cutoff)
