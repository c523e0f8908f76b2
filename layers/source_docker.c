/* docker-archive: what `docker save` and its kin write. The config names the layers by what is
 * inside them (diff_ids); a manifest that names the blobs is made here, the same for the same
 * image, and is what locks and keys know it by. */
#include "layers/source.h"

#include "layers/registry.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

/* One image of an archive that is open. */
struct docker_source {
    struct source src;
    struct docker_archive all;
    const struct docker_image *image;
    struct oci_image_config config;
    struct cb_digest config_digest;
    uint64_t config_size;
    struct layer_blob *layers;
    size_t n_layers;
};

static void docker_source_release(struct docker_source *d)
{
    source_close(&d->src);
    docker_archive_release(&d->all);
    oci_config_release(&d->config);
    for (size_t i = 0; i < d->n_layers; i++)
        layer_blob_release(&d->layers[i]);
    free(d->layers);
}

/* The digest in a member's name: blobs/sha256/HEX (Docker 25 and later), HEX.json. */
static bool digest_of_name(const char *name, struct cb_digest *out)
{
    const char *leaf = strrchr(name, '/');
    CB_AUTO_FREE char *hex = cb_xstrdup(leaf ? leaf + 1 : name);
    if (strncmp(name, "blobs/sha256/", 13) == 0)
        return cb_digest_parse_hex(hex, out);
    size_t n = strlen(hex);
    if (n != CB_HEX_LEN + 5 || strcmp(hex + CB_HEX_LEN, ".json") != 0)
        return false;
    hex[CB_HEX_LEN] = '\0';
    return cb_digest_parse_hex(hex, out);
}

static int read_config(struct store *s, struct docker_source *d, struct cb_error *err)
{
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    struct cb_digest named;
    const char *name = d->image->config;
    int rc = source_read(&d->src, name, &text, err);
    if (rc < 0)
        return rc;
    const char *data = text.data ? text.data : "";
    d->config_size = text.len;
    cb_sha256(data, text.len, &d->config_digest);
    if (digest_of_name(name, &named) && !cb_digest_eq(&named, &d->config_digest))
        return cb_fail(err, CB_E_CORRUPT, "%s in %s is damaged: its digest is another one", name,
                       d->src.path);
    rc = oci_config_parse(data, text.len, &d->config, err);
    if (rc == 0 && d->config.n_diff_ids != d->image->files.n)
        rc = cb_fail(err, CB_E_CORRUPT, "manifest.json has %zu layers, the config names %zu",
                     d->image->files.n, d->config.n_diff_ids);
    if (rc < 0)
        return cb_wrap(err, "%s in %s", name, d->src.path);
    return store_blob_put(s, data, text.len, NULL, err);
}

/* What layer @i is in the store. Only a packed one whose name says nothing is read for that. */
static int look_at_layer(struct store *s, struct docker_source *d, size_t i, struct cb_error *err)
{
    const char *name = d->image->files.v[i], *type;
    struct layer_blob *l = &d->layers[i];
    struct source_file f;
    int rc = source_find(&d->src, name, &f, err);
    if (rc < 0)
        return rc;
    l->diff_id = d->config.diff_ids[i];
    l->size = f.size;
    rc = source_sniff(&f, &type, err);
    if (rc == 0 && strcmp(type, "xz") == 0) { /* no other program takes it: kept unpacked */
        l->digest = l->diff_id;
        type = OCI_LAYER_TAR;
        rc = source_import_xz(s, &f, &l->digest, &l->size, err);
    } else if (rc == 0 && strcmp(type, OCI_LAYER_TAR) == 0) {
        l->digest = l->diff_id;
    } else if (rc == 0 && !digest_of_name(name, &l->digest)) {
        rc = source_digest(&f, &l->digest, err);
    }
    source_file_close(&f);
    if (rc < 0)
        return cb_wrap(err, "layer %zu (%s in %s)", i + 1, name, d->src.path);
    l->media_type = cb_xstrdup(type);
    return 0;
}

