/* Images as chunks: chunks/HEX.zst is one zstd frame that holds its size and a checksum, named by
 * the SHA-256 of what is in it. images/HEX.chunks is the map of the image HEX.
 *
 * A file a chunk, however small: with 1 MiB chunks the least takes a block, and packing would mean
 * to rewrite packs when some of what is in them goes. What packing saves, a sync for each, is saved
 * by syncing many at once. */
#include "layers/store_private.h"

#include "layers/image.h"
#include "layers/parallel.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <zstd.h>

enum {
    LEVEL = 1,     /* of zstd; 3 takes nearly twice the time and makes a tenth less of them */
    GROUP = 512,   /* chunks that are synced and published together */
    SYNC_EACH = 8, /* up to so many are synced one by one: syncfs() waits for others' files too */
    BLOCK = 4096,
};

#define CHUNK_REL_SIZE (sizeof("chunks/.zst") + CB_HEX_LEN)

/* -- writing -- */

struct put {
    struct store *s;
    int fd; /* the image */
    const struct chunk_map *map;
    const size_t *todo; /* entries of the map whose chunks are not there */
    size_t first;       /* of the group, in todo */
    char *tmp[GROUP];   /* owned: where each was written */
    int tmp_fd[SYNC_EACH];
    bool sync_each;
    unsigned char *in[PARALLEL_MAX], *out[PARALLEL_MAX];
    ZSTD_CCtx *z[PARALLEL_MAX];
    size_t bound;
    _Atomic uint64_t bytes;
};

static int compress_chunk(struct put *p, unsigned worker, const struct chunk *c, size_t *n,
                          struct cb_error *err)
{
    uint32_t len = chunk_length(p->map, c->index);
    int rc = cb_pread_all(p->fd, p->in[worker], len, (off_t)(c->index * p->map->chunk_size), err);
    if (rc < 0)
        return rc;
    struct cb_digest d;
    cb_sha256(p->in[worker], len, &d);
    if (!cb_digest_eq(&d, &c->digest))
        return cb_fail(err, CB_E_CONFLICT, "the image changed while it was stored");
    *n = ZSTD_compress2(p->z[worker], p->out[worker], p->bound, p->in[worker], len);
    if (ZSTD_isError(*n))
        return cb_fail(err, CB_E_BUG, "zstd: %s", ZSTD_getErrorName(*n));
    return 0;
}

static int put_chunk(void *arg, unsigned worker, size_t item, struct cb_error *err)
{
    struct put *p = arg;
    size_t n = 0;
    int rc = compress_chunk(p, worker, &p->map->v[p->todo[p->first + item]], &n, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FD fd = store_tmp_open(p->s, "chunk", &p->tmp[item], err);
    if (fd < 0)
        return fd;
    rc = cb_write_all(fd, p->out[worker], n, err);
    if (rc < 0)
        return cb_wrap(err, "write %s/%s", p->s->dir, p->tmp[item]);
    if (fchmod(fd, 0444) < 0)
        return cb_fail_sys(err, errno, "write %s/%s", p->s->dir, p->tmp[item]);
    (void)sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE);
    p->bytes += n;
    if (p->sync_each)
        p->tmp_fd[item] = cb_take_fd(&fd);
    return 0;
}

static int sync_group(struct put *p, size_t n, struct cb_error *err)
{
    store_step("sync chunks");
    if (!p->sync_each)
        return syncfs(p->s->root) < 0 ? cb_fail_sys(err, errno, "sync %s/chunks", p->s->dir) : 0;
    for (size_t i = 0; i < n; i++)
        if (fdatasync(p->tmp_fd[i]) < 0)
            return cb_fail_sys(err, errno, "sync %s/%s", p->s->dir, p->tmp[i]);
    return 0;
}

static int name_group(struct put *p, size_t n, struct cb_error *err)
{
    for (size_t i = 0; i < n; i++) {
        char rel[CHUNK_REL_SIZE];
        store_chunk_rel(&p->map->v[p->todo[p->first + i]].digest, rel, sizeof(rel));
        store_step(rel);
        if (renameat(p->s->root, p->tmp[i], p->s->root, rel) < 0)
            return cb_fail_sys(err, errno, "publish %s/%s", p->s->dir, rel);
        free(cb_take_ptr(&p->tmp[i]));
    }
    return 0;
}

