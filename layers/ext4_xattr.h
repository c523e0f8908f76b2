/* ext4_xattr: extended attributes of one inode, stored by libext2fs: in the inode behind its fields
 * when they fit, else in one block. */
#pragma once

#include "layers/ext4_writer.h"

struct ext2_xattr_handle;

/* The new attributes of one inode, while they come. */
struct xattrs {
    struct writer *w;
    uint32_t ino;
    union inode *in;                  /* the caller's, in its last state */
    struct ext2_xattr_handle *handle; /* owned; NULL until there is one */
};

/* Drops what the inode has; it must be put afterwards. */
int xattrs_clear(struct writer *w, uint32_t ino, union inode *in, struct cb_error *err);
/* The same, and new ones can follow. Whatever it returns, xattrs_end() is next. */
int xattrs_begin(struct xattrs *x, struct writer *w, uint32_t ino, union inode *in,
                 struct cb_error *err);
/* Adds one by its full name ("user.note"), replacing an equal name. Those that belong to a host,
 * not to an image (trusted.*, security labels, overlay's), and those that ext4 cannot have on the
 * inode's type are left out. -CB_E_CORRUPT for a malformed ACL, -CB_E_LIMIT when they do not fit.
 */
int xattrs_add(struct xattrs *x, const char *name, const void *value, size_t len,
               struct cb_error *err);
/* Gives an inode that was put one more attribute, whoever it belongs to; what it has stays. For
 * marks of our own. */
int xattr_mark(struct writer *w, uint32_t ino, const char *name, const char *value,
               struct cb_error *err);
/* The inode has them; it must be put again when it changes. @rc: of what came before. */
int xattrs_end(struct xattrs *x, int rc, struct cb_error *err);
