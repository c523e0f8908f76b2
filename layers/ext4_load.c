#include "layers/ext4_load.h"

#include "layers/ext4_fs.h"
#include "layers/ext4_private.h"
#include "support/cleanup.h"
#include "support/limits.h"
#include "support/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define DIR_BLOCKS_MAX ((uint64_t)1 << 22) /* TREE_NAMES_MAX of the longest names need fewer */

struct load {
    struct writer *w;
    struct tree *t;
    uint64_t blocks; /* of the file system */
    dgrp_t groups;
    struct bits seen; /* folders, by inode */
    node_id *todo;    /* folders whose names are still to be read; owned */
    size_t n_todo, cap_todo;
};

static int damaged(const char *what, struct cb_error *err)
{
    return cb_fail(err, CB_E_CORRUPT, "the image it starts from is damaged: %s", what);
}

/* A fuzzer sets the flag, to come past the checksums. */
static bool sums_count(const ext2_filsys fs)
{
    return !(fs->flags & EXT2_FLAG_IGNORE_CSUM_ERRORS);
}

/* libext2fs' word for what it read is about the image, not about us. */
static int lib_done(struct load *l, errcode_t code, const char *what, struct cb_error *err)
{
    if (code && l->w->error.code == CB_OK)
        return damaged(what, err);
    return fs_done(l->w, code, what, err);
}

/* ---- the superblock and what is in use ---- */

/* The fields that all our images have alike. */
static bool is_ours(ext2_filsys fs, struct ext2_super_block *s)
{
    const struct ext2_super_block *own = fs->super;
    return s->s_magic == EXT2_SUPER_MAGIC && s->s_log_block_size == own->s_log_block_size &&
           s->s_blocks_per_group == own->s_blocks_per_group &&
           s->s_inodes_per_group == own->s_inodes_per_group &&
           s->s_inode_size == own->s_inode_size && s->s_desc_size == own->s_desc_size &&
           s->s_first_ino == own->s_first_ino && s->s_first_data_block == 0 &&
           s->s_log_groups_per_flex == own->s_log_groups_per_flex &&
           s->s_feature_compat == (own->s_feature_compat | EXT3_FEATURE_COMPAT_HAS_JOURNAL) &&
           s->s_feature_incompat == own->s_feature_incompat &&
           s->s_feature_ro_compat == own->s_feature_ro_compat &&
           s->s_checksum_seed == own->s_checksum_seed &&
           s->s_checksum_type == own->s_checksum_type &&
           s->s_def_hash_version == own->s_def_hash_version && s->s_flags == own->s_flags &&
           memcmp(s->s_hash_seed, own->s_hash_seed, sizeof(s->s_hash_seed)) == 0 &&
           (ext2fs_superblock_csum_verify(fs, s) || !sums_count(fs));
}

static int load_super(struct load *l, struct cb_error *err)
{
    struct ext2_super_block s;
    int rc = writer_read(l->w, SUPERBLOCK_OFFSET, &s, sizeof(s), err);
    if (rc < 0)
        return rc;
    if (!is_ours(l->w->fs, &s))
        return damaged("no superblock of ours", err);
    struct stat st;
    if (fstat(l->w->fd, &st) < 0)
        return cb_fail_sys(err, errno, "look at the image");
    l->blocks = ext2fs_blocks_count(&s);
    l->groups = (dgrp_t)layout_groups(l->blocks);
    if (layout_size_down(l->blocks) != l->blocks || l->blocks == 0 ||
        l->blocks > LAYOUT_GROUPS_MAX * GROUP_BLOCKS ||
        (uint64_t)st.st_size / EXT4_BLOCK < l->blocks)
        return damaged("its size", err);
    return 0;
}

static int load_desc(struct load *l, dgrp_t g, struct ext4_group_desc *d, struct cb_error *err)
{
    int rc = writer_read(l->w, EXT4_BLOCK + (uint64_t)g * DESC_SIZE, d, sizeof(*d), err);
    if (rc < 0)
        return rc;
    if (((uint64_t)d->bg_block_bitmap_hi << 32 | d->bg_block_bitmap) != layout_block_bitmap(g) ||
        ((uint64_t)d->bg_inode_bitmap_hi << 32 | d->bg_inode_bitmap) != layout_inode_bitmap(g) ||
        ((uint64_t)d->bg_inode_table_hi << 32 | d->bg_inode_table) != layout_inode_table(g))
        return damaged("a group descriptor", err);
    return 0;
}

static int load_bitmap(struct load *l, uint64_t block, size_t n, uint32_t want, unsigned char *map,
                       struct cb_error *err)
{
    int rc = writer_read(l->w, block * EXT4_BLOCK, map, EXT4_BLOCK, err);
    if (rc == 0 && sums_count(l->w->fs) && ext2fs_crc32c_le(l->w->fs->csum_seed, map, n) != want)
        rc = damaged("a bitmap", err);
    return rc;
}

