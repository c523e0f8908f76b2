#include "builder/leaks.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 1 << 20 };

struct region {
    int fd;
    uint64_t at, end;
    char *block; /* BLOCK bytes */
};

/* Where each value begins first, or UINT64_MAX. Blocks overlap by what a value may straddle; holes
 * are passed over. */
static int find_values(const struct secrets *s, struct region r, uint64_t *at, struct cb_error *err)
{
    size_t longest = 1;
    for (size_t i = 0; i < s->n_values; i++) {
        at[i] = UINT64_MAX;
        longest = s->values[i].len > longest ? s->values[i].len : longest;
    }
    while (r.at < r.end) {
        off_t data = lseek(r.fd, (off_t)r.at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break; /* nothing but a hole */
        if (data > 0 && (uint64_t)data > r.at)
            r.at = (uint64_t)data;
        if (r.at >= r.end)
            break;
        size_t n = r.end - r.at < BLOCK ? (size_t)(r.end - r.at) : BLOCK;
        int rc = cb_pread_all(r.fd, r.block, n, (off_t)r.at, err);
        if (rc < 0)
            return rc;
        for (size_t i = 0; i < s->n_values; i++) {
            const struct secret_value *v = &s->values[i];
            const char *hit = v->len < LEAK_SHORTEST || at[i] != UINT64_MAX
                                  ? NULL
                                  : memmem(r.block, n, v->data, v->len);
            if (hit)
                at[i] = r.at + (uint64_t)(hit - r.block);
        }
        r.at += n == BLOCK ? n - (longest - 1) : n;
    }
    return 0;
}

static la_ssize_t read_block(struct archive *a, void *arg, const void **out)
{
    struct region *r = arg;
    size_t n = r->end - r->at < BLOCK ? (size_t)(r->end - r->at) : BLOCK;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (n && cb_pread_all(r->fd, r->block, n, r->at, &err) < 0) {
        archive_set_error(a, EIO, "%s", err.msg);
        return -1;
    }
    r->at += n;
    *out = r->block;
    return (la_ssize_t)n;
}

static la_int64_t skip_bytes(struct archive *a, void *arg, la_int64_t want)
{
    (void)a;
    struct region *r = arg;
    uint64_t n = (uint64_t)want < r->end - r->at ? (uint64_t)want : r->end - r->at;
    r->at += n;
    return (la_int64_t)n;
}

/* The path of the entry that the byte @at of the tar belongs to. Owned. What is read is a
 * stranger's: where it makes no sense, nobody is told a path. */
static char *path_at(struct region r, uint64_t at)
{
    char *path = NULL;
    struct archive_entry *e;
    struct archive *a = archive_read_new();
    uint64_t start = r.at;
    bool ok = a && archive_read_support_format_tar(a) == ARCHIVE_OK &&
              archive_read_open2(a, &r, NULL, read_block, skip_bytes, NULL) == ARCHIVE_OK;
    while (ok && archive_read_next_header(a, &e) >= ARCHIVE_WARN &&
           (uint64_t)archive_read_header_position(a) <= at - start) {
        const char *name = archive_entry_pathname(e);
        free(path);
        path = cb_xstrdup0(name);
    }
    (void)archive_read_free(a);
    return path ? path : cb_xstrdup("?");
}

int leaks_find(const struct secrets *s, int fd, uint64_t offset, uint64_t len,
               void (*found)(void *arg, const char *secret, const char *path), void *arg,
               struct cb_error *err)
{
    CB_AUTO_FREE char *block = cb_xmalloc(BLOCK);
    const struct region r = {.fd = fd, .at = offset, .end = offset + len, .block = block};
    CB_AUTO_FREE uint64_t *at = cb_xcalloc(s->n_values + 1, sizeof(*at));
    int rc = find_values(s, r, at, err);
    if (rc < 0)
        return cb_wrap(err, "look for secrets in the layer's changes");
    for (size_t i = 0; i < s->n_values; i++) {
        if (at[i] == UINT64_MAX)
            continue;
        CB_AUTO_FREE char *path = path_at(r, at[i]);
        found(arg, s->values[i].what, path);
    }
    return 0;
}
