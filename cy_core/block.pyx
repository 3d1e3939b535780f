"""Columns to the inside of a block and back: what zstd gets to see. docs/formats/block.md gives every byte.

    directory            groups: message, rows, which signals, which of them are constant
    times, group by group    first, then differences, low bytes of all rows before the next bytes
    values, column by column one value where constant; else differences in the same arrangement

Differences and byte planes, because neighbouring values of one signal are close: what they share becomes runs of
zeros. Whatever bytes read() is given, it stays inside them and inside the memory that they can justify.
"""
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_Resize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cy_core.columns cimport Columns, column_t, group_t
from cy_core.plan cimport Plan, message_t, signal_t


def lay_out(Columns columns not None, const uint8_t[::1] selection=None):
    """The inside of a block that holds these columns.

    selection: one byte for each signal of the manifest, in its order, not 0 for those to keep; None keeps all.
    A group with no signal to keep is left out. Raises ValueError: selection is not one byte a signal.
    """
    cdef const uint8_t* keep = NULL
    cdef bytearray out
    if selection is not None:
        if selection.shape[0] != columns.plan.signal_count:
            raise ValueError(f"a selection of {selection.shape[0]} for {columns.plan.signal_count} signals")
        if selection.shape[0]:
            keep = &selection[0]
    out = bytearray(_bound(columns))
    cdef uint8_t* start = <uint8_t*>PyByteArray_AS_STRING(out)
    cdef Py_ssize_t size
    with nogil:
        size = _lay_out(columns, keep, start)
    PyByteArray_Resize(out, size)
    return out


def read(const uint8_t[::1] content not None, Plan plan not None, Columns into=None):
    """The columns in the inside of a block. Raises ValueError where it is none, or is of another manifest."""
    cdef Columns columns = into if into is not None else Columns(plan)
    cdef reader_t reader
    cdef const char* problem
    if columns.plan is not plan or columns.exports:
        raise ValueError("columns of another plan, or still being looked at, cannot be used again here")
    columns.forget()
    if content.shape[0] == 0:
        raise ValueError("it is empty")
    reader.at, reader.end = &content[0], &content[0] + content.shape[0]
    with nogil:
        problem = _read(&reader, plan, columns)
    if problem != NULL:
        columns.forget()
        raise ValueError((<bytes>problem).decode())
    return columns


# -- writing -------------------------------------------------------------------------------------------------


