/* What failed builds left: it is whole or not there, and bounded by number, bytes and age. */
#include "check.h"

#include "builder/kept.h"
#include "builder/sweep.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { KIB = 1024, DAY = 86400 };
static const struct kept_limits all = {100, UINT64_MAX, KEPT_AGE_MS};

static void write_bytes(const char *path, size_t n)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *bytes = cb_xmalloc(n);
    memset(bytes, 'x', n);
    assert_ok(cb_write_file(path, bytes, n, 0600, &err), &err);
}

/* A state with a scratch disk of @n bytes, made @age_s ago. */
static int save(const char *home, const char *id, size_t n, const struct kept_limits *limits,
                int age_s, struct cb_error *err)
{
    CB_AUTO_FREE char *scratch = cb_xasprintf("%s/scratch", home);
    CB_AUTO_FREE char *lower = cb_xasprintf("%s/lower", home);
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/failed/%s", home, id);
    write_bytes(scratch, n);
    if (access(lower, F_OK) < 0)
        write_bytes(lower, KIB);
    struct kept_state k = {.name = cb_xstrdup("name"),
                           .driver = cb_xstrdup("vm"),
                           .layer_name = cb_xstrdup("layer"),
                           .title = cb_xstrdup("a \"title\""),
                           .first = 1,
                           .layer = 3,
                           .command = 5,
                           .user = cb_xstrdup(""),
                           .workdir = cb_xstrdup("/w")};
    cb_sha256("k", 1, &k.layer_key);
    cb_sha256("c", 1, &k.content);
    cb_strv_add(&k.env, "A=b c");
    k.watched = n != KIB;
    cb_strv_add(&k.hosts, "pypi.org:443/tcp");
    int rc = kept_save(home, id, limits, &k, scratch, lower, err);
    kept_state_release(&k);
    if (rc == 0 && age_s) {
        struct timespec at;
        assert_int_equal(clock_gettime(CLOCK_REALTIME, &at), 0);
        at.tv_sec -= age_s;
        const struct timespec times[2] = {at, at};
        assert_int_equal(utimensat(AT_FDCWD, dir, times, 0), 0);
    }
    return rc;
}

static void keep(const char *home, const char *id, size_t n, int age_s)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(save(home, id, n, &all, age_s, &err), &err);
}

static void trim(const char *home, const struct kept_limits *limits, bool dry, uint64_t gone,
                 uint64_t left)
{
    struct kept_sum sum;
    kept_trim(home, limits, dry, &sum);
    assert_int_equal(sum.n, gone);
    kept_states(home, &sum);
    assert_int_equal(sum.n, left);
}

static void test_a_state_is_read_as_it_was_written(void **state)
{
    const char *home = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct kept_state k;
    struct cb_digest d;
    keep(home, "B1", 64 * KIB, 0);
    assert_true(kept_is_there(home, "B1"));
    assert_ok(kept_load(home, "B1", &k, &err), &err);
    assert_string_equal(k.name, "name");
    assert_string_equal(k.driver, "vm");
    assert_string_equal(k.title, "a \"title\"");
    assert_int_equal(k.first, 1);
    assert_int_equal(k.layer, 3);
    assert_int_equal(k.command, 5);
    assert_int_equal(k.env.n, 1);
    assert_string_equal(k.env.v[0], "A=b c");
    assert_true(k.watched);
    assert_int_equal(k.hosts.n, 1);
    assert_string_equal(k.hosts.v[0], "pypi.org:443/tcp");
    assert_string_equal(k.workdir, "/w");
    cb_sha256("k", 1, &d);
    assert_true(cb_digest_eq(&d, &k.layer_key));
    kept_state_release(&k);
    /* the store's file and ours are one: it takes nothing more */
    CB_AUTO_FREE char *lower = kept_file(home, "B1", KEPT_LOWER);
    struct stat st;
    assert_int_equal(stat(lower, &st), 0);
    assert_int_equal(st.st_nlink, 2);
    /* a copy leaves it as it is */
    CB_AUTO_FREE char *copy = cb_xasprintf("%s/copy", home);
    assert_ok(kept_copy_scratch(home, "B1", copy, &err), &err);
    assert_int_equal(stat(copy, &st), 0);
    assert_int_equal(st.st_size, 64 * KIB);
    keep(home, "B2", KIB, 0); /* nobody watched */
    assert_ok(kept_load(home, "B2", &k, &err), &err);
    assert_false(k.watched);
    assert_int_equal(k.hosts.n, 0);
    kept_state_release(&k);
}

