#include "layers/ext4_super.h"

#include "layers/ext4_dir.h"
#include "layers/ext4_fs.h"
#include "layers/ext4_private.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SPARE_INODES 1024u /* inodes that stay free whatever the size */

/* ---- inodes ---- */

void inode_set_owner(union inode *in, uint32_t uid, uint32_t gid)
{
    in->i.i_uid = (uint16_t)uid;
    in->i.osd2.linux2.l_i_uid_high = (uint16_t)(uid >> 16);
    in->i.i_gid = (uint16_t)gid;
    in->i.osd2.linux2.l_i_gid_high = (uint16_t)(gid >> 16);
}

void inode_set_times(union inode *in, int64_t sec, uint32_t nsec)
{
    const int64_t first = INT32_MIN, last = ((int64_t)3 << 32) + INT32_MAX;
    if (sec < first || sec > last)
        nsec = 0;
    sec = sec < first ? first : sec > last ? last : sec;
    /* The lower 32 bits are signed; two more in the extra field say how often 2^32 is added. */
    uint32_t low = (uint32_t)sec;
    uint32_t extra = ((uint32_t)((sec - (int32_t)low) >> 32) & 3) | nsec << 2;
    in->i.i_atime = in->i.i_ctime = in->i.i_mtime = in->i.i_crtime = low;
    in->i.i_atime_extra = in->i.i_ctime_extra = in->i.i_mtime_extra = in->i.i_crtime_extra = extra;
}

void inode_init(union inode *in, uint32_t mode, uint32_t uid, uint32_t gid, int64_t sec,
                uint32_t nsec)
{
    memset(in, 0, sizeof(*in));
    in->i.i_mode = (uint16_t)mode;
    in->i.i_links_count = 1;
    in->i.i_extra_isize = INODE_EXTRA;
    inode_set_owner(in, uid, gid);
    inode_set_times(in, sec, nsec);
}

/* ---- the first two folders ---- */

static int put_empty_dir(struct writer *w, uint32_t ino, uint32_t mode, struct cb_error *err)
{
    static const struct extents none = {NULL, 0, 0, 0};
    union inode in;
    inode_init(&in, S_IFDIR | mode, 0, 0, 0, 0);
    int rc = writer_set_extents(w, ino, &in, &none, err);
    return rc < 0 ? rc : writer_put_inode(w, ino, &in, err);
}

int image_begin(struct writer *w, struct tree *t, struct cb_error *err)
{
    node_id lost = tree_add(t, TREE_ROOT, "lost+found", strlen("lost+found"));
    tree_node(t, lost)->ino = INO_LOST_FOUND;
    tree_node(t, lost)->type = EXT2_FT_DIR;
    tree_make_dir(t, lost);
    writer_count_dirs(w, INO_ROOT, 1);
    writer_count_dirs(w, INO_LOST_FOUND, 1);
    int rc = put_empty_dir(w, INO_ROOT, 0755, err);
    return rc < 0 ? rc : put_empty_dir(w, INO_LOST_FOUND, 0700, err);
}

int image_write_dirs(struct writer *w, struct tree *t, struct cb_error *err)
{
    CB_AUTO_FREE node_id *dirty = NULL;
    size_t n = tree_take_dirty(t, &dirty);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = dir_write(w, t, dirty[i], err);
    return rc;
}

/* ---- size ---- */

static uint64_t smallest(const struct writer *w, uint64_t free)
{
    uint64_t inodes = (uint64_t)w->next_ino + SPARE_INODES;
    uint64_t groups = (inodes + GROUP_INODES - 1) / GROUP_INODES;
    uint64_t total = layout_size_up(w->next_block);
    if (layout_groups(total) < groups)
        total = layout_size_up((groups - 1) * GROUP_BLOCKS + 1);
    for (;;) {
        total = layout_size_up((total + 255) / 256 * 256); /* whole MiB */
        uint64_t used = layout_meta_blocks(total) + w->data_in_use;
        if (total >= used + free)
            return total;
        total = used + free;
    }
}

int image_size(const struct writer *w, uint64_t size_bytes, uint64_t *blocks, struct cb_error *err)
{
    uint64_t total =
        size_bytes ? layout_size_down(size_bytes / EXT4_BLOCK) : smallest(w, IMAGE_FREE_BLOCKS);
    uint64_t need = smallest(w, 0);
    if (size_bytes && total < need)
        return cb_fail(
            err, CB_E_LIMIT,
            "%llu MiB of files in %u inodes need a file system of %llu MiB, it is to have %llu",
            (unsigned long long)(w->data_in_use + 255) / 256, w->inodes_in_use,
            (unsigned long long)need / 256, (unsigned long long)(size_bytes >> 20));
    if (layout_groups(total) > LAYOUT_GROUPS_MAX)
        return cb_fail(err, CB_E_LIMIT, "a file system of %llu MiB; the most is %llu",
                       (unsigned long long)total / 256,
                       (unsigned long long)LAYOUT_GROUPS_MAX * GROUP_BLOCKS / 256);
    *blocks = total;
    return 0;
}

