/* What the subcommands share: errors, settings, opening state, cleaning up after the dead. */
#include "cli/cli.h"

#include "builder/sweep.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/log.h"
#include "support/mem.h"
#include "support/self.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>

int cli_exit_of_class(const char *name)
{
    if (name && strcmp(name, cb_code_name(CB_E_CONFIG)) == 0)
        return EXIT_BAD_INPUT;
    if (name && strcmp(name, cb_code_name(CB_E_ENV)) == 0)
        return EXIT_ENVIRONMENT;
    if (name && strcmp(name, cb_code_name(CB_E_CANCELED)) == 0)
        return EXIT_INTERRUPTED;
    return EXIT_BUILD_FAILED;
}

void cli_put_text(FILE *out, const char *text, const char *end)
{
    for (size_t n = strcspn(text, end); n; text++, n--) {
        unsigned char c = (unsigned char)text[0];
        if (c == 0xc2 && n > 1 && (unsigned char)text[1] < 0xa0) { /* U+0080 to U+009F */
            text++;
            n--;
        } else if (c == '\n' || c == '\t' || (c >= 0x20 && c != 0x7f)) {
            fputc(c, out);
        }
    }
}

int cli_fail(const struct cb_error *err)
{
    fputs("capsule-build: ", stderr);
    cli_put_text(stderr, err->msg ? err->msg : "failed", "");
    if (err->hint) {
        fputs("\n  ", stderr);
        cli_put_text(stderr, err->hint, "");
    }
    fputc('\n', stderr);
    return cli_exit_of_class(cb_code_name(err->code));
}

int cli_refuse(const struct config_problems *p, const struct cb_error *err)
{
    return p->n_errors == 1 ? cli_exit_of_class(cb_code_name(err->code)) : cli_fail(err);
}

void cli_print_problems(const struct config_problems *p)
{
    CB_AUTO_BUF text = CB_BUF_INIT(16u << 20);
    config_problems_print(p, &text);
    if (text.len)
        fputs(text.data, stderr);
}

int cli_settings(const struct cli_args *a, struct settings **out)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct config_problems problems = {0};
    int rc = settings_load(a->config_file, out, &problems, &err);
    cli_print_problems(&problems);
    if (rc < 0)
        rc = cli_refuse(&problems, &err);
    config_problems_release(&problems);
    if (rc)
        return rc;
    struct settings *s = *out;
    for (size_t i = 0; i < a->mirrors.n && rc >= 0; i++)
        rc = settings_add_mirror(s, a->mirrors.v[i], &err);
    if (rc < 0) {
        (void)cb_wrap(&err, "--registry-mirror");
        settings_free(s);
        *out = NULL;
        return cli_fail(&err);
    }
    if (a->kernel) {
        free(s->kernel);
        s->kernel = realpath(a->kernel, NULL);
        if (!s->kernel)
            s->kernel = cb_xstrdup(a->kernel); /* the build says that it is missing */
    }
    if (a->isolation) {
        free(s->isolation);
        s->isolation = cb_xstrdup(a->isolation);
    }
    if (a->pull) {
        free(s->pull);
        s->pull = cb_xstrdup(a->pull);
    }
    if (a->allow_host_network)
        s->allow_host_network = true;
    settings_export(s);
    return 0;
}

void cli_settings_argv(const struct cli_args *a, struct cb_strv *argv)
{
    if (a->config_file) {
        cb_strv_add(argv, "--config");
        cb_strv_add(argv, a->config_file);
    }
    for (size_t i = 0; i < a->mirrors.n; i++) {
        cb_strv_add(argv, "--registry-mirror");
        cb_strv_add(argv, a->mirrors.v[i]);
    }
    if (a->kernel) {
        cb_strv_add(argv, "--kernel");
        cb_strv_add(argv, a->kernel);
    }
    if (a->allow_host_network)
        cb_strv_add(argv, "--allow-host-network");
}

static int make_home(const struct settings *s, struct cb_error *err)
{
    int rc = cb_mkdir_p(s->home, 0755, err);
    if (rc < 0) {
        err->code = CB_E_ENV;
        cb_hint(err, "set CAPSULE_BUILD_HOME to a folder that you can write to");
    }
    return rc;
}

int cli_open_queue(const struct settings *s, struct queue **out)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/queue.db", s->home);
    if (make_home(s, &err) < 0 || queue_open(path, out, &err) < 0)
        return cli_fail(&err);
    return 0;
}

int cli_open_store(const struct settings *s, struct store **out)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/store", s->home);
    if (make_home(s, &err) < 0 || store_open(path, out, &err) < 0)
        return cli_fail(&err);
    return 0;
}

char *cli_job_program(void)
{
    char *path = cb_find_beside("capsule-build-job");
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (path && setenv(CLI_BUILD_ID_VARIABLE, cli_build_id, 1) == 0)
        return path;
    free(path);
    cb_fail(&err, CB_E_ENV,
            "capsule-build-job was not found: it is the part of capsule-build that "
            "reads images and runs builds");
    cb_hint(&err, "it belongs beside capsule-build, or in ../libexec/capsule-build of its folder; "
                  "`./dev build` makes both");
    (void)cli_fail(&err);
    return NULL;
}

