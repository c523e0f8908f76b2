#include "check.h"

#include "layers/store_private.h"
#include "layers/store_verify.h"
#include "store_build.h"

#include <signal.h>
#include <sys/wait.h>

static const struct gc_options all_ages = {.max_bytes = STORE_NO_CEILING};

static void gc(struct store_fixture *f, const struct gc_options *o, struct gc_report *r)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(store_gc(f->store, o, r, &err), &err);
}

static uint64_t removed(const struct gc_report *r)
{
    uint64_t n = 0;
    for (int k = 0; k < STORE_KIND_N; k++)
        n += r->removed[k].n;
    return n;
}

static void assert_good(struct store_fixture *f)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    const struct verify_options o = {0};
    struct verify_report r;
    assert_ok(store_verify(f->store, &o, &r, &err), &err);
    for (size_t i = 0; i < r.n; i++)
        print_message("%s: %s\n", r.v[i].what, r.v[i].why);
    assert_true(r.good);
    verify_report_release(&r);
}

static void build(struct store_fixture *f, const char *name, int seed)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(build_template(f->store, name, seed, NULL, &err), &err);
}

static void test_what_versions_need_stays(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct gc_report r;
    build(f, "one", 1);
    build(f, "two", 2);
    assert_int_equal(store_entries(f, "chunks"), 3 + 2); /* three are shared */
    CB_AUTO_CHUNK_MAP map = {0};
    CB_AUTO_FREE char *path = build_image(f->store, 3, &map);
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_ok(store_chunks_put(f->store, fd, &map, NULL, NULL, &err), &err); /* nobody's */
    assert_ok(store_blob_put(f->store, "nobody's", 8, NULL, &err), &err);
    gc(f, &all_ages, &r);
    assert_int_equal(removed(&r), 0); /* this process uses them */
    gc_report_release(&r);
    store_again(f);
    struct gc_options o = {.max_bytes = STORE_NO_CEILING, .min_age_ms = 1000 * INT64_C(86400)};
    gc(f, &o, &r);
    assert_int_equal(removed(&r), 0); /* they are young */
    gc_report_release(&r);
    o = all_ages;
    o.dry_run = true;
    int files = store_files(f);
    gc(f, &o, &r);
    assert_int_equal(r.removed[STORE_CHUNKS].n, 1);
    assert_int_equal(r.removed[STORE_MAPS].n, 1);
    assert_int_equal(r.removed[STORE_BLOBS].n, 1);
    assert_int_equal(removed(&r), 3);
    assert_true(r.before > r.after);
    assert_int_equal(store_files(f), files);
    uint64_t after = r.after;
    gc_report_release(&r);
    gc(f, &all_ages, &r);
    assert_int_equal(removed(&r), 3);
    assert_int_equal(r.after, after);
    assert_int_equal(r.not_held, 0);
    gc_report_release(&r);
    assert_int_equal(store_files(f), files - 3);
    assert_good(f);
    gc(f, &all_ages, &r);
    assert_int_equal(removed(&r), 0);
    gc_report_release(&r);
}

/* A child that uses a blob and waits. The pipe's other end is in *@said. */
static pid_t user_of(const struct store_fixture *f, const struct cb_digest *d)
{
    int said[2];
    assert_int_equal(pipe(said), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct store *s = NULL;
        if (store_open(f->dir, &s, NULL) < 0 || !store_blob_has(s, d))
            _exit(1);
        (void)!write(said[1], "x", 1);
        for (;;)
            (void)pause();
    }
    (void)close(said[1]);
    char c;
    assert_int_equal(read(said[0], &c, 1), 1);
    (void)close(said[0]);
    return pid;
}

static void test_what_a_living_process_uses_stays(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct gc_report r;
    struct cb_digest d;
    assert_ok(store_blob_put(f->store, "used", 4, &d, &err), &err);
    store_free(cb_take_ptr(&f->store));
    pid_t pid = user_of(f, &d);
    assert_ok(store_open(f->dir, &f->store, &err), &err);
    const struct gc_options o = {.max_bytes = 1}; /* however little room there is */
    gc(f, &o, &r);
    assert_int_equal(r.removed[STORE_BLOBS].n, 0);
    gc_report_release(&r);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    gc(f, &o, &r);
    assert_int_equal(r.removed[STORE_BLOBS].n, 1);
    gc_report_release(&r);
    assert_int_equal(store_entries(f, "blobs/sha256"), 0);
}

