/* Booting a finished image: the check before it is published, and `boot` for people. Both run on a
 * throwaway overlay; the image itself is never written. */
#include "builder/build_private.h"
#include "builder/drives.h"
#include "builder/session.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
    BOOT_TIMEOUT_MS = 60000,
    SHUTDOWN_MS = 5000,
};

static void check_output(void *arg, uint32_t step, int stream, const void *data, size_t len)
{
    (void)step;
    emit_step_output(arg, stream, data, len);
}

static void check_note(void *arg, const char *text)
{
    emit_note(arg, "%s", text);
}

/* Adds what the start command and the console said last to an error. */
static void add_evidence(struct cb_error *err, const char *tail, const struct machine *m)
{
    CB_AUTO_FREE char *console = m ? machine_console_tail(m, 20) : cb_xstrdup("");
    char *with =
        cb_xasprintf("%s%s%s%s%s", err->msg, tail && tail[0] ? "\nits last lines:\n" : "",
                     tail ? tail : "", console[0] ? "\nlast lines of the console:\n" : "", console);
    free(err->msg);
    err->msg = with;
}

/* How the machine ended, when the end of its stream was the error. Owned, or NULL. */
static char *end_of(struct machine *m, const struct cb_error *err)
{
    enum { REAP_MS = 2000 }; /* from the end of the stream to that of the process */
    if (err->code == CB_E_SYS)
        machine_wait_end(m, REAP_MS);
    return machine_end_text(m);
}

/* Waits for what is left of @limit_ms, which ends at @end_ms. */
static int wait_ready(struct session *s, struct machine *m, int64_t limit_ms, int64_t end_ms,
                      char **how, struct cb_error *err)
{
    int64_t left = end_ms - cb_monotonic_ms();
    int rc = session_wait_ready(s, left > 0 ? left : 0, how, err);
    if (rc < 0) {
        CB_AUTO_FREE char *end = end_of(m, err);
        if (end && rc != -(int)CB_E_CANCELED)
            cb_wrap(err, "%s", end);
        return rc;
    }
    if (rc == 1)
        return 0;
    cb_fail(err, CB_E_COMMAND, "the image booted but did not become ready: %s",
            *how ? *how : "no answer");
    return cb_hint(err,
                   "look at start_command, its port and health_path; --boot-timeout SECONDS gives "
                   "it longer than %lld s",
                   (long long)(limit_ms / 1000));
}

/* Boots it and waits until it is ready: 0 with machine and session, which are the caller's in any
 * case. */
static int check_cold(const struct boot_check *bc, struct machine_spec *spec, struct machine **m,
                      struct session **s, char **how, struct cb_error *err)
{
    int rc = machine_vm.start(bc->settings, spec, m, err);
    if (rc < 0)
        return cb_wrap(err, "boot check");
    int64_t limit = bc->timeout_ms ? bc->timeout_ms : machine_limit(*m, BOOT_TIMEOUT_MS);
    int64_t end = cb_monotonic_ms() + limit;
    struct session_callbacks cb = {.output = check_output, .note = check_note, .arg = bc->em};
    rc = session_with(*m, limit, &cb, s, err);
    if (rc < 0) {
        CB_AUTO_FREE char *ended = err->code == CB_E_CANCELED ? NULL : end_of(*m, err);
        if (ended) { /* nothing that was waited for says more */
            cb_error_clear(err);
            (void)cb_fail(err, CB_E_COMMAND, "the image did not boot: %s", ended);
        } else {
            cb_wrap(err, "the image did not boot");
        }
        if (err->code != CB_E_CANCELED)
            err->code = CB_E_COMMAND;
    } else {
        rc = wait_ready(*s, *m, limit, end, how, err);
        if (rc >= 0)
            rc = healthcheck_run(bc->healthcheck, *s, bc->em, end, err);
    }
    if (rc < 0 && err->code != CB_E_CANCELED) {
        CB_AUTO_FREE char *tail = emit_tail(bc->em);
        add_evidence(err, tail, *m);
        cb_wrap(err, "boot check");
    }
    return rc;
}

/* The agent says DONE when nothing runs any more; as a service it says so when it has ended what is
 * its own, and its init goes on to stop the others. */
static void shut_down(struct machine *m, struct session *s, const char *init, int64_t limit_ms)
{
    CB_AUTO_ERROR late = CB_ERROR_INIT;
    if (!init) {
        (void)session_shutdown(s, limit_ms, &late);
        return;
    }
    limit_ms = machine_limit(m, limit_ms);
    if (session_shutdown(s, limit_ms, &late) == 0)
        machine_wait_end(m, limit_ms);
}

