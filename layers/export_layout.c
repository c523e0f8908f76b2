/* oci: a template as an OCI image layout, a folder or a tar of one. */
#include "layers/export_oci.h"
#include "layers/export_private.h"

#include "layers/gzip.h"
#include "layers/inflate.h"
#include "schemas/oci.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define LAYOUT_FILE "{\"imageLayoutVersion\":\"1.0.0\"}"

enum { PIECE = 1 << 20 };

struct layout {
    struct export *x;
    struct oci_image im;
    char **converted;  /* a layer's file in our folder, or NULL: it is the store's blob */
    struct archive *a; /* a tar; NULL: a folder */
    int fd;            /* of the tar */
    bool failed;       /* nothing more is written */
};

CB_DEFINE_CLEANUP(inflate, struct inflate *, inflate_free);
CB_DEFINE_CLEANUP(gzip, struct gzip *, gzip_free);
CB_DEFINE_CLEANUP(hasher, struct cb_hasher *, cb_hasher_free);
CB_DEFINE_CLEANUP(entry, struct archive_entry *, archive_entry_free);

static void layout_release(struct layout *l)
{
    for (size_t i = 0; l->converted && i < l->im.n_layers; i++)
        free(l->converted[i]);
    free(l->converted);
    oci_image_release(&l->im);
    (void)archive_write_free(l->a);
    cb_close(l->fd);
}

/* ---- layers in gzip ---- */

struct packing {
    int fd;
    struct cb_hasher *hasher;
    uint64_t size;
};

static int on_packed(void *arg, const void *p, size_t n, struct cb_error *err)
{
    struct packing *k = arg;
    cb_hasher_update(k->hasher, p, n);
    k->size += n;
    return cb_write_all(k->fd, p, n, err);
}

/* The blob of @b, checked against its diff_id, to @k. */
static int repack(struct export *x, const struct layer_blob *b, struct packing *k,
                  struct cb_error *err)
{
    uint64_t size = 0, before = 0, inside;
    CB_AUTO_FD blob = store_blob_open(x->s->store, &b->digest, &size, err);
    if (blob < 0)
        return blob;
    CB_AUTO(inflate) z = NULL;
    CB_AUTO(gzip) g = gzip_new(on_packed, k);
    int rc = inflate_start(blob, size, UINT64_MAX, &z, err);
    const void *p;
    size_t n;
    while (rc >= 0 && (rc = inflate_next(z, &p, &n, err)) == 1) {
        rc = gzip_add(g, p, n, err);
        uint64_t at = inflate_consumed(z);
        if (rc == 0)
            rc = export_advance(x, at - before, err);
        before = at;
    }
    struct cb_digest got;
    if (rc == 0)
        rc = inflate_finish(z, &got, &inside, err);
    if (rc == 0 && !cb_digest_eq(&got, &b->diff_id))
        return cb_fail(err, CB_E_CORRUPT, "its content does not have the digest of the template");
    return rc < 0 ? rc : gzip_finish(g, err);
}

static int convert(struct layout *l, size_t i, struct cb_error *err)
{
    struct layer_blob *b = &l->im.layers[i];
    CB_AUTO_FREE char *name = cb_xasprintf("layer-%zu", i);
    CB_AUTO_FREE char *path = export_tmp(l->x, name);
    CB_AUTO_FD fd = export_create(l->x, name, err);
    if (fd < 0)
        return fd;
    CB_AUTO(hasher) h = cb_hasher_new();
    struct packing k = {.fd = fd, .hasher = h};
    int rc = repack(l->x, b, &k, err);
    if (rc < 0)
        return cb_wrap(err, "layer %s", l->im.names[i]);
    cb_hasher_final(h, &b->digest);
    b->size = k.size;
    free(b->media_type);
    b->media_type = cb_xstrdup(OCI_LAYER_GZIP);
    l->converted[i] = cb_take_ptr(&path);
    return 0;
}

/* ---- putting files somewhere ---- */

static int layout_failed(const struct layout *l, const char *name, struct cb_error *err)
{
    const char *why = archive_error_string(l->a);
    int sys = archive_errno(l->a);
    if (sys == ECANCELED)
        return cb_fail(err, CB_E_CANCELED, "interrupted; nothing was left");
    if (sys == ENOSPC || sys == EDQUOT || sys == EROFS)
        return cb_fail_sys(err, sys, "write the image");
    return cb_fail(err, CB_E_SYS, "write %s of the image: %s", name, why ? why : "failed");
}