static void test_old_versions_beyond_a_number_go(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct gc_report r;
    for (int v = 1; v <= 6; v++)
        build(f, "web", v);
    build(f, "other", 1); /* shares version 1's image */
    assert_ok(store_template_point(f->store, "web", 2, &err), &err);
    store_again(f);
    const struct gc_options o = {.max_bytes = STORE_NO_CEILING, .keep_versions = 2};
    gc(f, &o, &r);
    /* 2 is in use, 6 the newest; of the others 5 and 4 stay */
    assert_int_equal(r.versions.n, 2);
    assert_string_equal(r.versions.v[0][strlen("web version ")] == '1' ? r.versions.v[0]
                                                                       : r.versions.v[1],
                        "web version 1");
    assert_int_equal(r.removed[STORE_VERSIONS].n, 2);
    assert_int_equal(r.removed[STORE_IMAGES].n, 1); /* that of 3 */
    assert_int_equal(r.removed[STORE_CHUNKS].n, 1);
    assert_int_equal(r.removed[STORE_BLOBS].n, 1);
    gc_report_release(&r);
    assert_good(f);
    struct cb_digest key;
    CB_AUTO(manifest) m = NULL;
    memset(&key, 3 + 1, sizeof(key));
    assert_fails(store_template_find(f->store, "web", &key, &m, &err), &err, CB_E_NOTFOUND,
                 "no complete version with this key");
    memset(&key, 4 + 1, sizeof(key));
    assert_ok(store_template_find(f->store, "web", &key, &m, &err), &err);
    assert_int_equal(m->version, 4);
    uint64_t v = 0;
    assert_ok(build_template(f->store, "web", 3, &v, &err), &err);
    assert_int_equal(v, 7);
}

static uint64_t bytes_now(struct store_fixture *f)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct df_report d;
    assert_ok(store_df(f->store, &d, &err), &err);
    uint64_t n = d.total;
    df_report_release(&d);
    return n;
}

static char *image_of(struct store_fixture *f, const char *name, const char *suffix)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO(manifest) m = NULL;
    char hex[CB_HEX_LEN + 1];
    assert_ok(store_template_get(f->store, name, 0, &m, &err), &err);
    cb_digest_hex(&m->image, hex);
    return cb_xasprintf("images/%s.%s", hex, suffix);
}

static bool there(const struct store_fixture *f, const char *rel)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", f->dir, rel);
    return cb_path_exists(path);
}

/* Least recently used first among what can be made again, then old versions; never one in use. */
static void test_a_ceiling_takes_the_longest_unused(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct gc_report r;
    struct cb_digest key = {{7}};
    build(f, "a", 1);
    build(f, "b", 2);
    build(f, "c", 3);
    build(f, "c", 4);
    CB_AUTO_FREE char *tmp = store_tmp_path(f->store, "lower");
    CB_AUTO_FREE char *noise = cb_xcalloc(1, 64 << 10);
    memset(noise, 'x', 64 << 10);
    assert_ok(cb_write_file(tmp, noise, 64 << 10, 0600, &err), &err);
    assert_ok(store_lower_publish(f->store, tmp, &key, &err), &err);
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(&key, hex);
    CB_AUTO_FREE char *lower = cb_xasprintf("lowers/%s.ext4", hex);
    CB_AUTO_FREE char *a = image_of(f, "a", "ext4"), *b = image_of(f, "b", "ext4");
    CB_AUTO_FREE char *c = image_of(f, "c", "ext4");
    store_again(f);
    used_at(f, b, 1000);
    used_at(f, lower, 2000);
    used_at(f, a, 3000);
    used_at(f, c, 4000);
    struct gc_options o = {.max_bytes = bytes_now(f) - 1};
    gc(f, &o, &r);
    assert_int_equal(removed(&r), 1);
    gc_report_release(&r);
    assert_false(there(f, b));
    o.max_bytes = bytes_now(f) - 1;
    gc(f, &o, &r);
    assert_int_equal(r.removed[STORE_LOWERS].n, 1);
    assert_int_equal(removed(&r), 1);
    gc_report_release(&r);
    assert_false(there(f, lower));
    o.max_bytes = bytes_now(f) - 1;
    gc(f, &o, &r);
    gc_report_release(&r);
    assert_false(there(f, a));
    assert_true(there(f, c));
    o.max_bytes = 1; /* all that can go */
    gc(f, &o, &r);
    assert_int_equal(r.removed[STORE_IMAGES].n, 2);
    assert_int_equal(r.removed[STORE_VERSIONS].n, 1); /* c's first */
    assert_true(r.not_held > 0);
    assert_int_equal(r.not_held, r.after - 1);
    gc_report_release(&r);
    assert_good(f);
    /* and what is left can be used */
    CB_AUTO(manifest) m = NULL;
    CB_AUTO_FREE char *path = NULL;
    assert_ok(store_template_get(f->store, "a", 0, &m, &err), &err);
    assert_ok(store_image_path(f->store, &m->image, &path, &err), &err);
}

