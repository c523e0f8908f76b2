#include "layers/layer_index.h"

#include "layers/ext4_writer.h"
#include "layers/store_private.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FOLDER "layers"
#define RECORD_MAX ((size_t)4 << 20) /* a file of 300,000 pieces */
#define BUFFER ((size_t)64 << 10)
#define INDEXED_VALUE_MAX                                                                          \
    4096u /* what is larger was left out or refused, as no inode can have it */
#define INDEXED_NAME_MAX 300u

struct head {
    char magic[16];
    struct cb_digest diff_id;
    struct index_sums sums;
    uint64_t length;       /* of the records */
    struct cb_digest body; /* SHA-256 of them */
};
static const char magic[] = "capsule index  1";

/* A record: its length with this (32 bits), this, path and link with a NUL each, attributes, runs
 * of blocks. */
struct entry {
    uint8_t kind, dense; /* dense: the blocks of @size bytes from the first on, and no runs */
    uint16_t xattrs;
    uint32_t mode, uid, gid, major, minor, mtime_ns;
    uint32_t runs;
    int64_t mtime;
    uint64_t size;
    uint32_t path, link; /* lengths with their NUL; 0: no link */
};
_Static_assert(sizeof(struct entry) == 56, "no padding in what is written");

struct xattr {
    uint16_t name, value; /* lengths; the name's with its NUL */
};

struct run {
    uint32_t logical, count;
};

static char *index_rel(const struct cb_digest *diff_id)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(diff_id, hex);
    return cb_xasprintf(FOLDER "/%s.index", hex);
}

/* ---- writing ---- */

struct index_writer {
    struct store *store;
    struct head head;
    int fd;
    char *rel;
    bool failed;
    struct cb_hasher *hasher;
    unsigned char *buffer;
    size_t n;
    struct entry e;
    struct cb_buf names, xattrs, runs; /* of the entry */
};

struct index_writer *index_writer_new(struct store *s, const struct cb_digest *diff_id)
{
    static const struct head empty;
    char *rel = NULL;
    CB_AUTO_FD fd = store_tmp_open(s, "index", &rel, NULL);
    if (fd < 0 || cb_write_all(fd, &empty, sizeof(empty), NULL) < 0) {
        free(rel);
        return NULL;
    }
    struct index_writer *x = cb_xcalloc(1, sizeof(*x));
    x->store = s;
    x->head.diff_id = *diff_id;
    memcpy(x->head.magic, magic, sizeof(x->head.magic));
    x->fd = cb_take_fd(&fd);
    x->rel = rel;
    x->hasher = cb_hasher_new();
    x->buffer = cb_xmalloc(BUFFER);
    cb_buf_init(&x->names, 4 * (CB_PATH_MAX + 1) * sizeof(char));
    cb_buf_init(&x->xattrs, RECORD_MAX);
    cb_buf_init(&x->runs, RECORD_MAX);
    return x;
}

void index_writer_free(struct index_writer *x)
{
    if (!x)
        return;
    cb_close(x->fd);
    if (x->rel)
        (void)unlinkat(x->store->root, x->rel, 0);
    free(x->rel);
    cb_hasher_free(x->hasher);
    free(x->buffer);
    cb_buf_release(&x->names);
    cb_buf_release(&x->xattrs);
    cb_buf_release(&x->runs);
    free(x);
}

static void flush(struct index_writer *x)
{
    cb_hasher_update(x->hasher, x->buffer, x->n);
    x->head.length += x->n;
    if (!x->failed && cb_write_all(x->fd, x->buffer, x->n, NULL) < 0)
        x->failed = true;
    x->n = 0;
}

static void put(struct index_writer *x, const void *p, size_t n)
{
    const unsigned char *b = p;
    while (n > 0) {
        size_t now = n < BUFFER - x->n ? n : BUFFER - x->n;
        memcpy(x->buffer + x->n, b, now);
        x->n += now;
        b += now;
        n -= now;
        if (x->n == BUFFER)
            flush(x);
    }
}

void index_entry(struct index_writer *x, const struct tar_entry *e)
{
    if (!x)
        return;
    size_t path = strlen(e->path) + 1, link = e->link ? strlen(e->link) + 1 : 0;
    x->e = (struct entry){.kind = (uint8_t)e->kind,
                          .mode = e->mode,
                          .uid = e->uid,
                          .gid = e->gid,
                          .major = e->major,
                          .minor = e->minor,
                          .mtime_ns = e->mtime_ns,
                          .mtime = e->mtime,
                          .size = e->size,
                          .path = (uint32_t)path,
                          .link = (uint32_t)link};
    cb_buf_clear(&x->names);
    cb_buf_clear(&x->xattrs);
    cb_buf_clear(&x->runs);
    if (cb_buf_add(&x->names, e->path, path) < 0 ||
        (link && cb_buf_add(&x->names, e->link, link) < 0))
        x->failed = true;
    x->head.sums.entries++;
}

