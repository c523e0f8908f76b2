/* export: a template as a file for others (layers/export.h). */
#include "layers/export.h"
#include "cli/cli.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SHOW_EVERY_MS = 100 };

static volatile sig_atomic_t stop;

static void on_stop(int sig)
{
    (void)sig;
    stop = 1;
}

static bool canceled(void)
{
    return stop != 0;
}

struct shown {
    bool terminal, line; /* a line stands there that is not ended */
    int64_t at_ms;
};

static void on_bytes(void *arg, uint64_t current, uint64_t total, const char *unit)
{
    struct shown *s = arg;
    int64_t now = cb_monotonic_ms();
    (void)unit;
    if (!s->terminal || (s->line && now - s->at_ms < SHOW_EVERY_MS))
        return;
    char done[32], all[32];
    cb_human_bytes(current, done, sizeof(done));
    cb_human_bytes(total, all, sizeof(all));
    fprintf(stderr, "\r\033[Kexporting: %s of about %s", done, all);
    s->line = true;
    s->at_ms = now;
}

static void end_line(struct shown *s)
{
    if (s->line)
        fputs("\r\033[K", stderr);
    s->line = false;
}

static void on_note(void *arg, const char *text)
{
    end_line(arg);
    fputs("note: ", stderr);
    cli_put_text(stderr, text, "");
    fputc('\n', stderr);
}

/* What it is called where -o says nothing. Owned. */
static char *default_out(const struct template_manifest *t, enum export_format f, const char *drive)
{
    static const char *const ends[EXPORT_N] = {
        [EXPORT_EXT4] = "ext4",  [EXPORT_RAW] = "raw", [EXPORT_QCOW2] = "qcow2",
        [EXPORT_GCE] = "tar.gz", [EXPORT_OCI] = "oci", [EXPORT_DIR_TAR] = "tar",
    };
    return cb_xasprintf("%s-%" PRIu64 "%s%s.%s", t->name, t->version, drive ? "-" : "",
                        drive ? drive : "", ends[f]);
}

static void say_done(const struct export_spec *s, uint64_t size)
{
    char human[32];
    cb_human_bytes(size, human, sizeof(human));
    fprintf(stderr, "%s version %" PRIu64 ": %s%s%s in %s", s->t->name, s->t->version,
            s->drive ? "drive " : "", s->drive ? s->drive : export_format_name(s->format),
            s->drive ? ", ext4" : "", strcmp(s->out, "-") == 0 ? "standard output" : s->out);
    if (size)
        fprintf(stderr, " (%s)", human);
    fputs("\nhow to use it: docs/export.md\n", stderr);
}

/* What would have no effect is refused: somebody expects one. */
static int check_flags(const struct cli_args *a, int format, struct cb_error *err)
{
    if (a->compress && format != EXPORT_QCOW2)
        return cb_fail(err, CB_E_CONFIG, "--compress belongs to --format qcow2");
    if (a->keep_zstd && format != EXPORT_OCI)
        return cb_fail(err, CB_E_CONFIG, "--keep-zstd belongs to --format oci");
    return 0;
}

static int export_with(struct cli_args *a, struct store *store, const struct template_manifest *t)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int format = a->format ? export_format_from_name(a->format) : -1;
    if (format < 0) {
        cb_fail(&err, CB_E_CONFIG, "--format %s", a->format ? a->format : "is missing");
        cb_hint(&err, "accepted are ext4, raw, qcow2, gce, oci, dir-tar");
        return cli_fail(&err);
    }
    if (check_flags(a, format, &err) < 0)
        return cli_fail(&err);
    CB_AUTO_FREE char *named = default_out(t, (enum export_format)format, a->drive);
    const char *out = a->output ? a->output : named;
    if (strcmp(out, "-") == 0 && isatty(STDOUT_FILENO)) {
        cb_fail(&err, CB_E_CONFIG, "-o -: standard output is a terminal");
        return cli_fail(&err);
    }
    struct shown shown = {.terminal = isatty(STDERR_FILENO)};
    const struct layers_progress progress = {on_bytes, on_note, &shown};
    const struct export_spec spec = {.store = store,
                                     .t = t,
                                     .format = (enum export_format)format,
                                     .out = out,
                                     .size = a->size,
                                     .compress =
                                         a->compress || (format == EXPORT_OCI && !a->keep_zstd),
                                     .kernel_dir = a->with_kernel,
                                     .drive = a->drive,
                                     .progress = &progress,
                                     .canceled = canceled};
    uint64_t size = 0;
    int rc = export_run(&spec, &size, &err);
    end_line(&shown);
    if (rc < 0)
        return cli_fail(&err);
    say_done(&spec, size);
    return EXIT_DONE;
}

int cmd_export(struct cli_args *a)
{
    struct settings *s = NULL;
    struct store *store = NULL;
    struct template_manifest *t = NULL;
    CB_AUTO_FREE char *name = NULL;
    uint64_t version = 0;
    int rc = cli_template_name(a, &name, &version);
    if (rc == 0)
        rc = cli_settings(a, &s);
    if (rc == 0)
        rc = cli_open_store(s, &store);
    if (rc == 0) {
        struct sigaction sa = {.sa_handler = on_stop};
        (void)sigaction(SIGINT, &sa, NULL);
        (void)sigaction(SIGTERM, &sa, NULL);
        (void)sigaction(SIGHUP, &sa, NULL);
        store_sweep_tmp(store);
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        rc = store_template_get(store, name, version, &t, &err) < 0 ? cli_fail(&err)
                                                                    : export_with(a, store, t);
    }
    template_manifest_free(t);
    store_free(store);
    settings_free(s);
    return rc;
}