static void end_machine(struct machine **m, struct session **s, int64_t grace_ms)
{
    session_free(*s);
    if (*m)
        (*m)->driver->stop(*m, grace_ms);
    *s = NULL;
    *m = NULL;
}

/* Saves the ready machine, and sees that what was saved becomes ready again. */
static int check_warm(const struct boot_check *bc, struct machine_spec *spec, struct machine **m,
                      struct session **s, struct cb_error *err)
{
    struct session_callbacks cb = {.output = check_output, .note = check_note, .arg = bc->em};
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/warm", bc->work_dir);
    CB_AUTO_FREE char *how = NULL;
    int rc = warm_save(bc->store, *m, *s, &bc->of, spec->work_dir, bc->warm, err);
    if (rc < 0)
        return cb_wrap(err, "save the ready machine (snapshot: warm)");
    end_machine(m, s, 0);
    int64_t began = cb_monotonic_ms();
    spec->work_dir = dir;
    rc = warm_start(bc->store, bc->settings, bc->warm, &bc->of, spec, &cb, m, s, err);
    int64_t limit = *m ? machine_limit(*m, BOOT_TIMEOUT_MS) : 0;
    if (rc == 0)
        rc = wait_ready(*s, *m, limit, cb_monotonic_ms() + limit, &how, err);
    if (rc < 0 && *m && err->code != CB_E_CANCELED)
        add_evidence(err, NULL, *m);
    if (rc < 0)
        return cb_wrap(err, "resume the machine that was saved (snapshot: warm)");
    char size[32];
    cb_human_bytes(bc->warm->size, size, sizeof(size));
    emit_note(bc->em, "the ready machine is saved, %s; resumed, it was ready after %lld ms", size,
              (long long)(cb_monotonic_ms() - began));
    return 0;
}

static int check_with(const struct boot_check *bc, const char *dir,
                      const struct drive_disks *drives, char **how, struct cb_error *err)
{
    struct machine_spec spec = {.mode = MACHINE_BOOT,
                                .work_dir = dir,
                                .agent_path = bc->agent_path,
                                .lower = bc->image,
                                .drives = drives->v,
                                .n_drives = drives->n,
                                .vcpus = tier_vcpus(bc->tier),
                                .memory_mib = tier_memory_mib(bc->tier),
                                .network = true,
                                .allow_host_network = bc->settings->allow_host_network,
                                .kernel = bc->kernel,
                                .initramfs = bc->initramfs,
                                .hostname = bc->hostname,
                                .console_fd = -1,
                                .note = check_note,
                                .note_arg = bc->em};
    struct machine *m = NULL;
    struct session *s = NULL;
    build_machine_count(1);
    int rc = check_cold(bc, &spec, &m, &s, how, err);
    if (rc >= 0 && bc->warm)
        rc = check_warm(bc, &spec, &m, &s, err);
    if (rc >= 0)
        shut_down(m, s, bc->init, SHUTDOWN_MS);
    end_machine(&m, &s, rc >= 0 ? SHUTDOWN_MS : 0);
    return build_machine_done(rc < 0 ? -(int)err->code : 0, err);
}

int boot_check_run(const struct boot_check *bc, char **how, struct cb_error *err)
{
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/boot", bc->work_dir);
    struct drive_disks drives = {0};
    int rc = cb_mkdir_p(dir, 0700, err);
    if (rc == 0)
        rc =
            drives_attach(bc->store, bc->drives, bc->n_drives, bc->workspace_gb, dir, &drives, err);
    if (rc == 0)
        rc = check_with(bc, dir, &drives, how, err);
    drive_disks_release(&drives);
    return rc;
}

/* ---- boot NAME ---- */

struct boot {
    const struct boot_request *r;
    struct machine *m;
    struct session *s;
    struct drive_disks drives;
    int64_t began_ms;
};

static void person_output(void *arg, uint32_t step, int stream, const void *data, size_t len)
{
    const struct boot *b = arg;
    /* step 0 is the start command, whose output is on the console as it is */
    if (step == 0 || !b->r->exec_argv)
        return;
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    (void)cb_write_all(stream == STREAM_STDERR ? STDERR_FILENO : STDOUT_FILENO, data, len,
                       &ignored);
}

