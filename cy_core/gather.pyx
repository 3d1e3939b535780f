"""The samples of one signal after the other, out of decoded columns, each signal's in the order of time.

A message whose rows hold different signals (multiplexer pages) has several groups; a signal that lies in many of them
is put back into the order of time first.
"""
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdlib cimport calloc, free, qsort, realloc
from libc.string cimport memset

from cy_core.columns cimport Columns, column_t, group_t
from cy_core.plan cimport Plan, signal_t


cdef class Gatherer:
    """What a reduction and a summary have in common."""

    def __cinit__(self, Plan plan not None, *rest):
        self.plan = plan
        self.heads = <int32_t*>calloc(max(plan.message_count, 1), sizeof(int32_t))
        if self.heads == NULL:
            raise MemoryError(f"no memory for {plan.message_count} messages")

    def __dealloc__(self):
        free(self.heads)
        free(self.nexts)
        free(self.samples)

    cdef int _link_groups(self, Columns columns) except -1 nogil:
        """A message whose rows hold different signals has several groups, which lie in time among each other."""
        cdef Py_ssize_t i
        cdef uint32_t message
        cdef void* grown
        if columns.group_count > self.group_capacity:
            grown = realloc(self.nexts, columns.group_count * sizeof(int32_t))
            if grown == NULL:
                with gil:
                    raise MemoryError(f"no memory for {columns.group_count} groups")
            self.nexts, self.group_capacity = <int32_t*>grown, columns.group_count
        memset(self.heads, 0xFF, self.plan.message_count * sizeof(int32_t))
        for i in range(columns.group_count - 1, -1, -1):
            message = columns.group_rows[i].message
            self.nexts[i] = self.heads[message]
            self.heads[message] = i
        return 0

    cdef Py_ssize_t _gather(self, Columns columns, uint32_t message, uint32_t signal) except -1 nogil:
        """All samples of a signal in this batch, in the order of time; how many there are."""
        cdef const signal_t* row = &self.plan.signals[self.plan.messages[message].first_signal + signal]
        cdef const group_t* group
        cdef const column_t* column
        cdef const int64_t* times
        cdef Py_ssize_t count = 0, i
        cdef int32_t number = self.heads[message]
        cdef bint is_ordered = True
        while number >= 0:
            group = &columns.group_rows[number]
            number = self.nexts[number]
            column = _column(columns, group, signal)
            if column == NULL:
                continue
            self._make_room(count + group.count)
            times = <const int64_t*>(columns.arena + group.times)
            for i in range(group.count):
                self.samples[count].time_us = times[i]
                self.samples[count].raw = raw_of(columns, column, row, i)
                self.samples[count].order = <uint32_t>count
                is_ordered &= count == 0 or self.samples[count - 1].time_us <= times[i]
                count += 1
        if not is_ordered:
            qsort(self.samples, count, sizeof(pick_t), &_by_time)
        return count

    cdef int _make_room(self, Py_ssize_t count) except -1 nogil:
        cdef void* grown
        if count > self.capacity:
            grown = realloc(self.samples, 2 * count * sizeof(pick_t))
            if grown == NULL:
                with gil:
                    raise MemoryError(f"no memory for {2 * count} samples")
            self.samples, self.capacity = <pick_t*>grown, 2 * count
        return 0


cdef int _by_time(const void* a, const void* b) noexcept nogil:
    cdef const pick_t* x = <const pick_t*>a
    cdef const pick_t* y = <const pick_t*>b
    if x.time_us != y.time_us:
        return -1 if x.time_us < y.time_us else 1
    return -1 if x.order < y.order else 1 if x.order > y.order else 0


cdef const column_t* _column(Columns columns, const group_t* group, uint32_t signal) noexcept nogil:
    """The column of a signal, or NULL; columns are in the order of signals."""
    cdef uint32_t j
    if signal < group.column_count and columns.column_rows[group.first_column + signal].signal == signal:
        return &columns.column_rows[group.first_column + signal]
    for j in range(group.first_column, group.first_column + group.column_count):
        if columns.column_rows[j].signal == signal:
            return &columns.column_rows[j]
    return NULL
