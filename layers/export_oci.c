#include "layers/export_oci.h"

#include "schemas/oci.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define AGENT_LAYER "_agent"
#define BASE_LAYER "_base"

static void document_release(struct oci_document *d)
{
    free(d->text);
    *d = (struct oci_document){0};
}

void oci_image_release(struct oci_image *im)
{
    for (size_t i = 0; i < im->n_layers; i++) {
        layer_blob_release(&im->layers[i]);
        free(im->names[i]);
    }
    free(im->layers);
    free(im->names);
    document_release(&im->config);
    document_release(&im->manifest);
    *im = (struct oci_image){0};
}

/* What OCI calls a layer of this kind, or NULL. */
static const char *oci_type(const char *media_type)
{
    static const char *const known[][2] = {
        {OCI_LAYER_TAR, OCI_LAYER_TAR},      {OCI_LAYER_GZIP, OCI_LAYER_GZIP},
        {OCI_LAYER_ZSTD, OCI_LAYER_ZSTD},    {DOCKER_LAYER_TAR, OCI_LAYER_TAR},
        {DOCKER_LAYER_GZIP, OCI_LAYER_GZIP},
    };
    for (size_t i = 0; media_type && i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(media_type, known[i][0]) == 0)
            return known[i][1];
    return NULL;
}

int oci_image_layers(const struct template_manifest *t, struct oci_image *out, struct cb_error *err)
{
    struct oci_image im = {.layers = cb_xcalloc(t->n_layers + 1, sizeof(*im.layers)),
                           .names = cb_xcalloc(t->n_layers + 1, sizeof(*im.names))};
    for (size_t i = 0; i < t->n_layers; i++) {
        if (strcmp(t->layer_names[i], AGENT_LAYER) == 0)
            continue;
        const char *type = oci_type(t->layers[i].media_type);
        if (!type) {
            oci_image_release(&im);
            return cb_fail(err, CB_E_CORRUPT,
                           "layer %s of %s is of the type %s, which no layer has",
                           t->layer_names[i], t->name,
                           t->layers[i].media_type ? t->layers[i].media_type : "(none)");
        }
        im.layers[im.n_layers] = t->layers[i];
        im.layers[im.n_layers].media_type = cb_xstrdup(type);
        im.names[im.n_layers++] = cb_xstrdup(t->layer_names[i]);
    }
    *out = im;
    return 0;
}

/* ---- the config ---- */

static json_t *words(const struct cb_strv *v)
{
    json_t *a = json_array();
    for (size_t i = 0; i < v->n; i++)
        json_array_append_new(a, json_string(v->v[i]));
    return a;
}

static void add_pairs(json_t *env, const struct config_pairs *p)
{
    for (size_t i = 0; i < p->n; i++) {
        size_t n = strlen(p->v[i].key);
        CB_AUTO_FREE char *text = cb_xasprintf("%s=%s", p->v[i].key, p->v[i].value);
        size_t at;
        json_t *have;
        json_array_foreach(env, at, have)
        {
            if (strncmp(json_string_value(have), text, n + 1) == 0)
                break;
        }
        if (at < json_array_size(env))
            json_array_set_new(env, at, json_string(text));
        else
            json_array_append_new(env, json_string(text));
    }
}

static void set_text(json_t *o, const char *key, const char *value)
{
    if (value && *value)
        json_object_set_new(o, key, json_string(value));
}

static json_t *run_config(const struct template_manifest *t)
{
    bool starts = t->boot.start_argv.n > 0;
    json_t *c = json_object(), *env = json_array();
    add_pairs(env, &t->default_env);
    if (starts)
        add_pairs(env, &t->boot.start_env);
    if (json_array_size(env))
        json_object_set(c, "Env", env);
    json_decref(env);
    set_text(c, "User", starts ? t->boot.start_user : t->default_user);
    set_text(c, "WorkingDir", starts ? t->boot.start_workdir : t->workdir);
    if (starts) {
        json_object_set_new(c, "Cmd", words(&t->boot.start_argv));
    } else {
        if (t->entrypoint.n)
            json_object_set_new(c, "Entrypoint", words(&t->entrypoint));
        if (t->cmd.n)
            json_object_set_new(c, "Cmd", words(&t->cmd));
    }
    if (t->boot.port) {
        char port[16];
        (void)snprintf(port, sizeof(port), "%u/tcp", t->boot.port);
        json_object_set_new(c, "ExposedPorts", json_pack("{s:{}}", port));
    }
    return c;
}

