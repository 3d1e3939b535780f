"""Run one compiled condition (edge/condition.py) over frames: at which frames is it true?

    frames that carry an operand ──► its last value ──► program on a stack of doubles ──► true / false / undefined
    time passes a limit (for_s, stale, a window) ─────┘

Undefined is NaN: an operand that was never received, a division by zero. It is never true, and `not` of it is not
either. A program is run at frames that carry one of its operands, and at the first frame behind a time at which it
could change by itself; in between its value stands. A frame is a hit where the program is true and the frame carries
an operand, or where it becomes true. tests/reference/condition.py says the same, slowly, frame by frame.
"""
from libc.math cimport NAN, ceil, fabs, floor, isfinite, isnan, nearbyint
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from cy_core.assemble cimport Assembler
from cy_core.frames cimport Frames
from cy_core.plan cimport LONGEST_PAYLOAD, ROW_HEAD, ROW_PADDING, Plan, field, message_t, signal_t
from cy_core.structs cimport ID_MASK, PAYLOAD_SLOT, frame_t, payload_length
from cy_core.traffic cimport Traffic
from cy_core.value cimport number_of

cdef enum:
    STACK = 64
    ROW_BYTES = 88              # ROW_HEAD + PAYLOAD_SLOT + ROW_PADDING
    NO_VALUES_MOST = 4          # ranges, of a signal
    WINDOW_MOST = 65536         # samples of a window: the oldest goes where there are more

cdef enum op_t:
    CONST, VALUE, RAW, NEG, ABS, FLOOR, CEIL, ROUND, ADD, SUB, MUL, DIV, MIN, MAX, LT, LE, GT, GE, EQ, NE, NOT, AND, OR, RISING, FALLING
    CHANGED, FOR, STALE, AVG, MIN_S, MAX_S, COUNT

# By name, as edge/condition.py writes them; and what each does to the depth of the stack.
OPS = {
    "CONST": (CONST, 1), "VALUE": (VALUE, 1), "RAW": (RAW, 1), "NEG": (NEG, 0), "ABS": (ABS, 0),
    "FLOOR": (FLOOR, 0), "CEIL": (CEIL, 0), "ROUND": (ROUND, 0), "ADD": (ADD, -1),
    "SUB": (SUB, -1), "MUL": (MUL, -1), "DIV": (DIV, -1), "MIN": (MIN, -1), "MAX": (MAX, -1), "LT": (LT, -1),
    "LE": (LE, -1), "GT": (GT, -1), "GE": (GE, -1), "EQ": (EQ, -1), "NE": (NE, -1), "NOT": (NOT, 0), "AND": (AND, -1),
    "OR": (OR, -1), "RISING": (RISING, 0), "FALLING": (FALLING, 0), "CHANGED": (CHANGED, 0), "FOR": (FOR, 0),
    "STALE": (STALE, 1), "AVG": (AVG, 1), "MIN_S": (MIN_S, 1), "MAX_S": (MAX_S, 1), "COUNT": (COUNT, 1),
}


cdef struct step_t:
    int op
    uint32_t operand
    int64_t span_us
    double number
    # Of rising, falling, changed: the last value; of for_s: since when it is true.
    double last
    uint8_t has_last
    int64_t since_us
    # Of a window: a ring of samples.
    int64_t* times
    double* values
    uint32_t head, count, capacity


cdef struct operand_t:
    uint32_t message, place
    char format
    double factor, offset, raw, value
    int64_t seen_us
    uint64_t count
    uint64_t[NO_VALUES_MOST] no_low     # raw values that say there is none, which is undefined: the first of a range
    uint64_t[NO_VALUES_MOST] no_more    # and how many follow it
    int no_count


