"""What the cloud side says it has of an outbox: written into the uplink's twin, read by the uplink.

    {"confirmed": {"<outbox id, hex>": {"until": 5230, "gaps": "17-19,4001"}}}

All sequences up to `until` have arrived, or the vehicle's own ledger explains them, except those in `gaps`.
"""

import re
from typing import Annotated, Protocol

import msgspec

MAX_GAPS_BYTES = 3500  # a twin's value may have 4096
_GAPS = re.compile(r"(\d{1,18}(-\d{1,18})?(,\d{1,18}(-\d{1,18})?)*)?")


class HasRange(Protocol):
    @property
    def first_sequence(self) -> int: ...
    @property
    def last_sequence(self) -> int: ...


class Confirmation(msgspec.Struct, frozen=True):
    """gaps: inclusive ranges in growing order, as text."""

    until: Annotated[int, msgspec.Meta(ge=0, lt=1 << 52)]
    gaps: str = ""

    def __post_init__(self) -> None:
        if not _GAPS.fullmatch(self.gaps):
            raise ValueError(f"gaps {self.gaps[:40]!r} are no ranges; give for example 17-19,4001")

    @classmethod
    def of(cls, until: int, gaps: list[tuple[int, int]]) -> "Confirmation":
        """As much as a twin's value can hold: with too many gaps it ends before the first that has no room."""
        texts: list[str] = []
        size = 0
        for first, last in gaps:
            text = f"{first}-{last}" if first < last else str(first)
            size += len(text) + 1
            if size > MAX_GAPS_BYTES:
                until = first - 1
                break
            texts.append(text)
        return cls(until, ",".join(texts))

    def ranges(self) -> list[tuple[int, int]]:
        pairs = (text.partition("-") for text in self.gaps.split(",") if text)
        return [(int(first), int(last or first)) for first, _, last in pairs]

    def has(self, sequence: int) -> bool:
        """Whether the cloud has this record."""
        return sequence <= self.until and not any(first <= sequence <= last for first, last in self.ranges())

    def covers(self, entry: HasRange) -> bool:
        """Whether it says anything about all of an eviction's sequences."""
        return entry.last_sequence <= self.until

    def misses(self, entry: HasRange) -> bool:
        """Whether one of an eviction's sequences is a gap to the cloud: then it has not got the eviction."""
        return any(first <= entry.last_sequence and last >= entry.first_sequence for first, last in self.ranges())
