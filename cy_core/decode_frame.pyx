"""Decode one frame to a dict, for tests, notebooks and a look at the bus; batches go through decode.pyx."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
import sys

from cy_core.plan cimport ROW_HEAD, ROW_PADDING, Plan, field, find_whole, message_t, signal_t
from cy_core.structs cimport EXTENDED_ID, ID_MASK

cdef extern from "Python.h":
    double PyFloat_Unpack2(const char* data, int little_endian) except? -1.0
    double PyFloat_Unpack4(const char* data, int little_endian) except? -1.0
    double PyFloat_Unpack8(const char* data, int little_endian) except? -1.0

cdef enum:
    LONGEST_ON_STACK = 64

cdef enum scale_t:
    SAME                        # physical is raw
    WHOLE                       # integers, and the result fits in 63 bits
    WHOLE_BIG                   # integers, by Python's own arithmetic
    REAL                        # raw * factor + offset in double precision


cdef struct scaling_t:
    scale_t kind
    char float_width            # 2, 4, 8; 0 for integers
    char is_signed
    double factor, offset
    int64_t whole_factor, whole_offset


cdef class FrameDecoder:
    """Decodes single frames by one plan."""

    cdef readonly Plan plan
    cdef dict _bus_numbers
    cdef list _names, _labels, _wholes
    cdef scaling_t* _scalings

    def __cinit__(self, Plan plan not None):
        cdef Py_ssize_t i = 0
        self.plan = plan
        self._bus_numbers = {name: number for number, name in enumerate(plan.manifest.buses)}
        self._names, self._labels, self._wholes = [], [], []
        self._scalings = <scaling_t*>calloc(plan.signal_count + 1, sizeof(scaling_t))
        if self._scalings == NULL:
            raise MemoryError(f"no memory for {plan.signal_count} signals")
        for name, _, signal in plan.manifest.names():
            self._names.append(sys.intern(name))
            self._labels.append(signal.labels or None)
            self._wholes.append((signal.factor, signal.offset))
            self._scalings[i] = _scaling(signal)
            i += 1

    def __dealloc__(self):
        free(self._scalings)

    def decode(self, bus, uint32_t can_id, data, *, bint extended=False, bint raw=False):
        """The signals of one frame: {"Message.Signal": physical value or label}.

        bus is a name of the manifest; extended says that can_id has 29 bits. raw: the fields' integers (floats
        as they are) instead of physical values and labels. A whole number stays an int where factor and offset
        are whole. A payload that is cut short, or a multiplexer value that selects nothing, gives what is
        defined; a frame that no message describes gives {}. Raises KeyError: no such bus in the manifest.
        """
        cdef bytes payload = data if type(data) is bytes else bytes(data)
        cdef const uint8_t* source = <const uint8_t*>PyBytes_AS_STRING(payload)
        cdef Py_ssize_t length = PyBytes_GET_SIZE(payload)
        cdef uint8_t[LONGEST_ON_STACK + 24] row    # ROW_HEAD, payload, ROW_PADDING
        cdef uint8_t* buffer
        cdef uint64_t identifier = can_id & ID_MASK
        cdef uint32_t number = find_whole(
            &self.plan.identifiers, self._bus_numbers[bus], can_id | EXTENDED_ID if extended else can_id
        )
        if number == 0:
            return {}
        if length <= LONGEST_ON_STACK:
            memset(row, 0, sizeof(row))
            memcpy(row, &identifier, ROW_HEAD)
            memcpy(row + ROW_HEAD, source, length)
            return self._decode(&self.plan.messages[number - 1], row + ROW_HEAD, length, raw)
        buffer = <uint8_t*>calloc(ROW_HEAD + length + ROW_PADDING, 1)
        if buffer == NULL:
            raise MemoryError(f"no memory for a payload of {length} bytes")
        try:
            memcpy(buffer, &identifier, ROW_HEAD)
            memcpy(buffer + ROW_HEAD, source, length)
            return self._decode(&self.plan.messages[number - 1], buffer + ROW_HEAD, length, raw)
        finally:
            free(buffer)

    cdef dict _decode(self, const message_t* message, const uint8_t* row, Py_ssize_t length, bint raw):
        cdef dict values = {}
        cdef uint32_t i
        cdef Py_ssize_t first = message.first_signal
        cdef const signal_t* signals = &self.plan.signals[first]
        cdef set present = None
        if message.is_multiplexed:
            present = self._present(message, row, length)
        for i in range(message.signal_count):
            if length >= signals[i].needed and (present is None or i in present):
                values[<str>self._names[first + i]] = self._value(first + i, field(&signals[i], row), raw)
        return values

    cdef set _present(self, const message_t* message, const uint8_t* row, Py_ssize_t length):
        cdef set present = set()
        cdef uint32_t i, place
        cdef const signal_t* signal
        for i in range(message.signal_count):
            place = self.plan.order[message.first_signal + i]
            signal = &self.plan.signals[message.first_signal + place]
            if signal.selector < 0 or (
                signal.selector in present
                and self.plan.selects(
                    signal, field(&self.plan.signals[message.first_signal + signal.selector], row)
                )
            ):
                if length >= signal.needed:
                    present.add(place)
        return present

    cdef inline object _value(self, Py_ssize_t signal, uint64_t bits, bint raw):
        cdef const scaling_t* scaling = &self._scalings[signal]
        cdef double real
        cdef PyObject* label
        if scaling.float_width:
            if scaling.float_width == 2:
                real = PyFloat_Unpack2(<char*>&bits, True)
            elif scaling.float_width == 4:
                real = PyFloat_Unpack4(<char*>&bits, True)
            else:
                real = PyFloat_Unpack8(<char*>&bits, True)
            return real if raw or scaling.kind == SAME else real * scaling.factor + scaling.offset
        if not raw:
            if self._labels[signal] is not None:
                label = PyDict_GetItem(self._labels[signal], _integer(bits, scaling.is_signed))
                if label != NULL:
                    return <object>label
            if scaling.kind == REAL:
                if scaling.is_signed:
                    return <double><int64_t>bits * scaling.factor + scaling.offset
                return <double>bits * scaling.factor + scaling.offset
            if scaling.kind == WHOLE:
                return <int64_t>bits * scaling.whole_factor + scaling.whole_offset
            if scaling.kind == WHOLE_BIG:
                factor, offset = self._wholes[signal]
                return _integer(bits, scaling.is_signed) * factor + offset
        return _integer(bits, scaling.is_signed)


cdef inline object _integer(uint64_t bits, bint is_signed):
    return <int64_t>bits if is_signed else bits


cdef scaling_t _scaling(signal) except *:
    cdef scaling_t scaling
    factor, offset = signal.factor, signal.offset
    scaling.float_width = signal.length // 8 if signal.is_float else 0
    scaling.is_signed = signal.signed
    scaling.factor, scaling.offset = factor, offset
    scaling.whole_factor = scaling.whole_offset = 0
    if factor == 1 and offset == 0 and type(factor) is int and type(offset) is int:
        scaling.kind = SAME
    elif signal.is_float or type(factor) is not int or type(offset) is not int:
        scaling.kind = REAL
    elif (abs(factor) << signal.length) + abs(offset) < 1 << 62:
        scaling.kind = WHOLE
        scaling.whole_factor, scaling.whole_offset = factor, offset
    else:
        scaling.kind = WHOLE_BIG
    return scaling
