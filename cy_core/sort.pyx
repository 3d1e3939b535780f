"""Sort the frames of a batch by the signals that they hold.

    frames ──count──► each one's variant, and its place there ──scatter──► payloads and times, variant by variant

A variant is a message, or where it is multiplexed or cut short, those frames of it that hold the same signals
(variants.pyx). Variants lie in the order of their messages, those of one as they were met, and rows as they came in.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from cy_core.columns cimport AT_LEAST, Columns
from cy_core.plan cimport HASH, Plan, find_extended, find_whole, is_segment, message_t
from cy_core.structs cimport ERROR_FRAME, ID_MASK, REMOTE_FRAME, frame_t, payload_length
from cy_core.variants cimport Variants, known_place, known_t, kind_of, payload_of, variant_t

cdef extern from "column_kernels.h":
    void find_rows(uint32_t* rows, const uint32_t* variant_of, const uint32_t* firsts, size_t count) noexcept nogil


cdef inline uint64_t recent_key(const frame_t* record, bint whole) noexcept nogil:
    return <uint64_t>whole << 40 | <uint64_t>record.bus << 32 | record.can_id


cdef inline uint32_t recent_place(uint64_t key) noexcept nogil:
    return <uint32_t>(key * HASH >> 56)


cdef class Sorter:
    """For the messages of one plan. Holds scratch memory, so use one in each thread."""

    def __cinit__(self, Plan plan not None):
        cdef uint32_t i
        self.plan = plan
        self.variants = Variants(plan)
        self._reserve_variants()
        self.needed = <uint16_t*>_grow(NULL, (plan.message_count + 1) * sizeof(uint16_t))
        self.lasts = <uint32_t*>_grow(NULL, (plan.message_count + 1) * sizeof(uint32_t))
        self.needed[0] = self.lasts[0] = 0
        for i in range(plan.message_count):
            self.needed[i + 1] = 0xFFFF if plan.messages[i].is_multiplexed else plan.messages[i].needed
            self.lasts[i + 1] = i + 1

    def __dealloc__(self):
        free(self.needed)
        free(self.lasts)
        free(self.counts)
        free(self.firsts)
        free(self.order)
        free(self.variant_of)
        free(self.rows)
        free(self.payloads)
        free(self.ids)

    cdef int reserve(self, Py_ssize_t count) except -1:
        """Make room for batches of so many frames."""
        if count <= self.capacity:
            return 0
        count = max(count, 4096)
        self.capacity = 0
        self.variant_of = <uint32_t*>_grow(self.variant_of, count * sizeof(uint32_t))
        self.rows = <uint32_t*>_grow(self.rows, count * sizeof(uint32_t))
        self.payloads = <uint64_t*>_grow(self.payloads, (count + AT_LEAST) * sizeof(uint64_t))
        if self.plan.has_ids:
            self.ids = <uint64_t*>_grow(self.ids, (count + AT_LEAST) * sizeof(uint64_t))
        self.capacity = count
        return 0

    cdef int _reserve_variants(self) except -1 nogil:
        """Make room for all the variants that there are, and for their number again."""
        cdef uint32_t capacity = self.variants.capacity
        with gil:
            self.counts = <uint64_t*>_grow(self.counts, capacity * sizeof(uint64_t))
            self.firsts = <uint32_t*>_grow(self.firsts, capacity * sizeof(uint32_t))
            self.order = <uint32_t*>_grow(self.order, capacity * sizeof(uint32_t))
        memset(self.counts + self.variant_capacity, 0, (capacity - self.variant_capacity) * sizeof(uint64_t))
        self.variant_capacity = capacity
        return 0

    cdef int sort(
        self, const frame_t* records, Py_ssize_t count, const uint8_t* slots, Columns columns, bint whole
    ) except -1 nogil:
        """Sort frames, or messages that were put together (whole). Whoever reads them sets their counts to 0.

        Columns get their times, one a row, then room for all that the rows turn into, and the counts of what is no row.
        """
        cdef int64_t* times
        cdef bint any_long
        self.variants.limit()
        self._count(records, count, slots, columns, whole)
        if not whole and self.counts[0]:
            columns.unknown_frames += <uint32_t>self.counts[0]
            if self.plan.has_segments:
                self._count_segments(records, count, columns)
        any_long = self._lay_out(count, columns)
        times = <int64_t*>(columns.arena + columns.arena_size)
        columns.arena_size += 8 * count
        find_rows(self.rows, self.variant_of, self.firsts, count)
        if any_long or slots != NULL:
            self._scatter_long(records, count, slots, times)
        else:
            self._scatter(records, count, times)
        if self.ids:
            self._scatter_ids(records, count)
        return 0

    cdef int _count(
        self, const frame_t* records, Py_ssize_t count, const uint8_t* slots, Columns columns, bint whole
    ) except -1 nogil:
        """Find each frame's variant, and which of its frames it is. whole: messages that were put together."""
        # Locals, so that no store in the loop makes the compiler load them again.
        cdef uint32_t* variant_of = self.variant_of
        cdef uint32_t* rows = self.rows
        cdef uint64_t* counts = self.counts
        cdef const uint16_t* needed = self.needed
        cdef const uint16_t* standard = self.plan.identifiers.standard
        cdef const recent_t* recent = self.recent
        cdef const known_t* known
        cdef const message_t* message
        cdef uint32_t variant, first_extended = 0 if whole else 2048
        cdef uint64_t key, kind
        cdef Py_ssize_t i = 0, start
        while i < count:
            # Three loops for nearly all frames. There is no call in them, so that registers hold what each needs.
            start = i
            while i < count and records[i].can_id < first_extended:
                variant = standard[<uint32_t>records[i].bus << 11 | records[i].can_id]
                if records[i].length < needed[variant]:
                    break
                variant_of[i] = variant
                rows[i] = <uint32_t>counts[variant]
                counts[variant] += 1
                i += 1
            while i < count and records[i].can_id >= first_extended:
                key = recent_key(&records[i], whole)
                variant = recent[recent_place(key)].message
                if recent[recent_place(key)].key != key or records[i].length < needed[variant]:
                    break
                variant_of[i] = variant
                rows[i] = <uint32_t>counts[variant]
                counts[variant] += 1
                i += 1
            while i < count and records[i].can_id < first_extended and records[i].length <= 8:
                variant = standard[<uint32_t>records[i].bus << 11 | records[i].can_id]
                if records[i].length >= needed[variant]:
                    break
                message = &self.plan.messages[variant - 1]
                key = records[i].data & message.selecting
                kind = kind_of(variant, records[i].length)
                known = &self.variants.known[known_place(key, kind)]
                variant = known.variant
                if known.key != key or known.kind != kind or counts[variant] == 0:
                    break
                columns.short_frames += records[i].length < message.needed
                variant_of[i] = variant
                rows[i] = <uint32_t>counts[variant]
                counts[variant] += 1
                i += 1
            if i == start:
                variant = self._find_variant(&records[i], slots, columns, whole)
                counts = self.counts
                variant_of[i] = variant
                rows[i] = <uint32_t>counts[variant]
                counts[variant] += 1
                i += 1
        return 0

    cdef int _find_variant(
        self, const frame_t* record, const uint8_t* slots, Columns columns, bint whole
    ) except -1 nogil:
        """Of any frame: of those with extended identifiers, multiplexed or short ones, and messages put together."""
        cdef uint32_t number, variant
        cdef recent_t* recent
        if not whole and record.can_id < 2048:
            number = self.plan.identifiers.standard[<uint32_t>record.bus << 11 | record.can_id]
        elif record.can_id & (ERROR_FRAME | REMOTE_FRAME):
            columns.unknown_frames -= 1
            columns.error_frames += (record.can_id & ERROR_FRAME) != 0
            columns.remote_frames += (record.can_id & ERROR_FRAME) == 0
            return 0
        else:
            recent = &self.recent[recent_place(recent_key(record, whole))]
            recent.key = recent_key(record, whole)
            if whole:
                number = find_whole(&self.plan.identifiers, record.bus, record.can_id)
            else:
                number = find_extended(&self.plan.identifiers, record.bus, record.can_id)
            recent.message = number
        if record.length >= self.needed[number]:
            return number
        columns.short_frames += payload_length(record) < self.plan.messages[number - 1].needed
        variant = self.variants.find(number, record, slots)
        if variant >= self.variant_capacity:
            self._reserve_variants()
        if variant != number and self.counts[variant] == 0:
            self.counts[self.lasts[number]] |= <uint64_t>variant << 32
            self.lasts[number] = variant
        return variant

    cdef void _count_segments(self, const frame_t* records, Py_ssize_t count, Columns columns) noexcept nogil:
        """Frames that are parts of messages are not unknown."""
        cdef bint found
        cdef Py_ssize_t i
        for i in range(count):
            if self.variant_of[i] == 0 and not records[i].can_id & (ERROR_FRAME | REMOTE_FRAME):
                found = is_segment(&self.plan.identifiers, records[i].bus, records[i].can_id)
                columns.segment_frames += found
                columns.unknown_frames -= found

    cdef int _lay_out(self, Py_ssize_t count, Columns columns) except -1 nogil:
        """Order the variants by message, make room for what they turn into; return whether any payload is long."""
        cdef const variant_t* variant
        cdef uint32_t message, number, row_count, first = 0, order_count = 0
        cdef Py_ssize_t column_count = 0, size = 0
        cdef bint any_long = False
        for message in range(self.plan.message_count + 1):
            if self.counts[message] == 0:
                continue
            number = message
            while True:
                variant = &self.variants.variants[number]
                row_count = <uint32_t>self.counts[number]
                self.firsts[number] = first
                self.order[order_count] = number
                order_count += 1
                first += row_count
                column_count += variant.column_count
                size += row_count * <Py_ssize_t>variant.row_bytes
                any_long |= variant.is_long
                number = self.counts[number] >> 32
                if number == 0:
                    break
            self.lasts[message] = message
        self.order_count = order_count
        columns.make_room(order_count, column_count, 8 * count + size + 8 * column_count + 8 * AT_LEAST)
        return any_long

    cdef void _scatter(self, const frame_t* records, Py_ssize_t count, int64_t* times) noexcept nogil:
        """Sort times and payloads of eight bytes by variant.

        Frames without a message are sorted too, in front: cheaper than a branch at each.
        """
        cdef const uint32_t* rows = self.rows
        cdef uint64_t* payloads = self.payloads
        cdef Py_ssize_t i
        for i in range(count):
            times[rows[i]] = records[i].time_us
            payloads[rows[i]] = records[i].data

    cdef void _scatter_long(
        self, const frame_t* records, Py_ssize_t count, const uint8_t* slots, int64_t* times
    ) noexcept nogil:
        """The same where some payloads are longer, or belong to messages that are: of these, where they are."""
        cdef const variant_t* variants = self.variants.variants
        cdef const uint32_t* rows = self.rows
        cdef Py_ssize_t i
        for i in range(count):
            times[rows[i]] = records[i].time_us
            if variants[self.variant_of[i]].is_long:
                self.payloads[rows[i]] = i
            else:
                memcpy(&self.payloads[rows[i]], payload_of(&records[i], slots), 8)

    cdef void _scatter_ids(self, const frame_t* records, Py_ssize_t count) noexcept nogil:
        cdef const uint32_t* rows = self.rows
        cdef uint64_t* ids = self.ids
        cdef Py_ssize_t i
        for i in range(count):
            ids[rows[i]] = records[i].can_id & ID_MASK


cdef void* _grow(void* memory, size_t size) except NULL:
    cdef void* grown = realloc(memory, size)
    if grown == NULL:
        raise MemoryError(f"no memory for {size} bytes of decoder scratch")
    return grown
