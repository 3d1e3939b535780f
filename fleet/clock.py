"""What time it was: a vehicle without a battery-backed clock learns it late.

blocks of one boot    1 unknown   2 system   3 synchronised   4 synchronised
offset that is used   └──────── that of 3 ───────┘            that of 4

A live clock that says a time before this project, or one later than the cloud's own, is as good as unknown.
"""

from bisect import bisect_left, insort

from edge.message import Clock, Quality

EARLIEST_US = 1_420_070_400_000_000  # 2015-01-01
AHEAD_US = 86_400_000_000  # of the cloud's clock
CALENDAR_US = (-62_135_596_800_000_000, 253_402_300_800_000_000)  # years 1 to 9999


def bounds_us(clock: Clock, enqueued_us: int) -> tuple[int, int]:
    """Times of samples that can be, first and last; those of a recording are taken as they are."""
    if clock.quality == Quality.RECORDED:
        return CALENDAR_US[0], CALENDAR_US[1] - 1
    return EARLIEST_US, enqueued_us + AHEAD_US


def trusted(clock: Clock, enqueued_us: int) -> Quality:
    """How far an offset to a boot's clock can be trusted, once one knows when the cloud had it."""
    first, last = bounds_us(clock, enqueued_us)
    return clock.quality if first <= clock.utc_offset_us <= last or not clock.boot_id else Quality.UNKNOWN


class Clocks:
    """All clocks of all blocks of a vehicle; then the offset for each. Sequences order the blocks of a boot in time."""

    def __init__(self) -> None:
        self._anchors: dict[bytes, dict[Quality, list[tuple[int, int]]]] = {}

    def add(self, sequence: int, clock: Clock, enqueued_us: int) -> None:
        if clock.boot_id:
            of_boot = self._anchors.setdefault(clock.boot_id, {})
            insort(of_boot.setdefault(trusted(clock, enqueued_us), []), (sequence, clock.utc_offset_us))

    def utc_offset_us(self, sequence: int, clock: Clock, enqueued_us: int) -> int:
        """The block's own, unless the boot has a better clock: then that of the next block that has it, or the last."""
        if clock.quality == Quality.RECORDED or not clock.boot_id:
            return clock.utc_offset_us
        of_boot = self._anchors[clock.boot_id]
        best = max(of_boot)
        if trusted(clock, enqueued_us) == best:
            return clock.utc_offset_us
        anchors = of_boot[best]
        return anchors[min(bisect_left(anchors, (sequence, 0)), len(anchors) - 1)][1]
