#include "check.h"

#include "layers/store.h"
#include "store_check.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <zstd.h>

/* -- tars made by hand, so that they can be wrong -- */

struct member {
    char type;
    const char *name, *link;
    const char *data;
    const char *uid; /* 7 octal digits, or NULL: 0 */
    unsigned major, minor;
};

static void octal(char *at, size_t digits, uint64_t v)
{
    for (at[digits] = '\0'; digits > 0; v /= 8)
        at[--digits] = (char)('0' + v % 8);
}

static void seal(unsigned char *h)
{
    unsigned sum = 0;
    memset(h + 148, ' ', 8);
    for (int i = 0; i < 512; i++)
        sum += h[i];
    octal((char *)h + 148, 6, sum);
}

static void add_member(struct cb_buf *b, const struct member *m)
{
    char h[512] = {0};
    size_t size = m->data ? strlen(m->data) : 0;
    memcpy(h, m->name, strnlen(m->name, 100));
    octal(h + 100, 7, 0644);
    octal(h + 108, 7, 0);
    if (m->uid)
        memcpy(h + 108, m->uid, 7);
    octal(h + 116, 7, 0);
    octal(h + 124, 11, size);
    octal(h + 136, 11, 1700000000);
    h[156] = m->type;
    if (m->link)
        memcpy(h + 157, m->link, strnlen(m->link, 100));
    memcpy(h + 257, (const char[8]){'u', 's', 't', 'a', 'r', '\0', '0', '0'}, 8);
    octal(h + 329, 7, m->major);
    octal(h + 337, 7, m->minor);
    seal((unsigned char *)h);
    assert_int_equal(cb_buf_add(b, h, sizeof(h)), 0);
    static const char zeros[512];
    assert_int_equal(cb_buf_add(b, m->data, size), 0);
    assert_int_equal(cb_buf_add(b, zeros, (512 - size % 512) % 512), 0);
}

static void add_end(struct cb_buf *b)
{
    static const char zeros[1024];
    assert_int_equal(cb_buf_add(b, zeros, sizeof(zeros)), 0);
}

static int import_at(struct store_fixture *f, const struct cb_buf *tar, uint64_t offset,
                     struct layer_blob *out, struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/output", f->base);
    CB_AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_ok(cb_pwrite_all(fd, tar->data, tar->len, (off_t)offset, err), err);
    assert_ok(cb_pwrite_all(fd, "garbage behind it", 17, (off_t)(offset + tar->len), err), err);
    return store_layer_import(f->store, fd, offset, tar->len, out, err);
}

/* The blob must be one zstd frame that says its size, and inflate to exactly the tar. */
static void assert_holds(struct store_fixture *f, const struct layer_blob *b,
                         const struct cb_buf *tar)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    uint64_t size = 0;
    CB_AUTO_FD fd = store_blob_open(f->store, &b->digest, &size, &err);
    assert_ok(fd, &err);
    assert_int_equal(size, b->size);
    assert_string_equal(b->media_type, "application/vnd.oci.image.layer.v1.tar+zstd");
    CB_AUTO_BUF z = CB_BUF_INIT(0);
    assert_ok(cb_read_fd(fd, "blob", 64 << 20, &z, &err), &err);
    assert_int_equal(ZSTD_getFrameContentSize(z.data, z.len), tar->len);
    assert_int_equal(ZSTD_findFrameCompressedSize(z.data, z.len), z.len);
    CB_AUTO_FREE char *plain = cb_xmalloc(tar->len);
    assert_int_equal(ZSTD_decompress(plain, tar->len, z.data, z.len), tar->len);
    assert_memory_equal(plain, tar->data, tar->len);
    struct cb_digest d;
    cb_sha256(tar->data, tar->len, &d);
    assert_true(cb_digest_eq(&d, &b->diff_id));
}

