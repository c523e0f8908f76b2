/* bzimage: what the head of a compressed x86 kernel says (Linux, Documentation/x86/boot.rst). */
#pragma once

#include <stdbool.h>
#include <stddef.h>

enum {
    KERNEL_RELEASE_MAX = 64,
    BZIMAGE_HEAD = 0x10280, /* bytes from the start on, in which the release is to be found */
};

/* A release becomes a folder's name and a part of guest paths: plain characters only. */
bool kernel_release_ok(const char *s);

/* The release ("6.1.0-42-amd64") in @text, KERNEL_RELEASE_MAX + 1 bytes, from the first @n bytes of
 * a file (BZIMAGE_HEAD, or all that there are). False: it is no bzImage, or its release is not one.
 */
bool bzimage_release(const void *head, size_t n, char *text);
