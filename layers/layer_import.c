/* Takes in a layer tar from a guest that nobody trusts. One pass over the bytes: what is parsed is
 * what is hashed and what is compressed, so that a guest that changes the disk meanwhile gains
 * nothing. */
#include "layers/store.h"

#include "layers/tar_read.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"

#include <string.h>
#include <zstd.h>

#define CHUNK (256u << 10)
#define ENTRIES_MAX 4000000u
#define BYTES_MAX                                                                                  \
    (UINT64_C(2048) << 30)          /* the largest root file system that a config may ask for */
#define XATTR_VALUE_MAX (64u << 10) /* Linux XATTR_SIZE_MAX */
#define XATTRS_MAX 256u

CB_DEFINE_CLEANUP(tar_reader, struct tar_reader *, tar_reader_close);
CB_DEFINE_CLEANUP(zstd, ZSTD_CCtx *, ZSTD_freeCCtx);
CB_DEFINE_CLEANUP(hasher, struct cb_hasher *, cb_hasher_free);

struct import {
    int fd;
    uint64_t offset; /* of the tar in fd */
    uint64_t len;
    uint64_t at;       /* bytes taken in */
    uint64_t data_end; /* behind the last byte that is not zero */
    uint64_t entries, bytes;
    struct cb_hasher *hasher;
    ZSTD_CCtx *zstd;
    struct blob_writer *writer;
    char *in, *out; /* CHUNK bytes each */
    struct cb_error *err;
};

static int compress(struct import *im, const char *p, size_t n, ZSTD_EndDirective how)
{
    ZSTD_inBuffer in = {p, n, 0};
    size_t left;
    do {
        ZSTD_outBuffer out = {im->out, CHUNK, 0};
        left = ZSTD_compressStream2(im->zstd, &out, &in, how);
        if (ZSTD_isError(left))
            return cb_fail(im->err, CB_E_BUG, "compress: %s", ZSTD_getErrorName(left));
        int rc = blob_writer_add(im->writer, im->out, out.pos, im->err);
        if (rc < 0)
            return rc;
    } while (how == ZSTD_e_end ? left != 0 : in.pos < in.size);
    return 0;
}

static void note_data_end(struct import *im, size_t n)
{
    while (n > 0 && im->in[n - 1] == 0)
        n--;
    if (n > 0)
        im->data_end = im->at + n;
}

/* The next bytes, hashed and compressed, in im->in. Always a full chunk except the last, so that
 * the same tar gives the same blob. Returns their number, 0 at the end, or a negative code. */
static int64_t take_in(struct import *im)
{
    size_t n = im->len - im->at < CHUNK ? (size_t)(im->len - im->at) : CHUNK;
    if (n == 0)
        return 0;
    int rc = cb_pread_all(im->fd, im->in, n, (off_t)(im->offset + im->at), im->err);
    if (rc < 0)
        return rc;
    note_data_end(im, n);
    cb_hasher_update(im->hasher, im->in, n);
    rc = compress(im, im->in, n, ZSTD_e_continue);
    if (rc < 0)
        return rc;
    im->at += n;
    return (int64_t)n;
}

static int next_piece(void *arg, const void **data, size_t *len, struct cb_error *err)
{
    struct import *im = arg;
    (void)err; /* the same as im->err */
    int64_t n = take_in(im);
    if (n <= 0)
        return (int)n;
    *data = im->in;
    *len = (size_t)n;
    return 1;
}

/* @name for a message: printable, at most 200 bytes. Owned. */
static char *shown(const char *name)
{
    CB_AUTO_BUF b = CB_BUF_INIT(1024);
    for (size_t i = 0; name[i] && i < 200; i++) {
        unsigned char c = (unsigned char)name[i];
        (void)cb_buf_addf(&b, c < 0x20 || c >= 0x7f || c == '\\' ? "\\x%02x" : "%c", c);
    }
    return cb_buf_take(&b);
}

static int refuse(struct import *im, enum cb_code code, const char *name, const char *why)
{
    CB_AUTO_FREE char *safe = shown(name ? name : "");
    return cb_fail(im->err, code, "entry %llu \"%s\": %s", (unsigned long long)im->entries, safe,
                   why);
}

