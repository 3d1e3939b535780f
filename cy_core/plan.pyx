"""Compile a decoder manifest (edge/manifest.py) to the C tables of plan.pxd, once, when it is loaded."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from cy_core.structs cimport EXTENDED_ID


cdef class Plan:
    """The tables of one manifest. Raises ValueError for a field that no frame could hold."""

    def __cinit__(self, manifest):
        cdef uint32_t size = 4, number, i
        cdef Py_ssize_t signal_count = 0, range_count = 0
        keys = sum(1 + message.is_by_pgn for message in manifest.messages if message.extended or message.protocol)
        while size < 2 * keys + 2:
            size *= 2
        for message in manifest.messages:
            signal_count += len(message.signals)
            range_count += sum(len(signal.selected_by) for signal in message.signals)

        if len(manifest.buses) > 256:
            raise ValueError(f"{len(manifest.buses)} buses; frames can name 256")
        if len(manifest.messages) > MOST_MESSAGES:
            raise ValueError(f"{len(manifest.messages)} messages; at most {MOST_MESSAGES} can be decoded at once")
        self.manifest = manifest
        self.message_count = len(manifest.messages)
        self.signal_count = signal_count
        self.identifiers.mask = size - 1
        self.messages = <message_t*>_zeroed(self.message_count, sizeof(message_t))
        self.signals = <signal_t*>_zeroed(signal_count, sizeof(signal_t))
        self.order = <uint32_t*>_zeroed(signal_count, sizeof(uint32_t))
        self.ranges = <range_t*>_zeroed(range_count, sizeof(range_t))
        self.identifiers.standard = <uint16_t*>_zeroed(256 << 11, sizeof(uint16_t))
        self.identifiers.keys = <uint64_t*>_zeroed(size, sizeof(uint64_t))
        self.identifiers.messages = <uint16_t*>_zeroed(size, sizeof(uint16_t))
        self.identifiers.by_pgn = <uint8_t*>_zeroed(256, 1)

        signal_count = range_count = 0
        for number, message in enumerate(manifest.messages):
            self._add_identifier(number, message)
            self.messages[number].first_signal = signal_count
            self.messages[number].signal_count = len(message.signals)
            orders = {signal.big_endian for signal in message.signals if not signal.of_id}
            self.messages[number].big_endian = orders == {True}
            self.messages[number].is_mixed = len(orders) == 2
            self.has_ids |= any(signal.of_id for signal in message.signals)
            self.messages[number].of_id = any(signal.of_id for signal in message.signals)
            self.messages[number].selects_early, self.messages[number].selecting = _selecting(message)
            for i, place in enumerate(_selectors_first(message)):
                self.order[signal_count + i] = place
            for signal in message.signals:
                self.signals[signal_count] = _signal(f"{message.name}.{signal.name}", signal)
                self.signals[signal_count].first_range = range_count
                self.signals[signal_count].range_count = len(signal.selected_by)
                for low, high in signal.selected_by:
                    self.ranges[range_count].low, self.ranges[range_count].high = low, high
                    range_count += 1
                if signal.selector is not None:
                    self.messages[number].is_multiplexed = True
                self.messages[number].needed = max(self.messages[number].needed, self.signals[signal_count].needed)
                self.messages[number].row_bytes += self.signals[signal_count].width
                signal_count += 1
            self.messages[number].protocol = ("", "j1939", "nmea2000", "isotp", "isotp-length", "isotp-extended").index(
                message.protocol
            )
            self.messages[number].is_long = self.messages[number].needed > 8
            self.longest = max(self.longest, self.messages[number].needed)
            if not self.messages[number].is_long:
                for i in range(self.messages[number].first_signal, signal_count):
                    _load_from_the_start(&self.signals[i])

    def __dealloc__(self):
        free(self.messages)
        free(self.signals)
        free(self.order)
        free(self.ranges)
        free(self.identifiers.standard)
        free(self.identifiers.keys)
        free(self.identifiers.messages)
        free(self.identifiers.by_pgn)

    def find_message(self, int bus, uint32_t can_id):
        """Index of the message with this identifier (bit 31: extended) on this bus, or None."""
        cdef uint32_t number = find_whole(&self.identifiers, bus, can_id)
        return number - 1 if number else None

    cdef int _add_identifier(self, uint32_t number, message) except -1:
        cdef uint32_t bus = self.manifest.buses.index(message.bus)
        cdef uint32_t can_id = <uint32_t>message.id | (EXTENDED_ID if message.extended else 0)
        cdef uint64_t kind = 0
        if message.protocol.startswith("isotp") or (message.protocol == "nmea2000" and message.length > 8):
            kind = SEGMENTS_KEY
            self.has_segments = True
        elif not message.extended:
            self.identifiers.standard[bus << 11 | <uint32_t>(message.id & 0x7FF)] = number + 1
            return 0
        self._add_key(kind | <uint64_t>bus << 32 | can_id, number)
        if message.is_by_pgn:
            self.has_segments = self.identifiers.by_pgn[bus] = True
            self._add_key(kind | PGN_KEY | <uint64_t>bus << 32 | can_id & pgn_mask(can_id), number)
        return 0

    cdef int _add_key(self, uint64_t key, uint32_t number) except -1:
        """Of several messages with one key the first stays: those of one group differ in priority or source only."""
        cdef uint32_t slot = <uint32_t>(key * HASH >> 32) & self.identifiers.mask
        while self.identifiers.messages[slot]:
            if self.identifiers.keys[slot] == key:
                return 0
            slot = (slot + 1) & self.identifiers.mask
        self.identifiers.keys[slot], self.identifiers.messages[slot] = key, number + 1
        return 0


cdef signal_t _signal(str name, signal) except *:
    """The table row of a signal, loading the eight bytes from its own first byte on."""
    cdef signal_t row
    cdef int first_bit, length = signal.length
    if not 1 <= length <= 64 or signal.start < 0 or signal.needed_bytes > LONGEST_PAYLOAD:
        raise ValueError(f"{name}: a field of {length} bits at bit {signal.start} cannot be decoded")
    if signal.is_float and length not in (16, 32, 64):
        raise ValueError(f"{name}: a floating-point field of {length} bits does not exist")
    if signal.big_endian:
        first_bit = 8 * (signal.start // 8) + 7 - signal.start % 8
    else:
        first_bit = signal.start
    row.first_byte = first_bit // 8 - (ROW_HEAD if signal.of_id else 0)
    first_bit %= 8
    row.needed = signal.needed_bytes
    row.length = length
    row.big_endian = signal.big_endian
    row.source = IDENTIFIER if signal.of_id else BIG if signal.big_endian else LITTLE
    row.spill = max(0, first_bit + length - 64)
    if row.spill:
        row.left, row.right = first_bit, 64 - length
    elif row.big_endian:
        row.left, row.right = first_bit, 64 - length
    else:
        row.left, row.right = 64 - first_bit - length, 64 - length
    row.sign = 1ULL << (length - 1) if signal.signed and not signal.is_float else 0
    row.width = 1 if length <= 8 else 2 if length <= 16 else 4 if length <= 32 else 8
    row.format = ord(_format(signal, row.width))
    row.selector = -1 if signal.selector is None else signal.selector
    row.first_range = row.range_count = 0
    return row


def _format(signal, int width):
    if signal.is_float:
        return {2: "e", 4: "f", 8: "d"}[width]
    letter = {1: "b", 2: "h", 4: "i", 8: "q"}[width]
    return letter if signal.signed else letter.upper()


cdef void _load_from_the_start(signal_t* signal) noexcept:
    """In a message of up to eight bytes every field comes out of the same eight: whole columns share one load."""
    cdef int start = -ROW_HEAD if signal.source == IDENTIFIER else 0
    if signal.big_endian:
        signal.left += 8 * (signal.first_byte - start)
    else:
        signal.left -= 8 * (signal.first_byte - start)
    signal.first_byte = start


def _selecting(message):
    """Whether all selectors lie in the first eight bytes, and a mask of their bits there. Raises ValueError."""
    mask = 0
    for place in {signal.selector for signal in message.signals} - {None}:
        if not 0 <= place < len(message.signals):
            raise ValueError(f"{message.name}: there is no signal {place}, which selects others")
        signal = message.signals[place]
        if signal.of_id or signal.needed_bytes > 8:
            return False, 0
        number = signal.start
        for _ in range(signal.length):
            mask |= 1 << number
            if not signal.big_endian:
                number += 1
            else:
                number = number + 15 if number % 8 == 0 else number - 1
    return True, mask


def _selectors_first(message):
    """Signal indexes, each behind its selector. Raises ValueError where selectors select each other in a ring."""
    depths = []
    for signal in message.signals:
        depth, selector = 0, signal.selector
        while selector is not None:
            depth += 1
            if depth > len(message.signals):
                raise ValueError(f"{message.name}.{signal.name}: its multiplexer selectors form a ring")
            selector = message.signals[selector].selector
        depths.append(depth)
    return sorted(range(len(depths)), key=depths.__getitem__)


cdef void* _zeroed(Py_ssize_t count, size_t size) except NULL:
    cdef void* memory = calloc(max(count, 1), size)
    if memory == NULL:
        raise MemoryError(f"no memory for {count} entries of a decoder plan")
    return memory
