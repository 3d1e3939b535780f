"""Frames to the inside of a block and back, bit for bit: payload, identifier, flags, length, order, time in ticks.

    head      how many frames, unit of time, first time, buses, how many frames of each
    frames    who, gap, payload of each; a bus is read one frame ahead, and the earliest of the buses goes out

Where times go back the frames of all buses are one line, in the order in which they are.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from cy_core.codec.coder cimport begin_reading, begin_writing, code_bit, coder_t, finish
from cy_core.codec.models cimport line, mix, models_t
from cy_core.codec.number cimport code_value
from cy_core.codec.order cimport ANY, code_gap, code_who, line_up_t, take_turn
from cy_core.codec.streams cimport HEAD, MOST_BUSES, MOST_STREAMS, NEW, TIE, Streams, stream_t
from cy_core.codec.ticks cimport common_divisor, round_to
from cy_core.frames cimport Frames
from cy_core.structs cimport FD_FRAME, PAYLOAD_SLOT, frame_t

cdef enum:
    MOST_FRAMES = 1 << 18
    NOBODY = 0xFFFF             # instead of a stream's number: one that is not known yet

FRAMES_MAX = MOST_FRAMES


cdef extern from *:
    """
    #define bordnetz_finished INT64_MAX
    #define bordnetz_time_max (1LL << 55)
    """
    const int64_t TIME_MAX "bordnetz_time_max"  # of a frame, in units from the first one on
    const int64_t FINISHED "bordnetz_finished"  # the time of a line without a frame to come


cdef struct pending_t:          # the next frame of a line
    int64_t time
    int32_t stream
    int32_t number              # writing: of the frame in the block
    uint64_t[8] payload


cdef struct work_t:             # writing: of each frame
    int64_t time                # in units
    int32_t stream
    int32_t following           # on the same line; -1: none


cdef class RawCodec(Streams):
    """Writes and reads blocks with one table; its memory is used again for the next block."""

    cdef line_up_t[MOST_BUSES] lines
    cdef pending_t[MOST_BUSES] pending
    cdef uint32_t[MOST_BUSES] to_come
    cdef int32_t* queues
    cdef Py_ssize_t queue_capacity
    cdef int32_t line_count, bus_count
    cdef int64_t unit           # of times, in us

    def __dealloc__(self):
        free(self.queues)

    def encode(
        self, Frames frames not None, names, uint32_t tick_us=1, Py_ssize_t start=0, Py_ssize_t end=-1, *, int version=2
    ):
        """The inside of a block with the frames start..end-1; names: of the buses, by number.

        Times are rounded to multiples of tick_us. version: of the block, 2, or 3 with second contexts. Raises
        ValueError: none or too many frames, a bus without a name, a time that is over 570 years from 1970.
        """
        cdef coder_t coder
        cdef uint8_t* memory
        cdef work_t* work
        cdef Py_ssize_t size
        if end < 0:
            end = frames.count
        if not 0 <= start < end <= frames.count or end - start > MOST_FRAMES:
            raise ValueError(f"frames {start}..{end} of {frames.count}: a block holds 1 to {MOST_FRAMES}")
        if tick_us == 0 or not 1 <= len(names) <= MOST_BUSES:
            raise ValueError(f"a tick of {tick_us} us, or {len(names)} buses: 1 to {MOST_BUSES}")
        work = <work_t*>calloc(end - start, sizeof(work_t))
        memory = <uint8_t*>malloc(4096)
        if work == NULL or memory == NULL:
            free(work)
            free(memory)
            raise MemoryError("no memory for a block")
        begin_writing(&coder, memory, 4096)
        self.models.data.mixes = version > 2
        try:
            self._encode(&coder, frames.records + start, frames.payloads, end - start, tuple(names), tick_us, work)
            size = finish(&coder)
            if coder.failed:
                raise MemoryError("no memory for a block")
            return PyBytes_FromStringAndSize(<char*>coder.start, size)
        finally:
            free(work)
            free(coder.start)

    def decode(self, const uint8_t[::1] content not None, Frames into not None, *, int version=2):
        """Append the frames of the inside of a block of that version; return the names of its buses.

        Raises ValueError: it is none.
        """
        cdef coder_t coder
        cdef Py_ssize_t before = into.count, slots = into.slot_count
        begin_reading(&coder, &content[0] if content.shape[0] else NULL, content.shape[0])
        self.models.data.mixes = version > 2
        try:
            names = self._decode(&coder, into)
            if coder.failed or coder.at != coder.end:
                raise ValueError("it does not end where its frames end")
        except ValueError:
            into.count, into.slot_count = before, slots
            raise
        return names

    # -- the head --------------------------------------------------------------------------------------------

    cdef int _encode(
        self, coder_t* coder, const frame_t* records, const uint8_t* payloads, uint32_t count, tuple names,
        uint32_t tick_us, work_t* work
    ) except -1:
        cdef uint32_t i
        cdef int64_t base
        cdef bint one_line
        for i in range(count):
            if records[i].bus >= len(names):
                raise ValueError(f"frame {i}: bus {records[i].bus} has no name")
            if not -TIME_MAX // 2 < records[i].time_us < TIME_MAX // 2:
                raise ValueError(f"frame {i}: a time of {records[i].time_us} us")
            work[i].time = round_to(records[i].time_us, tick_us)
        base, self.unit = work[0].time, _unit(work, count)
        one_line = False
        for i in range(1, count):
            one_line |= work[i].time < work[i - 1].time
        self._code_head(coder, &count, &base, &one_line, names)
        with nogil:
            self._follow_lines(records, count, base, work)
            for i in range(self.line_count):
                self.to_come[i] = code_value(coder, &self.models.data, mix(HEAD, 8), 20, self.to_come[i])
            self._write_frames(coder, records, payloads, count, work)
        return 0

    cdef void _follow_lines(self, const frame_t* records, uint32_t count, int64_t base, work_t* work) noexcept nogil:
        """Which frame comes next on the same line, and how many there are."""
        cdef int32_t i, line_number
        for i in range(self.line_count):
            self.to_come[i] = 0
            self.pending[i].time = FINISHED
            self.pending[i].number = -1
        for i in range(count - 1, -1, -1):
            line_number = 0 if self.line_count == 1 else records[i].bus
            work[i].time = (work[i].time - base) // self.unit
            work[i].following = self.pending[line_number].number
            self.pending[line_number].number = i
            self.to_come[line_number] += 1

    cdef tuple _decode(self, coder_t* coder, Frames into):
        cdef uint32_t count = 0, i
        cdef uint64_t total = 0
        cdef int64_t base = 0
        cdef bint one_line = False
        names = self._code_head(coder, &count, &base, &one_line, ())
        for i in range(self.line_count):
            self.to_come[i] = code_value(coder, &self.models.data, mix(HEAD, 8), 20, 0)
            total += self.to_come[i]
        if total != count:
            raise ValueError("the frames of its buses are not those of the whole")
        self._read_frames(coder, into, count, base)
        return names

    cdef tuple _code_head(self, coder_t* coder, uint32_t* count, int64_t* base, bint* one_line, tuple names):
        """What comes before the frames of each bus; returns the names of the buses."""
        cdef models_t* models = &self.models.data
        cdef int number, i
        if not self.learning:
            self.models.forget()
        count[0] = code_value(coder, models, mix(HEAD, 1), 20, count[0])
        self.unit = code_value(coder, models, mix(HEAD, 2), 40, self.unit)
        base[0] = code_value(coder, models, mix(HEAD, 3), 64, base[0])
        one_line[0] = code_bit(coder, line(models, mix(HEAD, 4)), one_line[0])
        number = code_value(coder, models, mix(HEAD, 5), 8, len(names))
        if not 1 <= number <= MOST_BUSES or not 1 <= count[0] <= MOST_FRAMES or self.unit == 0:
            raise ValueError(f"it says that it holds {count[0]} frames of {number} buses in units of {self.unit} us")
        coded = []
        for i in range(number):
            name = bytearray(names[i].encode() if names else b"")
            size = code_value(coder, models, mix(mix(HEAD, 6), i), 8, len(name))
            name.extend(bytes(size - len(name)))
            for place in range(size):
                name[place] = code_value(coder, models, mix(mix(HEAD, 7), i << 8 | place), 8, name[place])
            coded.append(bytes(name))
        try:
            names = tuple(name.decode() for name in coded)
        except UnicodeDecodeError:
            raise ValueError("the name of a bus is no text") from None
        self.begin_block(names, self.unit)
        self.line_count = 1 if one_line[0] else number
        self.bus_count = number
        for i in range(self.line_count):
            self.lines[i] = line_up_t(queue=NULL, count=0, last_stream=-1, last=0, key=self.bus_keys[i], shorts=0)
        self._grow_queues()
        return names

    cdef int _grow_queues(self) except -1 nogil:
        """A queue for each line that takes all streams there may be."""
        cdef Py_ssize_t capacity = max(512, self.stream_capacity), i
        cdef int32_t* queues
        if capacity > self.queue_capacity or self.lines[0].queue == NULL:
            queues = <int32_t*>malloc(self.line_count * capacity * sizeof(int32_t))
            if queues == NULL:
                with gil:
                    raise MemoryError(f"no memory for {capacity} streams")
            for i in range(self.line_count):
                if self.lines[i].count:
                    memcpy(queues + i * capacity, self.lines[i].queue, self.lines[i].count * sizeof(int32_t))
                self.lines[i].queue = queues + i * capacity
            free(self.queues)
            self.queues, self.queue_capacity = queues, capacity
        return 0

    # -- frames ----------------------------------------------------------------------------------------------

    cdef int _write_frames(
        self, coder_t* coder, const frame_t* records, const uint8_t* payloads, uint32_t count, const work_t* work
    ) except -1 nogil:
        cdef int32_t i, line_number, last_line = 0
        cdef pending_t* next
        for i in range(self.line_count):
            if self.to_come[i]:
                self._write_next(coder, i, records, payloads, work)
        for i in range(count):
            line_number = 0 if self.line_count == 1 else records[i].bus
            last_line = self._code_earliest(coder, last_line, line_number)
            next = &self.pending[line_number]
            next.number = work[i].following
            if next.number >= 0:
                self._write_next(coder, line_number, records, payloads, work)
            else:
                next.time = FINISHED
        return 0

    cdef int _write_next(
        self, coder_t* coder, int32_t line_number, const frame_t* records, const uint8_t* payloads, const work_t* work
    ) except -1 nogil:
        cdef pending_t* next = &self.pending[line_number]
        cdef const frame_t* record = &records[next.number]
        cdef int32_t before = self.stream_count
        next.time = work[next.number].time
        next.stream = self.find(record.bus, record.can_id, record.flags, record.length)
        memset(next.payload, 0, PAYLOAD_SLOT)
        if record.length > 8:
            memcpy(next.payload, payloads + record.data * PAYLOAD_SLOT, record.length)
        else:
            next.payload[0] = record.data
        self._code_frame(coder, line_number, next.stream == before)
        return 0

    cdef int _read_frames(self, coder_t* coder, Frames into, uint32_t count, int64_t base) except -1 nogil:
        cdef int32_t i, line_number = 0
        cdef pending_t* next
        cdef const stream_t* stream
        for i in range(self.line_count):  # all of them first: what one line may be depends on when the others come
            self.pending[i].time = FINISHED
        for i in range(self.line_count):
            if self.to_come[i]:
                self._code_frame(coder, i, False)
        for i in range(count):
            line_number = self._code_earliest(coder, line_number, -1)
            if coder.failed:
                return 0
            next = &self.pending[line_number]
            stream = &self.streams[next.stream]
            into.push(
                <int64_t>(<uint64_t>base + <uint64_t>next.time * <uint64_t>self.unit), stream.can_id, stream.bus, stream.flags,
                <const uint8_t*>next.payload, stream.length,
            )
            if self.to_come[line_number]:
                self._code_frame(coder, line_number, False)
            else:
                next.time = FINISHED
        return 0

    cdef int32_t _code_earliest(self, coder_t* coder, int32_t last_line, int32_t line_number) noexcept nogil:
        """Which line's frame goes out next: the earliest one; said only where two are equally early."""
        cdef int32_t i, candidate = -1
        for i in range(self.line_count):
            if self.pending[i].time < FINISHED and (
                candidate < 0 or self.pending[i].time < self.pending[candidate].time
            ):
                candidate = i
        if candidate < 0:
            coder.failed = True
            return 0
        for i in range(candidate + 1, self.line_count):
            if self.pending[i].time == self.pending[candidate].time:
                if code_bit(
                    coder, line(&self.models.data, mix(mix(TIE, last_line), candidate << 8 | i)), candidate == line_number
                ):
                    break
                candidate = i
        return candidate

    cdef int _code_frame(self, coder_t* coder, int32_t line_number, bint is_new) except -1 nogil:
        """The frame that is pending on a line; is_new: its stream has not been in this block, nor in the table."""
        cdef line_up_t* bus = &self.lines[line_number]
        cdef pending_t* next = &self.pending[line_number]
        cdef models_t* models = &self.models.data
        cdef int32_t who = -1 if is_new else next.stream
        cdef uint32_t before = self.dues[bus.last_stream].key if bus.last_stream >= 0 else bus.key
        cdef int64_t gap
        self.to_come[line_number] -= 1
        who = code_who(coder, models, bus, self.dues, who)
        if who < 0:
            who = code_value(coder, models, mix(before, ANY), 16, NOBODY if is_new else next.stream)
            if who == NOBODY:
                who = self._code_new(coder, line_number, next.stream)
            if who >= self.stream_count or (self.line_count > 1 and self.streams[who].bus != line_number):
                coder.failed = True  # and nobody takes a turn in the line of another bus
                return 0
        next.stream = who
        gap = code_gap(coder, models, bus, &self.dues[who], self.dues, self._other(line_number), next.time - bus.last)
        next.time = <int64_t>(<uint64_t>bus.last + <uint64_t>gap)
        if not -TIME_MAX < next.time < TIME_MAX:
            coder.failed = True
            next.time = 0
        self.code_payload(coder, who, next.payload)
        take_turn(bus, self.dues, who, next.time)
        return 0

    cdef int64_t _other(self, int32_t line_number) noexcept nogil:
        """How long after the last frame of a line the next one of any other comes; -1: none does."""
        cdef int64_t earliest = FINISHED
        cdef int32_t i
        for i in range(self.line_count):
            if i != line_number and self.pending[i].time < earliest:
                earliest = self.pending[i].time
        return earliest - self.lines[line_number].last if earliest < FINISHED else -1

    cdef int32_t _code_new(self, coder_t* coder, int32_t line_number, int32_t number) except -1 nogil:
        """What a stream is."""
        cdef models_t* models = &self.models.data
        cdef stream_t described
        cdef int32_t added
        if not coder.reading:
            described = self.streams[number]
        described.can_id = code_value(coder, models, mix(NEW, 1), 32, described.can_id)
        described.flags = code_value(coder, models, mix(NEW, 2), 8, described.flags)
        described.length = code_value(coder, models, mix(NEW, 3), 8, described.length)
        if self.line_count == 1:
            described.bus = code_value(coder, models, mix(NEW, 4), 8, described.bus)
        else:
            described.bus = line_number
        if not coder.reading:
            added = number
        elif described.length > PAYLOAD_SLOT or described.bus >= self.bus_count or self.stream_count >= MOST_STREAMS:
            coder.failed = True
            return 0
        else:
            added = self.find(described.bus, described.can_id, described.flags, described.length)
        self._grow_queues()
        return added


cdef int64_t _unit(const work_t* work, uint32_t count) noexcept nogil:
    """The greatest common divisor of all differences."""
    cdef int64_t unit = 0
    cdef uint32_t i
    for i in range(1, count):
        unit = common_divisor(unit, work[i].time - work[i - 1].time)
    return unit if 0 < unit < 1LL << 40 else 1
