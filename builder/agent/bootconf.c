/* bootconf: what the image starts with, from lines "key value" (builder/boot_conf.h has the list),
 * where a value has "\n" for a newline and "\\" for a backslash. */
#include "builder/agent/agent.h"

#include <stdlib.h>
#include <string.h>

#define COMMANDS_MAX 1024

static char *unescape(const char *p, size_t n)
{
    char *s = ag_alloc(n + 1);
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        if (p[i] == '\\' && i + 1 < n) {
            i++;
            s[k++] = (char)(p[i] == 'n' ? '\n' : p[i]);
        } else {
            s[k++] = p[i];
        }
    }
    return s;
}

static void set(char **to, const char *value)
{
    free(*to);
    *to = ag_strdup(value);
}

static int on_command(struct boot_conf *b, const char *key, const char *value, struct fail *f)
{
    uint64_t v;
    if (!*key) {
        if (b->n_commands >= COMMANDS_MAX)
            return fail_set(f, FAIL_IMAGE, "too many boot commands");
        b->commands = ag_realloc(b->commands, (b->n_commands + 1) * sizeof *b->commands);
        b->commands[b->n_commands++] = (struct step_spec){0};
        return 0;
    }
    if (b->n_commands == 0)
        return fail_set(f, FAIL_IMAGE, "command%s before command", key);
    struct step_spec *s = &b->commands[b->n_commands - 1];
    if (strcmp(key, "-script") == 0)
        set(&s->script, value);
    else if (strcmp(key, "-arg") == 0)
        words_add(&s->argv, value);
    else if (strcmp(key, "-env") == 0)
        env_set(&s->env, value);
    else if (strcmp(key, "-root") == 0)
        s->root = strcmp(value, "1") == 0;
    else if (strcmp(key, "-start") == 0)
        s->goes_on = strcmp(value, "1") == 0;
    else if (strcmp(key, "-user") == 0)
        set(&s->user, value);
    else if (strcmp(key, "-workdir") == 0)
        set(&s->workdir, value);
    else if (strcmp(key, "-timeout") == 0 && parse_number(value, INT64_MAX / 4, &v))
        s->timeout_ms = v;
    return 0;
}

static int on_drive(struct boot_conf *b, const char *key, const char *value, struct fail *f)
{
    if (!*key) {
        if (b->n_drives == AG_DRIVES_MAX)
            return fail_set(f, FAIL_IMAGE, "too many drives");
        set(&b->drives[b->n_drives++].label, value);
        return 0;
    }
    if (b->n_drives == 0)
        return fail_set(f, FAIL_IMAGE, "drive%s before drive", key);
    struct boot_drive *d = &b->drives[b->n_drives - 1];
    if (strcmp(key, "-path") == 0)
        set(&d->path, value);
    else if (strcmp(key, "-read-only") == 0)
        d->read_only = strcmp(value, "1") == 0;
    else if (strcmp(key, "-own") == 0)
        d->own = strcmp(value, "1") == 0;
    return 0;
}

/* Each has a place to be mounted at. */
static int check_drives(const struct boot_conf *b, struct fail *f)
{
    for (size_t i = 0; i < b->n_drives; i++)
        if (!b->drives[i].path || b->drives[i].path[0] != '/')
            return fail_set(f, FAIL_IMAGE, "drive %.20s without a path", b->drives[i].label);
    return 0;
}

static int on_line(struct boot_conf *b, const char *key, const char *value, struct fail *f)
{
    const struct {
        const char *key;
        char **to;
    } texts[] = {{"hostname", &b->hostname},
                 {"init", &b->init},
                 {"health", &b->health},
                 {"user", &b->user},
                 {"workdir", &b->workdir},
                 {"default-user", &b->default_user},
                 {"default-workdir", &b->default_workdir}};
    uint64_t v;
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        if (strcmp(key, texts[i].key) == 0) {
            set(texts[i].to, value);
            return 0;
        }
    if (strcmp(key, "env") == 0)
        env_set(&b->env, value);
    else if (strcmp(key, "start-env") == 0)
        env_set(&b->start_env, value);
    else if (strcmp(key, "start-arg") == 0)
        words_add(&b->start_argv, value);
    else if (strncmp(key, "command", 7) == 0)
        return on_command(b, key + 7, value, f);
    else if (strncmp(key, "drive", 5) == 0)
        return on_drive(b, key + 5, value, f);
    else if (strcmp(key, "port") == 0) {
        if (!parse_number(value, 65535, &v))
            return fail_set(f, FAIL_IMAGE, "port \"%.20s\"", value);
        b->port = (uint16_t)v;
    }
    return 0;
}

int boot_conf_parse(const char *text, size_t n, struct boot_conf *b, struct fail *f)
{
    *b = (struct boot_conf){0};
    int rc = 0;
    for (size_t at = 0; rc == 0 && at < n;) {
        const char *line = text + at;
        const char *end = memchr(line, '\n', n - at);
        size_t len = end ? (size_t)(end - line) : n - at;
        at += len + 1;
        const char *space = memchr(line, ' ', len);
        size_t key_len = space ? (size_t)(space - line) : len;
        char *key = ag_strndup(line, key_len);
        char *value = space ? unescape(space + 1, len - key_len - 1) : ag_strdup("");
        rc = on_line(b, key, value, f);
        free(key);
        free(value);
    }
    return rc < 0 ? rc : check_drives(b, f);
}

void boot_conf_release(struct boot_conf *b)
{
    char *owned[] = {b->hostname, b->init,         b->health,         b->user,
                     b->workdir,  b->default_user, b->default_workdir};
    for (size_t i = 0; i < ARRAY_LEN(owned); i++)
        free(owned[i]);
    words_release(&b->env);
    words_release(&b->start_argv);
    words_release(&b->start_env);
    for (size_t i = 0; i < b->n_commands; i++)
        step_release(&b->commands[i]);
    free(b->commands);
    for (size_t i = 0; i < b->n_drives; i++) {
        free(b->drives[i].label);
        free(b->drives[i].path);
    }
    *b = (struct boot_conf){0};
}
