from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cy_core.plan cimport HASH, Plan, message_t
from cy_core.structs cimport PAYLOAD_SLOT, frame_t, payload_length

cdef enum:
    KNOWN_FRAMES = 512          # places to remember what frames are told by


cdef struct variant_t:          # what frames of one message that hold the same signals have in common
    uint32_t message
    uint32_t first_place        # of its signals
    uint32_t column_count
    uint32_t row_bytes          # of all columns, one row
    uint32_t older              # another variant of the message, or 0
    uint16_t words              # of the payload, up to the end of its last signal
    uint8_t is_long             # its message is


cdef struct known_t:
    uint64_t key                # the selecting bits
    uint64_t kind               # message and length; 0: nothing is known here
    uint32_t variant


cdef class Variants:
    cdef Plan plan
    cdef variant_t* variants    # 0 stands for no message
    cdef uint32_t* places       # of signals in their message, ascending
    cdef uint32_t count, capacity
    cdef Py_ssize_t place_count, place_capacity
    cdef known_t[KNOWN_FRAMES] known
    cdef uint8_t* row           # an identifier and payload, and zeros behind it
    cdef Py_ssize_t row_size
    cdef uint64_t* present      # bit set of the signals that one frame holds

    cdef int limit(self) except -1 nogil
    cdef uint32_t _meet(
        self, uint32_t number, const frame_t* record, const uint8_t* slots, known_t* known
    ) except 0 nogil
    cdef uint32_t _add(self, uint32_t message) except? 0 nogil
    cdef int _list_places(self, variant_t* variant) except -1 nogil
    cdef void _find_present(self, const message_t* message, uint32_t length) noexcept nogil

    cdef inline uint32_t find(self, uint32_t number, const frame_t* record, const uint8_t* slots) except 0 nogil:
        """The variant that a frame of message number - 1 is; what it was told by is remembered."""
        cdef const message_t* message = &self.plan.messages[number - 1]
        cdef uint32_t length = payload_length(record)
        cdef uint64_t key, kind = kind_of(number, length)
        cdef known_t* known
        if length >= message.needed and not message.is_multiplexed:
            return number
        memcpy(&key, payload_of(record, slots), 8)
        key &= message.selecting
        known = &self.known[known_place(key, kind)]
        if known.key == key and known.kind == kind:
            return known.variant
        return self._meet(number, record, slots, known)


cdef inline uint64_t kind_of(uint32_t number, uint32_t length) noexcept nogil:
    return <uint64_t>number << 16 | length


cdef inline uint32_t known_place(uint64_t key, uint64_t kind) noexcept nogil:
    return <uint32_t>((key + kind) * HASH >> 55)


cdef inline const uint8_t* payload_of(const frame_t* record, const uint8_t* slots) noexcept nogil:
    """Its bytes, readable to a multiple of eight."""
    if payload_length(record) > 8:
        return slots + record.data * PAYLOAD_SLOT
    return <const uint8_t*>&record.data
