#include "schemas/build_options.h"

#include "schemas/reference.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static const char *const isolation_names[] = {"auto", "vm", "container"};
static const char *const pull_names[] = {"always", "missing", "never"};

static int find_name(const char *name, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(name, names[i]) == 0)
            return (int)i;
    return -1;
}

int isolation_from_name(const char *name)
{
    return find_name(name, isolation_names, 3);
}

int pull_from_name(const char *name)
{
    return find_name(name, pull_names, 3);
}

static bool has_copy(const struct commands *c)
{
    for (size_t i = 0; i < c->n; i++)
        if (c->v[i].type == COMMAND_COPY)
            return true;
    return false;
}

/* Does a layer take files that lie beside the config? */
static bool takes_files(const struct workload_config *c)
{
    for (size_t i = 0; i < c->n_layers; i++) {
        const struct layer *l = &c->layers[i];
        for (size_t k = 0; k < l->n_context; k++)
            if (l->context[k].src)
                return true;
        if (has_copy(&l->init_commands))
            return true;
        for (size_t k = 0; k < l->n_drives; k++)
            if (has_copy(&l->drives[k].commands))
                return true;
    }
    return false;
}

void build_options_place(struct build_options *o, const struct workload_config *c)
{
    if (!(c->base_image && image_ref_is_relative(c->base_image)) && !takes_files(c))
        return;
    const char *file = c->file && strcmp(c->file, "-") != 0 ? c->file : "./onboard.yaml";
    const char *slash = strrchr(file, '/');
    CB_AUTO_FREE char *dir =
        slash ? cb_xstrndup(file, (size_t)(slash - file) + 1) : cb_xstrdup(".");
    o->base_dir = realpath(dir, NULL);
}

void build_options_release(struct build_options *o)
{
    free(o->base_dir);
    free(o->resume);
    free(o->lock);
    o->base_dir = o->resume = o->lock = NULL;
    cb_strv_release(&o->refresh);
}

char *build_options_dump(const struct build_options *o)
{
    json_t *j = json_pack("{s:s, s:s, s:b, s:b, s:b, s:b, s:b, s:I, s:s*, s:s*, s:s*}", "isolation",
                          isolation_names[o->isolation], "pull", pull_names[o->pull], "force",
                          o->force, "clean", o->clean, "renew_builtin", o->renew_builtin, "locked",
                          o->locked, "no_boot_check", o->no_boot_check, "boot_timeout_ms",
                          (json_int_t)o->boot_timeout_ms, "base_dir", o->base_dir, "resume",
                          o->resume, "lock", o->lock);
    json_t *refresh = o->refresh.n ? json_array() : NULL; /* whoever asks for none asks as before */
    for (size_t i = 0; i < o->refresh.n; i++)
        (void)json_array_append_new(refresh, json_string(o->refresh.v[i]));
    if (refresh)
        (void)json_object_set_new(j, "refresh", refresh);
    char *text = j ? json_dumps(j, JSON_SORT_KEYS | JSON_COMPACT) : NULL;
    json_decref(j);
    return text ? text : cb_xstrdup("{}");
}