static void test_a_layer_is_taken_in(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF tar = CB_BUF_INIT(64 << 20);
    const struct member good[] = {
        {'5', "./", NULL, NULL, NULL, 0, 0},
        {'5', "etc/", NULL, NULL, NULL, 0, 0},
        {'0', "etc/passwd", NULL, "root:x:0:0::/root:/bin/sh\n", NULL, 0, 0},
        {'1', "etc/passwd-", "etc/passwd", NULL, NULL, 0, 0},
        {'2', "etc/mtab", "../proc/self/mounts", NULL, NULL, 0, 0},
        {'2', "etc/abs", "/absolute/is/data", NULL, NULL, 0, 0},
        {'3', "null", NULL, NULL, NULL, 1, 3},
        {'4', "disk", NULL, NULL, NULL, 8, 1},
        {'6', "pipe", NULL, NULL, NULL, 0, 0},
        {'0', "etc/.wh.gone", NULL, NULL, NULL, 0, 0},
        {'0', "etc/.wh..wh..opq", NULL, NULL, NULL, 0, 0},
        {'0', "etc/..data", NULL, "x", NULL, 0, 0},
        {'0', "caf\xc3\xa9 \xff", NULL, "x", "7777777", 0, 0},
    };
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++)
        add_member(&tar, &good[i]);
    add_end(&tar);
    struct layer_blob a = {0}, b = {0};
    assert_ok(import_at(f, &tar, 0, &a, &err), &err);
    assert_holds(f, &a, &tar);
    assert_ok(import_at(f, &tar, 12345, &b, &err), &err);
    assert_true(cb_digest_eq(&a.digest, &b.digest)); /* the same tar, the same blob */
    layer_blob_release(&a);
    layer_blob_release(&b);
    assert_int_equal(store_files(f), 1);
}

/* As libarchive writes what hand-made headers cannot say: long names, attributes, big files, holes.
 */
static void test_a_pax_layer_of_many_chunks(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF tar = CB_BUF_INIT(64 << 20);
    size_t cap = 8 << 20, used = 0;
    CB_AUTO_FREE char *mem = cb_xmalloc(cap), *data = cb_xmalloc(3 << 20);
    for (size_t i = 0; i < (3 << 20); i++)
        data[i] = (char)(i * i >> 7);
    struct archive *w = archive_write_new();
    assert_int_equal(archive_write_set_format_pax(w), ARCHIVE_OK);
    assert_int_equal(archive_write_open_memory(w, mem, cap, &used), ARCHIVE_OK);
    char name[256] = {0};
    memset(name, 'n', 255);
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_pathname(e, name);
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_perm(e, 04755);
    archive_entry_set_uid(e, 3000000000);
    archive_entry_set_size(e, 3 << 20);
    archive_entry_set_mtime(e, -1, 500000000);
    archive_entry_xattr_add_entry(e, "security.capability", "\1\0\0\2", 4);
    assert_int_equal(archive_write_header(w, e), ARCHIVE_OK);
    assert_int_equal(archive_write_data(w, data, 3 << 20), 3 << 20);
    archive_entry_clear(e);
    archive_entry_set_pathname(e, "sparse");
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_size(e, 12 << 20);
    archive_entry_sparse_add_entry(e, 1 << 20, 4096);
    archive_entry_sparse_add_entry(e, (12 << 20) - 4096, 4096);
    assert_int_equal(archive_write_header(w, e), ARCHIVE_OK);
    for (int i = 0; i < 4; i++) /* the writer leaves out the holes */
        assert_int_equal(archive_write_data(w, data, 3 << 20), 3 << 20);
    archive_entry_free(e);
    assert_int_equal(archive_write_close(w), ARCHIVE_OK);
    assert_int_equal(archive_write_free(w), ARCHIVE_OK);
    assert_int_equal(cb_buf_add(&tar, mem, used), 0);
    struct layer_blob b = {0};
    assert_ok(import_at(f, &tar, 4096, &b, &err), &err);
    assert_holds(f, &b, &tar);
    layer_blob_release(&b);
}