static json_t *digest_json(const struct cb_digest *d)
{
    char text[CB_DIGEST_LEN + 1];
    cb_digest_text(d, text);
    return json_string(text);
}

static json_t *history_of(const struct template_manifest *t, const struct oci_image *im,
                          const char *created)
{
    json_t *a = json_array();
    for (size_t i = 0; i < im->n_layers; i++) {
        bool base = strcmp(im->names[i], BASE_LAYER) == 0;
        CB_AUTO_FREE char *by = base ? cb_xasprintf("base image %s", t->base_ref)
                                     : cb_xasprintf("capsule-build layer %s", im->names[i]);
        json_array_append_new(a, json_pack("{s:s, s:s}", "created", created, "created_by", by));
    }
    return a;
}

static json_t *config_json(const struct template_manifest *t, const struct oci_image *im,
                           const char *created)
{
    json_t *ids = json_array();
    for (size_t i = 0; i < im->n_layers; i++)
        json_array_append_new(ids, digest_json(&im->layers[i].diff_id));
    return json_pack("{s:s, s:s, s:s, s:o, s:{s:s, s:o}, s:o}", "architecture", "amd64", "os",
                     "linux", "created", created, "config", run_config(t), "rootfs", "type",
                     "layers", "diff_ids", ids, "history", history_of(t, im, created));
}

/* ---- the manifest ---- */

static json_t *descriptor(const char *media_type, const struct cb_digest *d, uint64_t size)
{
    return json_pack("{s:s, s:o, s:I}", "mediaType", media_type, "digest", digest_json(d), "size",
                     (json_int_t)size);
}

static json_t *annotations(const struct template_manifest *t, const char *created)
{
    char version[24];
    (void)snprintf(version, sizeof(version), "%llu", (unsigned long long)t->version);
    return json_pack(
        "{s:s, s:s, s:s, s:s, s:o, s:s, s:o}", "org.opencontainers.image.created", created,
        "org.opencontainers.image.title", t->name, "org.opencontainers.image.version", version,
        "org.opencontainers.image.base.name", t->base_ref, "org.opencontainers.image.base.digest",
        digest_json(&t->base_digest), "capsule-build.workload-key", t->workload_key,
        "capsule-build.template-key", digest_json(&t->template_key));
}

static json_t *manifest_json(const struct template_manifest *t, const struct oci_image *im,
                             const char *created)
{
    json_t *layers = json_array();
    for (size_t i = 0; i < im->n_layers; i++) {
        const struct layer_blob *l = &im->layers[i];
        json_t *d = descriptor(l->media_type, &l->digest, l->size);
        json_object_set_new(d, "annotations",
                            json_pack("{s:s}", "capsule-build.layer", im->names[i]));
        json_array_append_new(layers, d);
    }
    return json_pack("{s:i, s:s, s:o, s:o, s:o}", "schemaVersion", 2, "mediaType", OCI_MANIFEST,
                     "config", descriptor(OCI_CONFIG, &im->config.digest, im->config.len), "layers",
                     layers, "annotations", annotations(t, created));
}

/* Takes @json. */
static int finish(struct oci_document *d, const char *media_type, json_t *json,
                  struct cb_error *err)
{
    document_release(d);
    d->media_type = media_type;
    d->text = json ? json_dumps(json, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    json_decref(json);
    if (!d->text)
        return cb_fail(err, CB_E_CORRUPT, "the template holds text that is not UTF-8");
    d->len = strlen(d->text);
    cb_sha256(d->text, d->len, &d->digest);
    return 0;
}

int oci_image_documents(const struct template_manifest *t, struct oci_image *im,
                        struct cb_error *err)
{
    char created[CB_RFC3339_LEN + 1];
    cb_rfc3339(t->created_ms, created);
    int rc = finish(&im->config, OCI_CONFIG, config_json(t, im, created), err);
    if (rc == 0)
        rc = finish(&im->manifest, OCI_MANIFEST, manifest_json(t, im, created), err);
    return rc;
}
