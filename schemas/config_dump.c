#include "schemas/config_json.h"

#include "schemas/reader.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

char *json_canonical(json_t *v)
{
    char *text = json_dumps(v, JSON_SORT_KEYS | JSON_COMPACT | JSON_ENCODE_ANY);
    json_decref(v);
    return text ? text : cb_xstrdup("null");
}

void json_put(json_t *object, const char *key, json_t *value)
{
    bool empty = (json_is_array(value) && json_array_size(value) == 0) ||
                 (json_is_object(value) && json_object_size(value) == 0);
    if (empty)
        json_decref(value);
    else
        (void)json_object_set_new(object, key, value);
}

void json_put_text(json_t *object, const char *key, const char *text)
{
    if (text)
        (void)json_object_set_new(object, key, json_string(text));
}

static void put_number(json_t *object, const char *key, int64_t v)
{
    if (v)
        (void)json_object_set_new(object, key, json_integer(v));
}

static void put_true(json_t *object, const char *key, bool v)
{
    if (v)
        (void)json_object_set_new(object, key, json_true());
}

static void put_ms(json_t *object, const char *key, int64_t ms)
{
    if (ms)
        (void)json_object_set_new(object, key, json_sprintf("%lldms", (long long)ms));
}

static void put_auto(json_t *object, const char *key, enum auto_bool v)
{
    if (v != AUTO_UNSET)
        (void)json_object_set_new(object, key, json_boolean(v == AUTO_TRUE));
}

/* Text that is canonical JSON already. */
static void put_json(json_t *object, const char *key, const char *text)
{
    if (text)
        (void)json_object_set_new(object, key, json_loads(text, 0, NULL));
}

json_t *json_strv(const struct cb_strv *s)
{
    json_t *out = json_array();
    for (size_t i = 0; i < s->n; i++)
        (void)json_array_append_new(out, json_string(s->v[i]));
    return out;
}

json_t *json_pairs(const struct config_pairs *p, bool escape)
{
    json_t *out = json_object();
    for (size_t i = 0; i < p->n; i++) {
        CB_AUTO_FREE char *escaped = escape ? expand_escape(p->v[i].value) : NULL;
        (void)json_object_set_new(out, p->v[i].key, json_string(escaped ? escaped : p->v[i].value));
    }
    return out;
}

json_t *json_commands(const struct commands *c)
{
    json_t *out = json_array();
    for (size_t i = 0; i < c->n; i++) {
        const struct command *x = &c->v[i];
        if (x->script) {
            (void)json_array_append_new(out, json_string(x->script));
            continue;
        }
        json_t *o = json_object();
        json_put_text(o, "type", command_type_name(x->type));
        json_put(o, "args", json_strv(&x->args));
        put_true(o, "run_as_root", x->run_as_root);
        put_ms(o, "timeout", x->timeout_ms);
        put_number(o, "max_retries", x->max_retries);
        if (x->compute && x->compute[0] >= '0' && x->compute[0] <= '9')
            json_put(o, "compute", json_integer(strtoll(x->compute, NULL, 10)));
        else
            json_put_text(o, "compute", x->compute);
        json_put_text(o, "ram", x->ram);
        json_put(o, "allowed_hosts", json_strv(&x->allowed_hosts));
        json_put(o, "allowed_files", json_strv(&x->allowed_files));
        json_put(o, "env_variables", json_pairs(&x->env_variables, false));
        json_put_text(o, "name", x->name);
        (void)json_array_append_new(out, o);
    }
    return out;
}

json_t *json_drives(const struct layer *l)
{
    json_t *out = json_array();
    for (size_t i = 0; i < l->n_drives; i++) {
        const struct drive *d = &l->drives[i];
        json_t *o = json_object();
        json_put_text(o, "drive_id", d->drive_id);
        json_put_text(o, "label", d->label);
        put_number(o, "size_gb", d->size_gb);
        put_true(o, "read_only", d->read_only);
        json_put_text(o, "mount_path", d->mount_path);
        json_put(o, "commands", json_commands(&d->commands));
        (void)json_array_append_new(out, o);
    }
    return out;
}

json_t *json_context(const struct layer *l)
{
    json_t *out = json_array();
    for (size_t i = 0; i < l->n_context; i++) {
        const struct context_source *s = &l->context[i];
        json_t *o = json_object();
        json_put_text(o, "src", s->src);
        json_put_text(o, "git", s->git);
        json_put_text(o, "ref", s->ref);
        json_put_text(o, "path", s->path);
        json_put_text(o, "dst", s->dst);
        (void)json_array_append_new(out, o);
    }
    return out;
}

static json_t *dump_secrets(const struct layer *l)
{
    json_t *out = json_array();
    for (size_t i = 0; i < l->n_secrets; i++) {
        const struct secret *s = &l->secrets[i];
        json_t *o = json_object();
        json_put_text(o, "id", s->id);
        json_put_text(o, "env", s->env);
        json_put_text(o, "path", s->path);
        json_put_text(o, "version", s->version);
        (void)json_array_append_new(out, o);
    }
    return out;
}