void index_xattr(struct index_writer *x, const char *name, const void *value, size_t len)
{
    if (!x || len > INDEXED_VALUE_MAX || strlen(name) >= INDEXED_NAME_MAX)
        return;
    const struct xattr a = {(uint16_t)(strlen(name) + 1), (uint16_t)len};
    if (x->e.xattrs == UINT16_MAX || cb_buf_add(&x->xattrs, &a, sizeof(a)) < 0 ||
        cb_buf_add(&x->xattrs, name, a.name) < 0 || cb_buf_add(&x->xattrs, value, len) < 0)
        x->failed = true;
    x->e.xattrs++;
}

static bool is_dense(const struct extents *b, uint64_t size)
{
    uint32_t at = 0;
    for (size_t i = 0; i < b->n; i++) {
        if (b->v[i].logical != at)
            return false;
        at += b->v[i].len;
    }
    return at == (size + EXT4_BLOCK - 1) / EXT4_BLOCK;
}

void index_blocks(struct index_writer *x, const struct extents *b)
{
    if (!x)
        return;
    x->head.sums.data_blocks += b->blocks;
    x->e.dense = is_dense(b, x->e.size);
    for (size_t i = 0; !x->e.dense && i < b->n; i++) {
        const struct run r = {b->v[i].logical, b->v[i].len};
        if (cb_buf_add(&x->runs, &r, sizeof(r)) < 0)
            x->failed = true;
        x->e.runs++;
    }
}

void index_link_block(struct index_writer *x)
{
    if (x)
        x->head.sums.link_blocks++;
}

void index_inode(struct index_writer *x)
{
    if (x)
        x->head.sums.inodes++;
}

void index_entry_end(struct index_writer *x)
{
    if (!x || x->failed)
        return;
    size_t n = sizeof(x->e) + x->names.len + x->xattrs.len + x->runs.len;
    const uint32_t len = (uint32_t)n;
    if (n > RECORD_MAX) {
        x->failed = true;
        return;
    }
    put(x, &len, sizeof(len));
    put(x, &x->e, sizeof(x->e));
    put(x, x->names.data, x->names.len);
    put(x, x->xattrs.data, x->xattrs.len);
    put(x, x->runs.data, x->runs.len);
}

/* Not synced: a torn one has not the digest that it says. */
bool index_publish(struct index_writer *x)
{
    if (!x)
        return false;
    flush(x);
    cb_hasher_final(x->hasher, &x->head.body);
    CB_AUTO_FREE char *rel = index_rel(&x->head.diff_id);
    if (x->failed || cb_pwrite_all(x->fd, &x->head, sizeof(x->head), 0, NULL) < 0 ||
        renameat(x->store->root, x->rel, x->store->root, rel) < 0)
        return false;
    free(cb_take_ptr(&x->rel));
    return true;
}

/* ---- reading ---- */

struct index_reader {
    int fd;
    struct head head;
    uint64_t at, end; /* of the file: the next byte to read, and behind the last */
    unsigned char *buffer;
    size_t pos, have; /* in the buffer */
    struct cb_buf record;
    struct entry e;
    size_t xattr_at, run_at; /* in the record */
    uint32_t xattrs, runs;   /* left */
    bool dense;              /* the one run is still to come */
    uint64_t stream;
};

static int fill(struct index_reader *x)
{
    size_t want = x->end - x->at < BUFFER ? (size_t)(x->end - x->at) : BUFFER;
    x->pos = x->have = 0;
    if (want == 0 || cb_pread_all(x->fd, x->buffer, want, (off_t)x->at, NULL) < 0)
        return -1;
    x->at += want;
    x->have = want;
    return 0;
}

static bool is_sound(struct index_reader *x, const struct cb_digest *diff_id)
{
    struct stat st;
    struct cb_digest sum;
    if (cb_pread_all(x->fd, &x->head, sizeof(x->head), 0, NULL) < 0 || fstat(x->fd, &st) < 0 ||
        memcmp(x->head.magic, magic, sizeof(x->head.magic)) != 0 ||
        !cb_digest_eq(&x->head.diff_id, diff_id) ||
        x->head.length != (uint64_t)st.st_size - sizeof(x->head))
        return false;
    x->at = sizeof(x->head);
    x->end = (uint64_t)st.st_size;
    struct cb_hasher *h = cb_hasher_new();
    while (x->at < x->end && fill(x) == 0)
        cb_hasher_update(h, x->buffer, x->have);
    cb_hasher_final(h, &sum);
    cb_hasher_free(h);
    bool all = x->at == x->end;
    x->at = sizeof(x->head);
    x->pos = x->have = 0;
    return all && cb_digest_eq(&sum, &x->head.body);
}

