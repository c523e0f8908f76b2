/* The model's life, its names, and the doors config_parse() and config_load(). */
#include "schemas/config.h"

#include "schemas/config_fields.h"
#include "schemas/reader.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char *const command_types[COMMAND_TYPE_N] = {
    [COMMAND_SHELL] = "shell", [COMMAND_EXEC] = "exec",  [COMMAND_GCP_AUTH] = "gcp-auth",
    [COMMAND_COPY] = "copy",   [COMMAND_ENV] = "env",    [COMMAND_WORKDIR] = "workdir",
    [COMMAND_USER] = "user",   [COMMAND_START] = "start"};

const char *command_type_name(enum command_type t)
{
    return (unsigned)t < COMMAND_TYPE_N ? command_types[t] : "?";
}

static const struct tier_row {
    const char *name;
    uint32_t vcpus, memory_mib;
} tiers[TIER_N] = {[TIER_XS] = {"xs", 1, 512},
                   [TIER_S] = {"s", 1, 1024},
                   [TIER_M] = {"m", 4, 4096},
                   [TIER_L] = {"l", 8, 8192},
                   [TIER_XL] = {"xl", 16, 16384}};

const char *tier_name(enum tier t)
{
    return (unsigned)t < TIER_N ? tiers[t].name : "?";
}

uint64_t command_ram(const struct command *c)
{
    if (!c->ram)
        return 0;
    char *unit = NULL;
    uint64_t n = strtoull(c->ram, &unit, 10); /* at most nine digits: it was checked */
    bool decimal = strlen(unit) == 2;         /* MB; M and MiB are powers of two */
    unsigned power = *unit == 'k' || *unit == 'K' ? 1 : *unit == 'm' || *unit == 'M' ? 2 : 3;
    for (unsigned i = 0; i < power; i++)
        n *= decimal ? 1000 : 1024;
    return n;
}

uint32_t command_cpus(const struct command *c, uint32_t vcpus)
{
    uint64_t all = (uint64_t)vcpus * 100, want = all;
    if (!c->compute)
        return 0;
    if (strcasecmp(c->compute, "LOW") == 0)
        want = all / 4;
    else if (strcasecmp(c->compute, "MEDIUM") == 0)
        want = all / 2;
    else if (strcasecmp(c->compute, "HIGH") != 0)
        want = strtoull(c->compute, NULL, 10);
    return want >= all ? 0 : (uint32_t)want;
}

uint32_t tier_vcpus(enum tier t)
{
    return (unsigned)t < TIER_N ? tiers[t].vcpus : 0;
}

uint32_t tier_memory_mib(enum tier t)
{
    return (unsigned)t < TIER_N ? tiers[t].memory_mib : 0;
}

static void loc_release(struct cb_loc *l)
{
    free(l->file);
    free(l->path);
}

void config_pairs_release(struct config_pairs *p)
{
    for (size_t i = 0; i < p->n; i++) {
        free(p->v[i].key);
        free(p->v[i].value);
    }
    free(p->v);
    *p = (struct config_pairs){0};
}

void command_release(struct command *c)
{
    free(c->script);
    cb_strv_release(&c->args);
    free(c->compute);
    free(c->ram);
    cb_strv_release(&c->allowed_hosts);
    cb_strv_release(&c->allowed_files);
    config_pairs_release(&c->env_variables);
    free(c->name);
    free(c->user);
    free(c->workdir);
    loc_release(&c->loc);
}

static void commands_release(struct commands *c)
{
    for (size_t i = 0; i < c->n; i++)
        command_release(&c->v[i]);
    free(c->v);
}

static void layer_release(struct layer *l)
{
    free(l->name);
    commands_release(&l->init_commands);
    commands_release(&l->refresh_commands);
    free(l->refresh_interval);
    for (size_t i = 0; i < l->n_drives; i++) {
        free(l->drives[i].drive_id);
        free(l->drives[i].label);
        free(l->drives[i].mount_path);
        commands_release(&l->drives[i].commands);
        loc_release(&l->drives[i].loc);
    }
    free(l->drives);
    for (size_t i = 0; i < l->n_context; i++) {
        free(l->context[i].src);
        free(l->context[i].git);
        free(l->context[i].ref);
        free(l->context[i].path);
        free(l->context[i].dst);
        loc_release(&l->context[i].loc);
    }
    free(l->context);
    config_pairs_release(&l->env);
    free(l->workdir);
    free(l->user);
    for (size_t i = 0; i < l->n_secrets; i++) {
        free(l->secrets[i].id);
        free(l->secrets[i].env);
        free(l->secrets[i].path);
        free(l->secrets[i].version);
    }
    free(l->secrets);
    loc_release(&l->loc);
}

static void note_release(struct config_note *n)
{
    free(n->field);
    loc_release(&n->loc);
}

