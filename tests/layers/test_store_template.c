#include "check.h"

#include "layers/store.h"
#include "layers/store_gc.h"
#include "store_check.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

CB_DEFINE_CLEANUP(manifest, struct template_manifest *, template_manifest_free);

/* Puts a file into images/ and returns its digest (only a name here). */
static void put_image(struct store *s, const char *text, struct cb_digest *d)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *tmp = store_tmp_path(s, "image");
    assert_non_null(tmp);
    assert_ok(cb_write_file(tmp, text, strlen(text), 0600, &err), &err);
    cb_sha256(text, strlen(text), d);
    assert_ok(store_image_publish(s, tmp, d, &err), &err);
    assert_false(cb_path_exists(tmp));
}

/* A manifest (owned) whose parts are all in the store; @key decides its template key. */
static struct template_manifest *make_manifest(struct store *s, const char *name, int key)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    assert_ok(cb_read_file(CB_SOURCE_DIR
                           "/tests/fuzz/corpus/template_manifest/full-without-chunks.json",
                           1 << 20, &text, &err),
              &err);
    struct template_manifest *m = NULL;
    assert_ok(template_manifest_parse(text.data, text.len, &m, &err), &err);
    free(m->name);
    m->name = cb_xstrdup(name);
    m->version = 0;
    put_image(s, "image", &m->image);
    assert_ok(store_blob_put(s, "kernel", 6, &m->kernel, &err), &err);
    assert_ok(store_blob_put(s, "initramfs", 9, &m->initramfs, &err), &err);
    struct cb_digest *optional[] = {&m->modules,           &m->sbom,
                                    &m->provenance,        &m->sbom_signed,
                                    &m->provenance_signed, &m->warm.blob};
    for (size_t i = 0; i < sizeof(optional) / sizeof(*optional); i++)
        memset(optional[i], 0, sizeof(*optional[i]));
    for (size_t i = 0; i < m->n_layers; i++)
        assert_ok(store_blob_put(s, &"layers"[i], 1, &m -> layers[i].digest, &err), &err);
    memset(&m->template_key, key, sizeof(m->template_key));
    return m;
}

static uint64_t version_of(struct store *s, const char *name)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO(manifest) m = NULL;
    assert_ok(store_template_get(s, name, 0, &m, &err), &err);
    return m->version;
}

