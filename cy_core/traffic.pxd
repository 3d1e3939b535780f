from libc.stdint cimport int64_t, uint16_t, uint64_t

from cy_core.assemble cimport Assembler
from cy_core.frames cimport Frames
from cy_core.plan cimport Plan


cdef struct bus_t:
    uint64_t frames             # with data: of messages, parts of messages, and unknown ones
    uint64_t unknown, short_payloads, segments, remote, error
    int64_t last_us


cdef class Traffic:
    cdef readonly Plan plan
    cdef readonly Py_ssize_t count
    cdef uint16_t* message_of       # of each frame of the last batch: its message + 1, 0 for none
    cdef Py_ssize_t capacity
    cdef Assembler assembler        # what put that batch's messages together, or None
    cdef uint16_t* whole_of         # of each of those: its message + 1
    cdef Py_ssize_t whole_capacity
    cdef uint64_t* message_frames   # since the start, at message + 1
    cdef int64_t* message_times
    cdef uint16_t* needed           # payload bytes, at message + 1
    cdef bus_t[256] buses
    cdef readonly uint64_t unknown  # frames of the last batch that no message describes
    cdef readonly int64_t clock_us  # the latest time of any frame
