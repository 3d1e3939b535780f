"""A value and what is coded for it: its raw bits; with a step of k raw units (k odd), the nearest multiple's number.

So a value is wrong by (k - 1) / 2 raw units at most.
"""
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from cy_core.plan cimport signal_t


cdef inline bint can_step(const signal_t* signal) noexcept nogil:
    """A step is for integers of up to 62 bits; anything else stays exact."""
    return signal.length <= 62 and signal.format != 101 and signal.format != 102 and signal.format != 100  # e f d


cdef inline uint64_t _mask(const signal_t* signal) noexcept nogil:
    return 0xFFFFFFFFFFFFFFFFULL >> (64 - signal.length)


cdef inline uint64_t to_coded(const signal_t* signal, int64_t step, const uint8_t* value) noexcept nogil:
    cdef uint64_t raw = 0
    cdef int64_t number, rest
    memcpy(&raw, value, signal.width)
    if step != 1:
        raw &= _mask(signal)
        number = <int64_t>((raw ^ signal.sign) - signal.sign) + (step >> 1)
        rest = number % step
        raw = <uint64_t>((number - (rest if rest >= 0 else rest + step)) // step)
    return raw & _mask(signal)


cdef inline uint64_t from_coded(const signal_t* signal, int64_t step, uint64_t coded) noexcept nogil:
    cdef int64_t low, high, number
    coded = (coded ^ signal.sign) - signal.sign
    if step == 1:
        return coded
    low = -<int64_t>signal.sign
    high = <int64_t>(_mask(signal) >> (signal.sign != 0))
    number = <int64_t>(coded * <uint64_t>step)
    return <uint64_t>(low if number < low else high if number > high else number)
