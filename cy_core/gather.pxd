"""The samples of one signal after the other, out of decoded columns, each signal's in the order of time.

A message whose rows hold different signals (multiplexer pages) has several groups; a signal that lies in many of them
is put back into the order of time first.
"""
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport qsort, realloc
from libc.string cimport memcpy, memset

from cy_core.columns cimport Columns, column_t, group_t
from cy_core.plan cimport signal_t


cdef struct pick_t:             # a sample
    int64_t time_us
    uint64_t raw
    uint32_t order              # of arrival, among samples of one time


cdef inline uint64_t raw_of(Columns columns, const column_t* column, const signal_t* signal, Py_ssize_t row) noexcept nogil:
    """The raw value of a row, sign-extended for signed integers. By width: a copy of unknown size is a call."""
    cdef const uint8_t* at = columns.arena + column.offset + (0 if column.is_constant else row * column.width)
    cdef uint16_t two
    cdef uint32_t four
    cdef uint64_t eight
    if column.width == 1:
        return <uint64_t><int64_t><int8_t>at[0] if signal.sign else at[0]
    if column.width == 2:
        memcpy(&two, at, 2)
        return <uint64_t><int64_t><int16_t>two if signal.sign else two
    if column.width == 4:
        memcpy(&four, at, 4)
        return <uint64_t><int64_t><int32_t>four if signal.sign else four
    memcpy(&eight, at, 8)
    return eight


cdef inline int by_time(const void* a, const void* b) noexcept nogil:
    cdef const pick_t* x = <const pick_t*>a
    cdef const pick_t* y = <const pick_t*>b
    if x.time_us != y.time_us:
        return -1 if x.time_us < y.time_us else 1
    return -1 if x.order < y.order else 1 if x.order > y.order else 0


cdef inline const column_t* column_of(Columns columns, const group_t* group, uint32_t signal) noexcept nogil:
    """The column of a signal, or NULL; columns are in the order of signals."""
    cdef uint32_t j
    if signal < group.column_count and columns.column_rows[group.first_column + signal].signal == signal:
        return &columns.column_rows[group.first_column + signal]
    for j in range(group.first_column, group.first_column + group.column_count):
        if columns.column_rows[j].signal == signal:
            return &columns.column_rows[j]
    return NULL


cdef inline int link_groups(
    Columns columns, int32_t* heads, int32_t** nexts, Py_ssize_t* capacity
) except -1 nogil:
    """heads: of each message its first group, nexts: of each group the next one of its message; -1 for none."""
    cdef Py_ssize_t i
    cdef uint32_t message
    cdef void* grown
    if columns.group_count > capacity[0]:
        grown = realloc(nexts[0], columns.group_count * sizeof(int32_t))
        if grown == NULL:
            with gil:
                raise MemoryError(f"no memory for {columns.group_count} groups")
        nexts[0], capacity[0] = <int32_t*>grown, columns.group_count
    memset(heads, 0xFF, columns.plan.message_count * sizeof(int32_t))
    for i in range(columns.group_count - 1, -1, -1):
        message = columns.group_rows[i].message
        nexts[0][i] = heads[message]
        heads[message] = i
    return 0


cdef inline Py_ssize_t gather(
    Columns columns, uint32_t message, uint32_t signal, int32_t number, const int32_t* nexts, pick_t** samples,
    Py_ssize_t* capacity
) except -1 nogil:
    """All samples of a signal, in the order of time; how many there are. number: the first group of its message."""
    cdef const signal_t* row = &columns.plan.signals[columns.plan.messages[message].first_signal + signal]
    cdef const group_t* group
    cdef const column_t* column
    cdef const int64_t* times
    cdef pick_t* sample
    cdef void* grown
    cdef Py_ssize_t count = 0, i
    cdef bint is_ordered = True
    while number >= 0:
        group = &columns.group_rows[number]
        number = nexts[number]
        column = column_of(columns, group, signal)
        if column == NULL:
            continue
        if count + group.count > capacity[0]:
            grown = realloc(samples[0], 2 * (count + group.count) * sizeof(pick_t))
            if grown == NULL:
                with gil:
                    raise MemoryError(f"no memory for {2 * (count + group.count)} samples")
            samples[0], capacity[0] = <pick_t*>grown, 2 * (count + group.count)
        times = <const int64_t*>(columns.arena + group.times)
        if count and group.count and times[0] < samples[0][count - 1].time_us:
            is_ordered = False
        for i in range(group.count):
            sample = &samples[0][count]
            sample.time_us = times[i]
            sample.raw = raw_of(columns, column, row, i)
            sample.order = <uint32_t>count
            is_ordered &= i == 0 or times[i - 1] <= times[i]
            count += 1
    if not is_ordered:
        qsort(samples[0], count, sizeof(pick_t), &by_time)
    return count


cdef inline int64_t floor_div(int64_t a, int64_t b) noexcept nogil:
    cdef int64_t quotient = a // b
    return quotient - 1 if a % b < 0 else quotient
