#include "layers/image_diff.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <string.h>
#include <sys/stat.h>

#define READ_STEP ((size_t)256 << 10)

struct differ {
    struct ext4_image *im[2];
    struct ext4_walk *walk[2];
    struct ext4_entry at[2];
    bool there[2];
    /* chunks that are alike in both, a bit each; NULL when that is not known */
    uint8_t *alike;
    uint64_t n_alike;
    uint32_t chunk_size;
    char *bytes; /* two steps */
    uint64_t bytes_read;
    int (*on)(void *arg, const struct diff_entry *e, struct cb_error *err);
    void *arg;
};

CB_DEFINE_CLEANUP(ext4_file, struct ext4_file *, ext4_file_close);

/* ---- chunks ---- */

static void compare_chunks(struct differ *d, const struct chunk_map *a, const struct chunk_map *b)
{
    if (!a || !b || a->chunk_size != b->chunk_size || !chunk_size_ok(a->chunk_size))
        return;
    uint64_t shorter = a->length < b->length ? a->length : b->length;
    d->chunk_size = a->chunk_size;
    d->n_alike = shorter / d->chunk_size; /* the last one, when it is cut, is read */
    d->alike = cb_xmalloc(d->n_alike / 8 + 1);
    memset(d->alike, 0xff, d->n_alike / 8 + 1);
    for (size_t i = 0, j = 0; i < a->n || j < b->n;) {
        uint64_t x = i < a->n ? a->v[i].index : UINT64_MAX;
        uint64_t y = j < b->n ? b->v[j].index : UINT64_MAX;
        uint64_t at = x < y ? x : y;
        bool same = x == y && cb_digest_eq(&a->v[i].digest, &b->v[j].digest);
        i += x == at;
        j += y == at;
        if (!same && at < d->n_alike)
            d->alike[at / 8] &= (uint8_t) ~(1u << (at % 8));
    }
}

static bool chunk_alike(const struct differ *d, uint64_t index)
{
    return index < d->n_alike && d->alike[index / 8] >> (index % 8) & 1;
}

/* Both files lie at the same places of their images. */
static bool same_places(const struct ext4_file *a, const struct ext4_file *b)
{
    for (size_t i = 0;; i++) {
        struct ext4_place x, y;
        bool more = ext4_file_place(a, i, &x);
        if (more != ext4_file_place(b, i, &y))
            return false;
        if (!more)
            return true;
        if (x.at != y.at || x.len != y.len || x.position != y.position)
            return false;
    }
}

/* ---- one name ---- */

/* 1 when the files differ between @at and @end, which may lie behind their end. */
static int compare_bytes(struct differ *d, struct ext4_file *a, struct ext4_file *b, uint64_t at,
                         uint64_t end, struct cb_error *err)
{
    if (!d->bytes)
        d->bytes = cb_xmalloc(2 * READ_STEP);
    if (end > ext4_file_size(a))
        end = ext4_file_size(a);
    while (at < end) {
        size_t want = end - at < READ_STEP ? (size_t)(end - at) : READ_STEP;
        int64_t n = ext4_file_pread(a, d->bytes, want, at, err);
        int64_t m = n <= 0 ? n : ext4_file_pread(b, d->bytes + READ_STEP, want, at, err);
        if (n < 0 || m < 0)
            return (int)(n < 0 ? n : m);
        if (n != m || n == 0 || memcmp(d->bytes, d->bytes + READ_STEP, (size_t)n) != 0)
            return 1;
        at += (uint64_t)n;
        d->bytes_read += (uint64_t)n;
    }
    return 0;
}

/* The same for files at the same places: only what lies in chunks that are not alike. */
static int compare_chunks_of(struct differ *d, struct ext4_file *a, struct ext4_file *b,
                             struct cb_error *err)
{
    struct ext4_place p;
    for (size_t i = 0; ext4_file_place(a, i, &p); i++) {
        for (uint64_t at = p.position, end = p.position + p.len; at < end;) {
            uint64_t index = at / d->chunk_size, next = (index + 1) * d->chunk_size;
            if (next > end)
                next = end;
            int rc = chunk_alike(d, index) ? 0
                                           : compare_bytes(d, a, b, p.at + (at - p.position),
                                                           p.at + (next - p.position), err);
            if (rc != 0)
                return rc;
            at = next;
        }
    }
    return 0;
}

