"""Checksums that follow from the other bits of a payload and its identifier.

A rule names a field (a byte, or half of one), a kind, and a constant found in training:

    SUM     the sum of the other bytes          XOR     of the other bytes
    NIBBLES the sum of all other half bytes     CRC     of the other bytes, by an 8-bit polynomial

What is sent is the difference to what the rule says, so that a wrong checksum survives.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    SUM = 1
    XOR = 2
    NIBBLES = 3
    CRC = 4


cdef struct rule_t:
    uint8_t kind
    uint8_t byte                # the checksum's place
    uint8_t shift, width        # in that byte
    uint8_t polynomial
    uint8_t constant


cdef inline uint32_t follow(const rule_t* rule, const uint8_t* payload, Py_ssize_t length) noexcept nogil:
    """What the checksum should be; the bits at its place do not matter."""
    cdef uint32_t result = rule.constant, mask = (1 << rule.width) - 1, byte
    cdef Py_ssize_t i
    cdef int bit
    for i in range(length):
        byte = payload[i]
        if i == rule.byte:
            if rule.width == 8 and rule.kind != CRC:
                continue
            byte &= ~(mask << rule.shift) & 255
            if rule.width == 8:
                continue
        if rule.kind == SUM:
            result += byte
        elif rule.kind == XOR:
            result ^= byte
        elif rule.kind == NIBBLES:
            result += (byte & 15) + (byte >> 4)
        else:
            result ^= byte
            for bit in range(8):
                result = (result << 1) ^ (rule.polynomial if result & 128 else 0)
                result &= 255
    return result & mask
