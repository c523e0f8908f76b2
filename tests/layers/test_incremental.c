/* The recursive definition: an image of layers 1 to n has the same bytes whether it is made from
 * nothing, or from an image of layers 1 to k of any size. On random stacks of layers (fixed seeds),
 * so that rules meet that nobody thought of together. */
#include "flatten_check.h"

#include <fcntl.h>

#define STACKS 8
#define ENTRIES 40

static uint32_t state_of_random;

static uint32_t rnd(uint32_t below)
{
    state_of_random = state_of_random * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)(state_of_random >> 4) * below >> 28);
}

/* Few names, so that entries hit each other. */
static void random_path(char *out, size_t size)
{
    static const char *const parts[] = {"a", "b", "c", "d", "link", "usr", "lost+found"};
    size_t n = 0;
    uint32_t depth = 1 + rnd(4);
    for (uint32_t i = 0; i < depth; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%s", i ? "/" : "", parts[rnd(i ? 6 : 7)]);
}

/* Puts a whiteout of @path into @out. */
static void whiteout_of(const char *path, char *out, size_t size)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t n = (size_t)snprintf(out, size, "%.*s.wh.", (int)(name - path), path);
    (void)snprintf(out + n, size - n, "%s", rnd(4) ? name : ".wh..opq");
}

static void random_attributes(struct tar_build *t)
{
    static char large[3000];
    memset(large, 'a' + (int)rnd(26), sizeof(large));
    if (rnd(6) == 0)
        tb_pax(t, "SCHILY.xattr.user.small", large, 1 + rnd(40));
    if (rnd(8) == 0)
        tb_pax(t, "SCHILY.xattr.user.large", large, 500 + rnd(2500));
}

static void random_file(struct tar_build *t, const char *path)
{
    static char data[300000];
    size_t n = rnd(5) == 0 ? rnd(sizeof(data)) : rnd(9000);
    memset(data, rnd(8) ? 'a' + (int)rnd(26) : 0, n);
    random_attributes(t);
    tb_raw(t, '0', path, NULL, data, n);
}

/* More names than a block holds: an index. */
static void many_names(struct tar_build *t, const char *folder)
{
    char path[300];
    uint32_t from = rnd(100), n = 150 + rnd(200);
    for (uint32_t i = from; i < from + n; i++) {
        (void)snprintf(path, sizeof(path), "%.80s/%s%u-with-a-longer-name", folder,
                       rnd(3) ? "n" : ".wh.n", i);
        tb_raw(t, '0', path, NULL, "", 0);
    }
}

static void random_entry(struct tar_build *t)
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

static int try_stack(struct image_fixture *f, size_t n, uint64_t size, const char *path,
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
static void add_random_layer(struct image_fixture *f)
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

static uint64_t random_size(void)
{
    static const uint32_t mib[] = {0, 600, 777, 2048, 2100, 5000, 8192};
    return (uint64_t)mib[rnd(sizeof(mib) / sizeof(*mib))] << 20;
}

/* From each prefix, of another size; then layer by layer. */
static void check_stack(struct image_fixture *f)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    uint64_t size = random_size();
    struct flatten_result want, got, below;
    CB_AUTO_FREE char *last = cb_xasprintf("%s.last", f->path);
    CB_AUTO_FREE char *next = cb_xasprintf("%s.next", f->path);
    (void)unlink(f->path);
    assert_ok(try_stack(f, f->n, size, f->path, NULL, NULL, &want, &err), &err);
    for (int stepwise = 0; stepwise < 2; stepwise++) {
        CB_AUTO_CHUNK_MAP map = {0};
        for (size_t k = 1; k <= f->n; k++) {
            CB_AUTO_FD from = stepwise && k > 1 ? open(last, O_RDONLY | O_CLOEXEC) : -1;
            const struct flatten_parent up = {from, k - 1, &map};
            CB_AUTO_CHUNK_MAP now = {0};
            assert_ok(
                try_stack(f, k, random_size(), next, from >= 0 ? &up : NULL, &now, &below, &err),
                &err);
            assert_int_equal(below.inherited, from >= 0 ? k - 1 : 0);
            chunk_map_release(&map);
            map = now;
            now = (struct chunk_map){0};
            assert_int_equal(rename(next, last), 0);
            CB_AUTO_FD fd = open(last, O_RDONLY | O_CLOEXEC);
            const struct flatten_parent parent = {fd, k, &map};
            assert_ok(try_stack(f, f->n, size, next, &parent, NULL, &got, &err), &err);
            assert_int_equal(got.inherited, k);
            assert_true(cb_digest_eq(&got.digest, &want.digest));
            assert_int_equal(got.entries, want.entries);
            struct cb_digest all; /* of the file, not of what was inherited */
            CB_AUTO_FD made = open(next, O_RDONLY | O_CLOEXEC);
            assert_ok(image_digest(made, &all, NULL, &err), &err);
            assert_true(cb_digest_eq(&all, &want.digest));
            assert_int_equal(unlink(next), 0);
        }
    }
    assert_clean(f->path);
    (void)unlink(last);
}

