"""Decoded signals: one arena of narrow integers, and a directory that says what lies where.

    group    message, rows, where the times are, its columns
    column   signal, where the values are, bytes a value, constant or one value a row
    arena    | times of group 0 | ... | values of column 0 | values of column 1 | ...

Values are raw: integers sign-extended to 1, 2, 4 or 8 bytes, IEEE 754 bits for floats. Python objects are made
only when someone asks for them.
"""
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, realloc

from cy_core.plan cimport Plan


cdef class Columns:
    """What decode_batch() and a block give back."""

    def __init__(self, Plan plan not None):
        self.plan = plan

    def __dealloc__(self):
        free(self.arena)
        free(self.group_rows)
        free(self.column_rows)

    def samples(self, const uint8_t[::1] selection=None):
        """How many values there are, one for each signal of each row: of all, or of those selected.

        selection has one byte for each signal of the manifest. Raises ValueError: it has not.
        """
        cdef Py_ssize_t i, j, first, count = 0
        if selection is not None and selection.shape[0] != self.plan.signal_count:
            raise ValueError(f"a selection of {selection.shape[0]} for {self.plan.signal_count} signals")
        for i in range(self.group_count):
            first = self.plan.messages[self.group_rows[i].message].first_signal
            for j in range(self.group_rows[i].column_count):
                if selection is None or selection[first + self.column_rows[self.group_rows[i].first_column + j].signal]:
                    count += self.group_rows[i].count
        return count

    def mark(self, uint8_t[::1] seen not None):
        """Set the bytes of the signals that are here; seen has one for each signal of the manifest.

        Raises ValueError: it has not.
        """
        cdef Py_ssize_t i, j, first
        if seen.shape[0] != self.plan.signal_count:
            raise ValueError(f"room for {seen.shape[0]} of {self.plan.signal_count} signals")
        for i in range(self.group_count):
            first = self.plan.messages[self.group_rows[i].message].first_signal
            for j in range(self.group_rows[i].column_count):
                seen[first + self.column_rows[self.group_rows[i].first_column + j].signal] = 1

    def groups(self):
        """Yield a Group for each set of rows of one message that hold the same signals."""
        cdef Py_ssize_t i, j
        cdef group_t group
        cdef column_t column
        arena = memoryview(self)
        for i in range(self.group_count):
            group = self.group_rows[i]
            columns = []
            for j in range(group.first_column, group.first_column + group.column_count):
                column = self.column_rows[j]
                signal = self.plan.signals[self.plan.messages[group.message].first_signal + column.signal]
                size = column.width * (1 if column.is_constant else group.count)
                columns.append((column.signal, chr(signal.format), arena[column.offset : column.offset + size]))
            times = arena[group.times : group.times + 8 * group.count].cast("q")
            yield Group(group.message, times, columns)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        cdef Py_ssize_t* shape
        if self.arena == NULL:
            self.allocate(8)
        self.exports += 1
        buffer.buf = self.arena
        buffer.obj = self
        buffer.len = self.arena_size
        buffer.itemsize = 1
        buffer.readonly = 1
        buffer.ndim = 1
        buffer.format = "B"
        buffer.shape = &buffer.len
        buffer.strides = &buffer.itemsize
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def __releasebuffer__(self, Py_buffer* buffer):
        self.exports -= 1

    cdef void forget(self) noexcept nogil:
        """Empty it for the next batch, keeping the memory."""
        self.arena_size = self.group_count = self.column_count = 0
        self.frames = self.unknown_frames = self.short_frames = self.remote_frames = self.error_frames = 0
        self.segment_frames = self.assembled_messages = 0

    cdef Py_ssize_t allocate(self, Py_ssize_t size) except -1 nogil:
        """The offset of size fresh bytes (multiples of 8); the arena may move."""
        cdef Py_ssize_t offset = self.arena_size
        size = (size + 7) & ~7
        self.reserve(size)
        self.arena_size = offset + size
        return offset

    cdef int reserve(self, Py_ssize_t size) except -1 nogil:
        """Make room for size bytes behind the arena's end."""
        cdef Py_ssize_t capacity
        cdef void* grown
        if self.arena_size + size > self.arena_capacity:
            capacity = max(self.arena_size + size, 2 * self.arena_capacity, 4096)
            grown = realloc(self.arena, capacity)
            if grown == NULL:
                with gil:
                    raise MemoryError(f"no memory for {capacity} bytes of decoded signals")
            self.arena, self.arena_capacity = <uint8_t*>grown, capacity
        return 0

    cdef int make_room(self, Py_ssize_t groups, Py_ssize_t columns, Py_ssize_t size) except -1 nogil:
        """Room for so many more groups and columns, and bytes of values."""
        cdef Py_ssize_t capacity
        cdef void* grown
        if self.group_count + groups > self.group_capacity:
            capacity = max(64, 2 * self.group_capacity, self.group_count + groups)
            grown = realloc(self.group_rows, capacity * sizeof(group_t))
            if grown == NULL:
                with gil:
                    raise MemoryError(f"no memory for {capacity} groups")
            self.group_rows, self.group_capacity = <group_t*>grown, capacity
        if self.column_count + columns > self.column_capacity:
            capacity = max(256, 2 * self.column_capacity, self.column_count + columns)
            grown = realloc(self.column_rows, capacity * sizeof(column_t))
            if grown == NULL:
                with gil:
                    raise MemoryError(f"no memory for {capacity} columns")
            self.column_rows, self.column_capacity = <column_t*>grown, capacity
        return self.reserve(size)

    cdef group_t* add_group(self) except NULL nogil:
        self.make_room(1, 0, 0)
        self.group_count += 1
        return &self.group_rows[self.group_count - 1]

    cdef column_t* add_columns(self, Py_ssize_t count) except NULL nogil:
        """The first of count fresh columns."""
        self.make_room(0, count, 0)
        self.column_count += count
        return &self.column_rows[self.column_count - count]


class Group:
    """Rows of one message that hold the same signals.

    message     its index in the manifest
    times       memoryview of int64 microseconds, one a row, ascending as received
    columns     [(signal index in the message, format as in struct, its bytes: one value, or one a row)]
    """

    __slots__ = ("columns", "message", "times")

    def __init__(self, message, times, columns):
        self.message = message
        self.times = times
        self.columns = columns
