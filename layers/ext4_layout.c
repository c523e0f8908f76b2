#include "layers/ext4_layout.h"

enum {
    HEAD_BLOCKS = FLEX_GROUPS * (2 + TABLE_BLOCKS), /* bitmaps and tables of a flex group */
    SUPER_BLOCKS = 1 + GDT_BLOCKS,
    /* A last group needs room for its own share at the start of a flex group, and libext2fs drops
     * one that has fewer than 50 blocks beyond that. */
    LAST_GROUP_MIN = SUPER_BLOCKS + 2 * FLEX_GROUPS + TABLE_BLOCKS + 64,
};

static bool power_of(uint64_t n, uint64_t base)
{
    while (n > 1 && n % base == 0)
        n /= base;
    return n == 1;
}

bool layout_has_super(uint64_t group)
{
    return group <= 1 || power_of(group, 3) || power_of(group, 5) || power_of(group, 7);
}

uint32_t layout_super_blocks(uint64_t group)
{
    return layout_has_super(group) ? SUPER_BLOCKS : 0;
}

/* Where the tables of a flex group start. Powers of 3, 5 and 7 are odd, so that only the first flex
 * group starts with a superblock. */
static uint64_t head(uint64_t group)
{
    uint64_t first = group - group % FLEX_GROUPS;
    return first * GROUP_BLOCKS + (first == 0 ? SUPER_BLOCKS : 0);
}

uint64_t layout_block_bitmap(uint64_t group)
{
    return head(group) + group % FLEX_GROUPS;
}

uint64_t layout_inode_bitmap(uint64_t group)
{
    return head(group) + FLEX_GROUPS + group % FLEX_GROUPS;
}

uint64_t layout_inode_table(uint64_t group)
{
    return head(group) + 2 * FLEX_GROUPS + group % FLEX_GROUPS * TABLE_BLOCKS;
}

uint64_t layout_resize_block(void)
{
    return SUPER_BLOCKS + HEAD_BLOCKS;
}

uint64_t layout_journal(void)
{
    return layout_resize_block() + 1;
}

uint64_t layout_data_start(void)
{
    return layout_journal() + JOURNAL_BLOCKS;
}

/* How many blocks at a group's start are not for data. */
static uint32_t group_head(uint64_t group)
{
    if (group == 0)
        return (uint32_t)layout_data_start();
    if (group % FLEX_GROUPS == 0)
        return HEAD_BLOCKS;
    return layout_super_blocks(group);
}

uint64_t layout_data_from(uint64_t block, uint64_t *len)
{
    uint64_t group = block / GROUP_BLOCKS;
    uint64_t first = group * GROUP_BLOCKS + group_head(group);
    if (block < first)
        block = first;
    do
        group++;
    while (group_head(group) == 0);
    *len = group * GROUP_BLOCKS - block;
    return block;
}

uint64_t layout_data_end(uint64_t block, uint64_t count)
{
    for (uint64_t n; count > 0; count -= n) {
        block = layout_data_from(block, &n);
        n = n < count ? n : count;
        block += n;
    }
    return block;
}

uint64_t layout_meta_blocks(uint64_t blocks)
{
    uint64_t groups = layout_groups(blocks), n = groups * (2 + TABLE_BLOCKS) + 1 + JOURNAL_BLOCKS;
    for (uint64_t g = 0; g < groups; g++)
        n += layout_super_blocks(g);
    return n;
}

uint64_t layout_size_down(uint64_t blocks)
{
    uint64_t rest = blocks % GROUP_BLOCKS;
    if (blocks / GROUP_BLOCKS == 0) /* the first group holds tables of 16 and the journal */
        return blocks >= layout_data_start() + 64 ? blocks : 0;
    return rest == 0 || rest >= LAST_GROUP_MIN ? blocks : blocks - rest;
}

uint64_t layout_size_up(uint64_t blocks)
{
    uint64_t rest = blocks % GROUP_BLOCKS;
    if (blocks < layout_data_start() + 64)
        return layout_data_start() + 64;
    return rest == 0 || rest >= LAST_GROUP_MIN ? blocks : blocks - rest + LAST_GROUP_MIN;
}
