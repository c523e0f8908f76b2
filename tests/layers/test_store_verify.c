/* verify and its repair; what kill -9 leaves at every step; several processes at once. */
#include "check.h"

#include "layers/store_private.h"
#include "layers/store_verify.h"
#include "store_build.h"

#include <signal.h>
#include <sys/wait.h>

static const struct verify_options plain, repair = {.repair = true};

static void verify(struct store *s, const struct verify_options *o, struct verify_report *r)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(store_verify(s, o, r, &err), &err);
}

/* Prints what is wrong, if something is. */
static bool is_good(struct store *s)
{
    struct verify_report r;
    verify(s, &plain, &r);
    for (size_t i = 0; i < r.n; i++)
        print_message("%s: %s\n", r.v[i].what, r.v[i].why);
    bool good = r.good;
    verify_report_release(&r);
    return good;
}

static const struct verify_fault *fault(const struct verify_report *r, const char *what)
{
    for (size_t i = 0; i < r->n; i++)
        if (strstr(r->v[i].what, what))
            return &r->v[i];
    fail_msg("nothing is said of %s", what);
    return NULL;
}

/* Changes one byte of the file: of its beginning, or of the place where an image of @at has text.
 */
static void damage(const struct store_fixture *f, const char *rel, off_t at)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", f->dir, rel);
    CB_AUTO_FD fd = open(path, O_RDWR | O_CLOEXEC);
    char c = 0;
    assert_true(fd >= 0 || geteuid() != 0);
    assert_int_equal(pread(fd, &c, 1, at), 1);
    c ^= 1;
    assert_int_equal(pwrite(fd, &c, 1, at), 1);
}

struct parts {
    char *image, *map, *own, *base, *layer; /* owned paths below the store */
};

static void parts_of(struct store_fixture *f, const char *name, struct parts *p)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO(manifest) m = NULL;
    CB_AUTO_CHUNK_MAP map = {0};
    char hex[CB_HEX_LEN + 1];
    assert_ok(store_template_get(f->store, name, 0, &m, &err), &err);
    cb_digest_hex(&m->image, hex);
    p->image = cb_xasprintf("images/%s.ext4", hex);
    p->map = cb_xasprintf("images/%s.chunks", hex);
    assert_ok(store_map_get(f->store, &m->image, &map, &err), &err);
    cb_digest_hex(&map.v[map.n - 1].digest, hex);
    p->own = cb_xasprintf("chunks/%s.zst", hex);
    cb_digest_hex(&map.v[0].digest, hex);
    p->base = cb_xasprintf("chunks/%s.zst", hex);
    cb_digest_hex(&m->layers[m->n_layers - 1].digest, hex);
    p->layer = cb_xasprintf("blobs/sha256/%s", hex);
}

static void parts_release(struct parts *p)
{
    free(p->image);
    free(p->map);
    free(p->own);
    free(p->base);
    free(p->layer);
}

static void setup_two(struct store_fixture *f, struct parts *one)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(build_template(f->store, "one", 1, NULL, &err), &err);
    assert_ok(build_template(f->store, "two", 2, NULL, &err), &err);
    parts_of(f, "one", one);
    assert_true(is_good(f->store));
}

static void test_every_kind_of_damage_is_named(void **state)
{
    struct store_fixture *f = *state;
    struct parts p;
    struct verify_report r;
    setup_two(f, &p);
    damage(f, p.image, 6 * BUILD_MIB);
    damage(f, p.map, 50);
    damage(f, p.own, 6);
    damage(f, p.base, 6);
    damage(f, p.layer, 0);
    verify(f->store, &plain, &r);
    assert_false(r.good);
    assert_int_equal(r.n, 5);
    assert_string_equal(fault(&r, p.image)->hits, "one version 1");
    assert_non_null(strstr(fault(&r, p.image)->why, "its content is sha256:"));
    assert_non_null(strstr(fault(&r, p.map)->why, "is the map of another image"));
    assert_string_equal(fault(&r, p.map)->hits, "one version 1");
    assert_non_null(strstr(fault(&r, p.layer)->why, "its content is sha256:"));
    assert_string_equal(fault(&r, p.layer)->hits, "one version 1");
    assert_string_equal(fault(&r, p.base)->hits, "two version 1"); /* one's map cannot be read */
    assert_null(fault(&r, p.own)->hits);
    assert_true(r.checked[STORE_CHUNKS].n == 5 && r.checked[STORE_IMAGES].n == 2);
    verify_report_release(&r);
    parts_release(&p);
}

