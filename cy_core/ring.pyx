"""The last seconds of frames, in bounded memory: what an event reaches back into.

    first ──► | frame | frame | ... | ──► end        numbers that never repeat; the oldest goes first
                └ 64-byte slots, for payloads over 8 bytes, in the same order

Both are rings that grow up to limit_bytes together. What had to go before its time because of that is counted.
"""
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from cy_core.frames cimport Frames
from cy_core.structs cimport PAYLOAD_SLOT, frame_t


cdef inline Py_ssize_t wrapped(Py_ssize_t place, Py_ssize_t capacity) noexcept nogil:
    """A place under twice the capacity; a division at each frame would take longer than the copy."""
    return place if place < capacity else place - capacity


cdef class Ring:
    """Raises ValueError: limit_bytes is too small to hold a frame."""

    cdef frame_t* records
    cdef uint8_t* slots
    cdef Py_ssize_t head, count, capacity, slot_head, slot_count, slot_capacity
    cdef readonly Py_ssize_t limit_bytes
    cdef readonly int64_t first     # number of the oldest frame
    cdef readonly int64_t crowded   # frames that went because of limit_bytes

    def __cinit__(self, Py_ssize_t limit_bytes):
        if limit_bytes < 4096:
            raise ValueError(f"a ring of {limit_bytes} bytes; 4096 are the least")
        self.limit_bytes = limit_bytes

    def __dealloc__(self):
        free(self.records)
        free(self.slots)

    def __len__(self):
        return self.count

    @property
    def end(self):
        """Number of the next frame."""
        return self.first + self.count

    @property
    def allocated_bytes(self):
        return self.capacity * sizeof(frame_t) + self.slot_capacity * PAYLOAD_SLOT

    @property
    def first_time_us(self):
        return self.records[self.head].time_us if self.count else None

    def append(self, Frames frames not None):
        """Add a batch."""
        cdef Py_ssize_t i = 0, some, place
        cdef const frame_t* record
        while i < frames.count:
            record = &frames.records[i]
            if frames.slot_count == 0:  # as many at once as lie side by side
                if self.count == self.capacity:
                    self._make_room(False, frames.count - i)
                place = wrapped(self.head + self.count, self.capacity)
                some = min(frames.count - i, self.capacity - max(self.count, place))
                memcpy(&self.records[place], record, some * sizeof(frame_t))
                self.count += some
            else:
                if self.count == self.capacity or (record.length > 8 and self.slot_count == self.slot_capacity):
                    self._make_room(record.length > 8, 1)
                _push(self, record, frames.payloads)
                some = 1
            i += some

    def trim(self, int64_t time_us):
        """Forget the oldest frames, up to the first that is not before time_us."""
        with nogil:
            while self.count and self.records[self.head].time_us < time_us:
                _drop(self)

    def find(self, int64_t number, int64_t time_us):
        """The first frame, from this number on, whose time is time_us or later; end where there is none."""
        cdef Py_ssize_t i = max(0, number - self.first)
        while i < self.count and self.records[wrapped(self.head + i, self.capacity)].time_us < time_us:
            i += 1
        return self.first + min(i, self.count)

    def cut(self, int64_t start, int64_t end):
        """A batch with the frames start..end-1, of those that are there."""
        cdef Frames part = Frames()
        cdef Py_ssize_t i
        cdef const frame_t* record
        for i in range(max(0, start - self.first), min(self.count, end - self.first)):
            record = &self.records[wrapped(self.head + i, self.capacity)]
            part.push(
                record.time_us, record.can_id, record.bus, record.flags,
                self.slots + record.data * PAYLOAD_SLOT if record.length > 8 else <const uint8_t*>&record.data,
                record.length,
            )
        return part

    def time_us(self, int64_t number):
        """Of this frame. Raises IndexError: it is not there."""
        if not self.first <= number < self.first + self.count:
            raise IndexError(f"frame {number} of {self.first}..{self.end}")
        return self.records[wrapped(self.head + number - self.first, self.capacity)].time_us

    cdef int _make_room(self, bint is_long, Py_ssize_t count) except -1:
        """For one frame more: by growing, or where the limit is reached by dropping the oldest, up to count of them."""
        cdef Py_ssize_t room
        if self.count == self.capacity:
            room = (self.limit_bytes - self.slot_capacity * PAYLOAD_SLOT) // <Py_ssize_t>sizeof(frame_t)
            if not self._grow(min(room, max(64, self.capacity + (self.capacity >> 1)))):
                self._crowd(False, count)
        if is_long and self.slot_count == self.slot_capacity:
            room = (self.limit_bytes - self.capacity * <Py_ssize_t>sizeof(frame_t)) // PAYLOAD_SLOT
            if not self._grow_slots(min(room, max(8, self.slot_capacity + (self.slot_capacity >> 1)))):
                self._crowd(True, 1)
        return 0

    cdef int _crowd(self, bint slots, Py_ssize_t count) except -1:
        """Drop the oldest, up to count of them, until there is room for a frame, with a slot if slots."""
        cdef Py_ssize_t capacity
        if slots and self.slot_capacity == 0:
            # Records have taken all of it: give an eighth back to slots.
            capacity = self.capacity - self.capacity // 8 - 3
            while self.count >= capacity:
                _drop(self)
                self.crowded += 1
            self._resize(capacity)
            self._grow_slots((self.limit_bytes - self.capacity * <Py_ssize_t>sizeof(frame_t)) // PAYLOAD_SLOT)
        count = max(0, min(count, self.count) - (self.capacity - self.count))
        while count > 0 or self.count == self.capacity or (slots and self.slot_count == self.slot_capacity):
            _drop(self)
            self.crowded += 1
            count -= 1
        return 0

    cdef bint _grow(self, Py_ssize_t capacity) except? False:
        return self._resize(capacity) if capacity > self.capacity else False

    cdef bint _resize(self, Py_ssize_t capacity) except? False:
        cdef frame_t* grown = <frame_t*>malloc(capacity * sizeof(frame_t))
        cdef Py_ssize_t i
        if grown == NULL:
            raise MemoryError(f"no memory for {capacity} frames")
        for i in range(self.count):
            grown[i] = self.records[wrapped(self.head + i, self.capacity)]
        free(self.records)
        self.records, self.capacity, self.head = grown, capacity, 0
        return True

    cdef bint _grow_slots(self, Py_ssize_t capacity) except? False:
        cdef uint8_t* grown
        cdef Py_ssize_t i, at = 0
        cdef frame_t* record
        if capacity <= self.slot_capacity:
            return False
        grown = <uint8_t*>malloc(capacity * PAYLOAD_SLOT)
        if grown == NULL:
            raise MemoryError(f"no memory for {capacity} long payloads")
        for i in range(self.count):
            record = &self.records[wrapped(self.head + i, self.capacity)]
            if record.length > 8:
                memcpy(grown + at * PAYLOAD_SLOT, self.slots + record.data * PAYLOAD_SLOT, PAYLOAD_SLOT)
                record.data = at
                at += 1
        free(self.slots)
        self.slots, self.slot_capacity, self.slot_head = grown, capacity, 0
        return True


cdef void _push(Ring ring, const frame_t* record, const uint8_t* payloads) noexcept nogil:
    cdef frame_t* to = &ring.records[wrapped(ring.head + ring.count, ring.capacity)]
    cdef Py_ssize_t slot
    to[0] = record[0]
    if record.length > 8:
        slot = wrapped(ring.slot_head + ring.slot_count, ring.slot_capacity)
        memcpy(ring.slots + slot * PAYLOAD_SLOT, payloads + record.data * PAYLOAD_SLOT, PAYLOAD_SLOT)
        to.data = slot
        ring.slot_count += 1
    ring.count += 1


cdef void _drop(Ring ring) noexcept nogil:
    if ring.records[ring.head].length > 8:
        ring.slot_head = wrapped(ring.slot_head + 1, ring.slot_capacity)
        ring.slot_count -= 1
    ring.head = wrapped(ring.head + 1, ring.capacity)
    ring.count -= 1
    ring.first += 1
