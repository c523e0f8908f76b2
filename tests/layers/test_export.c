/* Exports of an image that has a bit of everything, and what an export leaves when it is stopped.
 */
#include "flatten_check.h"

#include "layers/export.h"
#include "layers/gzip.h"
#include "layers/inflate.h"
#include "layers/vmlinux.h"
#include "schemas/oci.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <locale.h>
#include <sys/file.h>
#include <sys/stat.h>

static struct template_manifest *publish(struct image_fixture *f)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct tar_build t;
    tb_init(&t);
    tb_dir(&t, "d");
    tb_file(&t, "d/file", "content");
    tb_link(&t, '1', "d/again", "d/file");
    tb_link(&t, '2', "link", "d/file");
    tb_pax_text(&t, "mtime", "1700000001.123456789");
    tb_pax_text(&t, "SCHILY.xattr.user.x", "value");
    t.uid = 3000000;
    tb_file(&t, "owned", "x");
    t.uid = 0;
    tb_file(&t, "caf\xc3\xa9", "utf-8");
    tb_file(&t, "odd\xff", "no utf-8");
    tb_pax_text(&t, "GNU.sparse.size", "1048576");
    tb_pax_text(&t, "GNU.sparse.numblocks", "1");
    tb_pax_text(&t, "GNU.sparse.map", "1044480,4096");
    char block[4096];
    memset(block, 'e', sizeof(block));
    tb_raw(&t, '0', "sparse", NULL, block, sizeof(block));
    tb_pax_text(&t, "GNU.sparse.size", "1048576");
    tb_pax_text(&t, "GNU.sparse.numblocks", "1");
    tb_pax_text(&t, "GNU.sparse.map", "1048576,0");
    tb_raw(&t, '0', "hole", NULL, NULL, 0);
    add_layer(f, &t);
    f->path = (free(f->path), store_tmp_path(f->store->store, "image"));
    assert_ok(try_flatten(f, 0, &err), &err);
    assert_ok(store_image_publish(f->store->store, f->path, &f->result.digest, &err), &err);
    struct template_manifest *m = cb_xcalloc(1, sizeof(*m));
    m->name = cb_xstrdup("web");
    m->version = 2;
    m->image = f->result.digest;
    m->image_size = f->result.size;
    m->image_allocated = f->result.allocated;
    return m;
}

static int names_in(const char *dir)
{
    CB_AUTO_DIR d = opendir(dir);
    int n = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    return n;
}

/* A fresh folder for results. Owned. */
static char *out_dir(struct image_fixture *f)
{
    char *dir = cb_xasprintf("%s/out", f->store->base);
    assert_int_equal(mkdir(dir, 0755), 0);
    return dir;
}

static void test_ext4_is_the_image(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct template_manifest *m = publish(f);
    CB_AUTO_FREE char *dir = out_dir(f);
    CB_AUTO_FREE char *out = cb_xasprintf("%s/x.ext4", dir);
    struct export_spec spec = {.store = f->store->store, .t = m, .format = EXPORT_EXT4, .out = out};
    uint64_t size = 0;
    for (int i = 0; i < 2; i++) { /* the second replaces the first */
        assert_ok(export_run(&spec, &size, &err), &err);
        assert_int_equal(size, f->result.size);
        CB_AUTO_FD fd = open(out, O_RDONLY | O_CLOEXEC);
        struct cb_digest d;
        assert_ok(image_digest(fd, &d, NULL, &err), &err);
        assert_true(cb_digest_eq(&d, &m->image));
        assert_int_equal(names_in(dir), 1);
    }
    spec.size = f->result.size - 1;
    assert_fails(export_run(&spec, &size, &err), &err, CB_E_CONFIG, "the file system has");
    spec.size = f->result.size * 2;
    assert_ok(export_run(&spec, &size, &err), &err);
    assert_int_equal(size, f->result.size * 2);
    assert_clean(out);
    template_manifest_free(m);
}

