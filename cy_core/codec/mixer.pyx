"""The tables behind mixer.pxd, and the weights that a block begins with."""
from libc.stdint cimport int16_t, int32_t, uint8_t, uint16_t

from cy_core.codec.coder cimport COUNT_MAX

cdef enum:
    STEPS = 64                  # of the sum, between two of the numbers below
    KNOTS_COUNT = 81

cdef int16_t[4096] stretched
cdef uint16_t[2 * FARTHEST + 1] squashed
cdef uint8_t[COUNT_MAX + 1] seen

# 2^16 / (1 + e^(10 - k / 4))
cdef uint32_t[KNOTS_COUNT] KNOTS = [
    3, 4, 5, 6, 8, 10, 13, 17, 22, 28, 36, 47, 60, 77, 98, 126, 162, 208, 267, 342, 439, 562, 720, 922, 1179,
    1506, 1921, 2446, 3108, 3938, 4971, 6249, 7812, 9702, 11955, 14595, 17625, 21025, 24743, 28693, 32768,
    36843, 40793, 44511, 47911, 50941, 53581, 55834, 57724, 59287, 60565, 61598, 62428, 63090, 63615, 64030,
    64357, 64614, 64816, 64974, 65097, 65194, 65269, 65328, 65374, 65410, 65438, 65459, 65476, 65489, 65500,
    65508, 65514, 65519, 65523, 65526, 65528, 65530, 65531, 65532, 65533
]


cdef int _make_tables():
    cdef int i, place, rest, low = 0
    for i in range(2 * FARTHEST + 1):
        place, rest = i // STEPS, i % STEPS
        squashed[i] = (KNOTS[place] * (STEPS - rest) + (KNOTS[place + 1] * rest if rest else 0) + STEPS // 2) // STEPS
    for i in range(4096):
        while low < 2 * FARTHEST and squashed[low] < 16 * i + 8:
            low += 1
        stretched[i] = low - FARTHEST
    for i in range(COUNT_MAX + 1):
        seen[i] = 0 if i < 2 else 1 if i < 6 else 2 if i < 24 else 3
    return 0


_make_tables()


cdef int begin_mixer(mixer_t* mixer) noexcept nogil:
    """What has seen more counts more, together a tenth over what one alone would."""
    cdef int kind, i, j
    mixer.stretched, mixer.squashed, mixer.seen = stretched, squashed, seen
    for kind in range(KINDS):
        for i in range(SEEN):
            for j in range(SEEN):
                mixer.weights[kind][i][j][0] = 72090 * (10 * i + 3) // (10 * i + 10 * j + 6)
                mixer.weights[kind][i][j][1] = 72090 * (10 * j + 3) // (10 * i + 10 * j + 6)
    return 0
