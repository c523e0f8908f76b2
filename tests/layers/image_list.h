/* image_list: what is in an ext4 image, a line an entry, read by libext2fs alone: nothing of the
 * code under test looks at its own work, and no mount is needed.
 *
 *   PATH TAB key=value TAB ...     the root is "."; bytes outside '!'..'~', '\' and '=' are \xNN
 *
 * keys: type (file dir link char block fifo), mode (octal), uid, gid, mtime (SECONDS.NANOSECONDS),
 * nlink, ino, size and sha256 of files, blocks (of 4 KiB) of files, target of links, dev
 * (MAJOR:MINOR), xattr:NAME (hex). For files above LIST_PLAIN_MAX bytes "holes" is there instead of
 * sha256: SHA-256 over the number (64 bits, little-endian) and the bytes of every block of 4 KiB
 * that is not all zero. */
#pragma once

#include "support/error.h"

#include <stdint.h>
#include <stdio.h>

#define LIST_PLAIN_MAX ((uint64_t)64 << 20)

int image_list(const char *image, FILE *out, struct cb_error *err);
