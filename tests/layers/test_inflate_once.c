/* Layers that were inflated once: an image of them has the same bytes whether its files come from
 * blobs or from images that hold them, in whatever combination the layers come. */
#include "random_layers.h"

#include <dirent.h>
#include <sys/stat.h>

#ifdef __SANITIZE_ADDRESS__ /* minutes otherwise */
#define STACKS 2
#else
#define STACKS 6
#endif

static int make(struct image_fixture *f, enum flatten_flags flags, struct places *places,
                uint64_t size, struct flatten_result *r, struct cb_error *err)
{
    const struct flatten_spec spec = {.store = f->store->store,
                                      .layers = f->layers,
                                      .n_layers = f->n,
                                      .size_bytes = size,
                                      .out_path = f->path,
                                      .flags = flags,
                                      .places = places};
    (void)unlink(f->path);
    return flatten(&spec, r, err);
}

/* Makes the image and publishes it as a lower, so that its layers are known. */
static void learn(struct image_fixture *f, struct flatten_result *r)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_PLACES places = places_new(f->store->store);
    assert_ok(make(f, 0, places, 0, r, &err), &err);
    CB_AUTO_FREE char *tmp = store_tmp_path(f->store->store, "test");
    assert_int_equal(rename(f->path, tmp), 0);
    assert_ok(store_lower_publish(f->store->store, tmp, &r->digest, &err), &err);
    places_put(places, PREFIX_LOWERS, &r->digest);
}

/* Returns how many layers were copied. */
static size_t check_same(struct image_fixture *f, uint64_t size)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct flatten_result want, got;
    int rc = make(f, FLATTEN_INFLATE, NULL, size, &want, &err);
    CB_AUTO_ERROR other = CB_ERROR_INIT;
    assert_int_equal(make(f, 0, NULL, size, &got, &other), rc);
    if (rc < 0) { /* layers that do not fit on what is below them now */
        assert_string_equal(other.msg, err.msg);
        return 0;
    }
    assert_int_equal(want.copied, 0);
    assert_true(cb_digest_eq(&got.digest, &want.digest));
    assert_int_equal(got.entries, want.entries);
    struct cb_digest all;
    CB_AUTO_FD fd = open(f->path, O_RDONLY | O_CLOEXEC);
    assert_ok(image_digest(fd, &all, NULL, &err), &err);
    assert_true(cb_digest_eq(&all, &want.digest));
    return got.copied;
}

static void test_random_stacks_in_every_combination(void **state)
{
    struct image_fixture *f = *state;
    struct flatten_result r;
    size_t copied = 0, asked = 0;
    for (uint32_t seed = 1; seed <= STACKS; seed++) {
        state_of_random = seed * 2246822519u;
        f->n = 0;
        for (size_t n = 2 + rnd(3); f->n < n;)
            add_random_layer(f);
        learn(f, &r);
        copied += check_same(f, 0);
        copied += check_same(f, (uint64_t)3 << 30);
        asked += 2 * f->n;
        struct layer_blob all[LAYERS_MAX_IN_TEST];
        size_t n = f->n;
        memcpy(all, f->layers, sizeof(all));
        for (size_t skip = 0; skip < n; skip++) { /* another base, a gap in the middle, no top */
            f->n = 0;
            for (size_t i = 0; i < n; i++)
                if (i != skip)
                    f->layers[f->n++] = all[i];
            (void)check_same(f, 0);
        }
        for (size_t i = 0; i < n; i++) /* upside down */
            f->layers[i] = all[n - 1 - i];
        f->n = n;
        (void)check_same(f, 0);
    }
    /* one whose replaced bytes were too many to be saved is inflated again */
    if (copied < asked / 2)
        fail_msg("%zu of %zu layers were copied", copied, asked);
}

static void known_layers(struct image_fixture *f, struct flatten_result *r)
{
    static char data[40000];
    struct tar_build t;
    for (int i = 0; i < 2; i++) {
        memset(data, 'a' + i, sizeof(data));
        tb_init(&t);
        tb_dir(&t, "d");
        tb_raw(&t, '0', i ? "d/replaced" : "d/first", NULL, data, sizeof(data));
        tb_raw(&t, '0', "d/both", NULL, data, sizeof(data) / 2);
        add_layer(f, &t);
    }
    learn(f, r);
}

static char *path_in_store(struct image_fixture *f, const char *folder, const char *end)
{
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/%s", store_dir(f->store->store), folder);
    CB_AUTO_DIR d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        size_t n = strlen(e->d_name), m = strlen(end);
        if (n >= m && strcmp(e->d_name + n - m, end) == 0)
            return cb_xasprintf("%s/%s", dir, e->d_name);
    }
    fail_msg("nothing ends with %s in %s", end, dir);
    return NULL;
}

static void test_a_replaced_file_is_still_to_be_had(void **state)
{
    struct image_fixture *f = *state;
    struct flatten_result r;
    known_layers(f, &r);
    assert_int_equal(check_same(f, 0), 2);
    CB_AUTO_FREE char *rest = path_in_store(f, "layers", ".rest");
    struct stat st;
    assert_int_equal(stat(rest, &st), 0);
    assert_int_equal(st.st_size, 5 * 4096); /* d/both of the first layer */
    assert_int_equal(unlink(rest), 0);
    assert_int_equal(check_same(f, 0), 1);
}

