"""What readers of text logs share: lines of a text that comes in pieces, bus names, numbers in digits."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from cy_core.frames cimport Frames

cdef enum:
    MAX_BUSES = 255
    MAX_BUS_NAME = 31


cdef struct bus_t:
    uint8_t length
    char[MAX_BUS_NAME] name


cdef class LineReader:
    cdef bus_t[MAX_BUSES] _buses
    cdef int _bus_count
    cdef readonly Py_ssize_t lines, bad_lines
    cdef readonly list first_bad_lines

    # Of each form. A line begins at c; end is not readable.
    cdef bint _line(self, const uint8_t* c, const uint8_t* end, Frames frames) except -1 nogil
    cdef bint _is_remark(self, const uint8_t* c, const uint8_t* end) noexcept nogil

    cdef int _bus_number(self, const uint8_t* name, Py_ssize_t length) noexcept nogil
    cdef int _channel_number(self, uint64_t channel) noexcept nogil


cdef inline uint8_t hex_of(uint8_t c) noexcept nogil:
    """The digit's value; 255: none."""
    if 48 <= c <= 57:
        return c - 48
    c |= 32
    return c - 87 if 97 <= c <= 102 else 255


cdef inline const uint8_t* read_hex(const uint8_t* c, const uint8_t* end, uint32_t* number) noexcept nogil:
    """Read one to eight hex digits, with or without 0x; return what is behind them, or NULL."""
    cdef int digits = 0
    if end - c > 2 and c[0] == 48 and c[1] | 32 == 120:
        c += 2
    number[0] = 0
    while c < end and hex_of(c[0]) != 255:
        number[0] = number[0] << 4 | hex_of(c[0])
        c += 1
        digits += 1
    return c if 1 <= digits <= 8 else NULL


cdef inline const uint8_t* read_whole(const uint8_t* c, const uint8_t* end, uint64_t* number) noexcept nogil:
    """Read up to 18 decimal digits; return what is behind them, or NULL."""
    cdef int digits = 0
    number[0] = 0
    while c < end and <uint8_t>(c[0] - 48) < 10:
        number[0] = 10 * number[0] + (c[0] - 48)
        c += 1
        digits += 1
    return c if 1 <= digits <= 18 else NULL


cdef inline const uint8_t* read_seconds(const uint8_t* c, const uint8_t* end, int64_t* time_us) noexcept nogil:
    """Read `seconds.fraction`, rounded to microseconds; return what is behind it, or NULL."""
    cdef uint64_t seconds
    cdef int64_t fraction = 0
    cdef int digits = 0
    c = read_whole(c, end, &seconds)
    if c == NULL or seconds >= 1_000_000_000_000ULL:
        return NULL
    if c < end and c[0] == 46:
        c += 1
        while c < end and <uint8_t>(c[0] - 48) < 10:
            if digits < 6:
                fraction = 10 * fraction + (c[0] - 48)
            elif digits == 6:
                fraction += c[0] >= 53
            digits += 1
            c += 1
    while digits < 6:
        fraction *= 10
        digits += 1
    time_us[0] = 1_000_000 * <int64_t>seconds + fraction
    return c


cdef inline const uint8_t* read_separator(const uint8_t* c, const uint8_t* end, uint8_t separator) noexcept nogil:
    """Read it (any number of them if it is a space); return what is behind it, or NULL. c may be NULL."""
    if c == NULL or c == end or c[0] != separator:
        return NULL
    c += 1
    while separator == 32 and c < end and c[0] == 32:
        c += 1
    return c