/* A name as our agent writes them: below the root, no detours. Returns NULL when it is fine. */
static const char *name_fault(const char *name, bool folder, enum cb_code *code)
{
    *code = CB_E_CORRUPT;
    if (!name || !name[0])
        return "has no name";
    *code = CB_E_UNTRUSTED;
    if (name[0] == '/')
        return "the name is absolute";
    *code = CB_E_LIMIT;
    if (strlen(name) >= CB_PATH_MAX)
        return "the name is longer than a path may be";
    for (const char *p = name; *p;) {
        size_t n = strcspn(p, "/");
        *code = CB_E_UNTRUSTED;
        if (n == 2 && p[0] == '.' && p[1] == '.')
            return "the name has a .. in it";
        *code = CB_E_LIMIT;
        if (n > CB_NAME_MAX)
            return "a part of the name is longer than 255 bytes";
        *code = CB_E_CORRUPT;
        if (n == 0)
            return "the name has an empty part";
        if (n == 1 && p[0] == '.' && p != name)
            return "the name has a . in it";
        if (p[n] == '/' && p[n + 1] == '\0' && !folder)
            return "the name ends in / but it is not a folder";
        p += p[n] ? n + 1 : n;
    }
    bool root = strcmp(name, ".") == 0 || strcmp(name, "./") == 0;
    return root && !folder ? "the root must be a folder" : NULL;
}

/* Marks that remove: ".wh.NAME" and ".wh..wh..opq" are all that there may be. */
static const char *whiteout_fault(const char *name)
{
    const char *base = strrchr(name, '/');
    base = base ? base + 1 : name;
    if (strncmp(base, ".wh.", 4) != 0 || strcmp(base, ".wh..wh..opq") == 0)
        return NULL;
    const char *victim = base + 4;
    if (!victim[0] || strcmp(victim, ".") == 0 || strcmp(victim, "..") == 0)
        return "a whiteout of nothing";
    return strncmp(victim, ".wh.", 4) == 0 ? "a whiteout of a whiteout" : NULL;
}

static int check_xattrs(struct import *im, struct tar_reader *r, const char *name)
{
    const char *key;
    const void *value;
    size_t size, n = 0;
    while (tar_reader_xattr(r, &key, &value, &size)) {
        if (++n > XATTRS_MAX || size > XATTR_VALUE_MAX || strlen(key) > CB_NAME_MAX)
            return refuse(im, CB_E_LIMIT, name, "has too many or too large extended attributes");
    }
    return 0;
}

static int check_link(struct import *im, const struct tar_entry *e)
{
    enum cb_code code;
    if (e->kind == TAR_HARDLINK) {
        const char *fault = name_fault(e->link, false, &code);
        return fault ? cb_fail(im->err, code, "entry %llu: target of a hard link: %s",
                               (unsigned long long)im->entries, fault)
                     : 0;
    }
    if (e->kind != TAR_SYMLINK)
        return 0;
    if (!e->link[0])
        return refuse(im, CB_E_CORRUPT, e->path, "a symbolic link without a target");
    if (strlen(e->link) >= CB_PATH_MAX)
        return refuse(im, CB_E_LIMIT, e->path, "the target is longer than a path may be");
    return 0;
}

static int check_entry(struct import *im, struct tar_reader *r, const struct tar_entry *e)
{
    enum cb_code code;
    const char *fault = name_fault(e->path, e->kind == TAR_DIR, &code);
    if (!fault) {
        code = CB_E_CORRUPT;
        fault = whiteout_fault(e->path);
    }
    if (fault)
        return refuse(im, code, e->path, fault);
    if (e->size > BYTES_MAX - im->bytes)
        return refuse(im, CB_E_LIMIT, e->path, "the files are larger than any root file system");
    im->bytes += e->size;
    if (e->kind == TAR_CHAR && e->major == 0 && e->minor == 0)
        return refuse(im, CB_E_UNTRUSTED, e->path, "device 0:0 is a mark of overlayfs, not a file");
    int rc = check_link(im, e);
    return rc < 0 ? rc : check_xattrs(im, r, e->path);
}

