#include "layers/store_coming.h"
#include "layers/store_private.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

/* How much may be dirty before the kernel is asked to start writing: the sync of a commit then has
 * little left to wait for. */
#define WRITEBACK_STEP (8u << 20)

struct blob_writer {
    struct store *store;
    int fd;
    char *rel;    /* where it grows, below the store; owned */
    bool partial; /* in partial/, under the name of what it shall become; else in tmp/ */
    bool bad;     /* more came than there is: what is there cannot be a part of it */
    bool expects;
    struct cb_digest expect;
    struct cb_hasher *hasher;
    uint64_t offset; /* bytes hashed and written; the file may be longer after a failed write */
    uint64_t max;
    uint64_t flushed;
};

static void blob_rel(const struct cb_digest *d, char *rel, size_t size)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(d, hex);
    (void)snprintf(rel, size, "blobs/sha256/%s", hex);
}

#define BLOB_REL_SIZE (sizeof("blobs/sha256/") + CB_HEX_LEN)

int store_blob_open(struct store *s, const struct cb_digest *d, uint64_t *size,
                    struct cb_error *err)
{
    char rel[BLOB_REL_SIZE];
    blob_rel(d, rel, sizeof(rel));
    store_share(s);
    store_pin(s, PIN_BLOB, d);
    CB_AUTO_FD fd = openat(s->root, rel, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    store_unshare(s);
    if (fd < 0 && errno == ENOENT)
        return cb_fail(err, CB_E_NOTFOUND, "blob sha256:%s is not in the store",
                       strrchr(rel, '/') + 1);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return cb_fail_sys(err, errno, "open %s/%s", s->dir, rel);
    if (!S_ISREG(st.st_mode))
        return cb_fail(err, CB_E_CORRUPT, "%s/%s is not a file", s->dir, rel);
    if (size)
        *size = (uint64_t)st.st_size;
    return cb_take_fd(&fd);
}

bool store_blob_has(struct store *s, const struct cb_digest *d)
{
    char rel[BLOB_REL_SIZE];
    struct stat st;
    blob_rel(d, rel, sizeof(rel));
    store_share(s);
    store_pin(s, PIN_BLOB, d);
    bool there = fstatat(s->root, rel, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode);
    store_unshare(s);
    return there;
}

static void writer_free(struct blob_writer *w)
{
    cb_hasher_free(w->hasher);
    cb_close(w->fd); /* and with it the lock on a partial file */
    free(w->rel);
    free(w);
}

/* Opens partial/HEX and locks it. Returns 0 with w->fd set, 1 when somebody else is writing it.
 * Whoever had the lock before us may have published or removed the file meanwhile; the name is then
 * looked up again, for a published blob must never be written to. */
static int open_partial(struct store *s, struct blob_writer *w, struct cb_error *err)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(&w->expect, hex);
    CB_AUTO_FREE char *rel = cb_xasprintf("partial/%s", hex);
    for (;;) {
        CB_AUTO_FD fd = openat(s->root, rel, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0)
            return cb_fail_sys(err, errno, "make %s/%s", s->dir, rel);
        int r;
        do {
            r = flock(fd, LOCK_EX | LOCK_NB);
        } while (r < 0 && errno == EINTR);
        if (r < 0 && errno == EWOULDBLOCK)
            return 1;
        if (r < 0)
            return cb_fail_sys(err, errno, "lock %s/%s", s->dir, rel);
        struct stat held, named;
        if (fstat(fd, &held) == 0 && fstatat(s->root, rel, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
            held.st_ino == named.st_ino && held.st_dev == named.st_dev) {
            w->fd = cb_take_fd(&fd);
            w->rel = cb_take_ptr(&rel);
            w->partial = true;
            return 0;
        }
    }
}

/* Hashes what an earlier download left. */
static int take_up(struct blob_writer *w, struct cb_error *err)
{
    struct stat st;
    if (fstat(w->fd, &st) < 0)
        return cb_fail_sys(err, errno, "%s", w->rel);
    if ((uint64_t)st.st_size > w->max) /* cannot be a part of it */
        return blob_writer_restart(w, err);
    enum { CHUNK = 1 << 18 };
    CB_AUTO_FREE char *buf = st.st_size ? cb_xmalloc(CHUNK) : NULL;
    while (w->offset < (uint64_t)st.st_size) {
        ssize_t n = pread(w->fd, buf, CHUNK, (off_t)w->offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return cb_fail_sys(err, errno, "read %s", w->rel);
        if (n == 0)
            break;
        cb_hasher_update(w->hasher, buf, (size_t)n);
        w->offset += (uint64_t)n;
    }
    w->flushed = w->offset;
    return 0;
}

int store_blob_begin(struct store *s, const struct cb_digest *expect, uint64_t max_bytes,
                     struct blob_writer **out, struct cb_error *err)
{
    struct blob_writer *w = cb_xcalloc(1, sizeof(*w));
    w->store = s;
    w->fd = -1;
    w->max = max_bytes;
    w->hasher = cb_hasher_new();
    int rc = 1;
    if (expect) {
        w->expects = true;
        w->expect = *expect;
        rc = open_partial(s, w, err);
        if (rc == 0)
            rc = take_up(w, err);
    }
    if (rc == 1) {
        w->fd = store_tmp_open(s, "blob", &w->rel, err);
        rc = w->fd < 0 ? w->fd : 0;
    }
    if (rc < 0) {
        writer_free(w);
        return rc;
    }
    if (w->expects)
        store_coming_begun(s, &w->expect, w->fd, w->offset);
    *out = w;
    return 0;
}

uint64_t blob_writer_offset(const struct blob_writer *w)
{
    return w->offset;
}

int blob_writer_restart(struct blob_writer *w, struct cb_error *err)
{
    struct cb_digest unused;
    if (ftruncate(w->fd, 0) < 0)
        return cb_fail_sys(err, errno, "empty %s/%s", w->store->dir, w->rel);
    cb_hasher_final(w->hasher, &unused);
    w->offset = w->flushed = 0;
    w->bad = false;
    if (w->expects)
        store_coming_grown(w->store, &w->expect, 0);
    return 0;
}

int blob_writer_add(struct blob_writer *w, const void *p, size_t n, struct cb_error *err)
{
    if (n > w->max - w->offset) {
        w->bad = true;
        return cb_fail(err, CB_E_CORRUPT, "blob: more than the %llu bytes it should have",
                       (unsigned long long)w->max);
    }
    if (cb_pwrite_all(w->fd, p, n, (off_t)w->offset, err) < 0)
        return cb_wrap(err, "%s/%s", w->store->dir, w->rel);
    cb_hasher_update(w->hasher, p, n);
    w->offset += n;
    if (w->expects)
        store_coming_grown(w->store, &w->expect, w->offset);
    if (w->offset - w->flushed >= WRITEBACK_STEP) {
        (void)sync_file_range(w->fd, (off_t)w->flushed, (off_t)(w->offset - w->flushed),
                              SYNC_FILE_RANGE_WRITE);
        w->flushed = w->offset;
    }
    return 0;
}

/* The data is on the disk before the name is there; the name itself becomes durable with the
 * folder, which whoever refers to the blob syncs once for all blobs (store_template_publish()). */
static int publish(struct blob_writer *w, const struct cb_digest *got, struct cb_error *err)
{
    struct store *s = w->store;
    char rel[BLOB_REL_SIZE];
    blob_rel(got, rel, sizeof(rel));
    store_step(rel);
    if (ftruncate(w->fd, (off_t)w->offset) < 0 || fchmod(w->fd, 0444) < 0 || fdatasync(w->fd) < 0)
        return cb_fail_sys(err, errno, "publish %s/%s", s->dir, rel);
    store_share(s);
    store_pin(s, PIN_BLOB, got);
    int r = renameat(s->root, w->rel, s->root, rel);
    store_unshare(s);
    return r < 0 ? cb_fail_sys(err, errno, "publish %s/%s", s->dir, rel) : 0;
}

int blob_writer_commit(struct blob_writer *w, struct cb_digest *d, uint64_t *size,
                       struct cb_error *err)
{
    struct cb_digest got;
    cb_hasher_final(w->hasher, &got);
    int rc;
    if (w->expects && !cb_digest_eq(&got, &w->expect)) {
        char is[CB_DIGEST_LEN + 1], should[CB_DIGEST_LEN + 1];
        cb_digest_text(&got, is);
        cb_digest_text(&w->expect, should);
        rc = cb_fail(err, CB_E_CORRUPT, "blob: its %llu bytes have the digest %s instead of %s",
                     (unsigned long long)w->offset, is, should);
    } else {
        rc = publish(w, &got, err);
    }
    if (rc < 0) {
        (void)unlinkat(w->store->root, w->rel, 0);
    } else {
        if (d)
            *d = got;
        if (size)
            *size = w->offset;
    }
    writer_free(w);
    return rc;
}

void blob_writer_abort(struct blob_writer *w)
{
    if (!w)
        return;
    int saved = errno;
    /* bytes of a write that failed half way were never hashed; the next reader should not see them
     */
    if (w->partial && w->offset > 0 && !w->bad)
        (void)!ftruncate(w->fd, (off_t)w->offset);
    else
        (void)unlinkat(w->store->root, w->rel, 0);
    writer_free(w);
    errno = saved;
}

int store_blob_put(struct store *s, const void *p, size_t n, struct cb_digest *d,
                   struct cb_error *err)
{
    struct cb_digest digest;
    cb_sha256(p, n, &digest);
    if (!store_blob_has(s, &digest)) {
        struct blob_writer *w = NULL;
        int rc = store_blob_begin(s, NULL, n, &w, err);
        if (rc < 0)
            return rc;
        rc = blob_writer_add(w, p, n, err);
        if (rc < 0) {
            blob_writer_abort(w);
            return rc;
        }
        rc = blob_writer_commit(w, NULL, NULL, err);
        if (rc < 0)
            return rc;
    }
    if (d)
        *d = digest;
    return 0;
}
