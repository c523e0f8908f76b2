#include "layers/ext4_dir.h"

#include "layers/ext4_fs.h"
#include "layers/ext4_private.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

enum {
    TAIL = 12,                   /* the entry that hides a block's checksum */
    ROOM = EXT4_BLOCK - TAIL,    /* for names */
    LEAF_FILL = ROOM - ROOM / 8, /* of an indexed folder: some room for names to come */
    HEAD = 24,                   /* "." and ".." */
    ROOT_COUNT = 32,
    NODE_COUNT = 8, /* where an index block's entries start */
    ROOT_MAX = (EXT4_BLOCK - ROOT_COUNT - 8) / 8,
    NODE_MAX = (EXT4_BLOCK - NODE_COUNT - 8) / 8,
    LOST_FOUND_BLOCKS = 4, /* as mke2fs makes it: e2fsck can use it without allocating */
    LINK_MAX_DIR = 65000,
};

struct name {
    uint32_t hash, minor;
    node_id node;
};

struct job {
    struct writer *w;
    const struct tree *t;
    uint32_t ino, parent;
    struct name *v; /* owned */
    size_t n;
    uint32_t subdirs;
    uint64_t bytes; /* of all entries without the head */
    struct extents x;
    uint32_t blocks;
};

static uint32_t entry_len(size_t name)
{
    return (uint32_t)(8 + name + 3) & ~3u;
}

static void put_entry(unsigned char *at, uint32_t ino, uint32_t rec_len, const char *name,
                      size_t len, uint8_t type)
{
    struct {
        uint32_t ino;
        uint16_t rec_len;
        uint8_t name_len, type;
    } e = {ino, (uint16_t)rec_len, (uint8_t)len, type};
    memcpy(at, &e, sizeof(e));
    memcpy(at + sizeof(e), name, len);
}

/* Entries [from, to) from byte @used on; the last one reaches to the tail. */
static void put_names(const struct job *j, unsigned char *block, uint32_t used, size_t from,
                      size_t to)
{
    uint32_t last = 0;
    if (used > 0)
        last = used - 12; /* ".." */
    for (size_t i = from; i < to; i++) {
        size_t len;
        const char *name = tree_name(j->t, j->v[i].node, &len);
        const struct node *n = tree_node(j->t, j->v[i].node);
        put_entry(block + used, n->ino, entry_len(len), name, len, n->type);
        last = used;
        used += entry_len(len);
    }
    if (used == 0) { /* an empty block is one unused entry */
        put_entry(block, 0, ROOM, "", 0, 0);
    } else {
        uint16_t rec_len = (uint16_t)(ROOM - last);
        memcpy(block + last + 4, &rec_len, sizeof(rec_len));
    }
    ext2fs_initialize_dirent_tail(j->w->fs, EXT2_DIRENT_TAIL(block, EXT4_BLOCK));
}

static void put_head(const struct job *j, unsigned char *block, uint32_t dotdot_len)
{
    put_entry(block, j->ino, 12, ".", 1, EXT2_FT_DIR);
    put_entry(block + 12, j->parent, dotdot_len, "..", 2, EXT2_FT_DIR);
}

static _Thread_local const struct tree *sorting; /* qsort() gives its function nothing else */

static int by_name(const void *a, const void *b)
{
    size_t la, lb;
    const char *na = tree_name(sorting, ((const struct name *)a)->node, &la);
    const char *nb = tree_name(sorting, ((const struct name *)b)->node, &lb);
    int c = memcmp(na, nb, la < lb ? la : lb);
    return c ? c : la < lb ? -1 : la > lb;
}

static int by_hash(const void *a, const void *b)
{
    const struct name *x = a, *y = b;
    if (x->hash != y->hash)
        return x->hash < y->hash ? -1 : 1;
    if (x->minor != y->minor)
        return x->minor < y->minor ? -1 : 1;
    return by_name(a, b);
}

