/* Images read back: against another reader (image_list), name by name, and damaged ones. */
#include "flatten_check.h"
#include "image_list.h"

#include "layers/ext4_layout.h"
#include "layers/ext4_read.h"
#include "support/hash.h"

#include <fcntl.h>
#include <sys/stat.h>

/* A bit of everything that an image can hold. */
static void add_everything(struct image_fixture *f)
{
    struct tar_build t;
    tb_init(&t);
    tb_dir(&t, "etc");
    tb_file(&t, "etc/hostname", "here\n");
    tb_link(&t, '1', "etc/also", "etc/hostname");
    tb_link(&t, '2', "etc/fast", "hostname");
    char slow[400];
    memset(slow, 'x', sizeof(slow) - 1);
    slow[sizeof(slow) - 1] = '\0';
    tb_link(&t, '2', "etc/slow", slow);
    tb_pax_text(&t, "mtime", "1700000001.123456789");
    tb_pax_text(&t, "SCHILY.xattr.user.b", "two");
    tb_pax_text(&t, "SCHILY.xattr.user.a", "one");
    t.uid = 70000;
    t.gid = UINT64_C(4294967294);
    tb_file(&t, "owned", "x");
    t.uid = t.gid = 0;
    tb_pax_text(&t, "mtime", "-2.5");
    tb_file(&t, "old", "");
    t.mode = 04755;
    tb_file(&t, "setuid", "#!");
    t.mode = 0;
    t.major = 8;
    t.minor = 300;
    tb_raw(&t, '4', "disk", NULL, NULL, 0);
    tb_raw(&t, '3', "tty", NULL, NULL, 0);
    t.major = t.minor = 0;
    tb_raw(&t, '6', "pipe", NULL, NULL, 0);
    tb_dir(&t, "a");
    tb_dir(&t, "a-b");
    tb_file(&t, "a/b", "below");
    tb_dir(&t, "many");
    for (int i = 0; i < 700; i++) {
        char name[32];
        (void)snprintf(name, sizeof(name), "many/%03d", i * 37 % 700);
        tb_file(&t, name, name);
    }
    size_t size = (size_t)3 << 20;
    char *big = cb_xcalloc(1, size);
    memset(big + (1 << 20) + 5, 'b', 100000);
    big[size - 1] = 'e';
    tb_raw(&t, '0', "big", NULL, big, size);
    free(big);
    add_layer(f, &t);
}

static struct ext4_image *open_image(struct image_fixture *f)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct ext4_image *im = NULL;
    assert_ok(ext4_image_open(f->path, 0, &im, &err), &err);
    return im;
}

static void put_text(FILE *out, const char *p)
{
    for (; *p; p++) {
        if (*p > ' ' && *p < 0x7f && *p != '\\')
            (void)fputc(*p, out);
        else
            (void)fprintf(out, "\\x%02x", (unsigned char)*p);
    }
}

static const char *type_name(uint32_t mode)
{
    return S_ISREG(mode)   ? "file"
           : S_ISDIR(mode) ? "dir"
           : S_ISLNK(mode) ? "link"
           : S_ISCHR(mode) ? "char"
           : S_ISBLK(mode) ? "block"
                           : "fifo";
}

static void put_data(struct ext4_image *im, const struct ext4_entry *e, FILE *out)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct ext4_file *file = NULL;
    assert_ok(ext4_file_open(im, e->ino, &file, &err), &err);
    assert_int_equal(ext4_file_size(file), e->size);
    struct cb_hasher *h = cb_hasher_new();
    char buf[5000]; /* not a multiple of anything */
    int64_t n;
    uint64_t at = 0;
    while ((n = ext4_file_pread(file, buf, sizeof(buf), at, &err)) > 0) {
        cb_hasher_update(h, buf, (size_t)n);
        at += (uint64_t)n;
    }
    assert_ok(n, &err);
    assert_int_equal(at, e->size);
    uint64_t blocks = 0, end = 0;
    size_t runs;
    const struct ext4_run *r = ext4_file_runs(file, &runs);
    for (size_t i = 0; i < runs; i++) {
        assert_true(i == 0 || r[i].at > end);
        end = r[i].at + r[i].len;
        assert_true(end <= e->size && r[i].len > 0);
        blocks += (r[i].len + 4095) / 4096;
    }
    struct cb_digest d;
    char hex[CB_HEX_LEN + 1];
    cb_hasher_final(h, &d);
    cb_hasher_free(h);
    cb_digest_hex(&d, hex);
    (void)fprintf(out, "\tsize=%" PRIu64 "\tblocks=%" PRIu64 "\tsha256=%s", e->size, blocks, hex);
    ext4_file_close(file);
}

