/* Two images compared: what is found, and what need not be read for it. */
#include "flatten_check.h"

#include "layers/image_diff.h"

#include <sys/stat.h>

struct found {
    struct cb_buf text;
};

static int on_entry(void *arg, const struct diff_entry *e, struct cb_error *err)
{
    struct found *f = arg;
    (void)err;
    const struct ext4_entry *x = e->b ? e->b : e->a;
    (void)cb_buf_addf(&f->text, "%c%s", "+-~"[e->kind], x -> path);
    static const char letters[] = "tcmolx";
    for (unsigned i = 0; i < DIFF_WHAT_N; i++)
        if (e->what & 1u << i)
            (void)cb_buf_addf(&f->text, "%s%c", e->what & ((1u << i) - 1) ? "" : ":", letters[i]);
    (void)cb_buf_adds(&f->text, "\n");
    return 0;
}

/* The layers so far as an image with a map. */
static void make(struct image_fixture *f, const char *path, size_t n, struct chunk_map *map)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    const struct flatten_spec spec = {.store = f->store->store,
                                      .layers = f->layers,
                                      .n_layers = n,
                                      .out_path = path,
                                      .chunks = map};
    assert_ok(flatten(&spec, &f->result, &err), &err);
}

static char *diff(const char *a, const struct chunk_map *am, const char *b,
                  const struct chunk_map *bm, uint64_t *read)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct found f;
    cb_buf_init(&f.text, 1 << 20);
    const struct diff_side x = {a, am}, y = {b, bm};
    assert_ok(image_diff(&x, &y, on_entry, &f, read, &err), &err);
    return cb_buf_take(&f.text);
}

static void add_base(struct image_fixture *f)
{
    struct tar_build t;
    tb_init(&t);
    tb_dir(&t, "a");
    tb_file(&t, "a/b", "below");
    tb_file(&t, "a-b", "beside");
    tb_file(&t, "same", "as it was");
    tb_file(&t, "other", "first bytes");
    tb_file(&t, "owned", "x");
    tb_file(&t, "mode", "x");
    tb_file(&t, "two", "names");
    tb_link(&t, '1', "names", "two");
    tb_link(&t, '2', "link", "same");
    tb_file(&t, "kind", "a file");
    tb_pax_text(&t, "SCHILY.xattr.user.a", "one");
    tb_file(&t, "xattr", "x");
    tb_file(&t, "gone", "gone");
    char *big = cb_xcalloc(1, 3 << 20);
    memset(big, 'b', 3 << 20);
    tb_raw(&t, '0', "big", NULL, big, 3 << 20);
    free(big);
    add_layer(f, &t);
}

static void add_changes(struct image_fixture *f)
{
    struct tar_build t;
    tb_init(&t);
    tb_file(&t, "other", "other bytes"); /* as long as before, and of the same time */
    t.uid = 7;
    tb_file(&t, "owned", "x");
    t.uid = 0;
    t.mode = 0600;
    tb_file(&t, "mode", "x");
    t.mode = 0644;
    tb_file(&t, "names", "names"); /* no other name of "two" any more */
    tb_link(&t, '2', "link", "gone");
    tb_dir(&t, "kind");
    tb_pax_text(&t, "SCHILY.xattr.user.a", "two");
    tb_file(&t, "xattr", "x");
    tb_file(&t, ".wh.gone", "");
    tb_file(&t, "a/new", "new");
    add_layer(f, &t);
}

static void test_what_changed(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_CHUNK_MAP am = {0};
    CB_AUTO_CHUNK_MAP bm = {0};
    CB_AUTO_FREE char *a = cb_xasprintf("%s/a.ext4", f->store->base);
    CB_AUTO_FREE char *b = cb_xasprintf("%s/b.ext4", f->store->base);
    add_base(f);
    add_changes(f);
    make(f, a, 1, &am);
    make(f, b, 2, &bm);
    uint64_t read = 0, all = 0;
    CB_AUTO_FREE char *fast = diff(a, &am, b, &bm, &read);
    CB_AUTO_FREE char *slow = diff(a, NULL, b, NULL, &all);
    assert_string_equal(fast, slow);
    assert_string_equal(fast, "+a/new\n-gone\n~kind:t\n~link:c\n~mode:m\n~other:c\n~owned:o\n"
                              "~two:l\n~xattr:x\n");
    assert_true(read < (2 << 20) && all > (3 << 20)); /* most of "big" is in chunks of both */
    CB_AUTO_FREE char *none = diff(a, &am, a, &am, &read);
    assert_string_equal(none, "");
    assert_int_equal(read, 0);
    CB_AUTO_FREE char *back = diff(b, &bm, a, &am, NULL);
    assert_int_equal(strlen(back), strlen(fast));
}

/* Alike in place, size and time, different in content: nothing but the bytes says so. */
static void test_same_place_other_bytes(void **state)
{
    struct image_fixture *f = *state;
    struct chunk_map maps[2] = {{0}, {0}};
    CB_AUTO_FREE char *a = cb_xasprintf("%s/a.ext4", f->store->base);
    CB_AUTO_FREE char *b = cb_xasprintf("%s/b.ext4", f->store->base);
    for (int i = 0; i < 2; i++) {
        struct tar_build t;
        tb_init(&t);
        size_t n = (size_t)5 << 20;
        char *big = cb_xcalloc(1, n);
        memset(big, 'b', n);
        big[n - 1] = (char)('0' + i);
        tb_raw(&t, '0', "big", NULL, big, n);
        big[n - 1] = 'b';
        tb_raw(&t, '0', "like", NULL, big, n);
        free(big);
        f->n = 0;
        add_layer(f, &t);
        make(f, i ? b : a, 1, &maps[i]);
    }
    uint64_t read = 0;
    CB_AUTO_FREE char *got = diff(a, &maps[0], b, &maps[1], &read);
    assert_string_equal(got, "~big:c\n");
    assert_true(read > 0 && read <= (3 << 20)); /* the chunk that differs, of both files */
    chunk_map_release(&maps[0]);
    chunk_map_release(&maps[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_image(test_what_changed),
        test_image(test_same_place_other_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