static la_ssize_t on_write(struct archive *a, void *arg, const void *p, size_t n)
{
    const struct layout *l = arg;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (l->failed) /* archive_write_free() ends the archive; archive_write_fail() leaks */
        return (la_ssize_t)n;
    if (export_write(l->x, l->fd, p, n, &err) == 0)
        return (la_ssize_t)n;
    archive_set_error(a, err.code == CB_E_CANCELED ? ECANCELED : err.sys, "%s", err.msg);
    return -1;
}

static int put_header(struct layout *l, const char *name, mode_t mode, uint64_t size,
                      struct cb_error *err)
{
    CB_AUTO(entry) e = archive_entry_new();
    archive_entry_copy_pathname(e, name);
    archive_entry_set_mode(e, mode);
    archive_entry_set_size(e, (la_int64_t)size);
    archive_entry_set_mtime(e, 0, 0);
    return archive_write_header(l->a, e) == ARCHIVE_OK ? 0 : layout_failed(l, name, err);
}

/* Owned. */
static char *in_folder(const struct layout *l, const char *name)
{
    CB_AUTO_FREE char *rel = cb_xasprintf("out/%s", name);
    return export_tmp(l->x, rel);
}

static int put_dir(struct layout *l, const char *name, struct cb_error *err)
{
    CB_AUTO_FREE char *slash = cb_xasprintf("%s/", name);
    if (l->a)
        return put_header(l, slash, S_IFDIR | 0755, 0, err);
    CB_AUTO_FREE char *path = in_folder(l, name);
    return mkdir(path, 0755) < 0 ? cb_fail_sys(err, errno, "make %s", path) : 0;
}

static int put_text(struct layout *l, const char *name, const char *text, size_t n,
                    struct cb_error *err)
{
    if (!l->a) {
        CB_AUTO_FREE char *path = in_folder(l, name);
        return cb_write_file(path, text, n, 0644, err);
    }
    int rc = put_header(l, name, S_IFREG | 0644, n, err);
    if (rc == 0 && archive_write_data(l->a, text, n) != (la_ssize_t)n)
        rc = layout_failed(l, name, err);
    return rc;
}

static int put_fd(struct layout *l, const char *name, int from, uint64_t size, struct cb_error *err)
{
    if (!l->a) {
        CB_AUTO_FREE char *path = in_folder(l, name);
        CB_AUTO_FD to = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (to < 0)
            return cb_fail_sys(err, errno, "make %s", path);
        int rc = export_copy(l->x, from, to, 0, err);
        return rc == 0 && fsync(to) < 0 ? cb_fail_sys(err, errno, "sync %s", path) : rc;
    }
    CB_AUTO_FREE char *buf = cb_xmalloc(PIECE);
    int rc = put_header(l, name, S_IFREG | 0644, size, err);
    for (uint64_t at = 0; rc == 0 && at < size;) {
        size_t n = size - at < PIECE ? (size_t)(size - at) : PIECE;
        rc = cb_pread_all(from, buf, n, (off_t)at, err);
        if (rc == 0 && archive_write_data(l->a, buf, n) != (la_ssize_t)n)
            rc = layout_failed(l, name, err);
        if (rc == 0)
            rc = export_advance(l->x, n, err);
        at += n;
    }
    return rc;
}

static char *blob_name(const struct cb_digest *d)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(d, hex);
    return cb_xasprintf("blobs/sha256/%s", hex);
}

/* ---- the layout ---- */

/* An image may hold one layer several times. */
static bool put_already(const struct layout *l, size_t i)
{
    for (size_t j = 0; j < i; j++)
        if (cb_digest_eq(&l->im.layers[j].digest, &l->im.layers[i].digest))
            return true;
    return false;
}

static int put_layer(struct layout *l, size_t i, struct cb_error *err)
{
    const struct layer_blob *b = &l->im.layers[i];
    if (put_already(l, i))
        return 0;
    CB_AUTO_FREE char *name = blob_name(&b->digest);
    uint64_t size = b->size;
    CB_AUTO_FD fd = l->converted[i] ? open(l->converted[i], O_RDONLY | O_CLOEXEC)
                                    : store_blob_open(l->x->s->store, &b->digest, &size, err);
    if (fd < 0)
        return l->converted[i] ? cb_fail_sys(err, errno, "open %s", l->converted[i])
                               : cb_wrap(err, "layer %s", l->im.names[i]);
    if (size != b->size)
        return cb_fail(err, CB_E_CORRUPT, "layer %s: %llu bytes, the template says %llu",
                       l->im.names[i], (unsigned long long)size, (unsigned long long)b->size);
    return put_fd(l, name, fd, size, err);
}

