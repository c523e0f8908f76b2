/* gce: the disk as Compute Engine imports it: one file "disk.raw" of whole GiB in a tar of GNU's
 * old format, sparse, in gzip. libarchive writes no sparse files of that format; its header is made
 * here, as GNU tar's own --format=oldgnu --sparse does. */
#include "layers/export_private.h"

#include "layers/gzip.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MEMBER "disk.raw"

enum {
    BLOCK = 512,
    GRAIN = 64 << 10, /* what is all zero and as long, and begins at a multiple of it, is a hole */
    RECORD = 20 * BLOCK,
    IN_HEADER = 4, /* entries of the sparse map; then 21 a block */
    IN_BLOCK = 21,
    ENTRY = 24,
};

struct run {
    uint64_t at, len;
};

struct gce {
    struct export *x;
    int disk, out;
    uint64_t size;
    struct run *v;
    size_t n, cap;
    uint64_t stored; /* bytes of all runs */
    struct gzip *z;
    uint64_t written; /* bytes of the tar */
    char *buf;        /* GRAIN bytes */
};

static int on_packed(void *arg, const void *p, size_t n, struct cb_error *err)
{
    const struct gce *g = arg;
    return export_write(g->x, g->out, p, n, err);
}

static int put(struct gce *g, const void *p, size_t n, struct cb_error *err)
{
    g->written += n;
    return gzip_add(g->z, p, n, err);
}

static int pad(struct gce *g, size_t to, struct cb_error *err)
{
    static const char zero[RECORD];
    size_t over = (size_t)(g->written % to);
    return over ? put(g, zero, to - over, err) : 0;
}

/* ---- which parts are stored ---- */

static bool is_zero(const char *p, size_t n)
{
    return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

static void add_run(struct gce *g, uint64_t at, uint64_t len)
{
    struct run *last = g->n ? &g->v[g->n - 1] : NULL;
    g->stored += len;
    if (last && last->at + last->len == at) {
        last->len += len;
        return;
    }
    g->v = cb_xgrow(g->v, &g->cap, g->n, sizeof(*g->v));
    g->v[g->n++] = (struct run){at, len};
}

/* By content, so that the archive does not depend on how this file system keeps holes. */
static int find_runs(struct gce *g, struct cb_error *err)
{
    for (uint64_t at = 0; at < g->size; at += GRAIN) {
        off_t data = lseek(g->disk, (off_t)at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        if (data >= 0)
            at = (uint64_t)data / GRAIN * GRAIN;
        size_t n = g->size - at < GRAIN ? (size_t)(g->size - at) : GRAIN;
        int rc = cb_pread_all(g->disk, g->buf, n, (off_t)at, err);
        if (rc == 0)
            rc = export_advance(g->x, 0, err);
        if (rc < 0)
            return rc;
        if (!is_zero(g->buf, n))
            add_run(g, at, n);
    }
    if (g->n == 0 || g->v[g->n - 1].at + g->v[g->n - 1].len < g->size)
        add_run(g, g->size, 0); /* says where the file ends */
    g->x->total = g->x->done + g->stored;
    return 0;
}

/* ---- the tar ---- */

/* Octal with a NUL; in GNU's base 256 what 11 digits do not hold. */
static void number(char *field, size_t width, uint64_t n)
{
    if (n >> (3 * (width - 1)) == 0) {
        char text[32];
        (void)snprintf(text, sizeof(text), "%0*llo", (int)width - 1, (unsigned long long)n);
        memcpy(field, text, width);
        return;
    }
    memset(field, 0, width);
    for (size_t i = width; i-- > 1 && n; n >>= 8)
        field[i] = (char)(n & 0xff);
    field[0] = (char)0x80;
}

/* Up to @max entries of the map from @from on, at @p; returns how many. */
static size_t put_map(const struct gce *g, size_t from, size_t max, char *p)
{
    size_t i = 0;
    for (; i < max && from + i < g->n; i++, p += ENTRY) {
        number(p, 12, g->v[from + i].at);
        number(p + 12, 12, g->v[from + i].len);
    }
    return i;
}

static int put_header(struct gce *g, struct cb_error *err)
{
    char h[BLOCK] = {0};
    memcpy(h, MEMBER, sizeof(MEMBER));
    number(h + 100, 8, 0644);
    number(h + 108, 8, 0);
    number(h + 116, 8, 0);
    number(h + 124, 12, g->stored);
    number(h + 136, 12, 0);
    memset(h + 148, ' ', 8);
    h[156] = 'S';
    memcpy(h + 257, "ustar  ", 8); /* with its NUL: GNU's */
    size_t at = put_map(g, 0, IN_HEADER, h + 386);
    h[482] = at < g->n;
    number(h + 483, 12, g->size);
    unsigned sum = 0;
    for (size_t i = 0; i < BLOCK; i++)
        sum += (unsigned char)h[i];
    (void)snprintf(h + 148, 7, "%06o", sum);
    int rc = put(g, h, BLOCK, err);
    while (rc == 0 && at < g->n) {
        char b[BLOCK] = {0};
        at += put_map(g, at, IN_BLOCK, b);
        b[IN_BLOCK * ENTRY] = at < g->n;
        rc = put(g, b, BLOCK, err);
    }
    return rc;
}

static int put_data(struct gce *g, struct cb_error *err)
{
    for (size_t i = 0; i < g->n; i++) {
        for (uint64_t at = 0; at < g->v[i].len;) {
            uint64_t left = g->v[i].len - at;
            size_t n = left < GRAIN ? (size_t)left : GRAIN;
            int rc = cb_pread_all(g->disk, g->buf, n, (off_t)(g->v[i].at + at), err);
            if (rc == 0)
                rc = put(g, g->buf, n, err);
            if (rc == 0)
                rc = export_advance(g->x, n, err);
            if (rc < 0)
                return rc;
            at += n;
        }
    }
    return pad(g, BLOCK, err);
}

static int put_all(struct gce *g, struct cb_error *err)
{
    static const char end[2 * BLOCK];
    int rc = find_runs(g, err);
    if (rc == 0)
        rc = put_header(g, err);
    if (rc == 0)
        rc = put_data(g, err);
    if (rc == 0)
        rc = put(g, end, sizeof(end), err);
    if (rc == 0)
        rc = pad(g, RECORD, err);
    return rc == 0 ? gzip_finish(g->z, err) : rc;
}

int export_make_gce(struct export *x, int disk, struct cb_error *err)
{
    struct stat st;
    if (fstat(disk, &st) < 0)
        return cb_fail_sys(err, errno, "read the disk");
    CB_AUTO_FD out = export_open_out(x, err);
    if (out < 0)
        return out;
    CB_AUTO_FREE char *buf = cb_xmalloc(GRAIN);
    struct gce g = {.x = x, .disk = disk, .out = out, .size = (uint64_t)st.st_size, .buf = buf};
    g.z = gzip_new(on_packed, &g);
    int rc = put_all(&g, err);
    gzip_free(g.z);
    free(g.v);
    return rc;
}
