"""Times as multiples of a tick, and the unit that all of them share."""
from libc.stdint cimport int64_t


cdef inline int64_t round_to(int64_t time_us, int64_t tick_us) noexcept nogil:
    """To the nearest multiple; up from the middle."""
    cdef int64_t rest = time_us % tick_us
    if rest < 0:
        rest += tick_us
    return time_us - rest + (tick_us if 2 * rest >= tick_us else 0)


cdef inline int64_t common_divisor(int64_t unit, int64_t difference) noexcept nogil:
    """The greatest; of 0 and a difference that difference, without its sign."""
    cdef int64_t rest
    if difference < 0:
        difference = -difference
    while difference:
        rest = unit % difference
        unit, difference = difference, rest
    return unit