static json_t *dump_layers(const struct workload_config *c)
{
    json_t *out = json_array();
    for (size_t i = 0; i < c->n_layers; i++) {
        const struct layer *l = &c->layers[i];
        json_t *o = json_object();
        json_put_text(o, "name", l->name);
        json_put(o, "init_commands", json_commands(&l->init_commands));
        json_put(o, "refresh_commands", json_commands(&l->refresh_commands));
        json_put_text(o, "refresh_interval", l->refresh_interval);
        json_put(o, "drives", json_drives(l));
        json_put(o, "context", json_context(l));
        json_put(o, "env", json_pairs(&l->env, true));
        json_put_text(o, "workdir", l->workdir);
        json_put_text(o, "user", l->user);
        json_put(o, "secrets", dump_secrets(l));
        (void)json_array_append_new(out, o);
    }
    return out;
}

static json_t *dump_settings(const struct workload_config *c)
{
    json_t *o = json_object();
    json_put_text(o, "tier", tier_name(c->tier));
    put_number(o, "ttl", c->ttl_seconds);
    put_number(o, "session_max_age_seconds", c->session_max_age_seconds);
    put_number(o, "refresh_idle_ttl_seconds", c->refresh_idle_ttl_seconds);
    put_number(o, "memory_request_mb", c->memory_request_mb);
    put_number(o, "memory_limit_mb", c->memory_limit_mb);
    put_auto(o, "auto_pause", c->auto_pause);
    put_auto(o, "auto_rollout", c->auto_rollout);
    put_number(o, "rootfs_size_gb", c->rootfs_size_gb);
    put_number(o, "workspace_size_gb", c->workspace_size_gb);
    json_put_text(o, "runner_user", c->runner_user);
    json_put_text(o, "network_policy_preset", c->network_policy_preset);
    put_json(o, "network_policy", c->network_policy);
    put_json(o, "auth", c->auth);
    json_put_text(o, "init", c->init);
    json_put_text(o, "snapshot", c->snapshot);
    json_put_text(o, "kernel", c->kernel);
    json_put_text(o, "tenant_gcp_project", c->tenant_gcp_project);
    json_put_text(o, "tenant_gcp_zone", c->tenant_gcp_zone);
    json_put_text(o, "tenant_network", c->tenant_network);
    json_put_text(o, "tenant_subnet", c->tenant_subnet);
    json_put_text(o, "tenant_service_account", c->tenant_service_account);
    return o;
}

json_t *json_start(const struct start_command *s)
{
    if (s->from_image)
        return json_string("image");
    json_t *o = json_object();
    json_put(o, "command", json_strv(&s->command));
    put_number(o, "port", s->port);
    json_put_text(o, "health_path", s->health_path);
    json_put(o, "env", json_pairs(&s->env, true));
    json_put_text(o, "run_as", s->run_as);
    return o;
}

char *healthcheck_text(const struct healthcheck *h)
{
    if (!h->present)
        return NULL;
    return cb_xasprintf("--interval=%lldms --timeout=%lldms --start-period=%lldms --retries=%u %s",
                        (long long)h->interval_ms, (long long)h->timeout_ms,
                        (long long)h->start_period_ms, h->retries, h->command);
}

/* `credentials` without what a file writes out in place of ${VAR}. */
static json_t *dump_credentials(const struct workload_config *c, bool published)
{
    json_t *v = c->credentials ? json_loads(c->credentials, 0, NULL) : NULL;
    const char *key;
    json_t *text;
    void *next;
    json_t *env = published ? json_object_get(v, "env") : NULL;
    json_object_foreach_safe(env, next, key, text)
    {
        const char *value = json_string_value(text);
        const char *variable = value ? strstr(value, "${") : NULL;
        if (value && *value && (!variable || (variable > value && variable[-1] == '$')))
            (void)json_object_set_new(env, key, json_string("(left out)"));
    }
    return v;
}

static char *dump(const struct workload_config *c, bool published)
{
    json_t *w = json_object();
    CB_AUTO_FREE char *name = config_name(c);
    CB_AUTO_FREE char *health = healthcheck_text(&c->healthcheck);
    json_put_text(w, "display_name", name);
    json_put_text(w, "base_image", c->base_image);
    json_put(w, "layers", dump_layers(c));
    json_put(w, "config", dump_settings(c));
    if (c->start.present)
        json_put(w, "start_command", json_start(&c->start));
    json_put(w, "init_commands", json_commands(&c->boot_commands));
    json_put_text(w, "healthcheck", health);
    (void)json_object_set_new(w, "credentials", dump_credentials(c, published)); /* NULL: none */
    put_json(w, "task", c->task);
    if (!c->platform && !c->microvm && !c->hosts && !c->session)
        return json_canonical(w);
    json_t *full = json_object();
    put_json(full, "platform", c->platform);
    put_json(full, "microvm", c->microvm);
    put_json(full, "hosts", c->hosts);
    put_json(full, "session", c->session);
    (void)json_object_set_new(full, "workload", w);
    return json_canonical(full);
}

char *config_dump(const struct workload_config *c)
{
    return dump(c, false);
}

char *config_dump_published(const struct workload_config *c)
{
    return dump(c, true);
}
