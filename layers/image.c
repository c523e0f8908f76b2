#include "layers/image.h"

#include "layers/registry.h"
#include "layers/source.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum {
    INDEX_DEPTH = 2, /* an index may name another one, which names manifests */
};

void base_image_release(struct base_image *b)
{
    image_ref_release(&b->ref);
    oci_config_release(&b->config);
    for (size_t i = 0; i < b->n_layers; i++)
        layer_blob_release(&b->layers[i]);
    free(b->layers);
    *b = (struct base_image){0};
}

static void say(const struct layers_progress *p, char *text)
{
    if (p && p->note)
        p->note(p->arg, text);
    free(text);
}

/* --- from the store --- */

int image_read_small(struct store *s, const struct cb_digest *d, struct cb_buf *out,
                     struct cb_error *err)
{
    uint64_t size;
    CB_AUTO_FD fd = store_blob_open(s, d, &size, err);
    if (fd < 0)
        return fd;
    return cb_read_fd(fd, "a blob of the store", CB_JSON_MAX, out, err);
}

/* A layer's media type as we name it, or NULL. */
static const char *layer_type(const char *type)
{
    static const struct {
        const char *sent, *ours;
    } types[] = {
        {OCI_LAYER_TAR, OCI_LAYER_TAR},
        {OCI_LAYER_GZIP, OCI_LAYER_GZIP},
        {OCI_LAYER_ZSTD, OCI_LAYER_ZSTD},
        {DOCKER_LAYER_TAR, DOCKER_LAYER_TAR},
        {DOCKER_LAYER_GZIP, DOCKER_LAYER_GZIP},
        {"application/vnd.docker.image.rootfs.diff.tar.zstd", OCI_LAYER_ZSTD},
    };
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        if (strcmp(types[i].sent, type) == 0)
            return types[i].ours;
    return NULL;
}

static int check_manifest(const struct oci_manifest *m, struct cb_error *err)
{
    if (m->kind != OCI_KIND_MANIFEST)
        return cb_fail(err, CB_E_CORRUPT, "an image index where a manifest should be");
    const char *type = m->config.media_type;
    if (strcmp(type, OCI_CONFIG) != 0 && strcmp(type, DOCKER_CONFIG) != 0) {
        cb_fail(err, CB_E_CORRUPT, "this is no container image: its config is a %s", type);
        return cb_hint(err, "Charts, signatures and other artifacts cannot be a base image.");
    }
    for (size_t i = 0; i < m->n_layers; i++) {
        type = m->layers[i].media_type;
        if (layer_type(type))
            continue;
        if (strstr(type, "foreign") || strstr(type, "nondistributable")) {
            cb_fail(err, CB_E_CORRUPT,
                    "layer %zu is a foreign layer (%s), not kept by the registry", i + 1, type);
            return cb_hint(err, "Such images (Windows bases) cannot be a base image.");
        }
        cb_fail(err, CB_E_CORRUPT, "layer %zu is of the unknown type %s", i + 1, type);
        return cb_hint(err, "Supported are tar layers: plain, gzip and zstd.");
    }
    return 0;
}

static int take_layers(const struct oci_manifest *m, const char *arch, struct base_image *out,
                       struct cb_error *err)
{
    const struct oci_image_config *c = &out->config;
    if (strcmp(c->os, "linux") != 0 || strcmp(c->architecture, arch) != 0 ||
        !oci_variant_is_baseline(arch, c->variant)) {
        cb_fail(err, CB_E_NOTFOUND, "the image is for %s/%s%s%s, not for linux/%s",
                *c->os ? c->os : "unknown", *c->architecture ? c->architecture : "unknown",
                c->variant ? "/" : "", c->variant ? c->variant : "", arch);
        return cb_hint(err, "Choose a base image that is built for linux/%s.", arch);
    }
    if (c->n_diff_ids != m->n_layers)
        return cb_fail(err, CB_E_CORRUPT, "the manifest has %zu layers, its config names %zu",
                       m->n_layers, c->n_diff_ids);
    out->layers = cb_xcalloc(m->n_layers, sizeof(*out->layers));
    out->n_layers = m->n_layers;
    for (size_t i = 0; i < m->n_layers; i++) {
        const struct oci_descriptor *d = &m->layers[i];
        out->layers[i] = (struct layer_blob){.media_type = cb_xstrdup(layer_type(d->media_type)),
                                             .digest = d->digest,
                                             .diff_id = c->diff_ids[i],
                                             .size = d->size};
    }
    return 0;
}