/* A tag's note keeps its image's documents and layers; a built-in base is never taken. */
static void test_notes_keep_what_they_name(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct gc_report r;
    struct cb_digest layer, manifest;
    char text[CB_DIGEST_LEN + 1];
    CB_AUTO_FREE char *big = cb_xcalloc(1, 32 << 10);
    for (int i = 0; i < 2; i++) {
        big[0] = (char)('a' + i);
        assert_ok(store_blob_put(f->store, big, 32 << 10, &layer, &err), &err);
        cb_digest_text(&layer, text);
        CB_AUTO_FREE char *doc = cb_xasprintf("{\"layers\":[{\"digest\":\"%s\"}]}", text);
        assert_ok(store_blob_put(f->store, doc, strlen(doc), &manifest, &err), &err);
        cb_digest_text(&manifest, text);
        CB_AUTO_FREE char *note =
            cb_xasprintf("{\"manifest\":\"%s\"%s}", text, i ? ",\"inrelease\":\"x\"" : "");
        assert_ok(store_note_put(f->store, i ? "lock:minimal-debian" : "lock:debian", note, &err),
                  &err);
    }
    assert_ok(store_note_put(f->store, "plan:x",
                             "{\"base_image\":\"debian\",\"template\":{},\"schema_version\":1}",
                             &err),
              &err);
    store_again(f);
    gc(f, &all_ages, &r);
    assert_int_equal(removed(&r), 0);
    gc_report_release(&r);
    const struct gc_options o = {.max_bytes = 1};
    gc(f, &o, &r);
    assert_int_equal(r.removed[STORE_NOTES].n, 1);
    assert_int_equal(r.removed[STORE_BLOBS].n, 2);
    assert_int_equal(removed(&r), 3);
    gc_report_release(&r);
    CB_AUTO_BUF b = CB_BUF_INIT(0);
    assert_ok(store_note_get(f->store, "lock:minimal-debian", &b, &err), &err);
    assert_true(store_blob_has(f->store, &layer));
}

static void test_templates_are_removed(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct gc_report r;
    uint64_t v = 0;
    build(f, "web", 1);
    build(f, "web", 2);
    build(f, "web", 3);
    assert_ok(store_template_point(f->store, "web", 2, &err), &err);
    assert_fails(store_template_remove(f->store, "web", 2, &err), &err, CB_E_CONFLICT,
                 "version 2 of web is the one in use");
    assert_fails(store_template_remove(f->store, "web", 9, &err), &err, CB_E_NOTFOUND,
                 "template web has no version 9");
    assert_fails(store_template_remove(f->store, "none", 0, &err), &err, CB_E_NOTFOUND,
                 "there is no template none");
    assert_fails(store_template_remove(f->store, "minimal-debian", 0, &err), &err, CB_E_CONFLICT,
                 "minimal-debian is built in and cannot be removed");
    assert_fails(store_template_remove(f->store, "../web", 0, &err), &err, CB_E_CONFIG,
                 "is not a template's name");
    assert_ok(store_template_remove(f->store, "web", 3, &err), &err);
    build(f, "web", 5);
    CB_AUTO(manifest) m = NULL;
    assert_ok(store_template_get(f->store, "web", 4, &m, &err), &err); /* 3 is not given again */
    assert_ok(build_template(f->store, "other", 1, &v, &err), &err);
    assert_ok(store_template_remove(f->store, "web", 0, &err), &err);
    assert_int_equal(store_entries(f, "templates"), 1);
    store_again(f);
    gc(f, &all_ages, &r);
    gc_report_release(&r);
    assert_int_equal(store_entries(f, "chunks"), 4); /* other's */
    assert_int_equal(store_entries(f, "images"), 2);
    assert_good(f);
}

