"""Defects on purpose, each behind four bytes that no blind change finds: `make fuzz` must, or it sees nothing.

Part of the sanitized build alone.
"""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy


def read_behind_the_end(const uint8_t[::1] data not None):
    """Reads one byte behind data, for AddressSanitizer."""
    if _word(data) == 0x0E713AC5:
        return (&data[0])[data.shape[0]]
    return 0


def shift_too_far(const uint8_t[::1] data not None):
    """Shifts 32 bits by 243, for UndefinedBehaviorSanitizer."""
    if _word(data) == 0x6B20D4F3:
        return <uint32_t>1 << data[0]
    return 0


cdef uint32_t _word(const uint8_t[::1] data) noexcept:
    cdef uint32_t word = 0
    if data.shape[0] >= 4:
        memcpy(&word, &data[0], 4)
    return word
