/* Booting a finished image: the check before it is published, and `boot` for people. Both run on a
 * throwaway overlay; the image itself is never written. */
#include "builder/build_private.h"
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

/* Waits for what is left of @limit_ms, which ends at @end_ms. */
static int wait_ready(struct session *s, struct machine *m, int64_t limit_ms, int64_t end_ms,
                      char **how, struct cb_error *err)
{
    int64_t left = end_ms - cb_monotonic_ms();
    int rc = session_wait_ready(s, left > 0 ? left : 0, how, err);
    if (rc < 0) {
        CB_AUTO_FREE char *end = machine_end_text(m);
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

int boot_check_run(const struct boot_check *bc, char **how, struct cb_error *err)
{
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/boot", bc->work_dir);
    int rc = cb_mkdir_p(dir, 0700, err);
    if (rc < 0)
        return rc;
    struct machine_spec spec = {.mode = MACHINE_BOOT,
                                .work_dir = dir,
                                .agent_path = bc->agent_path,
                                .lower = bc->image,
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
    build_machine_count(1);
    if ((rc = machine_vm.start(bc->settings, &spec, &m, err)) < 0) {
        build_machine_count(-1);
        return cb_wrap(err, "boot check");
    }
    int64_t limit = bc->timeout_ms ? bc->timeout_ms : machine_limit(m, BOOT_TIMEOUT_MS);
    int64_t end = cb_monotonic_ms() + limit;
    struct session_callbacks cb = {.output = check_output, .note = check_note, .arg = bc->em};
    struct session *s = NULL;
    rc = session_with(m, limit, &cb, &s, err);
    if (rc < 0) {
        CB_AUTO_FREE char *ended = machine_end_text(m);
        cb_wrap(err, "the image did not boot%s%s", ended ? ": " : "", ended ? ended : "");
        if (err->code != CB_E_CANCELED)
            err->code = CB_E_COMMAND;
    } else {
        rc = wait_ready(s, m, limit, end, how, err);
    }
    if (rc < 0 && err->code != CB_E_CANCELED) {
        CB_AUTO_FREE char *tail = emit_tail(bc->em);
        add_evidence(err, tail, m);
        cb_wrap(err, "boot check");
    }
    if (rc >= 0) {
        CB_AUTO_ERROR late = CB_ERROR_INIT;
        (void)session_shutdown(s, SHUTDOWN_MS, &late);
    }
    session_free(s);
    m->driver->stop(m, rc >= 0 ? SHUTDOWN_MS : 0);
    return build_machine_done(rc < 0 ? -(int)err->code : 0, err);
}

/* ---- boot NAME ---- */

struct boot {
    const struct boot_request *r;
    struct machine *m;
    struct session *s;
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
    bool console = !r->exec_argv && !r->once;
    struct machine_spec spec = {.mode = MACHINE_BOOT,
                                .work_dir = r->work_dir,
                                .lower = image,
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
                                .console_signals = t->boot.start_argv.n > 0,
                                .note = person_note};
    if ((rc = machine_vm.start(settings, &spec, &b->m, err)) < 0)
        return cb_wrap(err, "boot %s", t->name);
    struct session_callbacks cb = {.output = person_output, .note = person_note, .arg = b};
    rc = session_with(b->m, 0, &cb, &b->s, err);
    return rc < 0 ? cb_wrap(err, "boot %s: it did not come up", t->name) : 0;
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
        fprintf(stderr, "%s powers it off\n", t->boot.start_argv.n ? "Ctrl-C" : "`exit`");
        return attend(b, err);
    }
    struct step_result res = {0};
    if ((rc = session_exec(b->s, b->r->exec_argv, &res, err)) < 0)
        return rc;
    return res.exit_code;
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
    if (b.s) {
        CB_AUTO_ERROR late = CB_ERROR_INIT;
        (void)session_shutdown(b.s, rc == -(int)CB_E_CANCELED ? 1000 : SHUTDOWN_MS, &late);
    }
    session_free(b.s);
    if (b.m)
        b.m->driver->stop(b.m, 500);
    build_machine_count(-1);
    template_manifest_free(t);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    (void)cb_remove_tree(r->work_dir, &ignored);
    return rc;
}
