"""Decode a batch: sort the frames by message, then decode whole columns.

    frames ──count──► rows per message ──scatter──► payloads and times, message by message ──► columns
                                                        │
                          multiplexed, or cut short:    └─► rows that hold the same signals, group by group

Within one message every shift count is the same for a whole column, which the compiler turns into vector code
even for the baseline of its architecture; decoding frame by frame costs three to four times as much, most of it
one mispredicted branch a frame. Payloads over eight bytes are decoded row by row.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memset

from cy_core.columns cimport Columns, column_t, group_t
from cy_core.frames cimport Frames
from cy_core.plan cimport (
    BIG, HASH, IDENTIFIER, ROW_HEAD, ROW_PADDING, Plan, field, find_extended, find_whole, identifiers_t, is_segment,
    message_t, signal_t
)
from cy_core.structs cimport ERROR_FRAME, ID_MASK, PAYLOAD_SLOT, REMOTE_FRAME, frame_t, payload_length

cdef extern from "column_kernels.h":
    size_t decode_columns(
        const signal_t* signals, column_t* columns, size_t column_count, int source, const uint64_t* payloads,
        size_t count, uint64_t changed, uint8_t* arena, size_t end
    ) noexcept nogil
    void decode_rows(
        const signal_t* signal, const uint8_t* rows, size_t stride, size_t count, uint8_t* out
    ) noexcept nogil
    uint64_t changed_bits(uint64_t* payloads, size_t count, int swap) noexcept nogil
    int __builtin_popcountll(uint64_t bits) noexcept nogil
    int __builtin_ctzll(uint64_t bits) noexcept nogil

cdef enum:
    ROWS_AT_ONCE = 32           # long payloads, which stay in the first-level cache
    KNOWN_VARIANTS = 512        # places to remember which signals a payload holds
    KNOWN_WORDS = 4             # … of messages up to 256 signals, from batch to batch
    AT_ONCE = 16384             # frames; with what they turn into they stay in the second-level cache


cdef struct variant_t:          # which signals a payload of this message, length and selecting bits holds
    uint64_t key, split         # the last split that met it
    uint32_t variant            # its number there
    uint32_t message            # + 1; 0: nothing is known here
    uint16_t length
    uint64_t[KNOWN_WORDS] present


cdef class BatchDecoder:
    """Decodes batches by one plan. Holds its scratch memory, so use one in each thread."""

    cdef readonly Plan plan
    # Of each message, at its number + 1; at 0, of the frames without one. Apart, as each loop needs only some.
    cdef uint64_t* counts           # of frames; above 32 bits, of payloads that end before the last signal does
    cdef uint32_t* positions        # of the next row
    cdef uint16_t* needed           # as in message_t
    cdef uint8_t* is_special        # not just eight bytes to copy
    cdef uint16_t* message_of       # one a frame
    cdef uint64_t* payloads         # rows by message: eight payload bytes, or the frame's number for long ones
    cdef uint16_t* lengths          # rows by message
    cdef uint64_t* ids              # rows by message: identifiers, for messages that have fields there
    cdef uint64_t* spare            # as payloads, for a second sort
    cdef uint64_t* spare_ids
    cdef uint32_t* variant_of       # one a row, while a message's rows are split
    cdef uint64_t* variants         # bit sets of the signals present
    cdef uint32_t* ends             # of the rows of each variant
    cdef Py_ssize_t capacity, variant_capacity, ends_capacity
    cdef variant_t[KNOWN_VARIANTS] known    # by the hash of what they are told by
    cdef uint64_t splits
    cdef int64_t* spare_times
    # Some long payloads, each with its identifier in front and zeros behind; the first of all; what is not the same.
    cdef uint64_t* row
    cdef uint64_t* first_row
    cdef uint64_t* changed
    cdef Py_ssize_t row_words

    def __cinit__(self, Plan plan not None):
        cdef uint32_t i
        self.plan = plan
        self.counts = <uint64_t*>_grow(NULL, (plan.message_count + 1) * sizeof(uint64_t))
        self.positions = <uint32_t*>_grow(NULL, (plan.message_count + 1) * sizeof(uint32_t))
        self.needed = <uint16_t*>_grow(NULL, (plan.message_count + 1) * sizeof(uint16_t))
        self.is_special = <uint8_t*>_grow(NULL, plan.message_count + 1)
        memset(self.counts, 0, (plan.message_count + 1) * sizeof(uint64_t))
        self.row_words = (ROW_HEAD + max(plan.longest, <uint32_t>PAYLOAD_SLOT) + ROW_PADDING + 7) // 8
        self.row = <uint64_t*>_grow(NULL, 8 * self.row_words * ROWS_AT_ONCE)
        self.first_row = <uint64_t*>_grow(NULL, 8 * self.row_words)
        self.changed = <uint64_t*>_grow(NULL, 8 * self.row_words)
        self.needed[0] = 0
        for i in range(plan.message_count):
            self.needed[i + 1] = plan.messages[i].needed

    def __dealloc__(self):
        free(self.counts)
        free(self.positions)
        free(self.needed)
        free(self.is_special)
        free(self.message_of)
        free(self.payloads)
        free(self.lengths)
        free(self.spare)
        free(self.ids)
        free(self.spare_ids)
        free(self.spare_times)
        free(self.variant_of)
        free(self.variants)
        free(self.ends)
        free(self.row)
        free(self.first_row)
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
        self.message_of = <uint16_t*>_grow(self.message_of, count * sizeof(uint16_t))
        self.payloads = <uint64_t*>_grow(self.payloads, count * sizeof(uint64_t))
        self.lengths = <uint16_t*>_grow(self.lengths, count * sizeof(uint16_t))
        self.spare = <uint64_t*>_grow(self.spare, count * sizeof(uint64_t))
        if self.plan.has_ids:
            self.ids = <uint64_t*>_grow(self.ids, count * sizeof(uint64_t))
            self.spare_ids = <uint64_t*>_grow(self.spare_ids, count * sizeof(uint64_t))
        self.spare_times = <int64_t*>_grow(self.spare_times, count * sizeof(int64_t))
        self.variant_of = <uint32_t*>_grow(self.variant_of, count * sizeof(uint32_t))
        self.capacity = count
        return 0

    cdef int _decode(
        self, Frames frames, Py_ssize_t start, Py_ssize_t count, Columns columns, bint whole
    ) except -1 nogil:
        cdef const frame_t* records = frames.records + start
        cdef Py_ssize_t arena_start = columns.arena_size
        cdef uint32_t i, first = 0
        cdef bint any_special = False
        if whole:
            self._count_whole(records, count)
        else:
            self._count(records, count, columns)
            columns.unknown_frames += <uint32_t>self.counts[0]
            if self.plan.has_segments:
                self._count_segments(records, count, columns)
        for i in range(self.plan.message_count + 1):
            self.positions[i] = first
            first += <uint32_t>self.counts[i]
            self.is_special[i] = self.counts[i] and (
                self.counts[i] >> 32
                or frames.slot_count
                or (i and (
                    self.plan.messages[i - 1].is_long or self.plan.messages[i - 1].is_multiplexed
                    or self.plan.messages[i - 1].of_id
                ))
            )
            any_special |= self.is_special[i]
        columns.allocate(8 * count)
        self._scatter(records, count, <int64_t*>(columns.arena + arena_start))
        if any_special:
            self._scatter_special(records, count, frames.payloads)
        for i in range(self.plan.message_count):
            if self.counts[i + 1]:
                self._decode_message(i, records, frames.payloads, arena_start, columns)
        memset(self.counts, 0, (self.plan.message_count + 1) * sizeof(uint64_t))
        return 0

    cdef void _count(self, const frame_t* records, Py_ssize_t count, Columns columns) noexcept nogil:
        """Find each frame's message, and count them."""
        # Locals, so that no store in the loop makes the compiler load them again.
        cdef uint16_t* message_of = self.message_of
        cdef uint64_t* counts = self.counts
        cdef const uint16_t* needed = self.needed
        cdef identifiers_t identifiers = self.plan.identifiers
        cdef uint32_t message
        cdef Py_ssize_t i
        for i in range(count):
            if records[i].can_id < 2048:
                message = identifiers.standard[<uint32_t>records[i].bus << 11 | records[i].can_id]
            else:
                # Flags of remote and error frames are in no key, so these find nothing.
                message = find_extended(&identifiers, records[i].bus, records[i].can_id)
                if records[i].can_id & (ERROR_FRAME | REMOTE_FRAME):
                    columns.unknown_frames -= 1
                    if records[i].can_id & ERROR_FRAME:
                        columns.error_frames += 1
                    else:
                        columns.remote_frames += 1
            message_of[i] = <uint16_t>message
            counts[message] += 1 + (<uint64_t>(records[i].length < needed[message]) << 32)

    cdef void _count_whole(self, const frame_t* records, Py_ssize_t count) noexcept nogil:
        """The same for messages that were put together."""
        cdef uint32_t message
        cdef Py_ssize_t i
        for i in range(count):
            message = find_whole(&self.plan.identifiers, records[i].bus, records[i].can_id)
            self.message_of[i] = <uint16_t>message
            self.counts[message] += 1 + (<uint64_t>(payload_length(&records[i]) < self.needed[message]) << 32)

    cdef void _count_segments(self, const frame_t* records, Py_ssize_t count, Columns columns) noexcept nogil:
        """Frames that are parts of messages are not unknown."""
        cdef identifiers_t* identifiers = &self.plan.identifiers
        cdef bint found
        cdef Py_ssize_t i
        for i in range(count):
            if self.message_of[i] == 0 and not records[i].can_id & (ERROR_FRAME | REMOTE_FRAME):
                found = is_segment(identifiers, records[i].bus, records[i].can_id)
                columns.segment_frames += found
                columns.unknown_frames -= found

    cdef void _scatter(self, const frame_t* records, Py_ssize_t count, int64_t* times) noexcept nogil:
        """Sort times and the first eight payload bytes by message.

        Frames without a message are sorted too, in front: cheaper than a branch at each.
        """
        cdef const uint16_t* message_of = self.message_of
        cdef uint32_t* positions = self.positions
        cdef uint64_t* payloads = self.payloads
        cdef uint32_t row
        cdef Py_ssize_t i
        for i in range(count):
            row = positions[message_of[i]]
            positions[message_of[i]] = row + 1
            times[row] = records[i].time_us
            payloads[row] = records[i].data

    cdef void _scatter_special(self, const frame_t* records, Py_ssize_t count, const uint8_t* slots) noexcept nogil:
        """Once more for messages whose rows need more than that: their lengths, and long payloads or where they are."""
        cdef uint32_t i, message, row
        for i in range(self.plan.message_count + 1):
            self.positions[i] -= <uint32_t>self.counts[i]
        for i in range(count):
            message = self.message_of[i]
            row = self.positions[message]
            self.positions[message] = row + 1
            if self.is_special[message]:
                self.lengths[row] = <uint16_t>payload_length(&records[i])
                if message and self.plan.messages[message - 1].of_id:
                    self.ids[row] = records[i].can_id & ID_MASK
                if message and self.plan.messages[message - 1].is_long:
                    self.payloads[row] = i
                elif self.lengths[row] > 8:
                    memcpy(&self.payloads[row], slots + records[i].data * PAYLOAD_SLOT, 8)

    cdef int _decode_message(
        self, uint32_t number, const frame_t* records, const uint8_t* slots, Py_ssize_t arena_start, Columns columns
    ) except -1 nogil:
        cdef const message_t* message = &self.plan.messages[number]
        cdef Py_ssize_t count = <uint32_t>self.counts[number + 1], short_count = self.counts[number + 1] >> 32
        cdef Py_ssize_t first = self.positions[number + 1] - count
        cdef Py_ssize_t times = arena_start + 8 * first
        columns.short_frames += short_count
        if message.signal_count == 0:
            return 0
        if short_count == 0 and not message.is_multiplexed:
            return self._decode_rows(number, times, first, count, NULL, records, slots, columns)
        return self._split(number, times, first, count, records, slots, columns)

    # -- rows of one message that hold the same signals ---------------------------------------------------

    cdef int _decode_rows(
        self, uint32_t number, Py_ssize_t times, Py_ssize_t first, Py_ssize_t count, const uint64_t* present,
        const frame_t* records, const uint8_t* slots, Columns columns,
    ) except -1 nogil:
        """Add the group of rows first..first+count; present is the bit set of signals, or NULL for all."""
        cdef const message_t* message = &self.plan.messages[number]
        cdef const signal_t* signals = &self.plan.signals[message.first_signal]
        cdef column_t* column
        cdef uint32_t i, column_count = message.signal_count
        cdef uint64_t left
        cdef group_t* group
        if present != NULL:
            column_count = 0
            for i in range((message.signal_count + 63) >> 6):
                column_count += __builtin_popcountll(present[i])
            if column_count == 0:
                return 0
        group = columns.add_group()
        group.message = number
        group.count = count
        group.times = times
        group.first_column = columns.column_count
        group.column_count = column_count
        column = columns.add_columns(column_count)
        if present == NULL:
            for i in range(message.signal_count):
                column.signal = i
                column.width = signals[i].width
                column += 1
        else:
            for i in range((message.signal_count + 63) >> 6):
                left = present[i]
                while left:
                    column.signal = 64 * i + __builtin_ctzll(left)
                    column.width = signals[column.signal].width
                    column += 1
                    left &= left - 1
        columns.reserve(count * message.row_bytes + 8 * column_count)
        column -= column_count
        if message.is_long:
            self._decode_long(signals, first, count, records, slots, columns, column, column_count)
        else:
            self._decode_short(message, signals, first, count, columns, column, column_count)
        return 0

    cdef void _decode_short(
        self, const message_t* message, const signal_t* signals, Py_ssize_t first, Py_ssize_t count,
        Columns columns, column_t* column, uint32_t column_count,
    ) noexcept nogil:
        cdef uint64_t* payloads = &self.payloads[first]
        cdef uint64_t changed = changed_bits(payloads, count, message.big_endian)
        columns.arena_size = decode_columns(
            signals, column, column_count, message.big_endian, payloads, count, changed, columns.arena,
            columns.arena_size,
        )
        if message.is_mixed:
            changed = changed_bits(payloads, count, True)
            columns.arena_size = decode_columns(
                signals, column, column_count, BIG, payloads, count, changed, columns.arena, columns.arena_size
            )
        if message.of_id:
            changed = changed_bits(&self.ids[first], count, False)
            columns.arena_size = decode_columns(
                signals, column, column_count, IDENTIFIER, &self.ids[first], count, changed, columns.arena,
                columns.arena_size,
            )

    cdef void _decode_long(
        self, const signal_t* signals, Py_ssize_t first, Py_ssize_t count, const frame_t* records,
        const uint8_t* slots, Columns columns, column_t* column, uint32_t column_count,
    ) noexcept nogil:
        """Some rows at a time side by side, then column by column."""
        cdef const uint8_t* rows = <uint8_t*>self.row + ROW_HEAD
        cdef const uint8_t* mask = <uint8_t*>self.changed + ROW_HEAD
        cdef uint64_t* row
        cdef Py_ssize_t start, i, k, some
        cdef uint32_t j
        for j in range(column_count):
            column[j].offset = columns.arena_size
            columns.arena_size += (count * column[j].width + 7) & ~7
        memset(self.changed, 0, 8 * self.row_words)
        start = 0
        while start < count:
            some = min(count - start, <Py_ssize_t>ROWS_AT_ONCE)
            for i in range(some):
                row = self.row + i * self.row_words
                self._load_long(row, &records[self.payloads[first + start + i]], slots)
                if start == 0 and i == 0:
                    memcpy(self.first_row, row, 8 * self.row_words)
                for k in range(self.row_words):
                    self.changed[k] |= row[k] ^ self.first_row[k]
            for j in range(column_count):
                decode_rows(
                    &signals[column[j].signal], rows, 8 * self.row_words, some,
                    columns.arena + column[j].offset + start * column[j].width,
                )
            start += some
        for j in range(column_count):
            column[j].is_constant = field(&signals[column[j].signal], mask) == 0

    # -- rows that hold different signals ----------------------------------------------------------------

    cdef int _split(
        self, uint32_t number, Py_ssize_t times_at, Py_ssize_t first, Py_ssize_t count, const frame_t* records,
        const uint8_t* slots, Columns columns,
    ) except -1 nogil:
        """Sort a message's rows by the signals that they hold, and decode each such group."""
        cdef const message_t* message = &self.plan.messages[number]
        cdef Py_ssize_t words = (message.signal_count + 63) >> 6, i, variant, variant_count = 0, start
        cdef bint is_known
        cdef uint64_t* present
        cdef uint64_t key
        cdef uint32_t to
        cdef variant_t* known
        self.splits += 1
        for i in range(first, first + count):
            if message.is_long:
                self._load_long(self.row, &records[self.payloads[i]], slots)
            else:
                memset(self.row, 0, 8 * self.row_words)
                self.row[0] = self.ids[i] if message.of_id else 0
                self.row[1] = self.payloads[i]
            # Rows of one length whose selectors are the same hold the same signals.
            key = self.row[1] & message.selecting
            known = &self.known[(key + (<uint64_t>number << 16) + self.lengths[i]) * HASH >> 55]
            is_known = (
                message.selects_early and known.key == key and known.length == self.lengths[i]
                and known.message == number + 1
            )
            if is_known and known.split == self.splits:
                self.variant_of[i - first] = known.variant
                continue
            if (variant_count + 1) * words > self.variant_capacity:
                self._grow_variants((variant_count + 1) * words)
            present = &self.variants[variant_count * words]
            if is_known and words <= KNOWN_WORDS:
                memcpy(present, known.present, 8 * words)
            else:
                self._present(message, <uint8_t*>self.row + ROW_HEAD, self.lengths[i], present)
                known.key, known.message, known.length = key, number + 1, self.lengths[i]
                memcpy(known.present, present, 8 * min(words, <Py_ssize_t>KNOWN_WORDS))
            variant = 0
            while memcmp(&self.variants[variant * words], present, 8 * words):
                variant += 1
            variant_count += variant == variant_count
            self.variant_of[i - first] = variant
            known.split, known.variant = self.splits, <uint32_t>variant
        if variant_count == 1:
            return self._decode_rows(number, times_at, first, count, self.variants, records, slots, columns)
        self._sort(first, count, variant_count, <int64_t*>(columns.arena + times_at), message.of_id)
        start = 0
        for variant in range(variant_count):
            to = self.ends[variant]
            self._decode_rows(
                number, times_at + 8 * start, first + start, to - start, &self.variants[variant * words], records,
                slots, columns,
            )
            start = to
        return 0

    cdef int _sort(
        self, Py_ssize_t first, Py_ssize_t count, Py_ssize_t variant_count, int64_t* times, bint with_ids
    ) except -1 nogil:
        """Order a message's rows by variant, and as they came in each; ends[variant] is where it ends."""
        cdef Py_ssize_t i
        cdef uint32_t to, sum = 0, size
        if variant_count > self.ends_capacity:
            with gil:
                self.ends = <uint32_t*>_grow(self.ends, 2 * variant_count * sizeof(uint32_t))
                self.ends_capacity = 2 * variant_count
        memset(self.ends, 0, variant_count * sizeof(uint32_t))
        for i in range(count):
            self.ends[self.variant_of[i]] += 1
        for i in range(variant_count):
            size = self.ends[i]
            self.ends[i] = sum
            sum += size
        memcpy(self.spare, &self.payloads[first], 8 * count)
        memcpy(self.spare_times, times, 8 * count)
        if with_ids:
            memcpy(self.spare_ids, &self.ids[first], 8 * count)
        for i in range(count):
            to = self.ends[self.variant_of[i]]
            self.ends[self.variant_of[i]] = to + 1
            self.payloads[first + to] = self.spare[i]
            times[to] = self.spare_times[i]
            if with_ids:
                self.ids[first + to] = self.spare_ids[i]
        return 0

    cdef void _present(
        self, const message_t* message, const uint8_t* row, uint16_t length, uint64_t* present
    ) noexcept nogil:
        """The signals that this payload holds: all their bits are there, and their selector selects them."""
        cdef const signal_t* signals = &self.plan.signals[message.first_signal]
        cdef const uint32_t* order = &self.plan.order[message.first_signal]
        cdef const signal_t* signal
        cdef uint32_t i, place
        cdef int selector
        memset(present, 0, 8 * ((message.signal_count + 63) >> 6))
        for i in range(message.signal_count):
            place = order[i]
            signal = &signals[place]
            selector = signal.selector
            if length < signal.needed:
                continue
            if selector >= 0 and not (
                present[selector >> 6] >> (selector & 63) & 1
                and self.plan.selects(signal, field(&signals[selector], row))
            ):
                continue
            present[place >> 6] |= 1ULL << (place & 63)

    cdef void _load_long(self, uint64_t* row, const frame_t* record, const uint8_t* slots) noexcept nogil:
        """The identifier and payload of a frame, as far as any field reaches, zeros behind it."""
        cdef Py_ssize_t length = min(<Py_ssize_t>payload_length(record), 8 * self.row_words - ROW_HEAD - ROW_PADDING)
        cdef const uint8_t* payload = <const uint8_t*>&record.data
        if payload_length(record) > 8:
            payload = slots + record.data * PAYLOAD_SLOT
        memset(row, 0, 8 * self.row_words)
        row[0] = record.can_id & ID_MASK
        memcpy(row + 1, payload, length)

    cdef int _grow_variants(self, Py_ssize_t size) except -1 nogil:
        with gil:
            self.variant_capacity = max(size, 2 * self.variant_capacity, 64)
            self.variants = <uint64_t*>_grow(self.variants, 8 * self.variant_capacity)
        return 0


cdef void* _grow(void* memory, size_t size) except NULL:
    cdef void* grown = realloc(memory, size)
    if grown == NULL:
        raise MemoryError(f"no memory for {size} bytes of decoder scratch")
    return grown
