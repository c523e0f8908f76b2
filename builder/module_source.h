/* module_source: where an initramfs takes a kernel's modules from: a folder lib/modules/RELEASE, of
 * this machine or of a finished image, which is read without mounting it. */
#pragma once

#include "support/error.h"

struct ext4_image;

struct module_source {
    const char *dir;       /* borrowed */
    struct ext4_image *im; /* borrowed; NULL: a folder of this machine */
};

/* Calls @add for each file below the folder, in any order, with a path for module_source_open()
 * (borrowed), until one of the calls fails. */
typedef int module_source_add(void *to, const char *path, struct cb_error *err);
int module_source_each(const struct module_source *s, module_source_add *add, void *to,
                       struct cb_error *err);

/* A new fd at the start of the file, owned by the caller. One of an image is a copy in memory, of
 * at most @max bytes. -CB_E_NOTFOUND, -CB_E_LIMIT. */
int module_source_open(const struct module_source *s, const char *path, size_t max,
                       struct cb_error *err);
