/* plan: what a build would do, as YAML for people or as JSON. docs/plan.md describes the fields. */
#include "builder/builder.h"
#include "cli/cli.h"
#include "cli/yaml.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

/* How this installation builds: what files, environment and flags came to. No credentials. */
static json_t *settings_json(const struct settings *s)
{
    json_t *mirrors = json_object();
    for (size_t i = 0; i < s->n_registries; i++)
        if (s->registries[i].mirror)
            (void)json_object_set_new(mirrors, s->registries[i].host,
                                      json_string(s->registries[i].mirror));
    return json_pack("{s:s, s:s, s:s, s:s?, s:s?, s:s, s:s, s:s?, s:s?, s:b, s:o}", "home", s->home,
                     "isolation", s->isolation, "pull", s->pull, "kernel", s->kernel, "qemu",
                     s->qemu, "debian_mirror", s->debian_mirror, "ubuntu_mirror", s->ubuntu_mirror,
                     "proxy", s->proxy, "ca_bundle", s->ca_bundle, "allow_host_network",
                     (int)s->allow_host_network, "registry_mirrors", mirrors);
}

static json_t *unsupported_json(const struct workload_config *c)
{
    json_t *out = json_array();
    for (size_t i = 0; i < c->n_unsupported; i++)
        (void)json_array_append_new(out, json_string(c->unsupported[i].field));
    return out;
}

/* One line that says what it comes to. */
static void print_summary(const json_t *doc)
{
    const char *action = json_string_value(json_object_get(doc, "action"));
    size_t i, layers = 0;
    json_int_t commands = 0;
    json_t *l;
    json_array_foreach(json_object_get(doc, "layers"), i, l)
    {
        if (i == 0 || json_is_true(json_object_get(l, "cached")))
            continue;
        layers++;
        commands += json_integer_value(json_object_get(l, "commands"));
    }
    if (strcmp(action, "none") == 0) {
        const json_t *published = json_object_get(doc, "published");
        printf("\n# nothing to do: version %lld is up to date\n",
               (long long)json_integer_value(json_object_get(published, "version")));
    } else if (strcmp(action, "finish") == 0) {
        puts("\n# a build runs no command: it makes, boots and publishes the image");
    } else {
        printf("\n# a build runs %lld command%s in %zu layer%s, and makes, boots and publishes the "
               "image\n",
               (long long)commands, commands == 1 ? "" : "s", layers, layers == 1 ? "" : "s");
    }
}

static int print_plan(const struct cli_args *a, const struct workload_config *c,
                      const struct settings *s, json_t *found)
{
    CB_AUTO_FREE char *config = config_dump_full(c);
    json_auto_t *doc =
        json_pack("{s:i, s:s, s:o, s:o}", "schema_version", 1, "file", a->words.v[0], "config",
                  json_loads(config, 0, NULL), "settings", settings_json(s));
    if (!doc) { /* a path or setting that is not UTF-8 */
        fputs("capsule-build: the plan cannot be written: a path is not UTF-8\n", stderr);
        return EXIT_BAD_INPUT;
    }
    (void)json_object_update(doc, found);
    (void)json_object_set_new(doc, "unsupported", unsupported_json(c));
    if (a->json) {
        (void)json_dumpf(doc, stdout, JSON_INDENT(2));
        putchar('\n');
        return EXIT_DONE;
    }
    CB_AUTO_BUF text = CB_BUF_INIT(64u << 20);
    yaml_write(doc, &text);
    fputs(text.data ? text.data : "", stdout);
    print_summary(doc);
    return EXIT_DONE;
}

static int make_plan(const struct cli_args *a, const struct workload_config *c, struct settings *s)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct build_options o = {.force = a->force,
                              .clean = a->clean,
                              .renew_builtin = a->pull && strcmp(a->pull, "always") == 0,
                              .locked = a->locked,
                              .no_boot_check = a->no_boot_check,
                              .isolation = (enum isolation)isolation_from_name(s->isolation),
                              .pull = (enum pull_policy)pull_from_name(s->pull)};
    json_auto_t *found = NULL;
    for (size_t i = 0; i < a->refresh.n; i++)
        cb_strv_add(&o.refresh, a->refresh.v[i]);
    build_options_place(&o, c);
    int rc = build_look(c, s, &o, a->explain, &found, &err);
    build_options_release(&o);
    if (rc < 0)
        return cli_fail(&err);
    for (size_t i = 0; i < c->n_unsupported; i++)
        fprintf(stderr, "%s:%d:%d: warning: %s: not supported yet: it has no effect on a build\n",
                a->words.v[0], c->unsupported[i].loc.line, c->unsupported[i].loc.column,
                c->unsupported[i].field);
    return print_plan(a, c, s, found);
}

int cmd_plan(struct cli_args *a)
{
    struct settings *s = NULL;
    int rc = cli_settings(a, &s);
    if (rc)
        return rc;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct workload_config *c = NULL;
    struct config_problems problems = {0};
    rc = config_load(a->words.v[0], a->allow_unknown ? CONFIG_ALLOW_UNKNOWN : 0, &c, &problems,
                     &err);
    cli_print_problems(&problems);
    rc = rc < 0 ? cli_refuse(&problems, &err) : make_plan(a, c, s);
    config_problems_release(&problems);
    config_free(c);
    settings_free(s);
    return rc;
}