static void test_what_was_probably_meant(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO(manifest) none = NULL;
    CB_AUTO(manifest) m = make_manifest(f->store, "hello", 1);
    for (int v = 1; v <= 2; v++)
        assert_ok(store_template_publish(f->store, m, true, &err), &err);
    static const struct {
        const char *name;
        uint64_t version;
        const char *text, *hint;
    } cases[] = {
        {"helo", 0, "there is no template helo in this store", "did you mean hello?"},
        {"helo", 3, "there is no template helo in this store", "did you mean hello?"},
        {"xyz", 0, "there is no template xyz", "build it first, or look at CAPSULE_BUILD_HOME"},
        {"hello", 3, "template hello has no version 3", "it has 1, 2"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        int rc = store_template_get(f->store, cases[i].name, cases[i].version, &none, &err);
        assert_string_equal(err.hint, cases[i].hint);
        assert_fails(rc, &err, CB_E_NOTFOUND, cases[i].text);
    }
    for (int v = 3; v <= 10; v++)
        assert_ok(store_template_publish(f->store, m, true, &err), &err);
    int rc = store_template_remove(f->store, "hello", 99, &err);
    assert_string_equal(err.hint, "it has ..., 3, 4, 5, 6, 7, 8, 9, 10");
    assert_fails(rc, &err, CB_E_NOTFOUND, "template hello has no version 99");
}

static void test_versions_count_up(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO(manifest) none = NULL;
    assert_fails(store_template_get(f->store, "hello", 0, &none, &err), &err, CB_E_NOTFOUND,
                 "there is no template hello");
    CB_AUTO(manifest) m = make_manifest(f->store, "hello", 1);
    for (uint64_t v = 1; v <= 11; v++) {
        assert_ok(store_template_publish(f->store, m, v != 11, &err), &err);
        assert_int_equal(m->version, v);
    }
    assert_int_equal(version_of(f->store, "hello"), 10); /* the pointer did not follow the last */
    CB_AUTO(manifest) last = NULL;
    assert_ok(store_template_get(f->store, "hello", 11, &last, &err), &err);
    assert_int_equal(last->version, 11);
    assert_ok(store_template_point(f->store, "hello", 4, &err), &err);
    assert_int_equal(version_of(f->store, "hello"), 4);
    CB_AUTO_FREE char *pointer = cb_xasprintf("%s/templates/hello/current", f->dir);
    struct stat before, after;
    assert_int_equal(stat(pointer, &before), 0);
    assert_ok(store_template_point(f->store, "hello", 4, &err), &err);
    assert_int_equal(stat(pointer, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino); /* there already: not written again */
    assert_fails(store_template_point(f->store, "hello", 12, &err), &err, CB_E_NOTFOUND,
                 "move template hello to version 12: template hello has no version 12");
    assert_int_equal(version_of(f->store, "hello"), 4);
    assert_int_equal(store_entries(f, "tmp"), 1); /* our folder, empty */
}

static void test_names(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    static const char *const good[] = {"zeta", "a", "x-1", "my-project~web", "9"};
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
        CB_AUTO(manifest) m = make_manifest(f->store, good[i], 1);
        assert_ok(store_template_publish(f->store, m, strcmp(good[i], "9") != 0, &err), &err);
    }
    CB_AUTO_STRV names = {0};
    assert_ok(store_template_names(f->store, &names, &err), &err);
    assert_int_equal(names.n, 4); /* "9" has no current version */
    assert_string_equal(names.v[0], "a");
    assert_string_equal(names.v[1], "my-project~web");
    assert_string_equal(names.v[3], "zeta");
    static const char *const bad[] = {
        "",     ".",     "..",
        "../x", "a/b",   "A",
        "-a",   "a-",    "a~",
        "~a",   "a~b~c", "a b",
        "a\nb", "a_b",   ".lock",
        "é",    "a~..",  "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    CB_AUTO(manifest) m = make_manifest(f->store, "x", 1);
    struct cb_digest key = {{1}};
    int before = store_files(f);
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        CB_AUTO(manifest) out = NULL;
        free(m->name);
        m->name = cb_xstrdup(bad[i]);
        assert_fails(store_template_publish(f->store, m, true, &err), &err, CB_E_CONFIG,
                     "is not a template's name");
        assert_fails(store_template_get(f->store, bad[i], 0, &out, &err), &err, CB_E_CONFIG,
                     "is not a template's name");
        assert_fails(store_template_find(f->store, bad[i], &key, &out, &err), &err, CB_E_CONFIG,
                     "is not a template's name");
        assert_fails(store_template_point(f->store, bad[i], 1, &err), &err, CB_E_CONFIG,
                     "is not a template's name");
    }
    assert_int_equal(store_files(f), before);
}

static void test_publish_needs_all_parts(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO(manifest) m = make_manifest(f->store, "hello", 1);
    struct cb_digest *parts[] = {&m->image,           &m->kernel, &m->initramfs,
                                 &m->modules,         &m->sbom,   &m->provenance_signed,
                                 &m->layers[1].digest};
    static const char *const text[] = {"image",
                                       "the kernel is not",
                                       "the initramfs is not",
                                       "the modules is not",
                                       "the package list is not",
                                       "the signed provenance is not",
                                       "layer tools is not"};
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
        struct cb_digest was = *parts[i];
        memset(parts[i], 0xee, sizeof(was));
        assert_fails(store_template_publish(f->store, m, true, &err), &err, CB_E_NOTFOUND, text[i]);
        *parts[i] = was;
    }
    CB_AUTO_STRV names = {0};
    assert_ok(store_template_names(f->store, &names, &err), &err);
    assert_int_equal(names.n, 0);
}

