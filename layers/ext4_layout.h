/* ext4_layout: where things lie in an image. Every place depends on its group's number and on
 * nothing else, so that images that share layers share blocks whatever their size.
 *
 * 4 KiB blocks, groups of 32768, 16 groups a flex group. The bitmaps and inode tables of a flex
 * group lie at its start; superblock copies (sparse_super) have room for GDT_BLOCKS descriptor
 * blocks behind them, used or reserved for growth; the journal follows the first flex group's
 * tables. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum {
    EXT4_BLOCK = 4096,
    EXT4_INODE = 256,
    GROUP_BLOCKS = 32768,
    GROUP_INODES = 16384,
    FLEX_GROUPS = 16,
    FLEX_LOG = 4,
    TABLE_BLOCKS = GROUP_INODES / (EXT4_BLOCK / EXT4_INODE),
    DESC_SIZE = 64,
    DESCS_PER_BLOCK = EXT4_BLOCK / DESC_SIZE,
    GDT_BLOCKS = 512, /* 32768 groups: the layout ends at 4 TiB */
    JOURNAL_BLOCKS = 8192,
    INO_ROOT = 2,
    INO_RESIZE = 7,
    INO_JOURNAL = 8,
    INO_LOST_FOUND = 11,
    INO_FIRST = 12,
};

/* One descriptor block must stay in reserve: resize_inode without a reserved block is no valid file
 * system. */
#define LAYOUT_GROUPS_MAX ((uint64_t)(GDT_BLOCKS - 1) * DESCS_PER_BLOCK)

bool layout_has_super(uint64_t group);
uint64_t layout_block_bitmap(uint64_t group);
uint64_t layout_inode_bitmap(uint64_t group);
uint64_t layout_inode_table(uint64_t group);
uint64_t layout_resize_block(void); /* the resize inode's double-indirect block */
uint64_t layout_journal(void);      /* its first block */

static inline uint64_t layout_groups(uint64_t blocks)
{
    return (blocks + GROUP_BLOCKS - 1) / GROUP_BLOCKS;
}

static inline uint64_t layout_inode_offset(uint32_t ino)
{
    uint32_t i = ino - 1;
    return layout_inode_table(i / GROUP_INODES) * EXT4_BLOCK +
           (uint64_t)(i % GROUP_INODES) * EXT4_INODE;
}

/* The first block at or after @block that is for data, and how many follow it in a row (*@len). */
uint64_t layout_data_from(uint64_t block, uint64_t *len);
/* The block behind the last of the @count first data blocks at or after @block. */
uint64_t layout_data_end(uint64_t block, uint64_t count);
/* The first data block of an image. */
uint64_t layout_data_start(void);

/* The part [*@first, *@first + return value) of a group that holds metadata whatever the size: its
 * superblock copy with descriptors. 0 when it has none. */
uint32_t layout_super_blocks(uint64_t group);

/* How many blocks of a file system of @blocks are metadata (journal and resize block included). */
uint64_t layout_meta_blocks(uint64_t blocks);

/* The largest size at most @blocks (0: none) whose last group can hold what it must, or the
 * smallest one at least @blocks. */
uint64_t layout_size_down(uint64_t blocks);
uint64_t layout_size_up(uint64_t blocks);
