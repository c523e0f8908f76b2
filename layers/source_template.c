/* template:NAME: the layers of a published template as a base image. Its own last layer, the
 * agent's, is left out: it holds that template's start command, and the image that is built gets
 * one of its own. Environment, user, folder, entrypoint and command come along as an image's config
 * has them. */
#include "layers/source.h"

#include "layers/registry.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define AGENT_LAYER "_agent"

/* Those that the template passes on stand at the front, as a template has them. */
static size_t passed_on(const struct template_manifest *m)
{
    size_t n = m->n_layers;
    return n && strcmp(m->layer_names[n - 1], AGENT_LAYER) == 0 ? n - 1 : n;
}

static json_t *strings(const struct cb_strv *v)
{
    json_t *out = json_array();
    for (size_t i = 0; i < v->n; i++)
        (void)json_array_append_new(out, json_string(v->v[i]));
    return out;
}

static char *config_of(const struct template_manifest *m, const char *arch)
{
    char text[CB_DIGEST_LEN + 1];
    json_t *ids = json_array(), *env = json_array();
    for (size_t i = 0; i < passed_on(m); i++) {
        cb_digest_text(&m->layers[i].diff_id, text);
        (void)json_array_append_new(ids, json_string(text));
    }
    for (size_t i = 0; i < m->default_env.n; i++) {
        CB_AUTO_FREE char *pair =
            cb_xasprintf("%s=%s", m->default_env.v[i].key, m->default_env.v[i].value);
        (void)json_array_append_new(env, json_string(pair));
    }
    json_auto_t *o = json_pack(
        "{s:s, s:s, s:{s:o, s:s, s:s, s:o, s:o}, s:{s:s, s:o}}", "architecture", arch, "os",
        "linux", "config", "Env", env, "User", m->default_user ? m->default_user : "", "WorkingDir",
        m->workdir ? m->workdir : "/", "Entrypoint", strings(&m->entrypoint), "Cmd",
        strings(&m->cmd), "rootfs", "type", "layers", "diff_ids", ids);
    return o ? json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
}

static int put_image(struct store *s, const struct template_manifest *m, const char *arch,
                     struct cb_digest *manifest, struct cb_error *err)
{
    CB_AUTO_FREE char *text = config_of(m, arch);
    struct cb_digest config;
    if (!text)
        return cb_fail(err, CB_E_BUG, "a config cannot be written");
    int rc = store_blob_put(s, text, strlen(text), &config, err);
    if (rc == 0)
        rc = source_put_manifest(s, &config, strlen(text), m->layers, passed_on(m), manifest, err);
    return rc;
}

static int missing(struct cb_error *err, const struct image_ref *ref)
{
    if (err->code != CB_E_NOTFOUND)
        return -(int)err->code;
    cb_error_clear(err);
    cb_fail(err, CB_E_NOTFOUND, "there is no template %s%s%s in the store", ref->path,
            ref->tag ? " with the version " : "", ref->tag ? ref->tag : "");
    return cb_hint(err, "capsule-build templates lists them; build %s first.", ref->path);
}

int template_resolve(struct store *s, const struct image_ref *ref, const char *arch,
                     struct base_image *out, struct cb_error *err)
{
    struct template_manifest *m = NULL;
    struct cb_digest manifest;
    uint64_t version = ref->tag ? strtoull(ref->tag, NULL, 10) : 0;
    int rc = store_template_get(s, ref->path, version, &m, err);
    if (rc < 0)
        return missing(err, ref);
    rc = put_image(s, m, arch, &manifest, err);
    if (rc == 0)
        rc = image_load(s, &manifest, arch, out, err);
    if (rc == 0)
        out->template_version = m->version;
    template_manifest_free(m);
    return rc;
}

/* The newest version there is, in use or not. */
static uint64_t newest(struct store *s, const struct image_ref *ref, struct cb_error *err)
{
    struct template_manifest *m = NULL;
    if (store_template_get(s, ref->path, 0, &m, err) < 0)
        return 0;
    uint64_t v = m->version;
    template_manifest_free(m);
    CB_AUTO_ERROR end = CB_ERROR_INIT;
    while (store_template_get(s, ref->path, v + 1, &m, &end) == 0) {
        template_manifest_free(m);
        v++;
    }
    return v;
}

int template_resolve_locked(struct store *s, const struct image_ref *ref,
                            const struct cb_digest *manifest, const char *arch,
                            struct base_image *out, struct cb_error *err)
{
    uint64_t v = newest(s, ref, err);
    if (v == 0)
        return missing(err, ref);
    for (; v > 0; v--) {
        struct template_manifest *m = NULL;
        struct cb_digest got;
        CB_AUTO_ERROR miss = CB_ERROR_INIT;
        if (store_template_get(s, ref->path, v, &m, &miss) < 0)
            continue; /* removed, or written by a later program */
        int rc = put_image(s, m, arch, &got, err);
        bool same = rc == 0 && cb_digest_eq(&got, manifest);
        template_manifest_free(m);
        if (same) {
            out->template_version = v;
            return image_load(s, manifest, arch, out, err);
        }
        if (rc < 0)
            return rc;
    }
    return cb_fail(err, CB_E_NOTFOUND, "no version of template %s is what the lock names",
                   ref->path);
}
