"""What time it was: a vehicle without a battery-backed clock learns it late.

blocks of one boot    1 unknown   2 system   3 synchronised   4 synchronised
offset that is used   └──────── that of 3 ───────┘            that of 4
"""

from bisect import bisect_left, insort

from edge.message import Clock, Quality


class Clocks:
    """All clocks of all blocks; then the offset for each. Sequences order the blocks of a boot in time."""

    def __init__(self) -> None:
        self._anchors: dict[tuple[str, bytes], dict[Quality, list[tuple[int, int]]]] = {}

    def add(self, vehicle: str, sequence: int, clock: Clock) -> None:
        if clock.boot_id:
            of_boot = self._anchors.setdefault((vehicle, clock.boot_id), {})
            insort(of_boot.setdefault(clock.quality, []), (sequence, clock.utc_offset_us))

    def utc_offset_us(self, vehicle: str, sequence: int, clock: Clock) -> int:
        """The block's own, unless the boot has a better clock: then that of the next block that has it, or the last."""
        if clock.quality == Quality.RECORDED or not clock.boot_id:
            return clock.utc_offset_us
        of_boot = self._anchors[vehicle, clock.boot_id]
        best = max(of_boot)
        if clock.quality == best:
            return clock.utc_offset_us
        anchors = of_boot[best]
        return anchors[min(bisect_left(anchors, (sequence, 0)), len(anchors) - 1)][1]
