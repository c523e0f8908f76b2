/* gzip: compresses a stream by ISA-L, several times as fast as zlib at about its level 1 to 3. The
 * header holds neither a name nor a time. Which bytes come out depends on what instructions the
 * processor has, not on when or where. */
#pragma once

#include "support/error.h"

#include <stddef.h>

struct gzip; /* opaque */
typedef int gzip_sink(void *arg, const void *p, size_t n, struct cb_error *err);
/* @sink gets the compressed bytes; its errors are handed on. Owned: gzip_free(). */
struct gzip *gzip_new(gzip_sink *sink, void *arg);
int gzip_add(struct gzip *z, const void *p, size_t n, struct cb_error *err);
/* The end of the stream. */
int gzip_finish(struct gzip *z, struct cb_error *err);
void gzip_free(struct gzip *z); /* NULL is fine */