int build_options_parse(const char *text, struct build_options *o, struct cb_error *err)
{
    json_error_t je;
    json_auto_t *j = json_loads(text, JSON_REJECT_DUPLICATES, &je);
    const char *iso = "auto", *pull = "always", *base_dir = NULL, *resume = NULL, *lock = NULL;
    int force = 0, clean = 0, renew = 0, locked = 0, no_check = 0;
    json_int_t timeout = 0;
    json_t *refresh = NULL;
    if (!j || json_unpack_ex(j, &je, JSON_STRICT,
                             "{s?s, s?s, s?b, s?b, s?b, s?b, s?b, s?I, s?s, s?s, s?s, s?o}",
                             "isolation", &iso, "pull", &pull, "force", &force, "clean", &clean,
                             "renew_builtin", &renew, "locked", &locked, "no_boot_check", &no_check,
                             "boot_timeout_ms", &timeout, "base_dir", &base_dir, "resume", &resume,
                             "lock", &lock, "refresh", &refresh) < 0)
        return cb_fail(err, CB_E_CORRUPT, "build options: %s", je.text);
    int i = isolation_from_name(iso), p = pull_from_name(pull);
    if (i < 0 || p < 0 || timeout < 0 || timeout > 86400000 || (base_dir && *base_dir != '/') ||
        (resume && strspn(resume, "0123456789ABCDEFGHJKMNPQRSTVWXYZ") != strlen(resume)))
        return cb_fail(err, CB_E_CORRUPT, "build options: a value is out of range");
    o->isolation = (enum isolation)i;
    o->pull = (enum pull_policy)p;
    o->force = force != 0;
    o->clean = clean != 0;
    o->renew_builtin = renew != 0;
    o->locked = locked != 0;
    o->no_boot_check = no_check != 0;
    o->boot_timeout_ms = timeout;
    for (size_t k = 0; k < json_array_size(refresh); k++)
        if (!json_is_string(json_array_get(refresh, k)))
            return cb_fail(err, CB_E_CORRUPT, "build options: refresh: must be names of layers");
    for (size_t k = 0; k < json_array_size(refresh); k++)
        cb_strv_add(&o->refresh, json_string_value(json_array_get(refresh, k)));
    o->base_dir = cb_xstrdup0(base_dir);
    o->resume = cb_xstrdup0(resume);
    o->lock = cb_xstrdup0(lock);
    return 0;
}

static const struct layer *layer_named(const struct workload_config *c, const char *name)
{
    for (size_t i = 0; i < c->n_layers; i++)
        if (strcmp(c->layers[i].name, name) == 0)
            return &c->layers[i];
    return NULL;
}

static int hint_refreshable(const struct workload_config *c, struct cb_error *err)
{
    CB_AUTO_BUF names = CB_BUF_INIT(64 << 10);
    for (size_t i = 0; i < c->n_layers; i++)
        if (c->layers[i].refresh_commands.n)
            (void)cb_buf_addf(&names, "%s%s", names.len ? ", " : "", c->layers[i].name);
    return cb_hint(err, "%s%s", names.len ? "layers with refresh_commands: " : "no layer has any",
                   names.len ? names.data : "");
}

int build_refuse_refresh(const struct build_options *o, const struct workload_config *c,
                         struct cb_error *err)
{
    if (o->refresh.n && (o->force || o->clean))
        return cb_fail(err, CB_E_CONFIG,
                       "--refresh goes on from what a layer left, and --%s takes nothing of it",
                       o->force ? "force" : "clean");
    for (size_t i = 0; i < o->refresh.n; i++) {
        const struct layer *l = layer_named(c, o->refresh.v[i]);
        if (l && l->refresh_commands.n)
            continue;
        cb_fail(err, CB_E_CONFIG,
                l ? "--refresh %s: the layer has no refresh_commands"
                  : "--refresh %s: there is no such layer",
                o->refresh.v[i]);
        return hint_refreshable(c, err);
    }
    return 0;
}

/* Nothing of an empty image can run a command; files that a layer takes from outside might. */
static int refuse_on_scratch(const struct workload_config *c, struct cb_error *err)
{
    for (size_t i = 0; i < c->n_layers; i++) {
        const struct layer *l = &c->layers[i];
        if (l->n_context)
            return 0;
        if (!l->init_commands.n)
            continue;
        const struct command *cmd = &l->init_commands.v[0];
        if (cmd->type == COMMAND_COPY)
            return 0;
        cb_fail(err, CB_E_CONFIG,
                "%s:%d:%d: layer %s: base_image: scratch is an empty image: there is no program "
                "in it that could run this command",
                c->file ? c->file : "config", cmd->loc.line, cmd->loc.column, l->name);
        return cb_hint(err, "build on an image that has a shell, such as minimal-debian, or bring "
                            "files in with `context`");
    }
    return 0;
}

/* They make what is on the drive and nothing else: what would hold for later commands stands among
 * the layer's own. */
