/* File data, big folders, attributes and compressed layers, as they come out of the image. */
#include "flatten_check.h"

#include <fcntl.h>

/* Writes @path of the image to a host file and gives its SHA-256. */
static void digest_in_image(struct image_fixture *f, const char *path, struct cb_digest *out)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *dump = cb_xasprintf("%s/dump", f->store->base);
    CB_AUTO_FREE char *command = cb_xasprintf("dump %s %s", path, dump);
    CB_AUTO_FREE char *words = debugfs(f, command);
    CB_AUTO_FD fd = open(dump, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        fail_msg("%s: %s", path, words);
    assert_ok(cb_sha256_fd(fd, out, &err), &err);
    (void)unlink(dump);
}

/* ---- sparse files, by the tar program ---- */

static void make_sparse(const char *path, struct cb_digest *d)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    char block[5000];
    memset(block, 's', sizeof(block));
    assert_int_equal(ftruncate(fd, 40 << 20),
                     0);           /* first: XFS leaves no holes in a file that grows */
    for (int i = 0; i < 1500; i++) /* more extents than fit into an inode and one leaf block */
        assert_ok(cb_pwrite_all(fd, block, i % 3 ? 4096 : sizeof(block), (off_t)i * 16384, &err),
                  &err);
    assert_ok(cb_sha256_fd(fd, d, &err), &err);
}

static void add_tar_of(struct image_fixture *f, const char *const *argv)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_proc_result r = {0};
    const struct cb_proc_spec spec = {.argv = argv, .cwd = f->store->base};
    assert_ok(cb_proc_run(&spec, NULL, (size_t)64 << 20, 60000, &r, &err), &err);
    assert_ok(cb_proc_check(&r, "tar", &err), &err);
    struct layer_blob *l = &f->layers[f->n++];
    assert_ok(store_blob_put(f->store->store, r.out.data, r.out.len, &l->digest, &err), &err);
    l->diff_id = l->digest;
    l->size = r.out.len;
    cb_proc_result_release(&r);
}

static void test_flatten_keeps_holes_of_every_sparse_format(void **state)
{
    struct image_fixture *f = *state;
    static const char *const formats[][2] = {{"--format=gnu", "--sparse-version=0.0"},
                                             {"--format=pax", "--sparse-version=0.0"},
                                             {"--format=pax", "--sparse-version=0.1"},
                                             {"--format=pax", "--sparse-version=1.0"}};
    struct cb_digest want, got;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/sparse", f->store->base);
    make_sparse(path, &want);
    for (size_t i = 0; i < 4; i++) {
        const char *argv[] = {"tar", "-S", formats[i][0], formats[i][1],
                              "-cf", "-",  "sparse",      NULL};
        f->n = 0;
        add_tar_of(f, argv);
        flatten_clean(f);
        digest_in_image(f, "/sparse", &got);
        assert_true(cb_digest_eq(&want, &got));
        assert_stat(f, "/sparse", "Size: 41943040");
        CB_AUTO_FREE char *stat = debugfs(f, "stat /sparse");
        const char *blocks = strstr(stat, "Blockcount: ");
        assert_non_null(blocks);
        assert_true(strtol(blocks + 12, NULL, 10) < 20000); /* of 81920 */
    }
    struct tar_build t; /* replaced: all blocks of its tree are free again, e2fsck would tell */
    tb_init(&t);
    tb_file(&t, "sparse", "dense");
    add_layer(f, &t);
    flatten_clean(f);
    assert_content(f, "/sparse", "dense");
}

/* ---- files larger than a group, holes of zeros, odd lengths ---- */

