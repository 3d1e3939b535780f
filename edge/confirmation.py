"""What the cloud side says it has of an outbox: written into the uplink's twin, read by the uplink.

    {"confirmed": {"<outbox id, hex>": {"until": 5230, "gaps": "17-19,4001", "evictions": "0a1b2c3d"}}}

All sequences from `first` (1) to `until` have arrived, or certainly left the outbox unsent, except those in `gaps`.
Which of the vehicle's evictions have arrived, `evictions` says by name.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Protocol

import msgspec

from cy_core.crc32c import crc32c

MAX_TEXT_BYTES = 3500  # a twin's value may have 4096
_GAPS = re.compile(r"(\d{1,18}(-\d{1,18})?(,\d{1,18}(-\d{1,18})?)*)?")
_NAMES = re.compile(r"([0-9a-f]{8}(,[0-9a-f]{8})*)?")
_Sequence = Annotated[int, msgspec.Meta(ge=0, lt=1 << 52)]


class EvictionLike(Protocol):
    @property
    def first_sequence(self) -> int: ...
    @property
    def last_sequence(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def stream(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def time_us(self) -> int: ...


class Confirmation(msgspec.Struct, frozen=True):
    """gaps: inclusive ranges in growing order, as text; evictions: names, with commas between.

    Written whole, also what is empty: a twin merges.
    """

    until: _Sequence
    gaps: str = ""
    evictions: str = ""
    first: _Sequence = 1

    def __post_init__(self) -> None:
        if not _GAPS.fullmatch(self.gaps):
            raise ValueError(f"gaps {self.gaps[:40]!r} are no ranges; give for example 17-19,4001")
        if not _NAMES.fullmatch(self.evictions):
            raise ValueError(f"evictions {self.evictions[:40]!r} are no names of 8 hex digits with commas between")

    @classmethod
    def of(cls, until: int, gaps: Iterable[tuple[int, int]], evictions: str = "", first: int = 1) -> "Confirmation":
        """As much as a twin's value can hold: with too many gaps it ends before the first that has no room."""
        texts: list[str] = []
        size = 0
        for low, high in gaps:
            text = f"{low}-{high}" if low < high else str(low)
            size += len(text) + 1
            if size > MAX_TEXT_BYTES:
                until = low - 1
                break
            texts.append(text)
        return cls(until, ",".join(texts), evictions, first)

    def ranges(self) -> list[tuple[int, int]]:
        return _ranges(self.gaps)

    def has(self, sequence: int) -> bool:
        """Whether the cloud has this record."""
        return self.first <= sequence <= self.until and not any(a <= sequence <= b for a, b in self.ranges())

    def knows(self, eviction: EvictionLike) -> bool:
        """Whether the cloud has been told of this eviction."""
        return name_of(eviction) in self.evictions.split(",")


def name_of(eviction: EvictionLike) -> str:
    """One eviction among those of an outbox, in 8 hex digits."""
    ends = f"{eviction.first_sequence}-{eviction.last_sequence},{eviction.count},{eviction.time_us}"
    return f"{crc32c(f'{ends},{eviction.reason},{eviction.stream}'.encode()):08x}"


def names_of(evictions: Iterable[EvictionLike]) -> str:
    """The names of as many of the first ones as a twin's value can hold."""
    names = dict.fromkeys(name_of(eviction) for eviction in evictions)
    return ",".join(list(names)[: (MAX_TEXT_BYTES + 1) // 9])


@lru_cache(16)
def _ranges(gaps: str) -> list[tuple[int, int]]:
    pairs = (text.partition("-") for text in gaps.split(",") if text)
    return [(int(first), int(last or first)) for first, _, last in pairs]
