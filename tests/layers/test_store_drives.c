/* Drives in the store: what a record or a version says of them keeps their chunks, and is complete
 * with all of them alone. */
#include "check.h"

#include "layers/flatten.h"
#include "layers/store_private.h"
#include "layers/store_verify.h"
#include "store_build.h"

#include <unistd.h>

static const struct gc_options all_ages = {.max_bytes = STORE_NO_CEILING};
static char drive_id[] = "seed", label[] = "cb-seed", at[] = "/drives/seed", made_in[] = "vm";

static uint64_t collect(struct store_fixture *f)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct gc_report r;
    uint64_t n = 0;
    store_again(f);
    assert_ok(store_gc(f->store, &all_ages, &r, &err), &err);
    for (int k = 0; k < STORE_KIND_N; k++)
        n += r.removed[k].n;
    gc_report_release(&r);
    return n;
}

/* A drive whose chunks are there, and no file of it. */
static struct drive_image put_drive(struct store_fixture *f, int seed)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_CHUNK_MAP map = {0};
    struct store_chunks chunks = {0};
    CB_AUTO_FREE char *path = build_image(f->store, seed, &map);
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_ok(store_chunks_put(f->store, fd, &map, NULL, &chunks, &err), &err);
    assert_int_equal(unlink(path), 0);
    struct drive_image d = {.drive_id = drive_id,
                            .label = label,
                            .mount_path = at,
                            .filled = true,
                            .size = map.length,
                            .chunk_size = map.chunk_size,
                            .n_chunks = map.n,
                            .chunk_map = chunks.map,
                            .made_in = made_in};
    chunk_map_digest(&map, &d.image);
    return d;
}

static void lose_a_chunk(const struct store_fixture *f, const struct drive_image *d)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_CHUNK_MAP map = {0};
    char rel[CHUNK_REL_SIZE];
    assert_ok(store_map_get(f->store, &d->image, &map, &err), &err);
    store_chunk_rel(&map.v[map.n - 1].digest, rel, sizeof(rel));
    assert_int_equal(unlinkat(f->store->root, rel, 0), 0);
}

static void test_a_record_keeps_its_drives(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct drive_image d = put_drive(f, 5);
    char layer[] = "data", inputs[] = "{}", media[] = "m";
    struct cache_record r = {.layer_name = layer,
                             .inputs = inputs,
                             .diff = {.media_type = media, .size = 4},
                             .drives = &d,
                             .n_drives = 1};
    const struct cb_digest key = {{7}};
    assert_ok(store_blob_put(f->store, "diff", 4, &r.diff.digest, &err), &err);
    assert_ok(store_cache_put(f->store, &key, &r, &err), &err);
    assert_int_equal(collect(f), 0);
    struct cache_record back = {0};
    assert_ok(store_cache_get(f->store, &key, &back, &err), &err);
    assert_int_equal(back.n_drives, 1);
    assert_string_equal(back.drives[0].mount_path, "/drives/seed");
    assert_string_equal(back.drives[0].made_in, "vm");
    assert_true(cb_digest_eq(&back.drives[0].image, &d.image));
    cache_record_release(&back);
    CB_AUTO_FREE char *path = NULL;
    assert_ok(store_image_path(f->store, &d.image, &path, &err), &err); /* from its chunks */
    assert_int_equal(unlink(path), 0);
    lose_a_chunk(f, &d);
    assert_fails(store_cache_get(f->store, &key, &back, &err), &err, CB_E_NOTFOUND,
                 "layer data: drive seed is not in the store");
    assert_int_equal(unlinkat(f->store->root,
                              "cache/0700000000000000000000000000000000000000000000000000000000000"
                              "000.json",
                              0),
                     0);
    assert_int_equal(collect(f), 5); /* the diff, the map and three chunks */
}

static void test_a_version_is_complete_with_its_drives(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO(manifest) m = NULL;
    assert_ok(build_template(f->store, "web", 1, NULL, &err), &err);
    assert_ok(store_template_get(f->store, "web", 0, &m, &err), &err);
    struct drive_image d = put_drive(f, 5);
    m->drives = drive_images_dup(&d, 1);
    m->n_drives = 1;
    m->template_key.b[0] ^= 1;
    assert_ok(store_template_publish(f->store, m, true, &err), &err);
    assert_int_equal(collect(f), 0);
    const struct verify_options o = {0};
    struct verify_report r;
    assert_ok(store_verify(f->store, &o, &r, &err), &err);
    assert_true(r.good);
    verify_report_release(&r);
    struct template_manifest *found = NULL;
    assert_ok(store_template_find(f->store, "web", &m->template_key, &found, &err), &err);
    template_manifest_free(found);
    lose_a_chunk(f, &d);
    assert_ok(store_verify(f->store, &o, &r, &err), &err);
    assert_int_equal(r.n, 1);
    assert_string_equal(r.v[0].what, "web version 2");
    assert_string_equal(r.v[0].why, "1 of the 4 chunks of its drive seed are not in the store");
    verify_report_release(&r);
    assert_fails(store_template_find(f->store, "web", &m->template_key, &found, &err), &err,
                 CB_E_NOTFOUND, "drive seed is not in the store");
    cb_error_clear(&err);
    assert_fails(store_template_publish(f->store, m, true, &err), &err, CB_E_NOTFOUND,
                 "drive seed is not in the store");
}

static void test_an_empty_drive_is_the_same_each_time(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    static const struct {
        uint64_t size;
        const char *label;
    } made[] = {{UINT64_C(3) << 30, "a"},
                {UINT64_C(3) << 30, "a"},
                {UINT64_C(3) << 30, "b"},
                {UINT64_C(4) << 30, "a"}};
    struct cb_digest d[4];
    uint64_t allocated = 0;
    for (size_t i = 0; i < 4; i++) {
        CB_AUTO_FREE char *path = cb_xasprintf("%s/%zu.ext4", f->base, i);
        assert_ok(ext4_make_drive(path, made[i].size, made[i].label, &err), &err);
        CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
        assert_ok(image_digest(fd, &d[i], &allocated, &err), &err);
        assert_true(allocated < 1 << 23);
    }
    assert_true(cb_digest_eq(&d[0], &d[1]));
    assert_false(cb_digest_eq(&d[0], &d[2]));
    assert_false(cb_digest_eq(&d[0], &d[3]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_store(test_a_record_keeps_its_drives),
        test_in_store(test_a_version_is_complete_with_its_drives),
        test_in_store(test_an_empty_drive_is_the_same_each_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
