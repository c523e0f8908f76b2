/* vmlinux: the uncompressed kernel (an ELF file) inside a bzImage, which Firecracker boots. */
#pragma once

#include "support/error.h"

#define VMLINUX_MAX (512u << 20) /* bytes, uncompressed */

/* Reads the bzImage @from from its beginning and writes the kernel to @to. -CB_E_CORRUPT when it is
 * none, or holds something else. */
int vmlinux_extract(int from, int to, struct cb_error *err);
