#include "layers/source.h"

#include "layers/inflate.h"
#include "layers/store_private.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"

#include <archive.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define CHUNK (256u << 10)
#define PROGRESS_MS 200
/* What a compressed archive, or a layer packed with xz, may hold: beyond any image that a config
 * can ask for (2 TiB of file system), far below what a bomb promises. */
#define UNPACKED_MAX (UINT64_C(2048) << 30)

CB_DEFINE_CLEANUP(archive, struct archive *, archive_read_free);
CB_DEFINE_CLEANUP(inflate, struct inflate *, inflate_free);

/* --- unpacking --- */

enum packing { PACKED_NOT, PACKED_GZIP, PACKED_ZSTD, PACKED_XZ };

static enum packing packing_of(int fd, uint64_t offset, uint64_t size)
{
    unsigned char m[6] = {0};
    size_t n = size < sizeof(m) ? (size_t)size : sizeof(m);
    if (pread(fd, m, n, (off_t)offset) != (ssize_t)n)
        return PACKED_NOT; /* whoever reads it next says why */
    if (m[0] == 0x1f && m[1] == 0x8b)
        return PACKED_GZIP;
    if (memcmp(m, "\x28\xb5\x2f\xfd", 4) == 0)
        return PACKED_ZSTD;
    if ((m[0] & 0xf0) == 0x50 && memcmp(m + 1, "\x2a\x4d\x18", 3) == 0)
        return PACKED_ZSTD; /* begins with a skippable frame */
    return memcmp(m,
                  "\xfd"
                  "7zXZ\0",
                  6) == 0
               ? PACKED_XZ
               : PACKED_NOT;
}

/* Where unpacked bytes go. */
struct sink {
    int (*add)(void *arg, const void *p, size_t n, struct cb_error *err);
    void *arg;
    uint64_t bytes;
};

static int sink_add(struct sink *to, const void *p, size_t n, struct cb_error *err)
{
    if (n > UNPACKED_MAX - to->bytes)
        return cb_fail(err, CB_E_LIMIT, "more than 2 TiB when unpacked");
    to->bytes += n;
    return to->add(to->arg, p, n, err);
}

struct piece {
    int fd;
    uint64_t at, left;
    char *buf;
};

