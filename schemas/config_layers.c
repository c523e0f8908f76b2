/* Layers, and what they hold besides commands. */
#include "schemas/config_fields.h"

#include "schemas/copy_args.h"
#include "schemas/git_source.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <ctype.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

bool read_absolute_path(struct reader *r, const struct at *at, const struct doc_node *n,
                        const struct field *f, void *to)
{
    const char *accepts = "an absolute path such as /srv/app";
    const char *text = read_text(r, at, n, accepts);
    if (!text)
        return false;
    if (*text != '/' || n->n >= 4096 || strchr(text, '\n'))
        return read_expected(r, at, n, accepts);
    return read_string(r, at, n, f, to);
}

/* NAME or UID, with :GROUP or :GID if wanted. */
bool user_valid(const char *text)
{
    size_t colons = 0, run = 0;
    bool ok = strlen(text) <= 128;
    for (const char *p = text; ok && *p; p++) {
        if (*p == ':') {
            ok = run > 0 && ++colons == 1;
            run = 0;
        } else {
            ok = isalnum((unsigned char)*p) || *p == '_' || *p == '.' || *p == '$' ||
                 (*p == '-' && run > 0);
            run++;
        }
    }
    return ok && run > 0;
}

bool read_user(struct reader *r, const struct at *at, const struct doc_node *n,
               const struct field *f, void *to)
{
    const char *accepts = "a user name or number, with :group if wanted";
    const char *text = read_text(r, at, n, accepts);
    if (!text)
        return false;
    if (!user_valid(text))
        return read_expected(r, at, n, accepts);
    return read_string(r, at, n, f, to);
}

/* ---- drives ---- */

#define AT(member) offsetof(struct drive, member)

static bool read_label(struct reader *r, const struct at *at, const struct doc_node *n,
                       const struct field *f, void *to)
{
    const char *text = read_text(r, at, n, f->accepts);
    if (!text)
        return false;
    bool ok = n->n > 0 && n->n <= 16;
    for (const char *p = text; ok && *p; p++)
        ok = isalnum((unsigned char)*p) || strchr("._-", *p);
    if (!ok)
        return read_expected(r, at, n, f->accepts);
    return read_string(r, at, n, f, to);
}

/* Where a drive is mounted: not over the whole, and in one way of writing it. */
static bool read_mount_path(struct reader *r, const struct at *at, const struct doc_node *n,
                            const struct field *f, void *to)
{
    const char *accepts = "an absolute path below / such as /data, without // or ..";
    const char *text = read_text(r, at, n, accepts);
    if (!text)
        return false;
    bool ok = text[0] == '/' && text[1] && text[strlen(text) - 1] != '/' && !strstr(text, "//");
    for (const char *p = text; ok && p; p = strchr(p + 1, '/'))
        ok = !(p[1] == '.' && (p[2] == '/' || !p[2] || (p[2] == '.' && (p[3] == '/' || !p[3]))));
    if (!ok)
        return read_expected(r, at, n, accepts);
    return read_absolute_path(r, at, n, f, to);
}

static const struct field drive_fields[] = {
    {.name = "drive_id",
     .read = read_id,
     .offset = AT(drive_id),
     .max = 64,
     .required = true,
     .accepts = "a name for the drive, unique in the file"},
    {.name = "label",
     .read = read_label,
     .offset = AT(label),
     .accepts = "a label of 1 to 16 letters, digits, '.', '_' and '-'"},
    {.name = "size_gb", .read = read_u32, .offset = AT(size_gb), .min = 1, .max = 2048},
    {.name = "read_only", .read = read_bool, .offset = AT(read_only)},
    {.name = "mount_path", .read = read_mount_path, .offset = AT(mount_path)},
    {.name = "commands", .read = read_commands, .offset = AT(commands)},
    {.name = NULL},
};
#undef AT

static bool read_drives(struct reader *r, const struct at *at, const struct doc_node *n,
                        const struct field *f, void *to)
{
    (void)f;
    struct layer *l = to;
    void *v = NULL;
    bool set = read_structs(r, at, n, drive_fields, "a list of drives", sizeof(struct drive),
                            offsetof(struct drive, loc), &v, &l->n_drives);
    l->drives = v;
    return set;
}

/* ---- context ---- */

#define AT(member) offsetof(struct context_source, member)

