from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

from cy_core.structs cimport frame_t


cdef class Frames:
    cdef frame_t* records
    cdef uint8_t* payloads
    cdef Py_ssize_t count, capacity, slot_count, slot_capacity

    cdef int reserve(self, Py_ssize_t count, Py_ssize_t slot_count) except -1 nogil
    cdef int push(
        self, int64_t time_us, uint32_t can_id, uint8_t bus, uint8_t flags, const uint8_t* data, uint8_t length
    ) except -1 nogil
    cdef int push_message(
        self, int64_t time_us, uint32_t can_id, uint8_t bus, const uint8_t* data, uint16_t length
    ) except -1 nogil
