#include "layers/store.h"

#include "support/cleanup.h"
#include "support/file.h"

#include "fuzz_check.h"
#include <archive.h>
#include <archive_entry.h>
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

/* What was let in must have only names that stay below the root, whoever reads it. */
static void check(const uint8_t *data, size_t size)
{
    struct archive *a = archive_read_new();
    struct archive_entry *e;
    must(archive_read_support_format_tar(a) == ARCHIVE_OK);
    must(archive_read_open_memory(a, data, size) == ARCHIVE_OK);
    int r;
    while ((r = archive_read_next_header(a, &e)) != ARCHIVE_EOF) {
        must(r == ARCHIVE_OK || r == ARCHIVE_WARN);
        const char *name = archive_entry_pathname(e);
        must(name && name[0] && name[0] != '/' && !strstr(name, "/../"));
        must(strncmp(name, "../", 3) != 0 && strcmp(name, "..") != 0);
    }
    (void)archive_read_free(a);
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
