"""A decoder manifest as C tables, and how a field is cut out of a payload.

One formula serves every field of up to 64 bits: load eight bytes, swap them for a big-endian field, push the
bits above the field out on the left, bring the field down from the right, extend its sign.

    v = (x << left) >> right;  v = (v ^ sign) - sign
"""
from libc.stdint cimport int16_t, int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #define bordnetz_swap64(x) __builtin_bswap64(x)
    #define bordnetz_hash 0x9E3779B97F4A7C15ULL
    #define bordnetz_pgn_key (1ULL << 40)
    #define bordnetz_segments_key (1ULL << 41)
    """
    uint64_t swap64 "bordnetz_swap64"(uint64_t x) noexcept nogil
    const uint64_t HASH "bordnetz_hash"     # 2^64 / golden ratio: Fibonacci hashing, Knuth TAOCP 3, 6.4
    const uint64_t PGN_KEY "bordnetz_pgn_key"               # of a parameter group, beside those of identifiers
    const uint64_t SEGMENTS_KEY "bordnetz_segments_key"     # of what comes in segments

cdef enum:
    ROW_PADDING = 16            # bytes readable behind a payload that field() reads from
    ROW_HEAD = 8                # and in front of it: the identifier
    LONGEST_PAYLOAD = 4095      # of a message in segments
    TP_CONTROL = 0xEC           # PDU formats of the J1939 transport protocol
    TP_DATA = 0xEB
    MOST_MESSAGES = 65535       # of a manifest: number + 1 fits in 16 bits


cdef extern from "column_kernels.h":
    enum:
        LITTLE, BIG, IDENTIFIER
    ctypedef struct signal_t:
        uint64_t sign
        int16_t first_byte
        uint16_t needed
        uint8_t left
        uint8_t right
        uint8_t spill
        uint8_t length
        uint8_t big_endian
        uint8_t source
        uint8_t width
        char format
        int32_t selector
        uint32_t first_range
        uint32_t range_count


cdef struct range_t:
    uint64_t low, high


cdef enum protocol_t:
    NO_PROTOCOL, J1939, NMEA2000, ISOTP, ISOTP_LENGTH, ISOTP_EXTENDED      # in the order of edge/manifest.py


cdef struct message_t:
    uint32_t first_signal, signal_count
    uint16_t needed             # payload bytes that hold every signal
    uint8_t is_long             # needed > 8
    uint8_t of_id               # some fields are of the identifier
    uint8_t is_multiplexed
    uint8_t big_endian          # every field of the payload is
    uint8_t is_mixed            # some are, some are not
    uint8_t protocol            # protocol_t
    uint32_t row_bytes          # of all columns, one row
    uint64_t selecting          # the first eight payload bytes: the bits that say which signals are there
    uint8_t selects_early       # and there are no others


cdef struct identifiers_t:      # (bus, identifier) -> message + 1; 0 is none
    uint16_t* standard          # [bus][11-bit id], for all 256 buses: what is never read takes no memory
    uint64_t* keys              # open addressing, bus << 32 | id with bit 31 if it has 29 bits
    uint16_t* messages
    uint32_t mask
    uint8_t* by_pgn             # [bus]: has messages that are matched by parameter group


cdef class Plan:
    cdef readonly object manifest
    cdef signal_t* signals
    cdef uint32_t* order        # signals of each message, selectors before what they select
    cdef range_t* ranges
    cdef message_t* messages
    cdef readonly uint32_t message_count, signal_count, longest     # payload, in bytes
    cdef readonly bint has_segments     # some messages may come in several frames
    cdef readonly bint has_ids          # some fields are of the identifier
    cdef identifiers_t identifiers

    cdef int _add_identifier(self, uint32_t number, message) except -1
    cdef int _add_key(self, uint64_t key, uint32_t number) except -1

    cdef inline bint selects(self, const signal_t* signal, uint64_t raw) noexcept nogil:
        cdef uint32_t i
        for i in range(signal.first_range, signal.first_range + signal.range_count):
            if self.ranges[i].low <= raw <= self.ranges[i].high:
                return True
        return False


cdef inline uint32_t find_message(const identifiers_t* identifiers, uint8_t bus, uint32_t can_id) noexcept nogil:
    """The message that a frame with this identifier (bit 31: extended) is, plus 1, or 0."""
    if can_id < 2048:
        return identifiers.standard[<uint32_t>bus << 11 | can_id]
    return find_extended(identifiers, bus, can_id)


cdef inline uint32_t find_extended(const identifiers_t* identifiers, uint8_t bus, uint32_t can_id) noexcept nogil:
    """By the identifier itself, else by its parameter group."""
    cdef uint32_t number = find_key(identifiers, <uint64_t>bus << 32 | can_id)
    if number == 0 and identifiers.by_pgn[bus] and can_id >> 29 == 4:     # remote and error frames have no group
        number = find_key(identifiers, PGN_KEY | <uint64_t>bus << 32 | can_id & pgn_mask(can_id))
    return number


cdef inline uint32_t find_segments(const identifiers_t* identifiers, uint8_t bus, uint32_t can_id) noexcept nogil:
    """The message that frames with this identifier are segments of, plus 1, or 0."""
    cdef uint32_t number = find_key(identifiers, SEGMENTS_KEY | <uint64_t>bus << 32 | can_id)
    if number == 0 and identifiers.by_pgn[bus] and can_id >> 29 == 4:
        number = find_key(identifiers, SEGMENTS_KEY | PGN_KEY | <uint64_t>bus << 32 | can_id & pgn_mask(can_id))
    return number


cdef inline bint is_segment(const identifiers_t* identifiers, uint8_t bus, uint32_t can_id) noexcept nogil:
    """Whether a frame is a part of a message: of a transport protocol, or of a message in segments."""
    cdef uint32_t group = can_id >> 16 & 0xFF
    if identifiers.by_pgn[bus] and can_id >> 29 == 4 and (group == TP_CONTROL or group == TP_DATA):
        return True
    return find_segments(identifiers, bus, can_id) != 0


cdef inline uint32_t find_whole(const identifiers_t* identifiers, uint8_t bus, uint32_t can_id) noexcept nogil:
    """The message that a whole payload is, whether it came in one frame or in segments."""
    cdef uint32_t number = find_segments(identifiers, bus, can_id)
    return number if number else find_message(identifiers, bus, can_id)


cdef inline uint32_t find_key(const identifiers_t* identifiers, uint64_t key) noexcept nogil:
    cdef uint32_t slot = <uint32_t>(key * HASH >> 32) & identifiers.mask
    while identifiers.messages[slot]:
        if identifiers.keys[slot] == key:
            return identifiers.messages[slot]
        slot = (slot + 1) & identifiers.mask
    return 0


cdef inline uint32_t pgn_mask(uint32_t can_id) noexcept nogil:
    """Of an identifier, the bits that are its parameter group (SAE J1939-21)."""
    return 0x03FFFF00 if can_id >> 16 & 0xFF >= 240 else 0x03FF0000


cdef inline uint64_t field(const signal_t* signal, const uint8_t* payload) noexcept nogil:
    """The raw value, sign-extended; payload is readable for ROW_PADDING bytes behind its end."""
    cdef uint64_t x
    memcpy(&x, payload + signal.first_byte, 8)
    if signal.spill == 0:
        if signal.big_endian:
            x = swap64(x)
        x = (x << signal.left) >> signal.right
    elif signal.big_endian:
        x = swap64(x) << signal.left | payload[signal.first_byte + 8] >> (8 - signal.left)
        x = x >> signal.right
    else:
        x = x >> signal.left | <uint64_t>payload[signal.first_byte + 8] << (64 - signal.left)
        x = (x << signal.right) >> signal.right
    return (x ^ signal.sign) - signal.sign