static void test_find_by_key(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_digest key[4];
    for (int i = 0; i < 4; i++)
        memset(&key[i], i, sizeof(key[i]));
    CB_AUTO(manifest) gone = NULL;
    assert_fails(store_template_find(f->store, "hello", &key[1], &gone, &err), &err, CB_E_NOTFOUND,
                 "there is no template hello");
    for (int i = 1; i <= 3; i++) {
        CB_AUTO(manifest) m = make_manifest(f->store, "hello", i);
        assert_ok(store_template_publish(f->store, m, true, &err), &err);
    }
    for (int round = 0; round < 3; round++) {
        for (int i = 1; i <= 3; i++) {
            CB_AUTO(manifest) m = NULL;
            assert_ok(store_template_find(f->store, "hello", &key[i], &m, &err), &err);
            assert_int_equal(m->version, i);
        }
        CB_AUTO_FREE char *lookup = cb_xasprintf("%s/templates/hello/by-key", f->dir);
        if (round == 0) /* the lookup can be thrown away */
            assert_ok(cb_remove_tree(lookup, &err), &err);
        char hex[CB_HEX_LEN + 1];
        cb_digest_hex(&key[3], hex);
        CB_AUTO_FREE char *one = cb_xasprintf("%s/%s", lookup, hex);
        if (round == 1) /* a crash came between the version and its lookup */
            assert_int_equal(unlink(one), 0);
    }
    assert_fails(store_template_find(f->store, "hello", &key[0], &gone, &err), &err, CB_E_NOTFOUND,
                 "no complete version with this key");
    /* one whose image is gone is as good as none */
    CB_AUTO(manifest) m = NULL;
    assert_ok(store_template_find(f->store, "hello", &key[2], &m, &err), &err);
    CB_AUTO_FREE char *image = NULL;
    assert_ok(store_image_path(f->store, &m->image, &image, &err), &err);
    assert_int_equal(unlink(image), 0);
    assert_fails(store_template_find(f->store, "hello", &key[2], &gone, &err), &err, CB_E_NOTFOUND,
                 "is not in the store");
    assert_null(gone);
}

static void test_damage_is_named(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO(manifest) m = make_manifest(f->store, "hello", 1);
    assert_ok(store_template_publish(f->store, m, true, &err), &err);
    assert_ok(store_template_publish(f->store, m, true, &err), &err);
    CB_AUTO_FREE char *one = cb_xasprintf("%s/templates/hello/1.json", f->dir);
    CB_AUTO_FREE char *two = cb_xasprintf("%s/templates/hello/2.json", f->dir);
    CB_AUTO_FREE char *pointer = cb_xasprintf("%s/templates/hello/current", f->dir);
    CB_AUTO(manifest) out = NULL;
    assert_int_equal(rename(two, one), 0);
    assert_fails(store_template_get(f->store, "hello", 1, &out, &err), &err, CB_E_CORRUPT,
                 "1.json: it says that it is hello, version 2");
    assert_ok(cb_write_file(two, "{", 1, 0644, &err), &err);
    assert_fails(store_template_get(f->store, "hello", 0, &out, &err), &err, CB_E_CORRUPT,
                 "2.json: template manifest: ");
    assert_ok(cb_write_file(pointer, "{\"version\": \"../../x\"}", 22, 0644, &err), &err);
    assert_fails(store_template_get(f->store, "hello", 0, &out, &err), &err, CB_E_CORRUPT,
                 "current: \"version\" must be a number");
    /* and does not stand in the way of the next version */
    assert_ok(store_template_publish(f->store, m, true, &err), &err);
    assert_int_equal(version_of(f->store, "hello"), 3);
}

/* Children publish versions of one template at once, while the parent reads the pointer all the
 * time: every number is given once and the pointer never names something that is not whole. */
