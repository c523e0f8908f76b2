#include "layers/warm_blob.h"
#include "store_check.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <zstd.h>

enum { STATE = (3 << 20) + 17, DISK = 5 << 20 };

static int empty(const struct store_fixture *f)
{
    int fd = open(f->base, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

static int filled(const struct store_fixture *f, size_t n, unsigned seed)
{
    CB_AUTO_FREE uint8_t *p = cb_xmalloc(n);
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)((seed = seed * 1664525 + 1013904223) >> 24);
    int fd = empty(f);
    assert_ok(cb_pwrite_all(fd, p, n, 0, &err), &err);
    return fd;
}

static void assert_same(int a, int b)
{
    struct cb_digest x, y;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(cb_sha256_fd(a, &x, &err), &err);
    assert_ok(cb_sha256_fd(b, &y, &err), &err);
    assert_true(cb_digest_eq(&x, &y));
}

struct saved {
    int state, disk;
    struct cb_digest image, digest;
    uint64_t size;
};

/* A disk with data at its beginning alone: the rest is a hole. */
static struct saved save(const struct store_fixture *f)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct saved s = {.state = filled(f, STATE, 1), .disk = filled(f, 1000, 2)};
    assert_int_equal(ftruncate(s.disk, DISK), 0);
    cb_sha256("image", 5, &s.image);
    const struct warm_disk disk = {"root", s.disk};
    assert_ok(warm_blob_put(f->store, &s.image, s.state, &disk, 1, &s.digest, &s.size, &err), &err);
    assert_true(s.size > STATE && s.size < STATE + DISK);
    return s;
}

static void saved_close(struct saved *s)
{
    cb_close(s->state);
    cb_close(s->disk);
}

static void test_what_comes_out_is_what_went_in(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct saved s = save(f);
    CB_AUTO_FD got = empty(f);
    CB_AUTO_FD disk = empty(f);
    const struct warm_disk to = {"root", disk};
    assert_ok(warm_blob_get(f->store, &s.digest, &s.image, got, &to, 1, &err), &err);
    assert_same(got, s.state);
    assert_same(disk, s.disk);
    struct stat st;
    assert_int_equal(fstat(disk, &st), 0);
    assert_true((uint64_t)st.st_blocks * 512 < DISK / 2);
    saved_close(&s);
}

static void test_it_is_for_its_image_and_disks_alone(void **state)
{
    struct store_fixture *f = *state;
    struct saved s = save(f);
    struct cb_digest other;
    cb_sha256("other", 5, &other);
    CB_AUTO_FD got = empty(f);
    CB_AUTO_FD disk = empty(f);
    const struct warm_disk root = {"root", disk}, data = {"data", disk};
    const struct warm_disk both[] = {root, data};
    const struct {
        const struct cb_digest *digest, *image;
        const struct warm_disk *disks;
        size_t n;
        enum cb_code code;
        const char *why;
    } table[] = {
        {&s.digest, &other, &root, 1, CB_E_CONFLICT, "it belongs to another image"},
        {&s.digest, &s.image, &data, 1, CB_E_CONFLICT, "it was saved with other disks"},
        {&s.digest, &s.image, both, 2, CB_E_CONFLICT, "it was saved with other disks"},
        {&s.digest, &s.image, NULL, 0, CB_E_CONFLICT, "it was saved with other disks"},
        {&other, &s.image, &root, 1, CB_E_NOTFOUND, "is not in the store"},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        assert_fails(warm_blob_get(f->store, table[i].digest, table[i].image, got, table[i].disks,
                                   table[i].n, &err),
                     &err, table[i].code, table[i].why);
    }
    saved_close(&s);
}

static char *blob_path(const struct store_fixture *f, const struct cb_digest *d)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(d, hex);
    return cb_xasprintf("%s/blobs/sha256/%s", f->dir, hex);
}

