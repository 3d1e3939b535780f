"""One probability from two: the more each of them has seen, and the better it did, the more it counts.

Both are stretched to ln(p / (1 - p)), in 2^-8, and weighed; the sum is squashed to a probability again. The weights hang
on the kind of decision and on how much either has seen, and learn from each bit.
"""
from libc.stdint cimport int16_t, int32_t, uint8_t, uint16_t, uint32_t

from cy_core.codec.coder cimport COUNT_MASK, code_as, coder_t, learn_bit, probability_t

cdef enum:
    SHORT_GAPS = 0              # kinds of decisions
    GAPS = 1
    TURNS = 2
    RESIDUALS = 3               # and the next two: is it 0, its sign, its size
    KINDS = 6
    SEEN = 4                    # classes of how much a probability has seen
    FARTHEST = 2560             # of a stretched probability: 1 in 22,000
    WEIGHT_MAX = 1 << 18        # four times as much


cdef struct mixer_t:
    int32_t[2] weights[KINDS][SEEN][SEEN]   # in 2^-16
    const int16_t* stretched    # by the high 12 bits of a probability
    const uint16_t* squashed    # by what is stretched, from -FARTHEST on
    const uint8_t* seen         # by the count of a probability


cdef inline bint code_mixed(
    coder_t* coder, mixer_t* mixer, int kind, probability_t* first, probability_t* second, bint bit
) noexcept nogil:
    """Write bit, or read and return it; both probabilities learn, and their weights."""
    cdef int32_t x = mixer.stretched[first[0] >> 20], y = mixer.stretched[second[0] >> 20], sum_, error
    cdef int32_t* weights = mixer.weights[kind][mixer.seen[first[0] & COUNT_MASK]][mixer.seen[second[0] & COUNT_MASK]]
    cdef uint32_t p
    sum_ = (weights[0] * x + weights[1] * y) >> 16
    p = mixer.squashed[FARTHEST + max(-FARTHEST, min(FARTHEST, sum_))]
    bit = code_as(coder, p, bit)
    error = (<int32_t>bit << 16) - <int32_t>p
    weights[0] = max(-WEIGHT_MAX, min(WEIGHT_MAX, weights[0] + ((x * error) >> 16)))
    weights[1] = max(-WEIGHT_MAX, min(WEIGHT_MAX, weights[1] + ((y * error) >> 16)))
    learn_bit(first, bit)
    learn_bit(second, bit)
    return bit


cdef int begin_mixer(mixer_t* mixer) noexcept nogil
