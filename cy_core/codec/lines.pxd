"""Times as straight lines through (row, time): how many rows, where it begins, how steep it is.

Each row lies within the tolerance of its line. How steep is in 2^-16 microseconds a row.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from cy_core.codec.coder cimport coder_t
from cy_core.codec.models cimport mix, models_t
from cy_core.codec.number cimport code_residual

cdef enum:
    LINES = 0x110000            # keys below a group's
    SLOPE_BITS = 16             # behind the point
    LONGEST = 1 << 20           # rows of a line

cdef extern from *:
    """
    #define bordnetz_signal_time_max (1LL << 54)
    #define bordnetz_slope_max (1LL << 41)
    """
    const int64_t SLOPE_MAX "bordnetz_slope_max"
    const int64_t TIME_MAX "bordnetz_signal_time_max"


cdef inline void code_lines(
    coder_t* coder, models_t* models, uint32_t group_key, int64_t base, int64_t* times, uint32_t rows, uint32_t tolerance
) noexcept nogil:
    """times: of the rows; read or written. base: where the first line is expected."""
    cdef uint32_t i = 0, j, key = mix(group_key, LINES)
    cdef int64_t length = 0, start = base, slope = 0, expected = base, new_slope = 0
    while i < rows and not coder.failed:
        if not coder.reading:
            length = _choose_line(times + i, rows - i, tolerance, expected, slope, &start, &new_slope)
        length = wrapping_sum(1, code_residual(coder, models, mix(key, 1), 0, length - 1))
        expected = wrapping_sum(expected, code_residual(coder, models, mix(key, 2), i == 0, start - expected))
        if length > 1:
            slope = wrapping_sum(slope, code_residual(coder, models, mix(key, 3), i == 0, new_slope - slope))
        if (
            not 1 <= length <= rows - i
            or not -TIME_MAX < expected < TIME_MAX
            or not 0 <= slope <= SLOPE_MAX
        ):
            coder.failed = True
            return
        if coder.reading:
            for j in range(<uint32_t>length):
                times[i + j] = _on_line(expected, slope, j)
        i += <uint32_t>length
        expected = _on_line(expected, slope, length)


cdef inline int64_t wrapping_sum(int64_t a, int64_t b) noexcept nogil:
    """What is read may be anything, and is checked behind."""
    return <int64_t>(<uint64_t>a + <uint64_t>b)


cdef inline int64_t _on_line(int64_t start, int64_t slope, int64_t row) noexcept nogil:
    return start + ((slope * row + (1 << (SLOPE_BITS - 1))) >> SLOPE_BITS)


cdef inline int64_t _choose_line(
    const int64_t* times, uint32_t count, int64_t tolerance, int64_t expected, int64_t slope,
    int64_t* start, int64_t* new_slope
) noexcept nogil:
    """How many rows the line that reaches furthest has, with where it begins and how steep it is.

    It may begin where it is expected to, or round steps from there: first as near to the first time as can be.
    """
    cdef int64_t step = 1, first, at, length, best = 0, low = 0, high = 0, k
    while step <= tolerance >> 3:
        step <<= 1
    first = expected + (times[0] - expected) // step * step
    for k in range(-1, 20):
        at = expected if k < 0 else first + ((k + 1) >> 1) * (step if k & 1 else -step)
        if not -tolerance <= times[0] - at <= tolerance:
            continue
        length = _reach(times, count, tolerance, at, &low, &high)
        if length > best:
            best, start[0], new_slope[0] = length, at, _roundest(low, high, slope)
            if best == min(<int64_t>count, LONGEST):
                break
    if best == 0:  # a time that is too far from what is expected for a step from there
        start[0] = times[0]
        best = _reach(times, count, tolerance, times[0], &low, &high)
        new_slope[0] = _roundest(low, high, slope)
    return best


cdef inline int64_t _reach(
    const int64_t* times, uint32_t count, int64_t tolerance, int64_t start, int64_t* low, int64_t* high
) noexcept nogil:
    """How many rows one line from start on comes within the tolerance of; it may be low to high steep."""
    cdef int64_t row, from_low, to_high
    low[0], high[0] = 0, SLOPE_MAX
    for row in range(1, min(<int64_t>count, LONGEST)):
        if not 0 <= times[row] - start + tolerance < 1LL << 44:
            return row
        # slope * row + 1/2 within the tolerance, whatever is cut off behind the point
        from_low = ((times[row] - start - tolerance) << SLOPE_BITS) // row + 1 if times[row] - start > tolerance else 0
        to_high = ((times[row] - start + tolerance) << SLOPE_BITS) // row
        if max(low[0], from_low) > min(high[0], to_high):
            return row
        low[0], high[0] = max(low[0], from_low), min(high[0], to_high)
    return min(<int64_t>count, LONGEST)


cdef inline int64_t _roundest(int64_t low, int64_t high, int64_t before) noexcept nogil:
    """The steepness of the line before where that will do, else the one with the most zeros at its end."""
    cdef int64_t step = 1
    if low <= before <= high:
        return before
    while step < 1LL << 40 and (low + 2 * step - 1) & -(2 * step) <= high:
        step <<= 1
    return (low + step - 1) & -step
