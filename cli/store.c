/* gc, df, templates rm: what the store takes, and making room in it. */
#include "cli/cli.h"

#include "builder/sweep.h"
#include "layers/store_gc.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define GIB (UINT64_C(1) << 30)

static void print_json(json_t *o)
{
    json_dumpf(o, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(o);
}

static json_t *kinds_json(const struct store_sum *v)
{
    json_t *o = json_object();
    for (int k = 0; k < STORE_KIND_N; k++)
        json_object_set_new(
            o, store_kind_name((enum store_kind)k),
            json_pack("{s:I, s:I}", "count", (json_int_t)v[k].n, "bytes", (json_int_t)v[k].bytes));
    return o;
}

static const char *const people_say[STORE_KIND_N] = {
    [STORE_BLOBS] = "layers, kernels, documents of images",
    [STORE_CHUNKS] = "chunks of images",
    [STORE_IMAGES] = "files of images",
    [STORE_MAPS] = "chunk maps",
    [STORE_LOWERS] = "file systems that builds start from",
    [STORE_INDEXES] = "indexes of layers",
    [STORE_VERSIONS] = "versions of templates",
    [STORE_RECORDS] = "cached results of commands",
    [STORE_NOTES] = "notes",
    [STORE_PARTIALS] = "downloads that were cut",
    [STORE_DAMAGED] = "put aside as damaged",
};

static void print_kinds(const struct store_sum *v, bool all)
{
    for (int k = 0; k < STORE_KIND_N; k++) {
        char size[32];
        cb_human_bytes(v[k].bytes, size, sizeof(size));
        if (v[k].n || (all && k != STORE_DAMAGED))
            printf("  %-38s %8llu %12s\n", people_say[k], (unsigned long long)v[k].n, size);
    }
}

/* -- gc -- */

static void print_gc(const struct gc_report *r, const struct gc_options *o,
                     const struct kept_sum *failed)
{
    char freed[32], after[32];
    cb_human_bytes(r->before - r->after + failed->bytes, freed, sizeof(freed));
    for (size_t i = 0; i < r->versions.n; i++)
        printf("%s %s\n", o->dry_run ? "would remove" : "removed", r->versions.v[i]);
    print_kinds(r->removed, false);
    cb_human_bytes(failed->bytes, after, sizeof(after));
    if (failed->n)
        printf("  %-38s %8llu %12s\n", "states of failed commands", (unsigned long long)failed->n,
               after);
    cb_human_bytes(r->after, after, sizeof(after));
    printf("%s %s; the store %s %s\n", o->dry_run ? "would free" : "freed", freed,
           o->dry_run ? "would take" : "takes", after);
}

static int gc(struct cli_args *a, const struct settings *s, struct store *store)
{
    struct gc_options o = {.max_bytes = STORE_NO_CEILING,
                           .keep_versions = a->keep ? a->keep : s->keep_versions,
                           .min_age_ms = STORE_MIN_AGE_MS,
                           .partial_age_ms = STORE_PARTIAL_AGE_MS,
                           .dry_run = a->dry_run};
    if (a->max_bytes)
        o.max_bytes = a->max_bytes;
    else if (s->store_max_gb)
        o.max_bytes = (uint64_t)s->store_max_gb * GIB;
    if (a->min_age_s >= 0)
        o.min_age_ms = o.partial_age_ms = a->min_age_s * 1000;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct gc_report r;
    struct kept_sum failed;
    const struct kept_limits limits = {s->keep_failed, s->keep_failed_gb * GIB,
                                       a->min_age_s >= 0 ? a->min_age_s * 1000 : KEPT_AGE_MS};
    kept_trim(s->home, &limits, a->dry_run, &failed);
    int rc = store_gc(store, &o, &r, &err) < 0 ? cli_fail(&err) : EXIT_DONE;
    if (rc == EXIT_DONE && a->json) {
        json_t *versions = json_array();
        for (size_t i = 0; i < r.versions.n; i++)
            json_array_append_new(versions, json_string(r.versions.v[i]));
        print_json(json_pack(
            "{s:b, s:I, s:I, s:I, s:{s:I, s:I}, s:o, s:o}", "dry_run", (int)o.dry_run,
            "bytes_before", (json_int_t)r.before, "bytes_after", (json_int_t)r.after, "bytes_over",
            (json_int_t)r.not_held, "failed_states", "count", (json_int_t)failed.n, "bytes",
            (json_int_t)failed.bytes, "removed", kinds_json(r.removed), "versions", versions));
    } else if (rc == EXIT_DONE) {
        print_gc(&r, &o, &failed);
    }
    if (rc == EXIT_DONE && r.not_held) {
        char over[32];
        cb_human_bytes(r.not_held, over, sizeof(over));
        fprintf(stderr,
                "capsule-build: the store is %s above the ceiling: all of it is in use\n"
                "  remove templates (`capsule-build templates rm NAME`) or raise the ceiling\n",
                over);
        rc = EXIT_BUILD_FAILED;
    }
    gc_report_release(&r);
    return rc;
}

/* -- df -- */

/* Not in the store, but it grows with builds just the same. */
struct beside {
    uint64_t saved, saved_bytes;    /* builder machines */
    struct kept_sum failed;         /* states of failed commands */
    uint64_t mirrors, mirror_bytes; /* of git repositories */
};

static json_t *df_json(const struct df_report *r, const struct beside *beside)
{
    json_t *templates = json_array();
    for (size_t i = 0; i < r->n_templates; i++) {
        const struct df_template *t = &r->templates[i];
        json_array_append_new(templates,
                              json_pack("{s:s, s:I, s:I, s:I}", "name", t->name, "versions",
                                        (json_int_t)t->versions, "own_bytes", (json_int_t)t->own,
                                        "shared_bytes", (json_int_t)t->shared));
    }
    return json_pack(
        "{s:I, s:I, s:I, s:I, s:{s:I, s:I}, s:{s:I, s:I}, s:{s:I, s:I}, s:o, s:o}", "total_bytes",
        (json_int_t)r->total, "other_bytes", (json_int_t)r->other, "garbage_bytes",
        (json_int_t)r->garbage, "cached_bytes", (json_int_t)r->cached, "saved_machines", "count",
        (json_int_t)beside->saved, "bytes", (json_int_t)beside->saved_bytes, "failed_states",
        "count", (json_int_t)beside->failed.n, "bytes", (json_int_t)beside->failed.bytes,
        "git_mirrors", "count", (json_int_t)beside->mirrors, "bytes",
        (json_int_t)beside->mirror_bytes, "kinds", kinds_json(r->kinds), "templates", templates);
}

static void print_df(const struct df_report *r, const struct beside *beside)
{
    char own[32], shared[32], garbage[32], cached[32];
    printf("%-40s %8s %12s\n", "what", "count", "on disk");
    print_kinds(r->kinds, true);
    cb_human_bytes(r->other, own, sizeof(own));
    cb_human_bytes(r->total, shared, sizeof(shared));
    printf("  %-38s %8s %12s\n  %-38s %8s %12s\n", "the rest", "", own, "all", "", shared);
    cb_human_bytes(beside->saved_bytes, own, sizeof(own));
    cb_human_bytes(beside->failed.bytes, shared, sizeof(shared));
    if (beside->saved || beside->failed.n || beside->mirrors)
        printf("\nbeside the store\n");
    if (beside->saved)
        printf("  %-38s %8llu %12s\n", "builder machines, saved", (unsigned long long)beside->saved,
               own);
    if (beside->failed.n)
        printf("  %-38s %8llu %12s\n", "states of failed commands",
               (unsigned long long)beside->failed.n, shared);
    cb_human_bytes(beside->mirror_bytes, own, sizeof(own));
    if (beside->mirrors)
        printf("  %-38s %8llu %12s\n", "copies of git repositories",
               (unsigned long long)beside->mirrors, own);
    if (r->n_templates)
        printf("\n%-40s %8s %12s %12s\n", "template", "versions", "its own", "shared");
    for (size_t i = 0; i < r->n_templates; i++) {
        const struct df_template *t = &r->templates[i];
        cb_human_bytes(t->own, own, sizeof(own));
        cb_human_bytes(t->shared, shared, sizeof(shared));
        printf("  %-38s %8llu %12s %12s\n", t->name, (unsigned long long)t->versions, own, shared);
    }
    cb_human_bytes(r->garbage, garbage, sizeof(garbage));
    cb_human_bytes(r->cached, cached, sizeof(cached));
    printf("\n`capsule-build gc` would free %s; up to %s more can be made again when it is "
           "needed\n(`gc --max-bytes SIZE`)\n",
           garbage, cached);
}

static int df(struct cli_args *a, const struct settings *s, struct store *store)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct df_report r;
    struct beside beside;
    saved_machines(s->home, &beside.saved, &beside.saved_bytes);
    kept_states(s->home, &beside.failed);
    git_mirrors(s->home, &beside.mirrors, &beside.mirror_bytes);
    if (store_df(store, &r, &err) < 0)
        return cli_fail(&err);
    if (a->json)
        print_json(df_json(&r, &beside));
    else
        print_df(&r, &beside);
    df_report_release(&r);
    return EXIT_DONE;
}