/* ---- the end ---- */

/* Everything that is in use, so that libext2fs knows what is free, and counts it. */
static void mark_in_use(const struct writer *w, ext2_filsys fs)
{
    for (dgrp_t g = 0; g < fs->group_desc_count; g++) {
        ext2fs_block_alloc_stats_range(fs, layout_block_bitmap(g), 1, +1);
        ext2fs_block_alloc_stats_range(fs, layout_inode_bitmap(g), 1, +1);
        ext2fs_block_alloc_stats_range(fs, layout_inode_table(g), TABLE_BLOCKS, +1);
    }
    uint64_t n;
    for (uint64_t b = 0; (b = bits_next(&w->blocks, b, &n)) != 0; b += n)
        ext2fs_block_alloc_stats_range(fs, b, (blk_t)n, +1);
    for (uint32_t ino = 1; ino < INO_FIRST; ino++)
        ext2fs_inode_alloc_stats2(fs, ino, +1, 0);
    for (uint64_t i = 0; (i = bits_next(&w->inodes, i, &n)) != 0; i += n)
        for (uint64_t ino = i; ino < i + n; ino++)
            ext2fs_inode_alloc_stats2(fs, (ext2_ino_t)ino, +1, 0);
    for (dgrp_t g = 0; g < fs->group_desc_count; g++)
        ext2fs_bg_used_dirs_count_set(fs, g, writer_dirs_in_group(w, g));
}

static errcode_t give_resize_block(ext2_filsys fs, blk64_t goal, blk64_t *out)
{
    (void)fs;
    (void)goal;
    *out = layout_resize_block();
    return 0;
}

/* The inode that keeps room for more descriptors, and the journal. */
static int add_own_inodes(struct writer *w, ext2_filsys fs, struct cb_error *err)
{
    struct ext2_inode in;
    blk64_t block;
    ext2fs_set_alloc_block_callback(fs, give_resize_block, NULL);
    errcode_t rc = ext2fs_create_resize_inode(fs);
    ext2fs_set_alloc_block_callback(fs, NULL, NULL);
    if (rc)
        return fs_done(w, rc, "make the resize inode", err);
    rc = ext2fs_add_journal_inode2(fs, JOURNAL_BLOCKS, layout_journal(),
                                   EXT2_MKJOURNAL_NO_MNT_CHECK | EXT2_MKJOURNAL_LAZYINIT);
    if (rc == 0)
        rc = ext2fs_read_inode(fs, INO_JOURNAL, &in);
    if (rc == 0)
        rc = ext2fs_bmap2(fs, INO_JOURNAL, &in, NULL, 0, JOURNAL_BLOCKS - 1, NULL, &block);
    if (rc)
        return fs_done(w, rc, "make the journal", err);
    if (block != layout_journal() + JOURNAL_BLOCKS - 1)
        return cb_fail(err, CB_E_BUG, "libext2fs put the journal elsewhere");
    return 0;
}

static int write_all(struct writer *w, ext2_filsys *fs, const uint8_t uuid[16], const char *label,
                     struct cb_error *err)
{
    struct ext2_super_block *s = (*fs)->super;
    memcpy(s->s_uuid, uuid, sizeof(s->s_uuid));
    if (label)
        memcpy(s->s_volume_name, label, strnlen(label, sizeof(s->s_volume_name)));
    mark_in_use(w, *fs);
    int rc = add_own_inodes(w, *fs, err);
    if (rc < 0)
        return rc;
    errcode_t failed = ext2fs_set_gdt_csum(*fs);
    if (failed == 0)
        failed = ext2fs_close2(*fs, EXT2_FLAG_FLUSH_NO_SYNC);
    if (failed)
        return fs_done(w, failed, "write superblocks, descriptors and bitmaps", err);
    *fs = NULL;
    return writer_flush(w, err);
}

int image_finish(struct writer *w, uint64_t blocks, uint64_t length, const uint8_t uuid[16],
                 const char *label, struct cb_error *err)
{
    if (length == 0)
        length = blocks * EXT4_BLOCK;
    if (ftruncate(w->fd, (off_t)length) < 0)
        return cb_fail_sys(err, errno, "make %s %llu bytes long", w->path,
                           (unsigned long long)length);
    ext2fs_free(w->fs);
    w->fs = NULL;
    ext2_filsys fs = NULL;
    int rc = fs_open(w, blocks, &fs, err);
    if (rc == 0)
        rc = write_all(w, &fs, uuid, label, err);
    ext2fs_free(fs);
    w->keep = rc == 0;
    return rc;
}
