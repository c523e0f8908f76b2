/* Extent trees, all by libext2fs; their blocks come from the writer as all others. */
#include "layers/ext4_fs.h"
#include "layers/ext4_private.h"

#include "support/mem.h"

#include <string.h>

static errcode_t insert_all(ext2_filsys fs, uint32_t ino, struct ext2_inode *in,
                            const struct extents *x)
{
    ext2_extent_handle_t h;
    errcode_t rc = ext2fs_extent_open2(fs, ino, in, &h); /* makes an empty tree */
    if (rc)
        return rc;
    for (size_t i = 0; rc == 0 && i < x->n; i++) {
        struct ext2fs_extent e = {
            .e_lblk = x->v[i].logical, .e_pblk = x->v[i].start, .e_len = x->v[i].len};
        rc = ext2fs_extent_insert(h, i > 0 ? EXT2_EXTENT_INSERT_AFTER : 0, &e);
    }
    ext2fs_extent_free(h);
    return rc;
}

int writer_set_extents(struct writer *w, uint32_t ino, union inode *in, const struct extents *x,
                       struct cb_error *err)
{
    memset(in->i.i_block, 0, sizeof(in->i.i_block));
    errcode_t rc = insert_all(w->fs, ino, EXT2_INODE(&in->i), x);
    if (rc == 0)
        rc = ext2fs_iblk_add_blocks(w->fs, EXT2_INODE(&in->i), x->blocks);
    return fs_done(w, rc, "store a file's extents", err);
}

static void note(struct extents *x, const struct ext2fs_extent *e, uint32_t len)
{
    x->v = cb_xgrow(x->v, &x->cap, x->n, sizeof(*x->v));
    x->v[x->n++] = (struct extent){(uint32_t)e->e_lblk, len, e->e_pblk};
    x->blocks += len;
}

int writer_get_extents(struct writer *w, uint32_t ino, const union inode *in, struct extents *x,
                       struct extents *tree, struct cb_error *err)
{
    union inode copy = *in;
    ext2_extent_handle_t h;
    struct ext2fs_extent e;
    errcode_t rc = ext2fs_extent_open2(w->fs, ino, EXT2_INODE(&copy.i), &h);
    if (rc)
        return fs_done(w, rc, "read a file's extents", err);
    for (int op = EXT2_EXTENT_ROOT; (rc = ext2fs_extent_get(h, op, &e)) == 0;
         op = EXT2_EXTENT_NEXT) {
        if (e.e_flags & EXT2_EXTENT_FLAGS_LEAF)
            note(x, &e, e.e_len);
        else if (tree && !(e.e_flags & EXT2_EXTENT_FLAGS_SECOND_VISIT))
            note(tree, &e, 1);
    }
    ext2fs_extent_free(h);
    return fs_done(w, rc == EXT2_ET_EXTENT_NO_NEXT ? 0 : rc, "read a file's extents", err);
}

int writer_free_extents(struct writer *w, uint32_t ino, union inode *in, struct cb_error *err)
{
    struct extents x = {NULL, 0, 0, 0}, tree = {NULL, 0, 0, 0};
    int rc = writer_get_extents(w, ino, in, &x, &tree, err);
    for (size_t i = 0; rc == 0 && i < x.n; i++)
        rc = writer_free_blocks(w, x.v[i].start, x.v[i].len, err);
    for (size_t i = 0; rc == 0 && i < tree.n; i++) {
        ext2fs_block_alloc_stats2(w->fs, tree.v[i].start, -1);
        rc = fs_done(w, 0, "free a file's extents", err);
    }
    if (rc == 0) {
        static const struct extents none = {NULL, 0, 0, 0};
        (void)ext2fs_iblk_sub_blocks(w->fs, EXT2_INODE(&in->i), x.blocks + tree.blocks);
        rc = writer_set_extents(w, ino, in, &none, err);
    }
    extents_release(&x);
    extents_release(&tree);
    return rc;
}
