"""Which message each frame of a batch is, and what has been on the buses since the start.

    frames ──► message of each frame ──► conditions
           └─► counts and last times, by message and by bus: "was this signal ever received?"
"""
from libc.stdint cimport int64_t, uint16_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from cy_core.frames cimport Frames
from cy_core.plan cimport Plan, find_message, identifiers_t
from cy_core.structs cimport ERROR_FRAME, REMOTE_FRAME, frame_t


cdef class Traffic:
    """Holds the messages of the last batch, which conditions look at."""

    def __cinit__(self, Plan plan not None):
        self.plan = plan
        self.message_frames = <uint64_t*>calloc(plan.message_count + 1, sizeof(uint64_t))
        self.message_times = <int64_t*>calloc(plan.message_count + 1, sizeof(int64_t))
        if self.message_frames == NULL or self.message_times == NULL:
            raise MemoryError(f"no memory to count {plan.message_count} messages")
        memset(self.bus_frames, 0, sizeof(self.bus_frames))
        memset(self.bus_times, 0, sizeof(self.bus_times))

    def __dealloc__(self):
        free(self.message_of)
        free(self.message_frames)
        free(self.message_times)

    def note(self, Frames frames not None):
        """Find the messages of these frames, and count them."""
        cdef void* grown
        if frames.count > self.capacity:
            grown = realloc(self.message_of, frames.count * sizeof(uint16_t))
            if grown == NULL:
                raise MemoryError(f"no memory for the messages of {frames.count} frames")
            self.message_of, self.capacity = <uint16_t*>grown, frames.count
        self.unknown = self.message_frames[0]
        with nogil:
            self.clock_us = _note(self, frames.records, frames.count)
        self.count, self.unknown = frames.count, self.message_frames[0] - self.unknown

    def message(self, Py_ssize_t number):
        """(frames, time_us of the last one) of a message of the manifest; (0, None) where there was none.

        Raises IndexError: no such message.
        """
        if not 0 <= number < self.plan.message_count:
            raise IndexError(f"message {number} of {self.plan.message_count}")
        frames = self.message_frames[number + 1]
        return (frames, self.message_times[number + 1]) if frames else (0, None)

    def bus(self, int number):
        """(frames, time_us of the last one) of a bus. Raises IndexError: not in 0..255."""
        if not 0 <= number <= 255:
            raise IndexError(f"bus {number} is not in 0..255")
        return (self.bus_frames[number], self.bus_times[number]) if self.bus_frames[number] else (0, None)


cdef int64_t _note(Traffic traffic, const frame_t* records, Py_ssize_t count) noexcept nogil:
    cdef identifiers_t identifiers = traffic.plan.identifiers
    cdef uint16_t* message_of = traffic.message_of
    cdef uint64_t* message_frames = traffic.message_frames
    cdef int64_t* message_times = traffic.message_times
    cdef int64_t clock = traffic.clock_us
    cdef Py_ssize_t i
    cdef uint16_t message
    for i in range(count):
        if records[i].can_id & (ERROR_FRAME | REMOTE_FRAME):
            # Of no message, but not unknown either: the decoder counts them.
            message_of[i] = 0
            clock = max(clock, records[i].time_us)
            continue
        message = <uint16_t>find_message(&identifiers, records[i].bus, records[i].can_id)
        message_of[i] = message
        message_frames[message] += 1
        message_times[message] = records[i].time_us
        traffic.bus_frames[records[i].bus] += 1
        traffic.bus_times[records[i].bus] = records[i].time_us
        clock = max(clock, records[i].time_us)
    return clock
