/* The comparison of two plans, input by input, in the order in which a reader looks for a cause. */
#include "builder/explain.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <stdbool.h>
#include <string.h>

enum { SHOWN_MAX = 80 }; /* a longer value is not shown */

static const struct input {
    const char *key;
    const char *label; /* in a sentence */
    const char *item;  /* of a list or a map */
} inputs[] = {
    {"platform_version", "platform version", NULL},
    {"architecture", "architecture", NULL},
    {"base", "base image", NULL},
    {"commands", "commands", "command"},
    {"drives", "drives", "drive"},
    {"context", "context", "context"},
    {"copied", "copied files", "what is copied by command"},
    {"env", "env", "env"},
    {"user", "user", NULL},
    {"workdir", "workdir", NULL},
    {"runner_user", "runner_user", NULL},
    {"refreshed", "what it was refreshed from", "refreshed:"},
    {"secret_versions", "secrets", "version of secret"},
    {"start_command", "start_command", "start_command:"},
    {"boot_commands", "init_commands", "init command"},
    {"size_bytes", "size in bytes", NULL},
    {"kernel", "kernel", NULL},
    {"kernel_from", "kernel", NULL},
    {"agent", "agent", NULL},
    {"initramfs", "initramfs", NULL},
};
enum { N_INPUTS = sizeof(inputs) / sizeof(*inputs) };

static const struct input *find_input(const char *key)
{
    for (size_t i = 0; i < N_INPUTS; i++)
        if (strcmp(inputs[i].key, key) == 0)
            return &inputs[i];
    return NULL;
}

/* A scalar as people write it, or NULL when it is none or too long. Owned. */
static char *shown(json_t *v)
{
    const char *text = json_string_value(v);
    if (text) {
        for (const char *p = text; *p; p++)
            if ((unsigned char)*p < 0x20)
                return NULL;
        if (strlen(text) > SHOWN_MAX)
            return NULL;
        return *text ? cb_xstrdup(text) : cb_xstrdup("\"\"");
    }
    if (json_is_integer(v))
        return cb_xasprintf("%lld", (long long)json_integer_value(v));
    if (json_is_boolean(v))
        return cb_xstrdup(json_is_true(v) ? "true" : "false");
    return NULL;
}

static char *differ_list(const struct input *in, json_t *last, json_t *now)
{
    size_t before = json_array_size(last), after = json_array_size(now), i = 0;
    while (i < before && i < after && json_equal(json_array_get(last, i), json_array_get(now, i)))
        i++;
    const char *what = i >= before ? "is new" : i >= after ? "was removed" : "changed";
    return cb_xasprintf("%s %zu %s", in->item, i + 1, what);
}

static char *differ_map(const struct input *in, json_t *last, json_t *now)
{
    const char *key;
    json_t *v;
    json_object_foreach(now, key, v)
    {
        json_t *old = json_object_get(last, key);
        if (!old)
            return cb_xasprintf("%s %s is new", in->item, key);
        if (!json_equal(old, v))
            return cb_xasprintf("%s %s changed", in->item, key);
    }
    json_object_foreach(last, key, v)
    {
        if (!json_object_get(now, key))
            return cb_xasprintf("%s %s was removed", in->item, key);
    }
    return cb_xasprintf("%s changed", in->label);
}

/* Two values of one input that are not equal; either may be absent (NULL). */
static char *differ(const char *key, json_t *last, json_t *now)
{
    const struct input other = {key, key, key};
    const struct input *in = find_input(key);
    if (!in)
        in = &other;
    if (in->item && (json_is_array(last) || !last) && (json_is_array(now) || !now))
        return differ_list(in, last, now);
    if (in->item && (json_is_object(last) || !last) && (json_is_object(now) || !now))
        return differ_map(in, last, now);
    CB_AUTO_FREE char *from = shown(last);
    CB_AUTO_FREE char *to = shown(now);
    if (!last)
        return to ? cb_xasprintf("%s is %s now and was not set", in->label, to)
                  : cb_xasprintf("%s is new", in->label);
    if (!now)
        return from ? cb_xasprintf("%s is not set now and was %s", in->label, from)
                    : cb_xasprintf("%s was removed", in->label);
    return from && to ? cb_xasprintf("%s changed from %s to %s", in->label, from, to)
                      : cb_xasprintf("%s changed", in->label);
}

static bool same_at(json_t *last, json_t *now, const char *key)
{
    json_t *a = json_object_get(last, key), *b = json_object_get(now, key);
    return a == b || (a && b && json_equal(a, b));
}

static char *differ_at(json_t *last, json_t *now, const char *key)
{
    return same_at(last, now, key)
               ? NULL
               : differ(key, json_object_get(last, key), json_object_get(now, key));
}

