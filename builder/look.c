/* plan: what a build would do, as a document. The same resolving, keys and cache as the build's. */
#include "builder/build_private.h"
#include "builder/contexts.h"
#include "builder/explain.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

static void put_digest(json_t *o, const char *key, const struct cb_digest *d, bool known)
{
    char text[CB_DIGEST_LEN + 1];
    cb_digest_text(d, text);
    (void)json_object_set_new(o, key, known ? json_string(text) : json_null());
}

/* Warnings go into the document; the rest is for who watches a build. */
static void on_event(void *arg, enum event_type type, json_t *payload)
{
    if (type == EVENT_WARNING)
        (void)json_array_append(arg, json_object_get(payload, "text"));
    json_decref(payload);
}

static bool base_is_here(const struct build *b)
{
    for (size_t i = 0; b->have_base && i < b->base.n_layers; i++)
        if (!store_blob_has(b->store, &b->base.layers[i].digest))
            return false;
    return b->have_base;
}

static json_t *layers_json(const struct build *b, bool explain)
{
    CB_AUTO_FREE struct cb_digest *declared = cb_xcalloc(b->n_layers + 1, sizeof(*declared));
    keys_declared(b->c, declared);
    json_auto_t *last = plan_last(b);
    json_auto_t *now = plan_record(b);
    json_t *out = json_array();
    json_t *base = json_pack("{s:s}", "name", "_platform");
    put_digest(base, "declared", &declared[0], true);
    put_digest(base, "key", &b->base_key.digest, b->have_base);
    (void)json_object_set_new(base, "cached", json_boolean(!b->o->clean && base_is_here(b)));
    (void)json_object_set_new(base, "commands", json_integer(0));
    if (explain && (b->o->clean || (b->have_base && last))) {
        CB_AUTO_FREE char *why = b->o->clean ? cb_xstrdup("--clean") : explain_base(last, now);
        if (why)
            (void)json_object_set_new(base, "why", json_string(why));
    }
    (void)json_array_append_new(out, base);
    for (size_t i = 0; i < b->n_layers; i++) {
        const struct build_layer *l = &b->layers[i];
        json_t *o = json_pack("{s:s}", "name", l->declared->name);
        put_digest(o, "declared", &declared[i + 1], true);
        put_digest(o, "key", &l->key.digest, l->key.inputs != NULL);
        (void)json_object_set_new(o, "cached", json_boolean(l->cached));
        (void)json_object_set_new(o, "commands", json_integer((json_int_t)layer_steps(l)));
        if (l->declared->n_context)
            (void)json_object_set_new(o, "context", contents_json(b, i));
        json_t *copies = contents_copies_json(b, i);
        if (json_array_size(copies))
            (void)json_object_set(o, "copies", copies);
        json_decref(copies);
        if (explain && !l->cached) {
            CB_AUTO_FREE char *why = l->key.inputs || b->o->clean ? plan_why(b, i, last, now)
                                     : b->have_base
                                         ? cb_xstrdup("what comes from git is not known yet")
                                         : cb_xstrdup("its base image is not known yet");
            (void)json_object_set_new(o, "why", json_string(why));
        }
        (void)json_array_append_new(out, o);
    }
    return out;
}

static json_t *lock_of(const struct build *b)
{
    json_t *o = build_lock(b);
    if (!b->have_base)
        (void)json_object_set_new(o, "manifest", json_null());
    (void)json_object_set_new(o, "git", contents_lock(b));
    return o;
}

/* The version that a build would use, or null. */
static json_t *published_json(const struct build *b)
{
    if (!b->published)
        return json_null();
    CB_AUTO_ERROR none = CB_ERROR_INIT;
    struct template_manifest *m = NULL;
    bool current =
        store_template_get(b->store, b->name, 0, &m, &none) == 0 && m->version == b->published;
    template_manifest_free(m);
    return json_pack("{s:I, s:b}", "version", (json_int_t)b->published, "current", (int)current);
}

static json_t *platform_json(const struct build *b)
{
    bool known = b->have_kernel && !b->c->kernel; /* the image's own is known when that is made */
    json_t *o = json_pack("{s:i, s:s?}", "version", PLATFORM_VERSION, "kernel_release",
                          known ? b->kernel.release : NULL);
    put_digest(o, "kernel", &b->kernel_digest, known);
    put_digest(o, "initramfs", &b->initramfs_digest, known);
    put_digest(o, "agent", &b->agent, true);
    return o;
}

static const char *action(const struct build *b)
{
    if (b->published)
        return "none";
    for (size_t i = 0; i < b->n_layers; i++)
        if (!b->layers[i].cached)
            return "build";
    return "finish";
}

static json_t *document(struct build *b, bool explain, json_t *warnings)
{
    json_t *lock = lock_of(b);
    char workload_key[WORKLOAD_KEY_LEN + 1];
    keys_workload(b->c, workload_key);
    json_t *unknown = json_array();
    for (size_t i = 0; i < b->unknown.n; i++)
        (void)json_array_append_new(unknown, json_string(b->unknown.v[i]));
    json_t *o =
        json_pack("{s:s, s:s, s:o, s:o, s:o}", "name", b->name, "workload_key", workload_key,
                  "layers", layers_json(b, explain), "lock", lock, "platform", platform_json(b));
    put_digest(o, "template_key", &b->template_key.digest, b->template_key.inputs != NULL);
    (void)json_object_set_new(o, "published", published_json(b));
    (void)json_object_set_new(o, "action", json_string(action(b)));
    if (explain && !b->published && b->template_key.inputs) {
        json_auto_t *last = plan_last(b);
        json_auto_t *now = plan_record(b);
        CB_AUTO_FREE char *why = plan_why_image(b, last, now);
        (void)json_object_set_new(o, "why", json_string(why));
    }
    (void)json_object_set_new(o, "unknown", unknown);
    (void)json_object_set(o, "warnings", warnings);
    return o;
}

int build_look(const struct workload_config *c, struct settings *settings,
               const struct build_options *o, bool explain, json_t **out, struct cb_error *err)
{
    if (!c->base_image)
        return build_refuse(c, err);
    int asked = build_refuse_refresh(o, c, err);
    if (asked < 0)
        return asked;
    json_auto_t *warnings = json_array();
    CB_AUTO_ERROR refused = CB_ERROR_INIT;
    if (build_refuse(c, &refused) < 0)
        (void)json_array_append_new(warnings, json_string(refused.msg));
    const struct build_sink sink = {on_event, warnings};
    struct build b;
    int rc = build_init(&b, c, settings, o, &sink, err);
    b.look = true;
    if (rc >= 0)
        rc = build_plan(&b, err);
    if (rc >= 0)
        *out = document(&b, explain, warnings);
    build_release(&b);
    return rc;
}
