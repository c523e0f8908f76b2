#include "check.h"

#include "layers/flatten.h"
#include "layers/store.h"
#include "store_check.h"

#include <fcntl.h>
#include <sys/stat.h>

#define MIB ((off_t)1 << 20)

/* An image in the store's tmp/ with text here and there and noise that does not compress. Owned
 * path. */
static char *make_image(struct store *s, unsigned seed, struct chunk_map *map)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    char *path = store_tmp_path(s, "image");
    assert_non_null(path);
    CB_AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 40 * MIB + 123), 0);
    for (int i = 0; i < 12; i++) { /* the same in all images */
        CB_AUTO_FREE char *text = cb_xasprintf("base %d", i);
        assert_int_equal(pwrite(fd, text, strlen(text), 2 * i * MIB + 77), strlen(text));
    }
    CB_AUTO_FREE unsigned *noise = cb_xcalloc(1, 64 << 10);
    for (unsigned i = 0, x = seed; i < (64 << 10) / 4; i++)
        noise[i] = x = x * 1103515245 + 12345;
    assert_int_equal(pwrite(fd, noise, 64 << 10, 30 * MIB - 100), 64 << 10);
    assert_int_equal(pwrite(fd, "end", 3, 40 * MIB + 120), 3);
    assert_int_equal(pwrite(fd, "twice", 5, 35 * MIB), 5);
    assert_int_equal(pwrite(fd, "twice", 5, 36 * MIB), 5);
    assert_ok(chunk_map_make(fd, CHUNK_SIZE_DEFAULT, map, &err), &err);
    return path;
}

static void put(struct store *s, const char *path, const struct chunk_map *map,
                struct store_chunks *out)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_ok(store_chunks_put(s, fd, map, NULL, out, &err), &err);
}

static void test_chunks_are_stored_once(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_CHUNK_MAP a = {0}, b = {0};
    CB_AUTO_FREE char *one = make_image(f->store, 1, &a);
    CB_AUTO_FREE char *two = make_image(f->store, 2, &b);
    struct store_chunks r;
    put(f->store, one, &a, &r);
    assert_int_equal(a.n, 17);
    assert_int_equal(r.added, 16); /* two are alike */
    assert_int_equal(store_entries(f, "chunks"), 16);
    assert_int_equal(store_entries(f, "images"), 1); /* the map */
    put(f->store, one, &a, &r);
    assert_int_equal(r.added, 0);
    assert_int_equal(r.added_bytes, 0);
    put(f->store, two, &b, &r);
    assert_int_equal(r.added, 2); /* where the noise is */
    assert_int_equal(store_entries(f, "chunks"), 18);
    assert_int_equal(store_entries(f, "images"), 2);
}

/* What was 1 MiB of text and holes takes a block in chunks/, and comes back with its holes. */
static void test_an_image_comes_back(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_CHUNK_MAP map = {0};
    CB_AUTO_FREE char *tmp = make_image(f->store, 1, &map);
    struct store_chunks r;
    struct stat was, is;
    struct cb_digest d, got;
    chunk_map_digest(&map, &d);
    CB_AUTO_FREE char *none = NULL, *path = NULL;
    assert_fails(store_image_path(f->store, &d, &none, &err), &err, CB_E_NOTFOUND,
                 "is not in the store");
    put(f->store, tmp, &map, &r);
    assert_true(r.added_bytes < (256u << 10));
    assert_int_equal(stat(tmp, &was), 0);
    assert_int_equal(unlink(tmp), 0);
    assert_fails(store_image_find(f->store, &d, &none, &err), &err, CB_E_NOTFOUND,
                 "is not in the store");
    assert_ok(store_image_path(f->store, &d, &path, &err), &err);
    CB_AUTO_FREE char *found = NULL;
    assert_ok(store_image_find(f->store, &d, &found, &err), &err);
    assert_string_equal(found, path);
    assert_int_equal(stat(path, &is), 0);
    assert_int_equal(is.st_size, was.st_size);
    assert_true(is.st_blocks <= was.st_blocks);
    assert_int_equal(is.st_mode & 0777, 0444);
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_ok(image_digest(fd, &got, NULL, &err), &err);
    assert_true(cb_digest_eq(&d, &got));
}

static char *any_chunk(const struct store_fixture *f)
{
    CB_AUTO_FREE char *folder = cb_xasprintf("%s/chunks", f->dir);
    CB_AUTO_DIR d = opendir(folder);
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        if (e->d_name[0] != '.')
            return cb_xasprintf("%s/%s", folder, e->d_name);
    return NULL;
}

