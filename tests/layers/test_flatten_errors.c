/* Bad layers: what is refused, in which words, and that nothing is left behind. */
#include "flatten_check.h"

struct bad_entry {
    char kind;
    const char *path, *link;
    const char *key, *value; /* a PAX record, or NULL */
    enum cb_code code;
    const char *words;
};

static void test_flatten_refuses_a_bad_entry(void **state)
{
    struct image_fixture *f = *state;
    char long_name[258], deep[4300], long_link[4200];
    memset(long_name, 'n', sizeof(long_name));
    long_name[256] = '\0';
    memset(long_link, 'l', sizeof(long_link));
    long_link[4100] = '\0';
    for (size_t i = 0; i < sizeof(deep); i++)
        deep[i] = i % 100 == 99 ? '/' : 'd';
    deep[4200] = '\0';
    const struct bad_entry bad[] = {
        {'0', "../x", NULL, NULL, NULL, CB_E_CORRUPT, "entry ../x: a path with \"..\""},
        {'0', "a/../../x", NULL, NULL, NULL, CB_E_CORRUPT, "entry a/../../x: a path with"},
        {'0', "x", NULL, "path", long_name, CB_E_CORRUPT, "a name of 256 bytes; the most is 255"},
        {'0', "x", NULL, "path", deep, CB_E_LIMIT, "a path above 4096 bytes"},
        {'0', ".", NULL, NULL, NULL, CB_E_CORRUPT, "the root can only be a folder"},
        {'2', "/", "target", NULL, NULL, CB_E_CORRUPT, "the root can only be a folder"},
        {'0', "file/x", NULL, NULL, NULL, CB_E_CORRUPT, "its parent file is not a folder"},
        {'0', "loop/x", NULL, NULL, NULL, CB_E_CORRUPT, "more than 40 symbolic links"},
        {'0', ".wh.", NULL, NULL, NULL, CB_E_CORRUPT, "entry .wh.: a whiteout of no name"},
        {'0', "d/.wh..", NULL, NULL, NULL, CB_E_CORRUPT, "a whiteout of no name"},
        {'0', "d/.wh...", NULL, NULL, NULL, CB_E_CORRUPT, "a whiteout of no name"},
        {'1', "x", "missing", NULL, NULL, CB_E_CORRUPT,
         "entry x: a hard link to missing, which does not exist"},
        {'1', "x", "missing/too", NULL, NULL, CB_E_CORRUPT, "which does not exist"},
        {'1', "x", "d", NULL, NULL, CB_E_CORRUPT, "a hard link to d, which is a folder"},
        {'1', "x", "../etc/passwd", NULL, NULL, CB_E_CORRUPT,
         "entry x: the target of a hard link: a path with \"..\""},
        {'2', "x", "", NULL, NULL, CB_E_CORRUPT, "a symbolic link to nothing"},
        {'2', "x", "y", "linkpath", long_link, CB_E_LIMIT, "a path of 4100 bytes"},
        {'3', "x", NULL, NULL, NULL, CB_E_CORRUPT, "a character device 0:0"},
        {'Z', "x", NULL, NULL, NULL, CB_E_CORRUPT,
         "entry x: its tar type is 0x5a ('Z'), which a layer cannot have"},
        {'8', "x", NULL, "path", "a/longer/name", CB_E_CORRUPT,
         "entry a/longer/name: its tar type is 0x38 ('8'), which"},
        {'0', "x", NULL, "uid", "4294967296", CB_E_CORRUPT, "owner 4294967296:0 is out of range"},
        {'0', "x", NULL, "gid", "-5", CB_E_CORRUPT, "entry x: tar: its group is not a number"},
        {'0', "lost+found", NULL, NULL, NULL, CB_E_CORRUPT, "lost+found of the root folder"},
        {'0', "x", NULL, "SCHILY.xattr.system.posix_acl_access", "nonsense", CB_E_CORRUPT,
         "a malformed POSIX ACL"},
        {'0', "x", NULL, "SCHILY.xattr.user.k", long_link, CB_E_LIMIT,
         "the extended attribute user.k is too large (4100 bytes)"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct tar_build t;
        f->n = 0;
        tb_init(&t);
        tb_dir(&t, "d");
        tb_file(&t, "file", "x");
        tb_link(&t, '2', "loop", "loop");
        if (bad[i].key)
            tb_pax_text(&t, bad[i].key, bad[i].value);
        tb_raw(&t, bad[i].kind, bad[i].path, bad[i].link, NULL, 0);
        add_layer(f, &t);
        assert_fails(try_flatten(f, 0, &err), &err, bad[i].code, bad[i].words);
        assert_false(cb_path_exists(f->path));
        assert_fails(try_flatten(f, 0, &err), &err, bad[i].code, "layer 1 of 1 (");
    }
}

/* Bytes of a layer as they are, with the digests that belong to them unless @wrong. */
static void add_bytes(struct image_fixture *f, const void *p, size_t n, bool wrong)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct layer_blob *l = &f->layers[f->n++];
    assert_ok(store_blob_put(f->store->store, p, n, &l->digest, &err), &err);
    l->size = n;
    l->diff_id = l->digest;
    l->diff_id.b[0] ^= wrong;
}

