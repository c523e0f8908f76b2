/* Any bytes as layers on top of each other, cut at their end marks (the last is applied twice): no
 * crash, no leak, and whatever was accepted is a sound image: every name has its inode, link counts
 * are right, no block belongs to two inodes. */
#include "layers/ext4_fs.h"
#include "layers/ext4_private.h"
#include "layers/ext4_super.h"
#include "layers/tar_apply.h"
#include "support/cleanup.h"
#include "support/mem.h"
#include "tar_build.h"
#include "tar_mutate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(x)                                                                                   \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

struct input {
    const uint8_t *data;
    size_t size;
};

static int next(void *arg, const void **data, size_t *len, struct cb_error *err)
{
    struct input *in = arg;
    (void)err;
    size_t n = in->size < 1000 ? in->size : 1000; /* headers straddle pieces */
    *data = in->data;
    *len = n;
    in->data += n;
    in->size -= n;
    return n > 0;
}

struct census {
    struct writer *w;
    struct tree *t;
    uint32_t *names; /* by inode */
    struct bits blocks;
    uint64_t n_blocks;
    uint32_t n_names, n_inodes;
};

static void count_blocks(struct census *c, const struct extents *x)
{
    for (size_t i = 0; i < x->n; i++)
        for (uint32_t b = 0; b < x->v[i].len; b++) {
            uint64_t block = x->v[i].start + b;
            CHECK(!bits_get(&c->blocks, block));
            CHECK(bits_get(&c->w->blocks, block));
            bits_set(&c->blocks, block, 1);
            c->n_blocks++;
        }
}

static void count_inode(struct census *c, uint32_t ino, bool is_dir)
{
    union inode in;
    CHECK(writer_get_inode(c->w, ino, &in, NULL) == 0);
    CHECK(in.i.i_mode != 0 && S_ISDIR(in.i.i_mode) == is_dir);
    CHECK(ino < INO_FIRST || bits_get(&c->w->inodes, ino));
    if (c->names[ino]++ > 0)
        return;
    c->n_inodes++;
    struct extents x = {NULL, 0, 0, 0}, tree = {NULL, 0, 0, 0};
    if (in.i.i_flags & EXT4_EXTENTS_FL) {
        CHECK(writer_get_extents(c->w, ino, &in, &x, &tree, NULL) == 0);
        count_blocks(c, &x);
        count_blocks(c, &tree);
    }
    if (in.i.i_file_acl) {
        struct extent e = {0, 1, in.i.i_file_acl};
        const struct extents acl = {&e, 1, 1, 1};
        count_blocks(c, &acl);
    }
    extents_release(&x);
    extents_release(&tree);
}

static void count_folder(struct census *c, node_id folder)
{
    uint32_t children = 0;
    for (node_id id = tree_dir(c->t, folder)->first; id; id = tree_node(c->t, id)->sibling) {
        const struct node *n = tree_node(c->t, id);
        size_t len;
        if (n->dead)
            continue;
        const char *name = tree_name(c->t, id, &len);
        CHECK(n->parent == folder && len > 0 && len <= 255);
        CHECK(tree_find(c->t, folder, name, len) == id);
        CHECK(!memchr(name, '/', len) && !memchr(name, '\0', len));
        children++;
        c->n_names++;
        count_inode(c, n->ino, n->dir != 0);
        if (n->dir)
            count_folder(c, id);
    }
    CHECK(children == tree_dir(c->t, folder)->children);
}

static void check_links(struct census *c)
{
    for (uint32_t ino = INO_FIRST; ino < c->w->next_ino; ino++) {
        union inode in;
        CHECK(bits_get(&c->w->inodes, ino) == (c->names[ino] > 0));
        if (c->names[ino] == 0)
            continue;
        CHECK(writer_get_inode(c->w, ino, &in, NULL) == 0);
        CHECK(S_ISDIR(in.i.i_mode) ? c->names[ino] == 1 : in.i.i_links_count == c->names[ino]);
    }
}

static void take_census(struct writer *w, struct tree *t)
{
    struct census c = {.w = w, .t = t};
    c.names = cb_xcalloc(w->next_ino + (size_t)1, sizeof(*c.names));
    count_inode(&c, INO_ROOT, true);
    count_folder(&c, TREE_ROOT);
    CHECK(c.n_names == tree_count(t));
    CHECK(c.n_blocks == w->data_in_use);
    CHECK(c.n_inodes == w->inodes_in_use + 2); /* root, lost+found */
    check_links(&c);
    free(c.names);
    free(c.blocks.v);
}

