/* ext4_super: the beginning and the end of an image: its first two folders, and when all is written
 * the superblocks, group descriptors, bitmaps, journal and the inode that keeps room for growth. */
#pragma once

#include "layers/ext4_writer.h"
#include "layers/tree.h"

#define IMAGE_FREE_BLOCKS (((uint64_t)512 << 20) / EXT4_BLOCK) /* when no size is given */

/* A fresh inode; times are the same for all four. */
void inode_init(union inode *in, uint32_t mode, uint32_t uid, uint32_t gid, int64_t sec,
                uint32_t nsec);
void inode_set_owner(union inode *in, uint32_t uid, uint32_t gid);
/* What 34 bits cannot hold (before 1901, after 2446) becomes the nearest, as in the kernel. */
void inode_set_times(union inode *in, int64_t sec, uint32_t nsec);

/* The root folder and lost+found in it, of inodes INO_ROOT and INO_LOST_FOUND. */
int image_begin(struct writer *w, struct tree *t, struct cb_error *err);
/* Writes every folder that changed. */
int image_write_dirs(struct writer *w, struct tree *t, struct cb_error *err);
/* The blocks that the file system will have: @size_bytes, or when it is 0 the smallest that leaves
 * IMAGE_FREE_BLOCKS free. -CB_E_LIMIT with the numbers when it does not fit. */
int image_size(const struct writer *w, uint64_t size_bytes, uint64_t *blocks, struct cb_error *err);
/* Writes the rest and makes the file @length bytes (0: as long as the file system). The file stays.
 */
int image_finish(struct writer *w, uint64_t blocks, uint64_t length, const uint8_t uuid[16],
                 const char *label, struct cb_error *err);
