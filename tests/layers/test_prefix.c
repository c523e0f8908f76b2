/* Which image of the store a new one starts from. */
#include "flatten_check.h"

#include "layers/prefix.h"
#include "support/file.h"

#include <dirent.h>
#include <fcntl.h>

static void text_layer(struct image_fixture *f, const char *name)
{
    struct tar_build t;
    tb_init(&t);
    tb_file(&t, name, name);
    add_layer(f, &t);
}

/* Publishes the image of the first @n layers as a lower (or an image) and notes it. */
static void publish(struct image_fixture *f, size_t n, enum prefix_folder folder,
                    struct cb_digest *name)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_CHUNK_MAP map = {0};
    CB_AUTO_FREE char *tmp = store_tmp_path(f->store->store, "test");
    const struct flatten_spec spec = {.store = f->store->store,
                                      .layers = f->layers,
                                      .n_layers = n,
                                      .out_path = tmp,
                                      .chunks = &map};
    struct flatten_result r;
    assert_ok(flatten(&spec, &r, &err), &err);
    *name = r.digest;
    if (folder == PREFIX_IMAGES)
        assert_ok(store_image_publish(f->store->store, tmp, name, &err), &err);
    else
        assert_ok(store_lower_publish(f->store->store, tmp, name, &err), &err);
    assert_ok(prefix_put(f->store->store, f->layers, n, folder, name, &map, &err), &err);
}

static size_t found(struct image_fixture *f, size_t n)
{
    CB_AUTO_PREFIX p = PREFIX_INIT;
    int rc = prefix_find(f->store->store, f->layers, n, &p);
    assert_int_equal(rc, p.n_layers > 0);
    if (rc == 0)
        return 0;
    assert_true(p.fd >= 0);
    struct cb_digest map, file;
    chunk_map_digest(&p.chunks, &map);
    assert_int_equal(image_digest(p.fd, &file, NULL, NULL), 0);
    assert_true(cb_digest_eq(&map, &file));
    return p.n_layers;
}

static char *file_of(struct image_fixture *f, const char *folder, const struct cb_digest *name)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(name, hex);
    return cb_xasprintf("%s/%s/%s.ext4", store_dir(f->store->store), folder, hex);
}

static void test_the_longest_prefix_is_found(void **state)
{
    struct image_fixture *f = *state;
    struct cb_digest one, three;
    static const char *const names[] = {"a", "b", "c", "d"};
    for (size_t i = 0; i < 4; i++)
        text_layer(f, names[i]);
    assert_int_equal(found(f, 4), 0);
    publish(f, 1, PREFIX_LOWERS, &one);
    publish(f, 3, PREFIX_IMAGES, &three);
    assert_int_equal(found(f, 0), 0);
    assert_int_equal(found(f, 1), 1);
    assert_int_equal(found(f, 2), 1);
    assert_int_equal(found(f, 3), 3);
    assert_int_equal(found(f, 4), 3);
    struct layer_blob keep = f->layers[1]; /* other layers below the same top */
    f->layers[1] = f->layers[3];
    assert_int_equal(found(f, 4), 1);
    f->layers[1] = keep;

    CB_AUTO_FREE char *path = file_of(f, "images", &three);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(found(f, 4), 1);
}

static void test_another_file_under_the_name_is_no_prefix(void **state)
{
    struct image_fixture *f = *state;
    struct cb_digest one;
    text_layer(f, "a");
    publish(f, 1, PREFIX_LOWERS, &one);
    CB_AUTO_FREE char *path = file_of(f, "lowers", &one);
    CB_AUTO_FREE char *other = cb_xasprintf("%s.other", path);
    CB_AUTO_FD from = open(path, O_RDONLY | O_CLOEXEC);
    CB_AUTO_FD to = open(other, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(cb_clone_file(from, to, NULL), 0);
    assert_int_equal(rename(other, path), 0);
    assert_int_equal(found(f, 1), 0);
}

/* The only record: *@path is owned. */
static int open_record(struct image_fixture *f, char **path)
{
    CB_AUTO_FREE char *folder = cb_xasprintf("%s/prefixes", store_dir(f->store->store));
    CB_AUTO_DIR d = opendir(folder);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        if (e->d_name[0] == '.')
            continue;
        *path = cb_xasprintf("%s/%s", folder, e->d_name);
        return open(*path, O_RDWR | O_CLOEXEC);
    }
    *path = NULL;
    return -1;
}

static void test_a_damaged_record_is_none(void **state)
{
    struct image_fixture *f = *state;
    struct cb_digest one;
    text_layer(f, "a");
    publish(f, 1, PREFIX_LOWERS, &one);
    for (off_t at = 0;; at += 7) {
        CB_AUTO_FREE char *path = NULL;
        CB_AUTO_FD fd = open_record(f, &path);
        assert_true(fd >= 0);
        off_t len = lseek(fd, 0, SEEK_END);
        if (at >= len)
            break;
        unsigned char byte, bad;
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        bad = byte ^ 0xff;
        assert_int_equal(pwrite(fd, &bad, 1, at), 1);
        assert_int_equal(found(f, 1), 0);
        assert_int_not_equal(access(path, F_OK), 0);
        publish(f, 1, PREFIX_LOWERS, &one);
        CB_AUTO_FREE char *again = NULL;
        CB_AUTO_FD cut = open_record(f, &again);
        if (at == 0) {
            assert_int_equal(ftruncate(cut, len / 2), 0);
            assert_int_equal(found(f, 1), 0);
            publish(f, 1, PREFIX_LOWERS, &one);
        }
    }
}

static void test_records_go_with_their_images(void **state)
{
    struct image_fixture *f = *state;
    struct cb_digest one;
    text_layer(f, "a");
    publish(f, 1, PREFIX_LOWERS, &one);
    prefix_trim(f->store->store);
    assert_int_equal(found(f, 1), 1);
    store_lower_trim(f->store->store, 0);
    prefix_trim(f->store->store);
    CB_AUTO_FREE char *path = NULL;
    CB_AUTO_FD fd = open_record(f, &path);
    assert_true(fd < 0);
    assert_int_equal(found(f, 1), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_image(test_the_longest_prefix_is_found),
        test_image(test_another_file_under_the_name_is_no_prefix),
        test_image(test_a_damaged_record_is_none),
        test_image(test_records_go_with_their_images),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
