/* The store on disks that are full, read-only or somebody else's: small file systems in a mount
 * namespace of our own, so that nothing is left mounted whatever happens. */
#include "check.h"

#include "layers/store.h"
#include "layers/store_verify.h"
#include "store_build.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>

#define DISK_BYTES (1u << 20)

static char block[4096];

/* As store_setup(), on a disk of DISK_BYTES. */
static int disk_setup(void **state)
{
    void *base = NULL;
    if (check_dir_setup(&base) < 0)
        return -1;
    struct store_fixture *f = cb_xcalloc(1, sizeof(*f));
    f->base = base;
    f->dir = cb_xasprintf("%s/store", f->base);
    *state = f;
    if (mount("none", f->base, "tmpfs", 0, "size=1m,mode=0755") < 0)
        return -1;
    return store_open(f->dir, &f->store, NULL);
}

static int disk_teardown(void **state)
{
    struct store_fixture *f = *state;
    store_free(f->store);
    f->store = NULL;
    (void)umount2(f->base, MNT_DETACH);
    return store_teardown(state);
}

#define test_on_disk(t) cmocka_unit_test_setup_teardown(t, disk_setup, disk_teardown)

/* Takes all the room but @left blocks. Owned path of what takes it. */
static char *fill(const struct store_fixture *f, unsigned left)
{
    char *path = cb_xasprintf("%s/filler", f->base);
    CB_AUTO_FD fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    off_t n = 0;
    while (write(fd, block, sizeof(block)) == (ssize_t)sizeof(block))
        n += (off_t)sizeof(block);
    assert_int_equal(ftruncate(fd, n - (off_t)(left * sizeof(block))), 0);
    return path;
}

static void test_a_blob_that_does_not_fit(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *data = cb_xcalloc(1, DISK_BYTES / 2);
    struct cb_digest d;
    cb_sha256(data, DISK_BYTES / 2, &d);
    CB_AUTO_FREE char *filler = fill(f, 32);
    /* without a digest: nothing remains */
    assert_int_equal(store_blob_put(f->store, data, DISK_BYTES / 2, NULL, &err), -CB_E_ENV);
    assert_non_null(strstr(err.msg, "No space left on device"));
    assert_non_null(strstr(err.hint, "free some space"));
    cb_error_clear(&err);
    assert_int_equal(store_files(f), 0);
    /* with one: what was written is taken up again when there is room */
    struct blob_writer *w = NULL;
    assert_ok(store_blob_begin(f->store, &d, DISK_BYTES / 2, &w, &err), &err);
    assert_ok(blob_writer_add(w, data, 4096, &err), &err);
    assert_fails(blob_writer_add(w, data + 4096, DISK_BYTES / 2 - 4096, &err), &err, CB_E_ENV,
                 "No space left on device");
    blob_writer_abort(w);
    assert_false(store_blob_has(f->store, &d));
    assert_int_equal(unlink(filler), 0);
    assert_ok(store_blob_begin(f->store, &d, DISK_BYTES / 2, &w, &err), &err);
    assert_int_equal(blob_writer_offset(w), 4096);
    assert_ok(blob_writer_add(w, data + 4096, DISK_BYTES / 2 - 4096, &err), &err);
    assert_ok(blob_writer_commit(w, NULL, NULL, &err), &err);
    assert_int_equal(store_files(f), 1);
}

static void test_a_note_keeps_its_old_text(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(store_note_put(f->store, "n", "old", &err), &err);
    free(fill(f, 1));
    CB_AUTO_FREE char *big = cb_xcalloc(1, 3 * sizeof(block) + 1);
    memset(big, ' ', 3 * sizeof(block));
    assert_fails(store_note_put(f->store, "n", big, &err), &err, CB_E_ENV,
                 "keep the note on n: write ");
    CB_AUTO_BUF b = CB_BUF_INIT(0);
    assert_ok(store_note_get(f->store, "n", &b, &err), &err);
    assert_string_equal(b.data, "old");
    assert_int_equal(store_files(f), 1);
}

