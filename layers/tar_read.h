/* tar_read: the entries of one uncompressed tar stream: V7, ustar, PAX, GNU's and star's formats.
 *
 * A layer must be the same to every reader of it. Where formats leave room the rules are those of
 * Go's archive/tar, by which Docker, containerd and umoci read; what is malformed, or what readers
 * are known to take for different things, is an error and never a guess. Names are bytes. */
#pragma once

#include "support/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where the bytes come from: 1 and a piece (valid until the next call), 0 at the end, or an error.
 */
struct tar_source {
    int (*next)(void *arg, const void **data, size_t *len, struct cb_error *err);
    void *arg;
};

enum tar_kind {
    TAR_FILE,
    TAR_DIR,
    TAR_SYMLINK,
    TAR_HARDLINK,
    TAR_CHAR,
    TAR_BLOCK,
    TAR_FIFO,
};

struct tar_entry {
    enum tar_kind kind;
    const char *path; /* as written; borrowed until the next entry, as all below */
    const char *link; /* target of a link, else NULL */
    uint32_t mode;    /* 07777 */
    uint32_t uid, gid;
    int64_t mtime;
    uint32_t mtime_ns;
    uint32_t major, minor;
    uint64_t size;
};

struct tar_reader; /* opaque */
/* @source is borrowed; nothing is read yet. *@out is owned. */
int tar_reader_open(const struct tar_source *source, struct tar_reader **out, struct cb_error *err);
void tar_reader_close(struct tar_reader *r); /* NULL is fine */
/* 1 and the next entry, 0 at the end of the archive: an end mark or the end of the bytes. What
 * follows an end mark is not read. On failure e->path is the entry's name or NULL. */
int tar_reader_next(struct tar_reader *r, struct tar_entry *e, struct cb_error *err);
/* The entry's data: 1 and a piece for byte *@at on, 0 at its end. Pieces rise and do not overlap;
 * what lies between them is a hole of a sparse file. */
int tar_reader_data(struct tar_reader *r, const void **data, size_t *len, uint64_t *at,
                    struct cb_error *err);
/* The entry's extended attributes one by one, the last of one name counts; false at the end. */
bool tar_reader_xattr(struct tar_reader *r, const char **name, const void **value, size_t *len);
/* After the end: true when it was an end mark, and how many bytes of the tar it ends at. */
bool tar_reader_marked(const struct tar_reader *r, uint64_t *end);