static int load_config(struct store *s, const struct oci_manifest *m, struct oci_image_config *out,
                       struct cb_error *err)
{
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    int rc = image_read_small(s, &m->config.digest, &text, err);
    if (rc < 0)
        return rc;
    return oci_config_parse(text.data ? text.data : "", text.len, out, err);
}

int image_load(struct store *s, const struct cb_digest *digest, const char *arch,
               struct base_image *out, struct cb_error *err)
{
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    struct oci_manifest m = {0};
    int rc = image_read_small(s, digest, &text, err);
    if (rc == 0)
        rc = oci_manifest_parse(text.data ? text.data : "", text.len, NULL, &m, err);
    if (rc == 0)
        rc = check_manifest(&m, err);
    if (rc == 0)
        rc = load_config(s, &m, &out->config, err);
    if (rc == 0)
        rc = take_layers(&m, arch, out, err);
    if (rc == 0)
        out->manifest = *digest;
    oci_manifest_release(&m);
    return rc;
}

/* --- a registry's image: name -> index -> manifest -> config --- */

struct walk {
    struct store *store;
    struct registry *r; /* NULL: what the store has must do */
    struct http_client *client;
    const char *arch;
};

static int read_manifest(const struct walk *w, const char *tag, struct cb_digest *digest,
                         struct cb_buf *body, char **type, struct cb_error *err)
{
    if (w->r)
        return registry_manifest(w->r, w->client, w->store, tag, digest, body, type, err);
    *type = NULL;
    return image_read_small(w->store, digest, body, err);
}

/* One document of the chain. @d is what names it, NULL for the first one. */
static int step(const struct walk *w, const char *tag, const struct oci_descriptor *d,
                struct cb_digest *digest, struct oci_manifest *out, struct cb_error *err)
{
    CB_AUTO_BUF body = CB_BUF_INIT(0);
    CB_AUTO_FREE char *type = NULL;
    int rc = read_manifest(w, tag, digest, &body, &type, err);
    if (rc < 0)
        return rc;
    if (d && body.len != d->size)
        return cb_fail(err, CB_E_CORRUPT, "a manifest has %zu bytes where the index says %llu",
                       body.len, (unsigned long long)d->size);
    return oci_manifest_parse(body.data ? body.data : "", body.len, d ? d->media_type : type, out,
                              err);
}

static int get_config(const struct walk *w, const struct oci_descriptor *d, struct cb_error *err)
{
    if (!w->r || store_blob_has(w->store, &d->digest))
        return 0;
    if (d->size > CB_JSON_MAX)
        return cb_fail(err, CB_E_LIMIT,
                       "the image's config has %llu bytes; at most 4 MiB are accepted",
                       (unsigned long long)d->size);
    int rc = registry_blob(w->r, w->client, w->store, &d->digest, d->size, NULL, NULL, err);
    return rc < 0 ? cb_wrap(err, "config") : 0;
}

/* From the tag, or from *@digest without one, to the platform's image. */
static int walk_down(const struct walk *w, const char *tag, const struct cb_digest *digest,
                     struct base_image *out, struct cb_error *err)
{
    struct cb_digest at = *digest;
    struct oci_manifest m = {0}, index = {0};
    const struct oci_descriptor *named = NULL;
    int rc = 0;
    for (int depth = 0;; depth++) {
        rc = step(w, tag, named, &at, &m, err);
        if (rc < 0 || m.kind == OCI_KIND_MANIFEST)
            break;
        size_t entry = 0;
        rc = depth < INDEX_DEPTH ? oci_index_select(&m, w->arch, &entry, err)
                                 : cb_fail(err, CB_E_LIMIT, "the image index is nested too deeply");
        if (rc < 0)
            break;
        oci_manifest_release(&index);
        index = m;
        m = (struct oci_manifest){0};
        named = &index.layers[entry];
        at = named->digest;
        tag = NULL;
    }
    if (rc == 0)
        rc = check_manifest(&m, err);
    if (rc == 0)
        rc = get_config(w, &m.config, err);
    if (rc == 0)
        rc = image_load(w->store, &at, w->arch, out, err);
    oci_manifest_release(&m);
    oci_manifest_release(&index);
    return rc;
}

