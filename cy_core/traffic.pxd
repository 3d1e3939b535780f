from libc.stdint cimport int64_t, uint16_t, uint64_t

from cy_core.frames cimport Frames
from cy_core.plan cimport Plan


cdef class Traffic:
    cdef readonly Plan plan
    cdef readonly Py_ssize_t count
    cdef uint16_t* message_of       # of each frame of the last batch: its message + 1, 0 for none
    cdef Py_ssize_t capacity
    cdef uint64_t* message_frames   # since the start, at message + 1
    cdef int64_t* message_times
    cdef uint64_t[256] bus_frames
    cdef int64_t[256] bus_times
    cdef readonly uint64_t unknown  # frames of the last batch that no message describes
    cdef readonly int64_t clock_us  # the latest time of any frame