struct index_reader *index_open(struct store *s, const struct cb_digest *diff_id)
{
    CB_AUTO_FREE char *rel = index_rel(diff_id);
    CB_AUTO_FD fd = openat(s->root, rel, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    struct index_reader *x = cb_xcalloc(1, sizeof(*x));
    x->fd = cb_take_fd(&fd);
    x->buffer = cb_xmalloc(BUFFER);
    cb_buf_init(&x->record, RECORD_MAX + 1);
    if (is_sound(x, diff_id)) {
        store_touch(s, rel);
        return x;
    }
    index_free(x);
    (void)unlinkat(s->root, rel, 0);
    return NULL;
}

void index_free(struct index_reader *x)
{
    if (!x)
        return;
    cb_close(x->fd);
    free(x->buffer);
    cb_buf_release(&x->record);
    free(x);
}

const struct index_sums *index_sums(const struct index_reader *x)
{
    return &x->head.sums;
}

static int damaged(struct cb_error *err)
{
    return cb_fail(err, CB_E_CORRUPT, "the index of the layer is damaged");
}

static int take(struct index_reader *x, void *p, size_t n)
{
    unsigned char *b = p;
    while (n > 0) {
        if (x->pos == x->have && fill(x) < 0)
            return -1;
        size_t now = n < x->have - x->pos ? n : x->have - x->pos;
        memcpy(b, x->buffer + x->pos, now);
        x->pos += now;
        b += now;
        n -= now;
    }
    return 0;
}

/* A text of @n bytes with its NUL at @at of the record. */
static bool is_text(const struct index_reader *x, size_t at, size_t n)
{
    return n > 0 && at <= x->record.len && n <= x->record.len - at &&
           memchr(x->record.data + at, '\0', n) == x->record.data + at + n - 1;
}

/* The lengths in the record fit, so that the rest need not be checked. */
static bool check_record(struct index_reader *x)
{
    const struct entry *e = &x->e;
    size_t at = sizeof(*e);
    if (e->kind > TAR_FIFO || !is_text(x, at, e->path))
        return false;
    at += e->path;
    bool link = e->kind == TAR_SYMLINK || e->kind == TAR_HARDLINK;
    if (link != (e->link > 0) || (link && !is_text(x, at, e->link)))
        return false;
    at += e->link;
    x->xattr_at = at;
    for (uint16_t i = 0; i < e->xattrs; i++) {
        struct xattr a;
        if (x->record.len - at < sizeof(a))
            return false;
        memcpy(&a, x->record.data + at, sizeof(a));
        at += sizeof(a);
        if (!is_text(x, at, a.name) || x->record.len - at - a.name < a.value)
            return false;
        at += (size_t)a.name + a.value;
    }
    x->run_at = at;
    return (x->record.len - at) == (size_t)e->runs * sizeof(struct run) &&
           !(e->dense && (e->runs > 0 || e->size / EXT4_BLOCK >= UINT32_MAX));
}

int index_next(struct index_reader *x, struct tar_entry *e, struct cb_error *err)
{
    uint32_t len;
    memset(e, 0, sizeof(*e));
    if (x->pos == x->have && x->at == x->end)
        return 0;
    uint32_t logical, count;
    uint64_t stream;
    while (index_next_blocks(x, &logical, &count, &stream)) /* what the last one left */
        ;
    if (take(x, &len, sizeof(len)) < 0 || len < sizeof(x->e) || len > RECORD_MAX)
        return damaged(err);
    cb_buf_clear(&x->record);
    for (size_t left = len; left > 0;) {
        char piece[4096];
        size_t n = left < sizeof(piece) ? left : sizeof(piece);
        if (take(x, piece, n) < 0 || cb_buf_add(&x->record, piece, n) < 0)
            return damaged(err);
        left -= n;
    }
    memcpy(&x->e, x->record.data, sizeof(x->e));
    if (!check_record(x))
        return damaged(err);
    x->xattrs = x->e.xattrs;
    x->runs = x->e.runs;
    x->dense = x->e.dense != 0;
    *e = (struct tar_entry){.kind = (enum tar_kind)x->e.kind,
                            .path = x->record.data + sizeof(x->e),
                            .link = x->e.link ? x->record.data + sizeof(x->e) + x->e.path : NULL,
                            .mode = x->e.mode & 07777,
                            .uid = x->e.uid,
                            .gid = x->e.gid,
                            .mtime = x->e.mtime,
                            .mtime_ns = x->e.mtime_ns,
                            .major = x->e.major,
                            .minor = x->e.minor,
                            .size = x->e.size};
    return 1;
}

bool index_next_xattr(struct index_reader *x, const char **name, const void **value, size_t *len)
{
    struct xattr a;
    if (x->xattrs == 0)
        return false;
    x->xattrs--;
    memcpy(&a, x->record.data + x->xattr_at, sizeof(a));
    *name = x->record.data + x->xattr_at + sizeof(a);
    *value = *name + a.name;
    *len = a.value;
    x->xattr_at += sizeof(a) + a.name + a.value;
    return true;
}

bool index_next_blocks(struct index_reader *x, uint32_t *logical, uint32_t *count, uint64_t *stream)
{
    struct run r;
    if (x->dense) {
        x->dense = false;
        r = (struct run){0, (uint32_t)((x->e.size + EXT4_BLOCK - 1) / EXT4_BLOCK)};
    } else if (x->runs > 0) {
        x->runs--;
        memcpy(&r, x->record.data + x->run_at, sizeof(r));
        x->run_at += sizeof(r);
    } else {
        return false;
    }
    *logical = r.logical;
    *count = r.count;
    *stream = x->stream;
    x->stream += r.count;
    return true;
}