static int put_group(struct put *p, size_t n, struct cb_error *err)
{
    memset(p->tmp, 0, sizeof(p->tmp));
    for (size_t i = 0; i < SYNC_EACH; i++)
        p->tmp_fd[i] = -1;
    p->sync_each = n <= SYNC_EACH;
    int rc = parallel_run(n, put_chunk, p, err);
    if (rc == 0)
        rc = sync_group(p, n, err);
    if (rc == 0)
        rc = name_group(p, n, err);
    for (size_t i = 0; i < n; i++) {
        if (p->tmp[i])
            (void)unlinkat(p->s->root, p->tmp[i], 0);
        free(p->tmp[i]);
    }
    for (size_t i = 0; i < SYNC_EACH; i++)
        cb_close(p->tmp_fd[i]);
    return rc;
}

static int put_all(struct put *p, size_t n, const struct layers_progress *progress,
                   struct cb_error *err)
{
    unsigned workers = parallel_workers(n < GROUP ? n : GROUP);
    int rc = 0;
    p->bound = ZSTD_compressBound(p->map->chunk_size);
    for (unsigned i = 0; i < workers; i++) {
        p->in[i] = cb_xmalloc(p->map->chunk_size);
        p->out[i] = cb_xmalloc(p->bound);
        p->z[i] = ZSTD_createCCtx();
        if (!p->z[i] ||
            ZSTD_isError(ZSTD_CCtx_setParameter(p->z[i], ZSTD_c_compressionLevel, LEVEL)) ||
            ZSTD_isError(ZSTD_CCtx_setParameter(p->z[i], ZSTD_c_checksumFlag, 1)))
            rc = cb_fail(err, CB_E_SYS, "out of memory");
        if (rc < 0)
            break;
    }
    for (size_t at = 0; at < n && rc == 0; at += GROUP) {
        p->first = at;
        rc = put_group(p, n - at < GROUP ? n - at : GROUP, err);
        if (rc == 0 && progress && progress->bytes)
            progress->bytes(progress->arg, at + GROUP < n ? at + GROUP : n, n, "chunks");
    }
    for (unsigned i = 0; i < workers; i++) {
        free(p->in[i]);
        free(p->out[i]);
        ZSTD_freeCCtx(p->z[i]);
    }
    return rc;
}

/* The entries whose chunks are not there; of equal ones, the first. Owned. */
static size_t *find_missing(struct store *s, const struct chunk_map *map, size_t *n)
{
    size_t *todo = cb_xcalloc(map->n ? map->n : 1, sizeof(*todo));
    struct digest_set seen = {0};
    *n = 0;
    for (size_t i = 0; i < map->n; i++)
        if (digest_set_add(&seen, &map->v[i].digest, 0) && !store_chunk_has(s, &map->v[i].digest))
            todo[(*n)++] = i;
    digest_set_release(&seen);
    return todo;
}

/* The map lies in our folder of tmp/ while its chunks are stored: a garbage collection meanwhile
 * takes them for used, those that were there before and those that are new. Owned path. */
static char *pin_map(struct store *s, const struct cb_buf *doc, const struct cb_digest *image,
                     struct cb_error *err)
{
    char *rel = NULL;
    CB_AUTO_FD fd = store_tmp_open(s, "map", &rel, err);
    if (fd < 0)
        return NULL;
    CB_AUTO_FREE char *dash = cb_xstrndup(rel, (size_t)(strrchr(rel, '-') - rel));
    char *pinned = cb_xasprintf("%s-" STORE_PINNED_MAP, dash);
    int rc = cb_write_all(fd, doc->data, doc->len, err);
    if (rc == 0 && fchmod(fd, 0444) < 0)
        rc = cb_fail_sys(err, errno, "write %s/%s", s->dir, rel);
    store_share(s);
    store_pin(s, PIN_IMAGE, image);
    if (rc == 0 && renameat(s->root, rel, s->root, pinned) < 0)
        rc = cb_fail_sys(err, errno, "write %s/%s", s->dir, rel);
    store_unshare(s);
    if (rc < 0) {
        (void)unlinkat(s->root, rel, 0);
        free(cb_take_ptr(&pinned));
    }
    free(rel);
    return pinned;
}