/* Whatever write fails, the current version stays what it was. */
static void test_a_template_keeps_its_version(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct layer_blob layer = {0};
    char name[] = "hello", base[] = "_base", media[] = "m";
    char *names[] = {base};
    layer.media_type = media;
    struct template_manifest m = {.name = name,
                                  .workload_key = "0123456789abcdef",
                                  .layers = &layer,
                                  .layer_names = names,
                                  .n_layers = 1};
    assert_ok(store_blob_put(f->store, "x", 1, &m.kernel, &err), &err);
    m.initramfs = layer.digest = m.kernel;
    CB_AUTO_FREE char *tmp = store_tmp_path(f->store, "image");
    assert_ok(cb_write_file(tmp, "x", 1, 0600, &err), &err);
    assert_ok(store_image_publish(f->store, tmp, &m.image, &err), &err);
    assert_ok(store_template_publish(f->store, &m, true, &err), &err);
    for (unsigned room = 0; room < 4; room++) {
        CB_AUTO_FREE char *filler = fill(f, room);
        uint64_t before = 0;
        m.template_key.b[0]++;
        struct template_manifest *now = NULL;
        assert_ok(store_template_get(f->store, "hello", 0, &now, &err), &err);
        before = now->version;
        template_manifest_free(now);
        int rc = store_template_publish(f->store, &m, true, &err);
        assert_true(rc == 0 || rc == -CB_E_ENV);
        assert_ok(store_template_get(f->store, "hello", 0, &now, NULL), &err);
        assert_int_equal(now->version, rc == 0 ? m.version : before);
        template_manifest_free(now);
        cb_error_clear(&err);
        assert_int_equal(unlink(filler), 0);
    }
    assert_int_equal(store_entries(f, "tmp"), 1); /* our folder, empty */
    assert_ok(store_template_publish(f->store, &m, true, &err), &err);
}

static bool verified(struct store *s)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    const struct verify_options o = {0};
    struct verify_report r;
    assert_ok(store_verify(s, &o, &r, &err), &err);
    for (size_t i = 0; i < r.n; i++)
        print_message("%s: %s\n", r.v[i].what, r.v[i].why);
    bool good = r.good;
    verify_report_release(&r);
    return good;
}

/* With a block more from try to try, a publish fails at each of its writes, until it fits. */
static void test_a_publish_on_a_full_disk(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(build_template(f->store, "hello", 1, NULL, &err), &err);
    int rc = -1;
    unsigned failed = 0;
    for (unsigned room = 0; rc < 0; room++) {
        CB_AUTO_FREE char *filler = fill(f, room);
        uint64_t version = 0;
        rc = build_template(f->store, "hello", 2, &version, &err);
        if (rc < 0) {
            assert_int_equal(rc, -CB_E_ENV);
            assert_non_null(err.msg);
            failed++;
        }
        cb_error_clear(&err);
        assert_int_equal(unlink(filler), 0);
        assert_true(verified(f->store));
        CB_AUTO(manifest) m = NULL;
        assert_ok(store_template_get(f->store, "hello", 0, &m, &err), &err);
        assert_true(rc == 0 ? m->version == version : m->version >= 1);
        assert_true(room < 200);
    }
    assert_true(failed > 5);
}

/* Making room needs none. */
static void test_a_collection_on_a_full_disk(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    for (int v = 1; v <= 3; v++)
        assert_ok(build_template(f->store, "hello", v, NULL, &err), &err);
    store_again(f);
    free(fill(f, 0));
    const struct gc_options o = {.max_bytes = 1, .keep_versions = 1};
    struct gc_report r;
    assert_ok(store_gc(f->store, &o, &r, &err), &err);
    assert_true(r.removed[STORE_VERSIONS].n == 2 && r.before > r.after);
    gc_report_release(&r);
    assert_true(verified(f->store));
    assert_ok(build_template(f->store, "hello", 4, NULL, &err), &err); /* there is room now */
}

