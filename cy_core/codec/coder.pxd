"""A binary range coder: each bit narrows [low, high] in proportion to its probability; what both ends share goes out.

    bit 1 takes [low, middle], bit 0 takes [middle + 1, high], middle = low + (high - low) * p / 2^16

A probability is 22 bits of p(bit = 1) above a 10-bit count of the bits that it has seen: the first few move it far,
later ones less, down to the rate of its limit.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport realloc

ctypedef uint32_t probability_t

cdef extern from *:
    """
    /* 2^16 / (n + 1.6) */
    static const unsigned short bordnetz_rates[] = {
      40960, 25206, 18204, 14247, 11703, 9930, 8623, 7620, 6827, 6183, 5650, 5201, 4819, 4489, 4201, 3948, 3724, 3523,
      3344, 3181, 3034, 2900, 2777, 2664, 2560, 2464, 2374, 2291, 2214, 2142, 2074, 2010, 1950, 1894, 1841, 1791,
      1743, 1698, 1655, 1614, 1575, 1538, 1503, 1469, 1437, 1406, 1377, 1348, 1321, 1295, 1270, 1246, 1223, 1200,
      1179, 1158, 1138, 1118, 1100, 1081, 1064, 1047, 1030, 1014, 999, 984, 969, 955, 942, 928, 915, 903, 890, 878,
      867, 856, 845, 834, 823, 813, 803, 793, 784, 775, 766, 757, 748, 740, 731, 723, 715, 708, 700, 693, 686, 678,
      671, 665, 658, 651, 645, 639, 633, 627, 621, 615, 609, 603, 598, 593, 587, 582, 577, 572, 567, 562, 557, 553,
      548, 543, 539, 535, 530, 526, 522, 518, 514, 510};
    """
    const unsigned short RATES "bordnetz_rates"[]

cdef enum:
    EVEN = 0x80000000           # a probability of one half that has seen nothing
    COUNT_MASK = 1023
    COUNT_MAX = 127


cdef struct coder_t:
    uint32_t low, high, code
    bint reading
    bint failed                 # no memory (writing), or read beyond the end
    uint8_t* at
    uint8_t* end
    uint8_t* start              # writing: of the memory, which grows
    uint32_t beyond             # reading: zero bytes that were read behind the end


cdef inline void begin_writing(coder_t* coder, uint8_t* start, Py_ssize_t size) noexcept nogil:
    """Write to memory from malloc(), which the coder may move."""
    coder.low, coder.high, coder.reading, coder.failed, coder.beyond = 0, 0xFFFFFFFFU, False, False, 0
    coder.start = coder.at = start
    coder.end = start + size


cdef inline void begin_reading(coder_t* coder, const uint8_t* start, Py_ssize_t size) noexcept nogil:
    cdef int i
    coder.low, coder.high, coder.reading, coder.failed, coder.beyond = 0, 0xFFFFFFFFU, True, False, 0
    coder.start = coder.at = <uint8_t*>start
    coder.end = coder.at + size
    coder.code = 0
    for i in range(4):
        coder.code = coder.code << 8 | _next_byte(coder)


cdef inline uint32_t _next_byte(coder_t* coder) noexcept nogil:
    """Behind the end all bytes are zero; four of them may be needed, more never are."""
    cdef uint32_t byte
    if coder.at < coder.end:
        byte = coder.at[0]
        coder.at += 1
        return byte
    coder.beyond += 1
    if coder.beyond > 4:
        coder.failed = True
    return 0


cdef inline void _put_byte(coder_t* coder, uint8_t byte) noexcept nogil:
    cdef uint8_t* grown
    cdef Py_ssize_t size
    if coder.at == coder.end:
        size = coder.end - coder.start
        grown = <uint8_t*>realloc(coder.start, 2 * size)
        if grown == NULL:
            coder.failed = True
            coder.at = coder.start
        else:
            coder.start, coder.at, coder.end = grown, grown + size, grown + 2 * size
    coder.at[0] = byte
    coder.at += 1


cdef inline void _shift(coder_t* coder) noexcept nogil:
    while (coder.low ^ coder.high) >> 24 == 0:
        if coder.reading:
            coder.code = coder.code << 8 | _next_byte(coder)
        else:
            _put_byte(coder, coder.high >> 24)
        coder.low <<= 8
        coder.high = coder.high << 8 | 0xFF


cdef inline void learn_bit(probability_t* probability, bint bit) noexcept nogil:
    cdef uint32_t state = probability[0], count = state & COUNT_MASK
    cdef int64_t moved = state >> 10
    if bit:
        moved += ((0x3FFFFF - moved) * RATES[count]) >> 16
    else:
        moved -= (moved * RATES[count]) >> 16
    probability[0] = <uint32_t>moved << 10 | (count + (count < COUNT_MAX))


cdef inline bint code_as(coder_t* coder, uint32_t p, bint bit) noexcept nogil:
    """Write bit, or read and return it; p: of a 1, in 2^-16, not 0."""
    cdef uint32_t middle = coder.low + <uint32_t>((<uint64_t>(coder.high - coder.low) * p) >> 16)
    if coder.reading:
        bit = coder.code <= middle
    if bit:
        coder.high = middle
    else:
        coder.low = middle + 1
    _shift(coder)
    return bit


cdef inline bint code_bit(coder_t* coder, probability_t* probability, bint bit) noexcept nogil:
    """Write bit, or read and return it; the probability learns."""
    cdef uint32_t p = probability[0] >> 16
    bit = code_as(coder, p + (p == 0), bit)
    learn_bit(probability, bit)
    return bit


cdef inline uint64_t code_plain(coder_t* coder, uint64_t value, int bits) noexcept nogil:
    """Write or read the low bits of a value, highest first, each as likely 0 as 1."""
    cdef uint64_t coded = 0
    cdef uint32_t middle
    cdef bint bit
    while bits > 0:
        bits -= 1
        bit = value >> bits & 1
        middle = coder.low + ((coder.high - coder.low) >> 1)
        if coder.reading:
            bit = coder.code <= middle
        if bit:
            coder.high = middle
        else:
            coder.low = middle + 1
        _shift(coder)
        coded = coded << 1 | bit
    return coded


cdef inline Py_ssize_t finish(coder_t* coder) noexcept nogil:
    """The number of bytes written: as few more as tell low from high, zeros behind them."""
    cdef int count = 0
    cdef uint32_t value = 0
    if coder.low:
        for count in range(1, 5):
            value = coder.high & <uint32_t>(0xFFFFFFFFULL << (32 - 8 * count))
            if value >= coder.low:
                break
        for _ in range(count):
            _put_byte(coder, value >> 24)
            value <<= 8
    return coder.at - coder.start
