"""Checksums that follow from the other bits of a payload.

A rule names a place (a byte, or half of one), a kind, and constants found in training:

    SUM       factor * the sum of the other bytes + constant, factor 1 or -1
    NIBBLES   the same of the other half bytes
    XOR       of the other bytes, and the constant
    CRC       of the other bytes in their order, by an 8-bit polynomial, xor the constant

What is sent is the difference to what the rule says, so that a wrong checksum survives. The identifier, a start
value and a final xor are all in the constant, because a stream has one length.
"""
from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    SUM = 1
    NIBBLES = 2
    XOR = 3
    CRC = 4


cdef struct rule_t:
    uint8_t kind
    uint8_t byte                # the checksum's place
    uint8_t shift, width        # in that byte: 0 and 8, 0 and 4, or 4 and 4
    uint8_t factor              # SUM, NIBBLES: 1 or 255; CRC: the polynomial
    uint8_t constant


cdef inline uint32_t follow(const rule_t* rule, const uint8_t* payload, Py_ssize_t length) noexcept nogil:
    """What the checksum should be; the bits at its place do not matter."""
    cdef uint32_t result = 0, mask = (1 << rule.width) - 1, byte
    cdef Py_ssize_t i
    cdef int bit
    for i in range(length):
        byte = payload[i]
        if i == rule.byte:
            if rule.width == 8:
                continue
            byte &= 0xF0 >> rule.shift
        if rule.kind == SUM:
            result += byte
        elif rule.kind == NIBBLES:
            result += (byte & 15) + (byte >> 4)
        elif rule.kind == XOR:
            result ^= byte
        else:
            result ^= byte
            for bit in range(8):
                result = (result << 1 ^ (rule.factor if result & 128 else 0)) & 255
    if rule.kind <= NIBBLES:
        return (result * rule.factor + rule.constant) & mask
    if rule.width == 4 and rule.kind == XOR:
        result ^= result >> 4
    return (result ^ rule.constant) & mask
