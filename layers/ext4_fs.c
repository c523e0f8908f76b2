#include "layers/ext4_fs.h"

#include "layers/ext4_private.h"
#include "support/mem.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

const uint8_t image_uuid[16] = {0xca, 0x95, 0x01, 0xe0, 0xb0, 0x11, 0x4d, 0x00,
                                0x8e, 0x47, 0xc4, 0x05, 0xec, 0x0d, 0xe5, 0x01};

/* ---- its input and output ---- */

static struct struct_io_manager manager;

static errcode_t io_open(const char *name, int flags, io_channel *out)
{
    (void)name;
    (void)flags;
    io_channel c = cb_xcalloc(1, sizeof(*c));
    c->magic = EXT2_ET_MAGIC_IO_CHANNEL;
    c->manager = &manager;
    c->block_size = EXT4_BLOCK;
    c->refcount = 1;
    *out = c; /* fs_open() says whose it is */
    return 0;
}

static errcode_t io_close(io_channel c)
{
    if (--c->refcount == 0)
        free(c);
    return 0;
}

static errcode_t io_set_blksize(io_channel c, int size)
{
    c->block_size = size;
    return 0;
}

static errcode_t io_flush(io_channel c)
{
    (void)c;
    return 0;
}

/* A negative @count is one of bytes. */
static size_t io_length(io_channel c, int count)
{
    int64_t n = count < 0 ? -(int64_t)count : (int64_t)count * c->block_size;
    return (size_t)n;
}

static errcode_t io_read(io_channel c, unsigned long long block, int count, void *data)
{
    struct writer *w = c->private_data;
    uint64_t at = block * (uint64_t)c->block_size;
    if (w->error.code != CB_OK)
        return EIO;
    return writer_read(w, at, data, io_length(c, count), &w->error) < 0 ? EIO : 0;
}

static errcode_t io_write(io_channel c, unsigned long long block, int count, const void *data)
{
    struct writer *w = c->private_data;
    uint64_t at = block * (uint64_t)c->block_size;
    if (w->error.code != CB_OK)
        return EIO;
    return writer_write(w, at, data, io_length(c, count), &w->error) < 0 ? EIO : 0;
}

static errcode_t io_read_32(io_channel c, unsigned long block, int count, void *data)
{
    return io_read(c, block, count, data);
}

static errcode_t io_write_32(io_channel c, unsigned long block, int count, const void *data)
{
    return io_write(c, block, count, data);
}

static struct struct_io_manager manager = {
    .magic = EXT2_ET_MAGIC_IO_MANAGER,
    .name = "an image that grows",
    .open = io_open,
    .close = io_close,
    .set_blksize = io_set_blksize,
    .read_blk = io_read_32,
    .write_blk = io_write_32,
    .flush = io_flush,
    .read_blk64 = io_read,
    .write_blk64 = io_write,
};

/* ---- the file system ---- */

