"""Records that the connection breaks at: innocent ones on a bad network, or poison for whoever is at the other end.

    blamed 3 times ──► each record of the message goes alone ──► blamed 3 times alone ──► deferred: others go first
    deferred ──► tried alone, with nothing else in flight ──► acknowledged: acquitted
                                                         ──► failed 3 times, and others arrived in between: poisonous

A network that is bad for all proves nothing: a record is poisonous only where others arrive and it does not.
"""

from collections import Counter
from collections.abc import Sequence

STRIKES = 3
OTHERS = 8  # that have to arrive before a deferred record is tried once more


class Suspects:
    """alone: sequences that go in a message of their own; deferred: those that others are to overtake."""

    def __init__(self) -> None:
        self.alone: set[int] = set()
        self._blamed = Counter[int]()
        self._failed: dict[int, int] = {}  # the deferred: how often each has failed alone while others arrived
        self._arrived = 0  # since a deferred record was last tried

    @property
    def deferred(self) -> set[int]:
        return set(self._failed)

    @property
    def is_due(self) -> bool:
        return bool(self._failed) and self._arrived >= OTHERS

    def next(self) -> int | None:
        """The deferred record to try: the one that has failed least often."""
        return min(self._failed, key=lambda sequence: (self._failed[sequence], sequence), default=None)

    def acquit(self, sequences: Sequence[int]) -> None:
        """They have arrived, or are gone."""
        self._arrived += len(sequences)
        if self.alone or self._blamed or self._failed:
            for sequence in sequences:
                self.alone.discard(sequence)
                self._blamed.pop(sequence, None)
                self._failed.pop(sequence, None)

    def blame(self, sequences: Sequence[int]) -> int | None:
        """The connection broke at a message of these; return the record that is now proved to be poisonous."""
        if not sequences:
            return None
        first = sequences[0]
        if first in self._failed:
            others, self._arrived = self._arrived, 0
            self._failed[first] += bool(others)
            if self._failed[first] < STRIKES:
                return None
            self.acquit([first])
            return first
        self._blamed[first] += 1
        if self._blamed[first] >= STRIKES:
            del self._blamed[first]
            if len(sequences) > 1:
                self.alone.update(sequences)
            else:
                self._failed[first] = 0
                self._arrived = 0
        return None