cdef class Condition:
    """One program and its state.

    steps: (op, operand, span_us, number) for a stack machine; operands: places of signals in the manifest;
    cooldown_us: for how long after a hit others are only counted; no_values: of each operand, the ranges (low, high,
    what they say) of raw values that say there is no value. Raises ValueError: a program that does not leave one
    value, an unknown operand, over four ranges.
    """

    cdef readonly Plan plan
    cdef readonly tuple operands
    cdef step_t* steps
    cdef operand_t* operand_rows
    cdef uint8_t* cares             # at message + 1: it carries an operand
    cdef Py_ssize_t step_count, operand_count
    cdef int64_t clock_us, due_us, quiet_us, cooldown_us
    cdef bint started, was_true
    cdef readonly uint64_t evaluated, true, cooled
    cdef uint8_t* whole             # a row for messages put together; none where no operand is of one
    cdef int64_t* hits
    cdef Py_ssize_t hit_count, hit_capacity

    def __cinit__(self, Plan plan not None, steps, operands, int64_t cooldown_us=0, no_values=()):
        cdef Py_ssize_t i, depth = 0
        self.plan, self.operands, self.cooldown_us = plan, tuple(operands), cooldown_us
        self.clock_us = self.quiet_us = -INT64_MAX
        self.steps = <step_t*>_zeroed(len(steps), sizeof(step_t))
        self.operand_rows = <operand_t*>_zeroed(len(self.operands), sizeof(operand_t))
        self.cares = <uint8_t*>_zeroed(plan.message_count + 1, 1)
        self.step_count, self.operand_count = len(steps), len(self.operands)
        for i, (name, operand, span_us, number) in enumerate(steps):
            op, change = OPS[name]
            depth += change
            if depth < 1 or depth > STACK:
                raise ValueError(f"step {i}, {name}, leaves {depth} values; 1 to {STACK} can be")
            if not 0 <= operand < max(1, self.operand_count):
                raise ValueError(f"step {i}, {name}, names operand {operand} of {self.operand_count}")
            self.steps[i].op, self.steps[i].operand, self.steps[i].span_us = op, operand, span_us
            self.steps[i].number, self.steps[i].since_us = number, -1
        if depth != 1:
            raise ValueError(f"the program leaves {depth} values, not one")
        signals = list(plan.manifest.names())
        for i, place in enumerate(self.operands):
            self._add_operand(i, place, signals[place][2], no_values[i] if no_values else ())

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.steps != NULL:
            for i in range(self.step_count):
                free(self.steps[i].times)
                free(self.steps[i].values)
        free(self.steps)
        free(self.operand_rows)
        free(self.cares)
        free(self.hits)
        free(self.whole)

    cdef int _add_operand(self, Py_ssize_t i, uint32_t place, signal, no_values) except -1:
        cdef operand_t* operand = &self.operand_rows[i]
        cdef uint32_t number = 0
        while place >= self.plan.messages[number].first_signal + self.plan.messages[number].signal_count:
            number += 1
        operand.message, operand.place = number, place
        operand.format = self.plan.signals[place].format
        operand.factor, operand.offset = signal.factor, signal.offset
        operand.raw = operand.value = NAN
        if len(no_values) > NO_VALUES_MOST:
            raise ValueError(f"{signal.name} has {len(no_values)} ranges without a value; {NO_VALUES_MOST} can be")
        for low, high, _ in no_values:
            operand.no_low[operand.no_count] = low & 0xFFFFFFFFFFFFFFFF
            operand.no_more[operand.no_count] = high - low
            operand.no_count += 1
        self.cares[number + 1] = True
        if self.plan.messages[number].protocol and self.whole == NULL:
            self.whole = <uint8_t*>_zeroed(ROW_HEAD + LONGEST_PAYLOAD + 1 + ROW_PADDING, 1)
        return 0

    def run(self, Frames frames not None, Traffic traffic not None):
        """The numbers of the frames that are hits. traffic has noted these very frames.

        A message put together is seen at the frame that completes it, behind what that frame itself holds. Raises ValueError: it has not.
        """
        cdef Py_ssize_t i
        cdef Assembler assembler = traffic.assembler
        if traffic.count != frames.count or traffic.plan is not self.plan:
            raise ValueError(f"traffic has noted {traffic.count} frames of some plan, not these {frames.count}")
        self.hit_count = 0
        with nogil:
            self._run(frames, traffic, assembler)
        return [self.hits[i] for i in range(self.hit_count)]

    def state(self):
        """[(place of the signal, last value or None, its time_us or None, samples)], an operand each."""
        cdef Py_ssize_t i
        cdef operand_t* operand
        rows = []
        for i in range(self.operand_count):
            operand = &self.operand_rows[i]
            value = None if isnan(operand.value) else operand.value
            rows.append((operand.place, value, operand.seen_us if operand.count else None, operand.count))
        return rows

    cdef int _run(self, Frames frames, Traffic traffic, Assembler assembler) except -1 nogil:
        cdef Py_ssize_t start = 0, i
        if self.whole != NULL and assembler is not None:
            for i in range(assembler.end_count):
                if self.cares[traffic.whole_of[i]]:
                    self._run_frames(frames, traffic, start, assembler.ends[i])
                    start = assembler.ends[i] + 1
                    self.clock_us = max(self.clock_us, frames.records[start - 1].time_us)
                    self._look(
                        start - 1, frames, traffic, traffic.whole_of[i],
                        &assembler.messages.records[assembler.first + i], assembler.messages.payloads,
                    )
        return self._run_frames(frames, traffic, start, frames.count)

    cdef int _run_frames(self, Frames frames, Traffic traffic, Py_ssize_t start, Py_ssize_t end) except -1 nogil:
        cdef const frame_t* records = frames.records
        cdef Py_ssize_t i
        for i in range(start, end):
            if records[i].time_us > self.clock_us:
                self.clock_us = records[i].time_us
            if self.cares[traffic.message_of[i]] or self.clock_us >= self.due_us:
                self._look(i, frames, traffic, 0, NULL, NULL)
        return 0

    cdef int _look(
        self, Py_ssize_t i, Frames frames, Traffic traffic, uint32_t completed, const frame_t* message,
        const uint8_t* slots,
    ) except -1 nogil:
        """Take the operands of frame i, and of the message that it completes; run the program where that is due."""
        cdef Py_ssize_t j
        cdef bint carries, is_true
        if not self.started:
            self.started = True
            for j in range(self.operand_count):
                self.operand_rows[j].seen_us = self.clock_us
        carries = self.cares[traffic.message_of[i]] and self._update(
            traffic.message_of[i] - 1, &frames.records[i], frames.payloads
        )
        if completed:
            carries |= self._update(completed - 1, message, slots)
        if not carries and self.clock_us < self.due_us:
            return 0
        is_true = self._evaluate() == 1
        self.evaluated += carries
        if is_true and (carries or not self.was_true):
            self.true += 1
            if self.clock_us < self.quiet_us:
                self.cooled += 1
            else:
                self.quiet_us = self.clock_us + self.cooldown_us
                self._hit(i)
        self.was_true = is_true
        return 0

    cdef int _hit(self, Py_ssize_t frame) except -1 nogil:
        cdef void* grown
        if self.hit_count == self.hit_capacity:
            self.hit_capacity = max(64, 2 * self.hit_capacity)
            grown = realloc(self.hits, self.hit_capacity * sizeof(int64_t))
            if grown == NULL:
                with gil:
                    raise MemoryError(f"no memory for {self.hit_capacity} hits")
            self.hits = <int64_t*>grown
        self.hits[self.hit_count] = frame
        self.hit_count += 1
        return 0

    cdef bint _update(self, uint32_t number, const frame_t* record, const uint8_t* slots) except -1 nogil:
        """Take the operands that this frame or message holds; whether there was one."""
        cdef uint8_t[ROW_BYTES] memory
        cdef uint8_t* row = memory + ROW_HEAD
        cdef uint32_t length = payload_length(record)
        cdef uint64_t identifier = record.can_id & ID_MASK, bits
        cdef operand_t* operand
        cdef bint found = False
        cdef Py_ssize_t i, j
        if length > PAYLOAD_SLOT:
            row = self.whole + ROW_HEAD
        else:
            memset(memory, 0, ROW_BYTES)
        memcpy(row - ROW_HEAD, &identifier, ROW_HEAD)
        if length > 8:
            memcpy(row, slots + record.data * PAYLOAD_SLOT, max(length, <uint32_t>PAYLOAD_SLOT))
        else:
            memcpy(row, &record.data, 8)
        for i in range(self.operand_count):
            operand = &self.operand_rows[i]
            if operand.message != number or not self._holds(&self.plan.signals[operand.place], number, row, length):
                continue
            found = True
            bits = field(&self.plan.signals[operand.place], row)
            operand.raw = number_of(bits, operand.format)
            for j in range(operand.no_count):
                if bits - operand.no_low[j] <= operand.no_more[j]:
                    operand.raw = NAN
                    break
            operand.value = _finite(operand.raw * operand.factor + operand.offset)
            operand.seen_us = self.clock_us
            operand.count += 1
            for j in range(self.step_count):
                if self.steps[j].op >= AVG and self.steps[j].operand == i and not isnan(operand.value):
                    _push(&self.steps[j], self.clock_us, operand.value)
        return found

    cdef bint _holds(self, const signal_t* signal, uint32_t number, const uint8_t* row, uint32_t length) noexcept nogil:
        """All its bits are in the payload, and its selectors select it."""
        cdef const signal_t* selector
        while length >= signal.needed:
            if signal.selector < 0:
                return True
            selector = &self.plan.signals[self.plan.messages[number].first_signal + signal.selector]
            if length < selector.needed or not self.plan.selects(signal, field(selector, row)):
                return False
            signal = selector
        return False

    cdef double _evaluate(self) noexcept nogil:
        cdef double[STACK] stack
        cdef int top = -1
        cdef Py_ssize_t i
        cdef step_t* step
        cdef operand_t* operand
        self.due_us = INT64_MAX
        for i in range(self.step_count):
            step = &self.steps[i]
            operand = &self.operand_rows[step.operand]
            if step.op <= RAW:
                top += 1
                stack[top] = step.number if step.op == CONST else operand.value if step.op == VALUE else operand.raw
            elif step.op == NEG:
                stack[top] = -stack[top]
            elif step.op == ABS:
                stack[top] = fabs(stack[top])
            elif step.op == FLOOR:
                stack[top] = floor(stack[top])
            elif step.op == CEIL:
                stack[top] = ceil(stack[top])
            elif step.op == ROUND:
                stack[top] = nearbyint(stack[top])
            elif step.op <= OR and step.op != NOT:
                top -= 1
                stack[top] = _binary(step.op, stack[top], stack[top + 1])
            elif step.op == NOT:
                stack[top] = 1 - stack[top]
            elif step.op <= FOR:
                stack[top] = self._timed(step, stack[top])
            elif step.op == STALE:
                top += 1
                stack[top] = self.clock_us - operand.seen_us >= step.span_us
                if not stack[top]:
                    self.due_us = min(self.due_us, operand.seen_us + step.span_us)
            else:
                top += 1
                stack[top] = self._window(step)
        return stack[0]

    cdef double _timed(self, step_t* step, double value) noexcept nogil:
        """rising, falling, changed: a pulse, so that the next frame must be looked at too; for_s."""
        cdef double last = step.last
        cdef bint pulse
        if step.op == FOR:
            if value != 1:
                step.since_us = -1
                return value
            if step.since_us < 0:
                step.since_us = self.clock_us
            if self.clock_us - step.since_us >= step.span_us:
                return 1
            self.due_us = min(self.due_us, step.since_us + step.span_us)
            return 0
        if isnan(value):
            return NAN
        step.last = value
        if not step.has_last:
            step.has_last = True
            return 0
        pulse = value != last
        if step.op == RISING:
            pulse = pulse and value == 1
        elif step.op == FALLING:
            pulse = pulse and value == 0
        if pulse:
            self.due_us = self.clock_us
        return pulse

    cdef double _window(self, step_t* step) noexcept nogil:
        """Over the samples that are younger than span_us."""
        cdef double result, value
        cdef uint32_t i
        while step.count and step.times[step.head] <= self.clock_us - step.span_us:
            step.head = (step.head + 1) % step.capacity
            step.count -= 1
        if step.op == COUNT:
            result = step.count
        elif step.count == 0:
            return NAN
        else:
            result = 0 if step.op == AVG else step.values[step.head]
            for i in range(step.count):
                value = step.values[(step.head + i) % step.capacity]
                if step.op == AVG:
                    result += value
                elif step.op == MIN_S:
                    result = min(result, value)
                else:
                    result = max(result, value)
            if step.op == AVG:
                result = _finite(result / step.count)
        if step.count:
            self.due_us = min(self.due_us, step.times[step.head] + step.span_us)
        return result