static void test_bad_entries_are_refused(void **state)
{
    struct store_fixture *f = *state;
    const struct {
        struct member m;
        enum cb_code code;
        const char *text;
    } bad[] = {
        {{'0', "/etc/passwd", NULL, "x", NULL, 0, 0}, CB_E_UNTRUSTED, "is absolute"},
        {{'0', "../x", NULL, "x", NULL, 0, 0}, CB_E_UNTRUSTED, "has a .. in it"},
        {{'0', "a/../b", NULL, "x", NULL, 0, 0},
         CB_E_UNTRUSTED,
         "entry 2 \"a/../b\": the name has a .."},
        {{'5', "a/..", NULL, NULL, NULL, 0, 0}, CB_E_UNTRUSTED, "has a .. in it"},
        {{'0', "a//b", NULL, "x", NULL, 0, 0}, CB_E_CORRUPT, "empty part"},
        {{'0', "a/./b", NULL, "x", NULL, 0, 0}, CB_E_CORRUPT, "has a . in it"},
        {{'0', "", NULL, "x", NULL, 0, 0}, CB_E_CORRUPT, "has no name"},
        {{'2', ".", "elsewhere", NULL, NULL, 0, 0}, CB_E_CORRUPT, "root must be a folder"},
        {{'1', "a", "/etc/shadow", NULL, NULL, 0, 0},
         CB_E_UNTRUSTED,
         "hard link: the name is absolute"},
        {{'1', "a", "x/../../y", NULL, NULL, 0, 0}, CB_E_UNTRUSTED, "hard link: the name has a .."},
        {{'2', "a", "", NULL, NULL, 0, 0}, CB_E_CORRUPT, "without a target"},
        {{'3', "a", NULL, NULL, NULL, 0, 0}, CB_E_UNTRUSTED, "device 0:0"},
        {{'3', "a", NULL, NULL, NULL, 0777777, 1},
         CB_E_CORRUPT,
         "device number 262143:1 is out of"},
        {{'8', "a", NULL, "x", NULL, 0, 0},
         CB_E_CORRUPT,
         "entry 2 \"a\": its tar type is 0x38 ('8'), which a layer cannot have"},
        {{'\x01', "a", NULL, NULL, NULL, 0, 0}, CB_E_CORRUPT, "its tar type is 0x01, which"},
        {{'D', "a/", NULL, NULL, NULL, 0, 0}, CB_E_CORRUPT, "its tar type is 0x44 ('D'), which"},
        {{'0', "d/.wh.", NULL, NULL, NULL, 0, 0}, CB_E_CORRUPT, "a whiteout of nothing"},
        {{'0', ".wh...", NULL, NULL, NULL, 0, 0}, CB_E_CORRUPT, "a whiteout of nothing"},
        {{'0', ".wh..wh.plnk", NULL, NULL, NULL, 0, 0}, CB_E_CORRUPT, "whiteout of a whiteout"},
        {{'0', "bad\nname/../\x1b[31m", NULL, NULL, NULL, 0, 0},
         CB_E_UNTRUSTED,
         "bad\\x0aname/../\\x1b[31m"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_BUF tar = CB_BUF_INIT(1 << 20);
        add_member(&tar, &(struct member){'5', "first/", NULL, NULL, NULL, 0, 0});
        add_member(&tar, &bad[i].m);
        add_end(&tar);
        struct layer_blob b = {0};
        assert_fails(import_at(f, &tar, 0, &b, &err), &err, bad[i].code, bad[i].text);
        assert_null(b.media_type);
    }
    assert_int_equal(store_files(f), 0);
}

/* A GNU long name: the way to a part that is too long. */
static void test_long_names(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    char long_part[257] = {0};
    memset(long_part, 'n', 256);
    CB_AUTO_BUF tar = CB_BUF_INIT(1 << 20);
    add_member(&tar, &(struct member){'L', "././@LongLink", NULL, long_part, NULL, 0, 0});
    add_member(&tar, &(struct member){'0', "short", NULL, "x", NULL, 0, 0});
    add_end(&tar);
    struct layer_blob b = {0};
    assert_fails(import_at(f, &tar, 0, &b, &err), &err, CB_E_LIMIT, "longer than 255");
    cb_buf_clear(&tar);
    CB_AUTO_BUF path = CB_BUF_INIT(1 << 20);
    while (path.len < 4200)
        assert_int_equal(cb_buf_adds(&path, "folder/"), 0);
    assert_int_equal(cb_buf_adds(&path, "x"), 0);
    add_member(&tar, &(struct member){'L', "././@LongLink", NULL, path.data, NULL, 0, 0});
    add_member(&tar, &(struct member){'0', "short", NULL, "x", NULL, 0, 0});
    add_end(&tar);
    assert_fails(import_at(f, &tar, 0, &b, &err), &err, CB_E_LIMIT, "longer than a path may be");
    assert_int_equal(store_files(f), 0);
}

static void test_damaged_tars_are_refused(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct layer_blob b = {0};
    CB_AUTO_BUF good = CB_BUF_INIT(1 << 20);
    add_member(&good, &(struct member){'0', "a", NULL, "some data", NULL, 0, 0});
    CB_AUTO_BUF tar = CB_BUF_INIT(1 << 20);
#define START(n)                                                                                   \
    do {                                                                                           \
        cb_buf_clear(&tar);                                                                        \
        assert_int_equal(cb_buf_add(&tar, good.data, n), 0);                                       \
    } while (0)
    START(0); /* nothing at all */
    assert_fails(import_at(f, &tar, 0, &b, &err), &err, CB_E_CORRUPT, "take in a layer: ");
    START(1024); /* no end mark */
    assert_fails(import_at(f, &tar, 0, &b, &err), &err, CB_E_CORRUPT, "no end mark");
    START(1024); /* half of one */
    assert_int_equal(cb_buf_add(&tar, (char[512]){0}, 512), 0);
    assert_fails(import_at(f, &tar, 0, &b, &err), &err, CB_E_CORRUPT, "no end mark");
    START(700); /* cut in the data */
    assert_fails(import_at(f, &tar, 0, &b, &err), &err, CB_E_CORRUPT, "entry 1");
    START(300); /* cut in the header */
    assert_fails(import_at(f, &tar, 0, &b, &err), &err, CB_E_CORRUPT, "take in a layer: ");
    START(1024); /* a wrong sum */
    tar.data[0] = 'b';
    add_end(&tar);
    assert_fails(import_at(f, &tar, 0, &b, &err), &err, CB_E_CORRUPT, "take in a layer: ");
    START(1024); /* a second layer behind the end, that another reader might see */
    add_end(&tar);
    assert_int_equal(cb_buf_add(&tar, good.data, good.len), 0);
    add_end(&tar);
    assert_fails(import_at(f, &tar, 0, &b, &err), &err, CB_E_CORRUPT, "nothing but zeros");
    START(1024); /* more zeros than needed are fine */
    for (int i = 0; i < 9; i++)
        add_end(&tar);
    assert_ok(import_at(f, &tar, 0, &b, &err), &err);
    assert_holds(f, &b, &tar);
    layer_blob_release(&b);
    cb_buf_clear(&tar); /* and so is a layer of nothing */
    add_end(&tar);
    assert_ok(import_at(f, &tar, 0, &b, &err), &err);
    layer_blob_release(&b);
    cb_buf_clear(&tar); /* a compressed one is not a tar */
    char z[512];
    size_t n = ZSTD_compress(z, sizeof(z), good.data, good.len, 1);
    assert_int_equal(cb_buf_add(&tar, z, n), 0);
    assert_fails(import_at(f, &tar, 0, &b, &err), &err, CB_E_CORRUPT, "take in a layer: ");
    assert_int_equal(store_files(f), 2);
}

static void test_the_range_must_be_there(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct layer_blob b = {0};
    CB_AUTO_FREE char *path = cb_xasprintf("%s/short", f->base);
    assert_ok(cb_write_file(path, "", 0, 0600, &err), &err);
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_fails(store_layer_import(f->store, fd, 0, 1 << 20, &b, &err), &err, CB_E_CORRUPT,
                 "ends 262144 bytes early");
    assert_fails(store_layer_import(f->store, fd, UINT64_MAX - 5, 10, &b, &err), &err, CB_E_LIMIT,
                 "out of range");
    assert_fails(store_layer_import(f->store, fd, 0, UINT64_MAX, &b, &err), &err, CB_E_LIMIT,
                 "out of range");
    assert_int_equal(store_files(f), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_store(test_a_layer_is_taken_in),
        test_in_store(test_a_pax_layer_of_many_chunks),
        test_in_store(test_bad_entries_are_refused),
        test_in_store(test_long_names),
        test_in_store(test_damaged_tars_are_refused),
        test_in_store(test_the_range_must_be_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
