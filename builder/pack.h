/* pack: files on their way into a layer: entries of builder/frames.h (ENTRY, then its DATA), one
 * after the other, as the agent takes them.
 *
 * The digest of a pack is of what it puts into a layer: kinds, names, permission bits, targets of
 * links, content. Times take no part: they travel along, for tools that compare them, but two
 * copies of one tree give one digest. A pack without a file is for its digest alone. Private to
 * builder/. */
#pragma once

#include "builder/frames.h"
#include "support/error.h"
#include "support/hash.h"

#include <stdint.h>

enum { PACK_ENTRIES_MAX = 1000000 };
#define PACK_BYTES_MAX (UINT64_C(64) << 30) /* as much as the builder's scratch disk holds */

struct pack_sum {
    struct cb_digest digest;
    uint64_t entries, bytes; /* bytes: of the files' content */
};

struct pack; /* opaque */
/* @fd: written from its position on, borrowed; -1: nothing is kept. */
struct pack *pack_new(int fd);
void pack_free(struct pack *p); /* NULL is fine */
/* @e: its path and target are NUL-terminated too. -CB_E_CONFIG where it is none that can travel (a
 * name that is too long), -CB_E_LIMIT. The content of a file follows by pack_data(). */
int pack_entry(struct pack *p, const struct frame_entry *e, struct cb_error *err);
int pack_data(struct pack *p, const void *data, size_t len, struct cb_error *err);
/* The last file must be whole. Writes what is still in memory. */
int pack_end(struct pack *p, struct pack_sum *out, struct cb_error *err);

/* @path for a message: what is not UTF-8 and control characters are '?'. Owned. */
char *pack_shown(const char *path);
