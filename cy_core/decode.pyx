"""Decode a batch: sort the frames by the signals that they hold, then decode whole columns.

    frames ──sort──► payloads and times, by message and signals (sort.pyx) ──► columns

Among such rows every shift count is the same for a whole column, which the compiler turns into vector code even for
the baseline of its architecture; decoding frame by frame costs three to four times as much, most of it one
mispredicted branch a frame. Payloads over eight bytes are decoded row by row.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
cimport cython

from cy_core.columns cimport Columns, column_t, group_t
from cy_core.frames cimport Frames
from cy_core.plan cimport BIG, IDENTIFIER, LITTLE, ROW_HEAD, ROW_PADDING, Plan, field, message_t, signal_t
from cy_core.sort cimport Sorter
from cy_core.structs cimport ID_MASK, frame_t
from cy_core.variants cimport payload_of, variant_t

cdef extern from "column_kernels.h":
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
    AT_ONCE = 16384             # frames; with what they turn into they stay in the second-level cache


@cython.final
cdef class BatchDecoder:
    """Decodes batches by one plan. Holds its scratch memory, so use one in each thread."""

    cdef readonly Plan plan
    cdef Sorter sorter
    # Some long payloads, each with its identifier in front and room behind; where they are not the same.
    cdef uint64_t* rows
    cdef uint64_t* changed
    cdef Py_ssize_t row_words

    def __cinit__(self, Plan plan not None):
        self.plan = plan
        self.sorter = Sorter(plan)
        self.row_words = (ROW_HEAD + plan.longest + ROW_PADDING + 7) // 8
        self.rows = <uint64_t*>calloc(ROWS_AT_ONCE * self.row_words, 8)
        self.changed = <uint64_t*>calloc(self.row_words, 8)
        if self.rows == NULL or self.changed == NULL:
            raise MemoryError(f"no memory for {ROWS_AT_ONCE} rows of {8 * self.row_words} bytes")

    def __dealloc__(self):
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
        self.sorter.reserve(min(frames.count, <Py_ssize_t>AT_ONCE))
        with nogil:
            while start < frames.count:
                self._decode(frames, start, min(frames.count - start, <Py_ssize_t>AT_ONCE), columns, whole)
                start += AT_ONCE
        return 0

    cdef int _decode(
        self, Frames frames, Py_ssize_t start, Py_ssize_t count, Columns columns, bint whole
    ) except -1 nogil:
        cdef const frame_t* records = frames.records + start
        cdef const uint8_t* slots = frames.payloads if frames.slot_count else NULL
        cdef const variant_t* variant
        cdef Py_ssize_t times = columns.arena_size, first = 0
        cdef uint32_t i, number, row_count
        self.sorter.sort(records, count, slots, columns, whole)
        for i in range(self.sorter.order_count):
            number = self.sorter.order[i]
            variant = &self.sorter.variants.variants[number]
            row_count = <uint32_t>self.sorter.counts[number]
            self.sorter.counts[number] = 0
            if row_count and variant.column_count:
                self._decode_group(variant, times, first, row_count, records, slots, columns)
            first += row_count
        return 0

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
        cdef const uint32_t* places = &self.sorter.variants.places[variant.first_place]
        columns.arena_size = decode_columns(
            signals, places, column, variant.column_count, BIG if message.big_endian else LITTLE,
            &self.sorter.payloads[first], count, columns.arena, columns.arena_size,
        )
        if message.is_mixed:
            columns.arena_size = decode_columns(
                signals, places, column, variant.column_count, BIG, &self.sorter.payloads[first], count, columns.arena,
                columns.arena_size,
            )
        if message.of_id:
            columns.arena_size = decode_columns(
                signals, places, column, variant.column_count, IDENTIFIER, &self.sorter.ids[first], count, columns.arena,
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
        cdef const uint64_t* numbers = &self.sorter.payloads[first]
        cdef const frame_t* record
        cdef const uint8_t* first_payload = payload_of(&records[numbers[0]], slots)
        cdef uint64_t* row
        cdef Py_ssize_t start = 0, i, some
        cdef uint32_t j
        for j in range(variant.column_count):
            column[j].signal = self.sorter.variants.places[variant.first_place + j]
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
