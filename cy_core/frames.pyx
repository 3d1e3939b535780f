"""A batch of frames in two buffers: a 24-byte record each, and a 64-byte slot for each payload over 8 bytes.

    records   | time | id | bus | length | flags | data or slot number |   in the order of arrival
    payloads  | 64 bytes | 64 bytes | ...

One order for classic CAN and CAN FD, and eight bytes or less, which is nearly all of the traffic, need no
second look-up. Layout: docs/formats/frame.md.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from cy_core.structs cimport PAYLOAD_SLOT, REMOTE_FRAME, frame_t, payload_length


cdef class Frames:
    """A growing batch of frames; clear() keeps its memory for the next one."""

    def __dealloc__(self):
        free(self.records)
        free(self.payloads)

    def __len__(self):
        return self.count

    def clear(self):
        self.count = 0
        self.slot_count = 0

    def append(self, int64_t time_us, int bus, uint32_t can_id, data, *, int flags=0):
        """Add one frame.

        can_id carries the flags of <linux/can.h> (bit 31: 29-bit identifier); flags are those of
        struct canfd_frame with 4 for CAN FD; bus is a number. Raises ValueError: over 64 bytes, or over 8
        without the CAN FD flag, or a bus over 255.
        """
        cdef bytes payload = bytes(data)
        if len(payload) > (64 if flags & 4 else 8):
            raise ValueError(f"a payload of {len(payload)} bytes does not fit in a frame with flags {flags}")
        if not 0 <= bus <= 255:
            raise ValueError(f"bus {bus} is not in 0..255")
        self.push(time_us, can_id, bus, flags, <const uint8_t*><const char*>payload, len(payload))

    def extend(
        self, const uint8_t[::1] records not None, const uint8_t[::1] payloads=None, const uint8_t[::1] buses=None
    ):
        """Add the records of another batch (24 bytes each), with its payload slots.

        buses[n] is the number here of the bus that has number n there (None: the same). Raises ValueError where
        sizes are no multiples of a record or slot, a length is over 64, or a slot or bus is missing: bytes from
        outside are checked here, so that no loop behind has to.
        """
        cdef Py_ssize_t count = records.shape[0] // sizeof(frame_t), i, slots = 0
        cdef const frame_t* record
        cdef const uint8_t* payload
        if records.shape[0] % sizeof(frame_t):
            raise ValueError(f"{records.shape[0]} bytes are no multiple of a {sizeof(frame_t)}-byte frame record")
        if payloads is not None:
            slots = payloads.shape[0] // PAYLOAD_SLOT
            if payloads.shape[0] % PAYLOAD_SLOT:
                raise ValueError(f"{payloads.shape[0]} bytes are no multiple of a {PAYLOAD_SLOT}-byte payload slot")
        for i in range(count):
            record = <const frame_t*>&records[i * sizeof(frame_t)]
            if record.length > 64 or (record.length > 8 and record.data >= <size_t>slots):
                raise ValueError(f"frame {i}: {record.length} bytes with payload slot {record.data} of {slots}")
            if buses is not None and record.bus >= buses.shape[0]:
                raise ValueError(f"frame {i}: bus {record.bus} of {buses.shape[0]}")
            payload = &payloads[record.data * PAYLOAD_SLOT] if record.length > 8 else <const uint8_t*>&record.data
            self.push(
                record.time_us,
                record.can_id,
                record.bus if buses is None else buses[record.bus],
                record.flags,
                payload,
                record.length,
            )

    def slice(self, Py_ssize_t start, Py_ssize_t end):
        """A new batch with the frames start..end-1."""
        cdef Frames part = Frames()
        cdef Py_ssize_t i
        cdef const frame_t* record
        for i in range(max(0, start), min(end, self.count)):
            record = &self.records[i]
            part.push(
                record.time_us,
                record.can_id,
                record.bus,
                record.flags,
                self.payloads + record.data * PAYLOAD_SLOT if record.length > 8 else <uint8_t*>&record.data,
                record.length,
            )
        return part

    def merge(self, Py_ssize_t first, Py_ssize_t middle):
        """Make one run in the order of time from first..middle-1 and middle..end-1, each in that order; it is stable."""
        cdef Py_ssize_t left = middle - 1, right, place = self.count - 1
        cdef frame_t* second
        if not 0 <= first <= middle <= self.count:
            raise ValueError(f"{first} and {middle} are no places in {self.count} frames")
        if first == middle or middle == self.count or self.records[left].time_us <= self.records[middle].time_us:
            return
        right = self.count - middle
        second = <frame_t*>realloc(NULL, right * sizeof(frame_t))
        if second == NULL:
            raise MemoryError(f"no memory for {right} frames")
        memcpy(second, &self.records[middle], right * sizeof(frame_t))
        right -= 1
        while right >= 0:
            if left >= first and self.records[left].time_us > second[right].time_us:
                self.records[place] = self.records[left]
                left -= 1
            else:
                self.records[place] = second[right]
                right -= 1
            place -= 1
        free(second)

    def to_bytes(self):
        """(records, payloads), which extend() takes."""
        return (
            PyBytes_FromStringAndSize(<char*>self.records, self.count * sizeof(frame_t)),
            PyBytes_FromStringAndSize(<char*>self.payloads, self.slot_count * PAYLOAD_SLOT),
        )

    def __iter__(self):
        """(time_us, bus, can_id, flags, data) of each frame: for tests and export, not for hot paths."""
        cdef Py_ssize_t i
        cdef frame_t* record
        cdef const uint8_t* payload
        for i in range(self.count):
            record = &self.records[i]
            payload = self.payloads + record.data * PAYLOAD_SLOT if payload_length(record) > 8 else <uint8_t*>&record.data
            yield (
                record.time_us,
                record.bus,
                record.can_id,
                record.flags,
                PyBytes_FromStringAndSize(<const char*>payload, 0 if record.can_id & REMOTE_FRAME else payload_length(record)),
            )

    @property
    def first_time_us(self):
        return self.records[0].time_us if self.count else None

    @property
    def last_time_us(self):
        return self.records[self.count - 1].time_us if self.count else None

    cdef int reserve(self, Py_ssize_t count, Py_ssize_t slot_count) except -1 nogil:
        """Make room for count records and slot_count payload slots in all."""
        cdef Py_ssize_t capacity
        cdef void* grown
        if count > self.capacity:
            capacity = max(count, 2 * self.capacity, 256)
            grown = realloc(self.records, capacity * sizeof(frame_t))
            if grown == NULL:
                with gil:
                    raise MemoryError(f"no memory for {capacity} frames")
            self.records, self.capacity = <frame_t*>grown, capacity
        if slot_count > self.slot_capacity:
            capacity = max(slot_count, 2 * self.slot_capacity, 64)
            grown = realloc(self.payloads, capacity * PAYLOAD_SLOT)
            if grown == NULL:
                with gil:
                    raise MemoryError(f"no memory for {capacity} long payloads")
            self.payloads, self.slot_capacity = <uint8_t*>grown, capacity
        return 0

    cdef int push(
        self, int64_t time_us, uint32_t can_id, uint8_t bus, uint8_t flags, const uint8_t* data, uint8_t length
    ) except -1 nogil:
        cdef frame_t* record
        cdef uint8_t* slot
        if self.count == self.capacity or (length > 8 and self.slot_count == self.slot_capacity):
            self.reserve(self.count + 1, self.slot_count + 1)
        record = &self.records[self.count]
        record.time_us = time_us
        record.can_id = can_id
        record.bus = bus
        record.length = length
        record.flags = flags
        record.reserved = 0
        record.data = 0
        if length <= 8:
            if not can_id & REMOTE_FRAME:
                memcpy(&record.data, data, length)
        else:
            slot = self.payloads + self.slot_count * PAYLOAD_SLOT
            memcpy(slot, data, length)
            memset(slot + length, 0, PAYLOAD_SLOT - length)
            record.data = self.slot_count
            self.slot_count += 1
        self.count += 1
        return 0

    cdef int push_message(
        self, int64_t time_us, uint32_t can_id, uint8_t bus, const uint8_t* data, uint16_t length
    ) except -1 nogil:
        """Add a message put together from segments: a payload of any length, in as many slots as it takes.

        For the decoder of this process: extend() and slice() are for frames.
        """
        cdef Py_ssize_t slots = (length + PAYLOAD_SLOT - 1) // PAYLOAD_SLOT if length > 8 else 0
        cdef frame_t* record
        cdef uint8_t* slot
        self.reserve(self.count + 1, self.slot_count + slots)
        record = &self.records[self.count]
        record.time_us = time_us
        record.can_id = can_id
        record.bus = bus
        record.length = length & 0xFF
        record.reserved = length >> 8
        record.flags = 0
        record.data = self.slot_count
        if slots == 0:
            record.data = 0
            memcpy(&record.data, data, length)
        else:
            slot = self.payloads + self.slot_count * PAYLOAD_SLOT
            memcpy(slot, data, length)
            memset(slot + length, 0, slots * PAYLOAD_SLOT - length)
            self.slot_count += slots
        self.count += 1
        return 0
