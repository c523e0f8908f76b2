#include "schemas/keys.h"

#include "schemas/config_json.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

static void put_digest(json_t *o, const char *key, const struct cb_digest *d)
{
    char text[CB_DIGEST_LEN + 1];
    cb_digest_text(d, text);
    (void)json_object_set_new(o, key, json_string(text));
}

/* @v is taken. */
static void hash_json(json_t *v, struct cb_digest *out)
{
    CB_AUTO_FREE char *text = json_canonical(v);
    cb_sha256(text, strlen(text), out);
}

static void hash_inputs(json_t *v, struct cache_key *out)
{
    out->inputs = json_canonical(v);
    cb_sha256(out->inputs, strlen(out->inputs), &out->digest);
}

void cache_key_release(struct cache_key *k)
{
    free(k->inputs);
    k->inputs = NULL;
}

static json_t *declared_secrets(const struct layer *l)
{
    json_t *out = json_array();
    for (size_t i = 0; i < l->n_secrets; i++) {
        json_t *o = json_object();
        json_put_text(o, "id", l->secrets[i].id);
        json_put_text(o, "version", l->secrets[i].version);
        (void)json_array_append_new(out, o);
    }
    return out;
}

void keys_declared(const struct workload_config *c, struct cb_digest *out)
{
    json_t *base = json_object();
    json_put_text(base, "base_image", c->base_image);
    (void)json_object_set_new(base, "platform_version", json_integer(PLATFORM_VERSION));
    hash_json(base, &out[0]);
    for (size_t i = 0; i < c->n_layers; i++) {
        const struct layer *l = &c->layers[i];
        json_t *o = json_object();
        put_digest(o, "parent", &out[i]);
        json_put(o, "commands", json_commands(&l->init_commands));
        json_put(o, "drives", json_drives(l));
        json_put(o, "context", json_context(l));
        json_put(o, "env", json_pairs(&l->env, false));
        json_put_text(o, "user", l->user);
        json_put_text(o, "workdir", l->workdir);
        json_put(o, "secrets", declared_secrets(l));
        json_put_text(o, "tier", tier_name(c->tier));
        hash_json(o, &out[i + 1]);
    }
}

static json_t *task(const struct workload_config *c)
{
    return json_loads(c->task, 0, NULL);
}

void keys_declared_task(const struct workload_config *c, const struct cb_digest *parent,
                        struct cb_digest *out)
{
    json_t *o = json_object();
    put_digest(o, "parent", parent);
    (void)json_object_set_new(o, "task", task(c));
    hash_json(o, out);
}

void keys_workload(const struct workload_config *c, char *out)
{
    CB_AUTO_FREE struct cb_digest *declared = cb_xcalloc(c->n_layers + 1, sizeof(*declared));
    keys_declared(c, declared);
    struct cb_digest last = declared[c->n_layers];
    if (c->task)
        keys_declared_task(c, &declared[c->n_layers], &last);
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(&last, hex);
    char leaf[5 + CB_HEX_LEN + 1] = "leaf:";
    memcpy(leaf + 5, hex, sizeof(hex));
    struct cb_digest d;
    cb_sha256(leaf, strlen(leaf), &d);
    cb_digest_hex(&d, hex);
    memcpy(out, hex, WORKLOAD_KEY_LEN);
    out[WORKLOAD_KEY_LEN] = '\0';
}

/* What a command does to files; its name, limits and time limit do not take part. */
static json_t *effects(const struct commands *c)
{
    json_t *out = json_array();
    for (size_t i = 0; i < c->n; i++) {
        const struct command *x = &c->v[i];
        json_t *o = json_object();
        json_put_text(o, "script", x->script);
        if (x->type != COMMAND_SHELL && x->type != COMMAND_EXEC) /* those two are one */
            json_put_text(o, "type", command_type_name(x->type));
        json_put(o, "args", json_strv(&x->args));
        if (x->run_as_root)
            (void)json_object_set_new(o, "run_as_root", json_true());
        json_put(o, "env_variables", json_pairs(&x->env_variables, false));
        (void)json_array_append_new(out, o);
    }
    return out;
}

void keys_cache_base(const struct cb_digest *base, const char *arch, struct cache_key *out)
{
    json_t *o = json_object();
    put_digest(o, "base", base);
    json_put_text(o, "architecture", arch);
    (void)json_object_set_new(o, "platform_version", json_integer(PLATFORM_VERSION));
    hash_inputs(o, out);
}

/* Where it goes and what it is; not where it came from. */
static json_t *contexts(const struct layer *l, const struct layer_contents *in)
{
    json_t *out = json_array();
    for (size_t i = 0; i < l->n_context; i++) {
        json_t *o = json_object();
        json_put_text(o, "dst", l->context[i].dst);
        if (in)
            put_digest(o, "content", &in->context[i]);
        (void)json_array_append_new(out, o);
    }
    return out;
}