/* What the reader of tars said, or the disk below it. */
static int wrap_reader(struct import *im, const struct tar_entry *e)
{
    if (!e->path)
        return cb_wrap(im->err, "entry %llu", (unsigned long long)im->entries);
    CB_AUTO_FREE char *safe = shown(e->path);
    return cb_wrap(im->err, "entry %llu \"%s\"", (unsigned long long)im->entries, safe);
}

static int walk(struct import *im, struct tar_reader *r)
{
    struct tar_entry e;
    for (;;) {
        im->entries++;
        int rc = tar_reader_next(r, &e, im->err);
        if (rc < 0)
            return wrap_reader(im, &e);
        if (rc == 0) {
            im->entries--;
            return 0;
        }
        if (im->entries > ENTRIES_MAX)
            return cb_fail(im->err, CB_E_LIMIT, "more than %u entries", ENTRIES_MAX);
        rc = check_entry(im, r, &e);
        if (rc < 0)
            return rc;
    }
}

/* Reads to the end of the bytes, not only of the entries: all of them are what the diff_id covers.
 * There must be an end mark and nothing but zeros behind it, or two readers could see two different
 * layers. */
static int read_tar(struct import *im)
{
    CB_AUTO(tar_reader) r = NULL;
    const struct tar_source source = {next_piece, im};
    int rc = tar_reader_open(&source, &r, im->err);
    if (rc == 0)
        rc = walk(im, r);
    if (rc < 0)
        return rc;
    int64_t n;
    while ((n = take_in(im)) > 0)
        ;
    if (n < 0)
        return (int)n;
    uint64_t end;
    if (!tar_reader_marked(r, &end) || im->data_end > end)
        return cb_fail(im->err, CB_E_CORRUPT,
                       "entry %llu is the last, but no end mark and nothing but zeros follow",
                       (unsigned long long)im->entries);
    return 0;
}

static int set_up_zstd(ZSTD_CCtx *z, uint64_t len, struct cb_error *err)
{
    /* one thread: with workers the window of every job would be held at once */
    size_t r = ZSTD_CCtx_setParameter(z, ZSTD_c_compressionLevel, 3);
    if (!ZSTD_isError(r))
        r = ZSTD_CCtx_setParameter(z, ZSTD_c_checksumFlag, 1);
    if (!ZSTD_isError(r))
        r = ZSTD_CCtx_setPledgedSrcSize(z, len);
    if (ZSTD_isError(r))
        return cb_fail(err, CB_E_BUG, "zstd: %s", ZSTD_getErrorName(r));
    return 0;
}

int store_layer_import(struct store *s, int fd, uint64_t offset, uint64_t len,
                       struct layer_blob *out, struct cb_error *err)
{
    if (len > BYTES_MAX || offset > INT64_MAX - len)
        return cb_fail(err, CB_E_LIMIT, "take in a layer: %llu bytes at %llu are out of range",
                       (unsigned long long)len, (unsigned long long)offset);
    CB_AUTO(zstd) z = ZSTD_createCCtx();
    CB_AUTO(hasher) h = cb_hasher_new();
    CB_AUTO_FREE char *in = cb_xmalloc(CHUNK);
    CB_AUTO_FREE char *compressed = cb_xmalloc(CHUNK);
    struct import im = {.fd = fd,
                        .offset = offset,
                        .len = len,
                        .hasher = h,
                        .zstd = z,
                        .in = in,
                        .out = compressed,
                        .err = err};
    struct layer_blob b = {0};
    int rc = z ? set_up_zstd(z, len, err) : cb_fail(err, CB_E_SYS, "out of memory");
    if (rc == 0)
        rc = store_blob_begin(s, NULL, UINT64_MAX, &im.writer, err);
    if (rc == 0)
        rc = read_tar(&im);
    if (rc == 0)
        rc = compress(&im, NULL, 0, ZSTD_e_end);
    if (rc == 0)
        rc = blob_writer_commit(cb_take_ptr(&im.writer), &b.digest, &b.size, err);
    blob_writer_abort(im.writer);
    if (rc < 0) {
        cb_wrap(err, "take in a layer");
        return rc;
    }
    cb_hasher_final(h, &b.diff_id);
    b.media_type = cb_xstrdup(OCI_LAYER_ZSTD);
    *out = b;
    return 0;
}
