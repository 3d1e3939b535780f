"""A signal's value, as it lies in a column, and what is coded for it.

That is its raw bits; with a step of k raw units (k odd) the nearest multiple, divided by k. What comes back is within
the range of the bits, and off by (k - 1) / 2 at most.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cy_core.columns cimport column_t
from cy_core.plan cimport signal_t


cdef inline bint can_step(const signal_t* signal) noexcept nogil:
    """A step is for integers of up to 62 bits; anything else stays exact."""
    return signal.length <= 62 and signal.format != 101 and signal.format != 102 and signal.format != 100  # e f d


cdef inline uint64_t mask_of(const signal_t* signal) noexcept nogil:
    return 0xFFFFFFFFFFFFFFFFULL >> (64 - signal.length)


cdef inline const uint8_t* cell_at(const uint8_t* values, const column_t* column, uint32_t row) noexcept nogil:
    return values + (0 if column.is_constant else row * <uint64_t>column.width)


cdef inline uint64_t raw_of(const signal_t* signal, const uint8_t* value) noexcept nogil:
    """Sign-extended."""
    cdef uint64_t raw = 0
    memcpy(&raw, value, signal.width)
    return ((raw & mask_of(signal)) ^ signal.sign) - signal.sign


cdef inline bint has_rests(
    const signal_t* signal, int64_t step, const uint8_t* values, const column_t* column, uint32_t rows
) noexcept nogil:
    """Is there a value that its step would change?"""
    cdef uint32_t row
    cdef const uint8_t* value
    for row in range(1 if column.is_constant else rows):
        value = cell_at(values, column, row)
        if from_coded(signal, step, to_coded(signal, step, value)) != raw_of(signal, value):
            return True
    return False


cdef inline uint64_t to_coded(const signal_t* signal, int64_t step, const uint8_t* value) noexcept nogil:
    cdef uint64_t raw = 0
    cdef int64_t number, rest
    memcpy(&raw, value, signal.width)
    if step != 1:
        raw &= mask_of(signal)
        number = <int64_t>((raw ^ signal.sign) - signal.sign) + (step >> 1)
        rest = number % step
        raw = <uint64_t>((number - (rest if rest >= 0 else rest + step)) // step)
    return raw & mask_of(signal)


cdef inline uint64_t from_coded(const signal_t* signal, int64_t step, uint64_t coded) noexcept nogil:
    cdef int64_t low, high, number
    coded = (coded ^ signal.sign) - signal.sign
    if step == 1:
        return coded
    low = -<int64_t>signal.sign
    high = <int64_t>(mask_of(signal) >> (signal.sign != 0))
    number = <int64_t>(coded * <uint64_t>step)
    return <uint64_t>(low if number < low else high if number > high else number)
