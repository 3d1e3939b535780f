"""Sets of whole numbers that mostly lie side by side: sequences, frame numbers. Ranges are inclusive."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]


class Ranges:
    """Costs memory by the range, not by the number."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def __iter__(self) -> Iterator[Range]:
        return zip(self._firsts, self._lasts, strict=True)

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._firsts, number) - 1
        return place >= 0 and number <= self._lasts[place]

    @property
    def last(self) -> int | None:
        return self._lasts[-1] if self._lasts else None

    def add(self, first: int, last: int) -> None:
        """Put in first..last; nothing if last is less than first."""
        if last < first:
            return
        low = bisect_right(self._lasts, first - 2)  # the first range that touches or follows the new one
        high = bisect_right(self._firsts, last + 1)  # behind the last one that does
        if low < high:
            first, last = min(first, self._firsts[low]), max(last, self._lasts[high - 1])
        self._firsts[low:high] = [first]
        self._lasts[low:high] = [last]

    def missing(self, first: int, last: int) -> list[Range]:
        """What of first..last is not in here."""
        found = []
        for place in range(max(0, bisect_right(self._firsts, first) - 1), len(self._firsts)):
            if self._firsts[place] > last:
                break
            if self._firsts[place] > first:
                found.append((first, self._firsts[place] - 1))
            first = max(first, self._lasts[place] + 1)
        return [*found, (first, last)] if first <= last else found


def show(ranges: Iterable[Range], most: int = 8) -> str:
    """For people: `3, 7-9 and 2 more`."""
    given = list(ranges)
    shown = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in given[:most])
    return shown + (f" and {len(given) - most} more" if len(given) > most else "") if given else "none"
