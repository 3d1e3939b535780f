"""Decode a batch: sort the frames by the signals that they hold, then decode whole columns.

    frames ──count──► rows per variant ──scatter──► payloads and times, variant by variant ──► columns

A variant is a message, or where it is multiplexed or cut short, those frames of it that hold the same signals
(variants.pyx). Within one every shift count is the same for a whole column, which the compiler turns into vector code
even for the baseline of its architecture; decoding frame by frame costs three to four times as much, most of it
one mispredicted branch a frame. Payloads over eight bytes are decoded row by row.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from cy_core.columns cimport Columns, column_t, group_t
from cy_core.frames cimport Frames
from cy_core.plan cimport (
    BIG, HASH, IDENTIFIER, LITTLE, ROW_HEAD, ROW_PADDING, Plan, field, find_extended, find_whole, is_segment,
    message_t, signal_t
)
from cy_core.structs cimport ERROR_FRAME, ID_MASK, REMOTE_FRAME, frame_t, payload_length
from cy_core.variants cimport Variants, payload_of, variant_t

cdef extern from "column_kernels.h":
    enum:
        AT_LEAST                # rows that the kernels handle, and so reach behind the last
    size_t decode_columns(
        const signal_t* signals, const uint32_t* places, column_t* columns, size_t column_count, int source,
        uint64_t* payloads, size_t count, uint8_t* arena, size_t end
    ) noexcept nogil
    void load_row(
        uint64_t* row, const uint8_t* payload, const uint8_t* first, uint64_t* changed, size_t words
    ) noexcept nogil
    void decode_rows(
        const signal_t* signal, const uint8_t* rows, size_t stride, size_t count, uint8_t* out
    ) noexcept nogil

cdef enum:
    ROWS_AT_ONCE = 32           # long payloads, which stay in the first-level cache
    RECENT = 256                # places to remember the messages of identifiers
    AT_ONCE = 16384             # frames; with what they turn into they stay in the second-level cache


cdef struct recent_t:
    uint64_t key
    uint32_t message            # + 1, or 0


cdef class BatchDecoder:
    """Decodes batches by one plan. Holds its scratch memory, so use one in each thread."""

    cdef readonly Plan plan
    cdef Variants variants
    cdef recent_t[RECENT] recent    # by the hash of the key
    # Of each message, at its number + 1; at 0, of the frames without one.
    cdef uint16_t* needed           # payload bytes from which on a frame holds all signals; more than any if multiplexed
    cdef uint32_t* lasts            # its last variant in this batch
    # Of each variant.
    cdef uint64_t* counts           # of rows; above 32 bits, the next variant of the message in this batch
    cdef uint32_t* positions        # of the next row
    cdef uint32_t* order            # those in this batch, as their rows lie
    cdef uint32_t variant_capacity, order_count
    # Of each frame, or row.
    cdef uint32_t* variant_of
    cdef uint64_t* payloads         # rows by variant: eight payload bytes, or the frame's number for long ones
    cdef uint64_t* ids              # rows by variant: identifiers, if any message has fields there
    cdef Py_ssize_t capacity
    # Some long payloads, each with its identifier in front and room behind; where they are not the same.
    cdef uint64_t* rows
    cdef uint64_t* changed
    cdef Py_ssize_t row_words

    def __cinit__(self, Plan plan not None):
        cdef uint32_t i
        self.plan = plan
        self.variants = Variants(plan)
        self._reserve_variants()
        self.needed = <uint16_t*>_grow(NULL, (plan.message_count + 1) * sizeof(uint16_t))
        self.lasts = <uint32_t*>_grow(NULL, (plan.message_count + 1) * sizeof(uint32_t))
        self.row_words = (ROW_HEAD + plan.longest + ROW_PADDING + 7) // 8
        self.rows = <uint64_t*>_grow(NULL, 8 * self.row_words * ROWS_AT_ONCE)
        self.changed = <uint64_t*>_grow(NULL, 8 * self.row_words)
        memset(self.rows, 0, 8 * self.row_words * ROWS_AT_ONCE)
        self.needed[0] = self.lasts[0] = 0
        for i in range(plan.message_count):
            self.needed[i + 1] = 0xFFFF if plan.messages[i].is_multiplexed else plan.messages[i].needed
            self.lasts[i + 1] = i + 1

    def __dealloc__(self):
        free(self.needed)
        free(self.lasts)
        free(self.counts)
        free(self.positions)
        free(self.order)
        free(self.variant_of)
        free(self.payloads)
        free(self.ids)
        free(self.rows)
        free(self.changed)

    def decode_batch(self, Frames frames not None, Columns into=None, Frames assembled=None):
        """Decode frames into columns; a Columns of the same plan may be given to use its memory again.

        assembled: the messages that an Assembler made of these frames; they follow in groups of their own. A batch of
        over 16,384 frames gives groups for each so many. Nothing a frame holds is an error: what no message describes
        is counted, what a short payload still holds is decoded. Raises ValueError: into belongs to another plan, or
        a memoryview still looks into it.
        """
        cdef Columns columns = into if into is not None else Columns(self.plan)
        if columns.plan is not self.plan:
            raise ValueError("columns of another plan cannot be used again here")
        if columns.exports:
            raise ValueError("these columns are still being looked at; release their memoryviews first")
        columns.forget()
        columns.frames = frames.count
        self._decode_all(frames, columns, False)
        if assembled is not None:
            columns.assembled_messages = assembled.count
            self._decode_all(assembled, columns, True)
        return columns

    cdef int _decode_all(self, Frames frames, Columns columns, bint whole) except -1:
        cdef Py_ssize_t start = 0
        self._reserve(min(frames.count, <Py_ssize_t>AT_ONCE))
        with nogil:
            while start < frames.count:
                self._decode(frames, start, min(frames.count - start, <Py_ssize_t>AT_ONCE), columns, whole)
                start += AT_ONCE
        return 0

    cdef int _reserve(self, Py_ssize_t count) except -1:
        if count <= self.capacity:
            return 0
        count = max(count, 4096)
        self.capacity = 0
        self.variant_of = <uint32_t*>_grow(self.variant_of, count * sizeof(uint32_t))
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
            self.positions = <uint32_t*>_grow(self.positions, capacity * sizeof(uint32_t))
            self.order = <uint32_t*>_grow(self.order, capacity * sizeof(uint32_t))
        memset(self.counts + self.variant_capacity, 0, (capacity - self.variant_capacity) * sizeof(uint64_t))
        self.variant_capacity = capacity
        return 0

    cdef int _decode(
        self, Frames frames, Py_ssize_t start, Py_ssize_t count, Columns columns, bint whole
    ) except -1 nogil:
        cdef const frame_t* records = frames.records + start
        cdef const variant_t* variant
        cdef uint64_t row_count
        cdef uint32_t i
        cdef int64_t* times
        cdef Py_ssize_t times_at = columns.arena_size
        cdef bint any_long
        self.variants.limit()
        self._count(records, count, frames.payloads, columns, whole)
        if not whole and self.counts[0]:
            columns.unknown_frames += <uint32_t>self.counts[0]
            if self.plan.has_segments:
                self._count_segments(records, count, columns)
        any_long = self._lay_out(count, columns)
        times = <int64_t*>(columns.arena + times_at)
        columns.arena_size += 8 * count
        if any_long or frames.slot_count:
            self._scatter_long(records, count, frames.payloads, times)
        else:
            self._scatter(records, count, times)
        for i in range(self.order_count):
            variant = &self.variants.variants[self.order[i]]
            row_count = <uint32_t>self.counts[self.order[i]]
            self.counts[self.order[i]] = 0
            if row_count and variant.column_count:
                self._decode_group(
                    variant, times_at, self.positions[self.order[i]] - row_count, row_count, records, frames.payloads,
                    columns,
                )
        return 0

    # -- which variant each frame is, and where its row lies -----------------------------------------------

    cdef int _count(
        self, const frame_t* records, Py_ssize_t count, const uint8_t* slots, Columns columns, bint whole
    ) except -1 nogil:
        """Find each frame's variant, and count them. whole: messages that were put together."""
        # Locals, so that no store in the loop makes the compiler load them again.
        cdef uint32_t* variant_of = self.variant_of
        cdef uint64_t* counts = self.counts
        cdef const uint16_t* needed = self.needed
        cdef const uint16_t* standard = self.plan.identifiers.standard
        cdef uint32_t variant, first_extended = 0 if whole else 2048
        cdef Py_ssize_t i
        for i in range(count):
            if records[i].can_id < first_extended:
                variant = standard[<uint32_t>records[i].bus << 11 | records[i].can_id]
            else:
                variant = self._find_message(&records[i], columns, whole)
            if records[i].length < needed[variant]:
                variant = self._find_variant(variant, &records[i], slots, columns)
                counts = self.counts
            variant_of[i] = variant
            counts[variant] += 1
        return 0

    cdef inline uint32_t _find_message(self, const frame_t* record, Columns columns, bint whole) noexcept nogil:
        """By an identifier that no small table has; what it was is remembered, as the group of one is looked for last."""
        cdef uint64_t key = <uint64_t>whole << 40 | <uint64_t>record.bus << 32 | record.can_id
        cdef recent_t* recent = &self.recent[key * HASH >> 56]
        if recent.key != key:
            recent.key = key
            # Flags of remote and error frames are in no key, so these find nothing.
            if whole:
                recent.message = find_whole(&self.plan.identifiers, record.bus, record.can_id)
            else:
                recent.message = find_extended(&self.plan.identifiers, record.bus, record.can_id)
        if record.can_id & (ERROR_FRAME | REMOTE_FRAME):
            columns.unknown_frames -= 1
            if record.can_id & ERROR_FRAME:
                columns.error_frames += 1
            else:
                columns.remote_frames += 1
        return recent.message

    cdef uint32_t _find_variant(
        self, uint32_t number, const frame_t* record, const uint8_t* slots, Columns columns
    ) except 0 nogil:
        cdef uint32_t variant = self.variants.find(number, record, slots)
        columns.short_frames += payload_length(record) < self.plan.messages[number - 1].needed
        if variant == number:
            return number
        if variant >= self.variant_capacity:
            self._reserve_variants()
        if self.counts[variant] == 0:
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
                self.positions[number] = first
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
        cdef const uint32_t* variant_of = self.variant_of
        cdef uint32_t* positions = self.positions
        cdef uint64_t* payloads = self.payloads
        cdef uint64_t* ids = self.ids
        cdef uint32_t row
        cdef Py_ssize_t i
        for i in range(count):
            row = positions[variant_of[i]]
            positions[variant_of[i]] = row + 1
            times[row] = records[i].time_us
            payloads[row] = records[i].data
            if ids:
                ids[row] = records[i].can_id & ID_MASK

    cdef void _scatter_long(
        self, const frame_t* records, Py_ssize_t count, const uint8_t* slots, int64_t* times
    ) noexcept nogil:
        """The same where some payloads are longer, or belong to messages that are: of these, where they are."""
        cdef const variant_t* variants = self.variants.variants
        cdef uint32_t variant, row
        cdef Py_ssize_t i
        for i in range(count):
            variant = self.variant_of[i]
            row = self.positions[variant]
            self.positions[variant] = row + 1
            times[row] = records[i].time_us
            if variants[variant].is_long:
                self.payloads[row] = i
            else:
                memcpy(&self.payloads[row], payload_of(&records[i], slots), 8)
            if self.ids:
                self.ids[row] = records[i].can_id & ID_MASK

    # -- the rows of one variant ---------------------------------------------------------------------------

    cdef void _decode_group(
        self, const variant_t* variant, Py_ssize_t times_at, Py_ssize_t first, Py_ssize_t count,
        const frame_t* records, const uint8_t* slots, Columns columns,
    ) noexcept nogil:
        """Add the group of rows first..first+count; there is room for it."""
        cdef group_t* group = &columns.group_rows[columns.group_count]
        group.message = variant.message
        group.count = <uint32_t>count
        group.times = times_at + 8 * first
        group.first_column = <uint32_t>columns.column_count
        group.column_count = variant.column_count
        columns.group_count += 1
        columns.column_count += variant.column_count
        if variant.is_long:
            self._decode_long(variant, first, count, records, slots, columns, &columns.column_rows[group.first_column])
        else:
            self._decode_short(variant, first, count, columns, &columns.column_rows[group.first_column])

    cdef void _decode_short(
        self, const variant_t* variant, Py_ssize_t first, Py_ssize_t count, Columns columns, column_t* column
    ) noexcept nogil:
        cdef const message_t* message = &self.plan.messages[variant.message]
        cdef const signal_t* signals = &self.plan.signals[message.first_signal]
        cdef const uint32_t* places = &self.variants.places[variant.first_place]
        columns.arena_size = decode_columns(
            signals, places, column, variant.column_count, BIG if message.big_endian else LITTLE,
            &self.payloads[first], count, columns.arena, columns.arena_size,
        )
        if message.is_mixed:
            columns.arena_size = decode_columns(
                signals, places, column, variant.column_count, BIG, &self.payloads[first], count, columns.arena,
                columns.arena_size,
            )
        if message.of_id:
            columns.arena_size = decode_columns(
                signals, places, column, variant.column_count, IDENTIFIER, &self.ids[first], count, columns.arena,
                columns.arena_size,
            )

    cdef void _decode_long(
        self, const variant_t* variant, Py_ssize_t first, Py_ssize_t count, const frame_t* records,
        const uint8_t* slots, Columns columns, column_t* column,
    ) noexcept nogil:
        """Some rows at a time side by side, then column by column."""
        cdef const signal_t* signals = &self.plan.signals[self.plan.messages[variant.message].first_signal]
        cdef const signal_t* signal
        cdef const uint8_t* rows = <uint8_t*>self.rows + ROW_HEAD
        cdef const uint64_t* numbers = &self.payloads[first]
        cdef const frame_t* record
        cdef const uint8_t* first_payload = payload_of(&records[numbers[0]], slots)
        cdef uint64_t* row
        cdef Py_ssize_t start = 0, i, some
        cdef uint32_t j
        for j in range(variant.column_count):
            column[j].signal = self.variants.places[variant.first_place + j]
            column[j].width = signals[column[j].signal].width
            column[j].offset = columns.arena_size
            columns.arena_size += (count * column[j].width + 7) & ~7
        memset(self.changed, 0, 8 * self.row_words)
        while start < count:
            some = min(count - start, <Py_ssize_t>ROWS_AT_ONCE)
            for i in range(some):
                row = self.rows + i * self.row_words
                record = &records[numbers[start + i]]
                row[0] = record.can_id & ID_MASK
                self.changed[0] |= row[0] ^ records[numbers[0]].can_id & ID_MASK
                load_row(row + 1, payload_of(record, slots), first_payload, self.changed + 1, variant.words)
            for j in range(variant.column_count):
                signal = &signals[column[j].signal]
                decode_rows(
                    signal, rows, 8 * self.row_words, some,
                    columns.arena + column[j].offset + start * column[j].width,
                )
            start += some
        for j in range(variant.column_count):
            column[j].is_constant = field(&signals[column[j].signal], <uint8_t*>self.changed + ROW_HEAD) == 0


cdef void* _grow(void* memory, size_t size) except NULL:
    cdef void* grown = realloc(memory, size)
    if grown == NULL:
        raise MemoryError(f"no memory for {size} bytes of decoder scratch")
    return grown