/* Chunks and a map come back from the image's file, a file from its chunks. */
static void test_repair_makes_anew_what_it_can(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct parts p;
    struct verify_report r;
    setup_two(f, &p);
    damage(f, p.map, 50);
    damage(f, p.own, 6);
    damage(f, p.base, 6);
    verify(f->store, &repair, &r);
    assert_true(r.good);
    assert_int_equal(r.n, 3);
    for (size_t i = 0; i < r.n; i++)
        assert_true(r.v[i].moved && r.v[i].solved);
    verify_report_release(&r);
    assert_int_equal(store_entries(f, "damaged"), 3);
    assert_true(is_good(f->store));
    damage(f, p.image, 6 * BUILD_MIB);
    verify(f->store, &repair, &r);
    assert_true(r.good);
    verify_report_release(&r);
    assert_int_equal(store_entries(f, "damaged"), 4);
    CB_AUTO(manifest) m = NULL;
    CB_AUTO_FREE char *path = NULL;
    assert_ok(store_template_get(f->store, "one", 0, &m, &err), &err);
    assert_ok(store_image_path(f->store, &m->image, &path, &err), &err);
    assert_true(is_good(f->store));
    parts_release(&p);
    const struct gc_options o = {.max_bytes = STORE_NO_CEILING};
    struct gc_report g;
    assert_ok(store_gc(f->store, &o, &g, &err), &err);
    assert_int_equal(g.removed[STORE_DAMAGED].n, 4);
    gc_report_release(&g);
}

/* What cannot be made here is put aside; the next build brings it. */
static void test_repair_leaves_the_rest_to_a_build(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct parts p;
    struct verify_report r;
    setup_two(f, &p);
    damage(f, p.layer, 0);
    damage(f, p.image, 6 * BUILD_MIB);
    damage(f, p.own, 6);
    verify(f->store, &repair, &r);
    assert_false(r.good);
    assert_true(fault(&r, p.layer)->moved && !fault(&r, p.layer)->solved);
    assert_non_null(strstr(fault(&r, "one version 1")->why, "1 of the 4 chunks of its image"));
    verify_report_release(&r);
    assert_false(is_good(f->store));
    assert_ok(build_template(f->store, "one", 1, NULL, &err), &err);
    assert_true(is_good(f->store)); /* version 1 as well: its parts have the same names */
    parts_release(&p);
}

static void test_documents_that_are_damaged(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct parts p;
    struct verify_report r;
    setup_two(f, &p);
    parts_release(&p);
    CB_AUTO_FREE char *version = cb_xasprintf("%s/templates/one/1.json", f->dir);
    CB_AUTO_FREE char *current = cb_xasprintf("%s/templates/two/current", f->dir);
    CB_AUTO_FREE char *record = cb_xasprintf(
        "%s/cache/0000000000000000000000000000000000000000000000000000000000000000.json", f->dir);
    assert_ok(cb_write_file(version, "{", 1, 0644, &err), &err);
    assert_ok(cb_write_file(current, "{\"version\":7}", 13, 0644, &err), &err);
    assert_ok(cb_write_file(record, "x", 1, 0644, &err), &err);
    verify(f->store, &plain, &r);
    assert_int_equal(r.n, 3);
    assert_non_null(strstr(fault(&r, "one version 1")->why, "1.json"));
    assert_non_null(strstr(fault(&r, "templates/two/current")->why, "no version 7"));
    assert_non_null(strstr(fault(&r, "cache/0000")->why, "cache record"));
    verify_report_release(&r);
}

/* -- crashes -- */

static int steps_left;

static void die_at_step(const char *what)
{
    (void)what;
    if (--steps_left == 0)
        (void)kill(getpid(), SIGKILL);
}

/* In a child that is killed at step @step: true when it came to its end before that. */
static bool ends_before(const struct store_fixture *f, int step, int (*work)(struct store *s))
{
    pid_t pid = fork();
    if (pid == 0) {
        struct store *s = NULL;
        if (store_open(f->dir, &s, NULL) < 0)
            _exit(1);
        steps_left = step;
        store_step_hook = die_at_step;
        int rc = work(s);
        store_step_hook = NULL;
        store_free(s);
        _exit(rc < 0 ? 1 : 0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status))
        assert_int_equal(WEXITSTATUS(status), 0);
    else
        assert_int_equal(WTERMSIG(status), SIGKILL);
    return WIFEXITED(status);
}

static int publish_two(struct store *s)
{
    return build_template(s, "web", 2, NULL, NULL);
}

