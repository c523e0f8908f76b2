/* modinfo: what a kernel module says of itself. Private to builder/. */
#pragma once

#include "support/buf.h"
#include "support/error.h"

#include <stddef.h>

/* Reads "depends=" from the .modinfo section of the ELF64 object at @p and adds the names to
 * @depends, with '-' as '_'. -CB_E_CORRUPT when it is no such object. */
int modinfo_depends(const void *p, size_t n, struct cb_strv *depends, struct cb_error *err);
