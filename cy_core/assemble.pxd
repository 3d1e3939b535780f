"""What an Assembler holds, for those that go over frames and messages together (traffic, condition)."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from cy_core.frames cimport Frames
from cy_core.plan cimport Plan, message_t
from cy_core.structs cimport frame_t

cdef enum:
    MOST_SESSIONS = 64

cdef struct session_t:
    uint64_t key                # kind, address or sequence, bus and identifier: see _key
    int64_t last_us, wait_us
    uint32_t can_id             # of the message
    uint16_t size, filled
    uint16_t packets            # TP: how many there will be
    uint16_t next               # number of the next segment
    uint16_t buffer             # its place in the memory for payloads

cdef struct counters_t:
    uint64_t assembled, failed, stray


cdef class Assembler:
    cdef readonly Plan plan
    cdef session_t[MOST_SESSIONS] sessions
    cdef int open                       # sessions [0, open) are
    cdef uint8_t* buffers               # one of LONGEST_PAYLOAD + 1 bytes a session
    cdef counters_t* by_bus
    # Of the last batch: its frames, and for messages.records[first + k] the number of the frame that completed it.
    cdef Frames messages
    cdef Py_ssize_t first, frame_count, end_count, end_capacity
    cdef uint32_t* ends
    cdef uint32_t frame                 # the one at hand

    cdef bint _is_j1939(self, uint8_t bus) noexcept nogil
    cdef int _control(self, const frame_t* frame, const uint8_t* data) except -1 nogil
    cdef int _data(self, const frame_t* frame, const uint8_t* data, Frames messages) except -1 nogil
    cdef int _segment(
        self, const frame_t* frame, const message_t* message, const uint8_t* data, Frames messages
    ) except -1 nogil
    cdef int _fast(self, const frame_t* frame, const uint8_t* data, Frames messages) except -1 nogil
    cdef int _isotp(
        self, const frame_t* frame, const message_t* message, const uint8_t* data, Frames messages
    ) except -1 nogil
    cdef session_t* _find(self, uint64_t key) noexcept nogil
    cdef session_t* _start(self, uint64_t key, int64_t time_us, int64_t wait_us) noexcept nogil
    cdef int _take(
        self, session_t* session, const frame_t* frame, const uint8_t* data, int count, Frames messages
    ) except -1 nogil
    cdef int _finish(self, session_t* session, const frame_t* frame, Frames messages) except -1 nogil
    cdef int _note_end(self) except -1 nogil
    cdef void _fail(self, session_t* session) noexcept nogil
    cdef void _close(self, session_t* session) noexcept nogil
    cdef void _expire(self, int64_t time_us) noexcept nogil
