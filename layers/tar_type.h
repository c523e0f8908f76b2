/* tar_type: the type of the entry that libarchive just read, as its header says. libarchive itself
 * makes a regular file of every type that it does not know; a layer with one is refused here.
 *
 * The header is looked up in the bytes that libarchive was fed: the piece at hand and the end of
 * what came before it. */
#pragma once

#include "support/error.h"

#include <stddef.h>
#include <stdint.h>

struct archive;

struct tar_seen {
    const unsigned char *piece; /* borrowed; the last that libarchive got */
    size_t len;
    uint64_t at;                /* its place in the tar */
    unsigned char before[1024]; /* the end of what came before it */
    size_t n_before;
};

/* Before the piece at hand goes away; then the next one is given to tar_seen_piece(). */
void tar_seen_leave(struct tar_seen *s);
void tar_seen_piece(struct tar_seen *s, const void *piece, size_t len);

/* After archive_read_next_header(): -CB_E_CORRUPT when a layer cannot have the entry's type. */
int tar_type_check(const struct tar_seen *s, struct archive *a, struct cb_error *err);
