/* SHA-256 over the length (64 bits, little-endian) and, for every chunk of 1 MiB that is not all
 * zero, its index (the same) and its SHA-256. The chunks are hashed by two threads, a batch at a
 * time. */
#include "layers/flatten.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define CHUNK ((uint64_t)1 << 20)
#define BATCH 64u

struct chunk {
    uint64_t index;
    bool zero;
    struct cb_digest digest;
};

struct batch {
    int fd;
    uint64_t size;
    struct chunk v[BATCH];
    uint32_t n;
    _Atomic uint32_t next;
};

struct helper {
    struct batch *batch;
    struct cb_error err;
    unsigned char *buf;
    struct cb_hasher *hasher;
};

static bool all_zero(const unsigned char *p, size_t n)
{
    static const unsigned char zero[16];
    return n < 16 ? memcmp(p, zero, n) == 0
                  : memcmp(p, zero, 16) == 0 && memcmp(p, p + 16, n - 16) == 0;
}

static void *work(void *arg)
{
    struct helper *h = arg;
    struct batch *b = h->batch;
    for (;;) {
        uint32_t i = atomic_fetch_add_explicit(&b->next, 1, memory_order_relaxed);
        if (i >= b->n)
            return NULL;
        struct chunk *c = &b->v[i];
        uint64_t at = c->index * CHUNK, n = b->size - at < CHUNK ? b->size - at : CHUNK;
        if (cb_pread_all(b->fd, h->buf, (size_t)n, (off_t)at, &h->err) < 0)
            return NULL;
        c->zero = all_zero(h->buf, (size_t)n);
        if (c->zero)
            continue;
        cb_hasher_update(h->hasher, h->buf, (size_t)n);
        cb_hasher_final(h->hasher, &c->digest);
    }
}

/* The next chunk at or after @index that has data. False behind the last one. */
static bool next_chunk(int fd, uint64_t size, uint64_t *index)
{
    uint64_t at = *index * CHUNK;
    if (at >= size)
        return false;
    off_t data = lseek(fd, (off_t)at, SEEK_DATA);
    if (data < 0)
        return errno != ENXIO; /* a file system without holes: every chunk has data */
    *index = (uint64_t)data / CHUNK;
    return (uint64_t)data < size;
}

static void add_number(struct cb_hasher *h, uint64_t n)
{
    n = htole64(n);
    cb_hasher_update(h, &n, sizeof(n));
}

static int run_batch(struct helper h[2], struct cb_error *err)
{
    pthread_t other;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool two = h[0].batch->n > 1 && pthread_create(&other, NULL, work, &h[1]) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    work(&h[0]);
    if (two)
        pthread_join(other, NULL);
    for (int i = 0; i < 2; i++)
        if (h[i].err.code != CB_OK)
            return cb_error_move(err, &h[i].err);
    return 0;
}

static int digest_chunks(struct helper h[2], struct cb_hasher *sum, struct cb_error *err)
{
    struct batch *b = h[0].batch;
    uint64_t index = 0;
    bool more = true;
    while (more) {
        b->n = 0;
        atomic_store(&b->next, 0);
        while (b->n < BATCH && (more = next_chunk(b->fd, b->size, &index)))
            b->v[b->n++].index = index++;
        int rc = run_batch(h, err);
        if (rc < 0)
            return rc;
        for (uint32_t i = 0; i < b->n; i++) {
            if (b->v[i].zero)
                continue;
            add_number(sum, b->v[i].index);
            cb_hasher_update(sum, b->v[i].digest.b, sizeof(b->v[i].digest.b));
        }
    }
    return 0;
}

int image_digest(int fd, struct cb_digest *out, uint64_t *allocated, struct cb_error *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return cb_fail_sys(err, errno, "look at the image");
    struct batch *batch = cb_xcalloc(1, sizeof(*batch));
    batch->fd = fd;
    batch->size = (uint64_t)st.st_size;
    struct helper h[2];
    for (int i = 0; i < 2; i++)
        h[i] = (struct helper){batch, CB_ERROR_INIT, cb_xmalloc(CHUNK), cb_hasher_new()};
    struct cb_hasher *sum = cb_hasher_new();
    add_number(sum, batch->size);
    int rc = digest_chunks(h, sum, err);
    cb_hasher_final(sum, out);
    cb_hasher_free(sum);
    for (int i = 0; i < 2; i++) {
        cb_hasher_free(h[i].hasher);
        free(h[i].buf);
    }
    free(batch);
    if (rc == 0 && allocated)
        *allocated = (uint64_t)st.st_blocks * 512;
    return rc < 0 ? cb_wrap(err, "digest of the image") : 0;
}
