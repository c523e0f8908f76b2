#include "layers/inflate.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <errno.h>
#include <isa-l/igzip_lib.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#define SLOTS 8u
#define SLOT_SIZE ((size_t)512 << 10)
#define INPUT_SIZE ((size_t)256 << 10)
/* What refill() waits for: no header that is looked at before it is decoded is longer. */
#define INPUT_LEAST ((size_t)64)
/* zstd: the window that a frame may ask for; 27 is what the format's own tools accept by default.
 */
#define WINDOW_LOG_MAX 27
/* Output that no honest stream gives for its input: deflate ends at 1032 to 1. zstd makes 32768
 * bytes of one, for a file of zeros too, so the ratio says nothing below the free amount. */
#define RATIO_MAX 2048u
#define FREE_PART 64u /* of the most that there may be: 16 GiB of a layer's 1 TiB */

struct slot {
    unsigned char *data;
    size_t len;
};

struct inflate {
    int fd;
    uint64_t size, max_out;
    inflate_wait *wait; /* NULL: the blob is whole */
    void *wait_arg;

    /* Only the decompressing thread: */
    uint64_t have; /* what can be read of the blob */
    unsigned char *in;
    size_t in_pos, in_len; /* what of @in is not used yet */
    uint64_t in_off;       /* next byte of the blob to read */
    uint64_t out_total;
    size_t fill; /* bytes in the slot being filled */

    /* Only the caller: */
    bool holding; /* the slot at @consumed is out with the caller */

    _Atomic uint64_t progress;

    pthread_mutex_t lock; /* the rest */
    pthread_cond_t changed;
    struct slot slots[SLOTS];
    uint64_t produced, hashed, consumed; /* slots, counted from the start */
    bool done;                           /* nothing more will be produced */
    bool hash_done;
    bool stop; /* the caller lost interest */
    struct cb_error error;
    struct cb_digest digest;
    uint64_t total;

    pthread_t producer, hasher;
    bool producer_runs, hasher_runs;
};

