"""The groups of a block of signals, before their times and values: written from columns, read into them."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from cy_core.codec.coder cimport code_bit, coder_t
from cy_core.codec.models cimport Models, line, mix, models_t
from cy_core.codec.number cimport code_value
from cy_core.codec.order cimport due_t
from cy_core.columns cimport Columns, column_t, group_t
from cy_core.plan cimport Plan, signal_t

from cy_core.codec.streams import bus_key


cdef class Groups:
    """trained: a table's contexts. learning: models are kept from block to block."""

    def __init__(self, Plan plan not None, const uint8_t[::1] trained=None, *, bint learning=False):
        import array

        self.models = Models(trained)
        self.models.forget()
        self.learning = learning
        self.plan = plan
        messages = plan.manifest.messages
        keys = {bus: bus_key(bus) for bus in plan.manifest.buses}
        self.message_keys = array.array("I", [_message_key(keys[m.bus], m) for m in messages] or [0])
        self.message_lines = array.array("i", [plan.manifest.buses.index(m.bus) for m in messages] or [0])

    def __dealloc__(self):
        free(self.parts)
        free(self.dues)

    cdef int choose(self, Columns columns, const uint8_t* keep, bint has_lines) except -1:
        """Writing: the groups with a signal to keep."""
        cdef Py_ssize_t i
        cdef int64_t last = -1
        cdef const group_t* group
        if columns.group_count > MOST_GROUPS:
            raise OverflowError(f"{columns.group_count} groups; a block may have {MOST_GROUPS}")
        self.reserve(columns.group_count)
        self.shares = False
        for i in range(columns.group_count):
            group = &columns.group_rows[i]
            if group.count >= MOST_ROWS:
                raise OverflowError(f"a group of {group.count} rows; a block may have {MOST_ROWS - 1}")
            if _kept(columns, group, keep):
                self.parts[self.part_count] = part_t(
                    key=0, line=self.message_lines[group.message], rows=group.count, done=0, group=i,
                    rides=last == <int64_t>group.message and group.column_count == 1, riders=0, recent=0, present=NULL,
                )
                self.shares |= self.parts[self.part_count].rides and not has_lines
                last = group.message
                self.part_count += 1
        return 0

    cdef int reserve(self, uint32_t count) except -1 nogil:
        free(self.parts)
        free(self.dues)
        self.part_count = 0
        self.parts = <part_t*>calloc(count + 1, sizeof(part_t))
        self.dues = <due_t*>calloc(count + 1, sizeof(due_t))
        if self.parts == NULL or self.dues == NULL:
            with gil:
                raise MemoryError(f"no memory for {count} groups")
        return 0

    cdef uint64_t code_group(
        self, coder_t* coder, Columns columns, part_t* part, const uint8_t* keep
    ) except? 0 nogil:
        """Message, rows, signals; returns the bytes that it takes in memory. Reading, the group is added."""
        cdef models_t* models = &self.models.data
        cdef group_t* group = NULL if coder.reading else &columns.group_rows[part.group]
        cdef uint32_t message, i, column_number = 0, signal_count
        cdef uint64_t row_bytes = 8
        cdef column_t* column
        cdef const signal_t* signal
        cdef bint present
        message = code_value(coder, models, mix(SIGNALS, 3), 16, group.message if group else 0)
        part.rows = code_value(coder, models, mix(SIGNALS, 4), 20, part.rows)
        if coder.reading:
            if message >= self.plan.message_count or part.rows == 0:
                coder.failed = True
                return 1
            part.group = columns.group_count
            part.done = 0
            part.line = self.message_lines[message]
            group = columns.add_group()
            group.message, group.count, group.times = message, part.rows, 0
            group.first_column, group.column_count = columns.column_count, 0
        part.key = self.message_keys[message]
        signal_count = self.plan.messages[message].signal_count
        for i in range(signal_count):
            present = False
            if not coder.reading:
                while (
                    column_number < group.column_count
                    and columns.column_rows[group.first_column + column_number].signal < i
                ):
                    column_number += 1
                present = (
                    column_number < group.column_count
                    and columns.column_rows[group.first_column + column_number].signal == i
                    and (keep == NULL or keep[self.plan.messages[message].first_signal + i])
                )
            present = code_bit(
                coder, line(models, mix(self.message_keys[message], SIGNALS + (i >> 4))) + (i & 15), present
            )
            if not present:
                continue
            signal = &self.plan.signals[self.plan.messages[message].first_signal + i]
            part.key = mix(part.key, i)
            row_bytes += signal.width
            if coder.reading:
                column = columns.add_columns(1)
                column.signal, column.width, column.is_constant = i, signal.width, False
                columns.group_rows[part.group].column_count += 1
        return row_bytes * (part.rows + 1)

    cdef int allocate(self, Columns columns, group_t* group) except -1 nogil:
        cdef uint32_t i
        cdef column_t* column
        group.times = columns.allocate(8 * <Py_ssize_t>group.count)
        for i in range(group.column_count):
            column = &columns.column_rows[group.first_column + i]
            column.offset = columns.allocate(<Py_ssize_t>group.count * column.width)
        return 0

    cdef void code_sharing(self, coder_t* coder, Columns columns, uint32_t p) noexcept nogil:
        """Does this group share the rows of the one before it?"""
        cdef part_t* part = &self.parts[p]
        cdef uint32_t head = p - 1
        if p == 0 or columns.group_rows[part.group].message != columns.group_rows[self.parts[p - 1].group].message:
            part.rides = False
            return
        part.rides = code_bit(coder, line(&self.models.data, mix(SIGNALS, 7)), part.rides)
        if part.rides:
            while self.parts[head].rides:
                head -= 1
            self.parts[head].riders += 1


cdef bint _kept(Columns columns, const group_t* group, const uint8_t* keep) noexcept nogil:
    cdef uint32_t i, first = columns.plan.messages[group.message].first_signal
    for i in range(group.first_column, group.first_column + group.column_count):
        if keep == NULL or keep[first + columns.column_rows[i].signal]:
            return True
    return False


cdef uint32_t _message_key(uint32_t bus, message) except? 0:
    return mix(mix(bus, message.id | (0x80000000 if message.extended else 0)), SIGNALS)
