#include "store_check.h"

#include "layers/inflate.h"
#include "layers/store_coming.h"

#include <pthread.h>
#include <zstd.h>

/* A download in a thread of its own. */
struct download {
    struct store *store;
    const unsigned char *data;
    size_t len, piece;
    struct cb_digest digest;
    bool fails; /* gives up after the half of it */
    pthread_t thread;
};

static void *run_download(void *arg)
{
    struct download *d = arg;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct blob_writer *w = NULL;
    size_t end = d->fails ? d->len / 2 : d->len;
    if (store_blob_begin(d->store, &d->digest, d->len, &w, &err) == 0) {
        for (size_t at = blob_writer_offset(w); at < end; at += d->piece)
            (void)blob_writer_add(w, d->data + at, at + d->piece > end ? end - at : d->piece, &err);
        if (d->fails)
            blob_writer_abort(w);
        else
            (void)blob_writer_commit(w, NULL, NULL, &err);
    }
    store_coming_remove(d->store, &d->digest);
    return NULL;
}

static void start(struct download *d, struct store *s, const void *data, size_t len, size_t piece)
{
    *d = (struct download){.store = s, .data = data, .len = len, .piece = piece};
    cb_sha256(data, len, &d->digest);
    store_coming_add(s, &d->digest);
}

static void go(struct download *d)
{
    assert_int_equal(pthread_create(&d->thread, NULL, run_download, d), 0);
}

static void test_unknown_blob_is_not_waited_for(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct coming_reader *r = NULL;
    struct cb_digest d;
    uint64_t size;
    cb_sha256("x", 1, &d);
    assert_fails(store_coming_open(f->store, &d, &size, &r, &err), &err, CB_E_NOTFOUND,
                 "is not in the store");
    store_coming_remove(f->store, &d); /* never announced: fine */
    assert_ok(store_blob_put(f->store, "x", 1, NULL, &err), &err);
    store_coming_add(f->store, &d); /* already there: nothing to wait for */
    CB_AUTO_FD fd = store_coming_open(f->store, &d, &size, &r, &err);
    assert_ok(fd, &err);
    assert_null(r);
    assert_int_equal(size, 1);
    store_coming_remove(f->store, &d);
}

static int64_t wait_bytes(void *arg, uint64_t upto, struct cb_error *err)
{
    return coming_wait(arg, upto, err);
}

/* Inflates the blob of @d while it arrives; the content's digest. */
static int inflate_arriving(struct download *d, struct cb_digest *out, struct cb_error *err)
{
    struct coming_reader *r = NULL;
    struct inflate *z = NULL;
    uint64_t size = d->len, bytes;
    CB_AUTO_FD fd = store_coming_open(d->store, &d->digest, &size, &r, err);
    if (fd < 0)
        return fd;
    int rc = inflate_start_growing(fd, size, UINT64_MAX, r ? wait_bytes : NULL, r, &z, err);
    if (rc == 0)
        rc = inflate_finish(z, out, &bytes, err);
    inflate_free(z);
    coming_reader_free(r);
    return rc;
}

static void test_reads_what_grows(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    enum { LEN = 300000 };
    CB_AUTO_FREE unsigned char *plain = cb_xmalloc(LEN), *packed = cb_xmalloc(2 * LEN);
    struct cb_digest want, got;
    for (size_t i = 0; i < LEN; i++)
        plain[i] = (unsigned char)((i * 2654435761u) >> 24);
    size_t n = ZSTD_compress(packed, 2 * LEN, plain, LEN, 1);
    assert_false(ZSTD_isError(n));
    const struct {
        const unsigned char *data;
        size_t len, plain_len, piece;
    } table[] = {
        {plain, 5000, 5000, 1},  {packed, n, LEN, 7},        {plain, LEN, LEN, 4096},
        {packed, n, LEN, 65536}, {plain, LEN, LEN, 1 << 20},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        struct download d;
        cb_sha256(plain, table[i].plain_len, &want);
        start(&d, f->store, table[i].data, table[i].len, table[i].piece);
        go(&d);
        assert_ok(inflate_arriving(&d, &got, &err), &err);
        assert_int_equal(pthread_join(d.thread, NULL), 0);
        assert_true(cb_digest_eq(&got, &want));
        assert_true(store_blob_has(f->store, &d.digest));
        CB_AUTO_FREE char *blobs = cb_xasprintf("%s/blobs/sha256", f->dir);
        assert_ok(cb_remove_tree(blobs, &err), &err); /* to come again, in other pieces */
        assert_ok(cb_mkdir_p(blobs, 0755, &err), &err);
    }
    assert_int_equal(store_entries(f, "partial"), 0);
}