char *cli_work_dir(const struct settings *s, const char *name)
{
    return cb_xasprintf("%s/work/%s", s->home, name);
}

static void sweep_one(const struct settings *s, const char *name)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *dir = cli_work_dir(s, name);
    if (cb_path_exists(dir) && (build_sweep(dir, &err) < 0 || cb_remove_tree(dir, &err) < 0))
        cb_log(CB_LOG_WARN, "sweep.failed", "dir", dir, "why", err.msg, NULL);
}

/* @prefix and a number: the folder of a process (a booted machine's, a probe's) that is gone. */
static bool is_of_dead(const char *name, const char *prefix)
{
    size_t n = strlen(prefix);
    if (strncmp(name, prefix, n) != 0 || !isdigit((unsigned char)name[n]))
        return false;
    long pid = strtol(name + n, NULL, 10);
    return pid > 0 && kill((pid_t)pid, 0) < 0 && errno == ESRCH;
}

static bool is_over(struct queue *q, const char *id)
{
    struct build_record r;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (queue_get(q, id, &r, &err) < 0)
        return err.code == CB_E_NOTFOUND;
    bool over = build_status_is_final(r.status);
    build_record_release(&r);
    return over;
}

/* What a process that was killed while it probed KVM left. */
static void sweep_probes(const struct settings *s)
{
    CB_AUTO_FREE char *tmp = cb_xasprintf("%s/tmp", s->home);
    CB_AUTO_DIR d = opendir(tmp);
    struct dirent *e;
    while (d && (e = readdir(d)) != NULL) {
        CB_AUTO_FREE char *dir = cb_xasprintf("%s/%s", tmp, e->d_name);
        if (is_of_dead(e->d_name, "kvm-probe-"))
            (void)cb_remove_tree(dir, NULL);
    }
}

void cli_clean_up_after_the_dead(const struct settings *s, struct queue *q)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (queue_abandon_dead(q, NULL, NULL, &err) < 0) {
        cb_log(CB_LOG_WARN, "queue.abandon_failed", "why", err.msg, NULL);
        return;
    }
    CB_AUTO_FREE char *work = cb_xasprintf("%s/work", s->home);
    CB_AUTO_DIR d = opendir(work);
    struct dirent *e;
    while (d && (e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.')
            continue;
        if (strncmp(e->d_name, "boot-", 5) == 0    ? is_of_dead(e->d_name, "boot-")
            : strncmp(e->d_name, "shell-", 6) == 0 ? is_of_dead(e->d_name, "shell-")
                                                   : is_over(q, e->d_name))
            sweep_one(s, e->d_name);
    }
    sweep_probes(s);
    CB_AUTO_FREE char *store_path = cb_xasprintf("%s/store", s->home);
    struct store *store = NULL;
    CB_AUTO_ERROR store_err = CB_ERROR_INIT;
    if (cb_path_exists(store_path) && store_open(store_path, &store, &store_err) >= 0)
        store_sweep_tmp(store);
    store_free(store);
}

int cli_signal_fd(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    (void)sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int cli_template_name(const struct cli_args *a, char **name, uint64_t *version)
{
    const char *word = a->words.v[0], *colon = strrchr(word, ':');
    *version = a->version;
    *name = colon ? cb_xstrndup(word, (size_t)(colon - word)) : cb_xstrdup(word);
    if (!colon)
        return 0;
    char *end = NULL;
    errno = 0;
    *version = colon[1] >= '1' && colon[1] <= '9' ? strtoull(colon + 1, &end, 10) : 0;
    if (*version && !errno && !*end && (!a->version || a->version == *version))
        return 0;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (a->version && *version)
        cb_fail(&err, CB_E_CONFIG, "%s and --version %" PRIu64 ": two versions", word, a->version);
    else
        cb_fail(&err, CB_E_CONFIG, "%s: not NAME or NAME:VERSION", word);
    return cli_fail(&err);
}

int cli_with_queue(struct cli_args *a,
                   int (*fn)(struct cli_args *, struct settings *, struct queue *))
{
    struct settings *s = NULL;
    struct queue *q = NULL;
    int rc = cli_settings(a, &s);
    if (rc)
        return rc;
    if ((rc = cli_open_queue(s, &q)) == 0) {
        cli_clean_up_after_the_dead(s, q);
        rc = fn(a, s, q);
    }
    queue_free(q);
    settings_free(s);
    return rc;
}

int cli_config_of(const struct build_record *r, struct workload_config **out, struct cb_error *err)
{
    struct config_problems problems = {0};
    int rc = config_parse(r->config, strlen(r->config), "build", CONFIG_JSON, CONFIG_NO_ENV, out,
                          &problems, err);
    config_problems_release(&problems);
    return rc;
}