static void person_note(void *arg, const char *text)
{
    (void)arg;
    fprintf(stderr, "%s\n", text);
}

/* A TCP port of the loopback that nobody listens on now. Another process may take it before the
 * machine does; then the machine's start says so. */
static int free_port(uint16_t *port, struct cb_error *err)
{
    CB_AUTO_FD fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 ||
        getsockname(fd, (struct sockaddr *)&a, &len) < 0)
        return cb_fail_sys(err, errno, "find a free port");
    *port = ntohs(a.sin_port);
    return 0;
}

static int choose_ports(const struct boot_request *r, uint16_t (*ports)[2], struct cb_error *err)
{
    for (size_t i = 0; i < r->n_forwards; i++) {
        ports[i][0] = r->forwards[i].host;
        ports[i][1] = r->forwards[i].guest;
        if (ports[i][0])
            continue;
        int rc = free_port(&ports[i][0], err);
        if (rc < 0)
            return rc;
        fprintf(stderr, "127.0.0.1:%u leads to port %u\n", ports[i][0], ports[i][1]);
    }
    return 0;
}

/* 1: it goes on from the machine that was saved; 0: it has to be booted, for a reason that was
 * said.
 */
static int start_warm(struct boot *b, struct store *store, const struct settings *settings,
                      const struct template_manifest *t, struct machine_spec *spec,
                      const struct session_callbacks *cb, struct cb_error *err)
{
    static const struct cb_digest none;
    if (cb_digest_eq(&t->warm.blob, &none)) {
        fprintf(
            stderr,
            "%s version %llu has no saved machine (config.snapshot: warm makes one): cold boot\n",
            t->name, (unsigned long long)t->version);
        return 0;
    }
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/warm", b->r->work_dir);
    const char *cold_dir = spec->work_dir;
    struct cb_digest drives;
    drives_digest(t->drives, t->n_drives, t->workspace_gb, &drives);
    const struct warm_of of = {&t->image, &t->kernel, &t->initramfs, &drives};
    spec->work_dir = dir;
    int rc = warm_start(store, settings, &t->warm, &of, spec, cb, &b->m, &b->s, &why);
    spec->work_dir = cold_dir;
    if (rc == 0)
        return 1;
    if (rc == -(int)CB_E_CANCELED)
        return cb_error_move(err, &why);
    fprintf(stderr, "the saved machine of %s version %llu is not used: %s: cold boot\n", t->name,
            (unsigned long long)t->version, why.msg);
    return 0;
}

/* Else there is a shell on the console whose end is the machine's. */
static bool ends_by_signal(const struct template_manifest *t)
{
    return t->boot.start_argv.n > 0 || t->boot.init;
}

static int start(struct boot *b, struct store *store, const struct settings *settings,
                 const struct template_manifest *t, struct cb_error *err)
{
    const struct boot_request *r = b->r;
    CB_AUTO_FREE char *image = NULL;
    int rc = store_image_path(store, &t->image, &image, err);
    if (rc < 0)
        return cb_wrap(err, "the image of %s version %llu", t->name,
                       (unsigned long long)t->version);
    char kernel_hex[CB_HEX_LEN + 1], initramfs_hex[CB_HEX_LEN + 1];
    cb_digest_hex(&t->kernel, kernel_hex);
    cb_digest_hex(&t->initramfs, initramfs_hex);
    CB_AUTO_FREE char *kernel = cb_xasprintf("%s/blobs/sha256/%s", store_dir(store), kernel_hex);
    CB_AUTO_FREE char *initramfs =
        cb_xasprintf("%s/blobs/sha256/%s", store_dir(store), initramfs_hex);
    CB_AUTO_FREE uint16_t(*ports)[2] = cb_xcalloc(r->n_forwards + 1, sizeof(*ports));
    if ((rc = choose_ports(r, ports, err)) < 0)
        return rc;
    rc =
        drives_attach(store, t->drives, t->n_drives, t->workspace_gb, r->work_dir, &b->drives, err);
    if (rc == 0 && r->keep_drives)
        rc = drives_keep_in(&b->drives, t->drives, t->n_drives, r->keep_drives, err);
    if (rc < 0)
        return cb_wrap(err, "boot %s", t->name);
    bool console = !r->exec_argv && !r->once;
    struct machine_spec spec = {.mode = MACHINE_BOOT,
                                .work_dir = r->work_dir,
                                .lower = image,
                                .drives = b->drives.v,
                                .n_drives = b->drives.n,
                                .vcpus = tier_vcpus(t->tier),
                                .memory_mib = tier_memory_mib(t->tier),
                                .network = true,
                                .allow_host_network = settings->allow_host_network,
                                .kernel = kernel,
                                .initramfs = initramfs,
                                .hostname = t->boot.hostname,
                                .forwards = (const uint16_t(*)[2])ports,
                                .n_forwards = r->n_forwards,
                                .console_fd = console ? STDOUT_FILENO : -1,
                                .console_signals = ends_by_signal(t),
                                .note = person_note};
    struct session_callbacks cb = {.output = person_output, .note = person_note, .arg = b};
    if (r->warm && (rc = start_warm(b, store, settings, t, &spec, &cb, err)) != 0)
        return rc < 0 ? cb_wrap(err, "boot %s", t->name) : 0;
    if ((rc = machine_vm.start(settings, &spec, &b->m, err)) < 0)
        return cb_wrap(err, "boot %s", t->name);
    if ((rc = session_with(b->m, 0, &cb, &b->s, err)) >= 0)
        return 0;
    CB_AUTO_FREE char *ended = err->code == CB_E_CANCELED ? NULL : end_of(b->m, err);
    if (!ended)
        return cb_wrap(err, "boot %s: it did not come up", t->name);
    cb_error_clear(err);
    return cb_fail(err, CB_E_COMMAND, "boot %s: it did not come up: %s", t->name, ended);
}