static void test_flatten_writes_large_files(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    static const uint64_t sizes[] = {1, 4095, 4096, 4097, 1 << 20, (700u << 20) + 5};
    CB_AUTO_FREE char *piece = cb_xmalloc(1 << 20);
    struct cb_digest want[6], got;
    struct blob_writer *w = NULL;
    struct cb_hasher *file = cb_hasher_new(), *all = cb_hasher_new();
    assert_ok(store_blob_begin(f->store->store, NULL, UINT64_MAX, &w, &err), &err);
    for (size_t i = 0; i < 7; i++) {
        struct tar_build t;
        tb_init(&t);
        char name[8];
        (void)snprintf(name, sizeof(name), "f%zu", i);
        if (i < 6)
            tb_header(&t, '0', name, NULL, sizes[i]);
        else
            tb_end(&t);
        cb_hasher_update(all, t.out.data, t.out.len);
        assert_ok(blob_writer_add(w, t.out.data, t.out.len, &err), &err);
        tb_release(&t);
        for (uint64_t at = 0; i < 6 && at < sizes[i]; at += 1 << 20) {
            uint64_t n = sizes[i] - at < 1 << 20 ? sizes[i] - at : 1 << 20;
            memset(piece, at % (5 << 20) ? 0 : (int)(at >> 20) + 1, n); /* mostly zeros */
            memset(piece + n, 0, at + n == sizes[i] && n < 1 << 20 ? (512 - n % 512) % 512 : 0);
            cb_hasher_update(file, piece, n);
            n += (512 - n % 512) % 512;
            cb_hasher_update(all, piece, n);
            assert_ok(blob_writer_add(w, piece, n, &err), &err);
        }
        if (i < 6)
            cb_hasher_final(file, &want[i]);
    }
    struct layer_blob *l = &f->layers[f->n++];
    cb_hasher_final(all, &l->diff_id);
    assert_ok(blob_writer_commit(w, &l->digest, &l->size, &err), &err);
    cb_hasher_free(file);
    cb_hasher_free(all);
    flatten_clean(f);
    assert_true(f->result.allocated < (uint64_t)200 << 20); /* zeros are holes of the file */
    for (int i = 0; i < 6; i++) {
        char name[8];
        (void)snprintf(name, sizeof(name), "/f%d", i);
        digest_in_image(f, name, &got);
        assert_true(cb_digest_eq(&want[i], &got));
    }
}

/* ---- folders ---- */

static void test_flatten_indexes_big_folders(void **state)
{
    struct image_fixture *f = *state;
    static const int sizes[] = {1, 100, 340, 1000, 60000};
    struct tar_build t;
    tb_init(&t);
    for (size_t i = 0; i < 5; i++)
        for (int k = 0; k < sizes[i]; k++) {
            char name[120];
            (void)snprintf(name, sizeof(name), "d%zu/%.*s%d", i, k % 41,
                           "a-rather-long-name-that-makes-entries-differ", k);
            tb_link(&t, k ? '1' : '0', name,
                    k ? "d0/0" : ""); /* links: fast to make and to check */
            if (k % 30000 == 29999)
                tb_file(&t, "d0/0", ""); /* the most links that ext4 has are 65000 */
        }
    add_layer(f, &t);
    flatten_clean(f);
    assert_int_equal(f->result.entries, 1 + 5 + 61441);
    assert_stat(f, "/d2", "Flags: 0x81000"); /* extents, index */
    assert_stat(f, "/d0", "Flags: 0x80000");
    assert_true(in_image(f, "/d4/a-rather-long-na59999"));
    CB_AUTO_FREE char *tree = debugfs(f, "htree_dump /d4");
    assert_non_null(strstr(tree, "Indirect levels: 1"));
}

/* ---- attributes ---- */