cdef inline double _finite(double value) noexcept nogil:
    return value if isfinite(value) else NAN


cdef double _binary(int op, double a, double b) noexcept nogil:
    if op == AND:
        return 0 if a == 0 or b == 0 else NAN if isnan(a) or isnan(b) else 1
    if op == OR:
        return 1 if a == 1 or b == 1 else NAN if isnan(a) or isnan(b) else 0
    if isnan(a) or isnan(b):
        return NAN
    if op == ADD:
        return _finite(a + b)
    if op == SUB:
        return _finite(a - b)
    if op == MUL:
        return _finite(a * b)
    if op == DIV:
        return NAN if b == 0 else _finite(a / b)
    if op == MIN:
        return min(a, b)
    if op == MAX:
        return max(a, b)
    if op == LT:
        return a < b
    if op == LE:
        return a <= b
    if op == GT:
        return a > b
    if op == GE:
        return a >= b
    if op == EQ:
        return a == b
    return a != b


cdef int _push(step_t* step, int64_t time_us, double value) except -1 nogil:
    cdef uint32_t capacity, i
    cdef int64_t* times
    cdef double* values
    while step.count and step.times[step.head] <= time_us - step.span_us:
        step.head = (step.head + 1) % step.capacity
        step.count -= 1
    if step.count == step.capacity:
        if step.capacity == WINDOW_MOST:
            step.head = (step.head + 1) % step.capacity
            step.count -= 1
        else:
            capacity = max(64, 2 * step.capacity)
            times = <int64_t*>calloc(capacity, sizeof(int64_t))
            values = <double*>calloc(capacity, sizeof(double))
            if times == NULL or values == NULL:
                free(times)
                free(values)
                with gil:
                    raise MemoryError(f"no memory for a window of {capacity} samples")
            for i in range(step.count):
                times[i] = step.times[(step.head + i) % step.capacity]
                values[i] = step.values[(step.head + i) % step.capacity]
            free(step.times)
            free(step.values)
            step.times, step.values, step.head, step.capacity = times, values, 0, capacity
    i = (step.head + step.count) % step.capacity
    step.times[i], step.values[i] = time_us, value
    step.count += 1
    return 0


cdef void* _zeroed(Py_ssize_t count, size_t size) except NULL:
    cdef void* memory = calloc(max(count, 1), size)
    if memory == NULL:
        raise MemoryError(f"no memory for {count} entries of a condition")
    return memory
