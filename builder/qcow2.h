/* qcow2: an empty overlay for a read-only disk, written by us: without qemu-img, and without the
 * base's name in it (whoever opens the overlay names the base). Private to builder/. */
#pragma once

#include "support/error.h"

#include <stdint.h>

#define QCOW2_SIZE_MAX (4ull << 40)
/* Makes @path, a qcow2 (version 3) of @size bytes in which nothing is allocated. */
int qcow2_create(const char *path, uint64_t size, struct cb_error *err);
