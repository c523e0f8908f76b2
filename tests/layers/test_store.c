#include "check.h"

#include "layers/store.h"
#include "store_check.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void digest_of(const char *text, struct cb_digest *d)
{
    cb_sha256(text, strlen(text), d);
}

static void test_put_then_open(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_digest d, want;
    digest_of("hello", &want);
    assert_false(store_blob_has(f->store, &want));
    assert_fails(store_blob_open(f->store, &want, NULL, &err), &err, CB_E_NOTFOUND,
                 "blob sha256:2cf24dba");
    assert_ok(store_blob_put(f->store, "hello", 5, &d, &err), &err);
    assert_true(cb_digest_eq(&d, &want));
    assert_true(store_blob_has(f->store, &d));
    uint64_t size = 0;
    CB_AUTO_FD fd = store_blob_open(f->store, &d, &size, &err);
    assert_ok(fd, &err);
    assert_int_equal(size, 5);
    CB_AUTO_BUF b = CB_BUF_INIT(0);
    assert_ok(cb_read_fd(fd, "blob", 100, &b, &err), &err);
    assert_string_equal(b.data, "hello");
    assert_ok(store_blob_put(f->store, "hello", 5, &d, &err), &err); /* again is fine */
    assert_ok(store_blob_put(f->store, "", 0, &d, &err), &err);
    assert_true(store_blob_has(f->store, &d));
}

static void test_a_writer_streams(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct blob_writer *w = NULL;
    assert_ok(store_blob_begin(f->store, NULL, UINT64_MAX, &w, &err), &err);
    assert_int_equal(store_entries(f, "tmp"), 1);
    for (int i = 0; i < 3; i++)
        assert_ok(blob_writer_add(w, "abc", 3, &err), &err);
    assert_int_equal(blob_writer_offset(w), 9);
    struct cb_digest d, want;
    uint64_t size = 0;
    assert_ok(blob_writer_commit(w, &d, &size, &err), &err);
    digest_of("abcabcabc", &want);
    assert_true(cb_digest_eq(&d, &want));
    assert_int_equal(size, 9);
    /* one without a digest to expect leaves nothing when it is given up */
    assert_ok(store_blob_begin(f->store, NULL, 10, &w, &err), &err);
    assert_ok(blob_writer_add(w, "abc", 3, &err), &err);
    blob_writer_abort(w);
    blob_writer_abort(NULL);
    assert_int_equal(store_files(f), 1);
}

static void test_a_partial_one_goes_on(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_digest d;
    struct blob_writer *w = NULL;
    digest_of("first second", &d);
    assert_ok(store_blob_begin(f->store, &d, 12, &w, &err), &err);
    assert_int_equal(blob_writer_offset(w), 0);
    assert_ok(blob_writer_add(w, "first ", 6, &err), &err);
    blob_writer_abort(w);
    assert_int_equal(store_entries(f, "partial"), 1);
    assert_ok(store_blob_begin(f->store, &d, 12, &w, &err), &err);
    assert_int_equal(blob_writer_offset(w), 6);
    assert_ok(blob_writer_add(w, "second", 6, &err), &err);
    assert_ok(blob_writer_commit(w, NULL, NULL, &err), &err);
    assert_true(store_blob_has(f->store, &d));
    assert_int_equal(store_entries(f, "partial"), 0);
}

static void test_restart_throws_away(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_digest d;
    struct blob_writer *w = NULL;
    digest_of("ab", &d);
    assert_ok(store_blob_begin(f->store, &d, 2, &w, &err), &err);
    assert_ok(blob_writer_add(w, "x", 1, &err), &err);
    assert_ok(blob_writer_restart(w, &err), &err);
    assert_int_equal(blob_writer_offset(w), 0);
    assert_ok(blob_writer_add(w, "ab", 2, &err), &err);
    assert_ok(blob_writer_commit(w, NULL, NULL, &err), &err);
}

