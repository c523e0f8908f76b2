#include "check.h"

#include "layers/flatten.h"
#include "layers/inflate.h"

#include <fcntl.h>
#include <isa-l/igzip_lib.h>
#include <sys/mman.h>
#include <zstd.h>

#define PLAIN_LEN ((size_t)9 << 20) /* more than the ring holds */

static unsigned char *plain;
static struct cb_digest plain_digest;

static int make_plain(void **state)
{
    (void)state;
    plain = cb_xcalloc(1, PLAIN_LEN + 1);
    uint32_t x = 1;
    for (size_t i = 0; i < PLAIN_LEN; i++) {
        x = x * 1664525 + 1013904223;
        plain[i] = (unsigned char)(i % 7000 < 2000 ? 'z' : x >> 27);
    }
    cb_sha256(plain, PLAIN_LEN, &plain_digest);
    return 0;
}

static int drop_plain(void **state)
{
    (void)state;
    free(plain);
    return 0;
}

static void add_gzip(struct cb_buf *out, const void *p, size_t n)
{
    size_t room = n + n / 8 + 4096;
    CB_AUTO_FREE unsigned char *to = cb_xmalloc(room);
    CB_AUTO_FREE unsigned char *level = cb_xmalloc(ISAL_DEF_LVL1_DEFAULT);
    CB_AUTO_FREE struct isal_zstream *s = cb_xcalloc(1, sizeof(*s));
    isal_deflate_stateless_init(s);
    CB_AUTO_FREE unsigned char *in = cb_xmemdup(p, n + 1); /* its input is not const */
    s->next_in = in;
    s->avail_in = (uint32_t)n;
    s->next_out = to;
    s->avail_out = (uint32_t)room;
    s->end_of_stream = 1;
    s->gzip_flag = IGZIP_GZIP;
    s->level = 1;
    s->level_buf = level;
    s->level_buf_size = ISAL_DEF_LVL1_DEFAULT;
    assert_int_equal(isal_deflate_stateless(s), COMP_OK);
    cb_buf_add(out, to, s->total_out);
}

static void add_zstd(struct cb_buf *out, const void *p, size_t n)
{
    size_t room = ZSTD_compressBound(n);
    CB_AUTO_FREE void *to = cb_xmalloc(room);
    size_t made = ZSTD_compress(to, room, p, n, 3);
    assert_false(ZSTD_isError(made));
    cb_buf_add(out, to, made);
}

static int fd_of(const struct cb_buf *b)
{
    int fd = memfd_create("blob", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_ok(cb_write_all(fd, b->data, b->len, NULL), &(struct cb_error)CB_ERROR_INIT);
    return fd;
}

static int inflate_all(const struct cb_buf *b, uint64_t max, struct cb_digest *d, uint64_t *bytes,
                       struct cb_error *err)
{
    CB_AUTO_FD fd = fd_of(b);
    struct inflate *z = NULL;
    int rc = inflate_start(fd, b->len, max, &z, err);
    if (rc == 0)
        rc = inflate_finish(z, d, bytes, err);
    inflate_free(z);
    return rc;
}

static void assert_plain(const struct cb_buf *b)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_digest d;
    uint64_t bytes = 0;
    assert_ok(inflate_all(b, UINT64_MAX, &d, &bytes, &err), &err);
    assert_int_equal(bytes, PLAIN_LEN);
    assert_true(cb_digest_eq(&d, &plain_digest));
}

static void test_inflate_reads_every_format(void **state)
{
    (void)state;
    static const char skippable[] = "\x53\x2a\x4d\x18\4\0\0\0skip";
    CB_AUTO_BUF b = CB_BUF_INIT((size_t)32 << 20);
    cb_buf_add(&b, plain, PLAIN_LEN);
    assert_plain(&b);

    cb_buf_clear(&b);
    add_gzip(&b, plain, PLAIN_LEN);
    assert_plain(&b);
    cb_buf_add(&b, "\0\0\0\0\0\0\0", 7); /* padding */
    assert_plain(&b);

    cb_buf_clear(&b);
    add_zstd(&b, plain, PLAIN_LEN);
    assert_plain(&b);

    cb_buf_clear(&b); /* members of all sizes, empty ones too, as estargz and pigz write them */
    for (size_t at = 0, n = 0; at < PLAIN_LEN; at += n, n = n * 3 + 1) {
        if (n > PLAIN_LEN - at)
            n = PLAIN_LEN - at;
        add_gzip(&b, plain + at, n);
    }
    assert_plain(&b);

    cb_buf_clear(
        &b); /* frames, and skippable ones before, between and behind, as zstd:chunked has */
    cb_buf_add(&b, skippable, 12);
    add_zstd(&b, plain, 100);
    add_zstd(&b, "", 0);
    cb_buf_add(&b, skippable, 12);
    add_zstd(&b, plain + 100, PLAIN_LEN - 100);
    cb_buf_add(&b, skippable, 12);
    assert_plain(&b);
}