static int ask_registry(struct store *s, const struct settings *settings,
                        const struct image_ref *ref, const char *arch,
                        const struct layers_progress *p, struct base_image *out,
                        struct cb_error *err)
{
    struct walk w = {.store = s, .arch = arch};
    int rc = registry_open(settings, ref, p, &w.r, err);
    if (rc < 0)
        return rc;
    w.client = registry_client(w.r);
    rc = walk_down(&w, ref->has_digest ? NULL : ref->tag, &ref->digest, out, err);
    http_client_free(w.client);
    registry_free(w.r);
    return rc;
}

/* --- locks: what a name was last resolved to --- */

static char *lock_name(const struct image_ref *ref)
{
    CB_AUTO_FREE char *canonical = image_ref_canonical(ref);
    return cb_xasprintf("lock:%s", canonical);
}

int image_lock_put(struct store *s, const struct image_ref *ref, const char *arch,
                   const struct cb_digest *manifest, struct cb_error *err)
{
    char text[CB_DIGEST_LEN + 1];
    CB_AUTO_FREE char *name = lock_name(ref);
    cb_digest_text(manifest, text);
    json_auto_t *o = json_pack("{s:s, s:s, s:I}", "manifest", text, "arch", arch, "resolved_ms",
                               (json_int_t)cb_now_ms());
    char *dump = json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS);
    int rc = store_note_put(s, name, dump, err);
    free(dump);
    return rc;
}

int image_from_lock(struct store *s, const struct image_ref *ref, const char *arch,
                    struct base_image *out, int64_t *resolved_ms)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT; /* whatever is wrong with it: then there is no lock */
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    CB_AUTO_FREE char *name = lock_name(ref);
    json_error_t je;
    struct cb_digest d;
    if (store_note_get(s, name, &text, &err) < 0)
        return 0;
    json_auto_t *o = json_loadb(text.data ? text.data : "", text.len, 0, &je);
    const char *manifest = json_string_value(json_object_get(o, "manifest"));
    const char *for_arch = json_string_value(json_object_get(o, "arch"));
    if (!manifest || !for_arch || strcmp(for_arch, arch) != 0 || !cb_digest_parse(manifest, &d))
        return 0;
    struct base_image got = {0};
    if (image_load(s, &d, arch, &got, &err) < 0) {
        base_image_release(&got);
        return 0;
    }
    *resolved_ms = json_integer_value(json_object_get(o, "resolved_ms"));
    *out = got;
    return 1;
}

/* A digest whose documents are all in the store needs nobody's word. */
static int from_digest(struct store *s, const struct image_ref *ref, const char *arch,
                       struct base_image *out)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct walk w = {.store = s, .arch = arch};
    struct base_image got = {0};
    if (walk_down(&w, NULL, &ref->digest, &got, &err) < 0) {
        base_image_release(&got);
        return 0;
    }
    *out = got;
    return 1;
}

static int resolve_registry(struct store *s, const struct settings *settings,
                            const struct image_ref *ref, const char *arch, enum pull_policy policy,
                            const struct layers_progress *p, struct base_image *out,
                            struct cb_error *err)
{
    int64_t when = 0;
    if (ref->has_digest) {
        if (from_digest(s, ref, arch, out))
            return 0;
    } else if (policy != PULL_ALWAYS && image_from_lock(s, ref, arch, out, &when)) {
        return 0;
    }
    if (policy == PULL_NEVER) {
        cb_fail(err, CB_E_NOTFOUND, "not in the store, and nobody may be asked (--pull never)");
        return cb_hint(err, "Build once with --pull missing or --pull always.");
    }
    CB_AUTO_ERROR asked = CB_ERROR_INIT;
    int rc = ask_registry(s, settings, ref, arch, p, out, &asked);
    if (rc == 0)
        return ref->has_digest ? 0 : image_lock_put(s, ref, arch, &out->manifest, err);
    base_image_release(out);
    if (!cb_error_is_transient(&asked) || ref->has_digest ||
        !image_from_lock(s, ref, arch, out, &when))
        return cb_error_move(err, &asked);
    char day[CB_RFC3339_LEN + 1], digest[CB_DIGEST_LEN + 1];
    cb_rfc3339(when, day);
    cb_digest_text(&out->manifest, digest);
    out->from_lock = true;
    say(p, cb_xasprintf("warning: %s: %s; going on with %s as of %s", ref->text, asked.msg, digest,
                        day));
    return 0;
}

