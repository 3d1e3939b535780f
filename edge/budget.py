"""What each priority may cost a day, and what it has cost today. The day is that of the vehicle's clock, in UTC.

Charged is what goes out, also when it has to go out again. What was charged is kept with the acknowledgements, so
a restart does not begin the day anew.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec

CURSOR = "uplink: spent today"


class _Kept(msgspec.Struct):
    day: str = ""
    spent: dict[int, int] = {}


def today() -> str:
    return datetime.now(UTC).date().isoformat()


class Budget:
    """kept: what encode() gave, or None. Damaged, it counts as nothing spent."""

    def __init__(self, kept: bytes | None = None, day: Callable[[], str] = today) -> None:
        self._today = day
        try:
            found = msgspec.json.decode(kept, type=_Kept) if kept else _Kept()
        except msgspec.DecodeError:
            found = _Kept()
        self._day = found.day
        self._spent = Counter(found.spent)

    def encode(self) -> bytes:
        return msgspec.json.encode(_Kept(self._day, dict(self._spent)))

    def left(self, limits: Mapping[int, int]) -> dict[int, int]:
        """Bytes that each limited priority may still cost today."""
        if self._day != (day := self._today()):
            self._day = day
            self._spent.clear()
        return {priority: max(0, limit - self._spent[priority]) for priority, limit in limits.items()}

    def charge(self, bytes_by_priority: Mapping[int, int]) -> None:
        self._spent.update(bytes_by_priority)
