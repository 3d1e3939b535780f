"""Text of other tools' log forms to frame records, each form a reader.

    CsvReader           46408.58493,0x260,0,0,0,8,CP/7AAAAGIQ=              python-can
    GvretReader         166064000,0000021A,false,0,8,FE,36,12,              SavvyCAN, GVRET: microseconds
    CrtdReader          166.064000 R11 0000021A FE 36 12                    OVMS: [bus] R or T, 11 or 29 bits
    BusmasterReader     22:20:14:992 Rx 0 0000021A s 8 FE 36 12             BUSMASTER, hexadecimal; time of the day
    MicrochipReader     166064;RX;0x0000021A;3;0xFE;0x36;0x12;              CAN BUS Analyzer: milliseconds

Titles and remarks of a form are no bad lines. A form that numbers its buses has can0, can1 …; one that knows none
has can0.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from cy_core.frames cimport Frames
from cy_core.line_reader cimport LineReader, hex_of, read_hex, read_seconds, read_separator, read_whole
from cy_core.structs cimport ERROR_FRAME, EXTENDED_ID, FD_FRAME, ID_MASK, REMOTE_FRAME


cdef class CsvReader(LineReader):
    cdef bint _line(self, const uint8_t* c, const uint8_t* end, Frames frames) except -1 nogil:
        cdef int64_t time_us
        cdef uint64_t extended, remote, error, dlc
        cdef uint32_t can_id
        cdef uint8_t[64] data
        cdef int length
        c = read_separator(read_seconds(c, end, &time_us), end, 44)
        c = read_separator(read_hex(c, end, &can_id), end, 44) if c != NULL else NULL
        c = read_separator(read_whole(c, end, &extended), end, 44) if c != NULL else NULL
        c = read_separator(read_whole(c, end, &remote), end, 44) if c != NULL else NULL
        c = read_separator(read_whole(c, end, &error), end, 44) if c != NULL else NULL
        c = read_separator(read_whole(c, end, &dlc), end, 44) if c != NULL else NULL
        if c == NULL or dlc > 64 or can_id > (ID_MASK if extended else 0x7FF):
            return False
        length = _read_base64(c, end, data)
        if length != (0 if remote else <int>dlc):
            return False
        can_id |= (EXTENDED_ID if extended else 0) | (REMOTE_FRAME if remote else 0) | (ERROR_FRAME if error else 0)
        frames.push(time_us, can_id, self._channel_number(0), FD_FRAME if dlc > 8 else 0, data, <uint8_t>dlc)
        return True

    cdef bint _is_remark(self, const uint8_t* c, const uint8_t* end) noexcept nogil:
        return self.lines == 1


cdef class GvretReader(LineReader):
    cdef bint _line(self, const uint8_t* c, const uint8_t* end, Frames frames) except -1 nogil:
        cdef uint64_t time_us, bus, length
        cdef uint32_t can_id
        cdef uint8_t[64] data
        cdef bint extended
        c = read_separator(read_whole(c, end, &time_us), end, 44)
        c = read_separator(read_hex(c, end, &can_id), end, 44) if c != NULL else NULL
        if c == NULL or c == end:
            return False
        extended = c[0] | 32 == 116                     # true
        c = read_separator(_behind_word(c, end), end, 44)
        if c != NULL and c < end and 65 <= c[0] <= 90:  # newer files: Rx, Tx
            c = read_separator(_behind_word(c, end), end, 44)
        c = read_separator(read_whole(c, end, &bus), end, 44) if c != NULL else NULL
        c = read_whole(c, end, &length) if c != NULL else NULL
        if c == NULL or length > 64 or bus > 254 or can_id > (ID_MASK if extended else 0x7FF):
            return False
        if _read_bytes(c, end, 44, <int>length, data) == NULL:
            return False
        return _push(self, frames, <int64_t>time_us, can_id, extended, bus, data, <uint8_t>length)

    cdef bint _is_remark(self, const uint8_t* c, const uint8_t* end) noexcept nogil:
        return self.lines == 1


cdef class CrtdReader(LineReader):
    cdef bint _line(self, const uint8_t* c, const uint8_t* end, Frames frames) except -1 nogil:
        cdef int64_t time_us
        cdef uint64_t bus = 0
        cdef uint32_t can_id
        cdef uint8_t[64] data
        cdef bint extended
        cdef int length = 0
        c = read_separator(read_seconds(c, end, &time_us), end, 32)
        if c == NULL or c == end:
            return False
        if <uint8_t>(c[0] - 48) < 10:
            c = read_whole(c, end, &bus)
        if c == NULL or end - c < 4 or not (c[0] == 82 or c[0] == 84) or bus > 254:     # R, T
            return False
        extended = c[1] == 50                           # 29
        if not (extended and c[2] == 57 or c[1] == 49 and c[2] == 49):
            return False
        c = read_separator(c + 3, end, 32)
        c = read_hex(c, end, &can_id) if c != NULL else NULL
        if c == NULL or can_id > (ID_MASK if extended else 0x7FF):
            return False
        while length < 64 and _read_bytes(c, end, 32, 1, data + length) != NULL:
            c = _read_bytes(c, end, 32, 1, data + length)
            length += 1
        if not _is_end(c, end):
            return False
        return _push(self, frames, time_us, can_id, extended, bus, data, <uint8_t>length)

    cdef bint _is_remark(self, const uint8_t* c, const uint8_t* end) noexcept nogil:
        """Comments and events: `166.064000 CXX text`."""
        cdef int64_t time_us
        c = read_separator(read_seconds(c, end, &time_us), end, 32)
        while c != NULL and c < end and <uint8_t>(c[0] - 48) < 10:
            c += 1
        return c != NULL and c < end and (c[0] == 67 or c[0] == 69)


cdef class BusmasterReader(LineReader):
    cdef bint _line(self, const uint8_t* c, const uint8_t* end, Frames frames) except -1 nogil:
        cdef uint64_t hours, minutes, seconds, fraction, bus, length
        cdef uint32_t can_id
        cdef uint8_t[64] data
        cdef const uint8_t* start
        cdef bint extended, remote
        cdef int digits
        c = read_separator(read_whole(c, end, &hours), end, 58)
        c = read_separator(read_whole(c, end, &minutes), end, 58) if c != NULL else NULL
        c = read_separator(read_whole(c, end, &seconds), end, 58) if c != NULL else NULL
        if c == NULL or hours > 23 or minutes > 59 or seconds > 59:
            return False
        start = c
        c = read_whole(c, end, &fraction)
        digits = c - start if c != NULL else 7
        if digits > 6:
            return False
        for digits in range(digits, 6):
            fraction *= 10
        c = read_separator(_behind_word(read_separator(c, end, 32), end), end, 32)      # Rx, Tx
        c = read_separator(read_whole(c, end, &bus), end, 32) if c != NULL else NULL
        c = read_separator(read_hex(c, end, &can_id), end, 32) if c != NULL else NULL
        if c == NULL or c == end or bus > 254:
            return False
        extended = c[0] == 120                          # s, x, and r behind for remote
        remote = end - c > 1 and c[1] == 114
        c = read_separator(_behind_word(c, end), end, 32)
        c = read_whole(c, end, &length) if c != NULL else NULL
        if c == NULL or length > 64 or can_id > (ID_MASK if extended else 0x7FF):
            return False
        if remote:
            can_id |= REMOTE_FRAME
        elif _read_bytes(c, end, 32, <int>length, data) == NULL:
            return False
        return _push(
            self, frames, 1_000_000 * <int64_t>(3600 * hours + 60 * minutes + seconds) + <int64_t>fraction, can_id,
            extended, bus, data, <uint8_t>length,
        )

    cdef bint _is_remark(self, const uint8_t* c, const uint8_t* end) noexcept nogil:
        return end - c >= 3 and c[0] == 42 and c[1] == 42 and c[2] == 42


cdef class MicrochipReader(LineReader):
    cdef bint _line(self, const uint8_t* c, const uint8_t* end, Frames frames) except -1 nogil:
        cdef uint64_t time_ms, length
        cdef uint32_t can_id
        cdef uint8_t[64] data
        c = read_separator(read_whole(c, end, &time_ms), end, 59)
        c = read_separator(_behind_word(c, end), end, 59)
        c = read_separator(read_hex(c, end, &can_id), end, 59) if c != NULL else NULL
        c = read_whole(c, end, &length) if c != NULL else NULL
        if c == NULL or length > 64 or can_id > ID_MASK or time_ms > 1_000_000_000_000_000ULL:
            return False
        if _read_bytes(c, end, 59, <int>length, data) == NULL:
            return False
        return _push(self, frames, 1000 * <int64_t>time_ms, can_id, can_id > 0x7FF, 0, data, <uint8_t>length)

    cdef bint _is_remark(self, const uint8_t* c, const uint8_t* end) noexcept nogil:
        """The title, up to its second rule."""
        return self.lines <= 6


cdef bint _push(
    LineReader reader, Frames frames, int64_t time_us, uint32_t can_id, bint extended, uint64_t bus,
    const uint8_t* data, uint8_t length,
) except -1 nogil:
    cdef int number = reader._channel_number(bus)
    if number < 0 or (length > 8 and can_id & REMOTE_FRAME):
        return False
    frames.push(
        time_us, can_id | (EXTENDED_ID if extended else 0), <uint8_t>number, FD_FRAME if length > 8 else 0, data, length
    )
    return True


cdef const uint8_t* _read_bytes(
    const uint8_t* c, const uint8_t* end, uint8_t separator, int count, uint8_t* data
) noexcept nogil:
    """Read count bytes of two hex digits, each behind a separator; return what is behind them, or NULL."""
    cdef uint32_t value
    cdef const uint8_t* start
    cdef int i
    for i in range(count):
        start = c = read_separator(c, end, separator)
        c = read_hex(c, end, &value) if c != NULL else NULL
        if c == NULL or value > 255 or c - start > 4:
            return NULL
        data[i] = <uint8_t>value
    return c


cdef const uint8_t* _behind_word(const uint8_t* c, const uint8_t* end) noexcept nogil:
    """What is behind the letters here, or NULL. c may be NULL."""
    if c == NULL or c == end or not 97 <= c[0] | 32 <= 122:
        return NULL
    while c < end and 97 <= c[0] | 32 <= 122:
        c += 1
    return c


cdef bint _is_end(const uint8_t* c, const uint8_t* end) noexcept nogil:
    while c < end and (c[0] == 32 or c[0] == 13):
        c += 1
    return c == end


cdef int _read_base64(const uint8_t* c, const uint8_t* end, uint8_t* data) noexcept nogil:
    """Decode up to 64 bytes to the end of the line; return how many, or -1."""
    cdef uint32_t group = 0
    cdef int bits = 0, length = 0, value
    while c < end and c[0] != 61 and c[0] != 13:        # =
        if 65 <= c[0] <= 90:
            value = c[0] - 65
        elif 97 <= c[0] <= 122:
            value = c[0] - 71
        elif 48 <= c[0] <= 57:
            value = c[0] + 4
        elif c[0] == 43:
            value = 62
        elif c[0] == 47:
            value = 63
        else:
            return -1
        group = (group << 6 | <uint32_t>value) & 0xFFFFFF
        bits += 6
        if bits >= 8:
            if length == 64:
                return -1
            bits -= 8
            data[length] = <uint8_t>(group >> bits)
            length += 1
        c += 1
    return length
