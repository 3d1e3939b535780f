/* One column at a time: the same shifts for every row, so that there is vector code for it.
 *
 * In C for one reason: AVX2. From one baseline build a processor that has it is given the functions made for it; on
 * arm64 NEON is the baseline. The structs are shared with plan.pxd and columns.pxd.
 */
#ifndef BORDNETZ_COLUMN_KERNELS_H
#define BORDNETZ_COLUMN_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#endif
#define INLINE static inline __attribute__((always_inline))

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

/* Rows are decoded eight or 32 at a time, the last of them reading and writing behind the rows: that costs less than to
 * count them out. */
enum { AT_LEAST = 32 };

typedef uint64_t u64x2_t __attribute__((vector_size(16)));
typedef uint64_t unaligned_t __attribute__((vector_size(16), aligned(8)));
typedef uint32_t u32x4_t __attribute__((vector_size(16)));
typedef uint16_t u16x8_t __attribute__((vector_size(16)));
typedef uint8_t u8x16_t __attribute__((vector_size(16)));

/* Every second lane of two vectors, which on a little-endian processor are the lower halves of lanes twice as wide. */
#ifdef __clang__
#define EVEN(TYPE, a, b, ...) __builtin_shufflevector((TYPE)(a), (TYPE)(b), __VA_ARGS__)
#else
#define EVEN(TYPE, a, b, ...) __builtin_shuffle((TYPE)(a), (TYPE)(b), (TYPE){__VA_ARGS__})
#endif
#define EVEN_32(a, b) EVEN(u32x4_t, a, b, 0, 2, 4, 6)
#define EVEN_16(a, b) EVEN(u16x8_t, a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define EVEN_8(a, b) EVEN(u8x16_t, a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)

/* Eight values, narrowed to bytes of width, which only changes what is stored. */
INLINE void decode_eight(const uint64_t *payloads, int left, int right, uint64_t sign, int width, uint8_t *to) {
    u64x2_t x[4];
    for (int i = 0; i < 4; i++) x[i] = *(const unaligned_t *)(payloads + 2 * i) >> (right - left);
    if (width == 8) {
        for (int i = 0; i < 4; i++) x[i] = ((x[i] & (UINT64_MAX >> right)) ^ sign) - sign;
        __builtin_memcpy(to, x, 64);
        return;
    }
    uint32_t mask = (uint32_t)(UINT64_MAX >> right);
    u32x4_t four[2] = {EVEN_32(x[0], x[1]) & mask, EVEN_32(x[2], x[3]) & mask};
    if (width == 4) {
        for (int i = 0; i < 2; i++) four[i] = (four[i] ^ (uint32_t)sign) - (uint32_t)sign;
        __builtin_memcpy(to, four, 32);
        return;
    }
    u16x8_t two = EVEN_16(four[0], four[1]);
    if (width == 2) {
        two = (two ^ (uint16_t)sign) - (uint16_t)sign;
        __builtin_memcpy(to, &two, 16);
        return;
    }
    u8x16_t one = (EVEN_8(two, two) ^ (uint8_t)sign) - (uint8_t)sign;
    __builtin_memcpy(to, &one, 8);
}

INLINE void decode_by_eight(const signal_t *signal, int width, const uint64_t *restrict payloads, size_t count,
                            uint8_t *restrict out) {
    for (size_t i = 0; i < count; i += 8)
        decode_eight(payloads + i, signal->left, signal->right, signal->sign, width, out + i * width);
}

INLINE void decode_column(const signal_t *signal, const uint64_t *restrict payloads, size_t count,
                          uint8_t *restrict out) {
    if (signal->width == 1) decode_by_eight(signal, 1, payloads, count, out);
    else if (signal->width == 2) decode_by_eight(signal, 2, payloads, count, out);
    else if (signal->width == 4) decode_by_eight(signal, 4, payloads, count, out);
    else decode_by_eight(signal, 8, payloads, count, out);
}

#ifdef AVX2
/* Eight fields of up to 32 bits, in the order 0 1 4 5 2 3 6 7. */
AVX2 static inline __m256i cut_eight(const uint64_t *payloads, __m128i shift, __m256i mask) {
    __m256i low = _mm256_srl_epi64(_mm256_loadu_si256((const __m256i *)payloads), shift);
    __m256i high = _mm256_srl_epi64(_mm256_loadu_si256((const __m256i *)(payloads + 4)), shift);
    __m256 even = _mm256_shuffle_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high), 0x88);
    return _mm256_and_si256(_mm256_castps_si256(even), mask);
}

/* The compiler would put things in order at each step of the narrowing, which takes twice the instructions; here the
 * last step does. Inlined it takes fewer instructions and a fifth more time, in batches of a second. */
