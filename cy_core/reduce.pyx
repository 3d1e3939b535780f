"""Leave out samples, and coarsen values, inside the bounds that a campaign allows.

    columns ──► reduce ──► columns with fewer rows, signal by signal
                 ▲ │
         state, one row a signal, carried from batch to batch

EVERY     each sample; integers at multiples of a quantum, floats at multiples of a step
CHANGE    a sample that differs from the last kept one by more than the bound, or comes max_hold behind it
CURVELOG  ends of line segments: between two kept samples, every sample lies within the bound of the line
WINDOW    of each period the first, last, smallest and largest sample, at their own times

Values that have a label (a gear) or say that there is none ("not available") are never coarsened, and no line passes one. Bounds are on raw
values (bound / |factor|), so they hold exactly, whatever rounding a physical value suffers. Line segments end with
the batch, so each block keeps its promise alone. Slow twin: tests/reference/reduce.py.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.math cimport INFINITY, fabs, isfinite, rint
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from cy_core.columns cimport Columns, column_t, group_t
from cy_core.gather cimport floor_div, gather, link_groups, pick_t, raw_of
from cy_core.plan cimport Plan, signal_t
from cy_core.value cimport number_of

cdef enum kind_t:
    DROP, EVERY, CHANGE, CURVELOG, WINDOW

KINDS = {"drop": DROP, "every": EVERY, "change": CHANGE, "curvelog": CURVELOG, "window": WINDOW}

cdef enum:
    FIRST = 1
    LAST = 2
    SMALLEST = 4
    LARGEST = 8
    LOOK_AHEAD = 512            # rows behind the last that fits: bounds the work a segment can cost

KEEP = {"first": FIRST, "last": LAST, "min": SMALLEST, "max": LARGEST}


cdef struct rule_t:
    int kind
    uint8_t keep, negative      # of a window; the factor is negative, so the smallest raw is the largest value
    double bound                # in raw units
    uint64_t whole_bound        # the same for integers, rounded down
    int64_t span_us, hold_us    # 0: none
    uint32_t first_label, label_count


cdef struct state_t:
    uint8_t started
    int64_t cell                # of a window
    pick_t first, last, smallest, largest
    uint8_t has_range


cdef class Reducer:
    """rules: for each signal of the manifest (kind, bound in raw units, span_us, hold_us, keep bits, raw values
    that have a label, or ranges (low, high) of them, whether the factor is negative). Raises ValueError: not one rule a signal, or a period that is none.
    """

    cdef readonly Plan plan
    cdef rule_t* rules
    cdef state_t* states
    cdef uint64_t* labels           # of each range: low, and how many more
    cdef pick_t* samples            # of the signal at hand, in the order of time
    cdef pick_t* picks              # those of them that are kept
    cdef int32_t* heads             # of each message: its first group, -1 for none
    cdef int32_t* nexts             # of each group: the next one of its message, -1 for none
    cdef Py_ssize_t capacity, pick_capacity, pick_count, group_capacity

    def __cinit__(self, Plan plan not None, rules):
        cdef Py_ssize_t place, count = 0
        if len(rules) != plan.signal_count:
            raise ValueError(f"{len(rules)} rules for {plan.signal_count} signals")
        self.plan = plan
        self.heads = <int32_t*>_zeroed(plan.message_count, sizeof(int32_t))
        self.rules = <rule_t*>_zeroed(plan.signal_count, sizeof(rule_t))
        self.states = <state_t*>_zeroed(plan.signal_count, sizeof(state_t))
        self.labels = <uint64_t*>_zeroed(2 * sum(len(rule[5]) for rule in rules), sizeof(uint64_t))
        for place, (kind, bound, span_us, hold_us, keep, labels, negative) in enumerate(rules):
            if KINDS[kind] == WINDOW and span_us < 1:
                raise ValueError(f"signal {place}: a window of {span_us} us")
            self.rules[place].kind, self.rules[place].bound = KINDS[kind], bound
            self.rules[place].whole_bound = int(min(bound, 2.0**62))
            self.rules[place].span_us, self.rules[place].hold_us = span_us, hold_us
            self.rules[place].keep, self.rules[place].negative = keep, negative
            self.rules[place].first_label, self.rules[place].label_count = count, len(labels)
            for raw in labels:
                low, high = raw if isinstance(raw, tuple) else (raw, raw)
                self.labels[2 * count] = low & 0xFFFFFFFFFFFFFFFF
                self.labels[2 * count + 1] = (high - low) & 0xFFFFFFFFFFFFFFFF
                count += 1

    def __dealloc__(self):
        free(self.rules)
        free(self.states)
        free(self.labels)
        free(self.samples)
        free(self.heads)
        free(self.nexts)
        free(self.picks)

    def save(self):
        """The state, to go back to."""
        return PyBytes_FromStringAndSize(<char*>self.states, self.plan.signal_count * sizeof(state_t))

    def restore(self, bytes state not None):
        """Raises ValueError: this is no state of it."""
        if len(state) != self.plan.signal_count * <Py_ssize_t>sizeof(state_t):
            raise ValueError(f"a state of {len(state)} bytes for {self.plan.signal_count} signals")
        memcpy(self.states, PyBytes_AS_STRING(state), len(state))

    def forget(self):
        """Start anew, as behind a gap in time."""
        memset(self.states, 0, self.plan.signal_count * sizeof(state_t))

    def reduce(self, Columns columns not None, Columns into not None, int64_t now_us, bint last=False):
        """Fill into with what is kept of columns; return how many samples that is.

        now_us: the time that this batch reaches; windows that end before it are given out. last: all of them are.
        Raises ValueError: columns of another plan.
        """
        cdef Py_ssize_t i, kept
        cdef int32_t group
        if columns.plan is not self.plan or into.plan is not self.plan or into.exports or into is columns:
            raise ValueError("columns of another plan, or still being looked at, cannot be used here")
        into.forget()
        into.frames = columns.frames
        with nogil:
            link_groups(columns, self.heads, &self.nexts, &self.group_capacity)
            for i in range(self.plan.message_count):    # message by message: groups side by side can share rows
                group = self.heads[i]
                while group >= 0:
                    self._whole(columns, &columns.group_rows[group], into)
                    group = self.nexts[group]
                if self.heads[i] >= 0:
                    self._message(columns, i, into)
            self._close_windows(into, now_us, last)
        kept = into.samples()
        return kept

    cdef int _whole(self, Columns columns, const group_t* group, Columns into) except -1 nogil:
        cdef uint32_t first = self.plan.messages[group.message].first_signal, j, whole = 0
        for j in range(group.first_column, group.first_column + group.column_count):
            whole += self.rules[first + columns.column_rows[j].signal].kind == EVERY
        return self._copy_whole(columns, group, into, whole) if whole else 0

    cdef int _message(self, Columns columns, uint32_t message, Columns into) except -1 nogil:
        """The signals of a message that are reduced one by one."""
        cdef uint32_t i, place
        cdef Py_ssize_t count
        for i in range(self.plan.messages[message].signal_count):
            place = self.plan.messages[message].first_signal + i
            if self.rules[place].kind < CHANGE:
                continue
            count = gather(columns, message, i, self.heads[message], self.nexts, &self.samples, &self.capacity)
            self.pick_count = 0
            if count == 0:
                continue
            if self.rules[place].kind == CHANGE:
                self._change(place, count)
            elif self.rules[place].kind == CURVELOG:
                self._curvelog(place, count)
            else:
                self._window(place, count)
            self._put_picks(place, message, i, into)
        return 0

    # -- every

    cdef int _copy_whole(self, Columns columns, const group_t* group, Columns into, uint32_t whole) except -1 nogil:
        """The signals of which each sample is kept stay together and share their times."""
        cdef uint32_t first = self.plan.messages[group.message].first_signal, j, at
        cdef const column_t* column
        cdef Py_ssize_t size, offset, i
        cdef uint64_t value
        cdef rule_t* rule
        cdef const signal_t* signal
        into.add_group()
        into.group_rows[into.group_count - 1].message = group.message
        into.group_rows[into.group_count - 1].count = group.count
        into.group_rows[into.group_count - 1].first_column = at = into.column_count
        into.group_rows[into.group_count - 1].column_count = whole
        offset = into.allocate(8 * group.count)
        into.group_rows[into.group_count - 1].times = offset
        memcpy(into.arena + offset, columns.arena + group.times, 8 * group.count)
        into.add_columns(whole)
        for j in range(group.first_column, group.first_column + group.column_count):
            column = &columns.column_rows[j]
            rule = &self.rules[first + column.signal]
            if rule.kind != EVERY:
                continue
            signal = &self.plan.signals[first + column.signal]
            size = 1 if column.is_constant else group.count
            offset = into.allocate(size * column.width)
            into.column_rows[at] = column[0]
            into.column_rows[at].offset = offset
            at += 1
            if rule.bound == 0:
                memcpy(into.arena + offset, columns.arena + column.offset, size * column.width)
                continue
            for i in range(size):
                value = self._coarse(rule, signal, raw_of(columns, column, signal, i))
                _put(into.arena + offset + i * column.width, value, column.width)
        return 0

    cdef uint64_t _coarse(self, const rule_t* rule, const signal_t* signal, uint64_t raw) noexcept nogil:
        """The raw value to send instead: within the bound, inside the field, no label."""
        cdef uint64_t coarse, quantum, bits, top
        cdef double value, near, step
        cdef float single
        cdef int64_t whole
        if self._has_label(rule, raw):
            return raw
        if signal.format == c'd' or signal.format == c'f':
            value = number_of(raw, signal.format)
            step = 2 * rule.bound
            near = rint(value / step) * step
            bits = 0
            if signal.format == c'f':
                single = <float>near
                memcpy(&bits, &single, 4)
            else:
                memcpy(&bits, &near, 8)
            near = number_of(bits, signal.format)
            return bits if isfinite(near) and fabs(near - value) <= rule.bound else raw
        if signal.format == c'e' or rule.whole_bound == 0 or signal.length > 60:
            return raw
        quantum = 2 * rule.whole_bound + 1
        if quantum >> 60:
            quantum = (1ULL << 60) - 1
        if signal.sign:
            whole = <int64_t>raw
            top = signal.sign - 1
            whole = floor_div(whole + <int64_t>(quantum // 2), <int64_t>quantum) * <int64_t>quantum
            whole = max(-<int64_t>signal.sign, min(<int64_t>top, whole))
            coarse = <uint64_t>whole
        else:
            top = (1ULL << signal.length) - 1
            coarse = min(top, (raw + quantum // 2) // quantum * quantum)
        return raw if self._has_label(rule, coarse) else coarse

    cdef inline bint _has_label(self, const rule_t* rule, uint64_t raw) noexcept nogil:
        cdef uint32_t i
        for i in range(rule.first_label, rule.first_label + rule.label_count):
            if raw - self.labels[2 * i] <= self.labels[2 * i + 1]:
                return True
        return False

    # -- change

    cdef int _change(self, Py_ssize_t place, Py_ssize_t count) except -1 nogil:
        cdef rule_t* rule = &self.rules[place]
        cdef state_t* state = &self.states[place]
        cdef const signal_t* signal = &self.plan.signals[place]
        cdef const pick_t* sample
        cdef Py_ssize_t i
        for i in range(count):
            sample = &self.samples[i]
            if (
                not state.started
                or (rule.hold_us and sample.time_us - state.last.time_us >= rule.hold_us)
                or (sample.raw != state.last.raw and self._differs(rule, signal, sample.raw, state.last.raw))
            ):
                state.started, state.last = True, sample[0]
                self._add_pick(sample)
        return 0

    cdef bint _differs(self, const rule_t* rule, const signal_t* signal, uint64_t a, uint64_t b) noexcept nogil:
        cdef double x, y
        if self._has_label(rule, a) or self._has_label(rule, b):
            return True
        if signal.format == c'd' or signal.format == c'f' or signal.format == c'e':
            x, y = number_of(a, signal.format), number_of(b, signal.format)
            return not fabs(x - y) <= rule.bound    # so that not a number is always news
        if signal.sign:
            return (a - b if <int64_t>a > <int64_t>b else b - a) > rule.whole_bound
        return (a - b if a > b else b - a) > rule.whole_bound

    # -- curvelog

    cdef int _curvelog(self, Py_ssize_t place, Py_ssize_t count) except -1 nogil:
        cdef rule_t* rule = &self.rules[place]
        cdef const signal_t* signal = &self.plan.signals[place]
        cdef const pick_t* samples = self.samples
        cdef Py_ssize_t anchor = 0, last, j
        cdef double low, high, start, value, span, slope
        # A little less, so that a line computed in any order of operations stays inside.
        cdef double bound = rule.bound * (1 - 1e-9)
        self._add_pick(samples)
        while anchor < count - 1:
            last, j = anchor + 1, anchor + 1
            low, high = -INFINITY, INFINITY
            start = self._line_value(rule, signal, samples[anchor].raw)
            while j < count and j - last < LOOK_AHEAD and isfinite(start):
                value = self._line_value(rule, signal, samples[j].raw)
                span = <double>(samples[j].time_us - samples[anchor].time_us)
                if not isfinite(value) or span <= 0 or (rule.hold_us and j > anchor + 1 and span > rule.hold_us):
                    break
                slope = (value - start) / span
                if low <= slope <= high:
                    last = j
                low = max(low, (value - bound - start) / span)
                high = min(high, (value + bound - start) / span)
                if low > high:
                    break
                j += 1
            self._add_pick(&samples[last])
            anchor = last
        return 0

    cdef inline double _line_value(self, const rule_t* rule, const signal_t* signal, uint64_t raw) noexcept nogil:
        """What a line can pass: not a label, not an integer that no double holds."""
        cdef double value = number_of(raw, signal.format)
        if self._has_label(rule, raw) or (signal.length > 53 and fabs(value) > 9007199254740992.0):
            return INFINITY
        return value

    # -- window

    cdef int _window(self, Py_ssize_t place, Py_ssize_t count) except -1 nogil:
        cdef rule_t* rule = &self.rules[place]
        cdef state_t* state = &self.states[place]
        cdef const signal_t* signal = &self.plan.signals[place]
        cdef Py_ssize_t i
        cdef int64_t cell
        cdef pick_t pick
        cdef double value
        for i in range(count):
            pick = self.samples[i]
            cell = floor_div(pick.time_us, rule.span_us)
            if state.started and cell > state.cell:
                self._give_out(rule, state)
            if not state.started:
                state.started, state.cell, state.has_range = True, cell, False
                state.first = pick
            state.last = pick
            value = number_of(pick.raw, signal.format)
            if rule.negative:
                value = -value
            if value != value:
                continue
            if not state.has_range or value < _sided(rule, signal, state.smallest.raw):
                state.smallest = pick
            if not state.has_range or value > _sided(rule, signal, state.largest.raw):
                state.largest = pick
            state.has_range = True
        return 0

    cdef int _close_windows(self, Columns into, int64_t now_us, bint last) except -1 nogil:
        """Give out periods that are over, also of signals that have fallen silent."""
        cdef uint32_t message, i, place
        cdef rule_t* rule
        cdef state_t* state
        for message in range(self.plan.message_count):
            for i in range(self.plan.messages[message].signal_count):
                place = self.plan.messages[message].first_signal + i
                rule, state = &self.rules[place], &self.states[place]
                if rule.kind == WINDOW and state.started and (last or floor_div(now_us, rule.span_us) > state.cell):
                    self.pick_count = 0
                    self._give_out(rule, state)
                    self._put_picks(place, message, i, into)
        return 0

    cdef int _give_out(self, const rule_t* rule, state_t* state) except -1 nogil:
        """The samples of a period that are kept, in the order of time, each once."""
        cdef pick_t[4] picks
        cdef pick_t pick
        cdef int count = 0, i, j
        if rule.keep & FIRST:
            picks[count] = state.first
            count += 1
        if rule.keep & SMALLEST and state.has_range:
            picks[count] = state.smallest
            count += 1
        if rule.keep & LARGEST and state.has_range:
            picks[count] = state.largest
            count += 1
        if rule.keep & LAST or not count:
            picks[count] = state.last
            count += 1
        for i in range(1, count):
            pick = picks[i]
            j = i
            while j > 0 and picks[j - 1].time_us > pick.time_us:
                picks[j] = picks[j - 1]
                j -= 1
            picks[j] = pick
        for i in range(count):
            if i == 0 or picks[i].time_us != picks[i - 1].time_us or picks[i].raw != picks[i - 1].raw:
                self._add_pick(&picks[i])
        state.started = False
        return 0

    cdef int _add_pick(self, const pick_t* pick) except -1 nogil:
        cdef void* grown
        if self.pick_count == self.pick_capacity:
            self.pick_capacity = max(256, 2 * self.pick_capacity)
            grown = realloc(self.picks, self.pick_capacity * sizeof(pick_t))
            if grown == NULL:
                with gil:
                    raise MemoryError(f"no memory for {self.pick_capacity} samples")
            self.picks = <pick_t*>grown
        self.picks[self.pick_count] = pick[0]
        self.pick_count += 1
        return 0

    cdef int _put_picks(self, uint32_t place, uint32_t message, uint32_t signal, Columns into) except -1 nogil:
        cdef int width = self.plan.signals[place].width
        cdef Py_ssize_t values, i
        if self.pick_count == 0:
            return 0
        values = _add_single(into, message, signal, width, self.pick_count)
        for i in range(self.pick_count):
            (<int64_t*>(into.arena + into.group_rows[into.group_count - 1].times))[i] = self.picks[i].time_us
            _put(into.arena + values + i * width, self.picks[i].raw, width)
        return 0

cdef Py_ssize_t _add_single(
    Columns into, uint32_t message, uint32_t signal, int width, Py_ssize_t count
) except -1 nogil:
    """A fresh group of one column; where its values go."""
    cdef Py_ssize_t times = into.allocate(8 * count), values = into.allocate(width * count)
    cdef group_t* group
    cdef column_t* column = into.add_columns(1)
    column.signal, column.width, column.is_constant, column.offset = signal, width, False, values
    group = into.add_group()
    group.message, group.count, group.times = message, count, times
    group.first_column, group.column_count = into.column_count - 1, 1
    return values


cdef inline void _put(uint8_t* to, uint64_t raw, int width) noexcept nogil:
    if width == 1:
        to[0] = <uint8_t>raw
    elif width == 2:
        memcpy(to, &raw, 2)
    elif width == 4:
        memcpy(to, &raw, 4)
    else:
        memcpy(to, &raw, 8)


cdef inline double _sided(const rule_t* rule, const signal_t* signal, uint64_t raw) noexcept nogil:
    return -number_of(raw, signal.format) if rule.negative else number_of(raw, signal.format)


cdef void* _zeroed(Py_ssize_t count, size_t size) except NULL:
    cdef void* memory = calloc(max(count, 1), size)
    if memory == NULL:
        raise MemoryError(f"no memory for {count} entries of a reduction")
    return memory