int store_chunks_put(struct store *s, int fd, const struct chunk_map *map,
                     const struct layers_progress *progress, struct store_chunks *out,
                     struct cb_error *err)
{
    struct cb_digest image;
    chunk_map_digest(map, &image);
    CB_AUTO_FREE char *rel = store_map_rel(&image);
    CB_AUTO_BUF doc = CB_BUF_INIT(STORE_MAP_MAX);
    int rc = chunk_map_dump(map, &doc, err);
    CB_AUTO_FREE char *pinned = rc == 0 ? pin_map(s, &doc, &image, err) : NULL;
    if (!pinned)
        return cb_wrap(err, "store the chunks of the image");
    size_t n = 0;
    struct put *p = cb_xcalloc(1, sizeof(*p));
    CB_AUTO_FREE size_t *todo = find_missing(s, map, &n);
    p->s = s;
    p->fd = fd;
    p->map = map;
    p->todo = todo;
    rc = n ? put_all(p, n, progress, err) : 0;
    if (rc == 0)
        rc = store_sync_dir(s, "chunks", err);
    CB_AUTO_FD map_fd = rc == 0 ? openat(s->root, pinned, O_RDONLY | O_NOFOLLOW | O_CLOEXEC) : -1;
    store_step(rel);
    if (rc == 0 && (map_fd < 0 || fdatasync(map_fd) < 0))
        rc = cb_fail_sys(err, errno, "publish %s/%s", s->dir, rel);
    /* not while somebody collects: it could be missed both here and there */
    store_share(s);
    if (rc == 0 && renameat(s->root, pinned, s->root, rel) < 0)
        rc = cb_fail_sys(err, errno, "publish %s/%s", s->dir, rel);
    store_unshare(s);
    if (rc == 0)
        rc = store_sync_dir(s, "images", err);
    struct store_chunks r = {.added = n, .added_bytes = p->bytes};
    free(p);
    if (rc < 0) {
        (void)unlinkat(s->root, pinned, 0);
        return cb_wrap(err, "store the chunks of the image");
    }
    cb_sha256(doc.data, doc.len, &r.map);
    if (out)
        *out = r;
    return 0;
}

/* -- reading -- */

