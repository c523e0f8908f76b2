/* How a template was made, as a SLSA provenance v1 predicate. */
#include "builder/documents.h"

#include "builder/contexts.h"

#include "layers/sbom.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

#define BUILD_TYPE "urn:capsule-build:build-type:template:1"
#define BUILDER_ID "urn:capsule-build:builder:1"

/* ---- the config, without what is nobody's business ---- */

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The names of an object's members, in the order of their bytes. */
static json_t *names_of(json_t *object)
{
    size_t n = 0, room = json_object_size(object);
    CB_AUTO_FREE const char **v = cb_xcalloc(room + 1, sizeof(*v));
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) v[n++] = key;
    qsort(v, n, sizeof(*v), compare_names);
    json_t *out = json_array();
    for (size_t i = 0; i < n; i++)
        (void)json_array_append_new(out, json_string(v[i]));
    return out;
}

static json_t *ids_of(const json_t *secrets)
{
    json_t *out = json_array();
    for (size_t i = 0; i < json_array_size(secrets); i++) {
        json_t *id = json_object_get(json_array_get(secrets, i), "id");
        if (json_is_string(id))
            (void)json_array_append(out, id);
    }
    return out;
}

static bool is_one_of(const char *key, const char *const *list)
{
    for (; *list; list++)
        if (strcmp(key, *list) == 0)
            return true;
    return false;
}

/* Wherever they stand: a member that comes later, in a place that nobody thought of here, must not
 * be the one that lets a value out. */
static void mask(json_t *v)
{
    static const char *const gone[] = {"credentials", "auth", NULL};
    static const char *const environments[] = {"env", "env_variables", NULL};
    for (size_t i = 0; json_is_array(v) && i < json_array_size(v); i++)
        mask(json_array_get(v, i));
    if (!json_is_object(v))
        return;
    for (const char *const *g = gone; *g; g++)
        (void)json_object_del(v, *g);
    const char *key;
    json_t *value;
    void *tmp;
    json_object_foreach_safe(v, tmp, key, value)
    {
        if (strcmp(key, "secrets") == 0)
            (void)json_object_set_new(v, key, ids_of(value));
        else if (!is_one_of(key, environments))
            mask(value);
        else if (json_is_object(value))
            (void)json_object_set_new(v, key, names_of(value));
        else
            (void)json_object_set_new(v, key, json_array());
    }
}

json_t *provenance_config(const struct workload_config *c)
{
    CB_AUTO_FREE char *text = config_dump(c);
    json_t *all = json_loads(text, 0, NULL);
    json_t *workload = json_object_get(all, "workload"); /* of a full onboard.yaml */
    json_t *out = workload ? json_incref(workload) : json_incref(all);
    json_decref(all);
    mask(out);
    return out;
}

/* ---- what went in ---- */

static json_t *digest_set(const struct cb_digest *d)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(d, hex);
    return json_pack("{s:s}", "sha256", hex);
}

static void add_dependency(json_t *list, const char *name, const char *uri,
                           const struct cb_digest *d)
{
    json_t *o = json_pack("{s:s, s:o}", "name", name, "digest", digest_set(d));
    if (o && uri)
        (void)json_object_set_new(o, "uri", json_string(uri));
    if (o)
        (void)json_array_append_new(list, o);
}

char *documents_base_purl(const struct build *b)
{
    const struct image_ref *r = &b->base.ref;
    if (r->kind != SOURCE_REGISTRY || !r->domain || !r->path)
        return NULL;
    return image_purl(r->domain, r->path, r->tag, &b->base.manifest);
}

/* Repositories that layers take files from, by their commits. */
static void add_repositories(json_t *list, const struct build *b)
{
    json_auto_t *git = contents_lock(b);
    for (size_t i = 0; i < json_array_size(git); i++) {
        json_t *o = json_array_get(git, i);
        const char *ref = json_string_value(json_object_get(o, "ref"));
        CB_AUTO_FREE char *uri = cb_xasprintf(
            "git+%s@%s", json_string_value(json_object_get(o, "git")), ref ? ref : "HEAD");
        (void)json_array_append_new(list,
                                    json_pack("{s:s, s:s, s:{s:O}}", "name", "git", "uri", uri,
                                              "digest", "gitCommit", json_object_get(o, "commit")));
    }
}

static json_t *dependencies(const struct build *b)
{
    json_t *list = json_array();
    CB_AUTO_FREE char *purl = documents_base_purl(b);
    add_dependency(list, "base image", purl ? purl : b->c->base_image, &b->base.manifest);
    add_dependency(list, "kernel", NULL, &b->kernel_digest);
    add_dependency(list, "agent", NULL, &b->agent);
    add_repositories(list, b);
    return list;
}

