from libc.stdint cimport uint8_t, uint32_t, uint64_t

from cy_core.plan cimport Plan


cdef struct group_t:            # rows of one message that hold the same signals
    uint32_t message
    uint32_t count              # of rows
    uint64_t times              # offset in the arena: int64 microseconds, one a row
    uint32_t first_column, column_count


cdef extern from "column_kernels.h":
    enum:
        AT_LEAST                # rows that a kernel handles: it reaches so far behind the last one
    ctypedef struct column_t:
        uint64_t offset
        uint32_t signal
        uint8_t width
        uint8_t is_constant


cdef class Columns:
    cdef readonly Plan plan
    cdef uint8_t* arena
    cdef Py_ssize_t arena_size, arena_capacity
    cdef group_t* group_rows
    cdef Py_ssize_t group_count, group_capacity
    cdef column_t* column_rows
    cdef Py_ssize_t column_count, column_capacity
    cdef Py_ssize_t exports
    cdef readonly Py_ssize_t frames, unknown_frames, short_frames, remote_frames, error_frames
    cdef readonly Py_ssize_t segment_frames, assembled_messages     # parts of messages; messages put together

    cdef void forget(self) noexcept nogil
    cdef Py_ssize_t allocate(self, Py_ssize_t size) except -1 nogil
    cdef group_t* add_group(self) except NULL nogil
    cdef int reserve(self, Py_ssize_t size) except -1 nogil
    cdef int make_room(self, Py_ssize_t groups, Py_ssize_t columns, Py_ssize_t size) except -1 nogil
    cdef column_t* add_columns(self, Py_ssize_t count) except NULL nogil
