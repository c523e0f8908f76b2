#include "check.h"

#include "layers/chunk_map.h"
#include "layers/flatten.h"

#include <fcntl.h>

#define MIB ((off_t)1 << 20)

static int new_file(const char *dir, off_t length)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/image", dir);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, length), 0);
    return fd;
}

static void put(int fd, off_t at, const char *text)
{
    size_t n = strlen(text);
    assert_int_equal(pwrite(fd, text, n, at), n);
}

static void assert_same(const struct chunk_map *a, const struct chunk_map *b)
{
    assert_int_equal(a->length, b->length);
    assert_int_equal(a->chunk_size, b->chunk_size);
    assert_int_equal(a->n, b->n);
    for (size_t i = 0; i < a->n; i++) {
        assert_int_equal(a->v[i].index, b->v[i].index);
        assert_true(cb_digest_eq(&a->v[i].digest, &b->v[i].digest));
    }
}

static void test_a_map_holds_what_is_not_zero(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FD fd = new_file(*state, 100 * MIB + 5);
    put(fd, 3 * MIB, "three");
    put(fd, 7 * MIB - 2, "both"); /* in two chunks */
    put(fd, 100 * MIB, "end");
    CB_AUTO_FREE char *zero = cb_xcalloc(1, 2 * MIB);
    assert_int_equal(pwrite(fd, zero, 2 * MIB, 50 * MIB), 2 * MIB); /* takes space, counts not */
    CB_AUTO_CHUNK_MAP m = {0};
    assert_ok(chunk_map_make(fd, 1u << 20, &m, &err), &err);
    const uint64_t want[] = {3, 6, 7, 100};
    assert_int_equal(m.length, 100 * MIB + 5);
    assert_int_equal(m.n, 4);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(m.v[i].index, want[i]);
    assert_int_equal(chunk_length(&m, 7), 1 << 20);
    assert_int_equal(chunk_length(&m, 100), 5);
    struct cb_digest d, chunk;
    cb_sha256("end\0", 5, &chunk);
    assert_true(cb_digest_eq(&m.v[3].digest, &chunk));
    assert_ok(image_digest(fd, &d, NULL, &err), &err);
    chunk_map_digest(&m, &chunk);
    assert_true(cb_digest_eq(&d, &chunk));
    assert_fails(chunk_map_make(fd, 3u << 20, &m, &err), &err, CB_E_BUG, "chunks of 3145728");
}

static void test_an_empty_file(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FD fd = new_file(*state, 0);
    CB_AUTO_CHUNK_MAP m = {0}, again = {0};
    assert_ok(chunk_map_make(fd, CHUNK_SIZE_MIN, &m, &err), &err);
    assert_int_equal(m.n, 0);
    assert_ok(chunk_map_update(fd, &m, NULL, 0, &again, &err), &err);
    assert_same(&m, &again);
}

struct change {
    off_t at;
    const char *text; /* NULL: zeros of one chunk */
};

/* Changes the file, and asks for a map by the ranges alone: the same as one made from nothing. */
static void check_update(int fd, const struct chunk_map *parent, const struct change *v, size_t n,
                         off_t length)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *zero = cb_xcalloc(1, parent->chunk_size);
    struct byte_range dirty[8];
    for (size_t i = 0; i < n; i++) {
        size_t len = v[i].text ? strlen(v[i].text) : parent->chunk_size;
        assert_int_equal(pwrite(fd, v[i].text ? v[i].text : zero, len, v[i].at), len);
        dirty[i] = (struct byte_range){(uint64_t)v[i].at, len};
    }
    assert_int_equal(ftruncate(fd, length), 0);
    CB_AUTO_CHUNK_MAP quick = {0}, whole = {0};
    assert_ok(chunk_map_update(fd, parent, dirty, n, &quick, &err), &err);
    assert_ok(chunk_map_make(fd, parent->chunk_size, &whole, &err), &err);
    assert_same(&quick, &whole);
}