static void test_dir_tar_holds_everything(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct template_manifest *m = publish(f);
    CB_AUTO_FREE char *dir = out_dir(f);
    CB_AUTO_FREE char *out = cb_xasprintf("%s/x.tar", dir);
    const struct export_spec spec = {
        .store = f->store->store, .t = m, .format = EXPORT_DIR_TAR, .out = out};
    assert_ok(export_run(&spec, NULL, &err), &err);
    struct archive *a = archive_read_new();
    assert_int_equal(archive_read_support_format_tar(a), ARCHIVE_OK);
    assert_int_equal(archive_read_open_filename(a, out, 65536), ARCHIVE_OK);
    CB_AUTO_BUF names = CB_BUF_INIT(65536);
    struct archive_entry *e;
    int rc;
    while ((rc = archive_read_next_header(a, &e)) == ARCHIVE_OK || rc == ARCHIVE_WARN) {
        const char *name = archive_entry_pathname(e);
        (void)cb_buf_addf(&names, "%s ", name);
        if (strcmp(name, "./d/file") == 0)
            assert_string_equal(archive_entry_hardlink(e), "./d/again");
        if (strcmp(name, "./owned") == 0) {
            assert_int_equal(archive_entry_uid(e), 3000000);
            assert_int_equal(archive_entry_mtime_nsec(e), 123456789);
            assert_int_equal(archive_entry_xattr_reset(e), 1);
        }
        if (strcmp(name, "./sparse") == 0) {
            assert_int_equal(archive_entry_size(e), 1 << 20);
            assert_int_equal(archive_entry_sparse_count(e), 1);
        }
        if (strcmp(name, "./hole") == 0)
            assert_int_equal(archive_entry_size(e), 1 << 20);
    }
    assert_string_equal(names.data, "./ ./caf\xc3\xa9 ./d/ ./d/again ./d/file ./hole ./link "
                                    "./odd\xff ./owned ./sparse ");
    struct stat st;
    assert_int_equal(stat(out, &st), 0);
    assert_true(st.st_size < 100000); /* no holes in it */
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_int_equal(archive_read_free(a), ARCHIVE_OK);
    template_manifest_free(m);
}

static int looks;
static bool stop_at_third_look(void)
{
    return ++looks >= 3;
}

static void test_a_stopped_export_leaves_nothing(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct template_manifest *m = publish(f);
    CB_AUTO_FREE char *dir = out_dir(f);
    CB_AUTO_FREE char *out = cb_xasprintf("%s/x", dir);
    static const enum export_format formats[] = {EXPORT_DIR_TAR};
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
        looks = 0;
        const struct export_spec spec = {.store = f->store->store,
                                         .t = m,
                                         .format = formats[i],
                                         .out = out,
                                         .canceled = stop_at_third_look};
        assert_fails(export_run(&spec, NULL, &err), &err, CB_E_CANCELED, "interrupted");
        assert_int_equal(names_in(dir), 0);
    }
    template_manifest_free(m);
}