/* Until the machine powers itself off. The session keeps its frames flowing; Ctrl-C is CANCELED. */
static int attend(struct boot *b, struct cb_error *err)
{
    CB_AUTO_ERROR end = CB_ERROR_INIT;
    int rc = session_attend(b->s, &end);
    if (rc == -(int)CB_E_CANCELED)
        return cb_error_move(err, &end);
    return 0; /* the stream ended: it powered off */
}

static int use(struct boot *b, const struct template_manifest *t, struct cb_error *err)
{
    int64_t limit =
        b->r->boot_timeout_ms ? b->r->boot_timeout_ms : machine_limit(b->m, BOOT_TIMEOUT_MS);
    CB_AUTO_FREE char *how = NULL;
    int rc = wait_ready(b->s, b->m, limit, cb_monotonic_ms() + limit, &how, err);
    if (rc < 0)
        return rc;
    if (!b->r->exec_argv)
        fprintf(stderr, "%s version %llu is ready after %.1f s: %s\n", t->name,
                (unsigned long long)t->version, (double)(cb_monotonic_ms() - b->began_ms) / 1000,
                how);
    if (b->r->once)
        return 0;
    if (!b->r->exec_argv) {
        fprintf(stderr, "%s powers it off\n", ends_by_signal(t) ? "Ctrl-C" : "`exit`");
        return attend(b, err);
    }
    struct step_result res = {0};
    if ((rc = session_exec(b->s, b->r->exec_argv, &res, err)) >= 0)
        return res.exit_code;
    CB_AUTO_FREE char *ended = rc == -(int)CB_E_CANCELED ? NULL : end_of(b->m, err);
    return ended ? cb_wrap(err, "%s", ended) : rc;
}

int boot_template(struct store *s, const struct settings *settings, const struct boot_request *r,
                  struct cb_error *err)
{
    struct template_manifest *t = NULL;
    int rc = store_template_get(s, r->name, r->version, &t, err);
    if (rc < 0)
        return rc;
    struct boot b = {.r = r, .began_ms = cb_monotonic_ms()};
    build_machine_count(1);
    rc = cb_mkdir_p(r->work_dir, 0700, err);
    if (rc >= 0)
        rc = start(&b, s, settings, t, err);
    if (rc >= 0)
        rc = use(&b, t, err);
    if (rc < 0 && b.m && err->code != CB_E_CANCELED)
        add_evidence(err, NULL, b.m);
    if (b.s && rc == -(int)CB_E_CANCELED)
        shut_down(b.m, b.s, NULL, 1000);
    else if (b.s)
        shut_down(b.m, b.s, t->boot.init, SHUTDOWN_MS);
    session_free(b.s);
    if (b.m)
        b.m->driver->stop(b.m, 500);
    build_machine_count(-1);
    drive_disks_release(&b.drives);
    template_manifest_free(t);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    (void)cb_remove_tree(r->work_dir, &ignored);
    return rc;
}
