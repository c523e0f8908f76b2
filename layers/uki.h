/* uki: a unified kernel image: systemd's EFI stub with kernel, initramfs and command line as
 * sections, one file that UEFI starts. objcopy does the same, but puts the time into it. */
#pragma once

#include "support/error.h"

#include <stddef.h>
#include <stdint.h>

struct uki_section {
    const char *name; /* ".linux": at most 8 bytes */
    int fd;           /* its content, from its beginning; -1: @text */
    const void *text;
    uint64_t size;
};

/* Writes @stub (a PE file for x86-64, read from its beginning) with @n sections behind its own to
 * the empty file @to. The kernel should be the last: it may use what follows it. -CB_E_CORRUPT when
 * the stub is no such file, or has no room for their headers. */
int uki_make(int stub, const struct uki_section *sections, size_t n, int to, struct cb_error *err);
