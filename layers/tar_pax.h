/* tar_pax: the numbers of tar headers and the records of PAX extended headers, strictly: what
 * is not as POSIX has it is an error and never a guess, for another reader might guess otherwise.
 */
#pragma once

#include "support/buf.h"
#include "support/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The pieces of a sparse file that are stored, in rising order; the rest is holes. */
struct tar_piece {
    uint64_t at, len;
};
struct tar_map {
    struct tar_piece *v; /* owned */
    size_t n, cap;
};

struct tar_xattr {
    const char *name;
    const void *value;
    size_t len;
};

/* The records about one entry. Texts are borrowed from @body; NULL: not there, or empty, which
 * takes an earlier one back. */
struct tar_pax {
    struct cb_buf body;
    const char *path, *link, *size, *uid, *gid, *mtime;
    const char *major, *minor, *name, *realsize, *map; /* GNU.sparse.* */
    bool sparse;                                       /* there was one of them */
    struct tar_map pieces;                             /* format 0.0, which repeats two keys */
    struct tar_xattr *xattrs;                          /* owned; in the order of the records */
    size_t n_xattrs, cap_xattrs;
};

void tar_pax_init(struct tar_pax *p, size_t max_body);
void tar_pax_release(struct tar_pax *p);
void tar_pax_clear(struct tar_pax *p);
/* Reads the records in p->body, which it changes. */
int tar_pax_parse(struct tar_pax *p, struct cb_error *err);

/* -CB_E_LIMIT when the map has too many pieces. */
int tar_map_add(struct tar_map *m, uint64_t at, uint64_t len, struct cb_error *err);
/* The text of formats 0.1: "OFFSET,BYTES,OFFSET,BYTES...". */
int tar_map_parse(struct tar_map *m, const char *text, struct cb_error *err);
/* Pieces rise, do not overlap, end before @size and take exactly @stored bytes. */
int tar_map_check(const struct tar_map *m, uint64_t size, uint64_t stored, struct cb_error *err);

/* A field of a header: octal, or base-256 where its first bit is set. False: it is no number. */
bool tar_field(const unsigned char *field, size_t n, int64_t *out);
/* Decimal digits and nothing else. */
bool tar_decimal(const char *text, uint64_t *out);
/* "-1.25" is -2 s and 750,000,000 ns. What is finer than a nanosecond is cut off. */
bool tar_time(const char *text, int64_t *sec, uint32_t *ns);