static void test_flatten_refuses_broken_streams(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    tb_init(&t);
    tb_file(&t, "first", "12");
    tb_file(&t, "second", "2");
    tb_end(&t);
    CB_AUTO_ERROR err = CB_ERROR_INIT;

    add_bytes(f, t.out.data, 513, false); /* in the middle of the data */
    assert_fails(try_flatten(f, 0, &err), &err, CB_E_CORRUPT,
                 "entry first: tar: ends in the middle of an entry's data");
    f->n = 0;
    add_bytes(f, t.out.data, 1300, false); /* in the middle of a header */
    assert_fails(try_flatten(f, 0, &err), &err, CB_E_CORRUPT,
                 "after entry first: tar: ends in the middle of a header");
    f->n = 0;
    add_bytes(f, "no tar at all, but bytes", 24, false);
    assert_fails(try_flatten(f, 0, &err), &err, CB_E_CORRUPT, "): tar: ends in the middle of a");
    f->n = 0;
    t.out.data[1024 + 3] ^= 1; /* the second name */
    add_bytes(f, t.out.data, t.out.len, false);
    assert_fails(try_flatten(f, 0, &err), &err, CB_E_CORRUPT,
                 "after entry first: tar: a damaged header");
    t.out.data[1024 + 3] ^= 1;
    f->n = 0;
    add_bytes(f, t.out.data, t.out.len, true);
    assert_fails(try_flatten(f, 0, &err), &err, CB_E_CORRUPT, "the image's config says sha256:");
    f->n = 0;
    add_bytes(f, "\3757zXZ\0more", 10, false);
    assert_fails(try_flatten(f, 0, &err), &err, CB_E_CORRUPT, "compressed with xz");
    assert_false(cb_path_exists(f->path));
    tb_release(&t);
}

static void test_flatten_accepts_an_early_end(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    tb_init(&t);
    tb_file(&t, "a", "1");
    add_bytes(f, t.out.data, t.out.len, false); /* no block of zeros */
    static const char zero[512];
    cb_buf_add(&t.out, zero, sizeof(zero));
    add_bytes(f, t.out.data, t.out.len, false); /* one */
    add_bytes(f, "", 0, false);
    tb_release(&t);
    flatten_clean(f);
    assert_content(f, "/a", "1");
}

static void test_flatten_refuses_what_does_not_fit(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct tar_build t;
    tb_init(&t);
    static char data[4 << 20];
    memset(data, 'x', sizeof(data));
    for (int i = 0; i < 10; i++) {
        char name[16];
        (void)snprintf(name, sizeof(name), "f%d", i);
        tb_raw(&t, '0', name, NULL, data, sizeof(data));
    }
    add_layer(f, &t);
    assert_fails(try_flatten(f, (uint64_t)1 << 20, &err), &err, CB_E_LIMIT,
                 "a file system of 1 MiB; the least is");
    assert_int_equal(try_flatten(f, (uint64_t)120 << 20, &err), -CB_E_LIMIT);
    assert_non_null(strstr(err.msg, "needs more than the 120 MiB"));
    assert_non_null(strstr(err.hint, "rootfs_size_gb"));
    assert_false(cb_path_exists(f->path));
    cb_error_clear(&err);

    assert_ok(try_flatten(f, (uint64_t)1 << 30, &err), &err);
    assert_int_equal(f->result.size, (uint64_t)1 << 30);
    assert_clean(f->path);
    assert_fails(try_flatten(f, 0, &err), &err, CB_E_SYS, "File exists"); /* never over another's */
    assert_true(cb_path_exists(f->path));
}

static void test_flatten_names_a_missing_blob(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    f->n = 1;
    assert_fails(try_flatten(f, 0, &err), &err, CB_E_NOTFOUND, "layer 1 of 1 (000000000000): ");
    assert_false(cb_path_exists(f->path));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_image(test_flatten_refuses_a_bad_entry),
        test_image(test_flatten_refuses_broken_streams),
        test_image(test_flatten_accepts_an_early_end),
        test_image(test_flatten_refuses_what_does_not_fit),
        test_image(test_flatten_names_a_missing_blob),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
