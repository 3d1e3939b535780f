"""Groups of a block of signals: message, rows, which signals; and the keys of what is coded below each."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from cy_core.codec.coder cimport coder_t, probability_t
from cy_core.codec.models cimport Models
from cy_core.codec.order cimport due_t
from cy_core.columns cimport Columns, group_t
from cy_core.plan cimport Plan

cdef enum:
    SIGNALS = 0x100000          # keys
    MOST_ROWS = 1 << 20         # of a group
    MOST_GROUPS = 0xFFFF


cdef struct part_t:             # a group that is written or read
    uint32_t key
    int32_t line                # the number of its bus
    uint32_t rows, done
    uint32_t group              # its number in the columns
    bint rides                  # it shares the rows of the part before it
    uint32_t riders             # how many behind it share its rows
    uint32_t recent             # rows of late that were of it, one bit each
    probability_t* present


cdef class Groups:
    cdef readonly Models models
    cdef bint learning
    cdef readonly Plan plan
    cdef uint32_t[:] message_keys
    cdef int32_t[:] message_lines
    cdef part_t* parts
    cdef due_t* dues
    cdef uint32_t part_count
    cdef bint shares            # some groups share rows

    cdef int choose(self, Columns columns, const uint8_t* keep, bint has_lines) except -1
    cdef int reserve(self, uint32_t count) except -1 nogil
    cdef uint64_t code_group(self, coder_t* coder, Columns columns, part_t* part, const uint8_t* keep) except? 0 nogil
    cdef void code_sharing(self, coder_t* coder, Columns columns, uint32_t p) noexcept nogil
    cdef int allocate(self, Columns columns, group_t* group) except -1 nogil
