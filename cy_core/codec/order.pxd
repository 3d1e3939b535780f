"""Who is next on a bus, and how long after.

The streams of a bus wait in the order in which they are due. Each in turn is asked "is it you?"; the first few
answers are cheap, because the answer hangs on who was last. Then comes the gap to the last frame: short ones in a
tree of the two, others as the residual to when the stream was due.
"""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memmove

from cy_core.codec.coder cimport code_bit, coder_t, probability_t
from cy_core.codec.mixer cimport GAPS, SHORT_GAPS, TURNS, code_mixed
from cy_core.codec.models cimport line, mix, models_t
from cy_core.codec.number cimport bit_length, code_residual, code_value, code_value_mixed
from cy_core.codec.payload cimport level

cdef enum:
    WHO = 0x40000               # keys below a pair's of streams
    GAP = 0x50000
    SHORT = 0x60000
    LATE = 0x70000
    ANY = 0x80000
    BESIDE = 0xF0000
    WHO_DUE = 0x150000          # keys below a stream's, version 3
    GAP_DUE = 0x160000
    SHORT_DUE = 0x170000
    ASKED_MAX = 20
    SHORT_GAP = 128


cdef extern from *:
    """
    #define bordnetz_far (1LL << 50)
    """
    const int64_t FAR "bordnetz_far"


cdef struct due_t:              # of one stream
    uint32_t key
    int64_t last, due, period   # ticks; due and period in sixteenths
    uint32_t seen               # frames in this block
    uint32_t recent             # running size of the residuals, as in a field's history
    int32_t follower            # who came behind it last


cdef struct line_up_t:          # of one bus
    int32_t* queue              # streams, by due
    Py_ssize_t count
    int32_t last_stream
    int64_t last
    uint32_t key
    uint32_t shorts              # gaps of late that were short, one bit each


cdef inline int32_t code_who(
    coder_t* coder, models_t* models, line_up_t* bus, due_t* dues, int32_t who
) noexcept nogil:
    """The stream of the next frame, or -1: none of those that were asked."""
    cdef Py_ssize_t rank
    cdef int32_t candidate
    cdef uint32_t before = dues[bus.last_stream].key if bus.last_stream >= 0 else bus.key
    cdef uint32_t slot
    cdef probability_t* asked
    cdef probability_t* known
    cdef int32_t follower = dues[bus.last_stream].follower if bus.last_stream >= 0 else -1
    for rank in range(min(bus.count, ASKED_MAX)):
        candidate = bus.queue[rank]
        slot = (rank if rank < 3 else 3) << 2
        slot |= (candidate == follower) << 1 | (dues[candidate].due <= 16 * bus.last)
        asked = line(models, mix(mix(dues[candidate].key, before), WHO)) + slot
        if models.mixes:
            known = line(models, mix(dues[candidate].key, WHO_DUE))
            known += _waits(&dues[candidate], bus.last) << 1 | (candidate == follower)
            if code_mixed(coder, &models.mixer, TURNS, asked, known, candidate == who):
                return candidate
        elif code_bit(coder, asked, candidate == who):
            return candidate
    return -1


cdef inline uint32_t _waits(const due_t* due, int64_t now) noexcept nogil:
    """How long until a stream is due, in parts of its period: long ago, now, … 5: not soon."""
    cdef int64_t wait = due.due - 16 * now
    if wait <= 0:
        return -wait <= due.period >> 3
    return 2 if wait < due.period >> 4 else 3 if wait < due.period >> 2 else 4 if wait < due.period >> 1 else 5


cdef inline uint32_t _due_in(const due_t* due, int64_t now) noexcept nogil:
    """The time until a stream is due, the more roughly the longer it is."""
    cdef int64_t wait = (due.due >> 4) - now
    cdef int top
    if not due.seen:
        return 0xFFFF
    if wait < 8:
        return 0 if wait < 0 else 1 + <uint32_t>wait
    top = bit_length(wait)
    return 8 + 4 * top + (wait >> (top - 3) & 3)


