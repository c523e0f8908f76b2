/* Mutations that leave a tar a tar: most change one block or move whole blocks, and all give the
 * headers valid checksums again, without which hardly any input would get past the first. */
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define TAR_BLOCK ((size_t)512)

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max) __attribute__((weak));
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

/* The bytes up to the first two blocks of zeros, with these. */
static inline size_t tar_end(const uint8_t *data, size_t size)
{
    static const uint8_t zero[2 * 512];
    for (size_t at = 0; at + sizeof(zero) <= size; at += TAR_BLOCK)
        if (memcmp(data + at, zero, sizeof(zero)) == 0)
            return at + sizeof(zero);
    return size;
}

static inline void tar_repair(uint8_t *data, size_t size)
{
    for (size_t at = 0; at + TAR_BLOCK <= size; at += TAR_BLOCK) {
        uint8_t *h = data + at;
        unsigned sum = 0;
        char text[8];
        if (memcmp(h + 257, "ustar", 5) != 0)
            continue;
        memset(h + 148, ' ', 8);
        for (size_t i = 0; i < TAR_BLOCK; i++)
            sum += h[i];
        (void)snprintf(text, sizeof(text), "%06o", sum);
        memcpy(h + 148, text, 7);
    }
}

static inline size_t tar_mutate(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    size_t blocks = size / TAR_BLOCK, from, to;
    if (blocks == 0 || seed % 8 == 0)
        return LLVMFuzzerMutate(data, size, max);
    from = seed / 8 % blocks * TAR_BLOCK;
    to = seed / 4096 % blocks * TAR_BLOCK;
    if (seed % 8 < 6) { /* a change inside a block, mostly in its part with the fields */
        size_t n = seed % 8 < 4 ? 345 : TAR_BLOCK, made = LLVMFuzzerMutate(data + from, n, n);
        memset(data + from + made, 0, n - made);
    } else if (seed % 8 == 6 || size + TAR_BLOCK > max) {
        memmove(data + to, data + from, TAR_BLOCK);
    } else {
        uint8_t copy[512];
        memcpy(copy, data + from, TAR_BLOCK);
        memmove(data + to + TAR_BLOCK, data + to, size - to);
        memcpy(data + to, copy, TAR_BLOCK);
        size += TAR_BLOCK;
    }
    return size;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    if (size > 3 && memcmp(data, "OPS", 3) == 0) {
        size = 3 + LLVMFuzzerMutate(data + 3, size - 3, max - 3);
        return size;
    }
    size = tar_mutate(data, size, max, seed);
    tar_repair(data, size);
    return size;
}
