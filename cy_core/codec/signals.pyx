"""Columns to the inside of a block and back: signals of messages, exact or within a bound, with their times.

    head      unit of time, first time, how times are written
    groups    message, rows, which signals, and the step of each
    times     in bus order (who, how long after), or as lines through the times of each group; groups of one message
              may share rows: then a row says which of them it is of
    values    group by group, row by row

A value is sent as its raw bits; with a step of k raw units (k odd) as the nearest multiple, so it is wrong by (k - 1) / 2
at most; where what is sent keeps to steps already but for a few values, these have a rest, and all is exact. Lines are
wrong by their tolerance at most: each row is checked when it is written.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from cy_core.codec.coder cimport begin_reading, begin_writing, code_bit, coder_t, finish
from cy_core.codec.groups cimport MOST_GROUPS, SIGNALS, Groups, part_t
from cy_core.codec.lines cimport TIME_MAX, code_lines, wrapping_sum
from cy_core.codec.models cimport line, mix, models_t
from cy_core.codec.number cimport code_residual, code_value, learn_value
from cy_core.codec.order cimport ANY, code_gap, code_who, due_t, line_up_t, take_turn
from cy_core.codec.payload cimport code_row, history_t, start_history
from cy_core.codec.streams cimport FIRST, HEAD
from cy_core.codec.ticks cimport common_divisor, round_to
from cy_core.codec.turns cimport sink, turn_t
from cy_core.codec.values cimport can_step, cell_at, from_coded, has_rests, mask_of, raw_of, to_coded
from cy_core.columns cimport Columns, column_t, group_t
from cy_core.plan cimport message_t, signal_t

cdef enum:
    SHARED = 0x120000           # keys: of groups that share rows
    PRESENT = 0x130000          # is a row of them of this one?
    REST = 0x140000             # of a value that is no multiple of its step
    PART = 64                   # columns of a row that are coded together
    SHARES = 1 << 16            # beside the number of groups: some share rows
    TICKS = 1 << 17             # … and times were rounded
    MOST_BYTES = 64 << 20       # of values and times, when read

cdef extern from *:
    """
    #define bordnetz_rests (1LL << 31)
    """
    const int64_t RESTS "bordnetz_rests"                # beside a step: values have rests


cdef class SignalCodec(Groups):
    """Writes and reads blocks; trained: a table's contexts. learning: models are kept from block to block."""

    cdef int64_t unit, base
    cdef uint32_t tolerance     # 0: times are exact
    cdef bint exact             # writing: nothing is rounded to a step, what is none has a rest
    cdef uint32_t tick
    cdef readonly dict steps    # reading: of the signals that have one, by place in the manifest

    def encode(
        self, Columns columns not None, const uint8_t[::1] selection=None, const uint32_t[::1] steps=None,
        uint32_t tick_us=1, uint32_t tolerance_us=0, bint exact=False,
    ):
        """The inside of a block that holds these columns.

        selection: one byte for each signal of the manifest, not 0 for those to keep. steps: for each signal, in raw
        units: odd, 1 is exact; exact: values are multiples already, and what is none stays as it is. tick_us: times
        are rounded to multiples. tolerance_us: not 0: as lines, wrong by that at most. Raises ValueError: any of these
        does not fit; OverflowError: more than a block may hold, or times over 285 years from 1970.
        """
        cdef coder_t coder
        cdef uint8_t* memory
        cdef Py_ssize_t size
        cdef const uint8_t* keep = &selection[0] if selection is not None and selection.shape[0] else NULL
        cdef const uint32_t* step = &steps[0] if steps is not None and steps.shape[0] else NULL
        if columns.plan is not self.plan or tick_us == 0:
            raise ValueError("columns of another manifest, or a tick of 0 us")
        if selection is not None and selection.shape[0] != self.plan.signal_count:
            raise ValueError(f"a selection of {selection.shape[0]} for {self.plan.signal_count} signals")
        if steps is not None and (
            steps.shape[0] != self.plan.signal_count or any(not s & 1 or s >> 31 for s in steps)
        ):
            raise ValueError("steps are odd, under 2^31, and one for each signal")
        self.exact, self.tick = exact, 1 if tolerance_us else tick_us
        self.choose(columns, keep, tolerance_us != 0)
        memory = <uint8_t*>malloc(4096)
        if memory == NULL:
            raise MemoryError("no memory for a block")
        begin_writing(&coder, memory, 4096)
        try:
            self._begin(columns, tick_us, tolerance_us)
            with nogil:
                self._code(&coder, columns, keep, step, tick_us)
                size = finish(&coder)
            if coder.failed:
                raise OverflowError("more than a block may hold")
            return PyBytes_FromStringAndSize(<char*>coder.start, size)
        finally:
            free(coder.start)

    def decode(self, const uint8_t[::1] content not None, Columns into=None):
        """The columns of a block's inside. Raises ValueError where it is none, or of another manifest."""
        cdef coder_t coder
        cdef Columns columns = into if into is not None else Columns(self.plan)
        if columns.plan is not self.plan or columns.exports:
            raise ValueError("columns of another plan, or still being looked at, cannot be used again here")
        columns.forget()
        self.steps = {}
        begin_reading(&coder, &content[0] if content.shape[0] else NULL, content.shape[0])
        with nogil:
            self._code(&coder, columns, NULL, NULL, 1)
        if coder.failed or coder.at != coder.end:
            columns.forget()
            raise ValueError("it does not end where its signals end")
        return columns

    # -- head and groups -------------------------------------------------------------------------------------

    cdef int _begin(self, Columns columns, int64_t tick_us, uint32_t tolerance_us) except -1:
        """Writing: the first time and the unit."""
        cdef uint32_t p, i
        cdef const int64_t* times
        cdef int64_t unit = 0, other, first = 0
        self.tolerance = tolerance_us
        self.base = TIME_MAX
        for p in range(self.part_count):
            times = <const int64_t*>(columns.arena + columns.group_rows[self.parts[p].group].times)
            for i in range(self.parts[p].rows):
                if not -TIME_MAX // 2 < times[i] < TIME_MAX // 2:
                    raise OverflowError(f"a time of {times[i]} us")
                other = round_to(times[i], tick_us)
                if p == 0 and i == 0:
                    first = other
                if other < self.base:
                    self.base = other
                unit = common_divisor(unit, other - first)
        self.unit = unit if 0 < unit < 1LL << 40 and not tolerance_us else 1
        if self.part_count == 0:
            self.base = 0
        return 0

    cdef int _code(
        self, coder_t* coder, Columns columns, const uint8_t* keep, const uint32_t* steps, int64_t tick_us
    ) except -1 nogil:
        cdef models_t* models = &self.models.data
        cdef uint32_t count, p
        cdef uint64_t size = 0
        cdef int64_t* times
        if not self.learning:
            self.models.forget()
        self.unit = code_value(coder, models, mix(HEAD, 2), 40, self.unit)
        self.base = code_value(coder, models, mix(HEAD, 3), 64, self.base)
        self.tolerance = code_value(coder, models, mix(SIGNALS, 1), 32, self.tolerance)
        count = code_value(coder, models, mix(SIGNALS, 2), 20, self.part_count | self._flags())
        if coder.reading:
            self.shares = count & SHARES and not self.tolerance
            self.tick = 2 if count & TICKS else 1
            count &= ~<uint32_t>(SHARES | TICKS)
            # A group takes a bit or more of each of the numbers that begin it.
            if count > MOST_GROUPS or count > 64 * (coder.end - coder.start) or not -TIME_MAX < self.base < TIME_MAX:
                coder.failed = True
                return 0
            self.reserve(count)
            self.part_count = count
        if not coder.reading:
            count = self.part_count
        if self.tick > 1:
            self.tick = code_value(coder, models, mix(SIGNALS, 8), 32, self.tick)
        for p in range(count):
            size += self.code_group(coder, columns, &self.parts[p], keep)
            if self.shares:
                self.code_sharing(coder, columns, p)
            if coder.failed or size > MOST_BYTES:
                coder.failed = True
                return 0
        if coder.reading:
            for p in range(count):
                self.allocate(columns, &columns.group_rows[p])
        if self.tolerance:
            for p in range(count):
                times = <int64_t*>(columns.arena + columns.group_rows[self.parts[p].group].times)
                code_lines(coder, models, self.parts[p].key, self.base, times, self.parts[p].rows, self.tolerance)
        else:
            self._code_order(coder, columns, tick_us)
        for p in range(count):
            if coder.failed:
                return 0
            self._code_values(coder, columns, &self.parts[p], keep, steps)
        return 0

    cdef inline uint32_t _flags(self) noexcept nogil:
        return (SHARES if self.shares else 0) | (TICKS if self.tick > 1 else 0)

    @property
    def time_error_us(self):
        """Reading: how far the times of the block may be from those that it was made of."""
        return self.tolerance if self.tolerance else self.tick // 2

    # -- times -----------------------------------------------------------------------------------------------

    cdef int _code_order(self, coder_t* coder, Columns columns, int64_t tick_us) except -1 nogil:
        """Bus by bus: which group is next, and how long after."""
        cdef models_t* models = &self.models.data
        cdef line_up_t bus
        cdef int32_t number, p, lines = 0
        cdef int32_t who
        cdef uint32_t left, before, key
        cdef int64_t now = 0
        cdef Py_ssize_t count
        cdef int32_t* queue = <int32_t*>malloc((self.part_count + 1) * sizeof(int32_t))
        cdef turn_t* turns = <turn_t*>malloc((self.part_count + 1) * sizeof(turn_t))
        if queue == NULL or turns == NULL:
            free(queue)
            free(turns)
            with gil:
                raise MemoryError("no memory for the order of groups")
        for p in range(<int32_t>self.part_count):
            key = self.parts[p].key
            if self.parts[p].riders:
                key = mix(self.message_keys[columns.group_rows[self.parts[p].group].message], SHARED)
            self.dues[p] = due_t(key=key, last=0, due=0, period=0, seen=0, recent=0, follower=-1)
            lines = max(lines, self.parts[p].line + 1)
        for number in range(lines):
            left, count = 0, 0
            for p in range(<int32_t>self.part_count):
                if self.parts[p].line == number:
                    left += self.parts[p].rows
                    if not coder.reading and not (self.shares and self.parts[p].rides):
                        turns[count].part = p
                        count += self._next_time(columns, &turns[count])
            for p in range(<int32_t>count // 2 - 1, -1, -1):
                sink(turns, count, p)
            bus = line_up_t(queue=queue, count=0, last_stream=-1, last=0, key=mix(SIGNALS, number), shorts=0)
            while left and not coder.failed:
                who = -1
                if not coder.reading:
                    who, now = turns[0].part, (round_to(turns[0].time, tick_us) - self.base) // self.unit
                before = self.dues[bus.last_stream].key if bus.last_stream >= 0 else bus.key
                p = code_who(coder, models, &bus, self.dues, who)
                if p < 0:
                    p = code_value(coder, models, mix(before, ANY), 16, who)
                if p >= <int32_t>self.part_count or self.parts[p].line != number or (self.shares and self.parts[p].rides):
                    coder.failed = True
                    break
                now = wrapping_sum(bus.last, code_gap(coder, models, &bus, &self.dues[p], self.dues, -1, now - bus.last))
                if not -TIME_MAX < now < TIME_MAX:
                    coder.failed = True
                    break
                left -= self._code_present(
                    coder, columns, p, <int64_t>(<uint64_t>self.base + <uint64_t>now * <uint64_t>self.unit), tick_us
                )
                take_turn(&bus, self.dues, p, now)
                if not coder.reading:
                    if not self._next_time(columns, &turns[0]):
                        count -= 1
                        turns[0] = turns[count]
                    sink(turns, count, 0)
        free(queue)
        free(turns)
        return 0

    cdef uint32_t _code_present(
        self, coder_t* coder, Columns columns, uint32_t head, int64_t time_us, int64_t tick_us
    ) noexcept nogil:
        """Which of the groups that share rows have one at this time, and so how many; failed: none of them."""
        cdef part_t* part
        cdef int64_t* times
        cdef uint32_t p, last = head, found = 0
        cdef bint present
        for p in range(head, head + self.parts[head].riders + 1):
            if self.parts[p].done < self.parts[p].rows:
                last = p
        for p in range(head, last + 1):
            part = &self.parts[p]
            if part.done == part.rows:
                continue
            times = <int64_t*>(columns.arena + columns.group_rows[part.group].times)
            present = True
            if p != last or found:  # else nobody is left
                if part.present == NULL:
                    part.present = line(&self.models.data, mix(part.key, PRESENT))
                present = not coder.reading and round_to(times[part.done], tick_us) == time_us
                present = code_bit(coder, part.present + ((part.recent & 7) << 1 | (found != 0)), present)
            part.recent = part.recent << 1 | present
            if present:
                if coder.reading:
                    times[part.done] = time_us
                part.done += 1
                found += 1
        coder.failed |= found == 0
        return found

    cdef bint _next_time(self, Columns columns, turn_t* turn) noexcept nogil:
        """Writing: the earliest of the next rows of a part and its riders; whether there is one."""
        cdef const part_t* part
        cdef uint32_t p
        cdef int64_t time
        cdef bint found = False
        for p in range(turn.part, turn.part + self.parts[turn.part].riders + 1):
            part = &self.parts[p]
            if part.done < part.rows:
                time = (<const int64_t*>(columns.arena + columns.group_rows[part.group].times))[part.done]
                if not found or time < turn.time:
                    turn.time = time
                found = True
        return found

    # -- values ----------------------------------------------------------------------------------------------

    cdef int _code_values(
        self, coder_t* coder, Columns columns, const part_t* part, const uint8_t* keep, const uint32_t* steps
    ) except -1 nogil:
        """PART columns at a time."""
        cdef const group_t* group = &columns.group_rows[part.group]
        cdef uint32_t first = self.plan.messages[group.message].first_signal, i, count = 0
        cdef uint32_t[PART] chosen
        for i in range(group.first_column, group.first_column + group.column_count):
            if keep == NULL or keep[first + columns.column_rows[i].signal]:
                chosen[count] = i
                count += 1
                if count == PART:
                    self._code_part(coder, columns, part, chosen, count, steps)
                    count = 0
        if count:
            self._code_part(coder, columns, part, chosen, count, steps)
        return 0

    cdef void _code_part(
        self, coder_t* coder, Columns columns, const part_t* part, const uint32_t* chosen, uint32_t count,
        const uint32_t* steps
    ) noexcept nogil:
        cdef models_t* models = &self.models.data
        cdef const group_t* group = &columns.group_rows[part.group]
        cdef const message_t* message = &self.plan.messages[group.message]
        cdef const signal_t* signals[PART]
        cdef uint8_t[PART] widths
        cdef int64_t[PART] step
        cdef bint[PART] has_rest
        cdef history_t[PART] histories
        cdef uint64_t[PART] values
        cdef uint32_t key = mix(part.key, columns.column_rows[chosen[0]].signal), recent = 0xFFFFFFFF, row, i
        cdef column_t* column
        cdef uint64_t value
        cdef uint32_t place
        for i in range(count):
            column = &columns.column_rows[chosen[i]]
            signals[i] = &self.plan.signals[message.first_signal + column.signal]
            widths[i] = signals[i].length
            step[i] = 1
            has_rest[i] = False
            if steps != NULL and can_step(signals[i]):
                step[i] = steps[message.first_signal + column.signal]
            if code_bit(coder, line(models, mix(SIGNALS, 5)), step[i] != 1):
                if not coder.reading:
                    has_rest[i] = self.exact and has_rests(
                        signals[i], step[i], columns.arena + column.offset, column, part.rows
                    )
                value = code_value(coder, models, mix(SIGNALS, 6), 32, step[i] | (RESTS if has_rest[i] else 0))
                step[i], has_rest[i] = value & 0x7FFFFFFF, value >> 31
                if coder.reading and step[i] > 1:
                    with gil:
                        place = message.first_signal + column.signal
                        self.steps[place] = max(self.steps.get(place, 1), step[i])
        for row in range(part.rows):
            if not coder.reading:
                for i in range(count):
                    column = &columns.column_rows[chosen[i]]
                    values[i] = to_coded(
                        signals[i], step[i], cell_at(columns.arena + column.offset, column, row)
                    )
            if row == 0:
                for i in range(count):
                    values[i] = code_value(coder, models, mix(key, FIRST + i), widths[i], values[i])
                    start_history(&histories[i], values[i])
            else:
                code_row(coder, models, key, widths, count, histories, values, &recent, True, False)
                if self.learning and row & 15 == 0:
                    for i in range(count):
                        learn_value(models, mix(key, FIRST + i), widths[i], values[i])
            for i in range(count):
                column = &columns.column_rows[chosen[i]]
                value = 0
                if has_rest[i]:
                    if not coder.reading:
                        value = raw_of(signals[i], cell_at(columns.arena + column.offset, column, row))
                        value -= from_coded(signals[i], step[i], values[i])
                    value = <uint64_t>code_residual(coder, models, mix(key, REST + i), 0, <int64_t>value)
                if coder.reading:
                    if coder.failed:
                        return
                    value += from_coded(signals[i], step[i], values[i])
                    value = ((value & mask_of(signals[i])) ^ signals[i].sign) - signals[i].sign
                    memcpy(columns.arena + column.offset + row * <uint64_t>column.width, &value, column.width)
