/* pattern: names with wildcards, as Docker has them in .dockerignore files and in COPY.
 *
 * `*` is any run of characters within a component, `?` one character, `[a-z]` and `[^a-z]` one of
 * some, `\` takes the next character as it is. With PATTERN_DEEP, `**` is any number of components
 * (also none) and, at the end, all that is left. A slash is matched by itself and by `**` alone.
 * Matching takes time proportional to the product of both lengths, whatever they hold. */
#pragma once

#include "support/error.h"

#include <stdbool.h>
#include <stddef.h>

enum { PATTERN_MAX = 4096 }; /* bytes of a pattern, and of a name that is matched */
enum pattern_flags { PATTERN_DEEP = 1u << 0 };

struct pattern; /* opaque */
/* *@out is owned. -CB_E_CONFIG where it is not a pattern: a bracket that is not closed... */
int pattern_compile(const char *text, unsigned flags, struct pattern **out, struct cb_error *err);
void pattern_free(struct pattern *p); /* NULL is fine */
/* The whole of @name, which is never a match when it is longer than PATTERN_MAX. */
bool pattern_match(const struct pattern *p, const char *name);
/* Does @text have a wildcard in it? */
bool pattern_is_wild(const char *text);
