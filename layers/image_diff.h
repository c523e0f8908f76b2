/* image_diff: what differs between two images, name by name, in the order of their names.
 *
 * Both are walked at once; memory holds no list of names. Two files of one size are equal when
 * their bytes are: they are read, but for what lies at the same places of both images in chunks
 * that are the same, which is so for most of what two images share (docs/image.md, "Layout").
 * Times are not compared. */
#pragma once

#include "layers/chunk_map.h"
#include "layers/ext4_read.h"

struct diff_side {
    const char *path;               /* of the image */
    const struct chunk_map *chunks; /* what it consists of, or NULL: files are read */
};

enum diff_kind { DIFF_ADDED, DIFF_REMOVED, DIFF_CHANGED };
enum diff_what { /* of a changed one; a new type says all */
                 DIFF_TYPE = 1u << 0,
                 DIFF_CONTENT = 1u << 1, /* bytes of a file, target of a link, number of a device */
                 DIFF_MODE = 1u << 2,
                 DIFF_OWNER = 1u << 3,
                 DIFF_LINK = 1u << 4, /* it is another name of another file, or none any more */
                 DIFF_XATTR = 1u << 5,
                 DIFF_WHAT_N = 6,
};
struct diff_entry {
    enum diff_kind kind;
    unsigned what;
    const struct ext4_entry *a, *b; /* before and after; NULL when it is not there */
};
/* Calls @on for each; what it returns below 0 ends the comparison. @bytes_read (may be NULL): how
 * many of each side were compared. */
int image_diff(const struct diff_side *a, const struct diff_side *b,
               int (*on)(void *arg, const struct diff_entry *e, struct cb_error *err), void *arg,
               uint64_t *bytes_read, struct cb_error *err);
