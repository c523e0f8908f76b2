/* Commands: a string, or a map with a type and its arguments. */
#include "schemas/config_fields.h"

#include "schemas/copy_args.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char command_accepts[] =
    "a command: a text, or a map such as {args: [apt-get, update], run_as_root: true}";

static bool read_type(struct reader *r, const struct at *at, const struct doc_node *n,
                      const struct field *f, void *to)
{
    (void)f;
    static const struct word_meant meant[] = {
        {"bash", "shell"}, {"sh", "shell"}, {"run", "shell"}, {"cmd", "start"}, {NULL, NULL}};
    const char *words[COMMAND_TYPE_N + 1] = {NULL};
    for (int t = 0; t < COMMAND_TYPE_N; t++)
        words[t] = command_type_name((enum command_type)t);
    size_t i = 0;
    if (!read_one_of(r, at, n, words, meant, &i))
        return false;
    *(enum command_type *)to = (enum command_type)i;
    return true;
}

static bool read_args(struct reader *r, const struct at *at, const struct doc_node *n,
                      const struct field *f, void *to)
{
    struct cb_strv *out = to;
    if (n->kind == DOC_SCALAR && !doc_is_null(n)) {
        CB_AUTO_FREE char *q = quote_text(n->text, n->n);
        read_problem(r, at, n,
                     "expected a list of texts, found the text %s; for a line of shell leave the "
                     "map out and write the text itself, or [\"bash\", \"-lc\", %s]",
                     q, n->n > 40 ? "..." : q);
        return false;
    }
    if (!read_strv(r, at, n, f, to))
        return false;
    if (out->n && !*out->v[0]) {
        const struct at first = {.up = at, .index = 0};
        return read_expected(r, &first, n->items[0], "the name of a program");
    }
    return true;
}

/* LOW, MEDIUM, HIGH, or a number of units. */
static bool read_compute(struct reader *r, const struct at *at, const struct doc_node *n,
                         const struct field *f, void *to)
{
    static const char *const words[] = {"LOW", "MEDIUM", "HIGH"};
    int64_t units = 0;
    bool known = n->kind == DOC_SCALAR && doc_integer(n, &units) && units > 0;
    for (size_t i = 0; n->kind == DOC_SCALAR && i < 3; i++)
        known = known || strcasecmp(n->text, words[i]) == 0;
    if (!known)
        return read_expected(r, at, n, f->accepts);
    char **out = to;
    free(*out);
    *out = cb_xstrdup(n->text);
    return true;
}

/* 512MB, 2GiB: kept as it is written. */
static bool read_size(struct reader *r, const struct at *at, const struct doc_node *n,
                      const struct field *f, void *to)
{
    static const char *const units[] = {"KB", "MB", "GB", "KIB", "MIB", "GIB", "K", "M", "G"};
    const char *text = read_text(r, at, n, f->accepts);
    if (!text)
        return false;
    size_t digits = strspn(text, "0123456789");
    bool known = false;
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
        known = known || strcasecmp(text + digits, units[i]) == 0;
    if (digits == 0 || digits > 9 || text[0] == '0' || !known)
        return read_expected(r, at, n, f->accepts);
    return read_string(r, at, n, f, to);
}

#define AT(member) offsetof(struct command, member)

const struct field command_fields[] = {
    {.name = "type", .read = read_type, .offset = AT(type)},
    {.name = "args", .read = read_args, .offset = AT(args)},
    {.name = "run_as_root", .read = read_bool, .offset = AT(run_as_root)},
    {.name = "timeout",
     .read = read_duration,
     .offset = AT(timeout_ms),
     .min = 1,
     .max = CONFIG_STEP_MS_MAX},
    {.name = "max_retries", .read = read_u32, .offset = AT(max_retries), .max = 100},
    {.name = "compute",
     .read = read_compute,
     .offset = AT(compute),
     .accepts = "LOW, MEDIUM, HIGH or a whole number of units"},
    {.name = "ram",
     .read = read_size,
     .offset = AT(ram),
     .accepts = "a size such as 512MB or 2GiB"},
    {.name = "allowed_hosts",
     .read = read_hosts,
     .offset = AT(allowed_hosts),
     .accepts = "a list of host names"},
    {.name = "allowed_files",
     .read = read_strv,
     .offset = AT(allowed_files),
     .accepts = "a list of paths"},
    {.name = "env_variables", .read = read_env, .offset = AT(env_variables)},
    {.name = "name", .read = read_string, .offset = AT(name), .max = CONFIG_NAME_MAX},
    {.name = NULL},
};

