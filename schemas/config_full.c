/* The model for people: with the defaults that apply when a field is left out. */
#include "schemas/config_json.h"
#include "support/cleanup.h"
#include "support/mem.h"

static void put_default(json_t *o, const char *key, json_t *v)
{
    if (json_object_get(o, key))
        json_decref(v);
    else
        (void)json_object_set_new(o, key, v);
}

static void fill_settings(json_t *w)
{
    json_t *o = json_object_get(w, "config");
    put_default(o, "ttl", json_integer(0));
    put_default(o, "session_max_age_seconds", json_integer(0));
    put_default(o, "refresh_idle_ttl_seconds", json_integer(0));
    put_default(o, "auto_pause", json_false());
    put_default(o, "auto_rollout", json_true());
    put_default(o, "init", json_string("agent"));
}

static void fill_drives(json_t *w)
{
    size_t i, j;
    json_t *layer, *drive;
    json_array_foreach(json_object_get(w, "layers"), i, layer)
    {
        json_array_foreach(json_object_get(layer, "drives"), j, drive)
        {
            put_default(drive, "read_only", json_false());
        }
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
    fill_settings(full ? full : o);
    fill_drives(full ? full : o);
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