/* More input: keeps what is unused. Returns 1, 0 at the blob's end, or an error. */
static int refill(struct inflate *z, struct cb_error *err)
{
    if (z->in_pos > 0 && z->in_len > 0)
        memmove(z->in, z->in + z->in_pos, z->in_len);
    z->in_pos = 0;
    while (z->in_len < INPUT_SIZE && z->in_off < z->size) {
        if (z->in_off == z->have) {
            if (z->in_len >= INPUT_LEAST)
                break; /* work on that rather than wait */
            int64_t have = z->wait(z->wait_arg, z->in_off + 1, err);
            if (have < 0)
                return (int)have;
            z->have = (uint64_t)have < z->size ? (uint64_t)have : z->size;
        }
        size_t want = INPUT_SIZE - z->in_len;
        if (want > z->have - z->in_off)
            want = (size_t)(z->have - z->in_off);
        ssize_t n = pread(z->fd, z->in + z->in_len, want, (off_t)z->in_off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return cb_fail_sys(err, errno, "read the blob");
        if (n == 0)
            return cb_fail(err, CB_E_CORRUPT, "the blob ends after %llu of %llu bytes",
                           (unsigned long long)z->in_off, (unsigned long long)z->size);
        z->in_len += (size_t)n;
        z->in_off += (uint64_t)n;
        atomic_store_explicit(&z->progress, z->in_off, memory_order_relaxed);
    }
    return z->in_len > 0;
}

/* Room in the slot being filled; waits for the readers. 0 when the caller lost interest. */
static size_t room(struct inflate *z, unsigned char **p)
{
    if (z->fill == 0) {
        bool stop;
        pthread_mutex_lock(&z->lock);
        while (!z->stop && (z->produced - z->consumed >= SLOTS || z->produced - z->hashed >= SLOTS))
            pthread_cond_wait(&z->changed, &z->lock);
        stop = z->stop;
        pthread_mutex_unlock(&z->lock);
        if (stop)
            return 0;
    }
    *p = z->slots[z->produced % SLOTS].data + z->fill;
    return SLOT_SIZE - z->fill;
}

static void publish(struct inflate *z)
{
    if (z->fill == 0)
        return;
    pthread_mutex_lock(&z->lock);
    z->slots[z->produced % SLOTS].len = z->fill;
    z->produced++;
    pthread_cond_broadcast(&z->changed);
    pthread_mutex_unlock(&z->lock);
    z->fill = 0;
}

/* @n bytes were written into the room. */
static int filled(struct inflate *z, size_t n, struct cb_error *err)
{
    z->fill += n;
    z->out_total += n;
    if (z->out_total > z->max_out)
        return cb_fail(err, CB_E_LIMIT, "the layer holds more than %llu bytes",
                       (unsigned long long)z->max_out);
    if (z->out_total > z->max_out / FREE_PART && z->out_total / RATIO_MAX > z->size)
        return cb_fail(err, CB_E_LIMIT, "%llu bytes out of a blob of %llu: refused as a bomb",
                       (unsigned long long)z->out_total, (unsigned long long)z->size);
    if (z->fill == SLOT_SIZE)
        publish(z);
    return 0;
}

static int copy_plain(struct inflate *z, struct cb_error *err)
{
    int rc;
    while ((rc = refill(z, err)) > 0) {
        while (z->in_len > 0) {
            unsigned char *p;
            size_t n = room(z, &p);
            if (n == 0)
                return 0;
            if (n > z->in_len)
                n = z->in_len;
            memcpy(p, z->in + z->in_pos, n);
            z->in_pos += n;
            z->in_len -= n;
            if (filled(z, n, err) < 0)
                return -(int)err->code;
        }
    }
    return rc;
}

static const char *isal_words(int rc)
{
    switch (rc) {
    case ISAL_INVALID_BLOCK: return "invalid block";
    case ISAL_INVALID_SYMBOL: return "invalid symbol";
    case ISAL_INVALID_LOOKBACK: return "invalid distance";
    case ISAL_INVALID_WRAPPER: return "invalid header";
    case ISAL_UNSUPPORTED_METHOD: return "unknown method";
    case ISAL_INCORRECT_CHECKSUM: return "wrong checksum";
    default: return "invalid data";
    }
}

/* One gzip member. */
static int gzip_member(struct inflate *z, struct inflate_state *s, struct cb_error *err)
{
    while (s->block_state != ISAL_BLOCK_FINISH) {
        if (z->in_len == 0) {
            int rc = refill(z, err);
            if (rc < 0)
                return rc;
        }
        unsigned char *p;
        size_t n = room(z, &p);
        if (n == 0)
            return 0;
        s->next_in = z->in + z->in_pos;
        s->avail_in = (uint32_t)z->in_len;
        s->next_out = p;
        s->avail_out = (uint32_t)n;
        int rc = isal_inflate(s);
        size_t used = z->in_len - s->avail_in, made = n - s->avail_out;
        z->in_pos += used;
        z->in_len -= used;
        if (rc < 0)
            return cb_fail(err, CB_E_CORRUPT, "gzip: %s near byte %llu", isal_words(rc),
                           (unsigned long long)(z->in_off - z->in_len));
        if (made > 0 && filled(z, made, err) < 0)
            return -(int)err->code;
        if (used == 0 && made == 0 && z->in_off == z->size && s->block_state != ISAL_BLOCK_FINISH)
            return cb_fail(err, CB_E_CORRUPT, "gzip: the data ends in the middle");
    }
    return 0;
}

/* After a member: 1 when another one follows, 0 when only zero padding does. */
static int gzip_more(struct inflate *z, struct cb_error *err)
{
    while (z->in_len < 2 && z->in_off < z->size) {
        int rc = refill(z, err);
        if (rc < 0)
            return rc;
    }
    if (z->in_len >= 2 && z->in[z->in_pos] == 0x1f && z->in[z->in_pos + 1] == 0x8b)
        return 1;
    do {
        for (size_t i = 0; i < z->in_len; i++)
            if (z->in[z->in_pos + i] != 0)
                return cb_fail(err, CB_E_CORRUPT, "gzip: data that is not gzip follows the end");
        z->in_len = 0;
        int rc = refill(z, err);
        if (rc < 0)
            return rc;
    } while (z->in_len > 0);
    return 0;
}

static int copy_gzip(struct inflate *z, struct cb_error *err)
{
    CB_AUTO_FREE struct inflate_state *s = cb_xmalloc(sizeof(*s));
    isal_inflate_init(s);
    for (;;) {
        s->crc_flag = ISAL_GZIP;
        int rc = gzip_member(z, s, err);
        if (rc < 0)
            return rc;
        if (s->block_state != ISAL_BLOCK_FINISH)
            return 0; /* stopped */
        rc = gzip_more(z, err);
        if (rc <= 0)
            return rc;
        isal_inflate_reset(s);
    }
}

CB_DEFINE_CLEANUP(zstd, ZSTD_DStream *, ZSTD_freeDStream);

static int copy_zstd(struct inflate *z, struct cb_error *err)
{
    CB_AUTO(zstd) s = ZSTD_createDStream();
    if (!s || ZSTD_isError(ZSTD_DCtx_setParameter(s, ZSTD_d_windowLogMax, WINDOW_LOG_MAX)))
        return cb_fail(err, CB_E_BUG, "zstd cannot be set up");
    size_t left = 0;
    for (;;) {
        if (z->in_len == 0) {
            int rc = refill(z, err);
            if (rc < 0)
                return rc;
        }
        unsigned char *p;
        size_t n = room(z, &p);
        if (n == 0)
            return 0;
        ZSTD_inBuffer in = {z->in + z->in_pos, z->in_len, 0};
        ZSTD_outBuffer out = {p, n, 0};
        if (in.size > 0 || left > 0)
            left = ZSTD_decompressStream(s, &out, &in);
        if (ZSTD_isError(left))
            return cb_fail(err, CB_E_CORRUPT, "zstd: %s near byte %llu", ZSTD_getErrorName(left),
                           (unsigned long long)(z->in_off - z->in_len + in.pos));
        z->in_pos += in.pos;
        z->in_len -= in.pos;
        if (out.pos > 0 && filled(z, out.pos, err) < 0)
            return -(int)err->code;
        if (z->in_len > 0 || z->in_off < z->size || out.pos == n)
            continue;
        if (left == 0)
            return 0;
        if (out.pos == 0 && in.pos == 0)
            return cb_fail(err, CB_E_CORRUPT, "zstd: the data ends in the middle");
    }
}

static int decompress(struct inflate *z, struct cb_error *err)
{
    int rc = refill(z, err);
    if (rc <= 0)
        return rc;
    const unsigned char *m = z->in;
    if (z->in_len >= 2 && m[0] == 0x1f && m[1] == 0x8b)
        return copy_gzip(z, err);
    if (z->in_len >= 4 && m[0] == 0x28 && m[1] == 0xb5 && m[2] == 0x2f && m[3] == 0xfd)
        return copy_zstd(z, err);
    if (z->in_len >= 4 && (m[0] & 0xf0) == 0x50 && m[1] == 0x2a && m[2] == 0x4d && m[3] == 0x18)
        return copy_zstd(z, err);
    if (z->in_len >= 6 && memcmp(m, "\3757zXZ", 6) == 0)
        return cb_fail(err, CB_E_CORRUPT,
                       "the layer is compressed with xz, which images may not be");
    if (z->in_len >= 4 && memcmp(m, "BZh", 3) == 0 && m[3] >= '1' && m[3] <= '9')
        return cb_fail(err, CB_E_CORRUPT,
                       "the layer is compressed with bzip2, which images may not be");
    return copy_plain(z, err);
}

static void *produce(void *arg)
{
    struct inflate *z = arg;
    struct cb_error err = CB_ERROR_INIT;
    if (decompress(z, &err) >= 0)
        publish(z);
    pthread_mutex_lock(&z->lock);
    if (err.code != CB_OK)
        cb_error_move(&z->error, &err);
    z->total = z->out_total;
    z->done = true;
    pthread_cond_broadcast(&z->changed);
    pthread_mutex_unlock(&z->lock);
    return NULL;
}

static void *hash(void *arg)
{
    struct inflate *z = arg;
    struct cb_hasher *h = cb_hasher_new();
    pthread_mutex_lock(&z->lock);
    for (;;) {
        while (!z->stop && !z->done && z->hashed == z->produced)
            pthread_cond_wait(&z->changed, &z->lock);
        if (z->stop || z->hashed == z->produced)
            break;
        const struct slot *s = &z->slots[z->hashed % SLOTS];
        pthread_mutex_unlock(&z->lock);
        cb_hasher_update(h, s->data, s->len);
        pthread_mutex_lock(&z->lock);
        z->hashed++;
        pthread_cond_broadcast(&z->changed);
    }
    cb_hasher_final(h, &z->digest);
    z->hash_done = true;
    pthread_cond_broadcast(&z->changed);
    pthread_mutex_unlock(&z->lock);
    cb_hasher_free(h);
    return NULL;
}

int inflate_start(int fd, uint64_t size, uint64_t max_out, struct inflate **out,
                  struct cb_error *err)
{
    return inflate_start_growing(fd, size, max_out, NULL, NULL, out, err);
}

int inflate_start_growing(int fd, uint64_t size, uint64_t max_out, inflate_wait *wait, void *arg,
                          struct inflate **out, struct cb_error *err)
{
    struct inflate *z = cb_xcalloc(1, sizeof(*z));
    z->fd = fd;
    z->size = size;
    z->wait = wait;
    z->wait_arg = arg;
    z->have = wait ? 0 : size;
    z->max_out = max_out;
    z->in = cb_xmalloc(INPUT_SIZE);
    for (unsigned i = 0; i < SLOTS; i++)
        z->slots[i].data = cb_xmalloc(SLOT_SIZE);
    pthread_mutex_init(&z->lock, NULL);
    pthread_cond_init(&z->changed, NULL);

    sigset_t all, before; /* signals belong to the main thread */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&z->producer, NULL, produce, z);
    z->producer_runs = rc == 0;
    if (rc == 0) {
        rc = pthread_create(&z->hasher, NULL, hash, z);
        z->hasher_runs = rc == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        inflate_free(z);
        return cb_fail_sys(err, rc, "start a thread");
    }
    *out = z;
    return 0;
}

