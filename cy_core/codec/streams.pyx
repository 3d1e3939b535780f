"""The streams of a block, and the way of a payload through fields, history and checksum rules."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memset

from cy_core.codec.checksum cimport follow, rule_t
from cy_core.codec.coder cimport code_bit, coder_t
from cy_core.codec.models cimport Models, line, mix
from cy_core.codec.number cimport code_residual, code_value, learn_value
from cy_core.codec.order cimport due_t
from cy_core.codec.payload cimport FIELDS_MAX, code_row, history_t, start_history, wrap
from cy_core.crc32c cimport update
from cy_core.structs cimport PAYLOAD_SLOT, REMOTE_FRAME

cdef extern from *:
    """
    #define bordnetz_swap(x) __builtin_bswap64(x)
    """
    uint64_t swap64 "bordnetz_swap"(uint64_t x) noexcept nogil


cdef class Streams:
    """table: (bus name, can_id, flags, length, period_us, has_selector, fields, rules) for each stream; fields are
    (word, big_endian, shift, width), rules (kind, byte, shift, width, factor, constant). trained: the table's
    contexts, as Models takes them. learning: models are kept from block to block, and see each row as a first one.

    Raises ValueError: a field or rule that no payload has.
    """

    def __cinit__(self, table=(), const uint8_t[::1] trained=None, *, bint learning=False):
        cdef Py_ssize_t field_count = 64, rule_count = 0, i
        self.table = tuple(table)
        self.models = Models(trained)
        self.models.forget()
        self.learning = learning
        for entry in self.table:
            _check(entry)
            field_count += len(entry[6])
            rule_count += len(entry[7])
        self.fields = <field_t*>_memory(field_count, sizeof(field_t))
        self.widths = <uint8_t*>_memory(field_count, 1)
        self.rules = <rule_t*>_memory(rule_count, sizeof(rule_t))
        self.rows = <row_t*>_memory(ROWS_MAX, sizeof(row_t))
        self.histories = <history_t*>_memory(HISTORIES_MAX, sizeof(history_t))
        self.selected = <int32_t*>_memory(256 * len(self.table), sizeof(int32_t))
        for i in range(64):
            self.fields[i] = field_t(word=i >> 3, big_endian=False, shift=8 * (i & 7), width=8)
            self.widths[i] = 8
        field_count, rule_count = 64, 0
        for entry in self.table:
            for word, big_endian, shift, width in entry[6]:
                self.fields[field_count] = field_t(word=word, big_endian=big_endian, shift=shift, width=width)
                self.widths[field_count] = width
                field_count += 1
            for kind, byte, shift, width, factor, constant in entry[7]:
                self.rules[rule_count] = rule_t(
                    kind=kind, byte=byte, shift=shift, width=width, factor=factor, constant=constant
                )
                rule_count += 1

    def __dealloc__(self):
        free(self.streams)
        free(self.dues)
        free(self.payloads)
        free(self.fields)
        free(self.widths)
        free(self.rules)
        free(self.rows)
        free(self.histories)
        free(self.selected)
        free(self.places)

    cdef int begin_block(self, tuple names, int64_t unit_us) except -1:
        """Forget all of the block before; names: of the buses; times are in units of unit_us."""
        cdef Py_ssize_t i
        if names != self.names:
            for i in range(len(names)):
                self.bus_keys[i] = bus_key(names[i])
            self._know(names)
        self.stream_count = self.known_count
        self.row_count = self.history_count = self.selected_count = self.payload_count = 0
        if self.places:
            memset(self.places, 0xFF, (self.place_mask + 1) * sizeof(int32_t))
        for i in range(self.known_count):
            self.streams[i].row = self.streams[i].selected = -1
            self.streams[i].coded_at = self.streams[i].copied = 0
            if self.streams[i].sister >= self.known_count:
                self.streams[i].sister = -1  # it was described in the block before
            self.dues[i] = due_t(
                key=self.streams[i].key, last=0, due=0, period=16 * self.streams[i].period_us // unit_us,
                seen=0, recent=0, follower=-1,
            )
            self._place(i)
        return 0

    cdef int _know(self, tuple names) except -1:
        """The streams of the table that are on buses of these names."""
        cdef Py_ssize_t field = 64, rule = 0
        cdef int32_t number
        cdef stream_t* stream
        self.names = None
        self.stream_count = self.known_count = 0
        if self.places:
            memset(self.places, 0xFF, (self.place_mask + 1) * sizeof(int32_t))
        for bus, can_id, flags, length, period_us, has_selector, fields, rules in self.table:
            if bus in names:
                number = self._add(bus_key(bus), names.index(bus), can_id, flags, length)
                stream = &self.streams[number]
                stream.has_selector = has_selector
                stream.first_field, stream.field_count = field, len(fields)
                stream.first_rule, stream.rule_count = rule, len(rules)
                stream.period_us = period_us
            field += len(fields)
            rule += len(rules)
        self.known_count = self.stream_count
        self.names = names
        return 0

    cdef int32_t find(self, uint8_t bus, uint32_t can_id, uint8_t flags, uint8_t length) except -1 nogil:
        """The number of a stream; a new one where there is none yet."""
        cdef uint32_t place
        cdef const stream_t* stream
        if self.stream_count:
            place = _hash(can_id, flags, length) & self.place_mask
            while self.places[place] >= 0:
                stream = &self.streams[self.places[place]]
                if stream.can_id == can_id and stream.bus == bus and stream.flags == flags and stream.length == length:
                    return self.places[place]
                place = (place + 1) & self.place_mask
        return self._add(self.bus_keys[bus], bus, can_id, flags, length)

    cdef int32_t _add(
        self, uint32_t bus_key, uint8_t bus, uint32_t can_id, uint8_t flags, uint8_t length
    ) except -1 nogil:
        cdef int32_t number = self.stream_count
        cdef stream_t* stream
        if number == self.stream_capacity:
            self._grow()
        stream = &self.streams[number]
        stream.key = mix(mix(bus_key, can_id), <uint32_t>flags << 8 | length)
        stream.can_id, stream.bus, stream.flags, stream.length = can_id, bus, flags, length
        stream.has_selector = False
        stream.first_field = stream.first_rule = stream.rule_count = 0
        stream.field_count = 0 if can_id & REMOTE_FRAME else length
        stream.period_us = 0
        stream.row = stream.selected = -1
        stream.coded_at = stream.copied = 0
        stream.sister = -1
        self.dues[number] = due_t(key=stream.key, last=0, due=0, period=0, seen=0, recent=0, follower=-1)
        self.stream_count += 1
        self._place(number)
        self._find_sister(number)
        return number

    cdef int _grow(self) except -1 nogil:
        """Room for twice the streams, and places for twice that."""
        cdef Py_ssize_t capacity = max(512, 2 * self.stream_capacity), i
        cdef void* streams = realloc(self.streams, capacity * sizeof(stream_t))
        cdef void* dues
        cdef void* payloads
        cdef void* places
        if streams != NULL:
            self.streams = <stream_t*>streams
        dues = realloc(self.dues, capacity * sizeof(due_t))
        if dues != NULL:
            self.dues = <due_t*>dues
        payloads = realloc(self.payloads, capacity * sizeof(self.payloads[0]))
        if payloads != NULL:
            self.payloads = <uint64_t(*)[8]>payloads
        places = realloc(self.places, 2 * capacity * sizeof(int32_t))
        if places != NULL:
            self.places = <int32_t*>places
        if streams == NULL or dues == NULL or payloads == NULL or places == NULL:
            with gil:
                raise MemoryError(f"no memory for {capacity} streams")
        self.stream_capacity, self.place_mask = capacity, 2 * capacity - 1
        memset(self.places, 0xFF, 2 * capacity * sizeof(int32_t))
        for i in range(self.stream_count):
            self._place(i)
        return 0

    cdef void _place(self, int32_t number) noexcept nogil:
        cdef const stream_t* stream = &self.streams[number]
        cdef uint32_t place = _hash(stream.can_id, stream.flags, stream.length) & self.place_mask
        while self.places[place] >= 0:
            place = (place + 1) & self.place_mask
        self.places[place] = number

    cdef void _find_sister(self, int32_t number) noexcept nogil:
        """The first one that differs in its bus alone; it takes this one for its own if it has none yet."""
        cdef stream_t* stream = &self.streams[number]
        cdef stream_t* other
        cdef uint32_t place = _hash(stream.can_id, stream.flags, stream.length) & self.place_mask
        while self.places[place] != number:  # the older, the further to the front
            other = &self.streams[self.places[place]]
            if other.can_id == stream.can_id and other.flags == stream.flags and other.length == stream.length:
                stream.sister = self.places[place]
                if other.sister < 0:
                    other.sister = number
                return
            place = (place + 1) & self.place_mask

    # -- payloads --------------------------------------------------------------------------------------------

    cdef void code_payload(self, coder_t* coder, int32_t number, uint64_t* payload) noexcept nogil:
        """payload: 64 bytes, zero behind the length; read or written."""
        cdef stream_t* stream = &self.streams[number]
        cdef bint known = False
        if stream.field_count == 0 and stream.rule_count == 0:
            return
        if not self.models.data.mixes:
            self._code_rows(coder, stream, payload, False)
            return
        if stream.sister >= 0 and self.streams[stream.sister].coded_at:
            known = self._code_copy(coder, stream, payload)
        self._code_rows(coder, stream, payload, known)
        memcpy(self.payloads[number], payload, PAYLOAD_SLOT)
        self.payload_count += 1
        stream.coded_at = self.payload_count

    cdef bint _code_copy(self, coder_t* coder, stream_t* stream, uint64_t* payload) noexcept nogil:
        """Is it what the same message has on another bus?"""
        cdef const uint64_t* copy = self.payloads[stream.sister]
        cdef int place = (stream.copied & 7) << 1 | (self.streams[stream.sister].coded_at > stream.coded_at)
        cdef bint is_copy = not coder.reading and memcmp(copy, payload, PAYLOAD_SLOT) == 0
        is_copy = code_bit(coder, line(&self.models.data, mix(stream.key, COPY)) + place, is_copy)
        stream.copied = stream.copied << 1 | is_copy
        if is_copy:
            memcpy(payload, copy, PAYLOAD_SLOT)
        return is_copy

    cdef void _code_rows(self, coder_t* coder, stream_t* stream, uint64_t* payload, bint known) noexcept nogil:
        """known: nothing is read or written, the fields only take note."""
        cdef uint64_t[FIELDS_MAX] values
        cdef uint64_t word
        cdef const field_t* field = self.fields + stream.first_field
        cdef int32_t i
        cdef uint32_t key = stream.key
        if known or not coder.reading:
            for i in range(stream.field_count):
                word = payload[field[i].word]
                if field[i].big_endian:
                    word = swap64(word)
                values[i] = (word >> field[i].shift) & (0xFFFFFFFFFFFFFFFFULL >> (64 - field[i].width))
        if not stream.has_selector:
            self._code_fields(coder, stream, key, &stream.row, 0, stream.field_count, values, payload, True, known)
            return
        self._code_fields(coder, stream, mix(key, SELECT), &stream.row, 0, 1, values, payload, False, known)
        if stream.selected < 0:
            stream.selected = self.selected_count
            self.selected_count += 256
            memset(self.selected + stream.selected, 0xFF, 256 * sizeof(int32_t))
        self._code_fields(
            coder, stream, mix(mix(key, SELECT), 1 + values[0]), &self.selected[stream.selected + values[0]],
            1, stream.field_count - 1, values, payload, True, known,
        )

    cdef void _code_fields(
        self, coder_t* coder, stream_t* stream, uint32_t key, int32_t* row, int32_t first, int32_t count,
        uint64_t* values, uint64_t* payload, bint last, bint known
    ) noexcept nogil:
        """Fields first..first+count-1, then, where they are the last, what follows from all."""
        cdef const uint8_t* widths = self.widths + stream.first_field + first
        cdef const field_t* field
        cdef history_t* histories
        cdef bint as_predicted = True
        cdef uint64_t word
        cdef int32_t i
        values += first
        if last and not known and not coder.reading:
            as_predicted = self._follows(stream, payload)
        if row[0] < 0:
            row[0] = self._new_row(count)
            for i in range(count):
                if not known:
                    values[i] = code_value(coder, &self.models.data, mix(key, FIRST + i), widths[i], values[i])
                if row[0] >= 0:
                    start_history(&self.histories[self.rows[row[0]].first_history + i], values[i])
            as_predicted = False
        else:
            as_predicted = code_row(
                coder, &self.models.data, key, widths, count, self.histories + self.rows[row[0]].first_history,
                values, &self.rows[row[0]].recent, as_predicted, known,
            )
            if self.learning:
                for i in range(count):
                    learn_value(&self.models.data, mix(key, FIRST + i), widths[i], values[i])
        if known or not last:
            return
        if coder.reading:
            memset(payload, 0, 64)
            values -= first
            for i in range(stream.field_count):
                field = self.fields + stream.first_field + i
                word = values[i] << field.shift
                payload[field.word] |= swap64(word) if field.big_endian else word
        if coder.reading or not as_predicted:
            self._code_rules(coder, stream, payload, as_predicted)

    cdef bint _follows(self, const stream_t* stream, const uint64_t* payload) noexcept nogil:
        """Writing: do all checksums follow from the rest?"""
        cdef const uint8_t* bytes_ = <const uint8_t*>payload
        cdef const rule_t* rule
        cdef int32_t i
        for i in range(stream.rule_count):
            rule = self.rules + stream.first_rule + i
            if (bytes_[rule.byte] >> rule.shift & ((1 << rule.width) - 1)) != follow(rule, bytes_, stream.length):
                return False
        return True

    cdef void _code_rules(self, coder_t* coder, const stream_t* stream, uint64_t* payload, bint known) noexcept nogil:
        """The checksums, in the order of the rules; known: they follow. Reading, their bits are 0 so far."""
        cdef uint8_t* bytes_ = <uint8_t*>payload
        cdef const rule_t* rule
        cdef int32_t i
        cdef uint32_t expected, mask, value
        cdef int64_t residual
        for i in range(stream.rule_count):
            rule = self.rules + stream.first_rule + i
            mask = (1 << rule.width) - 1
            expected = follow(rule, bytes_, stream.length)
            residual = 0
            if not known:
                value = bytes_[rule.byte] >> rule.shift & mask
                residual = code_residual(
                    coder, &self.models.data, mix(stream.key, RULE + i), 0, wrap(value - expected, rule.width)
                )
            if coder.reading:
                bytes_[rule.byte] |= ((expected + <uint32_t>residual) & mask) << rule.shift

    cdef int32_t _new_row(self, int32_t count) noexcept nogil:
        """-1: no room for more history; then every row is coded as a first one."""
        if self.row_count == ROWS_MAX or self.history_count + count > HISTORIES_MAX:
            return -1
        self.rows[self.row_count] = row_t(first_history=self.history_count, recent=0xFFFFFFFF)
        self.history_count += count
        self.row_count += 1
        return self.row_count - 1


cdef inline uint32_t _hash(uint32_t can_id, uint8_t flags, uint8_t length) noexcept nogil:
    """Without the bus, so that the same message of another one is close by."""
    return mix(can_id, <uint32_t>flags << 8 | length)


def bus_key(str name not None):
    """The key of a bus, from which those of its streams are made."""
    cdef bytes encoded = name.encode()
    return mix(update(0, <const uint8_t*><const char*>encoded, len(encoded)), HEAD)


def _check(entry):
    """Fields and rules lie inside the payload, and no two over each other; that they cover it is for the caller."""
    bus, can_id, flags, length, period_us, has_selector, fields, rules = entry
    place = f"stream {bus} {can_id:X}"
    if not 0 <= length <= 64 or (can_id & REMOTE_FRAME and (fields or rules)) or len(fields) > FIELDS_MAX:
        raise ValueError(f"{place}: {length} bytes with {len(fields)} fields")
    taken = 0
    for word, big_endian, shift, width in fields:
        if not (0 <= word < 8 and 1 <= width and 0 <= shift and shift + width <= 64):
            raise ValueError(f"{place}: no such field")
        bits = ((1 << width) - 1) << shift
        if big_endian:
            bits = int.from_bytes(bits.to_bytes(8, "little"), "big")
        bits <<= 64 * word
        if taken & bits or bits >> 8 * length:
            raise ValueError(f"{place}: a field outside of the payload, or over another one")
        taken |= bits
    for kind, byte, shift, width, factor, constant in rules:
        bits = ((1 << width) - 1) << (8 * byte + shift)
        if not (1 <= kind <= 4 and byte < length and (shift, width) in ((0, 8), (0, 4), (4, 4))) or taken & bits:
            raise ValueError(f"{place}: a checksum outside of the payload, or over a field")
        taken |= bits
    if has_selector and (not fields or fields[0][3] > 8):
        raise ValueError(f"{place}: no selector, or one of over eight bits")
    if not 0 <= period_us < 1 << 40:
        raise ValueError(f"{place}: a period of {period_us} us")


cdef void* _memory(Py_ssize_t count, size_t size) except NULL:
    cdef void* memory = calloc(max(count, 1), size)
    if memory == NULL:
        raise MemoryError(f"no memory for {count} entries of the codec")
    return memory