cdef Py_ssize_t _bound(Columns columns):
    """More bytes than _lay_out() can write."""
    cdef Py_ssize_t i, size = 32
    cdef const group_t* group
    for i in range(columns.group_count):
        group = &columns.group_rows[i]
        size += 64 + 2 * (columns.plan.messages[group.message].signal_count // 8 + 1) + 8 * group.count
    for i in range(columns.column_count):
        size += 8
    return size + columns.arena_size


cdef inline bint _kept(Columns columns, const group_t* group, const column_t* column, const uint8_t* keep) noexcept nogil:
    return keep == NULL or keep[columns.plan.messages[group.message].first_signal + column.signal] != 0


cdef Py_ssize_t _lay_out(Columns columns, const uint8_t* keep, uint8_t* start) noexcept nogil:
    cdef uint8_t* to = start
    cdef Py_ssize_t i, j, groups = 0
    cdef const group_t* group
    cdef const column_t* column
    cdef int64_t base = 0
    for i in range(columns.group_count):
        groups += _any_kept(columns, &columns.group_rows[i], keep)
    to = _write_varint(to, groups)
    for i in range(columns.group_count):
        if _any_kept(columns, &columns.group_rows[i], keep):
            to = _write_directory(columns, &columns.group_rows[i], keep, to)
    for i in range(columns.group_count):
        group = &columns.group_rows[i]
        if _any_kept(columns, group, keep):
            to = _write_times(<const int64_t*>(columns.arena + group.times), group.count, &base, to)
    for i in range(columns.group_count):
        group = &columns.group_rows[i]
        for j in range(group.first_column, group.first_column + group.column_count):
            column = &columns.column_rows[j]
            if _kept(columns, group, column, keep):
                to = _write_column(
                    columns.arena + column.offset, 1 if column.is_constant else group.count, column.width, to
                )
    return to - start


cdef bint _any_kept(Columns columns, const group_t* group, const uint8_t* keep) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(group.first_column, group.first_column + group.column_count):
        if _kept(columns, group, &columns.column_rows[j], keep):
            return True
    return False


cdef uint8_t* _write_directory(Columns columns, const group_t* group, const uint8_t* keep, uint8_t* to) noexcept nogil:
    cdef Py_ssize_t j, size = (columns.plan.messages[group.message].signal_count + 7) >> 3
    cdef const column_t* column
    to = _write_varint(to, group.message)
    to = _write_varint(to, group.count)
    memset(to, 0, 2 * size)
    for j in range(group.first_column, group.first_column + group.column_count):
        column = &columns.column_rows[j]
        if _kept(columns, group, column, keep):
            to[column.signal >> 3] |= 1 << (column.signal & 7)
            to[size + (column.signal >> 3)] |= column.is_constant << (column.signal & 7)
    return to + 2 * size


cdef uint8_t* _write_times(const int64_t* times, Py_ssize_t count, int64_t* base, uint8_t* to) noexcept nogil:
    cdef uint64_t largest = 0
    cdef Py_ssize_t i
    cdef int plane, width = 1
    to = _write_varint(to, _zigzag(times[0] - base[0]))
    base[0] = times[0]
    for i in range(1, count):
        largest |= _zigzag(times[i] - times[i - 1])
    while width < 8 and largest >> (8 * width):
        width += 1
    to[0] = width
    to += 1
    for plane in range(width):
        for i in range(1, count):
            to[i - 1] = <uint8_t>(_zigzag(times[i] - times[i - 1]) >> (8 * plane))
        to += count - 1
    return to


cdef uint8_t* _write_column(const uint8_t* values, Py_ssize_t count, int width, uint8_t* to) noexcept nogil:
    cdef Py_ssize_t i
    cdef int plane
    cdef uint64_t value, last = 0
    for i in range(count):
        value = 0
        memcpy(&value, values + i * width, width)
        last = value - last
        for plane in range(width):
            to[plane * count + i] = <uint8_t>(last >> (8 * plane))
        last = value
    return to + width * count


cdef inline uint8_t* _write_varint(uint8_t* to, uint64_t value) noexcept nogil:
    while value >= 0x80:
        to[0] = <uint8_t>value | 0x80
        to += 1
        value >>= 7
    to[0] = <uint8_t>value
    return to + 1


cdef inline uint64_t _zigzag(int64_t value) noexcept nogil:
    return (<uint64_t>value << 1) ^ <uint64_t>(value >> 63)


# -- reading -------------------------------------------------------------------------------------------------


cdef struct reader_t:
    const uint8_t* at
    const uint8_t* end


cdef const char* _read(reader_t* reader, Plan plan, Columns columns) except? NULL nogil:
    """Fill columns; return what is wrong, or NULL."""
    cdef uint64_t groups, i
    cdef int64_t base = 0
    cdef const char* problem
    if not _read_varint(reader, &groups) or groups > <uint64_t>(reader.end - reader.at):
        return "it ends inside the directory"
    for i in range(groups):
        problem = _read_directory(reader, plan, columns)
        if problem != NULL:
            return problem
    for i in range(groups):
        if not _read_times(reader, columns, i, &base):
            return "it ends inside the times"
    for i in range(groups):
        if not _read_columns(reader, columns, i):
            return "it ends inside the values"
    if reader.at != reader.end:
        return "there are bytes behind its end"
    return NULL


cdef const char* _read_directory(reader_t* reader, Plan plan, Columns columns) except? NULL nogil:
    cdef uint64_t message, count
    cdef uint32_t i, size
    cdef group_t* group
    cdef column_t* column
    if not _read_varint(reader, &message) or not _read_varint(reader, &count):
        return "it ends inside the directory"
    if message >= plan.message_count:
        return "it names a message that the manifest does not have"
    # Each row takes a byte at least, so a count is never larger than what is left to read.
    if count == 0 or count > <uint64_t>(reader.end - reader.at) or count > 0x7FFFFFFF:
        return "it has more rows than bytes"
    size = (plan.messages[message].signal_count + 7) >> 3
    if 2 * size > reader.end - reader.at:
        return "it ends inside the directory"
    group = columns.add_group()
    group.message, group.count, group.times = message, count, 0
    group.first_column = columns.column_count
    for i in range(8 * size):
        if reader.at[i >> 3] >> (i & 7) & 1:
            if i >= plan.messages[message].signal_count:
                return "it names a signal that the message does not have"
            column = columns.add_columns(1)
            column.signal = i
            column.width = plan.signals[plan.messages[message].first_signal + i].width
            column.is_constant = reader.at[size + (i >> 3)] >> (i & 7) & 1
    group.column_count = columns.column_count - group.first_column
    reader.at += 2 * size
    return NULL


cdef bint _read_times(reader_t* reader, Columns columns, Py_ssize_t number, int64_t* base) except? False nogil:
    cdef uint64_t difference
    cdef Py_ssize_t count = columns.group_rows[number].count, offset, i
    cdef int64_t* times
    cdef int plane, width
    if not _read_varint(reader, &difference) or reader.at == reader.end:
        return False
    width = reader.at[0]
    reader.at += 1
    if not 1 <= width <= 8 or width * (count - 1) > reader.end - reader.at:
        return False
    offset = columns.allocate(8 * count)
    columns.group_rows[number].times = offset
    times = <int64_t*>(columns.arena + offset)
    base[0] = <int64_t>(<uint64_t>base[0] + _unzigzag(difference))
    times[0] = base[0]
    for i in range(1, count):
        difference = 0
        for plane in range(width):
            difference |= <uint64_t>reader.at[plane * (count - 1) + i - 1] << (8 * plane)
        times[i] = <int64_t>(<uint64_t>times[i - 1] + _unzigzag(difference))
    reader.at += width * (count - 1)
    return True


cdef bint _read_columns(reader_t* reader, Columns columns, Py_ssize_t number) except? False nogil:
    cdef const group_t* group = &columns.group_rows[number]
    cdef column_t* column
    cdef Py_ssize_t j, i, count
    cdef int plane
    cdef uint64_t value, difference
    cdef uint8_t* values
    for j in range(group.first_column, group.first_column + group.column_count):
        column = &columns.column_rows[j]
        count = 1 if column.is_constant else group.count
        if count * column.width > reader.end - reader.at:
            return False
        column.offset = columns.allocate(count * column.width)
        values = columns.arena + column.offset
        value = 0
        for i in range(count):
            difference = 0
            for plane in range(column.width):
                difference |= <uint64_t>reader.at[plane * count + i] << (8 * plane)
            value += difference
            memcpy(values + i * column.width, &value, column.width)
        reader.at += count * column.width
    return True


cdef inline bint _read_varint(reader_t* reader, uint64_t* value) noexcept nogil:
    cdef int shift = 0
    cdef uint8_t byte
    value[0] = 0
    while reader.at < reader.end and shift < 64:
        byte = reader.at[0]
        reader.at += 1
        value[0] |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            return True
        shift += 7
    return False


cdef inline uint64_t _unzigzag(uint64_t value) noexcept nogil:
    return (value >> 1) ^ -(value & 1)