static void test_two_processes_publish_versions(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    enum { CHILDREN = 2, EACH = 12 };
    CB_AUTO(manifest) first = make_manifest(f->store, "hello", 99);
    assert_ok(store_template_publish(f->store, first, true, &err), &err);
    int said[2];
    assert_int_equal(pipe(said), 0);
    pid_t child[CHILDREN];
    for (int c = 0; c < CHILDREN; c++) {
        child[c] = fork();
        if (child[c] != 0)
            continue;
        struct store *s = NULL;
        int bad = store_open(f->dir, &s, NULL) < 0;
        for (int i = 0; i < EACH && !bad; i++) {
            memset(&first->template_key, c * EACH + i + 1, sizeof(first->template_key));
            bad = store_template_publish(s, first, true, NULL) < 0 ||
                  write(said[1], &(char){(char)first->version}, 1) != 1;
        }
        store_free(s);
        _exit(bad);
    }
    (void)close(said[1]);
    bool seen[CHILDREN * EACH + 2] = {false};
    char v;
    while (read(said[0], &v, 1) == 1) {
        assert_in_range(v, 2, CHILDREN * EACH + 1);
        assert_false(seen[(int)v]);
        seen[(int)v] = true;
        assert_true(version_of(f->store, "hello") >= 1);
    }
    (void)close(said[0]);
    for (int c = 0; c < CHILDREN; c++) {
        int status;
        assert_int_equal(waitpid(child[c], &status, 0), child[c]);
        assert_int_equal(status, 0);
    }
    for (int i = 2; i < CHILDREN * EACH + 2; i++)
        assert_true(seen[i]);
    assert_int_equal(version_of(f->store, "hello"), CHILDREN * EACH + 1);
    for (int k = 1; k <= CHILDREN * EACH; k++) {
        struct cb_digest key;
        memset(&key, k, sizeof(key));
        CB_AUTO(manifest) m = NULL;
        assert_ok(store_template_find(f->store, "hello", &key, &m, &err), &err);
    }
}

/* A publisher killed with -9 at any moment leaves what the next one can use. */
static void test_a_killed_publisher_is_no_trouble(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO(manifest) m = make_manifest(f->store, "hello", 1);
    assert_ok(store_template_publish(f->store, m, true, &err), &err);
    for (unsigned round = 0; round < 8; round++) {
        int said[2];
        assert_int_equal(pipe(said), 0);
        pid_t pid = fork();
        if (pid == 0) {
            struct store *s = NULL;
            if (store_open(f->dir, &s, NULL) < 0)
                _exit(1);
            while (store_template_publish(s, m, true, NULL) == 0)
                (void)!write(said[1], "x", 1);
            _exit(1);
        }
        (void)close(said[1]);
        char buf[1];
        for (unsigned i = 0; i <= round % 3; i++)
            assert_int_equal(read(said[0], buf, 1), 1);
        for (volatile unsigned spin = 0; spin < round * 40000; spin++)
            ; /* some other moment of the next version */
        assert_int_equal(kill(pid, SIGKILL), 0);
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        (void)close(said[0]);
        uint64_t before = version_of(f->store, "hello");
        assert_ok(store_template_publish(f->store, m, true, &err), &err);
        assert_true(m->version > before);
        assert_int_equal(version_of(f->store, "hello"), m->version);
    }
    store_sweep_tmp(f->store);
    assert_int_equal(store_entries(f, "tmp"), 1);
}

static void test_cache_records(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_digest key = {{7}};
    char layer[] = "tools", inputs[] = "{\"parent\":\"x\"}", media[] = OCI_LAYER_ZSTD;
    struct cache_record r = {.layer_name = layer,
                             .inputs = inputs,
                             .below = {{5}},
                             .diff = {.media_type = media, .size = 4},
                             .created_ms = 1000};
    struct cache_record out = {0};
    assert_fails(store_cache_get(f->store, &key, &out, &err), &err, CB_E_NOTFOUND, "no such file");
    assert_ok(store_blob_put(f->store, "diff", 4, &r.diff.digest, &err), &err);
    assert_ok(store_cache_put(f->store, &key, &r, &err), &err);
    assert_ok(store_cache_get(f->store, &key, &out, &err), &err);
    assert_string_equal(out.inputs, inputs);
    assert_true(cb_digest_eq(&out.diff.digest, &r.diff.digest));
    cache_record_release(&out);
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(&r.diff.digest, hex);
    CB_AUTO_FREE char *blob = cb_xasprintf("%s/blobs/sha256/%s", f->dir, hex);
    assert_int_equal(unlink(blob), 0);
    assert_fails(store_cache_get(f->store, &key, &out, &err), &err, CB_E_NOTFOUND,
                 "layer tools: its diff is not in the store");
    cb_digest_hex(&key, hex);
    CB_AUTO_FREE char *record = cb_xasprintf("%s/cache/%s.json", f->dir, hex);
    assert_ok(cb_write_file(record, "{}", 2, 0644, &err), &err);
    assert_fails(store_cache_get(f->store, &key, &out, &err), &err, CB_E_CORRUPT, record);
}

