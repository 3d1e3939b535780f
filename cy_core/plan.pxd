"""A decoder manifest as C tables, and how a field is cut out of a payload.

One formula serves every field of up to 64 bits: load eight bytes, swap them for a big-endian field, push the
bits above the field out on the left, bring the field down from the right, extend its sign.

    v = (x << left) >> right;  v = (v ^ sign) - sign
"""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #define bordnetz_swap64(x) __builtin_bswap64(x)
    #define bordnetz_hash 0x9E3779B97F4A7C15ULL
    """
    uint64_t swap64 "bordnetz_swap64"(uint64_t x) noexcept nogil
    const uint64_t HASH "bordnetz_hash"     # 2^64 / golden ratio: Fibonacci hashing, Knuth TAOCP 3, 6.4

cdef enum:
    ROW_PADDING = 16            # bytes readable behind a payload that field() reads from
    MOST_MESSAGES = 65535       # of a manifest: number + 1 fits in 16 bits


cdef extern from "column_kernels.h":
    ctypedef struct signal_t:
        uint64_t sign
        uint16_t first_byte
        uint16_t needed
        uint8_t left
        uint8_t right
        uint8_t spill
        uint8_t length
        uint8_t big_endian
        uint8_t width
        char format
        int32_t selector
        uint32_t first_range
        uint32_t range_count


cdef struct range_t:
    uint64_t low, high


cdef struct message_t:
    uint32_t first_signal, signal_count
    uint16_t needed             # payload bytes that hold every signal
    uint8_t is_long             # needed > 8
    uint8_t is_multiplexed
    uint8_t big_endian          # every signal is
    uint8_t is_mixed            # some are, some are not
    uint32_t row_bytes          # of all columns, one row


cdef struct identifiers_t:      # (bus, identifier) -> message + 1; 0 is none
    uint16_t* standard          # [bus][11-bit id], for all 256 buses: what is never read takes no memory
    uint64_t* extended_keys     # open addressing, bus << 32 | id with bit 31 set
    uint16_t* extended
    uint32_t extended_mask


cdef class Plan:
    cdef readonly object manifest
    cdef signal_t* signals
    cdef uint32_t* order        # signals of each message, selectors before what they select
    cdef range_t* ranges
    cdef message_t* messages
    cdef readonly uint32_t message_count, signal_count
    cdef identifiers_t identifiers

    cdef int _add_identifier(self, uint32_t number, message) except -1

    cdef inline bint selects(self, const signal_t* signal, uint64_t raw) noexcept nogil:
        cdef uint32_t i
        for i in range(signal.first_range, signal.first_range + signal.range_count):
            if self.ranges[i].low <= raw <= self.ranges[i].high:
                return True
        return False


cdef inline uint32_t find_message(const identifiers_t* identifiers, uint8_t bus, uint32_t can_id) noexcept nogil:
    """The message with this identifier (bit 31: extended) plus 1, or 0."""
    if can_id < 2048:
        return identifiers.standard[<uint32_t>bus << 11 | can_id]
    return find_extended(identifiers, bus, can_id)


cdef inline uint32_t find_extended(const identifiers_t* identifiers, uint8_t bus, uint32_t can_id) noexcept nogil:
    cdef uint64_t key = <uint64_t>bus << 32 | can_id
    cdef uint32_t slot = <uint32_t>(key * HASH >> 32) & identifiers.extended_mask
    while identifiers.extended[slot]:
        if identifiers.extended_keys[slot] == key:
            return identifiers.extended[slot]
        slot = (slot + 1) & identifiers.extended_mask
    return 0


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