static bool bit(const unsigned char *map, uint64_t i)
{
    return map[i / 8] >> (i % 8) & 1;
}

static int load_blocks(struct load *l, dgrp_t g, const struct ext4_group_desc *d,
                       struct cb_error *err)
{
    unsigned char map[EXT4_BLOCK];
    uint32_t sum = d->bg_block_bitmap_csum_lo | (uint32_t)d->bg_block_bitmap_csum_hi << 16;
    uint64_t first = (uint64_t)g * GROUP_BLOCKS, end = first + GROUP_BLOCKS, n;
    if (d->bg_flags & EXT2_BG_BLOCK_UNINIT)
        return 0;
    int rc = load_bitmap(l, layout_block_bitmap(g), GROUP_BLOCKS / 8, sum, map, err);
    if (rc < 0)
        return rc;
    if (end > l->blocks)
        end = l->blocks;
    for (uint64_t b = layout_data_from(first, &n); b < end; b++) {
        if (!bit(map, b - first))
            continue;
        bits_set(&l->w->blocks, b, 1);
        l->w->data_in_use++;
        l->w->next_block = b + 1;
    }
    return 0;
}

static int load_inodes(struct load *l, dgrp_t g, const struct ext4_group_desc *d,
                       struct cb_error *err)
{
    unsigned char map[EXT4_BLOCK];
    uint32_t sum = d->bg_inode_bitmap_csum_lo | (uint32_t)d->bg_inode_bitmap_csum_hi << 16;
    if (d->bg_flags & EXT2_BG_INODE_UNINIT)
        return 0;
    int rc = load_bitmap(l, layout_inode_bitmap(g), GROUP_INODES / 8, sum, map, err);
    if (rc < 0)
        return rc;
    uint32_t first = g * GROUP_INODES + 1;
    for (uint32_t i = 0; i < GROUP_INODES; i++) {
        if (!bit(map, i) || first + i < INO_FIRST)
            continue;
        bits_set(&l->w->inodes, first + i, 1);
        l->w->inodes_in_use++;
        l->w->next_ino = first + i + 1;
    }
    return 0;
}

static int load_in_use(struct load *l, struct cb_error *err)
{
    int rc = 0;
    for (dgrp_t g = 0; rc == 0 && g < l->groups; g++) {
        struct ext4_group_desc d;
        rc = load_desc(l, g, &d, err);
        if (rc == 0)
            rc = load_blocks(l, g, &d, err);
        if (rc == 0)
            rc = load_inodes(l, g, &d, err);
    }
    return rc;
}

/* ---- names ---- */

static int add_name(struct load *l, node_id parent, const struct ext2_dir_entry *e,
                    struct cb_error *err)
{
    size_t len = (size_t)ext2fs_dirent_name_len(e);
    int type = ext2fs_dirent_file_type(e);
    if (len == 0 || memchr(e->name, '/', len) || memchr(e->name, '\0', len) ||
        tree_find(l->t, parent, e->name, len))
        return damaged("a name", err);
    if (type <= EXT2_FT_UNKNOWN || type >= EXT2_FT_MAX ||
        (e->inode != INO_LOST_FOUND && !bits_get(&l->w->inodes, e->inode)))
        return damaged("what a name stands for", err);
    node_id id = tree_add(l->t, parent, e->name, len);
    if (!id)
        return cb_fail(err, CB_E_LIMIT, "more than %u names", TREE_NAMES_MAX);
    tree_node(l->t, id)->ino = e->inode;
    tree_node(l->t, id)->type = (uint8_t)type;
    if (type != EXT2_FT_DIR)
        return 0;
    if (bits_get(&l->seen, e->inode) || !tree_make_dir(l->t, id))
        return damaged("a folder in two places, or too deep", err);
    bits_set(&l->seen, e->inode, 1);
    l->todo = cb_xgrow(l->todo, &l->cap_todo, l->n_todo, sizeof(*l->todo));
    l->todo[l->n_todo++] = id;
    return 0;
}

static bool is_dot(const struct ext2_dir_entry *e)
{
    int n = ext2fs_dirent_name_len(e);
    return (n == 1 && e->name[0] == '.') || (n == 2 && memcmp(e->name, "..", 2) == 0);
}