static void test_an_update_is_what_a_new_map_is(void **state)
{
    static const struct {
        struct change v[8];
        size_t n;
        off_t length;
    } cases[] = {
        {.n = 0, .length = 20 * MIB},
        {{{5 * MIB + 1, "x"}}, 1, 20 * MIB},                     /* where a hole was */
        {{{3 * MIB, "other"}, {3 * MIB + 1, "o"}}, 2, 20 * MIB}, /* a chunk that is there, twice */
        {{{3 * MIB, NULL}}, 1, 20 * MIB},                        /* one becomes zeros */
        {{{6 * MIB - 1, "over the edge"}}, 1, 20 * MIB},         /* two chunks of one range */
        {{{30 * MIB, "behind the end"}}, 1, 40 * MIB},           /* longer */
        {{{19 * MIB + 7, "!"}}, 1, 12 * MIB + 3},                /* shorter: the range is lost */
        {.n = 0, .length = 3 * MIB + 2},                         /* cuts a chunk that has data */
        {{{0, "a"}, {1 * MIB, "b"}, {2 * MIB, "c"}}, 3, 20 * MIB + 1},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FD fd = new_file(*state, 20 * MIB);
        put(fd, 3 * MIB, "three");
        put(fd, 12 * MIB + 1, "twelve");
        put(fd, 20 * MIB - 4, "last");
        CB_AUTO_CHUNK_MAP parent = {0};
        assert_ok(chunk_map_make(fd, 1u << 20, &parent, &err), &err);
        assert_int_equal(parent.n, 3);
        check_update(fd, &parent, cases[i].v, cases[i].n, cases[i].length);
    }
}

/* Only the chunks of the ranges are read: what is not named keeps the parent's digest, whatever the
 * file says. */
static void test_an_update_reads_the_ranges_alone(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FD fd = new_file(*state, 20 * MIB);
    put(fd, 3 * MIB, "three");
    put(fd, 4 * MIB, "four");
    CB_AUTO_CHUNK_MAP parent = {0}, child = {0};
    assert_ok(chunk_map_make(fd, 1u << 20, &parent, &err), &err);
    put(fd, 3 * MIB, "THREE");
    put(fd, 4 * MIB, "FOUR");
    const struct byte_range dirty = {4 * MIB, 1};
    assert_ok(chunk_map_update(fd, &parent, &dirty, 1, &child, &err), &err);
    assert_true(cb_digest_eq(&child.v[0].digest, &parent.v[0].digest));
    assert_false(cb_digest_eq(&child.v[1].digest, &parent.v[1].digest));
}

static void test_a_document_comes_back(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FD fd = new_file(*state, 20 * MIB + 1);
    put(fd, 3 * MIB, "three");
    put(fd, 20 * MIB, "x");
    CB_AUTO_CHUNK_MAP m = {0}, back = {0}, none = {0};
    assert_ok(chunk_map_make(fd, 256u << 10, &m, &err), &err);
    CB_AUTO_BUF doc = CB_BUF_INIT(1u << 20);
    assert_ok(chunk_map_dump(&m, &doc, &err), &err);
    assert_int_equal(doc.len, 40 + 2 * 40);
    assert_ok(chunk_map_parse(doc.data, doc.len, &back, &err), &err);
    assert_same(&m, &back);
    struct cb_digest d, e;
    chunk_map_digest(&m, &d);
    chunk_map_digest(&back, &e);
    assert_true(cb_digest_eq(&d, &e));
    CB_AUTO_BUF small = CB_BUF_INIT(60);
    assert_fails(chunk_map_dump(&m, &small, &err), &err, CB_E_LIMIT, "2 entries; at most 60 bytes");

    static const struct {
        size_t at;
        unsigned char value;
        const char *why;
    } wrong[] = {
        {0, 'C', "does not begin as one"},
        {15, '2', "does not begin as one"},
        {16, 1, "its chunk size is not"},
        {19, 1, "its chunk size is not"},
        {20, 1, "its chunk size is not"},
        {30, 1, "longer than 4 TiB"},
        {32, 3, "another length than"},
        {39, 1, "another length than"},
        {24, 0, "behind the end of the image"},
        {40, 81, "behind the end of the image"},
        {80, 11, "not in order"},
        {80, 12, "not in order"},
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        char was = doc.data[wrong[i].at];
        doc.data[wrong[i].at] = (char)wrong[i].value;
        assert_fails(chunk_map_parse(doc.data, doc.len, &none, &err), &err, CB_E_CORRUPT,
                     wrong[i].why);
        doc.data[wrong[i].at] = was;
    }
    assert_fails(chunk_map_parse(doc.data, doc.len - 1, &none, &err), &err, CB_E_CORRUPT,
                 "another length");
    assert_fails(chunk_map_parse(doc.data, 39, &none, &err), &err, CB_E_CORRUPT, "does not begin");
    assert_null(none.v);
    assert_ok(chunk_map_parse(doc.data, doc.len, &none, &err), &err); /* it was put back */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_dir(test_a_map_holds_what_is_not_zero),
        test_in_dir(test_an_empty_file),
        test_in_dir(test_an_update_is_what_a_new_map_is),
        test_in_dir(test_an_update_reads_the_ranges_alone),
        test_in_dir(test_a_document_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