static void test_flatten_stores_attributes_in_inode_and_block(void **state)
{
    struct image_fixture *f = *state;
    static const char acl[] =
        "\2\0\0\0\1\0\6\0\377\377\377\377\2\0\6\0\350\3\0\0\4\0\4\0\377\377\377"
        "\377\20\0\6\0\377\377\377\377 \0\4\0\377\377\377";
    char large[3001];
    memset(large, 'L', 3000);
    large[3000] = '\0';
    struct tar_build t;
    tb_init(&t);
    tb_pax(&t, "SCHILY.xattr.user.binary", "\0\n=\377", 4);
    tb_pax_text(&t, "SCHILY.xattr.trusted.overlay.opaque", "y");
    tb_pax_text(&t, "SCHILY.xattr.trusted.x", "y");
    tb_pax_text(&t, "SCHILY.xattr.security.selinux", "label");
    tb_pax_text(&t, "SCHILY.xattr.user.overlay.origin", "y");
    tb_file(&t, "small", "x");
    tb_pax_text(&t, "SCHILY.xattr.user.large", large);
    tb_pax_text(&t, "SCHILY.xattr.user.small", "s");
    tb_pax(&t, "SCHILY.xattr.system.posix_acl_access", acl, sizeof(acl));
    tb_file(&t, "large", "x");
    tb_pax_text(&t, "SCHILY.xattr.user.k", "v");
    tb_link(&t, '2', "link", "x"); /* a link cannot have any */
    add_layer(f, &t);
    flatten_clean(f);
    CB_AUTO_FREE char *small = debugfs(f, "ea_list /small");
    assert_non_null(strstr(small, "user.binary (4) = 00 0a 3d ff"));
    assert_null(strstr(small, "trusted"));
    assert_null(strstr(small, "security"));
    assert_null(strstr(small, "overlay"));
    CB_AUTO_FREE char *big = debugfs(f, "ea_list /large");
    assert_non_null(strstr(big, "user.large (3000)"));
    assert_non_null(strstr(big, "user.small (1) = \"s\""));
    assert_non_null(strstr(big, "system.posix_acl_access"));
    CB_AUTO_FREE char *link = debugfs(f, "ea_list /link");
    assert_null(strstr(link, "user.k"));

    struct tar_build u; /* replaced: the block is free again, e2fsck would tell */
    tb_init(&u);
    tb_file(&u, "large", "y");
    add_layer(f, &u);
    flatten_clean(f);
}

/* In an order that neither the inode nor the block keeps; then a folder gets others. */
static void test_flatten_stores_many_attributes(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    tb_init(&t);
    for (int layer = 0; layer < 2; layer++) {
        for (int i = 0; i < 40; i++) {
            char name[60], value[80];
            int k = i * 17 % 40;
            (void)snprintf(name, sizeof(name), "SCHILY.xattr.user.%.*s-%d-%d", k % 9, "aaaaaaaaa",
                           layer, k);
            (void)snprintf(value, sizeof(value), "%0*d", 2 + k % 30, k);
            tb_pax_text(&t, name, value);
        }
        tb_dir(&t, "d");
        add_layer(f, &t);
        tb_init(&t);
        flatten_clean(f);
        CB_AUTO_FREE char *list = debugfs(f, "ea_list /d");
        for (int k = 0; k < 40; k++) {
            char line[120];
            (void)snprintf(line, sizeof(line), "user.%.*s-%d-%d (%d) = \"%0*d\"", k % 9,
                           "aaaaaaaaa", layer, k, 2 + k % 30, 2 + k % 30, k);
            if (!strstr(list, line))
                fail_msg("no %s in\n%s", line, list);
        }
        assert_null(strstr(list, layer ? "-0-" : "-1-"));
    }
    tb_dir(&t, "d"); /* and then none */
    add_layer(f, &t);
    flatten_clean(f);
    CB_AUTO_FREE char *none = debugfs(f, "ea_list /d");
    assert_null(strstr(none, "user."));
    assert_stat(f, "/d", "File ACL: 0");
}

static void test_flatten_refuses_what_no_attribute_can_be(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    static const struct {
        const char *value;
        size_t len;
        const char *words; /* NULL: it is fine */
    } acls[] = {
        {"\2\0\0\0", 4, NULL}, /* no entries: no ACL */
        {"\1\0\0\0", 4, "a malformed POSIX ACL"},
        {"\2\0\0", 3, "a malformed POSIX ACL"},
        {"\2\0\0\0\1\0\6\0\377\377\377", 11, "a malformed POSIX ACL"},
        {"\2\0\0\0\3\0\6\0\377\377\377\377", 12, "a malformed POSIX ACL"},
    };
    for (size_t i = 0; i < sizeof(acls) / sizeof(*acls); i++) {
        struct tar_build t;
        f->n = 0;
        tb_init(&t);
        tb_pax(&t, "SCHILY.xattr.system.posix_acl_access", acls[i].value, acls[i].len);
        tb_file(&t, "x", "");
        add_layer(f, &t);
        (void)unlink(f->path);
        if (acls[i].words)
            assert_fails(try_flatten(f, 0, &err), &err, CB_E_CORRUPT, acls[i].words);
        else
            flatten_clean(f);
    }
    struct tar_build t;
    static char large[2500];
    memset(large, 'x', sizeof(large));
    f->n = 0;
    tb_init(&t);
    tb_pax(&t, "SCHILY.xattr.user.a", large, sizeof(large));
    tb_pax(&t, "SCHILY.xattr.user.b", large, sizeof(large));
    tb_file(&t, "x", "");
    add_layer(f, &t);
    (void)unlink(f->path);
    assert_fails(try_flatten(f, 0, &err), &err, CB_E_LIMIT,
                 "entry x: its extended attributes do not fit into an inode and one block");
}