/* Writes a block with its checksum. */
static int write_block(const struct job *j, uint32_t logical, unsigned char *block,
                       struct cb_error *err)
{
    errcode_t rc =
        ext2fs_dir_block_csum_set(j->w->fs, j->ino, (struct ext2_dir_entry *)(void *)block);
    if (rc)
        return fs_done(j->w, rc, "set the checksum of a folder", err);
    return writer_blocks(j->w, &j->x, logical, block, EXT4_BLOCK, err);
}

static int write_linear(struct job *j, struct cb_error *err)
{
    sorting = j->t;
    qsort(j->v, j->n, sizeof(*j->v), by_name);
    j->blocks = j->ino == INO_LOST_FOUND ? LOST_FOUND_BLOCKS : 1;
    int rc = writer_alloc(j->w, &j->x, 0, j->blocks, err);
    for (uint32_t b = 0; rc == 0 && b < j->blocks; b++) {
        _Alignas(8) unsigned char block[EXT4_BLOCK] = {0};
        if (b == 0) {
            put_head(j, block, 12);
            put_names(j, block, HEAD, 0, j->n);
        } else {
            put_names(j, block, 0, 0, 0);
        }
        rc = write_block(j, b, block, err);
    }
    return rc;
}

/* An index block's entries: @v[0].hash is not stored, its place holds the counts. */
struct index {
    uint32_t hash;
    uint32_t block;
};

static void put_index(unsigned char *block, uint32_t offset, uint32_t max, const struct index *v,
                      uint32_t n)
{
    uint16_t counts[2] = {(uint16_t)max, (uint16_t)n};
    memcpy(block + offset, v, (size_t)n * sizeof(*v));
    memcpy(block + offset, counts, sizeof(counts));
}

static int hash_names(struct job *j, struct cb_error *err)
{
    for (size_t i = 0; i < j->n; i++) {
        size_t len;
        const char *name = tree_name(j->t, j->v[i].node, &len);
        ext2_dirhash_t hash, minor;
        if (ext2fs_dirhash2(EXT2_HASH_HALF_MD4, name, (int)len, NULL, 0, image_hash_seed, &hash,
                            &minor))
            return cb_fail(err, CB_E_BUG, "ext2fs_dirhash2");
        j->v[i].hash = hash;
        j->v[i].minor = minor;
    }
    sorting = j->t;
    qsort(j->v, j->n, sizeof(*j->v), by_hash);
    return 0;
}

/* Where each leaf starts in the sorted names: *@first (owned) has one more than the leaves. */
static uint32_t cut_leaves(const struct job *j, size_t **first)
{
    size_t *cut = NULL, cap = 0;
    uint32_t leaves = 0, used = LEAF_FILL + 1;
    for (size_t i = 0; i < j->n; i++) {
        size_t len;
        (void)tree_name(j->t, j->v[i].node, &len);
        if (used + entry_len(len) > LEAF_FILL) {
            cut = cb_xgrow(cut, &cap, leaves, sizeof(*cut));
            cut[leaves++] = i;
            used = 0;
        }
        used += entry_len(len);
    }
    cut = cb_xgrow(cut, &cap, leaves, sizeof(*cut));
    cut[leaves] = j->n;
    *first = cut;
    return leaves;
}

static int write_leaves(const struct job *j, const size_t *first, uint32_t leaves, uint32_t at,
                        struct cb_error *err)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < leaves; i++) {
        _Alignas(8) unsigned char block[EXT4_BLOCK] = {0};
        put_names(j, block, 0, first[i], first[i + 1]);
        rc = write_block(j, at + i, block, err);
    }
    return rc;
}

