/* OCI image layouts: index.json names an image, blobs/ALGORITHM/HEX holds its parts. */
#include "layers/source.h"

#include "layers/registry.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

enum {
    INDEX_DEPTH = 3, /* index.json names an index, which may name another one: as of a registry */
    LIST_MAX = 1000, /* names in an error, bytes */
};

static char *blob_name(const struct cb_digest *d)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(d, hex);
    return cb_xasprintf("blobs/sha256/%s", hex);
}

static int open_layout(struct store *s, const char *path, struct source *out, struct cb_error *err)
{
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    CB_AUTO_ERROR miss = CB_ERROR_INIT;
    int rc = source_open(s, path, out, err);
    if (rc < 0)
        return rc;
    rc = source_read(out, "oci-layout", &text, &miss);
    if (rc == -(int)CB_E_NOTFOUND) {
        cb_fail(err, CB_E_CORRUPT, "%s is no OCI layout: it has no file oci-layout", path);
        rc = cb_hint(err, "Is it a file of docker save? Then write docker-archive:%s.", path);
    } else if (rc < 0) {
        cb_error_move(err, &miss);
    } else if ((rc = oci_layout_check(text.data ? text.data : "", text.len, err)) < 0) {
        cb_wrap(err, "%s", path);
    }
    if (rc < 0)
        source_close(out);
    return rc;
}

/* --- which entry of index.json --- */

/* "1.0" means what is called so, and what docker save calls NAME:1.0. */
static bool is_called(const struct oci_descriptor *d, const char *tag)
{
    const char *const names[] = {d->ref_name, d->image_name};
    for (size_t i = 0; i < 2; i++) {
        const char *colon = names[i] ? strrchr(names[i], ':') : NULL;
        if (names[i] && (strcmp(names[i], tag) == 0 || (colon && strcmp(colon + 1, tag) == 0)))
            return true;
    }
    return false;
}

static char *names_of(const struct oci_manifest *index)
{
    CB_AUTO_BUF b = CB_BUF_INIT(LIST_MAX);
    for (size_t i = 0; i < index->n_layers; i++) {
        const struct oci_descriptor *d = &index->layers[i];
        if (oci_entry_is_image(d) && d->ref_name &&
            cb_buf_addf(&b, "%s%s", b.len ? ", " : "", d->ref_name) < 0)
            break;
    }
    return b.len ? cb_buf_take(&b) : cb_xstrdup("none that has a name");
}

static bool one_name(const struct oci_manifest *index)
{
    const char *first = NULL;
    for (size_t i = 0; i < index->n_layers; i++) {
        const char *name = index->layers[i].ref_name;
        if (first && name && strcmp(first, name) != 0)
            return false;
        first = first ? first : name;
    }
    return true;
}

/* Moves the entries that are meant to the front of @index and forgets the others. */
static void keep_meant(struct oci_manifest *index, const char *tag)
{
    size_t n = 0;
    for (size_t i = 0; i < index->n_layers; i++) {
        struct oci_descriptor d = index->layers[i];
        if (!oci_entry_is_image(&d) || (tag && !is_called(&d, tag)))
            continue;
        index->layers[i] = index->layers[n]; /* nothing is lost: all are released in the end */
        index->layers[n++] = d;
    }
    struct oci_manifest rest = {.layers = index->layers + n, .n_layers = index->n_layers - n};
    struct oci_manifest freed = {.layers = cb_xcalloc(rest.n_layers, sizeof(*rest.layers)),
                                 .n_layers = rest.n_layers};
    for (size_t i = 0; i < rest.n_layers; i++)
        freed.layers[i] = rest.layers[i];
    oci_manifest_release(&freed);
    index->n_layers = n;
}

/* What index.json says of the image that is asked for; @index is changed. */
static int choose(struct oci_manifest *index, const struct image_ref *ref, const char *arch,
                  size_t *entry, struct cb_error *err)
{
    CB_AUTO_FREE char *names = names_of(index);
    size_t before = index->n_layers;
    keep_meant(index, ref->tag);
    if (index->n_layers == 1) { /* the image's config says what it is for */
        *entry = 0;
        return 0;
    }
    if (index->n_layers == 0 && (ref->tag || before == 0)) {
        cb_fail(err, CB_E_NOTFOUND, "%s has no image%s%s", ref->path,
                ref->tag ? " with the name " : "", ref->tag ? ref->tag : "");
        return ref->tag ? cb_hint(err, "It holds: %s.", names) : -(int)CB_E_NOTFOUND;
    }
    if (!ref->tag && !one_name(index)) {
        cb_fail(err, CB_E_CONFIG, "%s holds several images: %s", ref->path, names);
        return cb_hint(err, "Say which one: oci:%s:NAME.", ref->path);
    }
    return oci_index_select(index, arch, entry, err);
}

/* --- down to the manifest --- */

static int read_index(const struct source *src, struct oci_manifest *out, struct cb_error *err)
{
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    int rc = source_read(src, "index.json", &text, err);
    if (rc == 0)
        rc = oci_manifest_parse(text.data ? text.data : "", text.len, NULL, out, err);
    if (rc == 0 && out->kind != OCI_KIND_INDEX) {
        oci_manifest_release(out);
        rc = cb_fail(err, CB_E_CORRUPT, "it is no image index");
    }
    return rc < 0 ? cb_wrap(err, "index.json of %s", src->path) : 0;
}

