/* Defaults: what applies when a field is left out, and the model for people, with all of it said.
 */
#include "schemas/config_json.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "cb-" tells a drive of ours from any other file system with that label. */
static void default_label(const struct drive *d, char *label)
{
    (void)snprintf(label, DRIVE_LABEL_MAX + 1, "cb-%.*s", DRIVE_LABEL_MAX - 3, d->drive_id);
}

void drive_label(const struct drive *d, char *label)
{
    if (d->label)
        (void)snprintf(label, DRIVE_LABEL_MAX + 1, "%s", d->label);
    else
        default_label(d, label);
}

char *drive_mount_path(const struct drive *d)
{
    return d->mount_path ? cb_xstrdup(d->mount_path) : cb_xasprintf("/drives/%s", d->drive_id);
}

static bool has_drives(const struct workload_config *c)
{
    for (size_t i = 0; i < c->n_layers; i++)
        if (c->layers[i].n_drives)
            return true;
    return false;
}

uint32_t config_workspace_size_gb(const struct workload_config *c)
{
    if (has_drives(c))
        return 0;
    return c->workspace_size_gb ? c->workspace_size_gb : WORKSPACE_SIZE_GB;
}

static void forget_if(char **text, const char *what)
{
    if (*text && strcmp(*text, what) == 0) {
        free(*text);
        *text = NULL;
    }
}

void config_forget_defaults(struct workload_config *c)
{
    if (c->workspace_size_gb == WORKSPACE_SIZE_GB)
        c->workspace_size_gb = 0;
    for (size_t i = 0; i < c->n_layers; i++) {
        for (size_t k = 0; k < c->layers[i].n_drives; k++) {
            struct drive *d = &c->layers[i].drives[k];
            char label[DRIVE_LABEL_MAX + 1];
            default_label(d, label);
            forget_if(&d->label, label);
            CB_AUTO_FREE char *path = cb_xasprintf("/drives/%s", d->drive_id);
            forget_if(&d->mount_path, path);
            if (d->size_gb == DRIVE_SIZE_GB)
                d->size_gb = 0;
        }
    }
}

static void put_default(json_t *o, const char *key, json_t *v)
{
    if (json_object_get(o, key))
        json_decref(v);
    else
        (void)json_object_set_new(o, key, v);
}

static void fill_settings(const struct workload_config *c, json_t *w)
{
    json_t *o = json_object_get(w, "config");
    put_default(o, "ttl", json_integer(0));
    put_default(o, "session_max_age_seconds", json_integer(0));
    put_default(o, "refresh_idle_ttl_seconds", json_integer(0));
    put_default(o, "auto_pause", json_false());
    put_default(o, "auto_rollout", json_true());
    put_default(o, "init", json_string("agent"));
    if (!has_drives(c))
        put_default(o, "workspace_size_gb", json_integer(WORKSPACE_SIZE_GB));
}

static void fill_drive(const struct drive *d, json_t *o)
{
    char label[DRIVE_LABEL_MAX + 1];
    drive_label(d, label);
    CB_AUTO_FREE char *path = drive_mount_path(d);
    put_default(o, "label", json_string(label));
    put_default(o, "size_gb", json_integer(DRIVE_SIZE_GB));
    put_default(o, "mount_path", json_string(path));
    put_default(o, "read_only", json_false());
}

static void fill_drives(const struct workload_config *c, json_t *w)
{
    json_t *layers = json_object_get(w, "layers");
    for (size_t i = 0; i < c->n_layers; i++) {
        json_t *drives = json_object_get(json_array_get(layers, i), "drives");
        for (size_t k = 0; k < c->layers[i].n_drives; k++)
            fill_drive(&c->layers[i].drives[k], json_array_get(drives, k));
    }
}

/* @o again, with @first (NULL-terminated) in front of the other fields. @o is taken. */
static json_t *in_order(json_t *o, const char *const *first)
{
    json_t *out = json_object();
    for (; *first; first++)
        if (json_object_get(o, *first))
            (void)json_object_set(out, *first, json_object_get(o, *first));
    const char *key;
    json_t *v;
    json_object_foreach(o, key, v)
    {
        if (!json_object_get(out, key))
            (void)json_object_set(out, key, v);
    }
    json_decref(o);
    return out;
}

static json_t *workload_in_order(json_t *w)
{
    static const char *const of_workload[] = {"display_name", "base_image",    "layers",
                                              "config",       "start_command", NULL};
    static const char *const of_layer[] = {"name",   "user",    "workdir",       "env", "context",
                                           "drives", "secrets", "init_commands", NULL};
    json_t *layers = json_object_get(w, "layers");
    for (size_t i = 0; i < json_array_size(layers); i++)
        (void)json_array_set_new(layers, i,
                                 in_order(json_incref(json_array_get(layers, i)), of_layer));
    return in_order(json_incref(w), of_workload);
}

char *config_dump_full(const struct workload_config *c)
{
    CB_AUTO_FREE char *text = config_dump(c);
    json_t *o = json_loads(text, 0, NULL);
    if (!o)
        return cb_xstrdup("{}");
    json_t *full = json_object_get(o, "workload");
    fill_settings(c, full ? full : o);
    fill_drives(c, full ? full : o);
    json_t *w = workload_in_order(full ? full : o);
    if (full) {
        (void)json_object_set_new(o, "workload", w);
        w = json_incref(o);
    }
    json_decref(o);
    char *out = json_dumps(w, JSON_COMPACT);
    json_decref(w);
    return out ? out : cb_xstrdup("{}");
}