static void test_wrong_bytes_leave_nothing(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_digest d;
    struct blob_writer *w = NULL;
    digest_of("right", &d);
    assert_ok(store_blob_begin(f->store, &d, 5, &w, &err), &err);
    assert_ok(blob_writer_add(w, "wrong", 5, &err), &err);
    assert_fails(blob_writer_commit(w, NULL, NULL, &err), &err, CB_E_CORRUPT, "instead of sha256:");
    assert_int_equal(store_files(f), 0);
    /* too many: at once, and the bytes are not taken up again */
    assert_ok(store_blob_begin(f->store, &d, 5, &w, &err), &err);
    assert_ok(blob_writer_add(w, "righ", 4, &err), &err);
    assert_fails(blob_writer_add(w, "t and more", 10, &err), &err, CB_E_CORRUPT,
                 "more than the 5 bytes");
    blob_writer_abort(w);
    assert_int_equal(store_files(f), 0);
}

static void test_a_partial_one_that_is_too_long_is_dropped(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_digest d;
    struct blob_writer *w = NULL;
    digest_of("abc", &d);
    assert_ok(store_blob_begin(f->store, &d, 100, &w, &err), &err);
    assert_ok(blob_writer_add(w, "abcdef", 6, &err), &err);
    blob_writer_abort(w);
    assert_ok(store_blob_begin(f->store, &d, 3, &w, &err), &err);
    assert_int_equal(blob_writer_offset(w), 0);
    assert_ok(blob_writer_add(w, "abc", 3, &err), &err);
    assert_ok(blob_writer_commit(w, NULL, NULL, &err), &err);
}

static void test_two_writers_of_one_blob(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_digest d;
    struct blob_writer *a = NULL, *b = NULL;
    digest_of("abc", &d);
    assert_ok(store_blob_begin(f->store, &d, 3, &a, &err), &err);
    assert_ok(blob_writer_add(a, "ab", 2, &err), &err);
    assert_ok(store_blob_begin(f->store, &d, 3, &b, &err), &err);
    assert_int_equal(blob_writer_offset(b), 0); /* not the file that the other is writing */
    assert_ok(blob_writer_add(b, "abc", 3, &err), &err);
    assert_ok(blob_writer_commit(b, NULL, NULL, &err), &err);
    assert_ok(blob_writer_add(a, "c", 1, &err), &err);
    assert_ok(blob_writer_commit(a, NULL, NULL, &err), &err);
    assert_true(store_blob_has(f->store, &d));
    assert_int_equal(store_files(f), 1);
}

/* Both write the same 4 MiB at once, each through a store of its own. */
static void test_two_processes_publish_one_blob(void **state)
{
    struct store_fixture *f = *state;
    enum { N = 4 << 20, CHILDREN = 2 };
    CB_AUTO_FREE char *data = cb_xcalloc(1, N);
    for (int i = 0; i < N; i++)
        data[i] = (char)(i * 7 + i / 256);
    struct cb_digest d;
    cb_sha256(data, N, &d);
    int gate[2];
    assert_int_equal(pipe(gate), 0);
    pid_t child[CHILDREN];
    for (int c = 0; c < CHILDREN; c++) {
        child[c] = fork();
        if (child[c] == 0) {
            char go;
            struct store *s = NULL;
            struct blob_writer *w = NULL;
            (void)close(gate[1]);
            int rc = store_open(f->dir, &s, NULL);
            while (read(gate[0], &go, 1) > 0)
                ; /* until the parent closes it: both start at once */
            rc = rc < 0 ? rc : store_blob_begin(s, &d, N, &w, NULL);
            for (uint64_t at = rc < 0 ? N : blob_writer_offset(w); at < N && rc == 0; at += 4096)
                rc = blob_writer_add(w, data + at, 4096, NULL);
            rc = rc < 0 ? rc : blob_writer_commit(w, NULL, NULL, NULL);
            store_free(s);
            _exit(rc < 0 ? 1 : 0);
        }
    }
    (void)close(gate[0]);
    (void)close(gate[1]);
    for (int c = 0; c < CHILDREN; c++) {
        int status;
        assert_int_equal(waitpid(child[c], &status, 0), child[c]);
        assert_int_equal(status, 0);
    }
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_digest got;
    CB_AUTO_FD fd = store_blob_open(f->store, &d, NULL, &err);
    assert_ok(fd, &err);
    assert_ok(cb_sha256_fd(fd, &got, &err), &err);
    assert_true(cb_digest_eq(&d, &got));
    assert_int_equal(store_files(f), 1);
}