static void test_inflate_says_what_is_wrong(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF gz = CB_BUF_INIT((size_t)32 << 20);
    CB_AUTO_BUF zst = CB_BUF_INIT((size_t)32 << 20);
    struct cb_digest d;
    uint64_t n;
    add_gzip(&gz, plain, PLAIN_LEN);
    add_zstd(&zst, plain, PLAIN_LEN);

    struct cb_buf cut = gz;
    static const size_t ends[] = {2, 9, 11, 100, 1000000};
    for (size_t i = 0; i < 5; i++) {
        cut.len = ends[i];
        assert_fails(inflate_all(&cut, UINT64_MAX, &d, &n, &err), &err, CB_E_CORRUPT,
                     "gzip: the data ends in the middle");
    }
    cut.len = gz.len - 1;
    assert_fails(inflate_all(&cut, UINT64_MAX, &d, &n, &err), &err, CB_E_CORRUPT,
                 "gzip: the data ends in the middle");
    gz.data[gz.len - 6] ^= 1;
    assert_fails(inflate_all(&gz, UINT64_MAX, &d, &n, &err), &err, CB_E_CORRUPT,
                 "gzip: wrong checksum");
    gz.data[gz.len - 6] ^= 1;
    cb_buf_add(&gz, "junk", 4);
    assert_fails(inflate_all(&gz, UINT64_MAX, &d, &n, &err), &err, CB_E_CORRUPT,
                 "data that is not gzip follows");
    assert_fails(inflate_all(&gz, 1000000, &d, &n, &err), &err, CB_E_LIMIT,
                 "more than 1000000 bytes");

    cut = zst;
    cut.len -= 10;
    assert_fails(inflate_all(&cut, UINT64_MAX, &d, &n, &err), &err, CB_E_CORRUPT,
                 "zstd: the data ends in the middle");
    zst.data[5000] ^= 0x55;
    zst.data[5001] ^= 0x55;
    assert_int_equal(
        inflate_all(&zst, UINT64_MAX, &d, &n, &err) < 0 || !cb_digest_eq(&d, &plain_digest), true);
    cb_error_clear(&err);

    CB_AUTO_FD fd = fd_of(&gz);
    struct inflate *z = NULL; /* a blob that is shorter than it should be */
    assert_ok(inflate_start(fd, gz.len + 1000, UINT64_MAX, &z, &err), &err);
    assert_fails(inflate_finish(z, &d, &n, &err), &err, CB_E_CORRUPT, "the blob ends after");
    inflate_free(z);
}

/* The reader may walk away at any point. */
/* 128 KiB for each 4 bytes, the most that zstd can do. */
static void add_zstd_bomb(struct cb_buf *out, unsigned blocks)
{
    static const unsigned char frame[] = {0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3};
    cb_buf_add(out, frame, sizeof(frame));
    for (unsigned i = 1; i <= blocks; i++) {
        const uint32_t head = (128u << 10) << 3 | 1u << 1 | (i == blocks); /* one byte, repeated */
        cb_buf_add(out, &head, 3);
        cb_buf_add(out, "", 1);
    }
}

static void test_inflate_refuses_a_bomb(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF b = CB_BUF_INIT((size_t)1 << 20);
    struct cb_digest d;
    uint64_t bytes;
    add_zstd_bomb(&b, 512); /* 64 MiB in 2 KiB */
    assert_ok(inflate_all(&b, (uint64_t)4 << 30, &d, &bytes, &err), &err);
    assert_int_equal(bytes, 64 << 20);
    assert_fails(inflate_all(&b, (uint64_t)2 << 30, &d, &bytes, &err), &err, CB_E_LIMIT,
                 "out of a blob of 2054: refused as a bomb");
    assert_fails(inflate_all(&b, (uint64_t)1 << 20, &d, &bytes, &err), &err, CB_E_LIMIT,
                 "the layer holds more than 1048576 bytes");

    static char zeros[(1 << 20) + 1]; /* deflate's best is what honest files of zeros look like */
    CB_AUTO_BUF gz = CB_BUF_INIT((size_t)1 << 20);
    for (int i = 0; i < 32; i++)
        add_gzip(&gz, zeros, 1 << 20);
    assert_ok(inflate_all(&gz, (uint64_t)1 << 30, &d, &bytes, &err), &err);
    assert_int_equal(bytes, 32 << 20);
}