static char *index_text(const struct layout *l)
{
    const struct template_manifest *t = l->x->s->t;
    char digest[CB_DIGEST_LEN + 1], tag[24];
    cb_digest_text(&l->im.manifest.digest, digest);
    (void)snprintf(tag, sizeof(tag), "%llu", (unsigned long long)t->version);
    CB_AUTO_FREE char *full = cb_xasprintf("docker.io/library/%s:%s", t->name, tag);
    json_auto_t *j = json_pack(
        "{s:i, s:s, s:[{s:s, s:s, s:I, s:{s:s, s:s}, s:{s:s, s:s}}]}", "schemaVersion", 2,
        "mediaType", OCI_INDEX, "manifests", "mediaType", OCI_MANIFEST, "digest", digest, "size",
        (json_int_t)l->im.manifest.len, "platform", "architecture", "amd64", "os", "linux",
        "annotations", "org.opencontainers.image.ref.name", tag, "io.containerd.image.name", full);
    return j ? json_dumps(j, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
}

static int put_document(struct layout *l, const struct oci_document *d, struct cb_error *err)
{
    CB_AUTO_FREE char *name = blob_name(&d->digest);
    return put_text(l, name, d->text, d->len, err);
}

static int put_all(struct layout *l, struct cb_error *err)
{
    int rc = put_text(l, "oci-layout", LAYOUT_FILE, sizeof(LAYOUT_FILE) - 1, err);
    if (rc == 0)
        rc = put_dir(l, "blobs", err);
    if (rc == 0)
        rc = put_dir(l, "blobs/sha256", err);
    for (size_t i = 0; rc == 0 && i < l->im.n_layers; i++)
        rc = put_layer(l, i, err);
    if (rc == 0)
        rc = put_document(l, &l->im.config, err);
    if (rc == 0)
        rc = put_document(l, &l->im.manifest, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FREE char *index = index_text(l);
    if (!index)
        return cb_fail(err, CB_E_CORRUPT, "the template holds text that is not UTF-8");
    return put_text(l, "index.json", index, strlen(index), err);
}

/* A folder is the usual form; a name that ends so, or a pipe, gets a tar of one. */
static bool wants_tar(const struct export *x)
{
    size_t n = strlen(x->s->out);
    return export_to_stdout(x) || (n > 4 && strcmp(x->s->out + n - 4, ".tar") == 0);
}

static int open_target(struct layout *l, struct cb_error *err)
{
    if (!wants_tar(l->x)) {
        CB_AUTO_FREE char *path = export_tmp(l->x, "out");
        return mkdir(path, 0755) < 0 ? cb_fail_sys(err, errno, "make %s", path) : 0;
    }
    if ((l->fd = export_open_out(l->x, err)) < 0)
        return l->fd;
    l->a = archive_write_new();
    if (archive_write_set_format_pax_restricted(l->a) != ARCHIVE_OK ||
        archive_write_set_bytes_per_block(l->a, PIECE) != ARCHIVE_OK ||
        archive_write_set_bytes_in_last_block(l->a, 1) != ARCHIVE_OK ||
        archive_write_open(l->a, l, NULL, on_write, NULL) != ARCHIVE_OK)
        return layout_failed(l, "the beginning", err);
    return 0;
}

int export_make_oci(struct export *x, struct cb_error *err)
{
    struct layout l = {.x = x, .fd = -1};
    int rc = oci_image_layers(x->s->t, &l.im, err);
    if (rc < 0)
        return rc;
    if (x->s->t->boot.boot_commands.n)
        export_note(x, "the commands of every boot (workload.init_commands) are not part of an OCI "
                       "image: nothing in a container runs them");
    l.converted = cb_xcalloc(l.im.n_layers + 1, sizeof(*l.converted));
    for (size_t i = 0; i < l.im.n_layers; i++)
        x->total += l.im.layers[i].size * 2;
    for (size_t i = 0; rc == 0 && i < l.im.n_layers; i++)
        if (x->s->compress && strcmp(l.im.layers[i].media_type, OCI_LAYER_ZSTD) == 0)
            rc = convert(&l, i, err);
    if (rc == 0)
        rc = oci_image_documents(x->s->t, &l.im, err);
    if (rc == 0)
        rc = open_target(&l, err);
    if (rc == 0)
        rc = put_all(&l, err);
    if (rc == 0 && l.a && archive_write_close(l.a) != ARCHIVE_OK)
        rc = layout_failed(&l, "the end", err);
    l.failed = rc < 0;
    layout_release(&l);
    return rc;
}
