/* From a document's tree into the model: the three shapes, and everything but layers and commands.
 */
#include "schemas/config_fields.h"

#include "schemas/reference.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <ctype.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define AT(member) offsetof(struct workload_config, member)
#define TEN_YEARS INT64_C(315360000) /* seconds */

void reader_note(struct reader *r, const struct at *at, const struct doc_node *n, const char *field)
{
    struct workload_config *c = r->user;
    for (size_t i = 0; i < c->n_unsupported; i++)
        if (strcmp(c->unsupported[i].field, field) == 0)
            return;
    size_t cap = c->n_unsupported; /* few: grown one by one */
    c->unsupported = cb_xgrow(c->unsupported, &cap, c->n_unsupported, sizeof(*c->unsupported));
    c->unsupported[c->n_unsupported++] =
        (struct config_note){.field = cb_xstrdup(field), .loc = read_loc(r, at, n)};
}

static int compare_notes(const void *pa, const void *pb)
{
    const struct cb_loc *a = &((const struct config_note *)pa)->loc;
    const struct cb_loc *b = &((const struct config_note *)pb)->loc;
    if (a->line != b->line)
        return a->line < b->line ? -1 : 1;
    return (a->column > b->column) - (a->column < b->column);
}

/* ---- single fields ---- */

static bool read_slug(struct reader *r, const struct at *at, const struct doc_node *n,
                      const struct field *f, void *to)
{
    const char *accepts = "3 to 64 of a-z, 0-9 and -, without a - at an end";
    const char *text = read_text(r, at, n, accepts);
    if (!text)
        return false;
    if (n->n < 3 || n->n > 64 || text[0] == '-' || text[n->n - 1] == '-' ||
        strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-") != n->n)
        return read_expected(r, at, n, accepts);
    if (*(char **)to) {
        read_problem(r, at, n, "`name` and `display_name` are the same field; give one of them");
        return false;
    }
    return read_string(r, at, n, f, to);
}

static bool read_image(struct reader *r, const struct at *at, const struct doc_node *n,
                       const struct field *f, void *to)
{
    const char *text = read_text(r, at, n, "an image such as debian:bookworm or minimal-debian");
    if (!text)
        return false;
    struct image_ref ref = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (image_ref_parse(text, &ref, &err) < 0) {
        read_problem(r, at, n, "%s%s%s", err.msg, err.hint ? "; " : "", err.hint ? err.hint : "");
        return false;
    }
    image_ref_release(&ref);
    return read_string(r, at, n, f, to);
}

static bool read_tier(struct reader *r, const struct at *at, const struct doc_node *n,
                      const struct field *f, void *to)
{
    (void)f;
    static const struct word_meant meant[] = {
        {"tiny", "xs"},   {"nano", "xs"},        {"small", "s"},    {"medium", "m"},
        {"default", "m"}, {"large", "l"},        {"big", "l"},      {"huge", "xl"},
        {"xlarge", "xl"}, {"extra-large", "xl"}, {"xxlarge", "xl"}, {NULL, NULL}};
    const char *words[TIER_N + 1] = {NULL};
    for (int t = 0; t < TIER_N; t++)
        words[t] = tier_name((enum tier)t);
    size_t i = 0;
    if (!read_one_of(r, at, n, words, meant, &i))
        return false;
    *(enum tier *)to = (enum tier)i;
    return true;
}

/* A user name as useradd takes it. */
static bool read_runner_user(struct reader *r, const struct at *at, const struct doc_node *n,
                             const struct field *f, void *to)
{
    const char *accepts = "a user name: up to 32 of a-z, 0-9, _ and -, the first a letter or _";
    const char *text = read_text(r, at, n, accepts);
    if (!text)
        return false;
    if (n->n == 0 || n->n > 32 || isdigit((unsigned char)*text) || *text == '-' ||
        strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789_-") != n->n)
        return read_expected(r, at, n, accepts);
    return read_string(r, at, n, f, to);
}

/* A project's id as Google gives them; it becomes a part of the config's id, before a '~'. */
static bool read_project(struct reader *r, const struct at *at, const struct doc_node *n,
                         const struct field *f, void *to)
{
    const char *accepts =
        "a project's id: 6 to 30 of a-z, 0-9 and -, the first a letter, without a - "
        "at its end";
    const char *text = read_text(r, at, n, accepts);
    if (!text)
        return false;
    const char *colon = strchr(text, ':'); /* example.com:project */
    const char *id = colon ? colon + 1 : text;
    size_t len = strlen(id);
    bool ok = len >= 6 && len <= 30 && islower((unsigned char)*id) && id[len - 1] != '-' &&
              strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789-") == len && n->n <= 128 &&
              (!colon ||
               strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789.-") == (size_t)(colon - text));
    if (!ok)
        return read_expected(r, at, n, accepts);
    return read_string(r, at, n, f, to);
}

/* Printable, without spaces: names of networks and accounts. */
static bool read_word(struct reader *r, const struct at *at, const struct doc_node *n,
                      const struct field *f, void *to)
{
    const char *accepts = "a name without spaces";
    const char *text = read_text(r, at, n, accepts);
    if (!text)
        return false;
    for (const char *p = text; *p; p++)
        if (!isgraph((unsigned char)*p))
            return read_expected(r, at, n, accepts);
    return read_string(r, at, n, f, to);
}

/* The default counts as left out. */
static bool read_init(struct reader *r, const struct at *at, const struct doc_node *n,
                      const struct field *f, void *to)
{
    static const char *const words[] = {"agent", "systemd", "openrc", NULL};
    (void)f;
    size_t i = 0;
    if (!read_one_of(r, at, n, words, NULL, &i) || i == 0)
        return false;
    char **out = to;
    *out = cb_xstrdup(words[i]);
    return true;
}

/* Kept without a word when it says the default, as every kept field. */
static bool read_workspace(struct reader *r, const struct at *at, const struct doc_node *n,
                           const struct field *f, void *to)
{
    uint32_t *gb = to;
    return read_u32(r, at, n, f, to) && *gb != WORKSPACE_SIZE_GB;
}

static const char *const snapshots[] = {"warm", NULL};
static const char *const kernels[] = {"image", NULL};
static const char *const presets[] = {"open", "packages-only", "none", NULL};

/* ---- config ---- */

static const struct field config_fields[] = {
    {.name = "tier", .read = read_tier, .offset = AT(tier)},
    {.name = "runner_user", .read = read_runner_user, .offset = AT(runner_user)},
    {.name = "rootfs_size_gb",
     .read = read_u32,
     .offset = AT(rootfs_size_gb),
     .min = 1,
     .max = 2048},
    {.name = "auto_rollout", .read = read_auto_bool, .offset = AT(auto_rollout)},
    {.name = "auto_pause", .read = read_auto_bool, .offset = AT(auto_pause), .note = "auto_pause"},
    {.name = "ttl",
     .read = read_i64,
     .offset = AT(ttl_seconds),
     .max = TEN_YEARS,
     .accepts = "(seconds)",
     .note = "ttl"},
    {.name = "session_max_age_seconds",
     .read = read_i64,
     .offset = AT(session_max_age_seconds),
     .max = TEN_YEARS,
     .note = "session_max_age_seconds"},
    {.name = "refresh_idle_ttl_seconds",
     .read = read_i64,
     .offset = AT(refresh_idle_ttl_seconds),
     .max = TEN_YEARS,
     .note = "refresh_idle_ttl_seconds"},
    {.name = "memory_request_mb",
     .read = read_u32,
     .offset = AT(memory_request_mb),
     .min = 1,
     .max = 1 << 24,
     .note = "memory_request_mb"},
    {.name = "memory_limit_mb",
     .read = read_u32,
     .offset = AT(memory_limit_mb),
     .min = 1,
     .max = 1 << 24,
     .note = "memory_limit_mb"},
    {.name = "workspace_size_gb",
     .read = read_workspace,
     .offset = AT(workspace_size_gb),
     .min = 1,
     .max = 2048},
    {.name = "network_policy_preset",
     .read = read_choice,
     .more = presets,
     .offset = AT(network_policy_preset)},
    {.name = "network_policy", .read = read_network_policy, .offset = AT(network_policy)},
    {.name = "auth", .read = read_auth, .offset = AT(auth)},
    {.name = "init", .read = read_init, .offset = AT(init)},
    {.name = "snapshot", .read = read_choice, .more = snapshots, .offset = AT(snapshot)},
    {.name = "kernel", .read = read_choice, .more = kernels, .offset = AT(kernel)},
    {.name = "tenant_gcp_project",
     .read = read_project,
     .offset = AT(tenant_gcp_project),
     .note = "tenant_gcp_project"},
    {.name = "tenant_gcp_zone",
     .read = read_word,
     .offset = AT(tenant_gcp_zone),
     .max = 256,
     .note = "tenant_gcp_zone"},
    {.name = "tenant_network",
     .read = read_word,
     .offset = AT(tenant_network),
     .max = 256,
     .note = "tenant_network"},
    {.name = "tenant_subnet",
     .read = read_word,
     .offset = AT(tenant_subnet),
     .max = 256,
     .note = "tenant_subnet"},
    {.name = "tenant_service_account",
     .read = read_word,
     .offset = AT(tenant_service_account),
     .max = 256,
     .note = "tenant_service_account"},
    {.name = NULL},
};

static bool read_config(struct reader *r, const struct at *at, const struct doc_node *n,
                        const struct field *f, void *to)
{
    (void)f;
    struct workload_config *c = to;
    bool ok = read_map(r, at, n, config_fields, c);
    if (ok && c->memory_request_mb && c->memory_limit_mb &&
        c->memory_request_mb > c->memory_limit_mb) {
        const struct at where = {.up = at, .key = "memory_request_mb"};
        read_problem(r, &where, doc_child(n, "memory_request_mb"), "above memory_limit_mb");
    }
    static const char *const below[] = {"tenant_gcp_zone", "tenant_network", "tenant_subnet",
                                        "tenant_service_account"};
    for (size_t i = 0; ok && i < sizeof(below) / sizeof(below[0]); i++) {
        const struct at where = {.up = at, .key = below[i]};
        if (doc_child(n, below[i]) && !doc_child(n, "tenant_gcp_project"))
            read_problem(r, &where, doc_child(n, below[i]), "needs `tenant_gcp_project` beside it");
    }
    return ok;
}

/* ---- start_command ---- */

static bool read_start_argv(struct reader *r, const struct at *at, const struct doc_node *n,
                            const struct field *f, void *to)
{
    struct cb_strv *out = to;
    if (!read_strv(r, at, n, f, to))
        return false;
    if (!*out->v[0]) {
        const struct at first = {.up = at, .index = 0};
        return read_expected(r, &first, n->items[0], "the name of a program");
    }
    return true;
}

static bool read_health_path(struct reader *r, const struct at *at, const struct doc_node *n,
                             const struct field *f, void *to)
{
    const char *accepts = "a path such as /health, without spaces";
    const char *text = read_text(r, at, n, accepts);
    if (!text)
        return false;
    bool ok = *text == '/' && n->n <= 1024;
    for (const char *p = text; ok && *p; p++)
        ok = isgraph((unsigned char)*p); /* it goes into a line of HTTP */
    if (!ok)
        return read_expected(r, at, n, accepts);
    return read_string(r, at, n, f, to);
}

#define START(member) offsetof(struct start_command, member)

static const struct field start_fields[] = {
    {.name = "command",
     .read = read_start_argv,
     .offset = START(command),
     .required = true,
     .accepts = "a list such as [python3, app.py]"},
    {.name = "port", .read = read_u16, .offset = START(port), .min = 1, .max = 65535},
    {.name = "health_path", .read = read_health_path, .offset = START(health_path)},
    {.name = "env", .read = read_env, .offset = START(env), .more = "expand"},
    {.name = "run_as", .read = read_user, .offset = START(run_as)},
    {.name = NULL},
};

static bool read_start(struct reader *r, const struct at *at, const struct doc_node *n,
                       const struct field *f, void *to)
{
    (void)f;
    static const char *const words[] = {"image", NULL};
    struct start_command *s = to;
    if (n->kind == DOC_SCALAR && strcmp(n->text, "image") == 0) {
        s->present = s->from_image = true;
        return true;
    }
    if (n->kind != DOC_MAP)
        return read_expected_near(r, at, n,
                                  "a map such as {command: [python3, app.py], port: 8080}, or the "
                                  "word image",
                                  n->kind == DOC_SCALAR ? nearest_word(n->text, words) : NULL);
    s->present = true;
    (void)read_map(r, at, n, start_fields, s);
    if (s->health_path && !s->port && !doc_child(n, "port")) {
        const struct at where = {.up = at, .key = "health_path"};
        read_problem(r, &where, doc_child(n, "health_path"), "needs `port` beside it");
    }
    return true;
}

/* ---- healthcheck ---- */

/* [--interval=] [--timeout=] [--start-period=] [--retries=] COMMAND */
static bool read_healthcheck(struct reader *r, const struct at *at, const struct doc_node *n,
                             const struct field *f, void *to)
{
    static const struct {
        const char *name;
        size_t at;
        int64_t min;
    } options[] = {
        {"--interval=", offsetof(struct healthcheck, interval_ms), 1},
        {"--timeout=", offsetof(struct healthcheck, timeout_ms), 1},
        {"--start-period=", offsetof(struct healthcheck, start_period_ms), 0},
    };
    (void)f;
    const char *accepts = "a command line, with --interval=3s, --timeout=10s, --start-period=0s or "
                          "--retries=0 before it if wanted";
    const char *p = read_text(r, at, n, accepts);
    if (!p)
        return false;
    if (n->n >= FIELD_TEXT_MAX) {
        read_problem(r, at, n, "longer than %u bytes", FIELD_TEXT_MAX - 1);
        return false;
    }
    struct healthcheck h = {.present = true, .interval_ms = 3000, .timeout_ms = 10000};
    p += strspn(p, " \t\n");
    while (strncmp(p, "--", 2) == 0) {
        size_t len = strcspn(p, " \t\n");
        CB_AUTO_FREE char *option = cb_xstrndup(p, len);
        size_t i = 0;
        while (i < 3 && strncmp(option, options[i].name, strlen(options[i].name)) != 0)
            i++;
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        int64_t v = -1;
        if (i < 3) {
            v = duration_parse(option + strlen(options[i].name), &err);
            if (v >= options[i].min && v <= CONFIG_STEP_MS_MAX)
                memcpy((char *)&h + options[i].at, &v, sizeof(v));
            else
                v = -1;
        } else if (strncmp(option, "--retries=", 10) == 0) {
            const struct doc_node number = {.plain = true, .text = option + 10};
            if (doc_integer(&number, &v) && v >= 0 && v <= 1000)
                h.retries = (uint32_t)v;
            else
                v = -1;
        }
        if (v < 0) {
            CB_AUTO_FREE char *q = quote_text(option, len);
            read_problem(r, at, n, "%s is not accepted here; expected %s", q, accepts);
            return false;
        }
        p += len;
        p += strspn(p, " \t\n");
    }
    if (!*p)
        return read_expected(r, at, n, accepts);
    h.command = cb_xstrdup(p);
    *(struct healthcheck *)to = h;
    return true;
}

/* ---- the workload and the whole ---- */

/* The older shape: one layer called `workload`. */
static bool read_snapshot_commands(struct reader *r, const struct at *at, const struct doc_node *n,
                                   const struct field *f, void *to)
{
    struct workload_config *c = to;
    struct commands commands = {0};
    (void)read_commands(r, at, n, f, &commands);
    if (n->kind == DOC_LIST && n->n == 0)
        read_problem(r, at, n, "expected a list of at least one command, found an empty list");
    struct layer *l = cb_xcalloc(1, sizeof(*l));
    l->name = cb_xstrdup("workload");
    l->init_commands = commands;
    l->loc = read_loc(r, at, n);
    c->layers = l;
    c->n_layers = 1;
    return true;
}

static bool read_layers_field(struct reader *r, const struct at *at, const struct doc_node *n,
                              const struct field *f, void *to)
{
    struct workload_config *c = to;
    if (c->layers) {
        read_problem(r, at, n, "`layers` and the older `snapshot_commands` exclude each other");
        return false;
    }
    return read_layers(r, at, n, f, to);
}

static bool read_old_field(struct reader *r, const struct at *at, const struct doc_node *n,
                           const struct field *f, void *to)
{
    struct workload_config *c = to;
    if (c->layers) {
        read_problem(r, at, n, "`layers` and the older `snapshot_commands` exclude each other");
        return false;
    }
    return read_snapshot_commands(r, at, n, f, to);
}

static const struct field workload_fields[] = {
    {.name = "display_name", .read = read_slug, .offset = AT(display_name)},
    {.name = "name", .read = read_slug, .offset = AT(display_name)},
    {.name = "base_image", .read = read_image, .offset = AT(base_image)},
    {.name = "layers", .read = read_layers_field},
    {.name = "snapshot_commands", .read = read_old_field},
    {.name = "config", .read = read_config},
    {.name = "start_command", .read = read_start, .offset = AT(start)},
    {.name = "init_commands", .read = read_commands, .offset = AT(boot_commands)},
    {.name = "healthcheck", .read = read_healthcheck, .offset = AT(healthcheck)},
    {.name = "credentials", .read = read_credentials, .offset = AT(credentials)},
    {.name = "task", .read = read_task, .offset = AT(task), .note = "task"},
    {.name = NULL},
};

static bool read_workload(struct reader *r, const struct at *at, const struct doc_node *n,
                          const struct field *f, void *to)
{
    (void)f;
    const struct workload_config *c = to;
    if (!read_map(r, at, n, workload_fields, to))
        return false;
    if (!c->base_image && c->n_layers == 0 && !doc_child(n, "task") &&
        !doc_child(n, "base_image") &&
        (!doc_child(n, "layers") || doc_child(n, "layers")->kind == DOC_LIST))
        read_problem(r, at, n, "neither `base_image` nor a layer: there is nothing to build");
    return true;
}

static const struct field top_fields[] = {
    {.name = "platform", .read = read_object, .offset = AT(platform), .note = "platform"},
    {.name = "microvm", .read = read_object, .offset = AT(microvm), .note = "microvm"},
    {.name = "hosts", .read = read_object, .offset = AT(hosts), .note = "hosts"},
    {.name = "workload",
     .read = read_workload,
     .required = true,
     .accepts = "what to build: base_image, layers, start_command"},
    {.name = "session", .read = read_object, .offset = AT(session), .note = "session"},
    {.name = "credentials", .read = read_credentials, .offset = AT(credentials)},
    {.name = NULL},
};

static const struct field_home homes[] = {
    {config_fields, "below `config`"},
    {start_fields, "below `start_command`"},
    {workload_fields, "below `workload`, or at the top of a file without `workload`"},
    {top_fields, "at the top, beside `workload`"},
    {layer_fields, "to a layer, below `layers`"},
    {command_fields, "to a command"},
    {NULL, NULL},
};

/* The full shape has `workload`; a file with only its neighbours lacks it. */
static bool is_full(const struct doc_node *root)
{
    bool beside = false;
    for (const struct field *f = top_fields; f->name; f++)
        beside = beside || doc_child(root, f->name);
    for (const struct field *f = workload_fields; f->name; f++)
        if (strcmp(f->name, "credentials") != 0 && doc_child(root, f->name))
            return doc_child(root, "workload") != NULL;
    return beside;
}

void config_read(struct reader *r, struct workload_config *c)
{
    const struct doc_node *root = r->doc->root;
    r->homes = homes;
    if (root->kind != DOC_MAP) {
        (void)read_expected(r, NULL, root,
                            "a map with `workload`, or with `base_image` and `layers`");
        return;
    }
    if (is_full(root))
        (void)read_map(r, NULL, root, top_fields, c);
    else
        (void)read_workload(r, NULL, root, NULL, c);
    if (c->n_unsupported)
        qsort(c->unsupported, c->n_unsupported, sizeof(*c->unsupported), compare_notes);
}