static void test_images(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_digest d, other = {{1}};
    CB_AUTO_FREE char *path = NULL;
    put_image(f->store, "image", &d);
    put_image(f->store, "image", &d); /* the same again */
    assert_ok(store_image_path(f->store, &d, &path, &err), &err);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 5);
    assert_int_equal(st.st_mode & 07777, 0444);
    CB_AUTO_FREE char *none = NULL;
    assert_fails(store_image_path(f->store, &other, &none, &err), &err, CB_E_NOTFOUND, "is not in");
    CB_AUTO_FREE char *tmp = store_tmp_path(f->store, "image");
    assert_fails(store_image_publish(f->store, tmp, &other, &err), &err, CB_E_NOTFOUND,
                 "no such file");
    assert_fails(store_image_publish(f->store, "/etc/passwd", &other, &err), &err, CB_E_BUG,
                 "it is not in");
}

static void test_lowers_stay_while_open(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *text = cb_xcalloc(1, 65536);
    for (int i = 1; i <= 3; i++) {
        CB_AUTO_FREE char *tmp = store_tmp_path(f->store, "lower");
        assert_ok(cb_write_file(tmp, text, 65536, 0600, &err), &err);
        assert_ok(store_lower_publish(f->store, tmp, &(struct cb_digest){{(uint8_t)i}}, &err),
                  &err);
    }
    CB_AUTO_FREE char *again = store_tmp_path(f->store, "lower"); /* made anew: the new one wins */
    assert_ok(cb_write_file(again, text, 65536, 0600, &err), &err);
    struct stat made, there;
    assert_int_equal(stat(again, &made), 0);
    assert_ok(store_lower_publish(f->store, again, &(struct cb_digest){{1}}, &err), &err);
    CB_AUTO_FREE char *path = NULL;
    int fd = store_lower_open(f->store, &(struct cb_digest){{1}}, &path, &err);
    assert_ok(fd, &err);
    assert_int_equal(fstat(fd, &there), 0);
    assert_int_equal(there.st_ino, made.st_ino);
    const struct timespec long_ago[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    assert_int_equal(futimens(fd, long_ago), 0); /* clocks tick slower than tests run */
    cb_close(store_lower_open(f->store, &(struct cb_digest){{2}}, NULL, &err)); /* used last */
    store_lower_trim(f->store, 65536);
    assert_int_equal(store_entries(f, "lowers"), 2); /* 1 is open, 2 fits */
    assert_true(cb_path_exists(path));
    cb_close(fd);
    store_lower_trim(f->store, 65536);
    assert_false(cb_path_exists(path));
    store_lower_trim(f->store, 0);
    assert_fails(store_lower_open(f->store, &(struct cb_digest){{2}}, NULL, &err), &err,
                 CB_E_NOTFOUND, "is not in the store");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_store(test_versions_count_up),
        test_in_store(test_what_was_probably_meant),
        test_in_store(test_names),
        test_in_store(test_publish_needs_all_parts),
        test_in_store(test_find_by_key),
        test_in_store(test_damage_is_named),
        test_in_store(test_two_processes_publish_versions),
        test_in_store(test_a_killed_publisher_is_no_trouble),
        test_in_store(test_cache_records),
        test_in_store(test_images),
        test_in_store(test_lowers_stay_while_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