static void test_inflate_stops_in_the_middle(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF b = CB_BUF_INIT((size_t)32 << 20);
    add_gzip(&b, plain, PLAIN_LEN);
    CB_AUTO_FD fd = fd_of(&b);
    for (int reads = 0; reads < 12; reads += 3) {
        struct inflate *z = NULL;
        const void *p;
        size_t n, at = 0;
        assert_ok(inflate_start(fd, b.len, UINT64_MAX, &z, &err), &err);
        for (int i = 0; i < reads; i++) {
            assert_int_equal(inflate_next(z, &p, &n, &err), 1);
            assert_memory_equal(p, plain + at, n);
            at += n;
        }
        inflate_free(z);
    }
}

static void digest_file(int fd, struct cb_digest *d)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    uint64_t allocated;
    assert_ok(image_digest(fd, d, &allocated, &err), &err);
}

/* The same content has the same digest however its zeros are stored; length and place count. */
static void test_image_digest_sees_content_and_not_holes(void **state)
{
    const char *dir = *state;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/image", dir);
    CB_AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(fd, (off_t)300 << 20), 0);
    struct cb_digest empty, a, b;
    digest_file(fd, &empty);
    assert_int_equal(pwrite(fd, "data", 4, (off_t)200 << 20), 4);
    digest_file(fd, &a);
    assert_false(cb_digest_eq(&a, &empty));
    CB_AUTO_FREE unsigned char *zero = cb_xcalloc(1, 3 << 20);
    assert_int_equal(pwrite(fd, zero, 3 << 20, 5 << 20), 3 << 20); /* zeros that take space */
    digest_file(fd, &b);
    assert_true(cb_digest_eq(&a, &b));
    assert_int_equal(pwrite(fd, zero, 4, (off_t)200 << 20), 4);
    assert_int_equal(pwrite(fd, "data", 4, (off_t)201 << 20), 4); /* elsewhere */
    digest_file(fd, &b);
    assert_false(cb_digest_eq(&a, &b));
    assert_int_equal(pwrite(fd, zero, 4, (off_t)201 << 20), 4);
    digest_file(fd, &b);
    assert_true(cb_digest_eq(&empty, &b));
    assert_int_equal(ftruncate(fd, ((off_t)300 << 20) + 1), 0);
    digest_file(fd, &b);
    assert_false(cb_digest_eq(&empty, &b));
}

/* The definition in words, computed by hand. */
static void test_image_digest_is_what_its_header_says(void **state)
{
    const char *dir = *state;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/image", dir);
    CB_AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(pwrite(fd, plain, 2 << 20, 3 << 20), 2 << 20);
    assert_int_equal(pwrite(fd, plain, 1000, 80 << 20), 1000); /* a short last chunk */
    struct cb_digest got, want, chunk;
    digest_file(fd, &got);
    struct cb_hasher *h = cb_hasher_new();
    const struct {
        uint64_t index;
        const unsigned char *p;
        size_t n;
    } chunks[] = {{3, plain, 1 << 20}, {4, plain + (1 << 20), 1 << 20}, {80, plain, 1000}};
    uint64_t length = (80 << 20) + 1000;
    cb_hasher_update(h, &length, 8);
    for (int i = 0; i < 3; i++) {
        cb_hasher_update(h, &chunks[i].index, 8);
        cb_sha256(chunks[i].p, chunks[i].n, &chunk);
        cb_hasher_update(h, chunk.b, sizeof(chunk.b));
    }
    cb_hasher_final(h, &want);
    cb_hasher_free(h);
    assert_true(cb_digest_eq(&got, &want));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inflate_reads_every_format),
        cmocka_unit_test(test_inflate_says_what_is_wrong),
        cmocka_unit_test(test_inflate_refuses_a_bomb),
        cmocka_unit_test(test_inflate_stops_in_the_middle),
        test_in_dir(test_image_digest_sees_content_and_not_holes),
        test_in_dir(test_image_digest_is_what_its_header_says),
    };
    return cmocka_run_group_tests(tests, make_plain, drop_plain);
}
