"""Which signals a frame holds: all of its message, or those that its multiplexers select and its length reaches.

    message, length, selecting bits ──► variant: the signals, and what their columns take

Variant n + 1 is message n with all its signals. Others are added as they are met, and stay from batch to batch; a
frame of a length and selecting bits that were met lately is told by these alone.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memset

from cy_core.plan cimport ROW_HEAD, ROW_PADDING, Plan, field, message_t, signal_t
from cy_core.structs cimport ID_MASK, frame_t, payload_length

cdef enum:
    MOST_VARIANTS = 4096        # beside those of whole messages, before these others are forgotten


cdef class Variants:
    """Of the messages of one plan. Holds scratch memory, so use one in each thread."""

    def __cinit__(self, Plan plan not None):
        cdef uint32_t i, most = 0
        self.plan = plan
        for i in range(plan.message_count):
            most = max(most, plan.messages[i].signal_count)
        self.row_size = ROW_HEAD + max(plan.longest, <uint32_t>8) + ROW_PADDING
        self.row = <uint8_t*>_grow(NULL, self.row_size)
        self.present = <uint64_t*>_grow(NULL, 8 * ((most + 63) // 64) + 8)
        self._add(0)
        for i in range(plan.message_count):
            memset(self.present, 0xFF, 8 * ((most + 63) // 64))
            self._list_places(&self.variants[self._add(i)])

    def __dealloc__(self):
        free(self.variants)
        free(self.places)
        free(self.row)
        free(self.present)

    cdef int limit(self) except -1 nogil:
        """Forget what was met, if that is too much: called while no frame's variant is still needed."""
        cdef uint32_t i
        if self.count <= self.plan.message_count + 1 + MOST_VARIANTS:
            return 0
        self.count, self.place_count = self.plan.message_count + 1, self.plan.signal_count
        for i in range(self.count):
            self.variants[i].older = 0
        memset(self.known, 0, sizeof(self.known))
        return 0

    cdef uint32_t _meet(
        self, uint32_t number, const frame_t* record, const uint8_t* slots, known_t* known
    ) except 0 nogil:
        """Find the variant by the signals themselves."""
        cdef const message_t* message = &self.plan.messages[number - 1]
        cdef uint32_t length = payload_length(record), variant
        cdef Py_ssize_t place_count = self.place_count
        cdef variant_t* made
        cdef const variant_t* other
        memset(self.row, 0, self.row_size)
        (<uint32_t*>self.row)[0] = record.can_id & ID_MASK
        memcpy(
            self.row + ROW_HEAD, payload_of(record, slots),
            min(<Py_ssize_t>length, self.row_size - ROW_HEAD - ROW_PADDING),
        )
        self._find_present(message, length)
        made = &self.variants[self._add(number - 1)]
        self._list_places(made)
        variant = self.variants[number].older
        while variant:
            other = &self.variants[variant]
            if other.column_count == made.column_count and not memcmp(
                &self.places[other.first_place], &self.places[made.first_place], 4 * made.column_count
            ):
                self.count -= 1
                self.place_count = place_count
                break
            variant = other.older
        if not variant:
            variant = self.count - 1
            made.older = self.variants[number].older
            self.variants[number].older = variant
        if message.selects_early:
            known.key = (<const uint64_t*>(self.row + ROW_HEAD))[0] & message.selecting
            known.kind, known.variant = kind_of(number, length), variant
        return variant

    cdef void _find_present(self, const message_t* message, uint32_t length) noexcept nogil:
        """The signals that the payload in row holds: all their bits are there, and their selector selects them."""
        cdef const signal_t* signals = &self.plan.signals[message.first_signal]
        cdef const uint32_t* order = &self.plan.order[message.first_signal]
        cdef const signal_t* signal
        cdef uint32_t i, place
        cdef int selector
        memset(self.present, 0, 8 * ((message.signal_count + 63) >> 6))
        for i in range(message.signal_count):
            place = order[i]
            signal = &signals[place]
            selector = signal.selector
            if length < signal.needed:
                continue
            if selector >= 0 and not (
                self.present[selector >> 6] >> (selector & 63) & 1
                and self.plan.selects(signal, field(&signals[selector], self.row + ROW_HEAD))
            ):
                continue
            self.present[place >> 6] |= 1ULL << (place & 63)

    cdef uint32_t _add(self, uint32_t message) except? 0 nogil:
        """A variant of a message without any signal yet."""
        cdef variant_t* variant
        if self.count == self.capacity:
            with gil:
                self.variants = <variant_t*>_grow(self.variants, (2 * self.capacity + 64) * sizeof(variant_t))
            self.capacity = 2 * self.capacity + 64
        variant = &self.variants[self.count]
        memset(variant, 0, sizeof(variant_t))
        variant.message = message
        variant.first_place = <uint32_t>self.place_count
        self.count += 1
        return self.count - 1

    cdef int _list_places(self, variant_t* variant) except -1 nogil:
        """Give the newest variant the signals that are present."""
        cdef const message_t* message = &self.plan.messages[variant.message]
        cdef const signal_t* signal
        cdef uint32_t place
        cdef uint32_t needed = 0
        if self.place_count + message.signal_count > self.place_capacity:
            with gil:
                self.place_capacity = 2 * (self.place_count + message.signal_count)
                self.places = <uint32_t*>_grow(self.places, self.place_capacity * sizeof(uint32_t))
        for place in range(message.signal_count):
            if self.present[place >> 6] >> (place & 63) & 1:
                signal = &self.plan.signals[message.first_signal + place]
                needed = max(needed, <uint32_t>signal.needed)
                variant.row_bytes += signal.width
                self.places[self.place_count] = place
                self.place_count += 1
        variant.column_count = <uint32_t>self.place_count - variant.first_place
        variant.words = <uint16_t>((needed + 7) >> 3)
        variant.is_long = message.is_long
        return 0


cdef void* _grow(void* memory, size_t size) except NULL:
    cdef void* grown = realloc(memory, size)
    if grown == NULL:
        raise MemoryError(f"no memory for {size} bytes of decoder scratch")
    return grown