static void test_a_publish_on_a_read_only_disk(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct gc_report r;
    CB_AUTO_CHUNK_MAP map = {0};
    assert_ok(build_template(f->store, "hello", 1, NULL, &err), &err);
    store_again(f); /* else nothing could be collected */
    CB_AUTO_FREE char *image = build_image(f->store, 2, &map);
    assert_non_null(image);
    assert_int_equal(mount("none", f->base, NULL, MS_REMOUNT | MS_RDONLY, NULL), 0);
    CB_AUTO_FD fd = open(image, O_RDONLY | O_CLOEXEC);
    assert_fails(store_chunks_put(f->store, fd, &map, NULL, NULL, &err), &err, CB_E_ENV,
                 "store the chunks of the image");
    const struct gc_options o = {.max_bytes = 1};
    assert_fails(store_gc(f->store, &o, &r, &err), &err, CB_E_ENV, "Read-only file system");
    assert_true(verified(f->store)); /* reading goes on */
    assert_int_equal(mount("none", f->base, NULL, MS_REMOUNT, NULL), 0);
    assert_ok(build_template(f->store, "hello", 2, NULL, &err), &err);
    assert_true(verified(f->store));
}

static void test_a_read_only_store(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_digest d;
    assert_ok(store_blob_put(f->store, "x", 1, &d, &err), &err);
    assert_int_equal(mount("none", f->base, NULL, MS_REMOUNT | MS_RDONLY, NULL), 0);
    assert_fails(store_blob_put(f->store, "y", 1, NULL, &err), &err, CB_E_ENV,
                 "Read-only file system");
    struct store *s = NULL;
    assert_int_equal(store_open(f->dir, &s, &err), -CB_E_ENV);
    assert_non_null(strstr(err.msg, "Read-only file system"));
    assert_non_null(strstr(err.hint, "CAPSULE_BUILD_HOME"));
    cb_error_clear(&err);
    assert_null(s);
    CB_AUTO_FD fd = store_blob_open(f->store, &d, NULL, &err); /* reading goes on */
    assert_ok(fd, &err);
}

static void test_a_store_of_somebody_else(void **state)
{
    struct store_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (seteuid(65534) < 0) {
        print_message("there is no other user in this namespace\n");
        skip();
    }
    struct store *s = NULL;
    int rc = store_open(f->dir, &s, &err);
    assert_int_equal(seteuid(0), 0);
    assert_int_equal(rc, -CB_E_ENV);
    assert_non_null(strstr(err.msg, "Permission denied"));
    assert_non_null(strstr(err.hint, "CAPSULE_BUILD_HOME"));
}

static bool write_line(const char *path, const char *line)
{
    CB_AUTO_FD fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd >= 0 && write(fd, line, strlen(line)) == (ssize_t)strlen(line);
}

/* Root of a mount namespace of our own; of a user namespace too when we are not root already. */
static bool own_mounts(void)
{
    if (geteuid() == 0)
        return unshare(CLONE_NEWNS) == 0 &&
               mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
    CB_AUTO_FREE char *uid = cb_xasprintf("0 %u 1", (unsigned)geteuid());
    CB_AUTO_FREE char *gid = cb_xasprintf("0 %u 1", (unsigned)getegid());
    return unshare(CLONE_NEWNS | CLONE_NEWUSER) == 0 && write_line("/proc/self/uid_map", uid) &&
           write_line("/proc/self/setgroups", "deny") && write_line("/proc/self/gid_map", gid);
}

int main(void)
{
    if (!own_mounts()) {
        (void)fprintf(stderr, "skipped: no mount namespace here: %s\n", strerror(errno));
        return 77;
    }
    const struct CMUnitTest tests[] = {
        test_on_disk(test_a_blob_that_does_not_fit),
        test_on_disk(test_a_note_keeps_its_old_text),
        test_on_disk(test_a_template_keeps_its_version),
        test_on_disk(test_a_publish_on_a_full_disk),
        test_on_disk(test_a_collection_on_a_full_disk),
        test_on_disk(test_a_publish_on_a_read_only_disk),
        test_on_disk(test_a_read_only_store),
        test_on_disk(test_a_store_of_somebody_else),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
