"""Choose frames by bus and identifier, and follow J1939 transport to the parameter group that it carries.

    frames ──► pick ──► frames that a rule keeps, in their order
                ▲ │
             transport sessions, carried from batch to batch

Of the rules that match a frame the last one counts: bus, and can_id & mask == value. A frame of the transport protocol
(PDU formats EC and EB; C8 and C7 for long ones) is judged by the group that its session carries, unless a rule names
the frame itself; a packet whose session began unseen, by its own identifier where no rule withholds anything of that bus.
Source: SAE J1939-21, 5.10.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from cy_core.frames cimport Frames
from cy_core.structs cimport PAYLOAD_SLOT, frame_t

cdef enum:
    WITHHELD, KEPT, NAMED       # what a rule says
    NO_RULE
    REMEMBERED = 1024           # verdicts by identifier
    MOST_SESSIONS = 4096
    RTS = 16
    LONG_RTS = 20
    BAM = 32


cdef struct rule_t:
    uint32_t mask, value
    uint8_t bus, verdict


cdef struct known_t:            # the verdict on an identifier
    uint64_t key                # 0: none
    uint8_t verdict


cdef class FramePicker:
    """rules: (bus number, mask, value, verdict), verdict 0 to withhold, 1 to keep, 2 for what is named by itself.

    transports: numbers of the buses that carry J1939. Raises ValueError: no such bus or verdict.
    """

    cdef rule_t* rules
    cdef Py_ssize_t rule_count
    cdef known_t* known
    cdef uint8_t[256] carries, withholds
    cdef readonly dict sessions     # of each (bus, source, destination): is it kept?

    def __cinit__(self, rules, transports=()):
        cdef Py_ssize_t i
        self.sessions = {}
        self.rule_count = len(rules)
        self.rules = <rule_t*>calloc(max(1, len(rules)), sizeof(rule_t))
        self.known = <known_t*>calloc(REMEMBERED, sizeof(known_t))
        if self.rules == NULL or self.known == NULL:
            raise MemoryError(f"no memory for {len(rules)} rules")
        for i in range(256):
            self.carries[i] = self.withholds[i] = False
        for bus in transports:
            self.carries[<uint8_t>bus] = True
        for i, (bus, mask, value, verdict) in enumerate(rules):
            if not 0 <= bus <= 255 or not WITHHELD <= verdict <= NAMED:
                raise ValueError(f"rule {i}: bus {bus}, verdict {verdict}")
            self.rules[i].bus, self.rules[i].mask, self.rules[i].value, self.rules[i].verdict = bus, mask, value, verdict
            self.withholds[<uint8_t>bus] |= <int>verdict == WITHHELD

    def __dealloc__(self):
        free(self.rules)
        free(self.known)

    def restore(self, sessions):
        """Go back to these sessions; none: as behind a gap."""
        self.sessions = dict(sessions)

    def pick(self, Frames frames not None, Frames into not None):
        """Append to into the frames that are kept; return how many."""
        cdef Py_ssize_t i, before = into.count
        cdef const frame_t* record
        cdef const uint8_t* data
        for i in range(frames.count):
            record = &frames.records[i]
            data = frames.payloads + record.data * PAYLOAD_SLOT if record.length > 8 else <const uint8_t*>&record.data
            if self._keeps(record, data):
                into.push(record.time_us, record.can_id, record.bus, record.flags, data, record.length)
        return into.count - before

    cdef bint _keeps(self, const frame_t* record, const uint8_t* data) except? False:
        cdef uint8_t own = self._verdict(record.bus, record.can_id)
        cdef uint32_t form = record.can_id >> 16 & 0xFF, inner
        if own == NAMED or not self.carries[record.bus] or record.can_id >> 29 != 4 or record.length != 8:
            return own == KEPT or own == NAMED
        if form == 0xEC or form == 0xC8:
            inner = 0x80000000 | (data[5] | data[6] << 8 | <uint32_t>(data[7] & 3) << 16) << 8 | record.can_id & 0xFF
            own = self._verdict(record.bus, inner)
            if data[0] == RTS or data[0] == LONG_RTS or data[0] == BAM:
                if len(self.sessions) >= MOST_SESSIONS:
                    self.sessions.clear()
                self.sessions[record.bus, record.can_id & 0xFFFF] = own == KEPT or own == NAMED
        elif form == 0xEB or form == 0xC7:
            found = self.sessions.get((record.bus, record.can_id & 0xFFFF))
            return own == KEPT and not self.withholds[record.bus] if found is None else found
        return own == KEPT or own == NAMED

    cdef uint8_t _verdict(self, uint8_t bus, uint32_t can_id) noexcept nogil:
        """Of the last rule that matches."""
        cdef uint64_t key = 1ULL << 63 | <uint64_t>bus << 32 | can_id
        cdef known_t* known = &self.known[(can_id ^ can_id >> 10 ^ can_id >> 20 ^ bus) & (REMEMBERED - 1)]
        cdef Py_ssize_t i
        if known.key != key:
            known.key, known.verdict = key, NO_RULE
            for i in range(self.rule_count - 1, -1, -1):
                if self.rules[i].bus == bus and can_id & self.rules[i].mask == self.rules[i].value:
                    known.verdict = self.rules[i].verdict
                    break
        return known.verdict