static void put_copied(json_t *out, const struct commands *c, const char *drive,
                       const struct cb_digest *digests)
{
    for (size_t i = 0; i < c->n; i++) {
        CB_AUTO_FREE char *which =
            cb_xasprintf("%zu%s%s", i + 1, drive ? " of drive " : "", drive ? drive : "");
        if (c->v[i].type == COMMAND_COPY)
            put_digest(out, which, &digests[i]);
    }
}

/* By the number of the command, from 1. */
static json_t *copied(const struct layer *l, const struct layer_contents *in)
{
    json_t *out = json_object();
    if (in)
        put_copied(out, &l->init_commands, NULL, in->copied);
    for (size_t i = 0; in && in->drives && i < l->n_drives; i++)
        put_copied(out, &l->drives[i].commands, l->drives[i].drive_id, in->drives[i]);
    return out;
}

void keys_cache_layer(const struct workload_config *c, const struct layer *layer,
                      const struct layer_contents *in, const struct cb_digest *parent,
                      struct cache_key *out)
{
    json_t *o = json_object();
    put_digest(o, "parent", parent);
    (void)json_object_set_new(o, "platform_version", json_integer(PLATFORM_VERSION));
    json_put(o, "commands", effects(&layer->init_commands));
    json_put(o, "drives", json_drives(layer));
    json_put(o, "context", contexts(layer, in));
    json_put(o, "copied", copied(layer, in));
    json_put(o, "env", json_pairs(&layer->env, false));
    json_put_text(o, "user", layer->user);
    json_put_text(o, "workdir", layer->workdir);
    json_put_text(o, "runner_user", c->runner_user);
    json_t *versions = json_object();
    for (size_t i = 0; i < layer->n_secrets; i++)
        if (layer->secrets[i].id)
            json_put_text(versions, layer->secrets[i].id, layer->secrets[i].version);
    json_put(o, "secret_versions", versions);
    hash_inputs(o, out);
}

void keys_cache_refresh(const struct cache_key *plain, const struct layer *layer,
                        const struct cb_digest *previous, struct cache_key *out)
{
    json_t *o = json_loads(plain->inputs, 0, NULL);
    json_t *r = json_object();
    put_digest(r, "previous", previous);
    json_put(r, "commands", effects(&layer->refresh_commands));
    json_put(o, "refreshed", r);
    hash_inputs(o, out);
}

void keys_cache_task(const struct workload_config *c, const struct cb_digest *parent,
                     struct cache_key *out)
{
    json_t *o = json_object();
    json_auto_t *whole = task(c);
    put_digest(o, "parent", parent);
    (void)json_object_set_new(o, "platform_version", json_integer(PLATFORM_VERSION));
    (void)json_object_set(o, "entrypoint", json_object_get(whole, "entrypoint"));
    hash_inputs(o, out);
}

void keys_template(const struct workload_config *c, const struct template_inputs *in,
                   struct cache_key *out)
{
    json_t *o = json_object();
    CB_AUTO_FREE char *health = healthcheck_text(&c->healthcheck);
    json_t *drives = json_array();
    for (size_t i = 0; i < c->n_layers; i++) {
        json_t *of_layer = json_drives(&c->layers[i]);
        (void)json_array_extend(drives, of_layer);
        json_decref(of_layer);
    }
    put_digest(o, "last_cache", &in->last_cache);
    put_digest(o, "agent", &in->agent);
    if (!c->kernel) { /* the image's own follows from its layers */
        put_digest(o, "kernel", &in->kernel);
        put_digest(o, "initramfs", &in->initramfs);
    }
    (void)json_object_set_new(o, "platform_version", json_integer(PLATFORM_VERSION));
    (void)json_object_set_new(o, "size_bytes", json_integer((json_int_t)in->size_bytes_asked));
    if (c->workspace_size_gb)
        (void)json_object_set_new(o, "workspace_size_gb", json_integer(c->workspace_size_gb));
    if (c->start.present)
        json_put(o, "start_command", json_start(&c->start));
    json_put(o, "boot_commands", json_commands(&c->boot_commands));
    json_put_text(o, "healthcheck", health);
    if (c->task)
        (void)json_object_set_new(o, "task", task(c));
    json_put_text(o, "tier", tier_name(c->tier));
    json_put_text(o, "runner_user", c->runner_user);
    json_put_text(o, "init", c->init ? c->init : "agent");
    json_put_text(o, "snapshot", c->snapshot);
    json_put_text(o, "kernel_from", c->kernel); /* `kernel` is the digest of another */
    json_put(o, "drives", drives);
    hash_inputs(o, out);
}

void keys_request(const struct workload_config *c, const char *options, struct cb_digest *out)
{
    json_t *o = json_object();
    CB_AUTO_FREE char *config = config_dump(c);
    json_put_text(o, "config", config);
    json_put_text(o, "options", options ? options : "");
    hash_json(o, out);
}