/* The blocks of an index look like unused entries. */
static int load_dir_block(struct load *l, node_id folder, uint64_t block, struct cb_error *err)
{
    _Alignas(8) unsigned char data[EXT4_BLOCK];
    int rc = writer_read_block(l->w, block, data, err);
    if (rc < 0)
        return rc;
    uint32_t ino = tree_node(l->t, folder)->ino;
    if (sums_count(l->w->fs) &&
        !ext2fs_dir_block_csum_verify(l->w->fs, ino, (struct ext2_dir_entry *)(void *)data))
        return damaged("a block of a folder", err);
    for (size_t at = 0; rc == 0 && at < EXT4_BLOCK;) {
        const struct ext2_dir_entry *e = (const struct ext2_dir_entry *)(const void *)(data + at);
        size_t room = EXT4_BLOCK - at;
        if (room < 8 || e->rec_len < 8 || e->rec_len % 4 != 0 || e->rec_len > room ||
            (size_t)ext2fs_dirent_name_len(e) + 8 > e->rec_len)
            return damaged("an entry of a folder", err);
        if (e->inode != 0 && !is_dot(e))
            rc = add_name(l, folder, e, err);
        at += e->rec_len;
    }
    return rc;
}

static bool in_use(const struct writer *w, const struct extent *e)
{
    for (uint32_t i = 0; i < e->len; i++)
        if (!bits_get(&w->blocks, e->start + i))
            return false;
    return true;
}

static int load_dir(struct load *l, node_id folder, struct cb_error *err)
{
    uint32_t ino = tree_node(l->t, folder)->ino;
    union inode in;
    errcode_t failed = ext2fs_read_inode_full(l->w->fs, ino, EXT2_INODE(&in.i), EXT4_INODE);
    int rc = lib_done(l, failed, "an inode", err);
    if (rc < 0)
        return rc;
    if (!S_ISDIR(in.i.i_mode) || !(in.i.i_flags & EXT4_EXTENTS_FL) ||
        inode_size(&in) / EXT4_BLOCK > DIR_BLOCKS_MAX)
        return damaged("the inode of a folder", err);
    writer_count_dirs(l->w, ino, 1);
    struct extents x = {NULL, 0, 0, 0};
    rc = writer_get_extents(l->w, ino, &in, &x, NULL, err);
    if (rc == 0 && x.blocks != inode_size(&in) / EXT4_BLOCK)
        rc = damaged("the blocks of a folder", err);
    for (size_t i = 0; rc == 0 && i < x.n; i++) {
        if (!in_use(l->w, &x.v[i]))
            rc = damaged("the blocks of a folder", err);
        for (uint32_t b = 0; rc == 0 && b < x.v[i].len; b++)
            rc = load_dir_block(l, folder, x.v[i].start + b, err);
    }
    extents_release(&x);
    return rc;
}

static int load_names(struct load *l, struct cb_error *err)
{
    bits_set(&l->seen, INO_ROOT, 1);
    int rc = load_dir(l, TREE_ROOT, err);
    while (rc == 0 && l->n_todo > 0)
        rc = load_dir(l, l->todo[--l->n_todo], err);
    if (rc < 0)
        return rc;
    node_id lost = tree_find(l->t, TREE_ROOT, "lost+found", strlen("lost+found"));
    if (!lost || tree_node(l->t, lost)->ino != INO_LOST_FOUND || !tree_node(l->t, lost)->dir)
        return damaged("no lost+found", err);
    CB_AUTO_FREE node_id *none = NULL;
    (void)tree_take_dirty(l->t, &none); /* all is written as it is */
    return 0;
}

/* ---- the end is taken back ---- */

static int undo_end(struct load *l, struct cb_error *err)
{
    static const uint32_t own[] = {INO_RESIZE, INO_JOURNAL};
    int rc = 0;
    for (dgrp_t g = 0; rc == 0 && g < l->groups; g++) {
        uint32_t n = layout_super_blocks(g);
        if (n > 0)
            rc = writer_punch(l->w, (uint64_t)g * GROUP_BLOCKS, n, err);
        if (rc == 0)
            rc = writer_punch(l->w, layout_block_bitmap(g), 1, err);
        if (rc == 0)
            rc = writer_punch(l->w, layout_inode_bitmap(g), 1, err);
    }
    if (rc == 0)
        rc = writer_punch(l->w, layout_resize_block(), 1, err);
    if (rc == 0)
        rc = writer_punch(l->w, layout_journal(), JOURNAL_BLOCKS, err);
    for (size_t i = 0; rc == 0 && i < sizeof(own) / sizeof(*own); i++) {
        union inode none = {.raw = {0}}; /* by libext2fs: it holds a copy of their block */
        rc = fs_done(l->w,
                     ext2fs_write_inode2(l->w->fs, own[i], EXT2_INODE(&none.i), EXT4_INODE,
                                         WRITE_INODE_NOCSUM),
                     "free an inode", err);
    }
    return rc;
}

int ext4_load(struct writer *w, struct tree *t, struct cb_error *err)
{
    struct load l = {.w = w, .t = t};
    int rc = load_super(&l, err);
    if (rc == 0)
        rc = load_in_use(&l, err);
    if (rc == 0)
        rc = load_names(&l, err);
    if (rc == 0)
        rc = undo_end(&l, err);
    free(l.seen.v);
    free(l.todo);
    return rc;
}
