"""Which message each frame of a batch is, and what has been on the buses since the start.

    frames, messages put together ──► message of each ──► conditions
           └─► counts and last times, by message and by bus: "was this signal ever received?"
"""
from collections import namedtuple

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from cy_core.assemble cimport Assembler
from cy_core.frames cimport Frames
from cy_core.plan cimport Plan, find_message, find_whole, identifiers_t, is_segment
from cy_core.structs cimport ERROR_FRAME, REMOTE_FRAME, frame_t, payload_length

# frames: those with data, of whatever identifier. Of these: unknown are of no message, short have less than all signals
# of their message need (as have messages put together), segments are parts of messages. remote, error: beside them.
BusTraffic = namedtuple("BusTraffic", "frames last_us unknown short segments remote error")


cdef class Traffic:
    """Holds the messages of the last batch, which conditions look at."""

    def __cinit__(self, Plan plan not None):
        cdef uint32_t i
        self.plan = plan
        self.message_frames = <uint64_t*>calloc(plan.message_count + 1, sizeof(uint64_t))
        self.message_times = <int64_t*>calloc(plan.message_count + 1, sizeof(int64_t))
        self.needed = <uint16_t*>calloc(plan.message_count + 1, sizeof(uint16_t))
        if self.message_frames == NULL or self.message_times == NULL or self.needed == NULL:
            raise MemoryError(f"no memory to count {plan.message_count} messages")
        for i in range(plan.message_count):
            self.needed[i + 1] = plan.messages[i].needed
        memset(self.buses, 0, sizeof(self.buses))

    def __dealloc__(self):
        free(self.message_of)
        free(self.whole_of)
        free(self.message_frames)
        free(self.message_times)
        free(self.needed)

    def note(self, Frames frames not None, Assembler assembler=None):
        """Find the messages of these frames, and count them.

        assembler has assembled these very frames: what it put together is looked at too. Raises ValueError: it has not.
        """
        cdef uint64_t unknown = self.message_frames[0]
        self.assembler = None
        if assembler is not None and (
            assembler.plan is not self.plan or assembler.messages is None or assembler.frame_count != frames.count
            or assembler.messages.count != assembler.first + assembler.end_count
        ):
            raise ValueError(f"the assembler has not assembled these {frames.count} frames")
        if frames.count > self.capacity:
            self.message_of = <uint16_t*>_grown(self.message_of, frames.count)
            self.capacity = frames.count
        with nogil:
            self.clock_us = _note(self, frames.records, frames.count)
        self.count = frames.count
        if self.plan.has_segments and self.message_frames[0] != unknown:
            with nogil:
                _note_segments(self, frames.records, frames.count)
        self.unknown = self.message_frames[0] - unknown
        if assembler is not None and assembler.end_count:
            if assembler.end_count > self.whole_capacity:
                self.whole_of = <uint16_t*>_grown(self.whole_of, assembler.end_count)
                self.whole_capacity = assembler.end_count
            with nogil:
                _note_whole(self, assembler)
            self.assembler = assembler

    def message(self, Py_ssize_t number):
        """(how often, time_us of the last one) of a message of the manifest; (0, None) where there was none.

        Raises IndexError: no such message.
        """
        if not 0 <= number < self.plan.message_count:
            raise IndexError(f"message {number} of {self.plan.message_count}")
        frames = self.message_frames[number + 1]
        return (frames, self.message_times[number + 1]) if frames else (0, None)

    def bus(self, int number):
        """The BusTraffic of a bus. Raises IndexError: not in 0..255."""
        if not 0 <= number <= 255:
            raise IndexError(f"bus {number} is not in 0..255")
        bus = self.buses[number]
        return BusTraffic(
            bus.frames, bus.last_us if bus.frames else None, bus.unknown, bus.short_payloads, bus.segments, bus.remote,
            bus.error,
        )


cdef int64_t _note(Traffic traffic, const frame_t* records, Py_ssize_t count) noexcept nogil:
    cdef identifiers_t identifiers = traffic.plan.identifiers
    cdef uint16_t* message_of = traffic.message_of
    cdef uint64_t* message_frames = traffic.message_frames
    cdef int64_t* message_times = traffic.message_times
    cdef const uint16_t* needed = traffic.needed
    cdef int64_t clock = traffic.clock_us
    cdef Py_ssize_t i
    cdef uint16_t message
    cdef bus_t* bus
    for i in range(count):
        bus = &traffic.buses[records[i].bus]
        if records[i].can_id & (ERROR_FRAME | REMOTE_FRAME):
            # Of no message, but not unknown either.
            message_of[i] = 0
            clock = max(clock, records[i].time_us)
            bus.error += (records[i].can_id & ERROR_FRAME) != 0
            bus.remote += (records[i].can_id & ERROR_FRAME) == 0
            continue
        message = <uint16_t>find_message(&identifiers, records[i].bus, records[i].can_id)
        message_of[i] = message
        message_frames[message] += 1
        message_times[message] = records[i].time_us
        bus.frames += 1
        bus.last_us = records[i].time_us
        if message == 0:
            bus.unknown += 1
        elif records[i].length < needed[message]:
            bus.short_payloads += 1
        clock = max(clock, records[i].time_us)
    return clock


cdef void _note_segments(Traffic traffic, const frame_t* records, Py_ssize_t count) noexcept nogil:
    """Frames that are parts of messages are not unknown."""
    cdef Py_ssize_t i
    cdef bint found
    for i in range(count):
        if traffic.message_of[i] == 0 and not records[i].can_id & (ERROR_FRAME | REMOTE_FRAME):
            found = is_segment(&traffic.plan.identifiers, records[i].bus, records[i].can_id)
            traffic.buses[records[i].bus].segments += found
            traffic.buses[records[i].bus].unknown -= found
            traffic.message_frames[0] -= found


cdef void _note_whole(Traffic traffic, Assembler assembler) noexcept nogil:
    """Messages that were put together; their frames have been counted."""
    cdef const frame_t* record
    cdef Py_ssize_t i
    cdef uint32_t message
    for i in range(assembler.end_count):
        record = &assembler.messages.records[assembler.first + i]
        message = find_whole(&traffic.plan.identifiers, record.bus, record.can_id)
        traffic.whole_of[i] = <uint16_t>message
        if message:
            traffic.message_frames[message] += 1
            traffic.message_times[message] = record.time_us
            traffic.buses[record.bus].short_payloads += payload_length(record) < traffic.needed[message]


cdef void* _grown(void* memory, Py_ssize_t count) except NULL:
    cdef void* grown = realloc(memory, count * sizeof(uint16_t))
    if grown == NULL:
        raise MemoryError(f"no memory for the messages of {count} frames")
    return grown