cdef inline int64_t code_gap(
    coder_t* coder, models_t* models, line_up_t* bus, due_t* due, due_t* dues, int64_t other, int64_t gap
) noexcept nogil:
    """Ticks from the last frame of this bus to this one; other: the same to the next of another bus, or negative."""
    cdef uint32_t pair = mix(due.key, dues[bus.last_stream].key if bus.last_stream >= 0 else bus.key)
    cdef int64_t expected = 0, residual
    cdef probability_t* asked = line(models, mix(pair, GAP)) + (bus.shorts & 7)
    cdef bint is_short = 0 <= gap < SHORT_GAP
    cdef uint32_t due_in = 0
    if models.mixes:
        due_in = _due_in(due, bus.last)
        is_short = code_mixed(
            coder, &models.mixer, GAPS, asked, line(models, mix(mix(due.key, GAP_DUE), due_in)), is_short
        )
    else:
        is_short = code_bit(coder, asked, is_short)
    bus.shorts = bus.shorts << 1 | is_short
    if is_short and models.mixes:
        return code_value_mixed(
            coder, models, SHORT_GAPS, mix(pair, SHORT), mix(mix(due.key, SHORT_DUE), due_in), 8, gap
        )
    if is_short:
        return code_value(coder, models, mix(pair, SHORT), 8, gap)
    if due.seen:
        expected = (due.due >> 4) - bus.last
        if expected < 0:
            expected = 0
    if other >= SHORT_GAP and code_bit(
        coder,
        line(models, mix(due.key, BESIDE)) + min(bit_length(_size(other - expected)) >> 1, 15),
        0 <= gap - other < SHORT_GAP,
    ):
        return other + <int64_t>code_value(coder, models, mix(due.key, BESIDE + 1), 8, gap - other)
    residual = code_residual(
        coder, models, mix(due.key, LATE), level(due.recent) if due.seen else 63, gap - expected
    )
    due.recent += <uint32_t>(min(_size(residual), 1 << 24) << 2) - (due.recent >> 2)
    return <int64_t>(<uint64_t>expected + <uint64_t>residual)


cdef inline uint64_t _size(int64_t value) noexcept nogil:
    return <uint64_t>value if value >= 0 else -<uint64_t>value


cdef inline void take_turn(line_up_t* bus, due_t* dues, int32_t who, int64_t now) noexcept nogil:
    """A frame of this stream came now: when is it due next?"""
    cdef due_t* due = &dues[who]
    cdef Py_ssize_t place = bus.count, start
    cdef int64_t late
    if due.seen:
        late = 16 * now - due.due
        if due.period == 0 or due.seen == 1 or late > due.period >> 1 or -late > due.period >> 1:
            if due.seen == 1 and due.period == 0:
                due.period = 16 * (now - due.last)
            due.due = 16 * now + due.period
        else:
            due.due += due.period + (late >> 2)
            due.period += late >> 5
        for place in range(bus.count):
            if bus.queue[place] == who:
                break
    else:
        due.due = 16 * now + (due.period if due.period else FAR)
        bus.count += 1
    # Out of its place in the queue, and in again where it is due.
    start = place
    late = due.due
    while place + 1 < bus.count and dues[bus.queue[place + 1]].due <= late:
        place += 1
    memmove(bus.queue + start, bus.queue + start + 1, (place - start) * sizeof(int32_t))
    while place > 0 and dues[bus.queue[place - 1]].due > due.due:
        bus.queue[place] = bus.queue[place - 1]
        place -= 1
    bus.queue[place] = who
    due.seen += 1
    due.last = now
    if bus.last_stream >= 0:
        dues[bus.last_stream].follower = who
    bus.last_stream, bus.last = who, now
    _send_back(bus, dues)


cdef inline void _send_back(line_up_t* bus, due_t* dues) noexcept nogil:
    """A stream that has been due for four of its periods is not asked first any more."""
    cdef int32_t front = bus.queue[0]
    if 16 * bus.last > dues[front].due + 4 * dues[front].period:
        dues[front].due = 16 * bus.last + FAR
        memmove(bus.queue, bus.queue + 1, (bus.count - 1) * sizeof(int32_t))
        bus.queue[bus.count - 1] = front