static void test_a_publish_killed_at_any_step(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(build_template(f->store, "web", 1, NULL, &err), &err);
    store_free(cb_take_ptr(&f->store));
    int step = 1;
    for (bool done = false; !done; step++) {
        done = ends_before(f, step, publish_two);
        assert_ok(store_open(f->dir, &f->store, &err), &err);
        store_sweep_tmp(f->store);
        assert_int_equal(store_entries(f, "tmp"), 0);
        assert_true(is_good(f->store));
        CB_AUTO(manifest) m = NULL;
        assert_ok(store_template_get(f->store, "web", 0, &m, &err), &err);
        CB_AUTO_FREE char *path = NULL;
        assert_ok(store_image_path(f->store, &m->image, &path, &err), &err);
        assert_true(done ? m->version > 1 : m->version >= 1);
        store_free(cb_take_ptr(&f->store));
        assert_true(step < 200);
    }
    assert_true(step > 10);
    assert_ok(store_open(f->dir, &f->store, &err), &err);
}

static int collect_all(struct store *s)
{
    const struct gc_options o = {.max_bytes = 1, .keep_versions = 1};
    struct gc_report r;
    int rc = store_gc(s, &o, &r, NULL);
    gc_report_release(&r);
    return rc;
}

static void test_a_collection_killed_at_any_step(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int step = 1;
    for (bool done = false; !done; step++) {
        for (int v = 1; v <= 4; v++)
            assert_ok(build_template(f->store, "web", v, NULL, &err), &err);
        store_free(cb_take_ptr(&f->store));
        done = ends_before(f, step, collect_all);
        assert_ok(store_open(f->dir, &f->store, &err), &err);
        assert_true(is_good(f->store));
        assert_true(step < 200);
        step += step / 4; /* not each of them: the first ones matter most */
    }
}

/* -- several at once -- */

enum { BUILDERS = 3, ROUNDS = 8 };

static int build_rounds(const struct store_fixture *f, int who)
{
    for (int i = 0; i < ROUNDS; i++) {
        struct store *s = NULL;
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FREE char *name = cb_xasprintf("t%d", who);
        CB_AUTO_FREE char *path = NULL;
        CB_AUTO(manifest) m = NULL;
        if (store_open(f->dir, &s, &err) < 0 ||
            build_template(s, name, (who + i) % 4, NULL, &err) < 0 ||
            store_template_get(s, name, 0, &m, &err) < 0 ||
            store_image_path(s, &m->image, &path, &err) < 0) {
            print_message("builder %d, round %d: %s\n", who, i, err.msg);
            return -1;
        }
        store_free(s);
    }
    return 0;
}

static int collect_rounds(const struct store_fixture *f)
{
    for (int i = 0; i < 2 * ROUNDS; i++) {
        struct store *s = NULL;
        if (store_open(f->dir, &s, NULL) < 0 || collect_all(s) < 0)
            return -1;
        store_free(s);
    }
    return 0;
}

static int verify_rounds(const struct store_fixture *f)
{
    for (int i = 0; i < ROUNDS; i++) {
        struct store *s = NULL;
        if (store_open(f->dir, &s, NULL) < 0 || !is_good(s))
            return -1;
        store_free(s);
    }
    return 0;
}

/* Whatever the order in which they come: every build succeeds and can use what it published, and
 * nothing is ever missing or wrong. */
static void test_builds_collections_and_checks_at_once(void **state)
{
    struct store_fixture *f = *state;
    store_free(cb_take_ptr(&f->store));
    pid_t child[BUILDERS + 2];
    for (int c = 0; c < BUILDERS + 2; c++) {
        child[c] = fork();
        if (child[c] == 0) {
            int rc = c < BUILDERS    ? build_rounds(f, c)
                     : c == BUILDERS ? collect_rounds(f)
                                     : verify_rounds(f);
            _exit(rc < 0 ? 1 : 0);
        }
    }
    bool fine = true;
    for (int c = 0; c < BUILDERS + 2; c++) {
        int status;
        assert_int_equal(waitpid(child[c], &status, 0), child[c]);
        fine = fine && status == 0;
    }
    assert_true(fine);
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(store_open(f->dir, &f->store, &err), &err);
    assert_true(is_good(f->store));
    assert_int_equal(collect_all(f->store), 0);
    assert_true(is_good(f->store));
    assert_int_equal(store_entries(f, "templates"), BUILDERS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_store(test_every_kind_of_damage_is_named),
        test_in_store(test_repair_makes_anew_what_it_can),
        test_in_store(test_repair_leaves_the_rest_to_a_build),
        test_in_store(test_documents_that_are_damaged),
        test_in_store(test_a_publish_killed_at_any_step),
        test_in_store(test_a_collection_killed_at_any_step),
        test_in_store(test_builds_collections_and_checks_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