static void test_flatten_keeps_times_of_all_centuries(void **state)
{
    struct image_fixture *f = *state;
    static const struct {
        const char *mtime, *shown;
    } times[] = {
        {"0", "mtime: 0x00000000:00000000"},
        {"1234567890.123456789", "mtime: 0x499602d2:1d6f3454"},
        {"-1", "mtime: 0xffffffff:00000000"},
        {"-1.25", "mtime: 0xfffffffe:b2d05e00"},
        {"-2147483648", "mtime: 0x80000000:00000000"},
        {"-99999999999", "mtime: 0x80000000:00000000"}, /* the earliest there is */
        {"2147483648", "mtime: 0x80000000:00000001"},
        {"4102444800.5", "mtime: 0xf4865700:77359401"},
        {"15032385535", "mtime: 0x7fffffff:00000003"},
        {"99999999999.5", "mtime: 0x7fffffff:00000003"}, /* the latest */
    };
    struct tar_build t;
    tb_init(&t);
    for (size_t i = 0; i < sizeof(times) / sizeof(*times); i++) {
        char name[16];
        (void)snprintf(name, sizeof(name), "t%zu", i);
        tb_pax_text(&t, "mtime", times[i].mtime);
        tb_file(&t, name, "");
    }
    add_layer(f, &t);
    flatten_clean(f);
    for (size_t i = 0; i < sizeof(times) / sizeof(*times); i++) {
        char name[16];
        (void)snprintf(name, sizeof(name), "/t%zu", i);
        assert_stat(f, name, times[i].shown);
    }
}

/* ---- size and growth ---- */

static void test_an_image_can_grow(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    tb_init(&t);
    tb_file(&t, "a", "x");
    add_layer(f, &t);
    flatten_clean(f);
    const char *argv[] = {"resize2fs", f->path, "40G", NULL};
    struct cb_buf out;
    int status = run_tool(argv, &out);
    if (status != 0)
        fail_msg("%s", out.data);
    cb_buf_release(&out);
    assert_clean(f->path);
    assert_content(f, "/a", "x");
}

static void test_make_empty_is_clean_at_every_size(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    /* whole groups, last groups that are too small for a group, odd bytes */
    static const uint64_t mib[] = {128, 129, 200, 256, 260, 1024, 2048, 2050, 2060, 20480, 300000};
    for (size_t i = 0; i < sizeof(mib) / sizeof(*mib); i++) {
        (void)unlink(f->path);
        assert_ok(ext4_make_empty(f->path, (mib[i] << 20) + 100, "scratch", &err), &err);
        assert_clean(f->path);
        struct stat st;
        assert_int_equal(stat(f->path, &st), 0);
        assert_int_equal(st.st_size, mib[i] << 20);
        assert_true(st.st_blocks * 512 < 16 << 20);
    }
    (void)unlink(f->path);
    assert_fails(ext4_make_empty(f->path, 50 << 20, NULL, &err), &err, CB_E_LIMIT, "the least is");
    assert_fails(ext4_make_empty(f->path, 1 << 30, "a label of 17 byt", &err), &err, CB_E_CONFIG,
                 "longer than 16 bytes");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_image(test_flatten_keeps_holes_of_every_sparse_format),
        test_image(test_flatten_writes_large_files),
        test_image(test_flatten_indexes_big_folders),
        test_image(test_flatten_stores_attributes_in_inode_and_block),
        test_image(test_flatten_stores_many_attributes),
        test_image(test_flatten_refuses_what_no_attribute_can_be),
        test_image(test_flatten_keeps_times_of_all_centuries),
        test_image(test_an_image_can_grow),
        test_image(test_make_empty_is_clean_at_every_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
