/* ext4_read: looks into a finished image (one that flatten() made) without mounting it: every name
 * in a stable order, what each stands for, and the bytes of files. Through libext2fs, read-only.
 *
 * An image may be damaged: sizes, counts, depths and block numbers are checked before they are
 * used, checksums are compared, and whatever is wrong is -CB_E_CORRUPT with the name it was found
 * at. A file system that is not in the geometry of ext4_layout is refused.
 * An image and what was opened from it belong to one thread at a time. */
#pragma once

#include "support/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

struct ext4_image; /* opaque */

enum {
    EXT4_READ_NO_CHECKSUMS = 1u << 0, /* metadata is taken as it is: for tests of damaged images */
};
/* Opens the image in @path. *@out is owned. -CB_E_NOTFOUND when there is no such file. */
int ext4_image_open(const char *path, unsigned flags, struct ext4_image **out,
                    struct cb_error *err);
void ext4_image_close(struct ext4_image *im); /* NULL is fine; after what was opened from it */

struct ext4_xattr {
    char *name; /* "user.x", "security.capability", "system.posix_acl_access" */
    char *value;
    size_t len;
};

/* One name. All pointers are borrowed, until the next call for the walk or image it came from. */
struct ext4_entry {
    const char *path; /* from the root, without a slash in front; the root itself is "." */
    const char *name; /* the last component of @path */
    uint32_t mode;    /* type and permissions, as st_mode: folder, file, link, device or pipe */
    uint32_t uid, gid;
    uint32_t ino, nlink;
    uint64_t size;      /* of a file, bytes; 0 for others */
    uint64_t allocated; /* blocks that it takes, those of its attributes and extents too; bytes */
    struct timespec mtime;
    const char *target;    /* of a symbolic link, else NULL */
    uint32_t major, minor; /* of a device */
    /* Another name of the same inode that the walk came by before, or NULL. Only for walks and for
     * what is no folder: the content belongs to that one. */
    const char *link_to;
    const struct ext4_xattr *xattrs; /* sorted by name */
    size_t n_xattrs;
};

enum {
    /* lost+found is a part of the file system, not of what was put there: it is left out when it is
     * empty. */
    EXT4_WALK_NO_EMPTY_LOST_FOUND = 1u << 0,
};
/* A walk over all names: a folder before what is in it, names in the order of their bytes (of
 * strcmp). Memory holds the names of the folders on the way to the current one, and one name of
 * each file with several. */
struct ext4_walk; /* opaque */
int ext4_walk_open(struct ext4_image *im, unsigned flags, struct ext4_walk **out,
                   struct cb_error *err);
/* 1 and the next name (the root first), 0 at the end, or an error, after which it is over. */
int ext4_walk_next(struct ext4_walk *w, struct ext4_entry *out, struct cb_error *err);
/* Leaves out what is in the folder that came last. */
void ext4_walk_skip(struct ext4_walk *w);
void ext4_walk_close(struct ext4_walk *w); /* NULL is fine */
/* How the paths of two walks compare: <0 when @a comes first. "a/b" comes before "a-b". */
int ext4_path_cmp(const char *a, const char *b);

/* What @path (with or without a slash in front) is, links in folders of it followed as a process
 * with this root would: "/" is the image's, ".." ends there. The last component is not followed
 * unless @follow. -CB_E_NOTFOUND; a circle of links is -CB_E_CORRUPT. out->path is where it was
 * found. Borrowed until the next lookup. */
int ext4_image_lookup(struct ext4_image *im, const char *path, bool follow, struct ext4_entry *out,
                      struct cb_error *err);
/* The same for what need not be there, links followed: 1 when it is, 0 when not (or a circle of
 * links leads nowhere). */
int ext4_image_find(struct ext4_image *im, const char *path, struct ext4_entry *out,
                    struct cb_error *err);

/* The bytes of a file. */
struct ext4_run {
    uint64_t at, len;
};
struct ext4_file; /* opaque */
/* @ino is that of an entry that is a regular file. *@out is owned. */
int ext4_file_open(struct ext4_image *im, uint32_t ino, struct ext4_file **out,
                   struct cb_error *err);
uint64_t ext4_file_size(const struct ext4_file *f);
/* The parts that are stored, in rising order, none touching the next; all else is zero. Borrowed.
 */
const struct ext4_run *ext4_file_runs(const struct ext4_file *f, size_t *n);
/* Where the @i-th stored piece (in the order of the file) lies in the image; false behind the last.
 */
struct ext4_place {
    uint64_t at, len; /* in the file, bytes */
    uint64_t position;
};
bool ext4_file_place(const struct ext4_file *f, size_t i, struct ext4_place *out);
/* Up to @n bytes from @at on, holes as zeros. Returns their number, less than @n only at the end.
 */
int64_t ext4_file_pread(struct ext4_file *f, void *p, size_t n, uint64_t at, struct cb_error *err);
void ext4_file_close(struct ext4_file *f); /* NULL is fine */