AVX2 static __attribute__((noinline)) void decode_column_avx2(const signal_t *signal, const uint64_t *restrict payloads,
                                                              size_t count, uint8_t *restrict out) {
    __m128i shift = _mm_cvtsi32_si128(signal->right - signal->left);
    __m256i mask = _mm256_set1_epi32((int)(UINT64_MAX >> signal->right)), x, s;
    const uint64_t *end = payloads + count;
    if (signal->width == 1) {
        __m256i pairs = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
        s = _mm256_set1_epi8((char)signal->sign);
        for (; payloads < end; payloads += 32, out += 32) {
            __m256i low = _mm256_packus_epi32(cut_eight(payloads, shift, mask), cut_eight(payloads + 8, shift, mask));
            __m256i high = _mm256_packus_epi32(cut_eight(payloads + 16, shift, mask),
                                               cut_eight(payloads + 24, shift, mask));
            x = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), 0xD8), pairs);
            _mm256_storeu_si256((__m256i *)out, _mm256_sub_epi8(_mm256_xor_si256(x, s), s));
        }
    } else if (signal->width == 2) {
        s = _mm256_set1_epi16((short)signal->sign);
        for (; payloads < end; payloads += 16, out += 32) {
            x = _mm256_packus_epi32(cut_eight(payloads, shift, mask), cut_eight(payloads + 8, shift, mask));
            x = _mm256_shuffle_epi32(_mm256_permute4x64_epi64(x, 0xD8), 0xD8);
            _mm256_storeu_si256((__m256i *)out, _mm256_sub_epi16(_mm256_xor_si256(x, s), s));
        }
    } else if (signal->width == 8) {
        decode_by_eight(signal, 8, payloads, count, out);
    } else {
        s = _mm256_set1_epi32((int)signal->sign);
        for (; payloads < end; payloads += 8, out += 32) {
            x = _mm256_permute4x64_epi64(cut_eight(payloads, shift, mask), 0xD8);
            _mm256_storeu_si256((__m256i *)out, _mm256_sub_epi32(_mm256_xor_si256(x, s), s));
        }
    }
}
#endif

/* Swap the bytes of all payloads if asked to; return the bits that are not the same in all of them. */
INLINE uint64_t changed_bits(uint64_t *payloads, size_t count, int swap) {
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

typedef void decode_column_t(const signal_t *, const uint64_t *restrict, size_t, uint8_t *restrict);

INLINE size_t decode_with(decode_column_t *decode, const signal_t *signals, const uint32_t *places, column_t *columns,
                          size_t column_count, int source, uint64_t *payloads, size_t count, uint8_t *arena,
                          size_t end) {
    uint64_t changed = changed_bits(payloads, count, source == BIG);
    for (size_t i = 0; i < column_count; i++) {
        column_t *column = &columns[i];
        const signal_t *signal = &signals[places[i]];
        if (signal->source != source) continue;
        column->signal = places[i];
        column->width = signal->width;
        column->is_constant = (changed << signal->left) >> signal->right == 0;
        column->offset = end;
        if (column->is_constant) {
            uint64_t value = (payloads[0] << signal->left) >> signal->right;
            value = (value ^ signal->sign) - signal->sign;
            __builtin_memcpy(arena + end, &value, 8);
            end += 8;
        } else {
            decode(signal, payloads, count, arena + end);
            end = (end + signal->width * count + 7) & ~(size_t)7;
        }
    }
    return end;
}

/* From each frame's place in its variant to its place in all, its row. Not done where the rows are used: there a
 * processor has each load wait for the address of the store before, which is not known until the row is. */
INLINE void add_firsts(uint32_t *restrict rows, const uint32_t *restrict variant_of, const uint32_t *restrict firsts,
                       size_t count) {
    for (size_t i = 0; i < count; i++) rows[i] += firsts[variant_of[i]];
}

#ifdef AVX2
AVX2 static size_t decode_columns_avx2(const signal_t *signals, const uint32_t *places, column_t *columns,
                                       size_t column_count, int source, uint64_t *payloads, size_t count,
                                       uint8_t *arena, size_t end) {
    return decode_with(decode_column_avx2, signals, places, columns, column_count, source, payloads, count, arena, end);
}

AVX2 static void find_rows_avx2(uint32_t *rows, const uint32_t *variant_of, const uint32_t *firsts, size_t count) {
    add_firsts(rows, variant_of, firsts, count);
}
#endif

/* Decode the columns of one source out of payloads, which are little-endian numbers and stay swapped if source is BIG;
 * places are the signals, one a column. Returns the arena's new end. AT_LEAST - 1 rows behind the last are read, and as
 * many values behind the arena's end written over. */
static size_t decode_columns(const signal_t *signals, const uint32_t *places, column_t *columns, size_t column_count,
                             int source, uint64_t *payloads, size_t count, uint8_t *arena, size_t end) {
#ifdef AVX2
    if (__builtin_cpu_supports("avx2"))
        return decode_columns_avx2(signals, places, columns, column_count, source, payloads, count, arena, end);
#endif
    return decode_with(decode_column, signals, places, columns, column_count, source, payloads, count, arena, end);
}

static void find_rows(uint32_t *rows, const uint32_t *variant_of, const uint32_t *firsts, size_t count) {
#ifdef AVX2
    if (__builtin_cpu_supports("avx2")) {
        find_rows_avx2(rows, variant_of, firsts, count);
        return;
    }
#endif
    add_firsts(rows, variant_of, firsts, count);
}

/* Copy words of a long payload into a row, and note the bits that are not as in the first. */
static inline void load_row(uint64_t *restrict row, const uint8_t *restrict payload, const uint8_t *restrict first,
                            uint64_t *restrict changed, size_t words) {
    for (size_t i = 0; i < words; i++) {
        uint64_t word, other;
        __builtin_memcpy(&word, payload + 8 * i, 8);
        __builtin_memcpy(&other, first + 8 * i, 8);
        row[i] = word;
        changed[i] |= word ^ other;
    }
}

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

INLINE void decode_rows_as(const signal_t *signal, const uint8_t *rows,
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
