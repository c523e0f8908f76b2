/* deb: takes the kernel and its modules out of a .deb: ar, in it data.tar.xz (or .gz, .zst).
 * Nothing is installed and no script of the package runs. Private to builder/. */
#pragma once

#include "support/error.h"

/* Reads the package in @fd and writes its boot/vmlinuz-RELEASE to @dir/vmlinuz and what is under
 * lib/modules/RELEASE/ to @dir/lib/modules/RELEASE/. @dir exists and is empty. */
int deb_unpack_kernel(int fd, const char *release, const char *dir, struct cb_error *err);

/* Feeds the decompressed content of a single compressed file (xz, gzip, zstd or none) to @sink. */
int deb_decompress(int fd, const char *name,
                   int (*sink)(void *arg, const char *p, size_t n, struct cb_error *err), void *arg,
                   struct cb_error *err);