/* How many arguments each type takes. */
static void check_args(struct reader *r, const struct at *at, const struct doc_node *n,
                       const struct command *c)
{
    static const struct {
        size_t min, max;
        const char *what;
    } rules[COMMAND_TYPE_N] = {
        [COMMAND_SHELL] = {1, SIZE_MAX, "`args`, such as [\"bash\", \"-lc\", \"make install\"]"},
        [COMMAND_EXEC] = {1, SIZE_MAX, "`args`: the program and its arguments"},
        [COMMAND_GCP_AUTH] = {0, SIZE_MAX, ""},
        [COMMAND_COPY] = {0, SIZE_MAX, ""},
        [COMMAND_ENV] = {1, SIZE_MAX, "`args`, such as [\"NAME=value\"]"},
        [COMMAND_WORKDIR] = {1, 1, "`args` with the one absolute path"},
        [COMMAND_USER] = {1, 1, "`args` with the one user"},
        [COMMAND_START] = {1, SIZE_MAX, "`args`: the program and its arguments"},
    };
    bool given = false;
    for (size_t i = 0; i < n->n; i++)
        given = given || strcmp(n->pairs[i].key->text, "args") == 0;
    if ((given && c->args.n == 0) || (!given && is_misspelt(r, n, command_fields, "args")))
        return; /* what is wrong with it has been said */
    if (c->args.n < rules[c->type].min || c->args.n > rules[c->type].max) {
        read_problem(r, at, n, "a command of type %s needs %s", command_type_name(c->type),
                     rules[c->type].what);
        return;
    }
    const char *what = rules[c->type].what;
    bool ok = true;
    for (size_t i = 0; ok && c->type == COMMAND_ENV && i < c->args.n; i++) {
        const char *eq = strchr(c->args.v[i], '=');
        ok = eq && eq > c->args.v[i];
    }
    if (c->type == COMMAND_WORKDIR)
        ok = *c->args.v[0] == '/';
    if (c->type == COMMAND_USER)
        ok = user_valid(c->args.v[0]);
    struct copy_args copy;
    if (c->type == COMMAND_COPY) {
        what = copy_args_parse(&c->args, &copy);
        ok = !what;
    }
    if (!ok)
        read_problem(r, at, given ? doc_child(n, "args") : n, "a command of type %s needs %s",
                     command_type_name(c->type), what);
}

/* `- echo "to: me"` is a map to YAML, and `- run: make` is how others write it: a word about that,
 * not about its keys. True when it was said. */
static bool is_text_as_map(struct reader *r, const struct at *at, const struct doc_node *n)
{
    static const char *const others[] = {"run",     "sh",  "bash",   "shell",
                                         "command", "cmd", "script", "exec"};
    if (r->doc->json || n->n != 1)
        return false;
    const struct doc_node *key = n->pairs[0].key;
    bool other = false;
    for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++)
        other = other || strcmp(key->text, others[i]) == 0;
    if (other && n->pairs[0].value->kind == DOC_SCALAR)
        read_problem(r, at, n, "a command is the text itself, without `%s:`", key->text);
    else if (strchr(key->text, ' '))
        read_problem(r, at, n,
                     "to YAML this is a map, because of the \": \" in it; put the whole command in "
                     "quotes, or below a `- |`");
    else
        return false;
    return true;
}