static int read_document(struct store *s, const struct source *src, const struct oci_descriptor *d,
                         struct oci_manifest *out, struct cb_error *err)
{
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    CB_AUTO_FREE char *name = blob_name(&d->digest);
    int rc = source_read_blob(s, src, name, &d->digest, d->size, &text, err);
    if (rc == 0)
        rc = oci_manifest_parse(text.data ? text.data : "", text.len, d->media_type, out, err);
    return rc;
}

/* The documents of the image that *@m, an index, names at @entry: into the store. *@m becomes its
 * manifest. */
static int walk_down(struct store *s, const struct source *src, const char *arch, size_t entry,
                     struct oci_manifest *m, struct cb_digest *manifest, struct cb_error *err)
{
    for (int depth = 1;; depth++) {
        struct oci_manifest below = {0};
        *manifest = m->layers[entry].digest;
        int rc = read_document(s, src, &m->layers[entry], &below, err);
        if (rc < 0)
            return rc;
        oci_manifest_release(m);
        *m = below;
        if (m->kind == OCI_KIND_MANIFEST)
            return 0;
        if (depth == INDEX_DEPTH)
            return cb_fail(err, CB_E_LIMIT, "the image index is nested too deeply");
        rc = oci_index_select(m, arch, &entry, err);
        if (rc < 0)
            return rc;
    }
}

static int load(struct store *s, const struct source *src, const struct oci_manifest *m,
                const struct cb_digest *manifest, const char *arch, struct base_image *out,
                struct cb_error *err)
{
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    CB_AUTO_FREE char *name = blob_name(&m->config.digest);
    int rc = source_read_blob(s, src, name, &m->config.digest, m->config.size, &text, err);
    return rc < 0 ? rc : image_load(s, manifest, arch, out, err);
}

int oci_layout_resolve(struct store *s, const struct image_ref *ref, const char *arch,
                       struct base_image *out, struct cb_error *err)
{
    struct source src;
    struct oci_manifest m = {0};
    struct cb_digest manifest;
    size_t entry = 0;
    int rc = open_layout(s, ref->path, &src, err);
    if (rc < 0)
        return rc;
    rc = read_index(&src, &m, err);
    if (rc == 0)
        rc = choose(&m, ref, arch, &entry, err);
    if (rc == 0)
        rc = walk_down(s, &src, arch, entry, &m, &manifest, err);
    if (rc == 0)
        rc = load(s, &src, &m, &manifest, arch, out, err);
    oci_manifest_release(&m);
    source_close(&src);
    return rc;
}

int oci_layout_resolve_locked(struct store *s, const struct image_ref *ref,
                              const struct cb_digest *manifest, const char *arch,
                              struct base_image *out, struct cb_error *err)
{
    struct source src;
    struct oci_manifest m = {0};
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    CB_AUTO_FREE char *name = blob_name(manifest);
    struct source_file f;
    int rc = open_layout(s, ref->path, &src, err);
    if (rc < 0)
        return rc;
    rc = source_find(&src, name, &f, err);
    if (rc == 0) {
        rc = source_read_blob(s, &src, name, manifest, f.size, &text, err);
        source_file_close(&f);
    }
    if (rc == 0)
        rc = oci_manifest_parse(text.data ? text.data : "", text.len, NULL, &m, err);
    if (rc == 0)
        rc = load(s, &src, &m, manifest, arch, out, err);
    oci_manifest_release(&m);
    source_close(&src);
    return rc;
}

/* --- layers --- */

static int fetch_layer(struct store *s, const struct source *src, const struct layer_blob *l,
                       struct source_progress *sp, struct cb_error *err)
{
    struct source_file f;
    CB_AUTO_FREE char *name = blob_name(&l->digest);
    int rc = source_find(src, name, &f, err);
    if (rc < 0)
        return rc;
    if (f.size != l->size)
        rc = cb_fail(err, CB_E_CORRUPT, "it has %llu bytes where the manifest says %llu",
                     (unsigned long long)f.size, (unsigned long long)l->size);
    else
        rc = source_import(s, &f, &l->digest, sp, err);
    source_file_close(&f);
    return rc < 0 ? cb_wrap(err, "%s in %s", name, src->path) : 0;
}

int oci_layout_fetch(struct store *s, const struct base_image *b, const struct layers_progress *p,
                     struct cb_error *err)
{
    struct source src = {.fd = -1};
    struct source_progress sp = {.p = p};
    int rc = 0;
    for (size_t i = 0; i < b->n_layers; i++)
        sp.total += store_blob_has(s, &b->layers[i].digest) ? 0 : b->layers[i].size;
    for (size_t i = 0; rc == 0 && i < b->n_layers; i++) {
        if (store_blob_has(s, &b->layers[i].digest))
            continue;
        if (!src.path)
            rc = open_layout(s, b->ref.path, &src, err);
        if (rc == 0)
            rc = fetch_layer(s, &src, &b->layers[i], &sp, err);
    }
    source_close(&src);
    return rc;
}
