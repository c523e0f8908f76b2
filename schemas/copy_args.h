/* copy_args: what the arguments of a command of type copy say, as in a Dockerfile's COPY:
 * [--chown=USER[:GROUP]] [--chmod=MODE] SOURCE... DESTINATION */
#pragma once

#include "support/buf.h"

#include <stdbool.h>
#include <stddef.h>

struct copy_args {
    const char *chown; /* NULL: whoever runs the layer's commands */
    int chmod;         /* -1: as the files have it */
    const char *const *sources;
    size_t n_sources;
    const char *to; /* absolute */
};

/* NULL and *@out, which borrows from @args; or what is wrong with them: a whole phrase of ours. */
const char *copy_args_parse(const struct cb_strv *args, struct copy_args *out);
/* Relative and without "..": true. */
bool inner_path_valid(const char *text);