/* Below the folder that it is relative to: no leading slash, no "..". */
bool read_inner_path(struct reader *r, const struct at *at, const struct doc_node *n,
                     const struct field *f, void *to)
{
    const char *accepts = "a relative path without \"..\"";
    const char *text = read_text(r, at, n, accepts);
    if (!text)
        return false;
    if (!inner_path_valid(text))
        return read_expected(r, at, n, accepts);
    return read_string(r, at, n, f, to);
}

/* A repository libgit2 can fetch. A password in it would stand in the hash, the queue and the
 * manifest. */
static bool read_git(struct reader *r, const struct at *at, const struct doc_node *n,
                     const struct field *f, void *to)
{
    const char *accepts = "a repository such as https://github.com/org/app.git or git@host:org/app";
    const char *text = read_text(r, at, n, accepts);
    if (!text)
        return false;
    if (!git_url_valid(text))
        return read_expected(r, at, n, accepts);
    if (git_url_has_password(text)) {
        read_problem_private(r, at, n,
                             "a password in the URL would be stored with the build; use a secret");
        return false;
    }
    return read_string(r, at, n, f, to);
}

/* A branch, tag or commit, as git check-ref-format has it. */
static bool read_git_ref(struct reader *r, const struct at *at, const struct doc_node *n,
                         const struct field *f, void *to)
{
    const char *accepts = "a branch, a tag or a commit";
    const char *text = read_text(r, at, n, accepts);
    if (!text)
        return false;
    bool ok = *text != '-' && *text != '/' && !strstr(text, "..") && !strstr(text, "//");
    for (const char *p = text; ok && *p; p++)
        ok = (unsigned char)*p > 0x20 && *p != 0x7f && !strchr("~^:?*[\\", *p);
    if (!ok)
        return read_expected(r, at, n, accepts);
    return read_string(r, at, n, f, to);
}

static const struct field context_fields[] = {
    {.name = "src", .read = read_inner_path, .offset = AT(src)},
    {.name = "git", .read = read_git, .offset = AT(git), .max = 2048},
    {.name = "ref", .read = read_git_ref, .offset = AT(ref), .max = 256},
    {.name = "path", .read = read_inner_path, .offset = AT(path)},
    {.name = "dst",
     .read = read_absolute_path,
     .offset = AT(dst),
     .required = true,
     .accepts = "where the files go"},
    {.name = NULL},
};
#undef AT

static bool read_context(struct reader *r, const struct at *at, const struct doc_node *n,
                         const struct field *f, void *to)
{
    (void)f;
    struct layer *l = to;
    void *v = NULL;
    bool set =
        read_structs(r, at, n, context_fields, "a list of sources", sizeof(struct context_source),
                     offsetof(struct context_source, loc), &v, &l->n_context);
    l->context = v;
    for (size_t i = 0; i < l->n_context; i++) {
        const struct context_source *s = &l->context[i];
        const struct at here = {.up = at, .index = i};
        const struct doc_node *item = n->items[i];
        if (item->kind != DOC_MAP)
            continue;
        bool src = doc_child(item, "src"), git = doc_child(item, "git");
        if (src && git)
            read_problem(r, &here, item, "either `src` or `git`, not both");
        else if (!src && !git)
            read_problem(
                r, &here, item,
                "expected {src, dst} for files, or {git, ref, path, dst} for a repository");
        else if (src && (s->ref || s->path))
            read_problem(r, &here, item, "`ref` and `path` belong to `git`");
    }
    return set;
}

/* ---- secrets ---- */

#define AT(member) offsetof(struct secret, member)

/* Its value stays out of the model, only that the variable of ${NAME} is set is checked. */
static bool read_secret_env(struct reader *r, const struct at *at, const struct doc_node *n,
                            const struct field *f, void *to)
{
    const char *text = read_text(r, at, n, f->accepts);
    return text && read_expand(r, at, n, text, NULL) && read_variable(r, at, n, f, to);
}

static const struct field secret_fields[] = {
    {.name = "id",
     .read = read_id,
     .offset = AT(id),
     .max = 128,
     .required = true,
     .accepts = "the secret's name"},
    {.name = "env",
     .read = read_secret_env,
     .offset = AT(env),
     .max = 1024,
     .accepts = VARIABLE_ACCEPTS},
    {.name = "path", .read = read_absolute_path, .offset = AT(path)},
    {.name = "version", .read = read_string, .offset = AT(version), .max = 128},
    {.name = NULL},
};
#undef AT