static json_t *texts(const struct cb_strv *v)
{
    json_t *list = json_array();
    for (size_t i = 0; i < v->n; i++)
        (void)json_array_append_new(list, json_string(v->v[i]));
    return list;
}

static json_t *command_words(const struct commands *cmds)
{
    json_t *list = json_array();
    for (size_t i = 0; i < cmds->n; i++) {
        const struct command *c = &cmds->v[i];
        json_t *argv = c->script ? json_string(c->script) : json_array();
        for (size_t k = 0; !c->script && k < c->args.n; k++)
            (void)json_array_append_new(argv, json_string(c->args.v[k]));
        (void)json_array_append_new(list, argv);
    }
    return list;
}

/* The drives that the layer's commands filled. */
static json_t *drives(const struct build_layer *l)
{
    json_t *list = json_array();
    size_t filled = 0;
    for (size_t i = 0; i < l->declared->n_drives; i++) {
        const struct drive *d = &l->declared->drives[i];
        char digest[CB_DIGEST_LEN + 1];
        if (!d->commands.n)
            continue;
        cb_digest_text(&l->drives[filled++].image, digest);
        (void)json_array_append_new(list,
                                    json_pack("{s:s, s:s, s:o}", "drive_id", d->drive_id, "image",
                                              digest, "commands", command_words(&d->commands)));
    }
    return list;
}

/* The layers as they went into the image, each with what its commands left. */
static json_t *layers(const struct build *b)
{
    json_t *list = json_array();
    char diff_id[CB_DIGEST_LEN + 1], key[CB_DIGEST_LEN + 1];
    for (size_t i = 0; i < b->n_layers; i++) {
        const struct build_layer *l = &b->layers[i];
        cb_digest_text(&l->diff.diff_id, diff_id);
        cb_digest_text(&l->key.digest, key);
        json_t *o = json_pack("{s:s, s:s, s:s, s:b, s:o}", "name", l->declared->name, "cache_key",
                              key, "diff_id", diff_id, "cached", (int)l->cached, "commands",
                              command_words(&l->declared->init_commands));
        if (l->refreshes) {
            (void)json_object_set_new(o, "refreshes", json_integer(l->refreshes));
            (void)json_object_set_new(o, "refresh_commands",
                                      command_words(&l->declared->refresh_commands));
        }
        if (o && l->watched)
            (void)json_object_set_new(o, "hosts", texts(&l->hosts));
        if (l->n_drives)
            (void)json_object_set_new(o, "drives", drives(l));
        (void)json_array_append_new(list, o);
    }
    return list;
}

/* The last part of the work folder's path is the build's id (cli/job/run_job.c). */
static const char *build_id(const struct build *b)
{
    const char *slash = b->o->work_dir ? strrchr(b->o->work_dir, '/') : NULL;
    return slash ? slash + 1 : "";
}

static json_t *time_text(int64_t ms)
{
    char text[CB_RFC3339_LEN + 1];
    cb_rfc3339(ms, text);
    return json_string(text);
}

static json_t *definition(const struct build *b)
{
    char key[CB_DIGEST_LEN + 1];
    cb_digest_text(&b->template_key.digest, key);
    return json_pack("{s:s, s:{s:o}, s:{s:o, s:s, s:i, s:s, s:b, s:b}, s:o}", "buildType",
                     BUILD_TYPE, "externalParameters", "config", provenance_config(b->c),
                     "internalParameters", "layers", layers(b), "template_key", key,
                     "platform_version", PLATFORM_VERSION, "kernel_release", b->kernel.release,
                     "boot_checked", (int)!b->o->no_boot_check, "locked", (int)b->o->locked,
                     "resolvedDependencies", dependencies(b));
}

static json_t *run_details(const struct build *b, const struct cb_digest *sbom, int64_t finished_ms)
{
    return json_pack("{s:{s:s, s:{s:s}}, s:{s:s, s:o, s:o}, s:[{s:s, s:s, s:o}]}", "builder", "id",
                     BUILDER_ID, "version", "capsule-build", CB_VERSION, "metadata", "invocationId",
                     build_id(b), "startedOn", time_text(b->started_ms), "finishedOn",
                     time_text(finished_ms), "byproducts", "name", "sbom.spdx.json", "mediaType",
                     "application/spdx+json", "digest", digest_set(sbom));
}

char *provenance_dump(const struct build *b, const struct cb_digest *sbom, int64_t finished_ms)
{
    json_t *def = definition(b), *run = run_details(b, sbom, finished_ms);
    json_auto_t *doc = json_pack("{s:o*, s:o*}", "buildDefinition", def, "runDetails", run);
    return def && run && doc ? json_dumps(doc, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
}
