"""Which group has the next row, when written: a heap."""
from libc.stdint cimport int32_t, int64_t


cdef struct turn_t:             # the next row of a part and its riders, when written
    int64_t time
    int32_t part


cdef inline void sink(turn_t* turns, Py_ssize_t count, Py_ssize_t place) noexcept nogil:
    """A heap: the earliest on top, of equal ones the part that comes first."""
    cdef turn_t turn = turns[place]
    cdef Py_ssize_t child = 2 * place + 1
    while child < count:
        if child + 1 < count and _is_before(&turns[child + 1], &turns[child]):
            child += 1
        if not _is_before(&turns[child], &turn):
            break
        turns[place] = turns[child]
        place, child = child, 2 * child + 1
    turns[place] = turn


cdef inline bint _is_before(const turn_t* a, const turn_t* b) noexcept nogil:
    return a.time < b.time or (a.time == b.time and a.part < b.part)