/* Block 0 the root, then inner nodes when the root cannot hold all leaves, then the leaves. */
static int write_index(struct job *j, const size_t *first, uint32_t leaves, struct cb_error *err)
{
    uint32_t nodes = leaves > ROOT_MAX ? (leaves + NODE_MAX - 1) / NODE_MAX : 0;
    if (nodes > ROOT_MAX)
        return cb_fail(err, CB_E_LIMIT, "a folder with %zu names", j->n);
    j->blocks = 1 + nodes + leaves;
    int rc = writer_alloc(j->w, &j->x, 0, j->blocks, err);
    if (rc < 0)
        return rc;

    CB_AUTO_FREE struct index *v = cb_xcalloc(leaves, sizeof(*v));
    for (uint32_t i = 0; i < leaves; i++) {
        v[i].hash = j->v[first[i]].hash;
        if (i > 0 && j->v[first[i] - 1].hash == v[i].hash)
            v[i].hash |= 1; /* the hash goes on from the leaf before */
        v[i].block = 1 + nodes + i;
    }
    struct index top[ROOT_MAX];
    for (uint32_t i = 0; i < nodes; i++) {
        _Alignas(8) unsigned char block[EXT4_BLOCK] = {0};
        uint32_t from = i * NODE_MAX, n = leaves - from < NODE_MAX ? leaves - from : NODE_MAX;
        put_entry(block, 0, EXT4_BLOCK, "", 0, 0);
        top[i] = (struct index){v[from].hash, 1 + i};
        put_index(block, NODE_COUNT, NODE_MAX, v + from, n);
        if ((rc = write_block(j, 1 + i, block, err)) < 0)
            return rc;
    }
    _Alignas(8) unsigned char root[EXT4_BLOCK] = {0};
    const unsigned char info[8] = {0, 0, 0, 0, EXT2_HASH_HALF_MD4, 8, nodes ? 1 : 0, 0};
    put_head(j, root, EXT4_BLOCK - 12);
    memcpy(root + HEAD, info, sizeof(info));
    put_index(root, ROOT_COUNT, ROOT_MAX, nodes ? top : v, nodes ? nodes : leaves);
    if ((rc = write_block(j, 0, root, err)) < 0)
        return rc;
    return write_leaves(j, first, leaves, 1 + nodes, err);
}

static int write_hashed(struct job *j, struct cb_error *err)
{
    CB_AUTO_FREE size_t *first = NULL;
    int rc = hash_names(j, err);
    if (rc < 0)
        return rc;
    uint32_t leaves = cut_leaves(j, &first);
    return write_index(j, first, leaves, err);
}

static void gather(struct job *j, node_id folder)
{
    const struct dir *d = tree_dir(j->t, folder);
    j->v = cb_xcalloc(d->children + (size_t)1, sizeof(*j->v));
    for (node_id id = d->first; id; id = tree_node(j->t, id)->sibling) {
        const struct node *n = tree_node(j->t, id);
        if (n->dead)
            continue;
        size_t len;
        (void)tree_name(j->t, id, &len);
        j->v[j->n++].node = id;
        j->bytes += entry_len(len);
        j->subdirs += n->dir != 0;
    }
}

int dir_write(struct writer *w, const struct tree *t, node_id folder, struct cb_error *err)
{
    const struct node *n = tree_node(t, folder);
    struct job j = {.w = w, .t = t, .ino = n->ino};
    j.parent = folder == TREE_ROOT ? n->ino : tree_node(t, n->parent)->ino;
    union inode in;
    int rc = writer_get_inode(w, j.ino, &in, err);
    if (rc == 0)
        rc = writer_free_extents(w, j.ino, &in, err);
    if (rc < 0)
        return rc;

    gather(&j, folder);
    bool hashed = HEAD + j.bytes > ROOM;
    rc = hashed ? write_hashed(&j, err) : write_linear(&j, err);
    if (rc == 0)
        rc = writer_set_extents(w, j.ino, &in, &j.x, err);
    if (rc == 0) {
        uint32_t links = j.subdirs + 2;
        in.i.i_links_count = links > LINK_MAX_DIR ? 1 : (uint16_t)links;
        in.i.i_flags &= ~(uint32_t)EXT2_INDEX_FL;
        if (hashed)
            in.i.i_flags |= EXT2_INDEX_FL;
        inode_set_size(&in, (uint64_t)j.blocks * EXT4_BLOCK);
        rc = writer_put_inode(w, j.ino, &in, err);
    }
    free(j.v);
    extents_release(&j.x);
    return rc;
}