static int read_archive(struct store *s, const struct image_ref *ref, struct docker_source *d,
                        struct cb_error *err)
{
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    CB_AUTO_ERROR miss = CB_ERROR_INIT;
    size_t at = 0;
    int rc = source_open(s, ref->path, &d->src, err);
    if (rc < 0)
        return rc;
    rc = source_read(&d->src, "manifest.json", &text, &miss);
    if (rc == -(int)CB_E_NOTFOUND) {
        cb_fail(err, CB_E_CORRUPT, "%s is no archive of docker save: it has no manifest.json",
                ref->path);
        return cb_hint(err,
                       "A tar of an OCI layout is oci:%s; what `docker export` writes has no "
                       "config and cannot be a base image.",
                       ref->path);
    }
    if (rc < 0)
        return cb_error_move(err, &miss);
    rc = docker_archive_parse(text.data ? text.data : "", text.len, &d->all, err);
    if (rc == 0)
        rc = docker_archive_select(&d->all, ref->tag, &at, err);
    if (rc < 0)
        return cb_wrap(err, "%s", ref->path);
    d->image = &d->all.images[at];
    rc = read_config(s, d, err);
    if (rc < 0)
        return rc;
    d->layers = cb_xcalloc(d->image->files.n, sizeof(*d->layers));
    d->n_layers = d->image->files.n;
    for (size_t i = 0; rc == 0 && i < d->n_layers; i++)
        rc = look_at_layer(s, d, i, err);
    return rc;
}

static int import_layers(struct store *s, const struct docker_source *d,
                         const struct layers_progress *p, struct cb_error *err)
{
    struct source_progress sp = {.p = p};
    int rc = 0;
    for (size_t i = 0; i < d->n_layers; i++)
        sp.total += store_blob_has(s, &d->layers[i].digest) ? 0 : d->layers[i].size;
    for (size_t i = 0; rc == 0 && i < d->n_layers; i++) {
        const char *name = d->image->files.v[i];
        struct source_file f;
        if (store_blob_has(s, &d->layers[i].digest))
            continue;
        rc = source_find(&d->src, name, &f, err);
        if (rc < 0)
            break;
        rc = source_import(s, &f, &d->layers[i].digest, &sp, err);
        source_file_close(&f);
        if (rc < 0)
            cb_wrap(err, "layer %zu (%s in %s)", i + 1, name, d->src.path);
    }
    return rc;
}

int docker_archive_resolve(struct store *s, const struct image_ref *ref, const char *arch,
                           const struct layers_progress *p, struct base_image *out,
                           struct cb_error *err)
{
    struct docker_source d = {.src.fd = -1};
    struct cb_digest manifest;
    int rc = read_archive(s, ref, &d, err);
    if (rc == 0 && d.src.unpacked) /* not once more for the layers alone */
        rc = import_layers(s, &d, p, err);
    if (rc == 0)
        rc = source_put_manifest(s, &d.config_digest, d.config_size, d.layers, d.n_layers,
                                 &manifest, err);
    if (rc == 0)
        rc = image_load(s, &manifest, arch, out, err);
    docker_source_release(&d);
    return rc;
}

int docker_archive_fetch(struct store *s, const struct base_image *b,
                         const struct layers_progress *p, struct cb_error *err)
{
    struct docker_source d = {.src.fd = -1};
    bool all = true;
    for (size_t i = 0; i < b->n_layers; i++)
        all = all && store_blob_has(s, &b->layers[i].digest);
    if (all)
        return 0;
    int rc = read_archive(s, &b->ref, &d, err);
    if (rc == 0)
        rc = import_layers(s, &d, p, err);
    docker_source_release(&d);
    for (size_t i = 0; rc == 0 && i < b->n_layers; i++)
        if (!store_blob_has(s, &b->layers[i].digest))
            rc = cb_fail(err, CB_E_NOTFOUND, "%s holds another image now", b->ref.path);
    return rc;
}
