/* The CRC32 instruction of SSE4.2, eight bytes each; told at run time whether the processor has it. */
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
static int crc32c_in_hardware(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2") != 0;
}

__attribute__((target("sse4.2"))) static uint32_t crc32c_hardware(uint32_t crc, const uint8_t *data, size_t size) {
    uint64_t wide = ~crc;
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        wide = __builtin_ia32_crc32di(wide, word);
    }
    crc = (uint32_t)wide;
    for (; size > 0; data++, size--) {
        crc = __builtin_ia32_crc32qi(crc, *data);
    }
    return ~crc;
}
#else
static int crc32c_in_hardware(void) { return 0; }
static uint32_t crc32c_hardware(uint32_t crc, const uint8_t *data, size_t size) {
    (void)data, (void)size;
    return crc;
}
#endif