/* --- the other sources --- */

static int resolve_scratch(const char *arch, struct base_image *out, struct cb_error *err)
{
    static const char identity[] = "capsule-build: the empty image, version 1";
    cb_sha256(identity, sizeof(identity) - 1, &out->manifest);
    CB_AUTO_FREE char *text = cb_xasprintf(
        "{\"os\":\"linux\",\"architecture\":\"%s\",\"rootfs\":{\"type\":\"layers\"}}", arch);
    return oci_config_parse(text, strlen(text), &out->config, err);
}

static int resolve(struct store *s, const struct settings *settings, const struct image_ref *ref,
                   const char *arch, enum pull_policy policy, const struct layers_progress *p,
                   struct base_image *out, struct cb_error *err)
{
    switch (ref->kind) {
    case SOURCE_REGISTRY: return resolve_registry(s, settings, ref, arch, policy, p, out, err);
    case SOURCE_BUILTIN: return builtin_resolve(s, settings, ref->path, arch, policy, p, out, err);
    case SOURCE_SCRATCH: return resolve_scratch(arch, out, err);
    case SOURCE_OCI_LAYOUT:
    case SOURCE_DOCKER_ARCHIVE:
    case SOURCE_TEMPLATE: return source_resolve(s, ref, arch, policy, p, out, err);
    }
    return cb_fail(err, CB_E_BUG, "unknown kind of source");
}

/* The same for what a name was resolved to once. */
static int resolve_locked(struct store *s, const struct settings *settings, struct image_ref *ref,
                          const struct cb_digest *manifest, const char *arch,
                          enum pull_policy policy, const struct layers_progress *p,
                          struct base_image *out, struct cb_error *err)
{
    if (ref->kind == SOURCE_REGISTRY) {
        ref->has_digest = true;
        ref->digest = *manifest;
        return resolve_registry(s, settings, ref, arch, policy, p, out, err);
    }
    if (source_is_local(ref->kind))
        return source_resolve_locked(s, ref, manifest, arch, p, out, err);
    if (ref->kind != SOURCE_BUILTIN)
        return resolve(s, settings, ref, arch, policy, p, out, err);
    int rc = image_load(s, manifest, arch, out, err);
    for (size_t i = 0; rc == 0 && i < out->n_layers; i++)
        if (!store_blob_has(s, &out->layers[i].digest))
            rc = cb_fail(err, CB_E_NOTFOUND, "what was made then is not in the store any more");
    if (rc == -(int)CB_E_NOTFOUND)
        cb_hint(err, "Build without the lock.");
    return rc;
}

static int resolve_text(struct store *s, const struct settings *settings, const char *text,
                        const struct cb_digest *lock, const char *arch, enum pull_policy policy,
                        const struct layers_progress *p, struct base_image *out,
                        struct cb_error *err)
{
    struct base_image b = {0};
    struct image_ref ref;
    int rc = image_ref_parse(text, &ref, err);
    if (rc < 0)
        return rc;
    rc = lock ? resolve_locked(s, settings, &ref, lock, arch, policy, p, &b, err)
              : resolve(s, settings, &ref, arch, policy, p, &b, err);
    if (rc < 0) {
        base_image_release(&b);
        image_ref_release(&ref);
        return cb_wrap(err, "image %s", text);
    }
    b.ref = ref;
    *out = b;
    return 0;
}

int image_resolve(struct store *s, const struct settings *settings, const char *text,
                  const char *arch, enum pull_policy policy, const struct layers_progress *p,
                  struct base_image *out, struct cb_error *err)
{
    return resolve_text(s, settings, text, NULL, arch, policy, p, out, err);
}

int image_resolve_locked(struct store *s, const struct settings *settings, const char *text,
                         const struct cb_digest *manifest, const char *arch,
                         enum pull_policy policy, const struct layers_progress *p,
                         struct base_image *out, struct cb_error *err)
{
    return resolve_text(s, settings, text, manifest, arch, policy, p, out, err);
}
