"""Probabilities by context: a line of sixteen for each context, found by its 32-bit key.

A line is made when its context first occurs in a block: even, or as the trained table has it. So each block decodes
alone, and a block costs no more than the contexts that occur in it. Over LINES_MAX contexts share one line.
"""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from cy_core.codec.coder cimport EVEN, probability_t
from cy_core.codec.mixer cimport mixer_t

cdef enum:
    LINE = 16                   # probabilities: the fifteen of a tree of four bits, or what a number needs
    PLACES = 1 << 16            # of the hash table
    LINES_MAX = 3 << 14


cdef struct place_t:
    uint32_t key                # 0: free
    uint32_t number             # of the line with that key


cdef struct models_t:
    place_t* places             # open addressing
    probability_t* lines        # in the order of their making, so that a small block touches little memory; the last
    uint32_t count              # one is shared
    uint32_t* trained_keys
    const probability_t* trained_lines
    uint32_t trained_mask
    bint mixes                  # blocks of version 3: some decisions have a second context
    mixer_t mixer


cdef inline uint32_t mix(uint32_t key, uint32_t part) noexcept nogil:
    """The key of a narrower context."""
    cdef uint32_t mixed = (key ^ part) * 0x9E3779B1U
    mixed ^= mixed >> 15
    mixed *= 0x85EBCA77U
    mixed ^= mixed >> 13
    return mixed + (mixed == 0)


cdef inline probability_t* line(models_t* models, uint32_t key) noexcept nogil:
    cdef uint32_t place = key & (PLACES - 1)
    while models.places[place].key != key:
        if models.places[place].key == 0:
            return _new_line(models, place, key)
        place = (place + 1) & (PLACES - 1)
    return models.lines + models.places[place].number * LINE


cdef inline probability_t* _new_line(models_t* models, uint32_t place, uint32_t key) noexcept nogil:
    cdef probability_t* fresh = models.lines + min(models.count, <uint32_t>LINES_MAX) * LINE
    cdef uint32_t trained = key & models.trained_mask
    cdef int i
    if models.count >= LINES_MAX:
        if models.count > LINES_MAX:
            return fresh
        models.count += 1
        key = 0
    if key:
        models.places[place] = place_t(key=key, number=models.count)
        models.count += 1
        while models.trained_keys[trained]:
            if models.trained_keys[trained] == key:
                memcpy(fresh, models.trained_lines + trained * LINE, LINE * sizeof(probability_t))
                return fresh
            trained = (trained + 1) & models.trained_mask
    for i in range(LINE):
        fresh[i] = EVEN
    return fresh


cdef class Models:
    cdef models_t data
    cdef probability_t* trained

    cdef void forget(self) noexcept nogil
    cdef int _learn(self, const uint8_t* row) except -1