static int files_differ(struct differ *d, struct cb_error *err)
{
    if (d->at[0].size != d->at[1].size)
        return 1;
    if (d->at[0].size == 0)
        return 0;
    CB_AUTO(ext4_file) a = NULL;
    CB_AUTO(ext4_file) b = NULL;
    int rc = ext4_file_open(d->im[0], d->at[0].ino, &a, err);
    if (rc >= 0)
        rc = ext4_file_open(d->im[1], d->at[1].ino, &b, err);
    if (rc < 0)
        return rc;
    if (d->alike && same_places(a, b))
        return compare_chunks_of(d, a, b, err);
    return compare_bytes(d, a, b, 0, ext4_file_size(a), err);
}

static int content_differs(struct differ *d, struct cb_error *err)
{
    const struct ext4_entry *a = &d->at[0], *b = &d->at[1];
    if (S_ISREG(a->mode))
        return files_differ(d, err);
    if (S_ISLNK(a->mode))
        return strcmp(a->target, b->target) != 0;
    if (S_ISCHR(a->mode) || S_ISBLK(a->mode))
        return a->major != b->major || a->minor != b->minor;
    return 0;
}

static bool xattrs_differ(const struct ext4_entry *a, const struct ext4_entry *b)
{
    if (a->n_xattrs != b->n_xattrs)
        return true;
    for (size_t i = 0; i < a->n_xattrs; i++) {
        const struct ext4_xattr *x = &a->xattrs[i], *y = &b->xattrs[i];
        if (strcmp(x->name, y->name) != 0 || x->len != y->len ||
            memcmp(x->value, y->value, x->len) != 0)
            return true;
    }
    return false;
}

static int compare_entries(struct differ *d, struct cb_error *err)
{
    const struct ext4_entry *a = &d->at[0], *b = &d->at[1];
    unsigned what = 0;
    if ((a->mode & S_IFMT) != (b->mode & S_IFMT)) {
        what = DIFF_TYPE;
    } else {
        int content = content_differs(d, err);
        if (content < 0)
            return cb_wrap(err, "%s", a->path);
        bool link = !a->link_to != !b->link_to ||
                    (a->link_to && b->link_to && strcmp(a->link_to, b->link_to) != 0);
        what = (content ? DIFF_CONTENT : 0) | ((a->mode ^ b->mode) & 07777 ? DIFF_MODE : 0) |
               (a->uid != b->uid || a->gid != b->gid ? DIFF_OWNER : 0) | (link ? DIFF_LINK : 0) |
               (xattrs_differ(a, b) ? DIFF_XATTR : 0);
    }
    const struct diff_entry e = {DIFF_CHANGED, what, a, b};
    return what ? d->on(d->arg, &e, err) : 0;
}

/* ---- all names ---- */

static int advance(struct differ *d, int side, struct cb_error *err)
{
    int rc = ext4_walk_next(d->walk[side], &d->at[side], err);
    d->there[side] = rc > 0;
    return rc < 0 ? rc : 0;
}

static int merge(struct differ *d, struct cb_error *err)
{
    int rc = advance(d, 0, err);
    if (rc == 0)
        rc = advance(d, 1, err);
    while (rc == 0 && (d->there[0] || d->there[1])) {
        int c = !d->there[1] ? -1 : !d->there[0] ? 1 : ext4_path_cmp(d->at[0].path, d->at[1].path);
        if (c == 0) {
            rc = compare_entries(d, err);
        } else {
            const struct diff_entry e = {c < 0 ? DIFF_REMOVED : DIFF_ADDED, 0,
                                         c < 0 ? &d->at[0] : NULL, c < 0 ? NULL : &d->at[1]};
            rc = d->on(d->arg, &e, err);
        }
        if (rc == 0 && c <= 0)
            rc = advance(d, 0, err);
        if (rc == 0 && c >= 0)
            rc = advance(d, 1, err);
    }
    return rc < 0 ? rc : 0;
}

int image_diff(const struct diff_side *a, const struct diff_side *b,
               int (*on)(void *arg, const struct diff_entry *e, struct cb_error *err), void *arg,
               uint64_t *bytes_read, struct cb_error *err)
{
    struct differ d = {.on = on, .arg = arg};
    const struct diff_side *sides[2] = {a, b};
    int rc = 0;
    for (int i = 0; i < 2 && rc == 0; i++) {
        rc = ext4_image_open(sides[i]->path, 0, &d.im[i], err);
        if (rc == 0)
            rc = ext4_walk_open(d.im[i], EXT4_WALK_NO_EMPTY_LOST_FOUND, &d.walk[i], err);
    }
    compare_chunks(&d, a->chunks, b->chunks);
    if (rc == 0)
        rc = merge(&d, err);
    for (int i = 0; i < 2; i++) {
        ext4_walk_close(d.walk[i]);
        ext4_image_close(d.im[i]);
    }
    free(d.alike);
    free(d.bytes);
    if (bytes_read)
        *bytes_read = d.bytes_read;
    return rc;
}