/* Wherever it is damaged, and however it is cut. */
static void test_damage_is_found(void **state)
{
    struct store_fixture *f = *state;
    struct saved s = save(f);
    CB_AUTO_FREE char *path = blob_path(f, &s.digest);
    CB_AUTO_FD file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) {
        assert_int_equal(chmod(path, 0600), 0);
        cb_close(file);
        file = open(path, O_RDWR | O_CLOEXEC);
    }
    assert_true(file >= 0);
    const off_t places[] = {0, 5, 30, 2000, (off_t)s.size / 2, (off_t)s.size - 1};
    for (size_t i = 0; i <= sizeof(places) / sizeof(places[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FD got = empty(f);
        CB_AUTO_FD disk = empty(f);
        const struct warm_disk root = {"root", disk};
        bool cut = i == sizeof(places) / sizeof(places[0]);
        uint8_t was = 0;
        if (cut) {
            assert_int_equal(ftruncate(file, (off_t)s.size / 3), 0);
        } else {
            assert_int_equal(pread(file, &was, 1, places[i]), 1);
            uint8_t now = was ^ 0x10;
            assert_int_equal(pwrite(file, &now, 1, places[i]), 1);
        }
        assert_fails(warm_blob_get(f->store, &s.digest, &s.image, got, &root, 1, &err), &err,
                     CB_E_CORRUPT, "it is damaged");
        if (!cut)
            assert_int_equal(pwrite(file, &was, 1, places[i]), 1);
    }
    saved_close(&s);
}

/* Blobs with a right digest that hold something else. */
static void test_what_is_none_is_refused(void **state)
{
    struct store_fixture *f = *state;
    struct saved s = save(f);
    uint8_t head[WARM_HEAD_FIXED + WARM_HEAD_DISK + 8] = WARM_MAGIC;
    memcpy(head + 8, s.image.b, CB_SHA256_LEN);
    head[8 + CB_SHA256_LEN] = 1;     /* disks */
    head[8 + CB_SHA256_LEN + 8] = 4; /* bytes of state */
    memcpy(head + WARM_HEAD_FIXED, "root", 4);
    head[WARM_HEAD_FIXED + WARM_NAME_MAX + 1] = 4; /* bytes of the disk */
    static const struct {
        size_t at, len;
        uint8_t value;
        const char *why;
    } table[] = {
        {0, sizeof(head), 'X', "it is not a saved machine"},
        {8 + CB_SHA256_LEN, sizeof(head), WARM_DISKS_MAX + 1, "it is not a saved machine"},
        {8 + CB_SHA256_LEN + 15, sizeof(head), 1, "it is not a saved machine"},
        {WARM_HEAD_FIXED + WARM_NAME_MAX, sizeof(head), 'x', "it is not a saved machine"},
        {WARM_HEAD_FIXED + WARM_NAME_MAX + 8, sizeof(head), 1, "it is not a saved machine"},
        {0, sizeof(head) - 1, 'C', "it is cut"},
        {0, sizeof(head) - 5, 'C', "it is cut"},
        {0, WARM_HEAD_FIXED - 1, 'C', "it is cut"},
        {8 + CB_SHA256_LEN + 8, sizeof(head), 3, "it is longer than it says"},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        uint8_t bad[sizeof(head)], z[512];
        struct cb_digest d;
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FD got = empty(f);
        CB_AUTO_FD disk = empty(f);
        const struct warm_disk root = {"root", disk};
        memcpy(bad, head, sizeof(head));
        bad[table[i].at] = table[i].value;
        size_t n = ZSTD_compress(z, sizeof(z), bad, table[i].len, 1);
        assert_false(ZSTD_isError(n));
        assert_ok(store_blob_put(f->store, z, n, &d, &err), &err);
        assert_fails(warm_blob_get(f->store, &d, &s.image, got, &root, 1, &err), &err, CB_E_CORRUPT,
                     table[i].why);
    }
    saved_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_store(test_what_comes_out_is_what_went_in),
        test_in_store(test_it_is_for_its_image_and_disks_alone),
        test_in_store(test_damage_is_found),
        test_in_store(test_what_is_none_is_refused),
    };
    return cmocka_run_group_tests_name("warm_blob", tests, NULL, NULL);
}
