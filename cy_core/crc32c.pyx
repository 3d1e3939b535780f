"""CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), as in RFC 3720 appendix B.4: eight bytes a step, in
hardware on x86-64 with SSE4.2, else by tables."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "crc32c_kernel.h" nogil:
    bint crc32c_in_hardware()
    uint32_t crc32c_hardware(uint32_t crc, const uint8_t* data, size_t size)

cdef Py_ssize_t LONG_BYTES = 1 << 20  # to give way to other threads costs more than a shorter one
cdef uint32_t[8][256] TABLES
cdef bint IN_HARDWARE = crc32c_in_hardware()


cdef void _make_tables() noexcept:
    cdef uint32_t value
    cdef int byte, bit, step
    for byte in range(256):
        value = byte
        for bit in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        TABLES[0][byte] = value
    for byte in range(256):
        for step in range(1, 8):
            value = TABLES[step - 1][byte]
            TABLES[step][byte] = (value >> 8) ^ TABLES[0][value & 0xFF]


_make_tables()


cdef uint32_t update(uint32_t crc, const uint8_t* data, Py_ssize_t size) noexcept nogil:
    """The checksum of what crc covers, followed by data."""
    return crc32c_hardware(crc, data, size) if IN_HARDWARE else by_tables(crc, data, size)


cdef uint32_t by_tables(uint32_t crc, const uint8_t* data, Py_ssize_t size) noexcept nogil:
    cdef uint64_t word
    crc = ~crc
    while size >= 8:
        memcpy(&word, data, 8)
        word ^= crc
        crc = (
            TABLES[7][word & 0xFF]
            ^ TABLES[6][(word >> 8) & 0xFF]
            ^ TABLES[5][(word >> 16) & 0xFF]
            ^ TABLES[4][(word >> 24) & 0xFF]
            ^ TABLES[3][(word >> 32) & 0xFF]
            ^ TABLES[2][(word >> 40) & 0xFF]
            ^ TABLES[1][(word >> 48) & 0xFF]
            ^ TABLES[0][word >> 56]
        )
        data += 8
        size -= 8
    while size > 0:
        crc = (crc >> 8) ^ TABLES[0][(crc ^ data[0]) & 0xFF]
        data += 1
        size -= 1
    return ~crc


def crc32c(const uint8_t[::1] data not None, uint32_t start=0):
    """The CRC-32C of data; start is the checksum of what came before it, if anything did."""
    cdef uint32_t crc = start
    cdef Py_ssize_t size = data.shape[0]
    if size >= LONG_BYTES:
        with nogil:
            crc = update(start, &data[0], size)
    elif size:
        crc = update(start, &data[0], size)
    return crc


def crc32c_by_tables(const uint8_t[::1] data not None, uint32_t start=0):
    """The same on every processor: what the instruction is tested against."""
    return by_tables(start, &data[0], data.shape[0]) if data.shape[0] else start