static bool read_secrets(struct reader *r, const struct at *at, const struct doc_node *n,
                         const struct field *f, void *to)
{
    (void)f;
    struct layer *l = to;
    void *v = NULL;
    if (n->kind == DOC_LIST && n->n > 64) {
        read_problem(r, at, n, "more than 64 secrets in one layer");
        return false;
    }
    bool set = read_structs(r, at, n, secret_fields, "a list of secrets", sizeof(struct secret),
                            SIZE_MAX, &v, &l->n_secrets);
    l->secrets = v;
    for (size_t i = 0; i < l->n_secrets; i++) {
        const struct at here = {.up = at, .index = i};
        const struct doc_node *item = n->items[i];
        if (item->kind == DOC_MAP && !doc_child(item, "env") == !doc_child(item, "path"))
            read_problem(r, &here, item,
                         "a secret has either `env` (a variable) or `path` (a file)");
        for (size_t k = 0; l->secrets[i].id && k < i; k++) {
            if (!l->secrets[k].id || strcmp(l->secrets[k].id, l->secrets[i].id) != 0)
                continue;
            const struct at where = {.up = &here, .key = "id"};
            read_problem(r, &where, doc_child(item, "id"), "duplicate secret id \"%s\"",
                         l->secrets[i].id);
            break;
        }
    }
    return set;
}

/* ---- layers ---- */

#define AT(member) offsetof(struct layer, member)

static bool read_interval(struct reader *r, const struct at *at, const struct doc_node *n,
                          const struct field *f, void *to)
{
    static const char *const words[] = {"daily", "weekly", "on_push", "on_base_change", NULL};
    const char *text = read_text(r, at, n, f->accepts);
    if (!text)
        return false;
    bool known = false;
    for (size_t i = 0; words[i]; i++)
        known = known || strcmp(text, words[i]) == 0;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (!known && duration_parse(text, &err) < 60000)
        return read_expected_near(r, at, n, f->accepts,
                                  isalpha((unsigned char)*text) ? nearest_word(text, words) : NULL);
    return read_string(r, at, n, f, to);
}

