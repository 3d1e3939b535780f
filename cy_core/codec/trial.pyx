"""Training: what would a description of a stream cost, does a checksum rule hold, which bits change how often?

Costs are those of the codec itself.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from cy_core.codec.checksum cimport SUM, NIBBLES, follow, rule_t
from cy_core.codec.coder cimport begin_writing, coder_t, finish
from cy_core.codec.streams cimport Streams


def coded_bytes(entry, const uint64_t[:, ::1] payloads not None):
    """How many bytes these payloads of one stream take, described by this entry of a table.

    payloads: rows of eight words, zero behind the length. Bits in no field cost nothing. Raises ValueError: as Streams.
    """
    cdef Streams streams = Streams((entry,))
    cdef coder_t coder
    cdef uint8_t* memory
    cdef Py_ssize_t i, size
    if payloads.shape[1] != 8:
        raise ValueError("payloads of 64 bytes are needed")
    streams.begin_block((entry[0],), 1)
    memory = <uint8_t*>malloc(4096)
    if memory == NULL:
        raise MemoryError("no memory for a trial")
    begin_writing(&coder, memory, 4096)
    with nogil:
        for i in range(payloads.shape[0]):
            streams.code_payload(&coder, 0, <uint64_t*>&payloads[i, 0])
        size = finish(&coder)
        free(coder.start)
    return size


def best_constant(rule, Py_ssize_t length, const uint64_t[:, ::1] payloads not None):
    """(the constant with which a rule holds most often, in how many of the payloads)

    rule: (kind, byte, shift, width, factor, 0).
    """
    cdef rule_t row
    cdef uint32_t[256] counts
    cdef Py_ssize_t i
    cdef uint32_t found, mask, best = 0
    cdef const uint8_t* payload
    row.kind, row.byte, row.shift, row.width, row.factor, row.constant = rule
    mask = (1 << row.width) - 1
    if payloads.shape[1] != 8 or not row.byte < length <= 64 or not (row.width == 8 or row.width == 4):
        raise ValueError("no such checksum")
    for i in range(256):
        counts[i] = 0
    with nogil:
        for i in range(payloads.shape[0]):
            payload = <const uint8_t*>&payloads[i, 0]
            found = payload[row.byte] >> row.shift
            if row.kind == SUM or row.kind == NIBBLES:
                found -= follow(&row, payload, length)
            else:
                found ^= follow(&row, payload, length)
            counts[found & mask] += 1
        for i in range(256):
            if counts[i] > counts[best]:
                best = i
    return best, counts[best]


def changes(const uint64_t[:, ::1] payloads not None, int word):
    """How often each of the 64 bits of one word of the payloads changes from row to row."""
    cdef uint32_t[64] counts
    cdef Py_ssize_t i
    cdef int bit
    cdef uint64_t differs
    if not 0 <= word < payloads.shape[1]:
        raise ValueError(f"no word {word}")
    for bit in range(64):
        counts[bit] = 0
    with nogil:
        for i in range(1, payloads.shape[0]):
            differs = payloads[i, word] ^ payloads[i - 1, word]
            for bit in range(64):
                counts[bit] += differs >> bit & 1
    return [counts[bit] for bit in range(64)]