static void test_what_a_killed_export_left_is_removed(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct template_manifest *m = publish(f);
    CB_AUTO_FREE char *dir = out_dir(f);
    CB_AUTO_FREE char *out = cb_xasprintf("%s/x", dir);
    CB_AUTO_FREE char *dead = cb_xasprintf("%s/.capsule-export-dead00", dir);
    CB_AUTO_FREE char *alive = cb_xasprintf("%s/.capsule-export-alive0", dir);
    CB_AUTO_FREE char *part = cb_xasprintf("%s/out", dead);
    assert_int_equal(mkdir(dead, 0700) | mkdir(alive, 0700), 0);
    assert_ok(cb_write_file(part, "half", 4, 0600, &err), &err);
    CB_AUTO_FD held = open(alive, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(flock(held, LOCK_EX | LOCK_NB), 0);
    const struct export_spec spec = {
        .store = f->store->store, .t = m, .format = EXPORT_EXT4, .out = out};
    assert_ok(export_run(&spec, NULL, &err), &err);
    assert_false(cb_path_exists(dead));
    assert_true(cb_path_exists(alive));
    template_manifest_free(m);
}

static void test_options_that_do_not_fit(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct template_manifest *m = publish(f);
    CB_AUTO_FREE char *dir = out_dir(f);
    CB_AUTO_FREE char *in_nowhere = cb_xasprintf("%s/none/x", dir);
    CB_AUTO_FREE char *slash = cb_xasprintf("%s/", dir);
    const struct {
        enum export_format format;
        const char *out, *kernel_dir;
        uint64_t size;
        enum cb_code code;
        const char *text;
    } cases[] = {
        {EXPORT_DIR_TAR, "x", NULL, 1, CB_E_CONFIG, "--size: --format dir-tar has none"},
        {EXPORT_OCI, "x", "k", 0, CB_E_CONFIG, "--with-kernel belongs to --format ext4"},
        {EXPORT_EXT4, "x", dir, 0, CB_E_CONFIG, "is there already"},
        {EXPORT_EXT4, dir, NULL, 0, CB_E_CONFIG, "is there, and is not a file"},
        {EXPORT_EXT4, slash, NULL, 0, CB_E_CONFIG, "not the name of a file"},
        {EXPORT_EXT4, in_nowhere, NULL, 0, CB_E_SYS, "No such file or directory"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct export_spec spec = {.store = f->store->store,
                                         .t = m,
                                         .format = cases[i].format,
                                         .out = cases[i].out,
                                         .size = cases[i].size,
                                         .kernel_dir = cases[i].kernel_dir};
        assert_fails(export_run(&spec, NULL, &err), &err, cases[i].code, cases[i].text);
    }
    assert_int_equal(names_in(dir), 0);
    template_manifest_free(m);
}

static void keep_note(void *arg, const char *text)
{
    cb_buf_addf(arg, "%s\n", text);
}

static void test_a_drive_is_a_file_of_its_own(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct template_manifest *m = publish(f);
    CB_AUTO_FREE char *dir = out_dir(f);
    CB_AUTO_FREE char *out = cb_xasprintf("%s/x", dir);
    CB_AUTO_BUF notes = CB_BUF_INIT(4096);
    const struct layers_progress progress = {.note = keep_note, .arg = &notes};
    struct export_spec spec = {.store = f->store->store,
                               .t = m,
                               .format = EXPORT_EXT4,
                               .out = out,
                               .drive = "seed",
                               .progress = &progress};
    assert_fails(export_run(&spec, NULL, &err), &err, CB_E_NOTFOUND,
                 "web version 2 has no drive seed");
    char id[] = "seed", label[] = "cb-seed", at[] = "/drives/seed";
    struct drive_image d = {.drive_id = id, .label = label, .mount_path = at, .image = m->image};
    m->drives = drive_images_dup(&d, 1);
    m->n_drives = 1;
    spec.drive = NULL;
    assert_ok(export_run(&spec, NULL, &err), &err);
    assert_string_equal(
        notes.data, "its drives (seed) are not part of it: --format ext4 --drive ID writes one\n");
    m->image.b[0] ^= 1; /* the root is not what is written, nor looked for */
    assert_fails(export_run(&spec, NULL, &err), &err, CB_E_NOTFOUND, "the image of web version 2");
    cb_buf_clear(&notes);
    spec.drive = "seed";
    assert_ok(export_run(&spec, NULL, &err), &err);
    assert_int_equal(notes.len, 0);
    struct cb_digest got;
    CB_AUTO_FD fd = open(out, O_RDONLY | O_CLOEXEC);
    assert_ok(image_digest(fd, &got, NULL, &err), &err);
    assert_true(cb_digest_eq(&got, &d.image));
    spec.drive = "other";
    assert_fails(export_run(&spec, NULL, &err), &err, CB_E_NOTFOUND, "has no drive other");
    spec.drive = "seed";
    spec.size = 1;
    assert_fails(export_run(&spec, NULL, &err), &err, CB_E_CONFIG, "--size");
    spec.size = 0;
    spec.kernel_dir = "k";
    assert_fails(export_run(&spec, NULL, &err), &err, CB_E_CONFIG, "--drive has no kernel");
    spec.kernel_dir = NULL;
    spec.format = EXPORT_RAW;
    assert_fails(export_run(&spec, NULL, &err), &err, CB_E_CONFIG, "--drive belongs to");
    template_manifest_free(m);
}

static int to_buf(void *arg, const void *p, size_t n, struct cb_error *err)
{
    if (cb_buf_add(arg, p, n) < 0)
        return cb_fail(err, CB_E_LIMIT, "too much");
    return 0;
}

static void test_gzip_reads_back(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/gz", (char *)*state);
    static const size_t sizes[] = {0, 1, 511, 65536, 3000000};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        CB_AUTO_BUF in = CB_BUF_INIT((size_t)4 << 20), out = CB_BUF_INIT((size_t)4 << 20);
        uint32_t x = 1;
        for (size_t j = 0; j < sizes[i]; j++) {
            x = x * 1664525 + 1013904223;
            cb_buf_add(&in, &(char){(char)(x >> (j % 3 ? 24 : 30))}, 1);
        }
        struct gzip *g = gzip_new(to_buf, &out);
        for (size_t at = 0; at < sizes[i]; at += 100000)
            assert_ok(
                gzip_add(g, in.data + at, sizes[i] - at < 100000 ? sizes[i] - at : 100000, &err),
                &err);
        assert_ok(gzip_finish(g, &err), &err);
        gzip_free(g);
        assert_ok(cb_write_file(path, out.data, out.len, 0600, &err), &err);
        CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
        struct inflate *z = NULL;
        struct cb_digest got, want;
        uint64_t bytes = 0;
        assert_ok(inflate_start(fd, out.len, UINT64_MAX, &z, &err), &err);
        assert_ok(inflate_finish(z, &got, &bytes, &err), &err);
        inflate_free(z);
        cb_sha256(in.data ? in.data : "", in.len, &want);
        assert_int_equal(bytes, sizes[i]);
        assert_true(cb_digest_eq(&got, &want));
    }
}

static void test_vmlinux_refuses_what_is_no_kernel(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/k", (char *)*state);
    CB_AUTO_FREE char *to_path = cb_xasprintf("%s/to", (char *)*state);
    CB_AUTO_FD to = open(to_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    unsigned char k[4096] = {0};
    memcpy(k + 0x202, "HdrS\x0f\x02", 6);
    k[0x1f1] = 1;
    const struct {
        uint32_t at, len;
        size_t size;
        const char *text;
    } cases[] = {
        {0, 0, 100, "not a Linux bzImage"},
        {0, 3, sizeof(k), "outside its file"},
        {0xffffffff, 0xffffffff, sizeof(k), "outside its file"},
        {0, 4096, sizeof(k), "outside its file"},
        {0, 2048, sizeof(k), "no ELF file"}, /* raw zeros */
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        memcpy(k + 0x248, &cases[i].at, 4);
        memcpy(k + 0x24c, &cases[i].len, 4);
        assert_ok(cb_write_file(path, k, cases[i].size, 0600, &err), &err);
        CB_AUTO_FD from = open(path, O_RDONLY | O_CLOEXEC);
        assert_fails(vmlinux_extract(from, to, &err), &err, CB_E_CORRUPT, cases[i].text);
    }
}

int main(void)
{
    (void)setlocale(LC_CTYPE, "C.UTF-8"); /* libarchive gives names in the locale's terms */
    const struct CMUnitTest tests[] = {
        test_image(test_ext4_is_the_image),
        test_image(test_dir_tar_holds_everything),
        test_image(test_a_stopped_export_leaves_nothing),
        test_image(test_what_a_killed_export_left_is_removed),
        test_image(test_options_that_do_not_fit),
        test_image(test_a_drive_is_a_file_of_its_own),
        test_in_dir(test_gzip_reads_back),
        test_in_dir(test_vmlinux_refuses_what_is_no_kernel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
