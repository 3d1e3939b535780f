from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
cimport cython

from cy_core.columns cimport Columns
from cy_core.plan cimport Plan
from cy_core.structs cimport frame_t
from cy_core.variants cimport Variants

cdef enum:
    RECENT = 256                # places to remember the messages of identifiers


cdef struct recent_t:
    uint64_t key
    uint32_t message            # + 1, or 0


@cython.final                  # so that its methods are plain C functions to call
cdef class Sorter:
    cdef Plan plan
    cdef Variants variants
    cdef recent_t[RECENT] recent    # by the hash of the key
    # Of each message, at its number + 1; at 0, of the frames without one.
    cdef uint16_t* needed           # payload bytes from which on a frame holds all signals; more than any if multiplexed
    cdef uint32_t* lasts            # its last variant in this batch
    # Of each variant.
    cdef uint64_t* counts           # of rows; above 32 bits, the next variant of the message in this batch
    cdef uint32_t* firsts           # the first row
    cdef uint32_t* order            # those in this batch, as their rows lie
    cdef uint32_t variant_capacity, order_count
    # Of each frame, or row.
    cdef uint32_t* variant_of
    cdef uint32_t* rows
    cdef uint64_t* payloads         # rows by variant: eight payload bytes, or the frame's number for long ones
    cdef uint64_t* ids              # rows by variant: identifiers, if any message has fields there
    cdef Py_ssize_t capacity

    cdef int reserve(self, Py_ssize_t count) except -1
    cdef int sort(
        self, const frame_t* records, Py_ssize_t count, const uint8_t* slots, Columns columns, bint whole
    ) except -1 nogil
    cdef int _reserve_variants(self) except -1 nogil
    cdef int _count(
        self, const frame_t* records, Py_ssize_t count, const uint8_t* slots, Columns columns, bint whole
    ) except -1 nogil
    cdef int _find_variant(
        self, const frame_t* record, const uint8_t* slots, Columns columns, bint whole
    ) except -1 nogil
    cdef void _count_segments(self, const frame_t* records, Py_ssize_t count, Columns columns) noexcept nogil
    cdef int _lay_out(self, Py_ssize_t count, Columns columns) except -1 nogil
    cdef void _scatter(self, const frame_t* records, Py_ssize_t count, int64_t* times) noexcept nogil
    cdef void _scatter_long(
        self, const frame_t* records, Py_ssize_t count, const uint8_t* slots, int64_t* times
    ) noexcept nogil
    cdef void _scatter_ids(self, const frame_t* records, Py_ssize_t count) noexcept nogil