int inflate_next(struct inflate *z, const void **data, size_t *len, struct cb_error *err)
{
    int rc = 0;
    pthread_mutex_lock(&z->lock);
    if (z->holding) {
        z->holding = false;
        z->consumed++;
        pthread_cond_broadcast(&z->changed);
    }
    while (!z->done && z->consumed == z->produced)
        pthread_cond_wait(&z->changed, &z->lock);
    if (z->consumed < z->produced) {
        *data = z->slots[z->consumed % SLOTS].data;
        *len = z->slots[z->consumed % SLOTS].len;
        z->holding = true;
        rc = 1;
    } else if (z->error.code != CB_OK) {
        rc = cb_error_move(err, &z->error);
    }
    pthread_mutex_unlock(&z->lock);
    return rc;
}

uint64_t inflate_consumed(const struct inflate *z)
{
    return atomic_load_explicit(&z->progress, memory_order_relaxed);
}

int inflate_finish(struct inflate *z, struct cb_digest *diff_id, uint64_t *bytes,
                   struct cb_error *err)
{
    const void *p;
    size_t n;
    int rc;
    while ((rc = inflate_next(z, &p, &n, err)) > 0)
        ;
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&z->lock);
    while (!z->hash_done)
        pthread_cond_wait(&z->changed, &z->lock);
    *diff_id = z->digest;
    *bytes = z->total;
    pthread_mutex_unlock(&z->lock);
    return 0;
}

void inflate_free(struct inflate *z)
{
    if (!z)
        return;
    pthread_mutex_lock(&z->lock);
    z->stop = true;
    pthread_cond_broadcast(&z->changed);
    pthread_mutex_unlock(&z->lock);
    if (z->producer_runs)
        pthread_join(z->producer, NULL);
    if (z->hasher_runs)
        pthread_join(z->hasher, NULL);
    pthread_cond_destroy(&z->changed);
    pthread_mutex_destroy(&z->lock);
    for (unsigned i = 0; i < SLOTS; i++)
        free(z->slots[i].data);
    free(z->in);
    cb_error_clear(&z->error);
    free(z);
}
