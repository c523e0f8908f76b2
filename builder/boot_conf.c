#include "builder/boot_conf.h"

#include "support/cleanup.h"
#include "support/mem.h"

static void line(struct cb_buf *out, const char *key, const char *value)
{
    if (!value || !*value)
        return;
    (void)cb_buf_addf(out, "%s ", key);
    for (const char *p = value; *p; p++) {
        if (*p == '\n')
            (void)cb_buf_adds(out, "\\n");
        else if (*p == '\\')
            (void)cb_buf_adds(out, "\\\\");
        else
            (void)cb_buf_add(out, p, 1);
    }
    (void)cb_buf_adds(out, "\n");
}

static void word(struct cb_buf *out, const char *key, const char *value)
{
    if (*value)
        line(out, key, value);
    else
        (void)cb_buf_addf(out, "%s \n", key); /* an empty argument is one too */
}

static void pairs(struct cb_buf *out, const char *key, const struct config_pairs *env)
{
    for (size_t i = 0; env && i < env->n; i++) {
        CB_AUTO_BUF b = CB_BUF_INIT(BOOT_CONF_MAX);
        (void)cb_buf_addf(&b, "%s=%s", env->v[i].key, env->v[i].value);
        out->over |= b.over;
        line(out, key, b.data);
    }
}

static int boot_command(struct cb_buf *out, const struct command *c, struct cb_error *err)
{
    if (c->type != COMMAND_SHELL && c->type != COMMAND_EXEC && c->type != COMMAND_START)
        return cb_fail(err, CB_E_CONFIG,
                       "workload.init_commands: a command of type %s does not "
                       "run at boot; shell, exec and start do",
                       command_type_name(c->type));
    (void)cb_buf_adds(out, "command\n");
    line(out, "command-script", c->script);
    for (size_t i = 0; !c->script && i < c->args.n; i++)
        word(out, "command-arg", c->args.v[i]);
    pairs(out, "command-env", &c->env_variables);
    if (c->run_as_root)
        line(out, "command-root", "1");
    if (c->timeout_ms > 0)
        (void)cb_buf_addf(out, "command-timeout %lld\n", (long long)c->timeout_ms);
    if (c->user) /* "" is root, whoever the image's user is */
        line(out, "command-user", *c->user ? c->user : "0");
    line(out, "command-workdir", c->workdir);
    if (c->type == COMMAND_START)
        line(out, "command-start", "1");
    return 0;
}

int boot_conf_dump(const struct boot_info *b, const struct config_pairs *default_env,
                   const char *default_user, const char *default_workdir, struct cb_buf *out,
                   struct cb_error *err)
{
    size_t before = out->len;
    line(out, "hostname", b->hostname);
    line(out, "init", b->init);
    pairs(out, "env", default_env);
    line(out, "default-user", default_user);
    line(out, "default-workdir", default_workdir);
    for (size_t i = 0; i < b->boot_commands.n; i++) {
        int rc = boot_command(out, &b->boot_commands.v[i], err);
        if (rc < 0)
            return rc;
    }
    for (size_t i = 0; i < b->start_argv.n; i++)
        word(out, "start-arg", b->start_argv.v[i]);
    pairs(out, "start-env", &b->start_env);
    if (b->start_user) /* "" is root, whoever the image's user is */
        line(out, "user", *b->start_user ? b->start_user : "0");
    line(out, "workdir", b->start_workdir);
    if (b->port)
        (void)cb_buf_addf(out, "port %u\n", b->port);
    line(out, "health", b->health_path);
    if (out->over || out->len - before > BOOT_CONF_MAX)
        return cb_fail(err, CB_E_LIMIT, "the boot file is larger than %u KiB", BOOT_CONF_MAX >> 10);
    return 0;
}

static void boot_drive(struct cb_buf *out, const char *label, const char *path, bool read_only,
                       bool own)
{
    line(out, "drive", label);
    line(out, "drive-path", path);
    if (read_only)
        line(out, "drive-read-only", "1");
    if (own)
        line(out, "drive-own", "1");
}

int boot_conf_drives(const struct workload_config *c, struct cb_buf *out, struct cb_error *err)
{
    size_t before = out->len;
    for (size_t i = 0; i < c->n_layers; i++) {
        for (size_t j = 0; j < c->layers[i].n_drives; j++) {
            const struct drive *d = &c->layers[i].drives[j];
            char label[DRIVE_LABEL_MAX + 1];
            drive_label(d, label);
            CB_AUTO_FREE char *path = drive_mount_path(d);
            boot_drive(out, label, path, d->read_only, d->commands.n == 0);
        }
    }
    if (config_workspace_size_gb(c))
        boot_drive(out, WORKSPACE_LABEL, WORKSPACE_PATH, false, true);
    if (out->over || out->len - before > BOOT_CONF_MAX / 2)
        return cb_fail(err, CB_E_LIMIT, "the drives' mount paths are too long for the boot file");
    return 0;
}