void config_free(struct workload_config *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->n_layers; i++)
        layer_release(&c->layers[i]);
    free(c->layers);
    cb_strv_release(&c->start.command);
    free(c->start.health_path);
    config_pairs_release(&c->start.env);
    free(c->start.run_as);
    commands_release(&c->boot_commands);
    free(c->healthcheck.command);
    for (size_t i = 0; i < c->n_unsupported; i++)
        note_release(&c->unsupported[i]);
    free(c->unsupported);
    char *const texts[] = {c->file,
                           c->display_name,
                           c->base_image,
                           c->runner_user,
                           c->network_policy_preset,
                           c->init,
                           c->snapshot,
                           c->kernel,
                           c->tenant_gcp_project,
                           c->tenant_gcp_zone,
                           c->tenant_network,
                           c->tenant_subnet,
                           c->tenant_service_account,
                           c->network_policy,
                           c->auth,
                           c->credentials,
                           c->task,
                           c->platform,
                           c->microvm,
                           c->hosts,
                           c->session};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        free(texts[i]);
    free(c);
}

int config_parse(const char *text, size_t len, const char *name, enum config_format format,
                 unsigned flags, struct workload_config **out, struct config_problems *problems,
                 struct cb_error *err)
{
    struct doc d;
    struct workload_config *c = cb_xcalloc(1, sizeof(*c));
    c->file = cb_xstrdup0(name);
    c->tier = TIER_M;
    if (doc_read(&d, text, len, name, format, problems)) {
        struct reader r = {.doc = &d, .problems = problems, .flags = flags, .user = c};
        config_read(&r, c);
    }
    doc_release(&d);
    problems_sort(problems);
    int rc = problems_summary(problems, name ? name : "the config", err);
    if (rc < 0) {
        config_free(c);
        return rc;
    }
    config_forget_defaults(c);
    *out = c;
    return rc;
}

int config_load(const char *path, unsigned flags, struct workload_config **out,
                struct config_problems *problems, struct cb_error *err)
{
    CB_AUTO_BUF text = CB_BUF_INIT(CB_CONFIG_MAX);
    CB_AUTO_ERROR reading = CB_ERROR_INIT;
    if (cb_read_file(path, CB_CONFIG_MAX, &text, &reading) < 0) {
        problem_unreadable(problems, path, &reading);
        return problems_summary(problems, path, err);
    }
    return config_parse(text.data ? text.data : "", text.len, path, CONFIG_AUTO, flags, out,
                        problems, err);
}

char *config_name(const struct workload_config *c)
{
    if (c->display_name)
        return cb_xstrdup(c->display_name);
    /* A config that came by no file (a pipe) is named after the folder we are in. */
    const char *file = c->file && strcmp(c->file, "-") != 0 ? c->file : "./onboard.yaml";
    const char *slash = strrchr(file, '/');
    CB_AUTO_FREE char *dir =
        slash ? cb_xstrndup(file, (size_t)(slash - file) + 1) : cb_xstrdup(".");
    CB_AUTO_FREE char *real = realpath(dir, NULL);
    const char *base = real ? strrchr(real, '/') : NULL;
    char slug[65];
    size_t n = 0;
    for (const char *p = base ? base + 1 : ""; *p && n < 64; p++) {
        int ch = tolower((unsigned char)*p);
        if ((ch >= 'a' && ch <= 'z') || (ch >= '0' && ch <= '9'))
            slug[n++] = (char)ch;
        else if (n && slug[n - 1] != '-')
            slug[n++] = '-';
    }
    while (n && slug[n - 1] == '-')
        n--;
    slug[n] = '\0';
    if (n >= 3)
        return cb_xstrdup(slug);
    return n ? cb_xasprintf("%s-image", slug) : cb_xstrdup("image");
}

int64_t duration_parse(const char *text, struct cb_error *err)
{
    static const struct unit {
        const char *name;
        int64_t ms;
    } units[] = {{"d", 86400000}, {"h", 3600000}, {"m", 60000}, {"s", 1000}, {"ms", 1}};
    enum { N = sizeof(units) / sizeof(units[0]) };
    CB_AUTO_FREE char *q = quote_text(text, strlen(text));
    int64_t total = 0;
    size_t next = 0; /* units come from large to small, each once */
    const char *p = text;
    do {
        const char *from = p;
        int64_t v = 0;
        for (; *p >= '0' && *p <= '9' && p - from < 12; p++)
            v = v * 10 + (*p - '0');
        size_t len = strspn(p, "dhms");
        size_t u = next;
        while (u < N && (strlen(units[u].name) != len || strncmp(units[u].name, p, len) != 0))
            u++;
        if (p == from || u == N)
            return cb_fail(err, CB_E_CONFIG,
                           "%s is not a duration; accepted are 90s, 30m, 1h30m (units d, h, m, s, "
                           "ms, from large to small)",
                           q);
        if (v > INT64_C(366) * 86400000 / units[u].ms)
            return cb_fail(err, CB_E_CONFIG, "the duration %s is longer than a year", q);
        total += v * units[u].ms;
        next = u + 1;
        p += len;
    } while (*p);
    if (total > INT64_C(366) * 86400000)
        return cb_fail(err, CB_E_CONFIG, "the duration %s is longer than a year", q);
    return total;
}