static void put_entry(struct ext4_image *im, const struct ext4_entry *e, FILE *out)
{
    put_text(out, e->path);
    (void)fprintf(out, "\ttype=%s\tmode=%04o\tuid=%u\tgid=%u\tmtime=%lld.%09ld\tnlink=%u\tino=%u",
                  type_name(e->mode), e->mode & 07777, e->uid, e->gid, (long long)e->mtime.tv_sec,
                  e->mtime.tv_nsec, e->nlink, e->ino);
    if (S_ISREG(e->mode))
        put_data(im, e, out);
    if (S_ISLNK(e->mode)) {
        (void)fputs("\ttarget=", out);
        put_text(out, e->target);
    }
    if (S_ISCHR(e->mode) || S_ISBLK(e->mode))
        (void)fprintf(out, "\tdev=%u:%u", e->major, e->minor);
    for (size_t i = 0; i < e->n_xattrs; i++) {
        (void)fputs("\txattr:", out);
        put_text(out, e->xattrs[i].name);
        (void)fputc('=', out);
        for (size_t j = 0; j < e->xattrs[i].len; j++)
            (void)fprintf(out, "%02x", (unsigned char)e->xattrs[i].value[j]);
    }
    (void)fputc('\n', out);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* What is between @ends in the order of its bytes, each followed by @end. Takes @text. */
static char *sorted_parts(char *text, const char *end)
{
    struct cb_strv parts = {0};
    for (char *save = NULL, *p = strtok_r(text, end, &save); p; p = strtok_r(NULL, end, &save))
        cb_strv_add(&parts, p);
    if (parts.n)
        qsort(parts.v, parts.n, sizeof(*parts.v), by_text);
    struct cb_buf out = CB_BUF_INIT((size_t)64 << 20);
    for (size_t i = 0; i < parts.n; i++)
        cb_buf_addf(&out, "%s%s", parts.v[i], end);
    cb_strv_release(&parts);
    free(text);
    return cb_buf_take(&out);
}

/* Lines in the order of their bytes, and in each its fields: attributes lie in an image in the
 * order in which they came. */
static char *sorted(char *text)
{
    struct cb_strv lines = {0};
    for (char *save = NULL, *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save))
        cb_strv_take(&lines, sorted_parts(cb_xstrdup(l), "\t"));
    qsort(lines.v, lines.n, sizeof(*lines.v), by_text);
    struct cb_buf out = CB_BUF_INIT((size_t)64 << 20);
    for (size_t i = 0; i < lines.n; i++)
        cb_buf_addf(&out, "%s\n", lines.v[i]);
    cb_strv_release(&lines);
    free(text);
    return cb_buf_take(&out);
}

static void test_walk_agrees_with_another_reader(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    add_everything(f);
    flatten_clean(f);
    char *ours = NULL, *theirs = NULL;
    size_t n;
    FILE *out = open_memstream(&theirs, &n);
    assert_ok(image_list(f->path, out, &err), &err);
    (void)fclose(out);
    out = open_memstream(&ours, &n);
    struct ext4_image *im = open_image(f);
    struct ext4_walk *w = NULL;
    struct ext4_entry e;
    assert_ok(ext4_walk_open(im, 0, &w, &err), &err);
    CB_AUTO_FREE char *before = NULL;
    int rc;
    while ((rc = ext4_walk_next(w, &e, &err)) == 1) {
        if (before)
            assert_true(ext4_path_cmp(before, e.path) < 0 && ext4_path_cmp(e.path, before) > 0);
        free(before);
        before = cb_xstrdup(e.path);
        put_entry(im, &e, out);
        if (strcmp(e.path, "etc/hostname") == 0)
            assert_string_equal(e.link_to, "etc/also");
        else
            assert_null(e.link_to);
    }
    assert_ok(rc, &err);
    ext4_walk_close(w);
    ext4_image_close(im);
    (void)fclose(out);
    CB_AUTO_FREE char *a = sorted(ours), *b = sorted(theirs);
    assert_string_equal(a, b);
    assert_non_null(strstr(a, "mtime=-3.500000000"));
}

static void test_walk_skips_and_leaves_out(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    add_everything(f);
    flatten_clean(f);
    struct ext4_image *im = open_image(f);
    struct ext4_walk *w = NULL;
    struct ext4_entry e;
    assert_ok(ext4_walk_open(im, EXT4_WALK_NO_EMPTY_LOST_FOUND, &w, &err), &err);
    int names = 0, rc;
    while ((rc = ext4_walk_next(w, &e, &err)) == 1) {
        names++;
        assert_string_not_equal(e.path, "lost+found");
        if (strcmp(e.path, "many") == 0)
            ext4_walk_skip(w);
        assert_true(strncmp(e.path, "many/", 5) != 0);
    }
    assert_ok(rc, &err);
    assert_int_equal(names, 17);
    ext4_walk_close(w);
    ext4_image_close(im);
}