static void read_command(struct reader *r, const struct at *at, const struct doc_node *n,
                         struct command *c)
{
    static const struct field text = {.accepts = command_accepts};
    c->loc = read_loc(r, at, n);
    if (n->kind == DOC_MAP) {
        if (is_text_as_map(r, at, n))
            return;
        (void)read_map(r, at, n, command_fields, c);
        check_args(r, at, n, c);
        return;
    }
    if (n->kind == DOC_SCALAR && !doc_is_null(n) && n->text[strspn(n->text, " \t\r\n")] == '\0')
        read_problem(r, at, n, "an empty command; expected %s", command_accepts);
    else
        (void)read_string(r, at, n, &text, &c->script);
}

bool read_commands(struct reader *r, const struct at *at, const struct doc_node *n,
                   const struct field *f, void *to)
{
    struct commands *out = to;
    if (n->kind != DOC_LIST)
        return read_expected(r, at, n, f->accepts ? f->accepts : "a list of commands");
    if (n->n > CONFIG_COMMANDS_MAX) {
        read_problem(r, at, n, "more than %u commands in one list", CONFIG_COMMANDS_MAX);
        return false;
    }
    bool said = r->n_commands > CONFIG_COMMANDS_TOTAL_MAX;
    r->n_commands += n->n;
    if (r->n_commands > CONFIG_COMMANDS_TOTAL_MAX) {
        if (!said)
            read_problem(r, at, n, "more than %u commands in one config",
                         CONFIG_COMMANDS_TOTAL_MAX);
        return false;
    }
    for (size_t i = 0; i < n->n; i++) {
        const struct at here = {.up = at, .index = i};
        out->v = cb_xgrow(out->v, &out->cap, out->n, sizeof(*out->v));
        out->v[out->n] = (struct command){0};
        read_command(r, &here, n->items[i], &out->v[out->n++]);
    }
    return n->n > 0;
}

/* A task project: checked with the same readers, kept as JSON. */
struct task {
    char *entrypoint;
    struct command limits;
};
#undef AT
#define AT(member) offsetof(struct task, limits.member)

/* A file of Python or JavaScript beside the config. */
static bool read_entrypoint(struct reader *r, const struct at *at, const struct doc_node *n,
                            const struct field *f, void *to)
{
    static const char *const ends[] = {".py", ".ts", ".js", ".mjs", ".cjs"};
    const char *accepts = "a task file such as main.py or src/main.ts";
    const char *text = read_text(r, at, n, accepts);
    if (!text)
        return false;
    bool known = false;
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        size_t len = strlen(ends[i]);
        known = known || (n->n > len && strcmp(text + n->n - len, ends[i]) == 0);
    }
    if (!known)
        return read_expected(r, at, n, accepts);
    return read_inner_path(r, at, n, f, to);
}

static const struct field task_fields[] = {
    {.name = "entrypoint",
     .read = read_entrypoint,
     .offset = offsetof(struct task, entrypoint),
     .max = 4095,
     .required = true,
     .accepts = "the task file, such as main.py"},
    {.name = "compute",
     .read = read_compute,
     .offset = AT(compute),
     .accepts = "LOW, MEDIUM, HIGH or a whole number of units"},
    {.name = "ram",
     .read = read_size,
     .offset = AT(ram),
     .accepts = "a size such as 512MB or 2GiB"},
    {.name = "timeout",
     .read = read_duration,
     .offset = AT(timeout_ms),
     .min = 1,
     .max = CONFIG_STEP_MS_MAX},
    {.name = "max_retries", .read = read_u32, .offset = AT(max_retries), .max = 100},
    {.name = "allowed_files",
     .read = read_strv,
     .offset = AT(allowed_files),
     .accepts = "a list of paths"},
    {.name = "allowed_hosts",
     .read = read_hosts,
     .offset = AT(allowed_hosts),
     .accepts = "a list of host names"},
    {.name = "env_variables", .read = read_env, .offset = AT(env_variables)},
    {.name = NULL},
};

bool read_task(struct reader *r, const struct at *at, const struct doc_node *n,
               const struct field *f, void *to)
{
    struct task t = {0};
    bool ok = read_map(r, at, n, task_fields, &t);
    free(t.entrypoint);
    command_release(&t.limits);
    return ok && read_object(r, at, n, f, to);
}
