/* ext4_read_private: what ext4_read.c and ext4_walk.c share. */
#pragma once

#include "layers/ext4_read.h"
#include "layers/ext4_writer.h"

#include <ext2fs/ext2fs.h>

#define EXT4_EXTENTS_MAX (1u << 22) /* of one file: 96 MiB of them in memory */

/* What an entry points to. */
struct ext4_details {
    char target[EXT4_BLOCK];
    struct ext4_xattr *xattrs;
    size_t n_xattrs, cap_xattrs;
};
void ext4_details_release(struct ext4_details *d);

struct ext4_image {
    ext2_filsys fs;
    int fd;
    uint64_t blocks;
    struct ext4_details details; /* of the last lookup */
    char *found;                 /* its path */
};

/* Raises CB_E_CORRUPT: what is wrong at @path; @code is libext2fs' or 0. */
int ext4_damaged(const char *path, const char *what, errcode_t code, struct cb_error *err);
/* @in has room for EXT4_INODE bytes. */
int ext4_read_inode(struct ext4_image *im, const char *path, ext2_ino_t ino,
                    struct ext2_inode_large *in, struct cb_error *err);
/* Fills *@out, which borrows @path and @d. */
int ext4_read_entry(struct ext4_image *im, const char *path, ext2_ino_t ino, struct ext4_entry *out,
                    struct ext4_details *d, struct cb_error *err);
int ext4_file_open_inode(struct ext4_image *im, const char *path, ext2_ino_t ino,
                         struct ext2_inode_large *in, struct ext4_file **out, struct cb_error *err);