/* The first input but @skip that differs: those that we know in our order, then the others. */
static char *first_difference(json_t *last, json_t *now, const char *skip)
{
    char *text = NULL;
    for (size_t i = 0; i < N_INPUTS && !text; i++)
        text = differ_at(last, now, inputs[i].key);
    json_t *both[] = {now, last};
    for (size_t side = 0; side < 2 && !text; side++) {
        const char *key;
        json_t *v;
        json_object_foreach(both[side], key, v)
        {
            if (!text && strcmp(key, skip) != 0)
                text = differ_at(last, now, key);
        }
    }
    return text;
}

static json_t *layer_at(json_t *record, size_t k)
{
    return json_array_get(json_object_get(record, "layers"), k);
}

static const char *name_at(json_t *record, size_t k)
{
    const char *name = json_string_value(json_object_get(layer_at(record, k), "name"));
    return name ? name : "?";
}

/* -1: none. */
static long find_layer(json_t *record, const char *name)
{
    size_t n = json_array_size(json_object_get(record, "layers"));
    for (size_t i = 0; i < n; i++)
        if (strcmp(name_at(record, i), name) == 0)
            return (long)i;
    return -1;
}

static json_t *inputs_at(json_t *record, size_t k)
{
    return json_object_get(layer_at(record, k), "inputs");
}

static char *not_before(void)
{
    return cb_xstrdup("not built before");
}

char *explain_base(json_t *last, json_t *now)
{
    if (!last)
        return not_before();
    json_t *old = json_object_get(last, "base"), *new = json_object_get(now, "base");
    const char *from = json_string_value(json_object_get(old, "base"));
    const char *to = json_string_value(json_object_get(new, "base"));
    const char *was = json_string_value(json_object_get(last, "base_image"));
    const char *is = json_string_value(json_object_get(now, "base_image"));
    char *text = differ_at(old, new, "platform_version");
    if (text || !from || !to || !was || !is || strcmp(from, to) == 0)
        return text ? text : first_difference(old, new, "");
    return strcmp(was, is) == 0
               ? cb_xasprintf("base image: %s moved from %s to %s", is, from, to)
               : cb_xasprintf("base image: %s (%s) in place of %s (%s)", is, to, was, from);
}

static char *differ_layer(json_t *last, json_t *now, size_t k, bool *own);

/* The parents of layer @k, the @j-th of the last build, differ: what became of it. */
static char *differ_below(json_t *last, json_t *now, size_t j, size_t k)
{
    const char *was = j ? name_at(last, j - 1) : NULL, *is = k ? name_at(now, k - 1) : NULL;
    if (is && find_layer(last, is) < 0)
        return cb_xasprintf("layer %s below it is new", is);
    if (was && find_layer(now, was) < 0)
        return cb_xasprintf("layer %s below it was removed", was);
    if (was && (!is || strcmp(was, is) != 0))
        return cb_xasprintf("the order changed: it stood on layer %s", was);
    if (is && !was)
        return cb_xasprintf("the order changed: layer %s is below it now", is);
    if (!is) {
        char *base = explain_base(last, now);
        return base ? base : cb_xstrdup("the base image changed");
    }
    bool own = true;
    CB_AUTO_FREE char *cause = differ_layer(last, now, k - 1, &own);
    if (cause && !own)
        return cb_xstrdup(cause);
    return cause ? cb_xasprintf("layer %s below it: %s", is, cause)
                 : cb_xasprintf("layer %s below it changed", is);
}

/* @own: the text is about this layer's own inputs. */
static char *differ_layer(json_t *last, json_t *now, size_t k, bool *own)
{
    long j = find_layer(last, name_at(now, k));
    *own = true;
    if (j < 0)
        return cb_xstrdup("new");
    json_t *old = inputs_at(last, (size_t)j), *new = inputs_at(now, k);
    *own = false;
    char *text = differ_at(old, new, "platform_version");
    if (text)
        return text;
    if (!same_at(old, new, "parent"))
        return differ_below(last, now, (size_t)j, k);
    *own = true;
    return first_difference(old, new, "parent");
}

char *explain_layer(json_t *last, json_t *now, size_t k)
{
    bool own;
    return last ? differ_layer(last, now, k, &own) : not_before();
}

char *explain_template(json_t *last, json_t *now)
{
    if (!last)
        return not_before();
    json_t *old = json_object_get(last, "template"), *new = json_object_get(now, "template");
    if (same_at(old, new, "last_cache"))
        return first_difference(old, new, "last_cache");
    char *base = explain_base(last, now);
    if (base)
        return base;
    size_t n = json_array_size(json_object_get(now, "layers"));
    for (size_t k = 0; k < n; k++) {
        CB_AUTO_FREE char *text = explain_layer(last, now, k);
        if (text)
            return cb_xasprintf("layer %s: %s", name_at(now, k), text);
    }
    if (json_array_size(json_object_get(last, "layers")) > n)
        return cb_xasprintf("layer %s was removed", name_at(last, n));
    char *task = differ_at(old, new, "task");
    return task ? task : cb_xstrdup("its layers changed");
}