/* A child that writes the first half of a blob and is killed with -9 before it can do anything
 * else.
 * @expect NULL: one without a digest. */
static void killed_half_way(const struct store_fixture *f, const struct cb_digest *expect,
                            const char *text)
{
    int said[2];
    assert_int_equal(pipe(said), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct store *s = NULL;
        struct blob_writer *w = NULL;
        if (store_open(f->dir, &s, NULL) < 0 ||
            store_blob_begin(s, expect, strlen(text), &w, NULL) < 0 ||
            blob_writer_add(w, text, strlen(text) / 2, NULL) < 0)
            _exit(1);
        (void)!write(said[1], "x", 1);
        for (;;)
            (void)pause();
    }
    (void)close(said[1]);
    char c;
    assert_int_equal(read(said[0], &c, 1), 1);
    (void)close(said[0]);
    assert_int_equal(kill(pid, SIGKILL), 0);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
}

static void test_kill_in_the_middle_of_a_write(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    static const char text[] = "0123456789";
    struct cb_digest d;
    digest_of(text, &d);
    killed_half_way(f, &d, text);
    assert_false(store_blob_has(f->store, &d));
    assert_int_equal(store_entries(f, "blobs/sha256"), 0);
    struct blob_writer *w = NULL;
    assert_ok(store_blob_begin(f->store, &d, 10, &w, &err), &err);
    assert_int_equal(blob_writer_offset(w), 5);
    assert_ok(blob_writer_add(w, text + 5, 5, &err), &err);
    assert_ok(blob_writer_commit(w, NULL, NULL, &err), &err);
    assert_true(store_blob_has(f->store, &d));
}

static void test_sweep_takes_only_what_is_dead(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct blob_writer *w = NULL;
    assert_ok(store_blob_begin(f->store, NULL, 10, &w, &err), &err); /* alive */
    assert_ok(blob_writer_add(w, "live", 4, &err), &err);
    CB_AUTO_FREE char *mine = store_tmp_path(f->store, "image.ext4");
    CB_AUTO_FREE char *other = store_tmp_path(f->store, "image.ext4");
    assert_string_not_equal(mine, other);
    assert_false(cb_path_exists(mine));
    assert_ok(cb_write_file(mine, "x", 1, 0600, &err), &err);
    killed_half_way(f, NULL, "0123456789");
    assert_int_equal(store_entries(f, "tmp"), 2);
    store_sweep_tmp(f->store);
    assert_int_equal(store_entries(f, "tmp"), 1);
    assert_true(cb_path_exists(mine));
    assert_ok(blob_writer_commit(w, NULL, NULL, &err), &err);
    /* an orderly end leaves nothing to sweep */
    store_free(cb_take_ptr(&f->store));
    assert_false(cb_path_exists(mine));
    assert_int_equal(store_entries(f, "tmp"), 0);
}