/* One entry: what, where, to what. Returns false for "the next layer starts here". */
static bool put_entry(struct tar_build *t, const uint8_t *op)
{
    static const char *const names[] = {"a",
                                        "a/b",
                                        "a/b/c",
                                        "a/c",
                                        "b",
                                        "b/a",
                                        "b/b/b",
                                        "c",
                                        "a/l/x",
                                        "l",
                                        "l/x",
                                        "l/x/y",
                                        "m",
                                        "m/m/m",
                                        ".",
                                        "./a/",
                                        "a/.wh.b",
                                        ".wh.a",
                                        "b/.wh.a",
                                        "a/.wh..wh..opq",
                                        "lost+found",
                                        ".wh.lost+found",
                                        "l/.wh.x",
                                        ".wh..wh..opq",
                                        "lost+found/a",
                                        ".wh.l"};
    static const char *const targets[] = {"a", "/a/b", "b", "../b", "l", "a/b/c", "/", "..", "m/m"};
    static const char kinds[] = "0512346";
    const char *name = names[op[1] % (sizeof(names) / sizeof(*names))];
    const char *target = targets[op[2] % (sizeof(targets) / sizeof(*targets))];
    char kind = kinds[op[0] % 7];
    if (op[0] == 255)
        return false;
    t->mtime += 1;
    t->major = 1;
    if (op[0] & 0x40)
        tb_pax_text(t, "SCHILY.xattr.user.k", "value");
    if (op[0] & 0x20) {
        static const char large[900] = {'v'};
        tb_pax(t, "SCHILY.xattr.user.large", large, sizeof(large));
    }
    static char data[255 * 64];
    memset(data, op[2], sizeof(data));
    if (kind == '1' || kind == '2')
        tb_link(t, kind, name, target);
    else
        tb_raw(t, kind, name, NULL, data, kind == '0' ? (size_t)op[2] * 64 : 0);
    return true;
}

/* Up to @n bytes of a recipe as one layer's tar; *@used says how many. */
static void cook(struct tar_build *t, const uint8_t *op, size_t n, size_t *used)
{
    tb_init(t);
    size_t at = 0;
    while (at + 3 <= n) {
        bool more = put_entry(t, op + at);
        at += 3;
        if (!more)
            break;
    }
    *used = at;
    tb_end(t);
}

static int apply_recipe(struct writer *w, struct tree *t, const uint8_t *data, size_t size,
                        struct cb_error *err)
{
    int rc = 0;
    for (uint16_t layer = 1; rc == 0 && size >= 3 && layer < 20; layer++) {
        struct tar_build tar;
        size_t used;
        cook(&tar, data, size, &used);
        struct input in = {(const uint8_t *)tar.out.data, tar.out.len};
        const struct tar_source source = {next, &in};
        rc = tar_apply_layer(w, t, layer, &source, err);
        if (rc == 0)
            take_census(w, t);
        tb_release(&tar);
        data += used;
        size -= used;
    }
    return rc;
}

static int apply_bytes(struct writer *w, struct tree *t, const uint8_t *data, size_t size,
                       struct cb_error *err)
{
    int rc = 0;
    bool again = false;
    for (uint16_t layer = 1; rc == 0 && layer <= 6; layer++) {
        size_t n = tar_end(data, size);
        struct input in = {data, n};
        const struct tar_source source = {next, &in};
        rc = tar_apply_layer(w, t, layer, &source, err);
        if (rc == 0)
            take_census(w, t);
        if (again)
            break;
        again = n == size;
        data += again ? 0 : n;
        size -= again ? 0 : n;
    }
    return rc;
}

/* The layer as an upper: below its folder, with marks. */
static int apply_upper(struct writer *w, struct tree *t, const uint8_t *data, size_t size,
                       struct cb_error *err)
{
    struct input in = {data, size};
    const struct tar_source source = {next, &in};
    int rc = tar_apply_upper(w, t, 1, "p0", &source, err);
    if (rc == 0) {
        take_census(w, t);
        CHECK(tree_dir(t, TREE_ROOT)->children == 2); /* and lost+found */
    }
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    char path[64];
    (void)snprintf(path, sizeof(path), "/dev/shm/cb-fuzz-%ld", (long)getpid());
    (void)unlink(path);
    struct writer *w = NULL;
    struct tree *t = tree_new(INO_ROOT);
    CHECK(writer_open(path, 1u << 20, &w, &err) == 0);
    CHECK(image_begin(w, t, &err) == 0);
    int rc = 0;
    if (size > 3 && memcmp(data, "OPS", 3) == 0)
        rc = apply_recipe(w, t, data + 3, size - 3, &err);
    else if (size > 3 && memcmp(data, "UPP", 3) == 0)
        rc = apply_upper(w, t, data + 3, size - 3, &err);
    else
        rc = apply_bytes(w, t, data, size, &err);
    CHECK(rc == 0 || (err.code == (enum cb_code) - rc && err.msg && err.code != CB_E_BUG));
    uint64_t blocks;
    if (rc == 0 && image_size(w, 0, &blocks, &err) == 0)
        CHECK(image_finish(w, blocks, 0, image_uuid, NULL, &err) == 0);
    writer_free(w);
    tree_free(t);
    (void)unlink(path);
    return 0;
}
