#include "builder/deb.h"

#include "builder/machine.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

enum { BLOCK = 64 << 10, ENTRIES_MAX = 100000 };
#define FILE_MAX (256ll << 20)
#define TOTAL_MAX (2ll << 30)

static void archive_close(struct archive *a)
{
    (void)archive_read_free(a);
}
CB_DEFINE_CLEANUP(archive, struct archive *, archive_close);

static int archive_failed(struct archive *a, const char *what, struct cb_error *err)
{
    const char *why = archive_error_string(a);
    return cb_fail(err, CB_E_CORRUPT, "%s: %s", what, why ? why : "cannot be read");
}

static int add_filters(struct archive *a)
{
    int rc = archive_read_support_filter_xz(a);
    if (rc == ARCHIVE_OK)
        rc = archive_read_support_filter_gzip(a);
    /* ARCHIVE_WARN: this libarchive would start the zstd program; then such a file fails later */
    if (rc == ARCHIVE_OK && archive_read_support_filter_zstd(a) < ARCHIVE_WARN)
        rc = ARCHIVE_FATAL;
    return rc;
}

int deb_decompress(int fd, const char *name,
                   int (*sink)(void *arg, const char *p, size_t n, struct cb_error *err), void *arg,
                   struct cb_error *err)
{
    CB_AUTO(archive) a = archive_read_new();
    struct archive_entry *e;
    if (!a || add_filters(a) != ARCHIVE_OK || archive_read_support_format_raw(a) != ARCHIVE_OK ||
        archive_read_support_format_empty(a) != ARCHIVE_OK ||
        archive_read_open_fd(a, fd, BLOCK) != ARCHIVE_OK)
        return archive_failed(a, name, err);
    int rc = archive_read_next_header(a, &e);
    if (rc == ARCHIVE_EOF)
        return 0;
    if (rc != ARCHIVE_OK)
        return archive_failed(a, name, err);
    CB_AUTO_FREE char *buf = cb_xmalloc(BLOCK);
    for (;;) {
        la_ssize_t n = archive_read_data(a, buf, BLOCK);
        if (n < 0)
            return archive_failed(a, name, err);
        if (n == 0)
            return 0;
        if (machine_canceled())
            return cb_fail(err, CB_E_CANCELED, "%s: stopped", name);
        rc = sink(arg, buf, (size_t)n, err);
        if (rc < 0)
            return rc;
    }
}

/* The inner tar reads its bytes from the outer ar's current entry. */
struct inner {
    struct archive *outer;
    char buf[BLOCK];
};

static la_ssize_t read_inner(struct archive *a, void *arg, const void **out)
{
    struct inner *in = arg;
    (void)a;
    la_ssize_t n = archive_read_data(in->outer, in->buf, sizeof(in->buf));
    *out = in->buf;
    return n < 0 ? -1 : n;
}

/* The name under the package's root that we keep ("vmlinuz", "lib/modules/..."); NULL for the rest.
 * Newer packages say usr/lib for lib. */
static char *kept_name(const char *path, const char *release)
{
    if (strncmp(path, "./", 2) == 0)
        path += 2;
    if (strncmp(path, "boot/vmlinuz-", 13) == 0)
        return strcmp(path + 13, release) == 0 ? cb_xstrdup("vmlinuz") : NULL;
    if (strncmp(path, "usr/lib/modules/", 16) == 0)
        path += 4;
    size_t n = strlen(release);
    if (strncmp(path, "lib/modules/", 12) != 0 || strncmp(path + 12, release, n) != 0 ||
        path[12 + n] != '/')
        return NULL;
    for (const char *p = path; p;) { /* plain components only: no "", ".", ".." */
        const char *slash = strchr(p, '/');
        size_t len = slash ? (size_t)(slash - p) : strlen(p);
        if (len == 0 || (len <= 2 && p[0] == '.' && (len == 1 || p[1] == '.')))
            return NULL;
        p = slash ? slash + 1 : NULL;
    }
    return cb_xstrdup(path);
}

static int write_entry(struct archive *a, const char *dir, const char *name, int64_t *total,
                       struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", dir, name);
    char *slash = strrchr(path, '/');
    *slash = '\0';
    int rc = cb_mkdir_p(path, 0755, err);
    *slash = '/';
    if (rc < 0)
        return rc;
    CB_AUTO_FD fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0)
        return cb_fail_sys(err, errno, "write %s", path);
    CB_AUTO_FREE char *buf = cb_xmalloc(BLOCK);
    for (int64_t size = 0;;) {
        la_ssize_t n = archive_read_data(a, buf, BLOCK);
        if (n < 0)
            return archive_failed(a, name, err);
        if (n == 0)
            return 0;
        size += n;
        *total += n;
        if (size > FILE_MAX || *total > TOTAL_MAX)
            return cb_fail(err, CB_E_LIMIT, "kernel package: %s: too large", name);
        rc = cb_write_all(fd, buf, (size_t)n, err);
        if (rc < 0)
            return cb_wrap(err, "write %s", path);
    }
}

static int unpack_tar(struct archive *a, const char *release, const char *dir, struct cb_error *err)
{
    int64_t total = 0;
    bool have_image = false;
    for (int i = 0; i < ENTRIES_MAX; i++) {
        struct archive_entry *e;
        int rc = archive_read_next_header(a, &e);
        if (rc == ARCHIVE_EOF) {
            if (!have_image)
                return cb_fail(err, CB_E_CORRUPT, "kernel package: no boot/vmlinuz-%s", release);
            return 0;
        }
        if (rc < ARCHIVE_WARN)
            return archive_failed(a, "kernel package", err);
        if (machine_canceled())
            return cb_fail(err, CB_E_CANCELED, "unpacking the kernel: stopped");
        const char *path = archive_entry_pathname(e);
        if (!path || archive_entry_filetype(e) != AE_IFREG || archive_entry_hardlink(e))
            continue;
        CB_AUTO_FREE char *name = kept_name(path, release);
        if (!name)
            continue;
        rc = write_entry(a, dir, name, &total, err);
        if (rc < 0)
            return rc;
        have_image |= strcmp(name, "vmlinuz") == 0;
    }
    return cb_fail(err, CB_E_LIMIT, "kernel package: more than %d entries", ENTRIES_MAX);
}

int deb_unpack_kernel(int fd, const char *release, const char *dir, struct cb_error *err)
{
    CB_AUTO(archive) outer = archive_read_new();
    CB_AUTO(archive) tar = archive_read_new();
    if (!outer || !tar || archive_read_support_format_ar(outer) != ARCHIVE_OK ||
        archive_read_open_fd(outer, fd, BLOCK) != ARCHIVE_OK)
        return archive_failed(outer, "kernel package", err);
    for (;;) {
        struct archive_entry *e;
        int rc = archive_read_next_header(outer, &e);
        if (rc == ARCHIVE_EOF)
            return cb_fail(err, CB_E_CORRUPT, "kernel package: no data.tar in it");
        if (rc < ARCHIVE_WARN)
            return archive_failed(outer, "kernel package", err);
        const char *name = archive_entry_pathname(e);
        if (name && strncmp(name, "data.tar", 8) == 0)
            break;
    }
    CB_AUTO_FREE struct inner *in = cb_xcalloc(1, sizeof(*in));
    in->outer = outer;
    if (add_filters(tar) != ARCHIVE_OK || archive_read_support_format_tar(tar) != ARCHIVE_OK ||
        archive_read_open(tar, in, NULL, read_inner, NULL) != ARCHIVE_OK)
        return archive_failed(tar, "kernel package", err);
    return unpack_tar(tar, release, dir, err);
}
