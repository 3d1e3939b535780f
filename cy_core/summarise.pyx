"""What a signal came to over a period or an event: mean, count, sum, and how long it was in each class.

    columns ──► summarise ──► columns of another plan: a message for each signal, a row for each period
                   ▲ │
            periods under way, one a signal, carried from batch to batch

A period is a multiple of span_us of the source's clock; its row has the time at which it begins. Without span_us there is
one, from the first sample to the end of the event. Mean and sum are of the values that are numbers: not of those that
have a label or say that there is none. They are sums of raw values in doubles with Neumaier's correction (Neumaier 1974,
ZAMM 54:39), so they are exact but for the last roundings.

A value counts for its class until the next sample, at most hold_us; what reaches into the next period counts there, so
the times of a signal that is never silent add up. Slow twin: tests/reference/reduce.py.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.math cimport NAN, fabs, isfinite
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from cy_core.columns cimport Columns, column_t, group_t
from cy_core.gather cimport floor_div, gather, link_groups, pick_t
from cy_core.plan cimport Plan, signal_t
from cy_core.value cimport number_of

cdef extern from *:
    """
    #define bordnetz_far_us (1LL << 61)
    """
    const int64_t FAR_US "bordnetz_far_us"      # times beyond are taken for this, so that no sum of them overflows

cdef enum:
    MEAN = 1
    COUNT = 2
    SUM = 4
    DWELL = 8
    DWELL_BITS = 40             # of microseconds: twelve days
    MOST_COLUMNS = 4096         # of a row

KINDS = {"mean": MEAN, "count": COUNT, "sum": SUM, "dwell": DWELL}


cdef struct range_t:            # raw values that are no numbers
    uint64_t low, high


cdef struct label_t:
    uint64_t raw
    uint32_t number             # of its class


cdef struct summary_t:
    uint32_t message, signal
    const signal_t* field
    uint8_t kinds, by_label
    double factor, offset
    int64_t span_us, hold_us    # 0: the event; until the next sample
    uint32_t first_edge, edge_count, first_label, label_count, first_range, range_count
    uint32_t first_class, class_count       # in dwells; the last one is that of what is in no other


cdef struct period_t:
    uint8_t started, holds
    uint32_t held               # the class of the last value
    uint64_t count, numbers
    int64_t cell, start_us
    int64_t counted_us          # dwells are counted up to here
    int64_t until_us            # and the last value holds until here
    double total, rest


cdef class Summariser:
    """summaries: (place of the signal in the manifest, kinds, span_us, hold_us, factor, offset, ascending edges,
    [(labelled raw value, class)], [(lowest, highest raw value that is no number)] apart and ascending, classes), as
    edge/summary.py makes them. into: the plan of what comes out, a message for each of them.

    Raises ValueError: one of these does not fit the plans.
    """

    cdef readonly Plan plan, into
    cdef pick_t* samples            # of the signal at hand, in the order of time
    cdef int32_t* heads             # of each message: its first group, -1 for none
    cdef int32_t* nexts             # of each group: the next one of its message, -1 for none
    cdef Py_ssize_t capacity, group_capacity
    cdef summary_t* summaries
    cdef period_t* periods
    cdef int64_t* dwells
    cdef double* edges
    cdef label_t* labels
    cdef range_t* ranges
    cdef uint64_t* rows             # of the signal at hand: start, then its columns
    cdef Py_ssize_t count, dwell_count, row_count, row_capacity

    def __cinit__(self, Plan plan not None, Plan into not None, summaries):
        cdef Py_ssize_t i, edges = 0, labels = 0, ranges = 0
        cdef summary_t* one
        if into.message_count != len(summaries):
            raise ValueError(f"{len(summaries)} summaries, and {into.message_count} messages to put them into")
        self.plan, self.into, self.count = plan, into, len(summaries)
        self.heads = <int32_t*>_zeroed(plan.message_count, sizeof(int32_t))
        self.summaries = <summary_t*>_zeroed(self.count, sizeof(summary_t))
        self.periods = <period_t*>_zeroed(self.count, sizeof(period_t))
        self.dwells = <int64_t*>_zeroed(sum(row[9] for row in summaries), sizeof(int64_t))
        self.edges = <double*>_zeroed(sum(len(row[6]) for row in summaries), sizeof(double))
        self.labels = <label_t*>_zeroed(sum(len(row[7]) for row in summaries), sizeof(label_t))
        self.ranges = <range_t*>_zeroed(sum(len(row[8]) for row in summaries), sizeof(range_t))
        for i, (place, kinds, span_us, hold_us, factor, offset, own_edges, own_labels, own_ranges, classes) in enumerate(
            summaries
        ):
            one = &self.summaries[i]
            if not 0 <= place < plan.signal_count or not 0 <= span_us < FAR_US or not 0 <= hold_us < FAR_US:
                raise ValueError(f"summary {i}: signal {place}, period {span_us} us, hold {hold_us} us")
            one.field = &plan.signals[place]
            while place >= plan.messages[one.message].first_signal + plan.messages[one.message].signal_count:
                one.message += 1
            one.signal = place - plan.messages[one.message].first_signal
            one.kinds, one.factor, one.offset, one.span_us = kinds, factor, offset, span_us
            one.hold_us = min(hold_us or FAR_US, span_us or FAR_US)
            one.by_label = len(own_labels) > 0
            one.first_edge, one.edge_count = edges, len(own_edges)
            one.first_label, one.label_count = labels, len(own_labels)
            one.first_range, one.range_count = ranges, len(own_ranges)
            one.first_class, one.class_count = self.dwell_count, classes
            if kinds & DWELL and (
                classes != len(own_edges) + 2 and not own_labels or any(n >= classes for _, n in own_labels)
            ):
                raise ValueError(f"summary {i}: {classes} classes do not fit its edges or labels")
            if into.messages[i].signal_count != _columns(one) or classes > MOST_COLUMNS:
                raise ValueError(f"summary {i}: {_columns(one)} columns for {into.messages[i].signal_count} signals")
            for edge in own_edges:
                self.edges[edges] = edge
                edges += 1
            for raw, number in own_labels:
                self.labels[labels] = label_t(raw=raw & 0xFFFFFFFFFFFFFFFF, number=number)
                labels += 1
            for low, high in own_ranges:
                self.ranges[ranges] = range_t(low=low & 0xFFFFFFFFFFFFFFFF, high=high & 0xFFFFFFFFFFFFFFFF)
                ranges += 1
            self.dwell_count += classes

    def __dealloc__(self):
        free(self.summaries)
        free(self.periods)
        free(self.dwells)
        free(self.edges)
        free(self.labels)
        free(self.ranges)
        free(self.rows)
        free(self.samples)
        free(self.heads)
        free(self.nexts)

    def save(self):
        """The state, to go back to."""
        cdef Py_ssize_t head = self.count * sizeof(period_t), tail = self.dwell_count * sizeof(int64_t)
        state = PyBytes_FromStringAndSize(NULL, head + tail)
        memcpy(PyBytes_AS_STRING(state), self.periods, head)
        memcpy(PyBytes_AS_STRING(state) + head, self.dwells, tail)
        return state

    def restore(self, bytes state not None):
        """Raises ValueError: this is no state of it."""
        cdef Py_ssize_t head = self.count * sizeof(period_t), tail = self.dwell_count * sizeof(int64_t)
        if len(state) != head + tail:
            raise ValueError(f"a state of {len(state)} bytes for {self.count} summaries")
        memcpy(self.periods, PyBytes_AS_STRING(state), head)
        memcpy(self.dwells, PyBytes_AS_STRING(state) + head, tail)

    def forget(self):
        """Start anew, as behind a gap in time."""
        memset(self.periods, 0, self.count * sizeof(period_t))
        memset(self.dwells, 0, self.dwell_count * sizeof(int64_t))

    def summarise(self, Columns columns not None, Columns into not None, int64_t now_us, bint last=False):
        """Fill into with a row for each period that is over; return how many values that is.

        now_us: the time that this batch reaches. last: all periods are over. Raises ValueError: columns of another plan.
        """
        cdef Py_ssize_t i, j, count
        cdef int64_t now = _near(now_us)
        cdef summary_t* one
        cdef period_t* period
        if columns.plan is not self.plan or into.plan is not self.into or into.exports or into is columns:
            raise ValueError("columns of another plan, or still being looked at, cannot be used here")
        into.forget()
        into.frames = columns.frames
        with nogil:
            link_groups(columns, self.heads, &self.nexts, &self.group_capacity)
            for i in range(self.count):
                self.row_count = 0
                one, period = &self.summaries[i], &self.periods[i]
                count = gather(
                    columns, one.message, one.signal, self.heads[one.message], self.nexts, &self.samples, &self.capacity
                )
                for j in range(count):
                    self._add(one, period, &self.samples[j])
                self._advance(one, period, now)
                if last and period.started:
                    self._give_out(one, period)
                    period.started = period.holds = False
                self._put_rows(one, i, into)
        count = into.samples()
        return count

    cdef int _add(self, const summary_t* one, period_t* period, const pick_t* sample) except -1 nogil:
        cdef int64_t time_us = _near(sample.time_us)
        cdef double value = number_of(sample.raw, one.field.format), total
        cdef bint is_number = isfinite(value) and not self._says_none(one, sample.raw)
        self._advance(one, period, time_us)
        if not period.started:
            period.started = True
            period.cell = floor_div(time_us, one.span_us) if one.span_us else 0
            period.start_us = period.cell * one.span_us if one.span_us else time_us
            period.counted_us = time_us
        if one.kinds & DWELL:
            period.held = self._class(one, sample.raw, value * one.factor + one.offset, is_number)
            period.holds = True
            period.counted_us = max(period.counted_us, time_us)
            period.until_us = time_us + one.hold_us
        period.count += 1
        if is_number:
            period.numbers += 1
            total = period.total + value
            if fabs(period.total) >= fabs(value):
                period.rest += (period.total - total) + value
            else:
                period.rest += (value - total) + period.total
            period.total = total
        return 0

    cdef int _advance(self, const summary_t* one, period_t* period, int64_t time_us) except -1 nogil:
        """Count the value that holds, and give out what is over, up to this time."""
        cdef int64_t end, until
        while period.started:
            end = (period.cell + 1) * one.span_us if one.span_us else FAR_US
            until = min(time_us, end)
            if period.holds:
                until = min(until, period.until_us)
                if until > period.counted_us:
                    self.dwells[one.first_class + period.held] += until - period.counted_us
                    period.counted_us = until
            if time_us < end or not one.span_us:
                break
            self._give_out(one, period)
            period.started = period.holds = period.holds and period.until_us > end
            period.cell += 1
            period.start_us = period.counted_us = end
        return 0

    cdef int _give_out(self, const summary_t* one, period_t* period) except -1 nogil:
        cdef uint32_t width = 1 + _columns(one), at = 1, i
        cdef uint64_t* row
        cdef void* grown
        cdef double mean = NAN, total = 0
        if (self.row_count + 1) * width > self.row_capacity:
            self.row_capacity = 2 * (self.row_count + 1) * width
            grown = realloc(self.rows, self.row_capacity * sizeof(uint64_t))
            if grown == NULL:
                with gil:
                    raise MemoryError(f"no memory for {self.row_count} periods of a signal")
            self.rows = <uint64_t*>grown
        row = &self.rows[self.row_count * width]
        self.row_count += 1
        memcpy(row, &period.start_us, 8)
        if period.numbers:
            total = period.total + period.rest
            mean = total / period.numbers * one.factor + one.offset
            total = total * one.factor + period.numbers * one.offset
        if one.kinds & MEAN:
            memcpy(&row[at], &mean, 8)
            at += 1
        if one.kinds & COUNT:
            row[at] = min(period.count, <uint64_t>0xFFFFFFFF)
            at += 1
        if one.kinds & SUM:
            memcpy(&row[at], &total, 8)
            at += 1
        if one.kinds & DWELL:
            for i in range(one.class_count):
                row[at + i] = min(<uint64_t>self.dwells[one.first_class + i], (1ULL << DWELL_BITS) - 1)
                self.dwells[one.first_class + i] = 0
        period.count = period.numbers = 0
        period.total = period.rest = 0
        return 0

    cdef uint32_t _class(self, const summary_t* one, uint64_t raw, double value, bint is_number) noexcept nogil:
        cdef uint32_t low = one.first_edge, high = one.first_edge + one.edge_count, middle
        if one.by_label:
            for middle in range(one.first_label, one.first_label + one.label_count):
                if self.labels[middle].raw == raw:
                    return self.labels[middle].number
            return one.class_count - 1
        if not is_number:
            return one.class_count - 1
        while low < high:
            middle = (low + high) // 2
            if self.edges[middle] <= value:
                low = middle + 1
            else:
                high = middle
        return low - one.first_edge

    cdef bint _says_none(self, const summary_t* one, uint64_t raw) noexcept nogil:
        cdef uint32_t low = one.first_range, high = one.first_range + one.range_count, middle
        cdef bint is_below
        while low < high:
            middle = (low + high) // 2
            if one.field.sign:
                is_below = <int64_t>self.ranges[middle].high < <int64_t>raw
            else:
                is_below = self.ranges[middle].high < raw
            if is_below:
                low = middle + 1
            else:
                high = middle
        if low == one.first_range + one.range_count:
            return False
        if one.field.sign:
            return <int64_t>self.ranges[low].low <= <int64_t>raw
        return self.ranges[low].low <= raw

    cdef int _put_rows(self, const summary_t* one, uint32_t message, Columns into) except -1 nogil:
        cdef uint32_t width = _columns(one), i, j
        cdef const signal_t* fields = &self.into.signals[self.into.messages[message].first_signal]
        cdef Py_ssize_t times, values
        cdef uint8_t* to
        cdef column_t* column
        cdef group_t* group
        if self.row_count == 0:
            return 0
        times = into.allocate(8 * self.row_count)
        for i in range(self.row_count):
            memcpy(into.arena + times + 8 * i, &self.rows[i * (width + 1)], 8)
        for j in range(width):
            values = into.allocate(fields[j].width * self.row_count)
            column = into.add_columns(1)
            column.signal, column.width, column.is_constant, column.offset = j, fields[j].width, False, values
            for i in range(self.row_count):     # little-endian: the low bytes come first
                to = into.arena + values + i * fields[j].width
                memcpy(to, &self.rows[i * (width + 1) + 1 + j], fields[j].width)
        group = into.add_group()
        group.message, group.count, group.times = message, self.row_count, times
        group.first_column, group.column_count = into.column_count - width, width
        return 0


cdef inline uint32_t _columns(const summary_t* one) noexcept nogil:
    cdef uint32_t kinds = one.kinds
    return (kinds & MEAN) + (kinds >> 1 & 1) + (kinds >> 2 & 1) + (one.class_count if kinds & DWELL else 0)


cdef inline int64_t _near(int64_t time_us) noexcept nogil:
    return max(-FAR_US, min(FAR_US, time_us))


cdef void* _zeroed(Py_ssize_t count, size_t size) except NULL:
    cdef void* memory = calloc(max(count, 1), size)
    if memory == NULL:
        raise MemoryError(f"no memory for {count} entries of summaries")
    return memory
