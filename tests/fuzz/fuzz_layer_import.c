#include "layers/store.h"
#include "layers/tar_read.h"

#include "support/cleanup.h"
#include "support/file.h"

#include "fuzz_check.h"
#include <string.h>
#include <sys/mman.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[] = "/tmp/cb-fuzz-XXXXXX";
static struct store *store;

static void tear_down(void)
{
    store_free(store);
    (void)cb_remove_tree(dir, NULL);
}

static void set_up(void)
{
    must(mkdtemp(dir));
    must(store_open(dir, &store, NULL) == 0);
    must(atexit(tear_down) == 0);
}

struct input {
    const uint8_t *data;
    size_t size;
};

static int next(void *arg, const void **data, size_t *len, struct cb_error *err)
{
    struct input *in = arg;
    (void)err;
    *data = in->data;
    *len = in->size;
    in->size = 0;
    return *len > 0;
}

/* What was let in must have only names that stay below the root. */
static void check(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    const struct tar_source source = {next, &in};
    struct tar_reader *r = NULL;
    struct tar_entry e;
    must(tar_reader_open(&source, &r, NULL) == 0);
    int rc;
    while ((rc = tar_reader_next(r, &e, NULL)) > 0) {
        must(e.path[0] && e.path[0] != '/' && !strstr(e.path, "/../"));
        must(strncmp(e.path, "../", 3) != 0 && strcmp(e.path, "..") != 0);
    }
    must(rc == 0);
    tar_reader_close(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!store)
        set_up();
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FD fd = memfd_create("tar", MFD_CLOEXEC);
    must(fd >= 0);
    must(cb_write_all(fd, data, size, NULL) == 0);
    struct layer_blob b = {0};
    if (store_layer_import(store, fd, 0, size, &b, &err) < 0) {
        must(err.code != CB_OK && err.code != CB_E_BUG && err.code != CB_E_SYS && !b.media_type);
        return 0;
    }
    struct cb_digest d;
    cb_sha256(data, size, &d);
    must(cb_digest_eq(&d, &b.diff_id));
    must(store_blob_has(store, &b.digest));
    check(data, size);
    layer_blob_release(&b);
    return 0;
}
