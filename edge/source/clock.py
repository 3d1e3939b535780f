"""The vehicle's clocks: one that never jumps, and its offset to UTC as well as it is known.

Frames are stamped with the monotonic clock of this boot (CLOCK_BOOTTIME, which goes on in suspend); a block carries
the offset to UTC, so that a clock that is set late by GPS or NTP never reorders samples.
"""

import ctypes
import time
from functools import cache
from pathlib import Path

from edge.message import Clock, Quality

STA_UNSYNC = 0x0040  # <linux/timex.h>
_libc = ctypes.CDLL(None)


@cache
def boot_id() -> bytes:
    """The kernel's 16 random bytes for this boot."""
    try:
        return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return b""


def now_us() -> int:
    """Microseconds since boot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def utc_offset_us() -> int:
    """UTC by the system clock, less now_us()."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    utc = time.clock_gettime_ns(time.CLOCK_REALTIME)
    after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return (utc - (before + after) // 2) // 1000


def read_clock() -> Clock:
    """The offset as it is now, and whether the kernel takes the system clock for synchronised."""
    return Clock(boot_id(), utc_offset_us(), Quality.SYNCHRONISED if _is_synchronised() else Quality.SYSTEM)


def _is_synchronised() -> bool:
    """adjtimex(2), asked without setting anything: struct timex begins with `modes`, `status` follows 4 longs on."""
    timex = ctypes.create_string_buffer(512)
    if _libc.adjtimex(timex) < 0:
        return False
    status = ctypes.c_int.from_buffer(timex, 5 * ctypes.sizeof(ctypes.c_long)).value
    return not status & STA_UNSYNC