static la_ssize_t on_read(struct archive *a, void *arg, const void **buffer)
{
    struct piece *p = arg;
    size_t want = p->left < CHUNK ? (size_t)p->left : CHUNK;
    ssize_t n;
    do {
        n = pread(p->fd, p->buf, want, (off_t)p->at);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        archive_set_error(a, errno, "read failed: %s", strerror(errno));
    if (n > 0) {
        p->at += (uint64_t)n;
        p->left -= (uint64_t)n;
    }
    *buffer = p->buf;
    return n;
}

/* libarchive holds the decoder to 1 GiB of memory, of which xz takes what the file's dictionary
 * needs (64 MiB at most with xz's own presets). */
static int unpack_xz(int fd, uint64_t offset, uint64_t size, struct sink *to, struct cb_error *err)
{
    CB_AUTO_FREE char *in = cb_xmalloc(CHUNK);
    CB_AUTO_FREE char *out = cb_xmalloc(CHUNK);
    struct piece p = {fd, offset, size, in};
    struct archive_entry *e;
    CB_AUTO(archive) a = archive_read_new();
    if (!a || archive_read_support_filter_xz(a) != ARCHIVE_OK ||
        archive_read_support_format_raw(a) != ARCHIVE_OK ||
        archive_read_open(a, &p, NULL, on_read, NULL) != ARCHIVE_OK ||
        archive_read_next_header(a, &e) != ARCHIVE_OK)
        return cb_fail(err, CB_E_CORRUPT, "xz: %s", a ? archive_error_string(a) : "no memory");
    for (;;) {
        la_ssize_t n = archive_read_data(a, out, CHUNK);
        if (n < 0)
            return cb_fail(err, CB_E_CORRUPT, "xz: %s", archive_error_string(a));
        if (n == 0)
            return 0;
        int rc = sink_add(to, out, (size_t)n, err);
        if (rc < 0)
            return rc;
    }
}

/* A whole file of gzip or zstd. */
static int unpack_whole(int fd, uint64_t size, struct sink *to, struct cb_error *err)
{
    CB_AUTO(inflate) z = NULL;
    int rc = inflate_start(fd, size, UNPACKED_MAX, &z, err);
    const void *data;
    size_t len;
    while (rc >= 0 && (rc = inflate_next(z, &data, &len, err)) > 0)
        rc = sink_add(to, data, len, err);
    return rc;
}

static int add_to_fd(void *arg, const void *p, size_t n, struct cb_error *err)
{
    return cb_write_all(*(int *)arg, p, n, err);
}

/* Replaces the archive's fd by one of a temporary file with what is inside. */
static int unpack_archive(struct store *s, struct source *src, uint64_t *size, enum packing how,
                          struct cb_error *err)
{
    CB_AUTO_FREE char *rel = NULL;
    CB_AUTO_FD fd = store_tmp_open(s, "archive", &rel, err);
    if (fd < 0)
        return fd;
    (void)unlinkat(s->root, rel, 0);
    int raw = fd;
    struct sink to = {.add = add_to_fd, .arg = &raw};
    int rc = how == PACKED_XZ ? unpack_xz(src->fd, 0, *size, &to, err)
                              : unpack_whole(src->fd, *size, &to, err);
    if (rc < 0)
        return rc;
    cb_close(src->fd);
    src->fd = cb_take_fd(&fd);
    src->unpacked = true;
    *size = to.bytes;
    return 0;
}

/* --- open, find --- */

static int open_archive(struct store *s, struct source *src, uint64_t size, struct cb_error *err)
{
    enum packing how = packing_of(src->fd, 0, size);
    int rc = how == PACKED_NOT ? 0 : unpack_archive(s, src, &size, how, err);
    if (rc == 0)
        rc = tar_index_read(src->fd, size, &src->tar, err);
    return rc < 0 ? cb_wrap(err, "%s", src->path) : 0;
}

int source_open(struct store *s, const char *path, struct source *out, struct cb_error *err)
{
    struct source src = {.path = cb_xstrdup(path)};
    struct stat st;
    /* nonblock: a fifo of that name must not keep us waiting */
    src.fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    int rc = 0;
    if (src.fd < 0 && (errno == ENOENT || errno == ENOTDIR)) {
        cb_fail(err, CB_E_NOTFOUND, "there is no %s", path);
        rc = cb_hint(err, "A relative path is taken from the folder of the config file.");
    } else if (src.fd < 0 || fstat(src.fd, &st) < 0) {
        rc = cb_fail_sys(err, errno, "open %s", path);
    } else if (S_ISREG(st.st_mode)) {
        rc = open_archive(s, &src, (uint64_t)st.st_size, err);
    } else if (!S_ISDIR(st.st_mode)) {
        rc = cb_fail(err, CB_E_CONFIG, "%s is neither a folder nor a file", path);
    }
    if (rc < 0) {
        source_close(&src);
        return rc;
    }
    *out = src;
    return 0;
}

void source_close(struct source *src)
{
    if (!src->path)
        return;
    cb_close(src->fd);
    tar_index_free(src->tar);
    free(src->path);
    *src = (struct source){.fd = -1};
}

static int open_below(int dir, const char *name)
{
    struct open_how how = {.flags = O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    long fd = -1;
    for (int tries = 0; tries < 16 && fd < 0; tries++) { /* EAGAIN: a rename raced with ".." */
        fd = syscall(SYS_openat2, dir, name, &how, sizeof(how));
        if (fd < 0 && errno != EAGAIN && errno != EINTR)
            break;
    }
    return (int)fd;
}

int source_find(const struct source *src, const char *name, struct source_file *out,
                struct cb_error *err)
{
    struct source_file f = {.fd = -1};
    if (src->tar) {
        int rc = tar_index_find(src->tar, name, &f.offset, &f.size, err);
        if (rc < 0)
            return cb_wrap(err, "%s", src->path);
        f.fd = fcntl(src->fd, F_DUPFD_CLOEXEC, 0);
        if (f.fd < 0)
            return cb_fail_sys(err, errno, "%s", src->path);
        *out = f;
        return 0;
    }
    struct stat st;
    CB_AUTO_FD fd = open_below(src->fd, name);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return cb_fail(err, CB_E_NOTFOUND, "there is no %s in %s", name, src->path);
    if (fd < 0 && (errno == EXDEV || errno == ELOOP)) {
        cb_fail(err, CB_E_UNTRUSTED, "%s in %s is a link that leads out of the folder", name,
                src->path);
        return cb_hint(err, "Copy the layout with its blobs in it (skopeo copy, cp -L).");
    }
    if (fd < 0 || fstat(fd, &st) < 0)
        return cb_fail_sys(err, errno, "open %s in %s", name, src->path);
    if (!S_ISREG(st.st_mode))
        return cb_fail(err, CB_E_CORRUPT, "%s in %s is not a file", name, src->path);
    *out = (struct source_file){cb_take_fd(&fd), 0, (uint64_t)st.st_size};
    return 0;
}

void source_file_close(struct source_file *f)
{
    cb_close(f->fd);
    f->fd = -1;
}

/* --- small files --- */

static int read_small(const struct source *src, const char *name, const struct source_file *f,
                      struct cb_buf *out, struct cb_error *err)
{
    if (f->size > CB_JSON_MAX) {
        char size[32];
        cb_human_bytes(f->size, size, sizeof(size));
        return cb_fail(err, CB_E_LIMIT, "%s in %s has %s; at most 4 MiB are accepted", name,
                       src->path, size);
    }
    CB_AUTO_FREE char *text = cb_xmalloc((size_t)f->size + 1);
    int rc = cb_pread_all(f->fd, text, (size_t)f->size, (off_t)f->offset, err);
    if (rc < 0)
        return cb_wrap(err, "%s in %s", name, src->path);
    cb_buf_release(out);
    cb_buf_init(out, CB_JSON_MAX);
    return cb_buf_add(out, text, (size_t)f->size);
}

int source_read(const struct source *src, const char *name, struct cb_buf *out,
                struct cb_error *err)
{
    struct source_file f;
    int rc = source_find(src, name, &f, err);
    if (rc < 0)
        return rc;
    rc = read_small(src, name, &f, out, err);
    source_file_close(&f);
    return rc;
}

int source_read_blob(struct store *s, const struct source *src, const char *name,
                     const struct cb_digest *digest, uint64_t size, struct cb_buf *out,
                     struct cb_error *err)
{
    struct cb_digest got;
    int rc = source_read(src, name, out, err);
    if (rc < 0)
        return rc;
    if (out->len != size)
        return cb_fail(err, CB_E_CORRUPT, "%s in %s has %zu bytes where %llu should be", name,
                       src->path, out->len, (unsigned long long)size);
    cb_sha256(out->data ? out->data : "", out->len, &got);
    if (!cb_digest_eq(&got, digest))
        return cb_fail(err, CB_E_CORRUPT, "%s in %s is damaged: its digest is another one", name,
                       src->path);
    return store_blob_put(s, out->data ? out->data : "", out->len, NULL, err);
}

/* --- blobs --- */

int source_sniff(const struct source_file *f, const char **type, struct cb_error *err)
{
    static const char *const types[] = {[PACKED_NOT] = OCI_LAYER_TAR,
                                        [PACKED_GZIP] = OCI_LAYER_GZIP,
                                        [PACKED_ZSTD] = OCI_LAYER_ZSTD,
                                        [PACKED_XZ] = "xz"};
    char first[1];
    int rc = f->size ? cb_pread_all(f->fd, first, 1, (off_t)f->offset, err) : 0;
    *type = types[packing_of(f->fd, f->offset, f->size)];
    return rc;
}

/* Calls @add with all bytes of @f. */
static int each_chunk(const struct source_file *f,
                      int (*add)(void *arg, const void *p, size_t n, struct cb_error *err),
                      void *arg, struct cb_error *err)
{
    CB_AUTO_FREE char *buf = cb_xmalloc(CHUNK);
    for (uint64_t at = 0; at < f->size;) {
        size_t n = f->size - at < CHUNK ? (size_t)(f->size - at) : CHUNK;
        int rc = cb_pread_all(f->fd, buf, n, (off_t)(f->offset + at), err);
        if (rc >= 0)
            rc = add(arg, buf, n, err);
        if (rc < 0)
            return rc;
        at += n;
    }
    return 0;
}

static int add_to_hash(void *arg, const void *p, size_t n, struct cb_error *err)
{
    (void)err;
    cb_hasher_update(arg, p, n);
    return 0;
}

int source_digest(const struct source_file *f, struct cb_digest *out, struct cb_error *err)
{
    struct cb_hasher *h = cb_hasher_new();
    int rc = each_chunk(f, add_to_hash, h, err);
    if (rc == 0)
        cb_hasher_final(h, out);
    cb_hasher_free(h);
    return rc;
}

struct import {
    struct blob_writer *w;
    struct source_progress *sp;
};

static int add_to_blob(void *arg, const void *p, size_t n, struct cb_error *err)
{
    struct import *im = arg;
    struct source_progress *sp = im->sp;
    int rc = blob_writer_add(im->w, p, n, err);
    if (rc < 0 || !sp)
        return rc;
    sp->done += n;
    int64_t now = cb_monotonic_ms();
    if (sp->p && sp->p->bytes && (now - sp->shown_ms >= PROGRESS_MS || sp->done == sp->total)) {
        sp->shown_ms = now;
        sp->p->bytes(sp->p->arg, sp->done, sp->total, "bytes");
    }
    return 0;
}

static void drop_import(struct blob_writer *w)
{
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    (void)blob_writer_restart(w, &ignored); /* no download should go on from what was read here */
    blob_writer_abort(w);
}

/* One pass that hashes what it writes: what the file becomes meanwhile is of no importance. (A
 * reflink would save the write and not the read, which the digest needs.) */
static int begin_import(struct store *s, const struct cb_digest *digest, uint64_t max,
                        struct blob_writer **w, struct cb_error *err)
{
    int rc = store_blob_begin(s, digest, max, w, err);
    if (rc == 0 && blob_writer_offset(*w) > 0) /* of a download: reading again costs less than */
        rc = blob_writer_restart(*w, err);     /* to find out where it ended */
    if (rc < 0 && *w) {
        blob_writer_abort(*w);
        *w = NULL;
    }
    return rc;
}

int source_import(struct store *s, const struct source_file *f, const struct cb_digest *digest,
                  struct source_progress *sp, struct cb_error *err)
{
    struct import im = {.sp = sp};
    int rc = begin_import(s, digest, f->size, &im.w, err);
    if (rc < 0)
        return rc;
    rc = each_chunk(f, add_to_blob, &im, err);
    if (rc == 0)
        return blob_writer_commit(im.w, NULL, NULL, err);
    drop_import(im.w);
    return rc;
}

int source_import_xz(struct store *s, const struct source_file *f, const struct cb_digest *digest,
                     uint64_t *size, struct cb_error *err)
{
    struct import im = {0};
    CB_AUTO_ERROR none = CB_ERROR_INIT;
    CB_AUTO_FD there = store_blob_open(s, digest, size, &none);
    if (there >= 0)
        return 0;
    int rc = begin_import(s, digest, UNPACKED_MAX, &im.w, err);
    if (rc < 0)
        return rc;
    struct sink to = {.add = add_to_blob, .arg = &im};
    rc = unpack_xz(f->fd, f->offset, f->size, &to, err);
    if (rc == 0)
        return blob_writer_commit(im.w, NULL, size, err);
    drop_import(im.w);
    return rc;
}

/* --- a manifest for what has none --- */

int source_put_manifest(struct store *s, const struct cb_digest *config, uint64_t config_size,
                        const struct layer_blob *layers, size_t n, struct cb_digest *out,
                        struct cb_error *err)
{
    char text[CB_DIGEST_LEN + 1];
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        cb_digest_text(&layers[i].digest, text);
        (void)json_array_append_new(list,
                                    json_pack("{s:s, s:s, s:I}", "mediaType", layers[i].media_type,
                                              "digest", text, "size", (json_int_t)layers[i].size));
    }
    cb_digest_text(config, text);
    json_auto_t *m = json_pack("{s:i, s:s, s:{s:s, s:s, s:I}, s:o}", "schemaVersion", 2,
                               "mediaType", OCI_MANIFEST, "config", "mediaType", OCI_CONFIG,
                               "digest", text, "size", (json_int_t)config_size, "layers", list);
    char *dump = m ? json_dumps(m, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    if (!dump)
        return cb_fail(err, CB_E_BUG, "a manifest cannot be written");
    int rc = store_blob_put(s, dump, strlen(dump), out, err);
    free(dump);
    return rc;
}
