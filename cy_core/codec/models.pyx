"""The memory behind models.pxd: 0.5 MB, 64 bytes a context (3 MB at most), and what the trained table takes."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from cy_core.codec.coder cimport COUNT_MASK, probability_t
from cy_core.codec.mixer cimport begin_mixer

cdef extern from "stdlib.h":
    void* aligned_alloc(size_t alignment, size_t size)

cdef enum:
    LINE_SIZE = LINE * sizeof(probability_t)  # a cache line
    ROW_BYTES = 52              # key, then p of 16 bits and count of 8 for each probability
    TRAINED_COUNT_MAX = 24      # a trained probability still adapts

LINE_BYTES = ROW_BYTES
LINES_MOST = LINES_MAX


cdef class Models:
    def __cinit__(self, const uint8_t[::1] trained=None):
        """trained: ROW_BYTES for each context, as dump() gives them. Raises ValueError: no multiple of that."""
        cdef Py_ssize_t count = 0, i
        cdef uint32_t size = 2
        if trained is not None:
            if trained.shape[0] % ROW_BYTES:
                raise ValueError(f"{trained.shape[0]} bytes are no multiple of a line's {ROW_BYTES}")
            count = trained.shape[0] // ROW_BYTES
        if count > LINES_MAX:
            raise ValueError(f"{count} contexts; at most {LINES_MAX}")
        while size < 2 * count:
            size *= 2
        self.data.trained_mask = size - 1
        self.data.places = <place_t*>calloc(PLACES, sizeof(place_t))
        self.data.lines = <probability_t*>aligned_alloc(LINE_SIZE, (LINES_MAX + 1) * LINE_SIZE)
        self.data.trained_keys = <uint32_t*>calloc(size, 4)
        self.trained = <probability_t*>aligned_alloc(LINE_SIZE, size * LINE_SIZE)
        self.data.trained_lines = self.trained
        if not (self.data.places and self.data.lines and self.data.trained_keys and self.trained):
            raise MemoryError("no memory for the codec's models")
        for i in range(count):
            self._learn(&trained[i * ROW_BYTES])

    def __dealloc__(self):
        free(self.data.places)
        free(self.data.lines)
        free(self.data.trained_keys)
        free(self.trained)

    cdef void forget(self) noexcept nogil:
        """Begin a block."""
        memset(self.data.places, 0, PLACES * sizeof(place_t))
        self.data.count = 0
        begin_mixer(&self.data.mixer)

    cdef int _learn(self, const uint8_t* row) except -1:
        cdef uint32_t key = row[0] | row[1] << 8 | row[2] << 16 | <uint32_t>row[3] << 24
        cdef uint32_t place = key & self.data.trained_mask
        cdef int i
        if key == 0:
            raise ValueError("a line with the key 0")
        while self.data.trained_keys[place]:
            if self.data.trained_keys[place] == key:
                raise ValueError(f"the key {key:08x} occurs twice")
            place = (place + 1) & self.data.trained_mask
        self.data.trained_keys[place] = key
        for i in range(LINE):
            self.trained[place * LINE + i] = (
                <uint32_t>(row[4 + 3 * i] | row[5 + 3 * i] << 8) << 16
                | 1 << 15
                | min(row[6 + 3 * i], TRAINED_COUNT_MAX)
            )
        return 0

    def dump(self):
        """The contexts that occurred since the beginning of the block, by key: key, then 16 times p and count."""
        cdef bytes out
        cdef uint8_t* to
        cdef int i, place
        cdef uint32_t state
        numbers = {self.data.places[place].key: self.data.places[place].number for place in range(PLACES)}
        numbers.pop(0, None)
        out = PyBytes_FromStringAndSize(NULL, len(numbers) * ROW_BYTES)
        to = <uint8_t*>PyBytes_AS_STRING(out)
        for key, number in sorted(numbers.items()):
            for i in range(4):
                to[i] = key >> 8 * i & 255
            to += 4
            for i in range(LINE):
                state = self.data.lines[<uint32_t>number * LINE + i]
                to[0], to[1], to[2] = state >> 16 & 255, state >> 24, min(state & COUNT_MASK, TRAINED_COUNT_MAX)
                to += 3
        return out
