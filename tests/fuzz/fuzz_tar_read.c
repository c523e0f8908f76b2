/* Any bytes as a tar: no crash, and the pieces in which it comes change nothing: what is read from
 * one piece is read from pieces of any length. */
#include "layers/tar_read.h"
#include "support/hash.h"
#include "support/mem.h"

#include "fuzz_check.h"
#include "tar_mutate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *data;
    size_t size, piece;
    void *copy; /* of the piece at hand, so that a read behind it is seen: owned */
};

static int next(void *arg, const void **data, size_t *len, struct cb_error *err)
{
    struct input *in = arg;
    (void)err;
    size_t n = in->size < in->piece ? in->size : in->piece;
    free(in->copy);
    in->copy = n ? cb_xmemdup(in->data, n) : NULL;
    *data = in->copy;
    *len = n;
    in->data += n;
    in->size -= n;
    return n > 0;
}

static void add(struct cb_hasher *h, const void *p, size_t n)
{
    cb_hasher_update(h, &n, sizeof(n));
    cb_hasher_update(h, p, n);
}

static void read_entry(struct tar_reader *r, const struct tar_entry *e, struct cb_hasher *h)
{
    const uint64_t numbers[] = {e->kind,     e->mode,  e->uid,   e->gid, (uint64_t)e->mtime,
                                e->mtime_ns, e->major, e->minor, e->size};
    must(e->path && (e->link != NULL) == (e->kind == TAR_SYMLINK || e->kind == TAR_HARDLINK));
    must(e->mode <= 07777 && e->mtime_ns < 1000000000 && (e->kind == TAR_FILE || e->size == 0));
    add(h, numbers, sizeof(numbers));
    add(h, e->path, strlen(e->path));
    add(h, e->link ? e->link : "", e->link ? strlen(e->link) : 0);
    const char *name;
    const void *p;
    size_t n;
    while (tar_reader_xattr(r, &name, &p, &n)) {
        add(h, name, strlen(name));
        add(h, p, n);
    }
}

/* Byte by byte with their places: the pieces differ from run to run. Every other file's data is
 * passed over instead. */
static int read_data(struct tar_reader *r, const struct tar_entry *e, struct cb_hasher *h,
                     struct cb_error *err)
{
    const void *p;
    size_t n;
    uint64_t at, end = 0;
    int rc = 0;
    if (e->mode % 2)
        return 0;
    while ((rc = tar_reader_data(r, &p, &n, &at, err)) > 0) {
        must(n > 0 && at >= end && n <= e->size && at <= e->size - n);
        if (at > end)
            cb_hasher_update(h, &at, sizeof(at));
        cb_hasher_update(h, p, n);
        end = at + n;
    }
    return rc;
}

static void read_all(const uint8_t *data, size_t size, size_t piece, struct cb_digest *out)
{
    struct input in = {data, size, piece, NULL};
    const struct tar_source source = {next, &in};
    struct tar_reader *r = NULL;
    struct tar_entry e;
    struct cb_error err = CB_ERROR_INIT;
    struct cb_hasher *h = cb_hasher_new();
    must(tar_reader_open(&source, &r, &err) == 0);
    int rc;
    while ((rc = tar_reader_next(r, &e, &err)) > 0) {
        read_entry(r, &e, h);
        if ((rc = read_data(r, &e, h, &err)) < 0)
            break;
    }
    must(rc == 0 || (err.code == (enum cb_code) - rc && err.msg));
    must(err.code == CB_OK || err.code == CB_E_CORRUPT || err.code == CB_E_LIMIT);
    add(h, err.msg ? err.msg : "", err.msg ? strlen(err.msg) : 0);
    cb_hasher_final(h, out);
    cb_hasher_free(h);
    tar_reader_close(r);
    cb_error_clear(&err);
    free(in.copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const size_t pieces[] = {1, 511, 700, 513};
    struct cb_digest whole, cut;
    read_all(data, size, (size_t)1 << 20, &whole);
    size_t piece = pieces[size % 4];
    read_all(data, size, piece == 1 && size > 20000 ? 3 : piece, &cut);
    must(cb_digest_eq(&whole, &cut));
    return 0;
}