/* A limit on file sizes stands in for a full disk where no small disk can be mounted. */
static void test_a_write_that_does_not_fit(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct rlimit old, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = 6;
    struct sigaction ign = {.sa_handler = SIG_IGN}, was;
    assert_int_equal(sigaction(SIGXFSZ, &ign, &was), 0);
    struct cb_digest d;
    struct blob_writer *w = NULL;
    digest_of("0123456789", &d);
    assert_ok(store_blob_begin(f->store, &d, 10, &w, &err), &err);
    assert_ok(blob_writer_add(w, "0123", 4, &err), &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    assert_fails(blob_writer_add(w, "456789", 6, &err), &err, CB_E_SYS, "File too large");
    blob_writer_abort(w);
    assert_fails(store_blob_put(f->store, "more than six", 13, NULL, &err), &err, CB_E_SYS,
                 "File too large");
    assert_fails(store_note_put(f->store, "n", "more than six", &err), &err, CB_E_SYS,
                 "File too large");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(sigaction(SIGXFSZ, &was, NULL), 0);
    assert_int_equal(store_files(f), 1); /* the partial one, which goes on where it was whole */
    assert_ok(store_blob_begin(f->store, &d, 10, &w, &err), &err);
    assert_int_equal(blob_writer_offset(w), 4);
    assert_ok(blob_writer_add(w, "456789", 6, &err), &err);
    assert_ok(blob_writer_commit(w, NULL, NULL, &err), &err);
}

struct job {
    struct store *store;
    int id;
    int failed;
};

/* Blobs that only this thread writes, and one that all do. */
static void *write_blobs(void *arg)
{
    struct job *j = arg;
    for (int i = 0; i < 16; i++) {
        char text[32];
        struct blob_writer *w = NULL;
        struct cb_digest d;
        (void)snprintf(text, sizeof(text), "%d of %d", i % 4 ? i : 0, i % 4 ? j->id : 0);
        digest_of(text, &d);
        if (store_blob_begin(j->store, i % 2 ? &d : NULL, 32, &w, NULL) < 0 ||
            blob_writer_restart(w, NULL) < 0 || blob_writer_add(w, text, strlen(text), NULL) < 0 ||
            blob_writer_commit(w, NULL, NULL, NULL) < 0 || !store_blob_has(j->store, &d))
            j->failed++;
    }
    return NULL;
}

static void test_threads_share_a_handle(void **state)
{
    struct store_fixture *f = *state;
    enum { N = 4 };
    struct job job[N];
    pthread_t thread[N];
    for (int i = 0; i < N; i++) {
        job[i] = (struct job){f->store, i + 1, 0};
        assert_int_equal(pthread_create(&thread[i], NULL, write_blobs, &job[i]), 0);
    }
    for (int i = 0; i < N; i++) {
        assert_int_equal(pthread_join(thread[i], NULL), 0);
        assert_int_equal(job[i].failed, 0);
    }
    assert_int_equal(store_files(f), 1 + N * 12);
}

static void test_notes(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF b = CB_BUF_INIT(0);
    const char *name = "docker.io/library/debian:bookworm ../../x";
    assert_fails(store_note_get(f->store, name, &b, &err), &err, CB_E_NOTFOUND, name);
    assert_ok(store_note_put(f->store, name, "{\"a\": 1}", &err), &err);
    assert_ok(store_note_put(f->store, name, "{\"a\": 2}", &err), &err);
    assert_ok(store_note_get(f->store, name, &b, &err), &err);
    assert_string_equal(b.data, "{\"a\": 2}");
    assert_int_equal(store_files(f), 1);
}

static void test_open_says_why_not(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *file = cb_xasprintf("%s/file", f->base);
    assert_ok(cb_write_file(file, "", 0, 0600, &err), &err);
    struct store *s = NULL;
    assert_fails(store_open(file, &s, &err), &err, CB_E_ENV, "Not a directory");
    CB_AUTO_FREE char *below = cb_xasprintf("%s/file/x", f->base);
    assert_fails(store_open(below, &s, &err), &err, CB_E_ENV, below);
    assert_null(s);
    store_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_store(test_put_then_open),
        test_in_store(test_a_writer_streams),
        test_in_store(test_a_partial_one_goes_on),
        test_in_store(test_restart_throws_away),
        test_in_store(test_wrong_bytes_leave_nothing),
        test_in_store(test_a_partial_one_that_is_too_long_is_dropped),
        test_in_store(test_two_writers_of_one_blob),
        test_in_store(test_two_processes_publish_one_blob),
        test_in_store(test_kill_in_the_middle_of_a_write),
        test_in_store(test_sweep_takes_only_what_is_dead),
        test_in_store(test_a_write_that_does_not_fit),
        test_in_store(test_threads_share_a_handle),
        test_in_store(test_notes),
        test_in_store(test_open_says_why_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