static bool all_zero(const unsigned char *p, size_t n)
{
    return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

int store_chunk_read(struct store *s, const struct cb_digest *d, uint32_t max, ZSTD_DCtx *z,
                     struct cb_buf *scratch, unsigned char *out, size_t *len, struct cb_error *err)
{
    char rel[CHUNK_REL_SIZE];
    store_chunk_rel(d, rel, sizeof(rel));
    CB_AUTO_FD fd = openat(s->root, rel, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return cb_fail(err, CB_E_NOTFOUND, "%s is not in the store", rel);
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s/%s", s->dir, rel);
    int rc = cb_read_fd(fd, rel, ZSTD_compressBound(max), scratch, err);
    if (rc == -(int)CB_E_LIMIT)
        err->code = CB_E_CORRUPT;
    if (rc < 0)
        return -(int)err->code;
    const char *bytes = scratch->data ? scratch->data : "";
    unsigned long long size = ZSTD_getFrameContentSize(bytes, scratch->len);
    if (size == ZSTD_CONTENTSIZE_UNKNOWN || size == ZSTD_CONTENTSIZE_ERROR || size > max)
        return cb_fail(err, CB_E_CORRUPT, "%s/%s: is not a frame of at most %u bytes", s->dir, rel,
                       max);
    *len = ZSTD_decompressDCtx(z, out, max, bytes, scratch->len);
    if (ZSTD_isError(*len))
        return cb_fail(err, CB_E_CORRUPT, "%s/%s: %s", s->dir, rel, ZSTD_getErrorName(*len));
    struct cb_digest got;
    cb_sha256(out, *len, &got);
    if (!cb_digest_eq(&got, d))
        return cb_fail(err, CB_E_CORRUPT, "%s/%s: its content is not what its name says", s->dir,
                       rel);
    return 0;
}

struct fill {
    struct store *s;
    int fd;
    const struct chunk_map *map;
    unsigned char *out[PARALLEL_MAX];
    struct cb_buf in[PARALLEL_MAX];
    ZSTD_DCtx *z[PARALLEL_MAX];
};

/* Blocks of zeros become holes again. */
static int write_sparse(int fd, const unsigned char *p, size_t n, off_t at, struct cb_error *err)
{
    for (size_t i = 0; i < n;) {
        size_t run = 0;
        while (i + run < n) {
            size_t block = n - i - run < BLOCK ? n - i - run : BLOCK;
            if (all_zero(p + i + run, block))
                break;
            run += block;
        }
        int rc = run ? cb_pwrite_all(fd, p + i, run, at + (off_t)i, err) : 0;
        if (rc < 0)
            return rc;
        i += run ? run : BLOCK;
    }
    return 0;
}

static int fill_chunk(void *arg, unsigned worker, size_t item, struct cb_error *err)
{
    struct fill *f = arg;
    const struct chunk *c = &f->map->v[item];
    size_t len;
    int rc = store_chunk_read(f->s, &c->digest, f->map->chunk_size, f->z[worker], &f->in[worker],
                              f->out[worker], &len, err);
    if (rc < 0)
        return rc;
    /* a map whose chunk size was tampered with, or one that names zeros, is no image's */
    if (len != chunk_length(f->map, c->index) || all_zero(f->out[worker], len))
        return cb_fail(err, CB_E_CORRUPT, "chunk %llu does not fit its map",
                       (unsigned long long)c->index);
    return write_sparse(f->fd, f->out[worker], len, (off_t)(c->index * f->map->chunk_size), err);
}

static int fill_image(struct store *s, const struct chunk_map *map, int fd, struct cb_error *err)
{
    struct fill *f = cb_xcalloc(1, sizeof(*f));
    f->s = s;
    f->fd = fd;
    f->map = map;
    unsigned workers = parallel_workers(map->n);
    int rc = ftruncate(fd, (off_t)map->length) < 0 ? cb_fail_sys(err, errno, "make the image") : 0;
    for (unsigned i = 0; i < workers && rc == 0; i++) {
        f->out[i] = cb_xmalloc(map->chunk_size);
        f->z[i] = ZSTD_createDCtx();
        if (!f->z[i])
            rc = cb_fail(err, CB_E_SYS, "out of memory");
    }
    if (rc == 0)
        rc = parallel_run(map->n, fill_chunk, f, err);
    for (unsigned i = 0; i < workers; i++) {
        free(f->out[i]);
        cb_buf_release(&f->in[i]);
        ZSTD_freeDCtx(f->z[i]);
    }
    free(f);
    return rc;
}

static int restore(struct store *s, const struct cb_digest *image, struct cb_error *err)
{
    CB_AUTO_CHUNK_MAP map = {0};
    CB_AUTO_FREE char *rel = NULL;
    int rc = store_map_get(s, image, &map, err);
    CB_AUTO_FD fd = rc == 0 ? store_tmp_open(s, "image", &rel, err) : -1;
    if (rc == 0)
        rc = fd < 0 ? fd : fill_image(s, &map, fd, err);
    if (rc == 0) {
        CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", s->dir, rel);
        rc = store_image_publish(s, path, image, err);
    }
    if (rc < 0 && fd >= 0)
        (void)unlinkat(s->root, rel, 0);
    if (rc < 0 && rc != -(int)CB_E_NOTFOUND)
        cb_wrap(err, "make the image from its chunks");
    return rc;
}

int store_image_path(struct store *s, const struct cb_digest *digest, char **path,
                     struct cb_error *err)
{
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    int rc = store_image_find(s, digest, path, &why);
    if (rc == -(int)CB_E_NOTFOUND) {
        CB_AUTO_ERROR no_chunks = CB_ERROR_INIT;
        rc = restore(s, digest, &no_chunks);
        if (rc == -(int)CB_E_NOTFOUND) /* a map without all of its chunks says more than none */
            return cb_error_move(err, store_map_has(s, digest) ? &no_chunks : &why);
        if (rc < 0)
            return cb_error_move(err, &no_chunks);
        cb_error_clear(&why);
        rc = store_image_find(s, digest, path, &why);
    }
    if (rc < 0)
        return cb_error_move(err, &why);
    store_touch(s, *path + strlen(s->dir) + 1);
    return 0;
}
