"""Raw values as numbers: from the bits of a field to a double."""
from libc.math cimport ldexp
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy


cdef inline double number_of(uint64_t bits, char format) noexcept nogil:
    """The raw value of a field; format as in struct, bits sign-extended for signed integers."""
    cdef float single
    cdef double real
    if format == c'd':
        memcpy(&real, &bits, 8)
        return real
    if format == c'f':
        memcpy(&single, &bits, 4)
        return single
    if format == c'e':
        return _half(bits)
    if format >= c'a':
        return <double><int64_t>bits
    return <double>bits


cdef inline double _half(uint64_t bits) noexcept nogil:
    cdef int exponent = (bits >> 10) & 31
    cdef double fraction = <double>(bits & 1023), size
    if exponent == 31:
        # Infinity, or not a number: nothing to count with.
        size = 1e308 * 10 if fraction == 0 else (1e308 * 10) - (1e308 * 10)
    elif exponent == 0:
        size = ldexp(fraction, -24)
    else:
        size = ldexp(fraction + 1024, exponent - 25)
    return -size if bits >> 15 & 1 else size