static void test_df_tells_own_from_shared(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct df_report r;
    build(f, "one", 1);
    build(f, "two", 2);
    assert_ok(store_df(f->store, &r, &err), &err);
    assert_int_equal(r.n_templates, 2);
    assert_string_equal(r.templates[0].name, "one");
    assert_int_equal(r.templates[0].versions, 1);
    assert_int_equal(r.templates[0].own, r.templates[1].own);
    assert_true(r.templates[0].shared > 0);
    assert_int_equal(r.templates[0].shared, r.templates[1].shared);
    uint64_t sum = r.other;
    for (int k = 0; k < STORE_KIND_N; k++)
        sum += r.kinds[k].bytes;
    assert_int_equal(sum, r.total);
    assert_int_equal(r.kinds[STORE_CHUNKS].n, 5);
    assert_int_equal(r.total, r.other + 2 * r.templates[0].own + r.templates[0].shared);
    assert_int_equal(r.garbage, 0);
    df_report_release(&r);
}

/* What is known of layers (layers/HEX.index and the like) is counted, and goes when room is needed:
 * a layer is inflated again without it. */
static void test_indexes_of_layers_are_counted_and_go(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct df_report d;
    struct gc_report r;
    build(f, "one", 1);
    CB_AUTO_FREE char *noise = cb_xcalloc(1, 64 << 10);
    memset(noise, 'x', 64 << 10);
    static const char *const ends[] = {"index", "places", "rest"};
    char rel[3][96];
    for (int i = 0; i < 3; i++) {
        (void)snprintf(rel[i], sizeof(rel[i]), "layers/%064d.%s", i, ends[i]);
        CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", f->dir, rel[i]);
        assert_ok(cb_write_file(path, noise, 64 << 10, 0600, &err), &err);
    }
    assert_ok(store_df(f->store, &d, &err), &err);
    assert_int_equal(d.kinds[STORE_INDEXES].n, 3);
    assert_int_equal(d.kinds[STORE_INDEXES].bytes, 3 * (64 << 10));
    assert_true(d.cached >= d.kinds[STORE_INDEXES].bytes);
    df_report_release(&d);
    struct gc_options o = {.max_bytes = bytes_now(f) - 1, .dry_run = true};
    for (int i = 0; i < 3; i++)
        used_at(f, rel[i], 1000 * (i + 1));
    gc(f, &o, &r);
    assert_int_equal(r.removed[STORE_INDEXES].n, 1);
    assert_int_equal(removed(&r), 1);
    gc_report_release(&r);
    o.dry_run = false;
    gc(f, &o, &r);
    assert_int_equal(r.removed[STORE_INDEXES].n, 1);
    gc_report_release(&r);
    assert_false(there(f, rel[0]));
    assert_false(there(f, rel[1])); /* a record of an image that is not there */
    assert_true(there(f, rel[2]));
    o.max_bytes = 1;
    gc(f, &o, &r);
    assert_int_equal(r.removed[STORE_INDEXES].n, 1);
    gc_report_release(&r);
    assert_int_equal(store_entries(f, "layers"), 0);
    assert_good(f);
}

static void test_every_kind_has_a_word(void **state)
{
    (void)state;
    for (int a = 0; a < STORE_KIND_N; a++) {
        assert_non_null(store_kind_name((enum store_kind)a));
        for (int b = 0; b < a; b++)
            assert_string_not_equal(store_kind_name((enum store_kind)a),
                                    store_kind_name((enum store_kind)b));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_store(test_what_versions_need_stays),
        test_in_store(test_what_a_living_process_uses_stays),
        test_in_store(test_old_versions_beyond_a_number_go),
        test_in_store(test_a_ceiling_takes_the_longest_unused),
        test_in_store(test_notes_keep_what_they_name),
        test_in_store(test_templates_are_removed),
        test_in_store(test_df_tells_own_from_shared),
        test_in_store(test_indexes_of_layers_are_counted_and_go),
        cmocka_unit_test(test_every_kind_has_a_word),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
