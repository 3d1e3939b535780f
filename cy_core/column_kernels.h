/* One column at a time: the same shifts for every row, so that the compiler makes vector code of it.
 *
 * In C for one reason: target_clones. From one baseline build the loader picks the AVX2 or AVX-512 form where the
 * processor has it; on arm64 NEON is the baseline. The structs are shared with plan.pxd and columns.pxd.
 */
#ifndef BORDNETZ_COLUMN_KERNELS_H
#define BORDNETZ_COLUMN_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define FOR_EACH_CPU __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define FOR_EACH_CPU
#endif

typedef struct {
    uint64_t sign;       /* the sign bit, 0 for unsigned and floating-point fields */
    int16_t first_byte; /* of the eight that are loaded; -8 is the identifier, in front of the payload */
    uint16_t needed;     /* payload bytes that hold the whole field */
    uint8_t left, right;
    uint8_t spill; /* bits of the field in the ninth byte */
    uint8_t length;
    uint8_t big_endian;
    uint8_t source; /* what it is cut out of: LITTLE, BIG, IDENTIFIER */
    uint8_t width;    /* bytes of one value in a column: 1, 2, 4, 8 */
    char format;      /* of struct and memoryview */
    int32_t selector; /* index in the message, or -1 */
    uint32_t first_range, range_count;
} signal_t;

enum { LITTLE, BIG, IDENTIFIER }; /* payload bytes in either order, or the identifier */

typedef struct {         /* values of one signal in one group */
    uint64_t offset;     /* in the arena */
    uint32_t signal;     /* index in its message */
    uint8_t width;       /* bytes a value */
    uint8_t is_constant; /* one value stands for all rows */
} column_t;

#define DECODE(TYPE)                                                                                \
    {                                                                                               \
        TYPE *restrict to = (TYPE *)out, s = (TYPE)signal->sign;                                    \
        if (s)                                                                                      \
            for (size_t i = 0; i < count; i++)                                                      \
                to[i] = (TYPE)(((TYPE)((payloads[i] << left) >> right) ^ s) - s);                   \
        else                                                                                        \
            for (size_t i = 0; i < count; i++) to[i] = (TYPE)((payloads[i] << left) >> right);      \
    }

static inline __attribute__((always_inline)) void decode_column(const signal_t *signal,
                                                                const uint64_t *restrict payloads, size_t count,
                                                                uint8_t *restrict out) {
    int left = signal->left, right = signal->right;
    if (signal->width == 1) DECODE(uint8_t)
    else if (signal->width == 2) DECODE(uint16_t)
    else if (signal->width == 4) DECODE(uint32_t)
    else DECODE(uint64_t)
}

/* Decode the columns of one source; payloads are that, as numbers of 64 bits, and changed has their bits that are not all the
 * same. Returns the arena's new end; there is room for 8 bytes more than each column's values. */
FOR_EACH_CPU static size_t decode_columns(const signal_t *signals, column_t *columns, size_t column_count,
                                          int source, const uint64_t *payloads, size_t count,
                                          uint64_t changed, uint8_t *arena, size_t end) {
    for (size_t i = 0; i < column_count; i++) {
        column_t *column = &columns[i];
        const signal_t *signal = &signals[column->signal];
        if (signal->source != source) continue;
        column->is_constant = (changed << signal->left) >> signal->right == 0;
        column->offset = end;
        if (column->is_constant) {
            uint64_t value = (payloads[0] << signal->left) >> signal->right;
            value = (value ^ signal->sign) - signal->sign;
            __builtin_memcpy(arena + end, &value, 8);
            end += 8;
        } else {
            decode_column(signal, payloads, count, arena + end);
            end = (end + signal->width * count + 7) & ~(size_t)7;
        }
    }
    return end;
}

/* Swap the bytes of all payloads if asked to; return the bits that are not the same in all of them. */
FOR_EACH_CPU static uint64_t changed_bits(uint64_t *payloads, size_t count, int swap) {
    uint64_t changed = 0, first = payloads[0];
    if (!swap) {
        for (size_t i = 0; i < count; i++) changed |= payloads[i] ^ first;
        return changed;
    }
    for (size_t i = 0; i < count; i++) {
        changed |= payloads[i] ^ first;
        payloads[i] = __builtin_bswap64(payloads[i]);
    }
    return __builtin_bswap64(changed);
}

#undef DECODE

/* Decode one column of long payloads: rows of stride bytes, readable for 16 bytes behind the field's first. Eight bytes
 * are loaded at its first byte; the bits that spill into a ninth are added where there are any. */
#define DECODE_ROWS(TYPE)                                                                          \
    {                                                                                              \
        TYPE *to = (TYPE *)out;                                                                    \
        for (size_t i = 0; i < count; i++, rows += stride) {                                       \
            uint64_t x;                                                                            \
            __builtin_memcpy(&x, rows, 8);                                                         \
            if (big_endian) x = __builtin_bswap64(x);                                              \
            if (spill) {                                                                           \
                uint64_t ninth = rows[8];                                                          \
                x = big_endian ? (x << left | ninth >> (8 - left)) >> right                        \
                               : ((x >> left | ninth << (64 - left)) << right) >> right;           \
            } else                                                                                 \
                x = (x << left) >> right;                                                          \
            to[i] = (TYPE)((x ^ sign) - sign);                                                     \
        }                                                                                          \
    }

static inline __attribute__((always_inline)) void decode_rows_as(const signal_t *signal, const uint8_t *rows,
                                                                 size_t stride, size_t count, uint8_t *out,
                                                                 int big_endian, int spill) {
    int left = signal->left, right = signal->right;
    uint64_t sign = signal->sign;
    if (signal->width == 1) DECODE_ROWS(uint8_t)
    else if (signal->width == 2) DECODE_ROWS(uint16_t)
    else if (signal->width == 4) DECODE_ROWS(uint32_t)
    else DECODE_ROWS(uint64_t)
}

static void decode_rows(const signal_t *signal, const uint8_t *rows, size_t stride, size_t count, uint8_t *out) {
    rows += signal->first_byte;
    if (signal->spill) decode_rows_as(signal, rows, stride, count, out, signal->big_endian, 1);
    else if (signal->big_endian) decode_rows_as(signal, rows, stride, count, out, 1, 0);
    else decode_rows_as(signal, rows, stride, count, out, 0, 0);
}

#undef DECODE_ROWS
#endif