static void test_what_is_no_state_is_refused(void **state)
{
    const char *home = *state;
    static const char *const wrong[] = {"", "{", "[]", "{\"format\": 1}", "{\"format\": 2}"};
    keep(home, "B1", KIB, 0);
    CB_AUTO_FREE char *path = kept_file(home, "B1", "state.json");
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct kept_state k;
        assert_ok(cb_write_file(path, wrong[i], strlen(wrong[i]), 0600, &err), &err);
        assert_int_equal(kept_load(home, "B1", &k, &err), -CB_E_CORRUPT);
        assert_non_null(strstr(err.msg, "is not one of ours"));
    }
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct kept_state k;
    assert_int_equal(kept_load(home, "B2", &k, &err), -CB_E_NOTFOUND);
}

static void test_the_oldest_go_when_there_are_too_many(void **state)
{
    const char *home = *state;
    for (int i = 0; i < 5; i++) {
        CB_AUTO_FREE char *id = cb_xasprintf("B%d", i);
        keep(home, id, KIB, 100 - i);
    }
    const struct kept_limits three = {3, UINT64_MAX, KEPT_AGE_MS};
    trim(home, &three, true, 2, 5);
    trim(home, &three, false, 2, 3);
    assert_false(kept_is_there(home, "B1"));
    assert_true(kept_is_there(home, "B2"));
}

static void test_the_oldest_go_when_they_take_too_much(void **state)
{
    const char *home = *state;
    keep(home, "B0", 64 * KIB, 30);
    keep(home, "B1", 64 * KIB, 20);
    keep(home, "B2", 64 * KIB, 10);
    const struct kept_limits limits = {9, 160 * KIB, KEPT_AGE_MS};
    trim(home, &limits, false, 1, 2);
    assert_false(kept_is_there(home, "B0"));
    /* one that is too large by itself takes no other's place */
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_int_equal(save(home, "B3", 256 * KIB, &limits, 0, &err), -CB_E_LIMIT);
    assert_non_null(strstr(err.msg, "(keep_failed_gb)"));
    trim(home, &limits, false, 0, 2);
}

static void test_they_go_after_a_week(void **state)
{
    const char *home = *state;
    keep(home, "B0", KIB, 8 * DAY);
    trim(home, &all, false, 1, 0);
    keep(home, "B1", KIB, 6 * DAY);
    trim(home, &all, false, 0, 1);
    assert_true(kept_is_there(home, "B1"));
}

static void test_what_was_not_finished_goes_after_a_day(void **state)
{
    const char *home = *state;
    static const char *const names[] = {".B0", ".B1"};
    static const int ages[] = {2 * DAY, 60};
    keep(home, "B2", KIB, 0);
    for (int i = 0; i < 2; i++) {
        keep(home, "B1", KIB, ages[i]);
        CB_AUTO_FREE char *from = cb_xasprintf("%s/failed/B1", home);
        CB_AUTO_FREE char *to = cb_xasprintf("%s/failed/%s", home, names[i]);
        assert_int_equal(rename(from, to), 0);
    }
    const struct kept_limits one = {1, UINT64_MAX, KEPT_AGE_MS};
    trim(home, &one, false, 0, 2); /* it counts as no state, and takes none's place */
    assert_true(kept_is_there(home, "B2"));
    assert_false(kept_is_there(home, ".B0"));
    assert_true(kept_is_there(home, ".B1"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_dir(test_a_state_is_read_as_it_was_written),
        test_in_dir(test_what_is_no_state_is_refused),
        test_in_dir(test_the_oldest_go_when_there_are_too_many),
        test_in_dir(test_the_oldest_go_when_they_take_too_much),
        test_in_dir(test_they_go_after_a_week),
        test_in_dir(test_what_was_not_finished_goes_after_a_day),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
