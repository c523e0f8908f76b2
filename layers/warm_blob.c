#include "layers/warm_blob.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <zstd.h>

enum {
    LEVEL = 1, /* memory: a higher one gains 4 % and takes twice as long */
    STEP = 1 << 20,
    HEAD_MAX = WARM_HEAD_FIXED + WARM_DISKS_MAX * WARM_HEAD_DISK,
    HOLE = 64 << 10, /* zeros of this size and place are left out of a disk */
};
#define PART_MAX (UINT64_C(1) << 40)

CB_DEFINE_CLEANUP(cctx, ZSTD_CCtx *, ZSTD_freeCCtx);
CB_DEFINE_CLEANUP(dctx, ZSTD_DCtx *, ZSTD_freeDCtx);

static void put64(uint8_t *p, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t get64(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 0; i < 8; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

/* -- writing -- */

struct packer {
    ZSTD_CCtx *z;
    struct blob_writer *w;
    uint8_t *out;
};

static int pack(struct packer *p, const void *data, size_t n, ZSTD_EndDirective how,
                struct cb_error *err)
{
    ZSTD_inBuffer in = {data, n, 0};
    size_t left;
    do {
        ZSTD_outBuffer out = {p->out, STEP, 0};
        left = ZSTD_compressStream2(p->z, &out, &in, how);
        if (ZSTD_isError(left))
            return cb_fail(err, CB_E_BUG, "compress: %s", ZSTD_getErrorName(left));
        int rc = out.pos ? blob_writer_add(p->w, p->out, out.pos, err) : 0;
        if (rc < 0)
            return rc;
    } while (how == ZSTD_e_end ? left != 0 : in.pos < in.size);
    return 0;
}

static int pack_file(struct packer *p, int fd, uint64_t size, uint8_t *buf, struct cb_error *err)
{
    int rc = 0;
    for (uint64_t at = 0; at < size && rc == 0;) {
        size_t n = size - at < STEP ? (size_t)(size - at) : STEP;
        rc = cb_pread_all(fd, buf, n, (off_t)at, err);
        if (rc == 0)
            rc = pack(p, buf, n, ZSTD_e_continue, err);
        at += n;
    }
    return rc;
}

static int size_of(int fd, uint64_t *size, struct cb_error *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return cb_fail_sys(err, errno, "the saved machine");
    *size = (uint64_t)st.st_size;
    return *size > PART_MAX ? cb_fail(err, CB_E_LIMIT, "the saved machine is too large") : 0;
}

static int pack_all(struct packer *p, const struct cb_digest *image, int state,
                    const struct warm_disk *disks, size_t n_disks, struct cb_error *err)
{
    uint8_t head[HEAD_MAX] = {0};
    uint64_t sizes[1 + WARM_DISKS_MAX];
    CB_AUTO_FREE uint8_t *buf = cb_xmalloc(STEP);
    int rc = size_of(state, &sizes[0], err);
    memcpy(head, WARM_MAGIC, 8);
    memcpy(head + 8, image->b, CB_SHA256_LEN);
    put64(head + 8 + CB_SHA256_LEN, n_disks);
    put64(head + 8 + CB_SHA256_LEN + 8, sizes[0]);
    for (size_t i = 0; i < n_disks && rc == 0; i++) {
        uint8_t *at = head + WARM_HEAD_FIXED + i * WARM_HEAD_DISK;
        rc = size_of(disks[i].fd, &sizes[1 + i], err);
        memcpy(at, disks[i].name, strnlen(disks[i].name, WARM_NAME_MAX));
        put64(at + WARM_NAME_MAX + 1, sizes[1 + i]);
    }
    if (rc == 0)
        rc = pack(p, head, WARM_HEAD_FIXED + n_disks * WARM_HEAD_DISK, ZSTD_e_continue, err);
    if (rc == 0)
        rc = pack_file(p, state, sizes[0], buf, err);
    for (size_t i = 0; i < n_disks && rc == 0; i++)
        rc = pack_file(p, disks[i].fd, sizes[1 + i], buf, err);
    return rc < 0 ? rc : pack(p, NULL, 0, ZSTD_e_end, err);
}

int warm_blob_put(struct store *s, const struct cb_digest *image, int state,
                  const struct warm_disk *disks, size_t n_disks, struct cb_digest *digest,
                  uint64_t *size, struct cb_error *err)
{
    if (n_disks > WARM_DISKS_MAX)
        return cb_fail(err, CB_E_LIMIT, "a saved machine has at most %d disks", WARM_DISKS_MAX);
    CB_AUTO(cctx) z = ZSTD_createCCtx();
    CB_AUTO_FREE uint8_t *out = cb_xmalloc(STEP);
    struct packer p = {.z = z, .out = out};
    if (!z || ZSTD_isError(ZSTD_CCtx_setParameter(z, ZSTD_c_compressionLevel, LEVEL)) ||
        ZSTD_isError(ZSTD_CCtx_setParameter(z, ZSTD_c_checksumFlag, 1)))
        return cb_fail(err, CB_E_BUG, "zstd cannot be set up");
    (void)ZSTD_CCtx_setParameter(z, ZSTD_c_nbWorkers, 2); /* a build of zstd may have no threads */
    int rc = store_blob_begin(s, NULL, PART_MAX, &p.w, err);
    if (rc < 0)
        return rc;
    rc = pack_all(&p, image, state, disks, n_disks, err);
    if (rc == 0)
        return blob_writer_commit(p.w, digest, size, err);
    blob_writer_abort(p.w);
    return rc;
}

/* -- reading -- */

int warm_head_parse(const uint8_t *p, size_t n, struct warm_head *out, struct cb_error *err)
{
    *out = (struct warm_head){0};
    if (n < WARM_HEAD_FIXED)
        return 0;
    uint64_t disks = get64(p + 8 + CB_SHA256_LEN);
    out->state_size = get64(p + 8 + CB_SHA256_LEN + 8);
    if (memcmp(p, WARM_MAGIC, 8) != 0 || disks > WARM_DISKS_MAX || out->state_size > PART_MAX)
        return cb_fail(err, CB_E_CORRUPT, "it is not a saved machine");
    if (n < WARM_HEAD_FIXED + disks * WARM_HEAD_DISK)
        return 0;
    memcpy(out->image.b, p + 8, CB_SHA256_LEN);
    out->n_disks = (size_t)disks;
    for (size_t i = 0; i < out->n_disks; i++) {
        const uint8_t *at = p + WARM_HEAD_FIXED + i * WARM_HEAD_DISK;
        memcpy(out->disks[i].name, at, WARM_NAME_MAX);
        out->disks[i].size = get64(at + WARM_NAME_MAX + 1);
        if (at[WARM_NAME_MAX] || out->disks[i].size > PART_MAX)
            return cb_fail(err, CB_E_CORRUPT, "it is not a saved machine");
    }
    return 1;
}

struct unpacker {
    const struct cb_digest *image;
    int state;
    const struct warm_disk *disks;
    size_t n_disks;
    uint8_t head_bytes[HEAD_MAX];
    size_t head_len; /* of head_bytes; the head may be shorter */
    bool have_head;
    struct warm_head head;
    size_t part; /* 0 the state, then the disks */
    uint64_t at; /* in that part */
};

static bool all_zero(const uint8_t *p, size_t n)
{
    return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

static int check_head(struct unpacker *u, struct cb_error *err)
{
    if (!cb_digest_eq(&u->head.image, u->image))
        return cb_fail(err, CB_E_CONFLICT, "it belongs to another image");
    bool same = u->head.n_disks == u->n_disks;
    for (size_t i = 0; i < u->n_disks && same; i++)
        same = strcmp(u->head.disks[i].name, u->disks[i].name) == 0;
    return same ? 0 : cb_fail(err, CB_E_CONFLICT, "it was saved with other disks");
}

static int write_part(struct unpacker *u, int fd, const uint8_t *p, size_t n, struct cb_error *err)
{
    int rc = 0;
    while (n && rc == 0) {
        size_t step = HOLE - (size_t)(u->at % HOLE);
        if (step > n)
            step = n;
        bool hole = u->part > 0 && step == HOLE && all_zero(p, step);
        rc = hole ? 0 : cb_pwrite_all(fd, p, step, (off_t)u->at, err);
        u->at += step;
        p += step;
        n -= step;
    }
    return rc;
}

/* Bytes behind the head, in order. */
static int take_content(struct unpacker *u, const uint8_t *p, size_t n, struct cb_error *err)
{
    int rc = 0;
    while (rc == 0) {
        if (u->part > u->n_disks)
            return n ? cb_fail(err, CB_E_CORRUPT, "it is longer than it says") : 0;
        uint64_t size = u->part ? u->head.disks[u->part - 1].size : u->head.state_size;
        int fd = u->part ? u->disks[u->part - 1].fd : u->state;
        size_t now = size - u->at < n ? (size_t)(size - u->at) : n;
        rc = write_part(u, fd, p, now, err);
        p += now;
        n -= now;
        if (rc < 0 || u->at < size)
            return rc;
        if (ftruncate(fd, (off_t)size) < 0) /* it may end with a hole */
            return cb_fail_sys(err, errno, "write the saved machine");
        u->part++;
        u->at = 0;
    }
    return rc;
}

static int take(struct unpacker *u, const uint8_t *p, size_t n, struct cb_error *err)
{
    if (u->have_head)
        return take_content(u, p, n, err);
    size_t room = HEAD_MAX - u->head_len, more = n < room ? n : room;
    memcpy(u->head_bytes + u->head_len, p, more);
    size_t before = u->head_len;
    u->head_len += more;
    int rc = warm_head_parse(u->head_bytes, u->head_len, &u->head, err);
    if (rc <= 0)
        return rc;
    u->have_head = true;
    if ((rc = check_head(u, err)) < 0)
        return rc;
    size_t used = WARM_HEAD_FIXED + u->head.n_disks * WARM_HEAD_DISK - before;
    return take_content(u, p + used, n - used, err);
}

/* Decompresses and hashes the whole blob in one pass. What the bytes seem to be matters only when
 * their digest is right; so that one is judged first. */
static int unpack(int fd, uint64_t size, const struct cb_digest *expect, struct unpacker *u,
                  struct cb_error *err)
{
    CB_AUTO_FREE uint8_t *in = cb_xmalloc(STEP);
    CB_AUTO_FREE uint8_t *out = cb_xmalloc(STEP);
    CB_AUTO(dctx) z = ZSTD_createDCtx();
    struct cb_hasher *h = cb_hasher_new();
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    size_t left = 1;
    int bad = z ? 0 : cb_fail(&why, CB_E_BUG, "zstd cannot be set up"), rc = 0;
    for (uint64_t at = 0; at < size && rc == 0;) {
        size_t n = size - at < STEP ? (size_t)(size - at) : STEP;
        if ((rc = cb_pread_all(fd, in, n, (off_t)at, err)) < 0)
            break;
        cb_hasher_update(h, in, n);
        at += n;
        ZSTD_inBuffer zin = {in, n, 0};
        bool more = true; /* a full output buffer may not be the last */
        while (bad == 0 && (zin.pos < zin.size || more)) {
            ZSTD_outBuffer zout = {out, STEP, 0};
            left = ZSTD_decompressStream(z, &zout, &zin);
            more = !ZSTD_isError(left) && left != 0 && zout.pos == STEP;
            bad = ZSTD_isError(left)
                      ? cb_fail(&why, CB_E_CORRUPT, "zstd: %s", ZSTD_getErrorName(left))
                      : take(u, out, zout.pos, &why);
        }
    }
    struct cb_digest got;
    cb_hasher_final(h, &got);
    cb_hasher_free(h);
    if (rc < 0)
        return rc;
    if (!cb_digest_eq(&got, expect))
        return cb_fail(err, CB_E_CORRUPT, "it is damaged");
    if (bad < 0)
        return cb_error_move(err, &why);
    if (left != 0 || !u->have_head || u->part <= u->n_disks)
        return cb_fail(err, CB_E_CORRUPT, "it is cut");
    return 0;
}

int warm_blob_get(struct store *s, const struct cb_digest *digest, const struct cb_digest *image,
                  int state, const struct warm_disk *disks, size_t n_disks, struct cb_error *err)
{
    uint64_t size = 0;
    char name[CB_DIGEST_LEN + 1];
    cb_digest_text(digest, name);
    CB_AUTO_FD fd = store_blob_open(s, digest, &size, err);
    if (fd < 0)
        return cb_wrap(err, "the saved machine %.19s", name);
    struct unpacker u = {.image = image, .state = state, .disks = disks, .n_disks = n_disks};
    int rc = unpack(fd, size, digest, &u, err);
    return rc < 0 ? cb_wrap(err, "the saved machine %.19s", name) : 0;
}