static void overwrite(const char *path, const void *p, size_t n)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(cb_write_file(path, p, n, 0444, &err), &err);
}

static void test_bad_chunks_are_found(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_CHUNK_MAP map = {0};
    CB_AUTO_FREE char *tmp = make_image(f->store, 1, &map);
    struct store_chunks r;
    struct cb_digest d;
    put(f->store, tmp, &map, &r);
    chunk_map_digest(&map, &d);
    CB_AUTO_FREE char *chunk = any_chunk(f);
    CB_AUTO_BUF good = CB_BUF_INIT(0);
    assert_ok(cb_read_file(chunk, 1 << 20, &good, &err), &err);
    CB_AUTO_FREE char *none = NULL;
    const struct {
        const char *bytes;
        size_t n;
        const char *why;
    } bad[] = {
        {"", 0, "is not a frame of at most 1048576 bytes"},
        {"nonsense", 8, "is not a frame of at most"},
        {good.data, good.len - 1, ".zst: "},
        /* an empty frame; a frame that says 2 GiB */
        {"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00", 9, "its content is not what its name says"},
        {"\x28\xb5\x2f\xfd\xa0\x00\x00\x00\x80\x01\x00\x00", 12, "is not a frame of at most"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        overwrite(chunk, bad[i].bytes, bad[i].n);
        assert_fails(store_image_path(f->store, &d, &none, &err), &err, CB_E_CORRUPT, bad[i].why);
        assert_int_equal(store_entries(f, "images"), 1); /* nothing half made */
    }
    overwrite(chunk, good.data, good.len);
    assert_int_equal(unlink(chunk), 0);
    assert_fails(store_image_path(f->store, &d, &none, &err), &err, CB_E_NOTFOUND, "chunks/");
    /* storing the image again brings what is missing */
    put(f->store, tmp, &map, &r);
    assert_int_equal(r.added, 1);
    CB_AUTO_FREE char *path = NULL;
    assert_ok(store_image_path(f->store, &d, &path, &err), &err);
}

static void test_a_bad_map_is_found(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_CHUNK_MAP map = {0};
    CB_AUTO_FREE char *tmp = make_image(f->store, 1, &map);
    struct store_chunks r;
    struct cb_digest d;
    put(f->store, tmp, &map, &r);
    chunk_map_digest(&map, &d);
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(&d, hex);
    CB_AUTO_FREE char *path = cb_xasprintf("%s/images/%s.chunks", f->dir, hex);
    CB_AUTO_FREE char *none = NULL;
    overwrite(path, "x", 1);
    assert_fails(store_image_path(f->store, &d, &none, &err), &err, CB_E_CORRUPT,
                 ".chunks: chunk map: does not begin as one");
    map.v[0].digest.b[0] ^= 1;
    CB_AUTO_BUF doc = CB_BUF_INIT(1 << 20);
    assert_ok(chunk_map_dump(&map, &doc, &err), &err);
    overwrite(path, doc.data, doc.len);
    assert_fails(store_image_path(f->store, &d, &none, &err), &err, CB_E_CORRUPT,
                 "is the map of another image");
    /* the chunk size is not in the digest: the chunks themselves show that it is wrong */
    map.v[0].digest.b[0] ^= 1;
    map.chunk_size *= 2;
    map.length *= 2;
    chunk_map_digest(&map, &d);
    cb_digest_hex(&d, hex);
    CB_AUTO_FREE char *other = cb_xasprintf("%s/images/%s.chunks", f->dir, hex);
    cb_buf_clear(&doc);
    assert_ok(chunk_map_dump(&map, &doc, &err), &err);
    overwrite(other, doc.data, doc.len);
    assert_fails(store_image_path(f->store, &d, &none, &err), &err, CB_E_CORRUPT,
                 "does not fit its map");
}

static void test_an_image_that_changes_is_refused(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_CHUNK_MAP map = {0};
    CB_AUTO_FREE char *tmp = make_image(f->store, 1, &map);
    CB_AUTO_FD fd = open(tmp, O_RDWR | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "!", 1, 77), 1);
    assert_fails(store_chunks_put(f->store, fd, &map, NULL, NULL, &err), &err, CB_E_CONFLICT,
                 "store the chunks of the image: the image changed while it was stored");
    assert_int_equal(store_entries(f, "chunks"), 0);
    assert_int_equal(store_entries(f, "images"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_store(test_chunks_are_stored_once),
        test_in_store(test_an_image_comes_back),
        test_in_store(test_bad_chunks_are_found),
        test_in_store(test_a_bad_map_is_found),
        test_in_store(test_an_image_that_changes_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