static void test_lookup_stays_inside(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct tar_build t;
    tb_init(&t);
    tb_dir(&t, "usr");
    tb_dir(&t, "usr/lib");
    tb_file(&t, "usr/lib/os-release", "ID=x\n");
    tb_link(&t, '2', "lib", "usr/lib");
    tb_link(&t, '2', "abs", "/usr/lib/os-release");
    tb_link(&t, '2', "up", "../../../../usr");
    tb_link(&t, '2', "loop", "loop2");
    tb_link(&t, '2', "loop2", "loop");
    add_layer(f, &t);
    flatten_clean(f);
    struct ext4_image *im = open_image(f);
    struct ext4_entry e;
    static const struct {
        const char *path, *found;
        bool follow;
    } good[] = {
        {"usr/lib/os-release", "usr/lib/os-release", false},
        {"/lib/os-release", "usr/lib/os-release", false},
        {"//usr/./lib/../lib//os-release", "usr/lib/os-release", false},
        {"abs", "abs", false},
        {"abs", "usr/lib/os-release", true},
        {"up/lib", "usr/lib", false},
        {"lib", "lib", false},
        {"lib/", "usr/lib", false},
        {"../../lib/..", "usr", false},
        {"/", ".", false},
        {"", ".", true},
        {"loop", "loop", false},
    };
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_ok(ext4_image_lookup(im, good[i].path, good[i].follow, &e, &err), &err);
        assert_string_equal(e.path, good[i].found);
    }
    assert_fails(ext4_image_lookup(im, "usr/none", false, &e, &err), &err, CB_E_NOTFOUND,
                 "no usr/none in the image");
    assert_fails(ext4_image_lookup(im, "abs/x", false, &e, &err), &err, CB_E_NOTFOUND, "no abs/x");
    assert_fails(ext4_image_lookup(im, "loop", true, &e, &err), &err, CB_E_CORRUPT,
                 "more than 40 symbolic links");
    assert_fails(ext4_image_lookup(im, "loop/x", false, &e, &err), &err, CB_E_CORRUPT,
                 "more than 40 symbolic links");
    ext4_image_close(im);
}

static void test_open_refuses_what_is_no_image(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/x", (char *)*state);
    struct ext4_image *im = NULL;
    assert_fails(ext4_image_open(path, 0, &im, &err), &err, CB_E_NOTFOUND, "no image");
    assert_ok(cb_write_file(path, "", 0, 0600, &err), &err);
    assert_fails(ext4_image_open(path, 0, &im, &err), &err, CB_E_CORRUPT, "is not an image");
    CB_AUTO_FREE char *zero = cb_xcalloc(1, 65536);
    assert_ok(cb_write_file(path, zero, 65536, 0600, &err), &err);
    assert_fails(ext4_image_open(path, 0, &im, &err), &err, CB_E_CORRUPT,
                 "is not an image that capsule-build made");
}

static void test_open_refuses_a_cut_image(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    add_everything(f);
    flatten_clean(f);
    assert_int_equal(truncate(f->path, 1 << 20), 0);
    struct ext4_image *im = NULL;
    assert_fails(ext4_image_open(f->path, 0, &im, &err), &err, CB_E_CORRUPT,
                 "the file system says it has");
}

static void test_damage_is_found(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct tar_build t;
    tb_init(&t);
    tb_file(&t, "file", "x");
    add_layer(f, &t);
    flatten_clean(f);
    struct ext4_image *im = open_image(f);
    struct ext4_entry e;
    assert_ok(ext4_image_lookup(im, "file", false, &e, &err), &err);
    uint64_t at = layout_inode_offset(e.ino);
    ext4_image_close(im);
    CB_AUTO_FD fd = open(f->path, O_RDWR | O_CLOEXEC);
    assert_ok(cb_pwrite_all(fd, "\x55", 1, (off_t)at + 8, &err), &err);
    im = open_image(f);
    assert_fails(ext4_image_lookup(im, "file", false, &e, &err), &err, CB_E_CORRUPT,
                 "file in the image: read its inode: Inode checksum does not match inode");
    ext4_image_close(im);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_image(test_walk_agrees_with_another_reader),
        test_image(test_walk_skips_and_leaves_out),
        test_image(test_lookup_stays_inside),
        test_in_dir(test_open_refuses_what_is_no_image),
        test_image(test_open_refuses_a_cut_image),
        test_image(test_damage_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
