"""A row of fields, predicted from the rows before it.

Each field has three predictions: as last, on the line through the last two, half-way between; the one with the
smaller error of late is used, and nothing need be said of the choice. One bit says that the whole row is as
predicted; else each field gives its residual, in the context of how large residuals have been of late.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from cy_core.codec.coder cimport code_bit, coder_t
from cy_core.codec.models cimport line, mix, models_t
from cy_core.codec.number cimport bit_length, code_residual, code_residual_mixed, code_value, learn_value

cdef enum:
    ROW = 0x20000               # key below a stream's: is the row as predicted?
    FIELD = 0x30000             # keys below a stream's: of a field
    ERROR_MAX = 1 << 24
    FIELDS_MAX = 128
    AFTER = 0x2010              # context of a residual, version 3: the one before it, -15 to 15


cdef struct history_t:          # of one field
    uint64_t last, moved
    uint32_t[3] errors          # running, of each prediction
    uint32_t recent             # running size of the residuals, in sixteenths
    int32_t residual            # the last one, -15 to 15


cdef inline int64_t wrap(uint64_t value, int width) noexcept nogil:
    """The low bits of a value as a signed number."""
    return <int64_t>(value << (64 - width)) >> (64 - width)


cdef inline int choice(const history_t* history) noexcept nogil:
    if history.errors[0] <= history.errors[1]:
        return 0 if history.errors[0] <= history.errors[2] else 2
    return 1 if history.errors[1] <= history.errors[2] else 2


cdef inline uint64_t prediction(const history_t* history, int number, int width) noexcept nogil:
    if number == 0:
        return history.last
    if number == 1:
        return history.last + history.moved
    return history.last + <uint64_t>(wrap(history.moved, width) >> 1)


cdef inline void start_history(history_t* history, uint64_t value) noexcept nogil:
    history.last, history.moved = value, 0
    history.errors[0] = history.errors[1] = history.errors[2] = 0
    history.recent = history.residual = 0


cdef inline void advance(history_t* history, uint64_t value, int width) noexcept nogil:
    cdef int64_t moved = wrap(value - history.last, width)
    _worsen(&history.errors[0], moved)
    _worsen(&history.errors[1], wrap(<uint64_t>moved - history.moved, width))
    _worsen(&history.errors[2], wrap(<uint64_t>moved - <uint64_t>(wrap(history.moved, width) >> 1), width))
    history.moved, history.last = <uint64_t>moved, value


cdef inline void _worsen(uint32_t* error, int64_t residual) noexcept nogil:
    cdef uint64_t size = <uint64_t>residual if residual >= 0 else -<uint64_t>residual
    if size > ERROR_MAX:
        size = ERROR_MAX
    error[0] += <uint32_t>(size << 4) - (error[0] >> 3)


cdef inline void remember(history_t* history, int64_t residual) noexcept nogil:
    cdef uint64_t size = <uint64_t>residual if residual >= 0 else -<uint64_t>residual
    if size > ERROR_MAX:
        size = ERROR_MAX
    history.recent += <uint32_t>(size << 2) - (history.recent >> 2)
    history.residual = <int32_t>max(-15, min(15, residual))


cdef inline void stay(history_t* history) noexcept nogil:
    """What remember() and advance() do where nothing moved before, and nothing does now."""
    history.errors[0] -= history.errors[0] >> 3
    history.errors[1] -= history.errors[1] >> 3
    history.errors[2] -= history.errors[2] >> 3
    history.recent -= history.recent >> 2
    history.residual = 0


cdef inline uint32_t level(uint32_t recent) noexcept nogil:
    """Of the recent size of residuals: its logarithm."""
    cdef int top = bit_length(recent)
    return top


cdef inline bint code_row(
    coder_t* coder,
    models_t* models,
    uint32_t key,
    const uint8_t* widths,
    Py_ssize_t count,
    history_t* histories,
    uint64_t* values,
    uint32_t* recent,
    bint as_predicted,
    bint known,
) noexcept nogil:
    """A row behind the first. values: read or written; recent: rows of late that were as predicted, one bit each.

    as_predicted: writing, that what follows from the fields (checksums) does so. known: the values are known to both
    sides, and only become history. Returns whether all is as predicted.
    """
    cdef Py_ssize_t i
    cdef uint64_t[FIELDS_MAX] expected
    cdef int[FIELDS_MAX] chosen
    cdef int64_t residual
    cdef uint32_t context, neighbour = 0
    for i in range(count):
        expected[i] = histories[i].last
        if histories[i].moved:  # else all predictions are the same
            chosen[i] = choice(&histories[i])
            expected[i] = prediction(&histories[i], chosen[i], widths[i])
        if (known or not coder.reading) and wrap(values[i] - expected[i], widths[i]):
            as_predicted = False
    if not known:
        as_predicted = code_bit(coder, line(models, mix(key, ROW)) + (recent[0] & 15), as_predicted)
        recent[0] = recent[0] << 1 | as_predicted
    for i in range(count):
        residual = 0
        if not as_predicted:
            if not histories[i].moved:
                chosen[i] = choice(&histories[i])
            context = level(histories[i].recent) << 3 | chosen[i] << 1 | neighbour
            residual = wrap(values[i] - expected[i], widths[i])
            if models.mixes and not known:
                residual = code_residual_mixed(
                    coder, models, mix(key, FIELD + i), context, AFTER + histories[i].residual, residual
                )
            elif not known:
                residual = code_residual(coder, models, mix(key, FIELD + i), context, residual)
            neighbour = residual != 0
        if coder.reading and not known:
            values[i] = (expected[i] + <uint64_t>residual) & (0xFFFFFFFFFFFFFFFFULL >> (64 - widths[i]))
        if residual == 0 and histories[i].moved == 0:
            stay(&histories[i])
        else:
            remember(&histories[i], residual)
            advance(&histories[i], values[i], widths[i])
    return as_predicted