static void test_a_failed_download_wakes_its_readers(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    static unsigned char data[100000];
    struct cb_digest got;
    struct download d;
    memset(data, 'x', sizeof(data));
    start(&d, f->store, data, sizeof(data), 1000);
    d.fails = true;
    go(&d);
    int rc = inflate_arriving(&d, &got, &err);
    assert_int_equal(pthread_join(d.thread, NULL), 0);
    /* which of both depends on who was first */
    if (rc == -(int)CB_E_NOTFOUND)
        assert_fails(rc, &err, CB_E_NOTFOUND, "is not in the store");
    else
        assert_fails(rc, &err, CB_E_CANCELED, "the blob stopped arriving");

    /* Taken up again, the reader gets it whole. */
    store_coming_add(f->store, &d.digest);
    d.fails = false;
    go(&d);
    assert_ok(inflate_arriving(&d, &got, &err), &err);
    assert_int_equal(pthread_join(d.thread, NULL), 0);
    assert_true(cb_digest_eq(&got, &d.digest));
}

static void test_a_download_that_begins_anew(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct coming_reader *r = NULL;
    struct blob_writer *w = NULL;
    struct cb_digest d;
    uint64_t size = 6;
    char got[7] = "";
    cb_sha256("abcdef", 6, &d);
    store_coming_add(f->store, &d);
    assert_ok(store_blob_begin(f->store, &d, 6, &w, &err), &err);
    assert_ok(blob_writer_add(w, "ab", 2, &err), &err);
    CB_AUTO_FD fd = store_coming_open(f->store, &d, &size, &r, &err);
    assert_ok(fd, &err);
    assert_non_null(r);
    assert_int_equal(coming_wait(r, 1, &err), 2);
    /* In the same file: what comes again is read again, later. */
    assert_ok(blob_writer_restart(w, &err), &err);
    assert_ok(blob_writer_add(w, "abcd", 4, &err), &err);
    assert_int_equal(coming_wait(r, 3, &err), 4);
    assert_int_equal(pread(fd, got, 4, 0), 4);
    assert_string_equal(got, "abcd");
    /* In another file. */
    blob_writer_abort(w);
    CB_AUTO_FREE char *partial = cb_xasprintf("%s/partial", f->dir);
    assert_ok(cb_remove_tree(partial, &err), &err);
    assert_ok(cb_mkdir_p(partial, 0755, &err), &err);
    assert_ok(store_blob_begin(f->store, &d, 6, &w, &err), &err);
    assert_ok(blob_writer_add(w, "abcdef", 6, &err), &err);
    assert_fails((int)coming_wait(r, 5, &err), &err, CB_E_CANCELED, "the blob stopped arriving");
    coming_reader_free(r);
    assert_ok(blob_writer_commit(w, NULL, NULL, &err), &err);
    store_coming_remove(f->store, &d);
}

static void *stop_reader(void *arg)
{
    coming_reader_stop(arg);
    return NULL;
}

static void test_a_reader_can_be_stopped(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct coming_reader *r = NULL;
    struct blob_writer *w = NULL;
    struct cb_digest d;
    uint64_t size = 6;
    pthread_t thread;
    cb_sha256("abcdef", 6, &d);
    store_coming_add(f->store, &d);
    assert_ok(store_blob_begin(f->store, &d, 6, &w, &err), &err);
    assert_ok(blob_writer_add(w, "ab", 2, &err), &err);
    CB_AUTO_FD fd = store_coming_open(f->store, &d, &size, &r, &err);
    assert_ok(fd, &err);
    assert_int_equal(pthread_create(&thread, NULL, stop_reader, r), 0);
    assert_fails((int)coming_wait(r, 6, &err), &err, CB_E_CANCELED, "the blob stopped arriving");
    assert_int_equal(pthread_join(thread, NULL), 0);
    store_coming_remove(f->store, &d); /* before its last reader */
    coming_reader_free(r);
    blob_writer_abort(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_store(test_unknown_blob_is_not_waited_for),
        test_in_store(test_reads_what_grows),
        test_in_store(test_a_failed_download_wakes_its_readers),
        test_in_store(test_a_download_that_begins_anew),
        test_in_store(test_a_reader_can_be_stopped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
