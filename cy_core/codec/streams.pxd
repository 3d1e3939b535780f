"""Streams: what frames are beside their time and their payload, and how the payloads of each are coded.

A stream is one bus, identifier, flags and length. The table names those of a vehicle, with period, fields and
checksums; others are described where they first occur in a block, and are coded byte by byte.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from cy_core.codec.checksum cimport rule_t
from cy_core.codec.coder cimport coder_t
from cy_core.codec.models cimport Models
from cy_core.codec.order cimport due_t
from cy_core.codec.payload cimport history_t
from cy_core.structs cimport frame_t

cdef enum:
    HEAD = 0x90000              # keys: of a block's head, and of what is coded below a stream
    FIRST = 0xA0000
    RULE = 0xB0000
    SELECT = 0xC0000
    TIE = 0xD0000
    NEW = 0xE0000
    COPY = 0x180000
    MOST_STREAMS = 1 << 16
    MOST_BUSES = 64
    ROWS_MAX = 1 << 16
    HISTORIES_MAX = 1 << 18


cdef struct field_t:
    uint8_t word                # of eight bytes
    uint8_t big_endian
    uint8_t shift               # right, of the word
    uint8_t width


cdef struct stream_t:
    uint32_t key, can_id
    uint8_t bus, flags, length
    uint8_t has_selector        # the first field says which row the others go on from
    int32_t first_field, field_count
    int32_t first_rule, rule_count
    int64_t period_us           # 0: not known
    int32_t row                 # -1: none yet; with a selector this is the row of the selector alone
    int32_t selected            # where its 256 rows are, one for each value of the selector; -1: none yet
    int32_t sister              # the same identifier, flags and length on another bus; -1: none
    uint32_t coded_at           # as code_payload() counts; 0: not yet in this block
    uint32_t copied             # payloads of late that were the sister's, one bit each


cdef struct row_t:
    int32_t first_history
    uint32_t recent             # as code_row() keeps it


cdef class Streams:
    cdef readonly Models models
    cdef readonly bint learning
    cdef object table, names
    cdef stream_t* streams
    cdef due_t* dues
    cdef uint64_t (*payloads)[8]  # the last one of each stream
    cdef uint32_t payload_count
    cdef Py_ssize_t stream_count, stream_capacity, known_count
    cdef field_t* fields
    cdef uint8_t* widths        # of the fields
    cdef rule_t* rules
    cdef row_t* rows
    cdef Py_ssize_t row_count
    cdef history_t* histories
    cdef Py_ssize_t history_count
    cdef int32_t* selected
    cdef Py_ssize_t selected_count
    cdef int32_t* places        # of streams, by identifier: open addressing; -1 is free
    cdef uint32_t place_mask
    cdef uint32_t[MOST_BUSES] bus_keys

    cdef int begin_block(self, tuple names, int64_t unit_us) except -1
    cdef int32_t find(self, uint8_t bus, uint32_t can_id, uint8_t flags, uint8_t length) except -1 nogil
    cdef void code_payload(self, coder_t* coder, int32_t number, uint64_t* payload) noexcept nogil
    cdef int _know(self, tuple names) except -1
    cdef int32_t _add(self, uint32_t bus_key, uint8_t bus, uint32_t can_id, uint8_t flags, uint8_t length) except -1 nogil
    cdef int _grow(self) except -1 nogil
    cdef void _place(self, int32_t number) noexcept nogil
    cdef void _find_sister(self, int32_t number) noexcept nogil
    cdef bint _code_copy(self, coder_t* coder, stream_t* stream, uint64_t* payload) noexcept nogil
    cdef void _code_rows(self, coder_t* coder, stream_t* stream, uint64_t* payload, bint known) noexcept nogil
    cdef void _code_fields(
        self, coder_t* coder, stream_t* stream, uint32_t key, int32_t* row, int32_t first, int32_t count,
        uint64_t* values, uint64_t* payload, bint last, bint known
    ) noexcept nogil
    cdef bint _follows(self, const stream_t* stream, const uint64_t* payload) noexcept nogil
    cdef void _code_rules(self, coder_t* coder, const stream_t* stream, uint64_t* payload, bint known) noexcept nogil
    cdef int32_t _new_row(self, int32_t count) noexcept nogil
