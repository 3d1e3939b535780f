"""Messages that come in several frames, put together: J1939 transport protocol, NMEA fast packet, ISO-TP.

    frames ──► assemble ──► messages, each with the identifier it would have as one frame and its last frame's time
                 ▲ │
              sessions, carried from batch to batch

    protocol     found by                              a session is of one          lost after
    TP (J1939)   PDU formats EC and EB on a J1939 bus  source and destination       1250 ms
    fast packet  parameter group of a message > 8      identifier and sequence      750 ms
    ISO-TP       identifier of a message               identifier (and address)     1000 ms

It listens: it answers nothing and asks for nothing again. A session that misses a frame, ends too early, takes too
long or has no room is dropped and counted as failed; a segment of no session is counted as stray. At most
MOST_SESSIONS are open, so memory is bounded whatever is on the bus; the one silent the longest makes room.
Sources: SAE J1939-21 (5.10), NMEA 2000 appendix A, ISO 15765-2.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy

from cy_core.frames cimport Frames
from cy_core.plan cimport (
    ISOTP_EXTENDED, ISOTP_LENGTH, LONGEST_PAYLOAD, NMEA2000, Plan, find_segments, message_t
)
from cy_core.structs cimport ERROR_FRAME, EXTENDED_ID, PAYLOAD_SLOT, REMOTE_FRAME, frame_t

cdef enum:
    TP_WAIT_US = 1_250_000
    FAST_WAIT_US = 750_000
    ISOTP_WAIT_US = 1_000_000
    TP_LONGEST = 1785
    FAST_LONGEST = 223
    RTS = 16
    CTS = 17
    END_OF_MESSAGE = 19
    BAM = 32
    ABORT = 255

cdef class Assembler:
    """Holds the open sessions of all buses; feed it every frame, in order."""

    def __cinit__(self, Plan plan not None):
        cdef int i
        self.plan = plan
        self.by_bus = <counters_t*>calloc(256, sizeof(counters_t))
        self.buffers = <uint8_t*>calloc(MOST_SESSIONS if plan.has_segments else 1, LONGEST_PAYLOAD + 1)
        if self.by_bus == NULL or self.buffers == NULL:
            raise MemoryError("no memory for transport sessions")
        for i in range(MOST_SESSIONS):
            self.sessions[i].buffer = i

    def __dealloc__(self):
        free(self.by_bus)
        free(self.buffers)
        free(self.ends)

    def assemble(self, Frames frames not None, Frames messages not None):
        """Append to messages what frames complete; give both to decode_batch(), and frames and this to a Traffic."""
        cdef Py_ssize_t i
        cdef const frame_t* frame
        cdef uint32_t number, group
        self.messages, self.first, self.end_count, self.frame_count = messages, messages.count, 0, frames.count
        if not self.plan.has_segments:
            return
        with nogil:
            for i in range(frames.count):
                self.frame = <uint32_t>i
                frame = &frames.records[i]
                if frame.can_id & (ERROR_FRAME | REMOTE_FRAME):
                    continue
                group = frame.can_id >> 16 & 0xFF
                if frame.can_id & EXTENDED_ID and (group == 0xEC or group == 0xEB) and self._is_j1939(frame.bus):
                    self._expire(frame.time_us)
                    if frame.length < 8:
                        self.by_bus[frame.bus].stray += 1
                    elif group == 0xEC:
                        self._control(frame, <const uint8_t*>&frame.data)
                    else:
                        self._data(frame, <const uint8_t*>&frame.data, messages)
                    continue
                number = find_segments(&self.plan.identifiers, frame.bus, frame.can_id)
                if number:
                    self._expire(frame.time_us)
                    self._segment(frame, &self.plan.messages[number - 1], _payload(frame, frames.payloads), messages)

    def counters(self):
        """{bus number: (messages assembled, sessions failed, stray segments)} of the buses that have any."""
        return {
            bus: (self.by_bus[bus].assembled, self.by_bus[bus].failed, self.by_bus[bus].stray)
            for bus in range(256)
            if self.by_bus[bus].assembled or self.by_bus[bus].failed or self.by_bus[bus].stray
        }

    def save(self):
        """The open sessions for restore(), by this build of this file on this machine; nothing where none is."""
        cdef bytes saved = b""
        cdef session_t* session
        cdef int i
        for i in range(self.open):
            session = &self.sessions[i]
            saved += (<char*>session)[:sizeof(session_t)]
            saved += (<char*>self.buffers + session.buffer * (LONGEST_PAYLOAD + 1))[:_held(session)]
        return saved

    def restore(self, bytes saved not None):
        """Go on with these sessions, instead of those that are open. Raises ValueError: it is no such state."""
        cdef session_t* session
        cdef Py_ssize_t at = 0, left = len(saved)
        cdef uint16_t buffer
        self.open = 0
        while left and self.plan.has_segments:
            if self.open < MOST_SESSIONS and left >= <Py_ssize_t>sizeof(session_t):
                session = &self.sessions[self.open]
                buffer = session.buffer
                memcpy(session, <const char*>saved + at, sizeof(session_t))
                session.buffer = buffer
                at += sizeof(session_t)
                left -= sizeof(session_t)
                if _is_sound(session) and _held(session) <= left:
                    memcpy(self.buffers + buffer * (LONGEST_PAYLOAD + 1), <const char*>saved + at, _held(session))
                    at += _held(session)
                    left -= _held(session)
                    self.open += 1
                    continue
            self.open = 0
            raise ValueError(f"sessions are damaged at byte {at}")

    cdef bint _is_j1939(self, uint8_t bus) noexcept nogil:
        return self.plan.identifiers.by_pgn[bus]

    # -- J1939 transport protocol ---------------------------------------------------------------------------

    cdef int _control(self, const frame_t* frame, const uint8_t* data) except -1 nogil:
        cdef uint32_t source = frame.can_id & 0xFF, destination = frame.can_id >> 8 & 0xFF
        cdef uint32_t size = data[1] | <uint32_t>data[2] << 8
        cdef uint32_t group = (data[5] | <uint32_t>data[6] << 8 | <uint32_t>data[7] << 16) & 0x3FFFF
        cdef session_t* session
        if data[0] == RTS or data[0] == BAM:
            self._fail(self._find(_key(TP, frame.bus, 0, source << 8 | destination)))
            if not 9 <= size <= TP_LONGEST or data[3] != (size + 6) // 7:
                self.by_bus[frame.bus].failed += 1
                return 0
            session = self._start(_key(TP, frame.bus, 0, source << 8 | destination), frame.time_us, TP_WAIT_US)
            if group >> 8 & 0xFF < 240:
                group = group & 0x3FF00 | destination
            session.can_id = EXTENDED_ID | frame.can_id & 0x1C000000 | group << 8 | source
            session.size, session.packets, session.next = <uint16_t>size, data[3], 1
        elif data[0] == CTS:
            # The receiver may ask again for what it missed.
            session = self._find(_key(TP, frame.bus, 0, destination << 8 | source))
            if session != NULL:
                session.last_us = frame.time_us
                if data[1] and 1 <= data[2] < session.next:
                    session.next = data[2]
        elif data[0] == END_OF_MESSAGE:
            self._fail(self._find(_key(TP, frame.bus, 0, destination << 8 | source)))
        elif data[0] == ABORT:
            self._fail(self._find(_key(TP, frame.bus, 0, destination << 8 | source)))
            self._fail(self._find(_key(TP, frame.bus, 0, source << 8 | destination)))
        return 0

    cdef int _data(self, const frame_t* frame, const uint8_t* data, Frames messages) except -1 nogil:
        cdef uint32_t source = frame.can_id & 0xFF, destination = frame.can_id >> 8 & 0xFF
        cdef session_t* session = self._find(_key(TP, frame.bus, 0, source << 8 | destination))
        cdef uint8_t* buffer
        if session == NULL:
            self.by_bus[frame.bus].stray += 1
            return 0
        if data[0] and data[0] + 1 == session.next:     # the last one once more
            return 0
        if data[0] != session.next:
            self._fail(session)
            return 0
        buffer = self.buffers + session.buffer * (LONGEST_PAYLOAD + 1) + 7 * (session.next - 1)
        memcpy(buffer, data + 1, 7)             # the last may reach beyond size, never beyond 7 * 255
        session.last_us = frame.time_us
        session.next += 1
        if session.next > session.packets:
            session.filled = session.size
            self._finish(session, frame, messages)
        return 0

    # -- NMEA fast packet and ISO-TP ------------------------------------------------------------------------

    cdef int _segment(
        self, const frame_t* frame, const message_t* message, const uint8_t* data, Frames messages
    ) except -1 nogil:
        if message.protocol == NMEA2000:
            return self._fast(frame, data, messages)
        return self._isotp(frame, message, data, messages)

    cdef int _fast(self, const frame_t* frame, const uint8_t* data, Frames messages) except -1 nogil:
        cdef uint64_t key
        cdef session_t* session
        if frame.length < 2:
            self.by_bus[frame.bus].stray += 1
            return 0
        key = _key(FAST, frame.bus, data[0] >> 5, frame.can_id)
        session = self._find(key)
        if data[0] & 31 == 0:
            self._fail(session)
            if data[1] == 0 or data[1] > FAST_LONGEST:
                self.by_bus[frame.bus].failed += 1
                return 0
            session = self._start(key, frame.time_us, FAST_WAIT_US)
            session.can_id, session.size, session.next = frame.can_id, data[1], 1
            return self._take(session, frame, data + 2, frame.length - 2, messages)
        if session == NULL:
            self.by_bus[frame.bus].stray += 1
            return 0
        if (data[0] & 31) + 1 == session.next:  # the last one once more
            return 0
        if data[0] & 31 != session.next:
            self._fail(session)
            return 0
        session.next += 1
        return self._take(session, frame, data + 1, frame.length - 1, messages)

    cdef int _isotp(
        self, const frame_t* frame, const message_t* message, const uint8_t* data, Frames messages
    ) except -1 nogil:
        cdef int head = message.protocol == ISOTP_EXTENDED, left, kind
        cdef uint32_t size
        cdef uint64_t key
        cdef session_t* session
        left = frame.length - head - 1
        if left < 1:
            self.by_bus[frame.bus].stray += 1
            return 0
        key = _key(ISO, frame.bus, data[0] if head else 0, frame.can_id)
        session = self._find(key)
        data += head
        kind = data[0] >> 4
        if kind == 0:                           # single frame
            self._fail(session)
            size = data[0] & 15
            data += 1
            if size == 0 and frame.length > 8:  # CAN FD: the length is in a byte of its own
                size = data[0]
                data += 1
                left -= 1
            if size == 0 or <int>size > left:
                self.by_bus[frame.bus].failed += 1
                return 0
            session = self._start(key, frame.time_us, ISOTP_WAIT_US)
        elif kind == 1:                         # first frame
            self._fail(session)
            size = (data[0] & 15) << 8 | data[1]
            data += 2
            left -= 1
            if size == 0 and left > 4:          # over 4095 bytes: more than is kept
                self.by_bus[frame.bus].failed += 1
                return 0
            if <int>size <= left or frame.length < 8:
                self.by_bus[frame.bus].failed += 1
                return 0
            session = self._start(key, frame.time_us, ISOTP_WAIT_US)
        elif kind == 2:                         # consecutive frame
            if session == NULL:
                self.by_bus[frame.bus].stray += 1
                return 0
            if session.next > 1 and data[0] & 15 == (session.next - 1) & 15:    # the last one once more
                return 0
            if data[0] & 15 != session.next & 15:
                self._fail(session)
                return 0
            session.next += 1
            return self._take(session, frame, data + 1, left, messages)
        else:                                   # flow control, and what the standard keeps back
            return 0
        session.can_id, session.size, session.next = frame.can_id, <uint16_t>size, 1
        if message.protocol == ISOTP_LENGTH:    # room for it: 4095 + 1
            self.buffers[session.buffer * (LONGEST_PAYLOAD + 1)] = size & 0xFF
            session.size += 1
            session.filled = 1
        return self._take(session, frame, data, left, messages)

    # -- sessions ---------------------------------------------------------------------------------------------

    cdef session_t* _find(self, uint64_t key) noexcept nogil:
        cdef int i
        for i in range(self.open):
            if self.sessions[i].key == key:
                return &self.sessions[i]
        return NULL

    cdef session_t* _start(self, uint64_t key, int64_t time_us, int64_t wait_us) noexcept nogil:
        cdef session_t* session = &self.sessions[0]
        cdef int i
        if self.open == MOST_SESSIONS:
            for i in range(1, self.open):
                if self.sessions[i].last_us < session.last_us:
                    session = &self.sessions[i]
            self._fail(session)
        session = &self.sessions[self.open]
        self.open += 1
        session.key, session.last_us, session.wait_us = key, time_us, wait_us
        session.filled = session.packets = 0
        return session

    cdef int _take(
        self, session_t* session, const frame_t* frame, const uint8_t* data, int count, Frames messages
    ) except -1 nogil:
        """Append up to count bytes; done once all are there."""
        count = min(count, <int>session.size - session.filled)
        memcpy(self.buffers + session.buffer * (LONGEST_PAYLOAD + 1) + session.filled, data, count)
        session.filled += count
        session.last_us = frame.time_us
        if session.filled == session.size:
            self._finish(session, frame, messages)
        return 0

    cdef int _finish(self, session_t* session, const frame_t* frame, Frames messages) except -1 nogil:
        self.by_bus[frame.bus].assembled += 1
        messages.push_message(
            frame.time_us, session.can_id, frame.bus, self.buffers + session.buffer * (LONGEST_PAYLOAD + 1),
            session.size,
        )
        self._note_end()
        self._close(session)
        return 0

    cdef int _note_end(self) except -1 nogil:
        """The frame at hand completed the last message."""
        cdef void* grown
        if self.end_count == self.end_capacity:
            grown = realloc(self.ends, 2 * (self.end_capacity + 32) * sizeof(uint32_t))
            if grown == NULL:
                with gil:
                    raise MemoryError(f"no memory for {self.end_count} messages")
            self.ends, self.end_capacity = <uint32_t*>grown, 2 * (self.end_capacity + 32)
        self.ends[self.end_count] = self.frame
        self.end_count += 1
        return 0

    cdef void _fail(self, session_t* session) noexcept nogil:
        if session != NULL:
            self.by_bus[session.key >> 32 & 0xFF].failed += 1
            self._close(session)

    cdef void _close(self, session_t* session) noexcept nogil:
        """The last one takes its place; its buffer stays with the slot that is free now."""
        cdef uint16_t buffer = session.buffer
        self.open -= 1
        session[0] = self.sessions[self.open]
        self.sessions[self.open].buffer = buffer

    cdef void _expire(self, int64_t time_us) noexcept nogil:
        cdef int i = self.open - 1
        while i >= 0:
            if time_us - self.sessions[i].last_us > self.sessions[i].wait_us:
                self._fail(&self.sessions[i])
            i -= 1


cdef enum:
    TP, FAST, ISO               # kinds of sessions


cdef inline int _held(const session_t* session) noexcept nogil:
    """Bytes of the payload that are there."""
    return 7 * (session.next - 1) if session.packets else session.filled


cdef bint _is_sound(const session_t* session) noexcept nogil:
    """Whether a session is one that could be open."""
    if not 1 <= session.size <= LONGEST_PAYLOAD + 1 or session.filled >= session.size or session.next < 1:
        return False
    return session.packets == 0 or (
        session.packets <= 255 and session.next <= session.packets and session.size <= 7 * session.packets
        and session.filled == 0
    )


cdef inline uint64_t _key(uint64_t kind, uint64_t bus, uint64_t part, uint64_t can_id) noexcept nogil:
    return kind << 48 | part << 40 | bus << 32 | can_id


cdef inline const uint8_t* _payload(const frame_t* frame, const uint8_t* slots) noexcept nogil:
    return slots + frame.data * PAYLOAD_SLOT if frame.length > 8 else <const uint8_t*>&frame.data
