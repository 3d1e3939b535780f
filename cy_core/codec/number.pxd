"""Numbers, bit by bit, in their contexts.

    residual    is it 0? its sign, its size (unary), then the bits below the highest: three in a tree, the rest one
                probability a place
    value       four bits at a time, each in a tree: first values, which are mostly what they were in training

Where several bits follow one another they are coded with a copy of the coder, which the compiler keeps in registers.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from cy_core.codec.coder cimport code_bit, coder_t, learn_bit, probability_t
from cy_core.codec.mixer cimport RESIDUALS, code_mixed
from cy_core.codec.models cimport line, mix, models_t

cdef extern from *:
    """
    #define bordnetz_bit_length(x) ((x) ? 64 - __builtin_clzll(x) : 0)
    """
    int bit_length "bordnetz_bit_length"(uint64_t x) noexcept nogil

cdef enum:
    TAIL = 0x1000               # keys below a field's: of the bits behind the highest, by size
    VALUE = 0x10000             # of a value's four bits


cdef inline int64_t code_residual(
    coder_t* coder, models_t* models, uint32_t key, uint32_t context, int64_t residual
) noexcept nogil:
    """key: of the field; context: what narrows it for zero, sign and size."""
    cdef probability_t* head = line(models, mix(key, context))
    cdef uint64_t size = <uint64_t>residual if residual >= 0 else -<uint64_t>residual
    cdef int top = 0, length = bit_length(size) - 1
    cdef bint negative
    cdef coder_t here
    if code_bit(coder, &head[0], residual == 0):
        return 0
    here = coder[0]
    negative = code_bit(&here, &head[1], residual < 0)
    while top < 63 and code_bit(&here, &head[2 + top if top < 13 else 15], length > top):
        top += 1
    size = _code_tail(&here, models, mix(key, TAIL + top), top, size)
    coder[0] = here
    return <int64_t>(-size if negative else size)


cdef inline int64_t code_residual_mixed(
    coder_t* coder, models_t* models, uint32_t key, uint32_t context, uint32_t other, int64_t residual
) noexcept nogil:
    """The same with two contexts that narrow it."""
    cdef probability_t* head = line(models, mix(key, context))
    cdef probability_t* second = line(models, mix(key, other))
    cdef uint64_t size = <uint64_t>residual if residual >= 0 else -<uint64_t>residual
    cdef int top = 0, length = bit_length(size) - 1, place = 2
    cdef bint negative
    cdef coder_t here
    if code_mixed(coder, &models.mixer, RESIDUALS, &head[0], &second[0], residual == 0):
        return 0
    here = coder[0]
    negative = code_mixed(&here, &models.mixer, RESIDUALS + 1, &head[1], &second[1], residual < 0)
    while top < 63 and code_mixed(&here, &models.mixer, RESIDUALS + 2, &head[place], &second[place], length > top):
        top += 1
        place = 2 + top if top < 13 else 15
    size = _code_tail(&here, models, mix(key, TAIL + top), top, size)
    coder[0] = here
    return <int64_t>(-size if negative else size)


cdef inline uint64_t _code_tail(
    coder_t* coder, models_t* models, uint32_t key, int top, uint64_t size
) noexcept nogil:
    """The bits below bit top, which is set."""
    cdef probability_t* tail
    cdef uint64_t coded = 1
    cdef int place
    if top == 0:
        return 1
    tail = line(models, key)
    for place in range(top - 1, -1, -1):
        coded = coded << 1 | code_bit(coder, &tail[coded if coded < 8 else 8 + (place & 7)], size >> place & 1)
    return coded


cdef inline uint64_t code_value(coder_t* coder, models_t* models, uint32_t key, int width, uint64_t value) noexcept nogil:
    """A value of width bits; each four are in the context of their place and the four above them."""
    cdef probability_t* tree
    cdef uint64_t coded = 0
    cdef uint32_t node = 1
    cdef int place
    cdef coder_t here = coder[0]
    for place in range((width - 1) & ~3, -1, -4):
        tree = line(models, mix(key, VALUE | place << 4 | (node & 15)))
        node = 1
        node = node << 1 | code_bit(&here, &tree[node], value >> (place + 3) & 1)
        node = node << 1 | code_bit(&here, &tree[node], value >> (place + 2) & 1)
        node = node << 1 | code_bit(&here, &tree[node], value >> (place + 1) & 1)
        node = node << 1 | code_bit(&here, &tree[node], value >> place & 1)
        coded = coded << 4 | (node & 15)
    coder[0] = here
    return coded


cdef inline uint64_t code_value_mixed(
    coder_t* coder, models_t* models, int kind, uint32_t key, uint32_t other, int width, uint64_t value
) noexcept nogil:
    """The same below two keys."""
    cdef probability_t* tree
    cdef probability_t* second
    cdef uint64_t coded = 0
    cdef uint32_t node = 1
    cdef int place, bit
    cdef coder_t here = coder[0]
    for place in range((width - 1) & ~3, -1, -4):
        tree = line(models, mix(key, VALUE | place << 4 | (node & 15)))
        second = line(models, mix(other, VALUE | place << 4 | (node & 15)))
        node = 1
        for bit in range(3, -1, -1):
            node = node << 1 | code_mixed(
                &here, &models.mixer, kind, &tree[node], &second[node], value >> (place + bit) & 1
            )
        coded = coded << 4 | (node & 15)
    coder[0] = here
    return coded


cdef inline void learn_value(models_t* models, uint32_t key, int width, uint64_t value) noexcept nogil:
    """What code_value() leaves in the models: training shows them more first values than blocks have."""
    cdef probability_t* tree
    cdef uint32_t node = 1
    cdef int place, bit
    for place in range((width - 1) & ~3, -1, -4):
        tree = line(models, mix(key, VALUE | place << 4 | (node & 15)))
        node = 1
        for bit in range(3, -1, -1):
            learn_bit(&tree[node], value >> (place + bit) & 1)
            node = node << 1 | (value >> (place + bit) & 1)
