/* ext4_writer: an ext4 image that grows from front to back in a sparse file.
 *
 * Blocks and inodes are given out lowest first and never twice within a layer; what a layer frees
 * becomes a hole and stays free. Inodes are written in place at once, so that memory holds nothing
 * a file but one bit a block and one an inode. Inodes, extents and attributes are stored by
 * libext2fs; image_finish() decides the size and has it add superblocks, descriptors, bitmaps and
 * journal. Little-endian machines only, as the on-disk structures are. */
#pragma once

#include "layers/ext4_layout.h"
#include "support/error.h"

#include <ext2fs/ext2_fs.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* An inode as it lies on disk: the fields of libext2fs and the room for attributes behind them. */
union inode {
    struct ext2_inode_large i;
    unsigned char raw[EXT4_INODE];
};
#define INODE_EXTRA 32u /* i_extra_isize: all fields of struct ext2_inode_large */
#define INODE_ATTR_OFFSET (EXT2_GOOD_OLD_INODE_SIZE + INODE_EXTRA)

/* The seed of every metadata checksum (metadata_csum_seed) and of the folders' hash, the same in
 * all images. */
#define IMAGE_CSUM_SEED 0x5c1bca11u
extern const uint32_t image_hash_seed[4];

struct extent {
    uint32_t logical;
    uint32_t len;
    uint64_t start;
};

/* The blocks of one file while it is written. */
struct extents {
    struct extent *v; /* owned */
    size_t n, cap;
    uint64_t blocks; /* sum of the lengths */
};
void extents_release(struct extents *x);

struct writer; /* opaque */
/* Makes @path, which must not exist. @max_blocks: more is refused as soon as it is needed. *@out is
 * owned; until writer_finish() succeeded, writer_free() removes the file. */
int writer_open(const char *path, uint64_t max_blocks, struct writer **out, struct cb_error *err);
/* The same, and the file starts as a copy of @from (reflink, or one that keeps holes). ext4_load()
 * is next: until then nothing is known to be in use. */
int writer_clone(const char *path, int from, uint64_t max_blocks, struct writer **out,
                 struct cb_error *err);
void writer_free(struct writer *w);
int writer_fd(const struct writer *w); /* borrowed */

/* A number for a new inode, in rising order. -CB_E_LIMIT when the file system is to have no more.
 */
int writer_new_inode(struct writer *w, uint32_t *ino, struct cb_error *err);
int writer_get_inode(struct writer *w, uint32_t ino, union inode *out, struct cb_error *err);
int writer_put_inode(struct writer *w, uint32_t ino, union inode *in, struct cb_error *err);
/* Frees the inode with all its blocks. */
int writer_free_inode(struct writer *w, uint32_t ino, struct cb_error *err);

/* Bytes of a file: @at rises from call to call; what is left out is a hole. */
int writer_data(struct writer *w, struct extents *x, uint64_t at, const void *p, size_t n,
                struct cb_error *err);
/* @count blocks for a file's next logical blocks @logical...: adds them to @x. */
int writer_alloc(struct writer *w, struct extents *x, uint32_t logical, uint32_t count,
                 struct cb_error *err);
/* Writes whole blocks to where @x has logical block @logical. */
int writer_blocks(struct writer *w, const struct extents *x, uint32_t logical, const void *p,
                  size_t n, struct cb_error *err);
/* The same for blocks that lie at block @from of @fd: copies them (reflink, or in the kernel; holes
 * stay holes), at the latest in writer_flush_copies(), before which @fd stays open. */
int writer_copy(struct writer *w, struct extents *x, uint32_t logical, uint32_t count, int fd,
                uint64_t from, struct cb_error *err);
/* The same for bytes that nobody has: they must be freed again before the end. */
int writer_owe(struct writer *w, struct extents *x, uint32_t logical, uint32_t count,
               struct cb_error *err);
bool writer_owes(const struct writer *w); /* some are still in use */
int writer_flush_copies(struct writer *w, struct cb_error *err);
int writer_read_block(struct writer *w, uint64_t block, void *p, struct cb_error *err);
int writer_free_blocks(struct writer *w, uint64_t start, uint64_t count, struct cb_error *err);
/* Stores the extents in the inode (a tree of blocks when there are more than four). */
int writer_set_extents(struct writer *w, uint32_t ino, union inode *in, const struct extents *x,
                       struct cb_error *err);
/* Frees the data blocks of an inode and the blocks of its tree, and makes both empty. */
int writer_free_extents(struct writer *w, uint32_t ino, union inode *in, struct cb_error *err);
/* The data blocks of an inode; adds to @x and, when @tree is not NULL, the tree's own to @tree. */
int writer_get_extents(struct writer *w, uint32_t ino, const union inode *in, struct extents *x,
                       struct extents *tree, struct cb_error *err);

/* The group descriptors count folders: tells that @ino is one (@change 1) or no more (-1). */
void writer_count_dirs(struct writer *w, uint32_t ino, int change);
uint32_t writer_dirs_in_group(const struct writer *w, uint64_t group);

/* Where the file of writer_clone() may differ from the one it was made from, in pieces of
 * WRITER_PIECE bytes: the next such run at or after byte @at; its length, or 0 when there is none.
 */
#define WRITER_PIECE ((uint64_t)64 << 10)
uint64_t writer_dirty(const struct writer *w, uint64_t at, uint64_t *start);

uint64_t inode_size(const union inode *in);
void inode_set_size(union inode *in, uint64_t size);

/* The first block and inode that were never given out. */
uint64_t writer_next_block(const struct writer *w);
uint32_t writer_next_inode(const struct writer *w);
/* The end of a layer: what the next one gets follows the last block and inode in use. */
void writer_end_layer(struct writer *w);
/* True when something failed because it did not fit. */
bool writer_is_full(const struct writer *w);
