"""Columns of a long batch with one group where a message has several of the same signals, one behind the other.

The decoder begins new groups every some thousand frames. Coded so, each would cost a block its first values, its times
and its contexts' learning anew.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cy_core.columns cimport Columns, column_t, group_t

cdef enum:
    MOST_ROWS = (1 << 20) - 1   # of a group, in a block


def join(Columns columns not None):
    """The same rows in fresh columns, groups in the order of their first rows; counters are not copied."""
    cdef Columns joined = Columns(columns.plan)
    cdef Py_ssize_t i
    cdef uint32_t j, rows
    cdef dict known = {}        # (message, signals) -> its last list of groups
    cdef list chains = [], chain
    cdef tuple signals
    cdef const group_t* group
    for i in range(columns.group_count):
        group = &columns.group_rows[i]
        signals = tuple([columns.column_rows[group.first_column + j].signal for j in range(group.column_count)])
        chain = known.get((group.message, signals))
        rows = sum([columns.group_rows[<Py_ssize_t>other].count for other in chain]) if chain is not None else 0
        if chain is None or rows + group.count > MOST_ROWS:
            known[(group.message, signals)] = chain = []
            chains.append(chain)
        chain.append(i)
    for chain in chains:
        _add(joined, columns, chain)
    return joined


cdef int _add(Columns joined, Columns columns, list chain) except -1:
    """One group of those numbered."""
    cdef const group_t* first = &columns.group_rows[<Py_ssize_t>chain[0]]
    cdef uint32_t rows = 0, j
    cdef group_t made = first[0]
    cdef Py_ssize_t i
    for i in chain:
        rows += columns.group_rows[i].count
    made.count = rows
    made.times = joined.allocate(8 * <Py_ssize_t>rows)
    made.first_column = joined.column_count
    joined.add_columns(made.column_count)
    joined.add_group()[0] = made
    rows = 0
    for i in chain:
        memcpy(
            joined.arena + made.times + 8 * <uint64_t>rows, columns.arena + columns.group_rows[i].times,
            8 * <uint64_t>columns.group_rows[i].count,
        )
        rows += columns.group_rows[i].count
    for j in range(made.column_count):
        _fill(joined, made.first_column + j, columns, chain, j, rows)
    return 0


cdef int _fill(Columns joined, Py_ssize_t number, Columns columns, list chain, uint32_t place, uint32_t rows) except -1:
    """A column: one value a row."""
    cdef column_t column = columns.column_rows[columns.group_rows[<Py_ssize_t>chain[0]].first_column + place]
    cdef const column_t* part
    cdef const uint8_t* source
    cdef uint8_t* to
    cdef uint32_t row, width = column.width
    cdef Py_ssize_t i
    column.is_constant = False
    column.offset = joined.allocate(<Py_ssize_t>rows * width)
    joined.column_rows[number] = column
    to = joined.arena + column.offset
    for i in chain:
        part = &columns.column_rows[columns.group_rows[i].first_column + place]
        source = columns.arena + part.offset
        for row in range(columns.group_rows[i].count):
            memcpy(to, source, width)
            to += width
            source += 0 if part.is_constant else width
    return 0