static int refuse_in_drives(const struct workload_config *c, const struct layer *l,
                            struct cb_error *err)
{
    for (size_t i = 0; i < l->n_drives; i++) {
        const struct commands *cmds = &l->drives[i].commands;
        for (size_t j = 0; j < cmds->n; j++) {
            const struct command *cmd = &cmds->v[j];
            if (cmd->type == COMMAND_SHELL || cmd->type == COMMAND_EXEC ||
                cmd->type == COMMAND_COPY)
                continue;
            cb_fail(err, CB_E_CONFIG,
                    "%s:%d:%d: layer %s, drive %s: a command of type %s cannot fill a drive; "
                    "shell, exec and copy can",
                    c->file ? c->file : "config", cmd->loc.line, cmd->loc.column, l->name,
                    l->drives[i].drive_id, command_type_name(cmd->type));
            return cb_hint(err, "move it to the layer's init_commands");
        }
    }
    return 0;
}

/* What a command sets or starts would have to be known to later builds, which find it in the file
 * alone. */
static int refuse_in_refresh(const struct workload_config *c, const struct layer *l,
                             struct cb_error *err)
{
    for (size_t i = 0; i < l->refresh_commands.n; i++) {
        const struct command *cmd = &l->refresh_commands.v[i];
        if (cmd->type != COMMAND_SHELL && cmd->type != COMMAND_EXEC)
            return cb_fail(err, CB_E_CONFIG,
                           "%s:%d:%d: layer %s: a command of type %s cannot refresh it; shell and "
                           "exec can",
                           c->file ? c->file : "config", cmd->loc.line, cmd->loc.column, l->name,
                           command_type_name(cmd->type));
    }
    return 0;
}

/* Its only words are scopes; what they are is seen when a token is asked for. */
static int refuse_auth(const struct workload_config *c, const struct layer *l, struct cb_error *err)
{
    for (size_t i = 0; i < l->init_commands.n; i++) {
        const struct command *cmd = &l->init_commands.v[i];
        for (size_t j = 0; cmd->type == COMMAND_GCP_AUTH && j < cmd->args.n; j++) {
            const char *word = cmd->args.v[j];
            if (strncmp(word, "--scope=", 8) == 0 && word[8])
                continue;
            if (strcmp(word, "--scope") != 0 || ++j == cmd->args.n)
                return cb_fail(err, CB_E_CONFIG,
                               "%s:%d:%d: layer %s: gcp-auth: expected `--scope NAME`, found %s",
                               c->file ? c->file : "config", cmd->loc.line, cmd->loc.column,
                               l->name, word);
        }
    }
    return 0;
}

int build_refuse(const struct workload_config *c, struct cb_error *err)
{
    for (size_t i = 0; i < c->n_layers; i++) {
        int rc = refuse_auth(c, &c->layers[i], err);
        if (rc == 0)
            rc = refuse_in_drives(c, &c->layers[i], err);
        if (rc == 0)
            rc = refuse_in_refresh(c, &c->layers[i], err);
        if (rc < 0)
            return rc;
    }
    for (size_t i = 0; i < c->boot_commands.n; i++) {
        const struct command *cmd = &c->boot_commands.v[i];
        if (cmd->type != COMMAND_SHELL && cmd->type != COMMAND_EXEC && cmd->type != COMMAND_START)
            return cb_fail(err, CB_E_CONFIG,
                           "%s:%d:%d: workload.init_commands: a command of type %s does not run at "
                           "boot; shell, exec and start do",
                           c->file ? c->file : "config", cmd->loc.line, cmd->loc.column,
                           command_type_name(cmd->type));
    }
    if (!c->base_image) {
        cb_fail(err, CB_E_CONFIG, "%s: base_image is missing: there is nothing to build on",
                c->file ? c->file : "config");
        return cb_hint(err,
                       "add `base_image: minimal-debian`, or the name of an image of a registry");
    }
    if (strcmp(c->base_image, "scratch") == 0)
        return refuse_on_scratch(c, err);
    return 0;
}