static void fill_parameters(struct ext2_super_block *p, uint64_t blocks)
{
    uint64_t groups = layout_groups(blocks);
    ext2fs_blocks_count_set(p, blocks);
    p->s_inodes_count = (uint32_t)(groups * GROUP_INODES);
    p->s_log_block_size = 2;
    p->s_blocks_per_group = GROUP_BLOCKS;
    p->s_rev_level = EXT2_DYNAMIC_REV;
    p->s_first_ino = INO_LOST_FOUND;
    p->s_inode_size = EXT4_INODE;
    p->s_desc_size = DESC_SIZE;
    p->s_log_groups_per_flex = FLEX_LOG;
    p->s_reserved_gdt_blocks =
        (uint16_t)(GDT_BLOCKS - (groups + DESCS_PER_BLOCK - 1) / DESCS_PER_BLOCK);
    p->s_max_mnt_count = -1;
    p->s_errors = EXT2_ERRORS_CONTINUE;
    p->s_default_mount_opts = EXT2_DEFM_XATTR_USER | EXT2_DEFM_ACL;
    p->s_feature_compat = EXT2_FEATURE_COMPAT_EXT_ATTR | EXT2_FEATURE_COMPAT_RESIZE_INODE |
                          EXT2_FEATURE_COMPAT_DIR_INDEX;
    p->s_feature_incompat = EXT2_FEATURE_INCOMPAT_FILETYPE | EXT3_FEATURE_INCOMPAT_EXTENTS |
                            EXT4_FEATURE_INCOMPAT_64BIT | EXT4_FEATURE_INCOMPAT_FLEX_BG |
                            EXT4_FEATURE_INCOMPAT_CSUM_SEED;
    p->s_feature_ro_compat = EXT2_FEATURE_RO_COMPAT_SPARSE_SUPER |
                             EXT2_FEATURE_RO_COMPAT_LARGE_FILE | EXT4_FEATURE_RO_COMPAT_HUGE_FILE |
                             EXT4_FEATURE_RO_COMPAT_DIR_NLINK | EXT4_FEATURE_RO_COMPAT_EXTRA_ISIZE |
                             EXT4_FEATURE_RO_COMPAT_METADATA_CSUM;
}

/* What ext2fs_initialize() leaves to its caller. */
static void complete(ext2_filsys fs)
{
    struct ext2_super_block *s = fs->super;
    fs->now = FS_TIME;
    s->s_mkfs_time = s->s_lastcheck = FS_TIME;
    memcpy(s->s_hash_seed, image_hash_seed, sizeof(s->s_hash_seed));
    s->s_def_hash_version = EXT2_HASH_HALF_MD4;
    s->s_flags = EXT2_FLAGS_SIGNED_HASH; /* as EXT2_HASH_HALF_MD4 of ext2fs_dirhash2() */
    s->s_checksum_type = EXT2_CRC32C_CHKSUM;
    s->s_checksum_seed = IMAGE_CSUM_SEED;
    ext2fs_init_csum_seed(fs);
    for (dgrp_t g = 0; g < fs->group_desc_count; g++) {
        ext2fs_block_bitmap_loc_set(fs, g, layout_block_bitmap(g));
        ext2fs_inode_bitmap_loc_set(fs, g, layout_inode_bitmap(g));
        ext2fs_inode_table_loc_set(fs, g, layout_inode_table(g));
        /* the file is sparse: what was never written is zero */
        ext2fs_bg_flags_set(fs, g, EXT2_BG_INODE_ZEROED);
    }
}

static void load_words(void)
{
    initialize_ext2_error_table();
}

void fs_load_words(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, load_words);
}

int fs_open(struct writer *w, uint64_t blocks, ext2_filsys *out, struct cb_error *err)
{
    fs_load_words();
    struct ext2_super_block p = {0};
    fill_parameters(&p, blocks);
    ext2_filsys fs;
    errcode_t rc = ext2fs_initialize(w->path, EXT2_FLAG_64BITS, &p, &manager, &fs);
    if (rc)
        return fs_done(w, rc, "make a file system", err);
    fs->io->private_data = w;
    if (ext2fs_blocks_count(fs->super) != blocks || fs->super->s_inodes_per_group != GROUP_INODES ||
        fs->group_desc_count != layout_groups(blocks) ||
        fs->super->s_reserved_gdt_blocks + fs->desc_blocks != GDT_BLOCKS) {
        ext2fs_free(fs);
        return cb_fail(err, CB_E_BUG, "libext2fs makes another layout of %llu blocks",
                       (unsigned long long)blocks);
    }
    complete(fs);
    *out = fs;
    return 0;
}

struct writer *fs_writer(ext2_filsys fs)
{
    return fs->io->private_data;
}

int fs_done(struct writer *w, errcode_t code, const char *what, struct cb_error *err)
{
    if (w->error.code != CB_OK)
        return cb_error_move(err, &w->error);
    if (code == 0)
        return 0;
    return cb_fail(err, CB_E_BUG, "libext2fs cannot %s: %s", what, error_message(code));
}
