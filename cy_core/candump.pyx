"""Text of candump's log form (`candump -l`, `canplayer`) to frame records.

    (1436509052.249713) vcan0 044#2A366C2BBA
    (1436509052.449847) can0 12345678##5112233445566        CAN FD: ##, one hex digit of flags
    (1436509052.449850) can1 123#R4                          remote frame

Bytes in, records out; a line that is no frame is counted, and the first few are kept for the person who asks.
Form: can-utils, lib.c parse_canframe() and asc2log/log2asc.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t

from cy_core.frames cimport Frames
from cy_core.line_reader cimport LineReader
from cy_core.structs cimport ERROR_FRAME, EXTENDED_ID, FD_FRAME, ID_MASK, REMOTE_FRAME

cdef uint8_t[256] HEX


cdef void _make_hex() noexcept:
    cdef int i
    for i in range(256):
        HEX[i] = 0xFF
    for i in range(10):
        HEX[48 + i] = i
    for i in range(6):
        HEX[65 + i] = HEX[97 + i] = 10 + i


_make_hex()

cdef class CandumpReader(LineReader):
    """Parses a log piece by piece."""

    cdef bint _line(self, const uint8_t* c, const uint8_t* end, Frames frames) except -1 nogil:
        """Append the line's frame; False if there is none in it."""
        cdef int64_t time_us
        cdef uint32_t can_id = 0
        cdef uint8_t flags = 0, length = 0, high, low
        cdef uint8_t[64] data
        cdef const uint8_t* start
        cdef int bus, digits

        if end - c < 12 or c[0] != 40:  # (
            return False
        c = _read_time(c + 1, end, &time_us)
        if c == NULL:
            return False
        start = c
        while c < end and c[0] != 32:
            c += 1
        bus = self._bus_number(start, c - start)
        if bus < 0 or c == end:
            return False
        c += 1

        start = c
        while c < end and HEX[c[0]] != 0xFF and c - start < 8:
            can_id = can_id << 4 | HEX[c[0]]
            c += 1
        digits = c - start
        if digits == 0 or c == end or c[0] != 35:  # #
            return False
        if digits > 3:
            can_id &= ID_MASK | ERROR_FRAME
            if not can_id & ERROR_FRAME:
                can_id |= EXTENDED_ID
        elif can_id > 0x7FF:
            return False
        c += 1

        if c < end and c[0] == 35:
            if c + 1 >= end or HEX[c[1]] == 0xFF:
                return False
            flags = HEX[c[1]] & 3 | FD_FRAME
            c += 2
        elif c < end and (c[0] == 82 or c[0] == 114):  # R
            can_id |= REMOTE_FRAME
            c += 1
            if c < end and 48 <= c[0] <= 56:
                length = c[0] - 48
                c += 1
        if not can_id & REMOTE_FRAME:
            while c + 1 < end:
                high, low = HEX[c[0]], HEX[c[1]]
                if (high | low) & 0xF0:
                    if c[0] != 46:  # a dot may stand between bytes
                        break
                    c += 1
                    continue
                if length == (64 if flags else 8):
                    return False
                data[length] = high << 4 | low
                length += 1
                c += 2
        # Behind the data: nothing, white space, or `_D` (a raw DLC over 8), or ` R` / ` T` (direction).
        if c < end and c[0] != 32 and c[0] != 13 and c[0] != 95 and c[0] != 9:
            return False
        frames.push(time_us, can_id, bus, flags, data, length)
        return True


cdef inline const uint8_t* _read_time(const uint8_t* c, const uint8_t* end, int64_t* time_us) noexcept nogil:
    """Read `seconds.fraction) `; return what is behind it, or NULL. Digits below a microsecond are cut."""
    cdef int64_t seconds = 0, fraction = 0
    cdef int digits = 0
    while c < end and <uint8_t>(c[0] - 48) < 10:
        seconds = 10 * seconds + (c[0] - 48)
        c += 1
        digits += 1
        if digits > 12:
            return NULL
    if digits == 0:
        return NULL
    digits = 0
    if c < end and c[0] == 46:
        c += 1
        while c < end and <uint8_t>(c[0] - 48) < 10:
            if digits < 6:
                fraction = 10 * fraction + (c[0] - 48)
                digits += 1
            c += 1
    while digits < 6:
        fraction *= 10
        digits += 1
    if end - c < 2 or c[0] != 41 or c[1] != 32:
        return NULL
    time_us[0] = 1_000_000 * seconds + fraction
    return c + 2
