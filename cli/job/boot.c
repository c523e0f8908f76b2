/* boot and doctor: a template on this machine, and this machine itself. */
#include "builder/builder.h"
#include "cli/cli.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

static void on_stop(int sig)
{
    (void)sig;
    build_cancel();
}

static int boot_with(struct cli_args *a, const struct settings *s, struct store *store)
{
    CB_AUTO_FREE char *name = NULL;
    uint64_t version = 0;
    int rc = cli_template_name(a, &name, &version);
    if (rc)
        return rc;
    CB_AUTO_FREE char *unique = cb_xasprintf("boot-%d", (int)getpid());
    CB_AUTO_FREE char *work = cli_work_dir(s, unique);
    size_t n_exec = 0;
    while (a->exec_argv && a->exec_argv[n_exec])
        n_exec++;
    CB_AUTO_FREE const char **exec_argv = cb_xcalloc(n_exec + 1, sizeof(*exec_argv));
    for (size_t i = 0; i < n_exec; i++)
        exec_argv[i] = a->exec_argv[i];
    struct port_forward forwards[sizeof(a->forwards) / sizeof(*a->forwards)];
    for (size_t i = 0; i < a->n_forwards; i++)
        forwards[i] = (struct port_forward){a->forwards[i][0], a->forwards[i][1]};
    struct boot_request r = {.name = name,
                             .version = version,
                             .forwards = forwards,
                             .n_forwards = a->n_forwards,
                             .exec_argv = n_exec ? exec_argv : NULL,
                             .boot_timeout_ms = a->boot_timeout_ms,
                             .once = a->once,
                             .warm = a->warm,
                             .keep_drives = a->keep_drives,
                             .work_dir = work};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (a->keep_drives && a->warm) {
        cb_fail(&err, CB_E_CONFIG,
                "--keep-drives and --warm: a saved machine has its drives as they "
                "were when it was saved");
        return cli_fail(&err);
    }
    struct sigaction sa = {.sa_handler = on_stop};
    (void)sigaction(SIGINT, &sa, NULL);
    (void)sigaction(SIGTERM, &sa, NULL);
    (void)sigaction(SIGHUP, &sa, NULL);
    rc = boot_template(store, s, &r, &err);
    if (rc >= 0)
        return rc;
    if (err.code == CB_E_CANCELED) {
        fputs("capsule-build: powered off\n", stderr);
        return EXIT_INTERRUPTED;
    }
    return cli_fail(&err);
}

int cmd_boot(struct cli_args *a)
{
    struct settings *s = NULL;
    struct store *store = NULL;
    struct queue *q = NULL;
    int rc = cli_settings(a, &s);
    if (rc)
        return rc;
    if ((rc = cli_open_queue(s, &q)) == 0) {
        cli_clean_up_after_the_dead(s, q);
        if ((rc = cli_open_store(s, &store)) == 0)
            rc = boot_with(a, s, store);
    }
    store_free(store);
    queue_free(q);
    settings_free(s);
    return rc;
}

int cmd_doctor(struct cli_args *a)
{
    struct settings *s = NULL;
    int rc = cli_settings(a, &s);
    if (rc)
        return rc;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct doctor_line *lines = NULL;
    size_t n = 0;
    if (doctor_run(s, &lines, &n, &err) < 0)
        rc = cli_fail(&err);
    static const char *const marks[] = {"ok  ", "warn", "BAD "};
    for (size_t i = 0; i < n; i++) {
        printf("%s  %-22s %s\n", marks[lines[i].state], lines[i].what, lines[i].found);
        if (lines[i].advice)
            printf("      %-22s -> %s\n", "", lines[i].advice);
        if (lines[i].state == DOCTOR_BAD)
            rc = EXIT_ENVIRONMENT;
    }
    doctor_free(lines, n);
    settings_free(s);
    return rc;
}
