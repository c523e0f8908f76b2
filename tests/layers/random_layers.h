/* Random stacks of layers, the same for the same seed: few names, so that entries hit each other,
 * and all kinds of them. */
#pragma once

#include "flatten_check.h"

#include <fcntl.h>

#define ENTRIES 40

static uint32_t state_of_random;

static inline uint32_t rnd(uint32_t below)
{
    state_of_random = state_of_random * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)(state_of_random >> 4) * below >> 28);
}

/* Few names, so that entries hit each other. */
static inline void random_path(char *out, size_t size)
{
    static const char *const parts[] = {"a", "b", "c", "d", "link", "usr", "lost+found"};
    size_t n = 0;
    uint32_t depth = 1 + rnd(4);
    for (uint32_t i = 0; i < depth; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%s", i ? "/" : "", parts[rnd(i ? 6 : 7)]);
}

/* Puts a whiteout of @path into @out. */
static inline void whiteout_of(const char *path, char *out, size_t size)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t n = (size_t)snprintf(out, size, "%.*s.wh.", (int)(name - path), path);
    (void)snprintf(out + n, size - n, "%s", rnd(4) ? name : ".wh..opq");
}

static inline void random_attributes(struct tar_build *t)
{
    static char large[3000];
    memset(large, 'a' + (int)rnd(26), sizeof(large));
    if (rnd(6) == 0)
        tb_pax(t, "SCHILY.xattr.user.small", large, 1 + rnd(40));
    if (rnd(8) == 0)
        tb_pax(t, "SCHILY.xattr.user.large", large, 500 + rnd(2500));
}

static inline void random_file(struct tar_build *t, const char *path)
{
    static char data[300000];
    size_t n = rnd(5) == 0 ? rnd(sizeof(data)) : rnd(9000);
    memset(data, rnd(8) ? 'a' + (int)rnd(26) : 0, n);
    random_attributes(t);
    tb_raw(t, '0', path, NULL, data, n);
}

/* More names than a block holds: an index. */
static inline void many_names(struct tar_build *t, const char *folder)
{
    char path[300];
    uint32_t from = rnd(100), n = 150 + rnd(200);
    for (uint32_t i = from; i < from + n; i++) {
        (void)snprintf(path, sizeof(path), "%.80s/%s%u-with-a-longer-name", folder,
                       rnd(3) ? "n" : ".wh.n", i);
        tb_raw(t, '0', path, NULL, "", 0);
    }
}

static inline void random_entry(struct tar_build *t)
{
    char path[200], other[200];
    random_path(path, sizeof(path));
    random_path(other, sizeof(other));
    t->mtime = 1000000000 + rnd(1000000);
    t->mode = rnd(4) ? 0 : 01 + rnd(07777);
    t->uid = rnd(3) ? 0 : rnd(70000);
    switch (rnd(12)) {
    case 0:
    case 1:
    case 2:
        random_attributes(t);
        tb_dir(t, path);
        break;
    case 3:
    case 4:
    case 5: random_file(t, path); break;
    case 6:
        if (rnd(3) == 0) { /* too long for the inode */
            char target[400];
            (void)snprintf(target, sizeof(target), "./././././././././././././././././././%s",
                           other);
            tb_link(t, '2', path, target);
        } else {
            tb_link(t, '2', path, other);
        }
        break;
    case 7: tb_link(t, '1', path, other); break;
    case 8:
        t->major = t->minor = 1 + rnd(300);
        tb_raw(t, '3', path, NULL, NULL, 0);
        break;
    case 9:
    case 10:
        whiteout_of(path, other, sizeof(other));
        tb_file(t, other, "");
        break;
    default:
        if (rnd(4) == 0)
            many_names(t, path);
        else
            tb_raw(t, '6', path, NULL, NULL, 0);
    }
}

static inline int try_stack(struct image_fixture *f, size_t n, uint64_t size, const char *path,
                            const struct flatten_parent *parent, struct chunk_map *chunks,
                            struct flatten_result *r, struct cb_error *err)
{
    const struct flatten_spec spec = {.store = f->store->store,
                                      .layers = f->layers,
                                      .n_layers = n,
                                      .size_bytes = size,
                                      .out_path = path,
                                      .chunks = chunks,
                                      .parent = parent};
    return flatten(&spec, r, err);
}

/* Entries that cannot follow what is there are taken out one by one: what is left is a layer. */
static inline void add_random_layer(struct image_fixture *f)
{
    struct tar_build t;
    tb_init(&t);
    uint32_t n = rnd(20) ? 1 + rnd(ENTRIES) : 0; /* a layer of nothing now and then */
    for (uint32_t i = 0; i < n; i++) {
        struct tar_build with;
        tb_init(&with);
        cb_buf_add(&with.out, t.out.data, t.out.len);
        random_entry(&with);
        size_t len = with.out.len;
        add_layer(f, &with);
        struct flatten_result r;
        (void)unlink(f->path);
        bool good = try_stack(f, f->n, 0, f->path, NULL, NULL, &r, NULL) == 0;
        f->n--;
        if (!good)
            continue;
        /* the same again: add_layer() has taken it */
        struct cb_buf blob = CB_BUF_INIT(0);
        CB_AUTO_FD fd = store_blob_open(f->store->store, &f->layers[f->n].digest, NULL, NULL);
        assert_int_equal(cb_read_fd(fd, "a layer", (size_t)64 << 20, &blob, NULL), 0);
        cb_buf_clear(&t.out);
        cb_buf_add(&t.out, blob.data, len);
        cb_buf_release(&blob);
    }
    add_layer(f, &t);
}
