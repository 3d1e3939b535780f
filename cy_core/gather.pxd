from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cy_core.columns cimport Columns, column_t
from cy_core.plan cimport Plan, signal_t


cdef struct pick_t:             # a sample
    int64_t time_us
    uint64_t raw
    uint32_t order              # of arrival, among samples of one time


cdef class Gatherer:
    cdef readonly Plan plan
    cdef pick_t* samples            # of the signal at hand, in the order of time
    cdef int32_t* heads             # of each message: its first group, -1 for none
    cdef int32_t* nexts             # of each group: the next one of its message, -1 for none
    cdef Py_ssize_t capacity, group_capacity

    cdef int _link_groups(self, Columns columns) except -1 nogil
    cdef Py_ssize_t _gather(self, Columns columns, uint32_t message, uint32_t signal) except -1 nogil
    cdef int _make_room(self, Py_ssize_t count) except -1 nogil


cdef inline uint64_t raw_of(Columns columns, const column_t* column, const signal_t* signal, Py_ssize_t row) noexcept nogil:
    """The raw value of a row, sign-extended for signed integers. By width: a copy of unknown size is a call."""
    cdef const uint8_t* at = columns.arena + column.offset + (0 if column.is_constant else row * column.width)
    cdef uint16_t two
    cdef uint32_t four
    cdef uint64_t eight
    if column.width == 1:
        return <uint64_t><int64_t><int8_t>at[0] if signal.sign else at[0]
    if column.width == 2:
        memcpy(&two, at, 2)
        return <uint64_t><int64_t><int16_t>two if signal.sign else two
    if column.width == 4:
        memcpy(&four, at, 4)
        return <uint64_t><int64_t><int32_t>four if signal.sign else four
    memcpy(&eight, at, 8)
    return eight


cdef inline int64_t floor_div(int64_t a, int64_t b) noexcept nogil:
    cdef int64_t quotient = a // b
    return quotient - 1 if a % b < 0 else quotient