static bool read_layer_name(struct reader *r, const struct at *at, const struct doc_node *n,
                            const struct field *f, void *to)
{
    const char *text = read_text(r, at, n, f->accepts);
    if (!text)
        return false;
    if (!*text) {
        read_problem(r, at, n, "layer name must not be empty");
        return false;
    }
    if (strcmp(text, "_platform") == 0) {
        read_problem(r, at, n,
                     "the layer name \"_platform\" is reserved for the one made from `base_image`");
        return false;
    }
    for (const char *p = text; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            return read_expected(r, at, n, f->accepts);
    return read_string(r, at, n, f, to);
}

const struct field layer_fields[] = {
    {.name = "name",
     .read = read_layer_name,
     .offset = AT(name),
     .max = CONFIG_NAME_MAX,
     .accepts = "a name such as \"deps\""},
    {.name = "init_commands", .read = read_commands, .offset = AT(init_commands)},
    {.name = "refresh_commands", .read = read_commands, .offset = AT(refresh_commands)},
    {.name = "refresh_interval",
     .read = read_interval,
     .offset = AT(refresh_interval),
     .accepts = "daily, weekly, on_push, on_base_change, or a duration of a minute or more such as "
                "6h",
     .note = "refresh_interval"},
    {.name = "drives", .read = read_drives},
    {.name = "context", .read = read_context},
    {.name = "env", .read = read_env, .offset = AT(env), .more = "expand"},
    {.name = "workdir", .read = read_absolute_path, .offset = AT(workdir)},
    {.name = "user", .read = read_user, .offset = AT(user)},
    {.name = "secrets", .read = read_secrets},
    {.name = NULL},
};

static void check_layer(struct reader *r, const struct at *at, const struct doc_node *n,
                        const struct workload_config *c, size_t i)
{
    const struct layer *l = &c->layers[i];
    const struct doc_node *commands = doc_child(n, "init_commands");
    if (!doc_child(n, "name") && !is_misspelt(r, n, layer_fields, "name"))
        read_problem(r, at, n, "`name` is missing: layer name must not be empty");
    if (commands ? commands->kind == DOC_LIST && commands->n == 0
                 : !is_misspelt(r, n, layer_fields, "init_commands")) {
        CB_AUTO_FREE char *q = l->name ? quote_text(l->name, strlen(l->name)) : NULL;
        read_problem(r, at, commands ? commands : n,
                     "layer %s%smust have non-empty init_commands: a list of at least one command",
                     q ? q : "", q ? " " : "");
    }
    for (size_t k = 0; l->name && k < i; k++) {
        if (!c->layers[k].name || strcmp(c->layers[k].name, l->name) != 0)
            continue;
        CB_AUTO_FREE char *q = quote_text(l->name, strlen(l->name));
        const struct at where = {.up = at, .key = "name"};
        read_problem(r, &where, doc_child(n, "name"),
                     "duplicate layer name %s; the layer in line %d has it already", q,
                     c->layers[k].loc.line);
        break;
    }
}

enum { N_UNIQUE = 3 };

/* What no two drives of a config may share, as given or by default. */
static const char *const unique_keys[N_UNIQUE] = {"drive_id", "label", "mount_path"};

struct unique {
    const struct drive *drive;
    char *text[N_UNIQUE]; /* owned */
};

static void unique_of(const struct drive *d, struct unique *u)
{
    char label[DRIVE_LABEL_MAX + 1];
    *u = (struct unique){.drive = d};
    if (!d->drive_id) /* a problem already; nothing follows from it */
        return;
    drive_label(d, label);
    u->text[0] = cb_xstrdup(d->drive_id);
    u->text[1] = cb_xstrdup(label);
    u->text[2] = drive_mount_path(d);
}

static void check_drive(struct reader *r, const struct at *at, const struct doc_node *n,
                        const struct unique *all, size_t i)
{
    for (size_t u = 0; u < N_UNIQUE; u++) {
        size_t k = 0;
        const char *text = all[i].text[u];
        while (k < i && !(text && all[k].text[u] && strcmp(all[k].text[u], text) == 0))
            k++;
        if (k == i)
            continue;
        const struct at where = {.up = at, .key = unique_keys[u]};
        const struct doc_node *given = doc_child(n, unique_keys[u]);
        CB_AUTO_FREE char *q = quote_text(text, strlen(text));
        if (given)
            read_problem(r, &where, given, "duplicate %s %s; the drive in line %d has it already",
                         unique_keys[u], q, all[k].drive->loc.line);
        else if (strcmp(all[i].text[0], all[k].text[0]) != 0) /* else that is said already */
            read_problem(r, at, n,
                         "its %s would be %s, which the drive in line %d has already; give it one",
                         unique_keys[u], q, all[k].drive->loc.line);
    }
}

static void check_drives(struct reader *r, const struct workload_config *c,
                         const struct doc_node *layers, const struct at *at)
{
    struct unique all[DRIVES_MAX];
    size_t n = 0;
    for (size_t i = 0; c->layers && i < c->n_layers; i++) {
        const struct doc_node *list = doc_child(layers->items[i], "drives");
        const struct at layer = {.up = at, .index = i};
        const struct at drives = {.up = &layer, .key = "drives"};
        if (n + c->layers[i].n_drives > DRIVES_MAX) {
            read_problem(r, &drives, list, "more than %d drives in one config", DRIVES_MAX);
            break;
        }
        for (size_t k = 0; list && k < c->layers[i].n_drives; k++) {
            const struct at here = {.up = &drives, .index = k};
            unique_of(&c->layers[i].drives[k], &all[n]);
            check_drive(r, &here, list->items[k], all, n++);
        }
    }
    for (size_t i = 0; i < n; i++)
        for (size_t u = 0; u < N_UNIQUE; u++)
            free(all[i].text[u]);
}

bool read_layers(struct reader *r, const struct at *at, const struct doc_node *n,
                 const struct field *f, void *to)
{
    (void)f;
    struct workload_config *c = to;
    if (n->kind == DOC_LIST && n->n > CONFIG_LAYERS_MAX) {
        read_problem(r, at, n, "more than %u layers", CONFIG_LAYERS_MAX);
        return false;
    }
    void *v = NULL;
    bool set = read_structs(r, at, n, layer_fields,
                            "a list of layers, each with `name` and "
                            "`init_commands`",
                            sizeof(struct layer), offsetof(struct layer, loc), &v, &c->n_layers);
    c->layers = v;
    for (size_t i = 0; c->layers && i < c->n_layers; i++) {
        const struct at here = {.up = at, .index = i};
        if (n->items[i]->kind == DOC_MAP)
            check_layer(r, &here, n->items[i], c, i);
    }
    if (set)
        check_drives(r, c, n, at);
    return set;
}