static int with_store(struct cli_args *a,
                      int (*fn)(struct cli_args *, const struct settings *, struct store *))
{
    struct settings *s = NULL;
    struct store *store = NULL;
    int rc = cli_settings(a, &s);
    if (rc)
        return rc;
    if ((rc = cli_open_store(s, &store)) == 0)
        rc = fn(a, s, store);
    store_free(store);
    settings_free(s);
    return rc;
}

int cmd_gc(struct cli_args *a)
{
    return with_store(a, gc);
}

int cmd_df(struct cli_args *a)
{
    return with_store(a, df);
}

/* -- templates rm -- */

int cli_remove_template(struct store *store, const char *word)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    const char *colon = strchr(word, ':');
    CB_AUTO_FREE char *name = colon ? cb_xstrndup(word, (size_t)(colon - word)) : cb_xstrdup(word);
    char *end = NULL;
    unsigned long long version = 0;
    if (colon) {
        errno = 0;
        version = colon[1] >= '1' && colon[1] <= '9' ? strtoull(colon + 1, &end, 10) : 0;
        if (version == 0 || *end || errno) {
            (void)cb_fail(&err, CB_E_CONFIG, "%s: expected NAME or NAME:VERSION", word);
            return cli_fail(&err);
        }
    }
    if (store_template_remove(store, name, version, &err) < 0)
        return cli_fail(&err);
    printf("removed %s%s%s; `capsule-build gc` frees what it alone needed\n", name,
           colon ? " version " : "", colon ? colon + 1 : "");
    return EXIT_DONE;
}