static void test_no_image_no_copy(void **state)
{
    struct image_fixture *f = *state;
    struct flatten_result r;
    known_layers(f, &r);
    CB_AUTO_FREE char *lower = path_in_store(f, "lowers", ".ext4");
    CB_AUTO_FREE char *aside = cb_xasprintf("%s.aside", f->path);
    assert_int_equal(rename(lower, aside), 0);
    assert_int_equal(check_same(f, 0), 0);
    assert_int_equal(rename(aside, lower), 0);
    assert_int_equal(check_same(f, 0), 2);
    places_trim(f->store->store);
    assert_int_equal(check_same(f, 0), 2);
    assert_int_equal(unlink(lower), 0);
    places_trim(f->store->store);
    CB_AUTO_FREE char *folder = cb_xasprintf("%s/layers", store_dir(f->store->store));
    assert_int_equal(rmdir(folder), 0); /* it is empty */
    assert_int_equal(check_same(f, 0), 0);
}

static void test_blobs_are_not_needed(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct flatten_result want, got;
    known_layers(f, &want);
    for (size_t i = 0; i < f->n; i++) {
        char hex[CB_HEX_LEN + 1];
        cb_digest_hex(&f->layers[i].digest, hex);
        CB_AUTO_FREE char *blob =
            cb_xasprintf("%s/blobs/sha256/%s", store_dir(f->store->store), hex);
        assert_int_equal(unlink(blob), 0);
    }
    assert_ok(make(f, 0, NULL, 0, &got, &err), &err);
    assert_int_equal(got.copied, 2);
    assert_true(cb_digest_eq(&got.digest, &want.digest));
}

/* Sizes below the smallest that fits are refused before the image is begun, but for a small margin,
 * and none above it ever is. */
static void test_known_layers_are_refused_before_a_byte_is_written(void **state)
{
    struct image_fixture *f = *state;
    static char data[20 << 20];
    struct flatten_result r;
    struct tar_build t;
    memset(data, 'x', sizeof(data));
    for (int i = 0; i < 2; i++) {
        tb_init(&t);
        tb_raw(&t, '0', "same", NULL, data, sizeof(data) - (size_t)i); /* takes its place twice */
        tb_raw(&t, '0', i ? "a" : "b", NULL, data, sizeof(data) / 2);
        add_layer(f, &t);
    }
    learn(f, &r);
    unsigned early = 0, late = 0, fit = 0;
    for (uint64_t mib = 150; mib < 176; mib += 2) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_ERROR full = CB_ERROR_INIT;
        int rc = make(f, 0, NULL, mib << 20, &r, &err);
        assert_int_equal(make(f, FLATTEN_INFLATE, NULL, mib << 20, &r, &full), rc);
        if (rc == 0) {
            fit++;
            continue;
        }
        assert_int_equal(rc, -CB_E_LIMIT);
        assert_int_equal(fit, 0);
        assert_non_null(err.hint);
        if (strstr(err.msg, "in 2 of 2 layers need a file system of at least"))
            early++;
        else
            late++;
    }
    assert_true(early > 2 && fit > 2);
    assert_in_range(late, 0, 1); /* the margin is less than 2 MiB here */
}

static void test_too_many_inodes_are_refused(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_ERROR again = CB_ERROR_INIT;
    struct flatten_result r;
    struct tar_build t;
    char name[32];
    tb_init(&t);
    for (int i = 0; i < 17000; i++) {
        (void)snprintf(name, sizeof(name), "%05d", i);
        tb_raw(&t, '6', name, NULL, NULL, 0);
    }
    add_layer(f, &t);
    /* one group: 16384 inodes */
    assert_int_equal(make(f, 0, NULL, (uint64_t)127 << 20, &r, &err), -CB_E_LIMIT);
    assert_non_null(strstr(err.msg, "needs more than the 16384 inodes of the 127 MiB"));
    assert_non_null(err.hint);
    learn(f, &r);
    assert_int_equal(make(f, 0, NULL, (uint64_t)127 << 20, &r, &again), -CB_E_LIMIT);
    assert_non_null(strstr(again.msg, "17011 inodes in 1 of 1 layers need"));
}

/* Whatever byte of a record is wrong, the image is right. */
static void test_damaged_records_are_none(void **state)
{
    struct image_fixture *f = *state;
    static const char *const kinds[] = {".index", ".places"};
    for (size_t k = 0; k < 2; k++) {
        bool more = true;
        for (off_t at = 0; more; at += 61) {
            struct flatten_result r;
            f->n = 0;
            known_layers(f, &r);
            CB_AUTO_FREE char *path = path_in_store(f, "layers", kinds[k]);
            CB_AUTO_FD fd = open(path, O_RDWR | O_CLOEXEC);
            unsigned char byte;
            more = pread(fd, &byte, 1, at) == 1;
            byte ^= 0x11;
            if (more)
                assert_int_equal(pwrite(fd, &byte, 1, at), 1);
            else
                assert_int_equal(ftruncate(fd, at / 2), 0);
            assert_true(check_same(f, 0) <= 2);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_image(test_random_stacks_in_every_combination),
        test_image(test_a_replaced_file_is_still_to_be_had),
        test_image(test_no_image_no_copy),
        test_image(test_blobs_are_not_needed),
        test_image(test_known_layers_are_refused_before_a_byte_is_written),
        test_image(test_too_many_inodes_are_refused),
        test_image(test_damaged_records_are_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