static void test_random_stacks_are_the_same_by_every_way(void **state)
{
    struct image_fixture *f = *state;
    for (uint32_t seed = 1; seed <= STACKS; seed++) {
        state_of_random = seed * 2654435761u;
        f->n = 0;
        for (size_t n = 2 + rnd(4); f->n < n;)
            add_random_layer(f);
        check_stack(f);
    }
}

static void test_a_parent_that_is_no_image_is_left_aside(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct flatten_result want, got;
    state_of_random = 7;
    add_random_layer(f);
    add_random_layer(f);
    CB_AUTO_FREE char *parent = cb_xasprintf("%s.parent", f->path);
    (void)unlink(f->path);
    assert_ok(try_stack(f, 1, 0, parent, NULL, NULL, &want, &err), &err);
    assert_ok(try_stack(f, 2, 0, f->path, NULL, NULL, &want, &err), &err);
    static const off_t places[] = {1024 + 0x38, 4096, 4096 * 513, 4096 * 529, 4096 * 545 + 256};
    for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
        CB_AUTO_FD fd = open(parent, O_RDWR | O_CLOEXEC);
        unsigned char keep[64], bad[64];
        assert_int_equal(pread(fd, keep, sizeof(keep), places[i]), sizeof(keep));
        for (size_t b = 0; b < sizeof(bad); b++)
            bad[b] = keep[b] ^ 0x5a;
        assert_int_equal(pwrite(fd, bad, sizeof(bad), places[i]), sizeof(bad));
        const struct flatten_parent p = {fd, 1, NULL};
        (void)unlink(f->path);
        assert_ok(try_stack(f, 2, 0, f->path, &p, NULL, &got, &err), &err);
        assert_true(cb_digest_eq(&got.digest, &want.digest));
        assert_int_equal(got.inherited, 0);
        assert_int_equal(pwrite(fd, keep, sizeof(keep), places[i]), sizeof(keep));
    }
    assert_int_equal(unlink(parent), 0);
}

static void test_a_size_that_is_too_small_for_the_parent_is_refused(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct tar_build t;
    static char data[8 << 20];
    memset(data, 'x', sizeof(data));
    tb_init(&t);
    for (int i = 0; i < 6; i++) {
        char name[8];
        (void)snprintf(name, sizeof(name), "%d", i);
        tb_raw(&t, '0', name, NULL, data, sizeof(data));
    }
    add_layer(f, &t);
    CB_AUTO_FREE char *parent = cb_xasprintf("%s.parent", f->path);
    assert_ok(try_stack(f, 1, 0, parent, NULL, NULL, &f->result, &err), &err);
    CB_AUTO_FD fd = open(parent, O_RDONLY | O_CLOEXEC);
    const struct flatten_parent p = {fd, 1, NULL};
    assert_int_equal(try_stack(f, 1, (uint64_t)120 << 20, f->path, &p, NULL, &f->result, &err),
                     -CB_E_LIMIT);
    assert_non_null(strstr(err.msg, "120"));
    assert_non_null(err.hint);
    assert_int_not_equal(access(f->path, F_OK), 0);
    assert_int_equal(unlink(parent), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_image(test_random_stacks_are_the_same_by_every_way),
        test_image(test_a_parent_that_is_no_image_is_left_aside),
        test_image(test_a_size_that_is_too_small_for_the_parent_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
