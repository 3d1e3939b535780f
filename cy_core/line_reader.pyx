"""The lines of a text log, piece by piece: those that are frames, and those that are not, counted and named."""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

from cy_core.frames cimport Frames

cdef enum:
    KEPT_BAD_LINES = 20


cdef class LineReader:
    """buses: the names that have a number already; others get the next one."""

    def __init__(self, buses=()):
        self.lines = self.bad_lines = 0
        self.first_bad_lines = []
        self._bus_count = 0
        for name in buses:
            encoded = name.encode()
            if len(encoded) > MAX_BUS_NAME or self._bus_count == MAX_BUSES:
                raise ValueError(f"bus {name!r}: at most {MAX_BUSES} buses with names of up to {MAX_BUS_NAME} bytes")
            self._bus_number(<const uint8_t*><const char*><bytes>encoded, len(encoded))

    @property
    def buses(self):
        """Names by number, the given ones first."""
        return tuple(
            PyBytes_FromStringAndSize(self._buses[i].name, self._buses[i].length).decode("utf-8", "replace")
            for i in range(self._bus_count)
        )

    def parse(self, const uint8_t[::1] text not None, Frames frames not None, Py_ssize_t limit=-1, bint final=False):
        """Append up to limit frames; return how many bytes of text are done with.

        Stops before an unfinished last line, unless final. Counters lines and bad_lines go on from piece to piece.
        """
        cdef Py_ssize_t size = text.shape[0], position = 0, end, room = limit
        cdef const uint8_t* line
        cdef const uint8_t* newline
        if size == 0:
            return 0
        with nogil:
            while position < size and room != 0:
                line = &text[position]
                newline = <const uint8_t*>memchr(line, 10, size - position)
                if newline == NULL and not final:
                    break
                end = size if newline == NULL else newline - &text[0]
                self.lines += 1
                if self._line(line, &text[0] + end, frames):
                    room -= 1
                elif not _is_blank(line, &text[0] + end) and not self._is_remark(line, &text[0] + end):
                    self.bad_lines += 1
                    if self.bad_lines <= KEPT_BAD_LINES:
                        with gil:
                            kept = PyBytes_FromStringAndSize(<const char*>line, min(end - position, 80))
                            self.first_bad_lines.append((self.lines, kept.decode("utf-8", "replace").rstrip()))
                position = end + 1
        return min(position, size)

    cdef bint _line(self, const uint8_t* c, const uint8_t* end, Frames frames) except -1 nogil:
        """Append the line's frame; False if there is none in it."""
        return False

    cdef bint _is_remark(self, const uint8_t* c, const uint8_t* end) noexcept nogil:
        """A line that the form has beside its frames."""
        return False

    cdef int _bus_number(self, const uint8_t* name, Py_ssize_t length) noexcept nogil:
        """-1: no name, or no room for another."""
        cdef int i
        if length == 0 or length > MAX_BUS_NAME:
            return -1
        for i in range(self._bus_count):
            if self._buses[i].length == length and memcmp(self._buses[i].name, name, length) == 0:
                return i
        if self._bus_count == MAX_BUSES:
            return -1
        i = self._bus_count
        memcpy(self._buses[i].name, name, length)
        self._buses[i].length = length
        self._bus_count += 1
        return i

    cdef int _channel_number(self, uint64_t channel) noexcept nogil:
        """The number of bus can<channel>, for forms that have numbers only; channels up to 999."""
        cdef uint8_t[6] name
        cdef int digits = 1 if channel < 10 else 2 if channel < 100 else 3, i
        if channel > 999:
            return -1
        name[0], name[1], name[2] = 99, 97, 110     # can
        for i in range(digits):
            name[2 + digits - i] = 48 + channel % 10
            channel //= 10
        return self._bus_number(name, 3 + digits)


cdef inline bint _is_blank(const uint8_t* c, const uint8_t* end) noexcept nogil:
    while c < end:
        if c[0] != 32 and c[0] != 9 and c[0] != 13:
            return False
        c += 1
    return True
