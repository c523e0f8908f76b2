/* The driver "vm": our agent in a QEMU guest. */
#include "builder/console.h"
#include "builder/gateway.h"
#include "builder/machine.h"
#include "builder/netns.h"
#include "builder/qcow2.h"
#include "builder/qemu.h"
#include "builder/qmp.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"
#include "support/proc.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>

enum {
    BUILD_VCPUS = 2,
    MEMORY_MIB = 1024,
    MEMORY_MIN_MIB = 96,
    SET_UP_TIMEOUT_MS = 20000,
    STATE_TIMEOUT_MS = 120000, /* gigabytes may have to be written */
    GO_ON_TIMEOUT_MS = 20000,
};

struct vm {
    struct netns *ns;
    int qmp;
    struct qmp *monitor;
    struct machine_identity id;
    char *overlay;
    struct qemu_drive *drives;
    size_t n_drives;
    int terminal; /* whose settings are put back at the end; -1: none */
    struct termios saved;
};

static void note(const struct machine_spec *s, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static void note(const struct machine_spec *s, const char *fmt, ...)
{
    if (!s->note)
        return;
    va_list ap;
    va_start(ap, fmt);
    CB_AUTO_FREE char *text = cb_xvasprintf(fmt, ap);
    va_end(ap);
    s->note(s->note_arg, text);
}

static int vm_probe(const struct settings *settings, char **why, struct cb_error *err)
{
    CB_AUTO_FREE char *qemu = qemu_find(settings);
    if (!qemu)
        return qemu_missing(settings, err);
    if (!settings->allow_host_network) {
        CB_AUTO_FREE char *slirp = cb_find_program("slirp4netns");
        if (!slirp) {
            cb_fail(err, CB_E_ENV, "slirp4netns is not on this machine");
            return cb_hint(err, "apt-get install slirp4netns");
        }
        int rc = netns_probe(err);
        if (rc < 0)
            return rc;
    }
    CB_AUTO_FREE char *kvm = NULL;
    bool works = kvm_works(settings, &kvm);
    if (why)
        *why = works ? cb_xstrdup(kvm) : cb_xasprintf("%s: emulation (TCG)", kvm);
    return 0;
}

static int real_path(const char *path, char **out, struct cb_error *err)
{
    *out = realpath(path, NULL);
    if (!*out)
        return cb_fail_sys(err, errno, "%s", path);
    return 0;
}

/* Everything that start() makes on the way and that belongs to the call alone. */
struct starting {
    const struct settings *settings;
    const struct machine_spec *spec;
    struct machine *m;
    struct vm *vm;
    struct qemu_spec q;
    char *dir, *lower, *scratch, *output, *overlay, *initramfs;
    struct kernel kernel;
};

static void starting_release(struct starting *s)
{
    free(s->dir);
    free(s->lower);
    free(s->scratch);
    free(s->output);
    free(s->overlay);
    free(s->initramfs);
    kernel_release(&s->kernel);
}

static int prepare_kernel(struct starting *s, struct cb_error *err)
{
    const struct machine_spec *spec = s->spec;
    if (spec->kernel && spec->initramfs) {
        s->q.kernel = spec->kernel;
        s->q.initramfs = spec->initramfs;
        return 0;
    }
    int rc = kernel_get(s->settings, spec->note, spec->note_arg, &s->kernel, err);
    if (rc < 0)
        return rc;
    s->initramfs = cb_xasprintf("%s/initramfs", s->dir);
    s->q.kernel = s->kernel.image;
    s->q.initramfs = s->initramfs;
    return initramfs_make(&s->kernel, spec->agent_path, s->initramfs, err);
}

static int prepare_disks(struct starting *s, struct cb_error *err)
{
    const struct machine_spec *spec = s->spec;
    int rc = real_path(spec->lower, &s->lower, err);
    if (rc == 0 && spec->mode == MACHINE_BUILD)
        rc = real_path(spec->scratch, &s->scratch, err);
    if (rc == 0 && spec->mode == MACHINE_BUILD)
        rc = real_path(spec->output, &s->output, err);
    if (rc < 0)
        return rc;
    s->q.lower = s->lower;
    s->q.scratch = s->scratch;
    s->q.output = s->output;
    if (spec->mode == MACHINE_BUILD)
        return 0;
    struct stat st;
    if (stat(s->lower, &st) < 0)
        return cb_fail_sys(err, errno, "%s", s->lower);
    s->overlay =
        spec->resume ? cb_xstrdup(spec->resume->overlay) : cb_xasprintf("%s/root.qcow2", s->dir);
    s->q.overlay = s->overlay;
    s->vm->overlay = cb_xstrdup(s->overlay);
    if (spec->resume)
        return 0;
    return qcow2_create(s->overlay, (uint64_t)st.st_size, err);
}

static int prepare_drives(struct starting *s, struct cb_error *err)
{
    const struct machine_spec *spec = s->spec;
    struct vm *vm = s->vm;
    if (spec->n_drives > MACHINE_DRIVES_MAX)
        return cb_fail(err, CB_E_BUG, "a machine with %zu drives", spec->n_drives);
    vm->drives = cb_xcalloc(spec->n_drives + 1, sizeof(*vm->drives));
    int rc = 0;
    for (size_t i = 0; i < spec->n_drives && rc == 0; i++) {
        struct qemu_drive *d = &vm->drives[vm->n_drives++];
        d->read_only = spec->drives[i].read_only;
        rc = real_path(spec->drives[i].path, &d->path, err);
        if (rc < 0 || d->read_only || spec->mode == MACHINE_BUILD)
            continue;
        struct stat st;
        const char *kept = spec->drives[i].overlay;
        d->kept = kept != NULL;
        d->overlay = kept ? cb_xstrdup(kept) : cb_xasprintf("%s/drive%zu.qcow2", s->dir, i);
        bool there = spec->resume != NULL || (kept && cb_path_exists(kept));
        if (stat(d->path, &st) < 0)
            rc = cb_fail_sys(err, errno, "%s", d->path);
        else if (!there)
            rc = qcow2_create(d->overlay, (uint64_t)st.st_size, err);
    }
    s->q.drives = vm->drives;
    s->q.n_drives = vm->n_drives;
    return rc;
}

/* The sandboxed network, or what was allowed in its place. */
static int prepare_network(struct starting *s, struct cb_error *err)
{
    const struct machine_spec *spec = s->spec;
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    int rc = netns_open(s->dir, spec->network, spec->gateway, &s->vm->ns, &why);
    s->q.net = spec->network ? QEMU_NET_SANDBOXED : QEMU_NET_NONE;
    s->q.dns = NETNS_DNS;
    if (rc < 0 && spec->network) {
        if (rc != -CB_E_ENV || !spec->allow_host_network ||
            (spec->gateway && !gateway_optional(spec->gateway)))
            return cb_error_move(err, &why);
        note(spec,
             "the guest uses this machine's network and can reach its loopback at " GUEST_GATEWAY
             " (%s)",
             why.msg);
        s->q.net = QEMU_NET_HOST;
        s->q.dns = "10.0.5.3";
    }
    if (spec->network)
        (void)snprintf(s->m->dns, sizeof(s->m->dns), "%s", s->q.dns);
    return 0; /* without a network QEMU has no device: the empty namespace is one more wall */
}

static void choose_size(struct starting *s)
{
    const struct machine_spec *spec = s->spec;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t most = online > 0 ? (uint32_t)online : 1;
    s->q.vcpus = spec->vcpus ? spec->vcpus : BUILD_VCPUS;
    if (s->q.vcpus > most) {
        if (spec->vcpus && spec->mode == MACHINE_BOOT)
            note(spec, "this machine has %u CPUs: the guest gets as many, not %u", most,
                 spec->vcpus);
        s->q.vcpus = most;
    }
    s->q.memory_mib = spec->memory_mib ? spec->memory_mib : MEMORY_MIB;
    if (s->q.memory_mib < MEMORY_MIN_MIB)
        s->q.memory_mib = MEMORY_MIN_MIB;
}

static int not_started(struct machine *m, struct cb_error *err)
{
    int status;
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    if (!m->ended && cb_proc_wait(m->pid, 1000, &status, &ignored) == 1) {
        m->ended = true;
        m->status = status;
    }
    CB_AUTO_FREE char *end = machine_end_text(m);
    return cb_fail(err, CB_E_ENV, "QEMU did not start: %s",
                   end ? end + strlen("QEMU: ") : "it closed its monitor");
}

/* What is wrong with a command line, a kernel or a disk shows by the time QEMU's monitor takes
 * commands. */
static int wait_set_up(struct machine *m, struct vm *vm, struct cb_error *err)
{
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    int rc = qmp_open(vm->qmp, SET_UP_TIMEOUT_MS, &vm->monitor, &why);
    if (rc == -(int)CB_E_SYS)
        return not_started(m, err);
    if (rc == -(int)CB_E_TIMEOUT)
        return cb_fail(err, CB_E_TIMEOUT, "QEMU was not set up within %d s",
                       SET_UP_TIMEOUT_MS / 1000);
    if (rc < 0) {
        cb_wrap(&why, "start QEMU");
        return cb_error_move(err, &why);
    }
    vm->id.qemu = cb_xstrdup(qmp_version(vm->monitor));
    return 0;
}

/* Goes on from the saved state. The machine was made as it was then; where that is not possible it
 * must not be tried. */
static int resume(struct starting *s, struct cb_error *err)
{
    const struct machine_saved *saved = s->spec->resume;
    struct vm *vm = s->vm;
    CB_AUTO_FREE char *differs = machine_identity_differs(saved->id, &vm->id);
    if (differs)
        return cb_fail(err, CB_E_CONFLICT, "%s", differs);
    int rc = qmp_load(vm->monitor, saved->state, STATE_TIMEOUT_MS, err);
    if (rc == 0 && saved->check)
        rc = saved->check(saved->check_arg, err);
    if (rc == 0)
        rc = machine_vm_go_on(s->m, err);
    if (rc < 0)
        return rc;
    s->m->resumed = true;
    return 0;
}

static int open_log(const char *path, struct cb_error *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
    return fd < 0 ? cb_fail_sys(err, errno, "open %s", path) : fd;
}

static int spawn(struct starting *s, struct cb_error *err)
{
    struct machine *m = s->m;
    int agent[2], qmp[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, agent) < 0)
        return cb_fail_sys(err, errno, "start QEMU");
    m->stream = agent[0];
    CB_AUTO_FD agent_theirs = agent[1];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, qmp) < 0)
        return cb_fail_sys(err, errno, "start QEMU");
    s->vm->qmp = qmp[0];
    CB_AUTO_FD qmp_theirs = qmp[1];
    CB_AUTO_FD log = open_log(m->log, err);
    if (log < 0)
        return log;
    CB_AUTO_FD console = -1;
    int rc = console_open(m->console, &m->console_log, &console, err);
    if (rc < 0)
        return rc;
    struct cb_proc_fd fds[8] = {{agent_theirs, QEMU_FD_AGENT},
                                {qmp_theirs, QEMU_FD_QMP},
                                {console, QEMU_FD_CONSOLE},
                                {log, 2}};
    size_t n = 4;
    if (s->q.terminal) {
        fds[n++] = (struct cb_proc_fd){s->spec->console_fd, 1};
        if (isatty(s->spec->console_fd))
            fds[n++] = (struct cb_proc_fd){s->spec->console_fd, 0};
    }
    CB_AUTO_STRV argv = {0};
    qemu_command(&s->q, &argv);
    int ns[2];
    struct cb_proc_spec p = {.argv = (const char *const *)argv.v,
                             .cwd = s->dir,
                             .fds = fds,
                             .n_fds = n,
                             .own_session = true,
                             .setns = ns};
    p.n_setns = s->vm->ns ? netns_fds(s->vm->ns, ns) : 0;
    m->pid = cb_proc_start(&p, err);
    if (m->pid < 0) {
        rc = (int)m->pid;
        m->pid = 0;
        if (rc != -CB_E_ENV)
            return rc;
        cb_error_clear(err);
        return qemu_missing(s->settings, err);
    }
    cb_close(cb_take_fd(&agent_theirs));
    cb_close(cb_take_fd(&qmp_theirs));
    rc = wait_set_up(m, s->vm, err);
    return rc < 0 || !s->spec->resume ? rc : resume(s, err);
}

/* What a state that is saved from this machine will depend on. QEMU's version comes later, from
 * QEMU itself. */
static void know_machine(struct starting *s)
{
    static const char *const networks[] = {
        [QEMU_NET_NONE] = "none", [QEMU_NET_SANDBOXED] = "sandboxed", [QEMU_NET_HOST] = "host"};
    char drives[32] = "";
    if (s->q.n_drives)
        (void)snprintf(drives, sizeof(drives), ", drives: %zu", s->q.n_drives);
    s->vm->id =
        (struct machine_identity){.machine = cb_xasprintf("%s%s", qemu_machine(&s->q), drives),
                                  .cpu = qemu_cpu(s->q.kvm),
                                  .network = cb_xstrdup(networks[s->q.net]),
                                  .vcpus = s->q.vcpus,
                                  .memory_mib = s->q.memory_mib,
                                  .tsc_khz = s->q.tsc_khz};
    CB_AUTO_FREE char *words = qemu_kernel_words(&s->q);
    cb_sha256(words, strlen(words), &s->vm->id.cmdline);
}

static int forward_ports(struct starting *s, struct cb_error *err)
{
    if (s->q.net == QEMU_NET_NONE && s->spec->n_forwards)
        return cb_fail(err, CB_E_CONFIG, "a port cannot be forwarded without a network");
    for (size_t i = 0; s->q.net == QEMU_NET_SANDBOXED && i < s->spec->n_forwards; i++) {
        int rc = netns_forward(s->vm->ns, s->spec->forwards[i][0], qemu_forward_port(i), err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int start_all(struct starting *s, struct cb_error *err)
{
    const struct machine_spec *spec = s->spec;
    int rc = cb_mkdir_p(spec->work_dir, 0700, err);
    if (rc == 0)
        rc = real_path(spec->work_dir, &s->dir, err);
    if (rc < 0)
        return rc;
    s->m->console = cb_xasprintf("%s/console.log", s->dir);
    s->m->log = cb_xasprintf("%s/qemu.log", s->dir);
    rc = prepare_kernel(s, err);
    if (rc == 0)
        rc = prepare_disks(s, err);
    if (rc == 0)
        rc = prepare_drives(s, err);
    if (rc == 0)
        rc = prepare_network(s, err);
    if (rc < 0)
        return rc;
    choose_size(s);
    CB_AUTO_FREE char *why = NULL;
    s->q.kvm = kvm_probe(s->settings, spec->agent_path, &why);
    s->m->emulated = !s->q.kvm;
    s->q.tsc_khz = s->q.kvm ? 0 : qemu_tsc_khz();
    s->q.program = s->settings->qemu;
    s->q.sandbox = qemu_has_sandbox(s->settings->qemu);
    s->q.channels = true;
    s->q.mode = spec->mode == MACHINE_BUILD ? "build" : "boot";
    s->q.terminal = spec->mode == MACHINE_BOOT && spec->console_fd >= 0;
    if (s->q.terminal && tcgetattr(spec->console_fd, &s->vm->saved) == 0)
        s->vm->terminal = spec->console_fd;
    s->q.incoming = spec->resume != NULL;
    s->m->parks = spec->parks && spec->mode == MACHINE_BUILD;
    s->q.parks = spec->mode == MACHINE_BUILD && (spec->parks || spec->resume);
    know_machine(s);
    rc = spawn(s, err);
    return rc < 0 ? rc : forward_ports(s, err);
}

static void vm_stop(struct machine *m, int64_t grace_ms)
{
    if (!m)
        return;
    struct vm *vm = m->private_data;
    if (!m->ended) /* QEMU takes SIGTERM as "pull the plug", and puts a terminal back in order */
        cb_proc_stop(m->pid, false, grace_ms);
    if (vm->terminal >= 0)
        (void)tcsetattr(vm->terminal, TCSANOW, &vm->saved);
    console_close(m->console_log);
    netns_close(vm->ns);
    qmp_close(vm->monitor);
    cb_close(vm->qmp);
    cb_close(m->stream);
    machine_identity_release(&vm->id);
    free(vm->overlay);
    for (size_t i = 0; i < vm->n_drives; i++) {
        free(vm->drives[i].path);
        free(vm->drives[i].overlay);
    }
    free(vm->drives);
    free(vm);
    free(m->console);
    free(m->log);
    free(m);
}

const struct machine_identity *machine_vm_identity(const struct machine *m)
{
    return &((const struct vm *)m->private_data)->id;
}

const char *machine_vm_overlay(const struct machine *m)
{
    return ((const struct vm *)m->private_data)->overlay;
}

const char *machine_vm_drive_overlay(const struct machine *m, size_t i)
{
    const struct vm *vm = m->private_data;
    return i < vm->n_drives ? vm->drives[i].overlay : NULL;
}

int machine_vm_save(struct machine *m, int fd, struct cb_error *err)
{
    struct vm *vm = m->private_data;
    int rc = qmp_run(vm->monitor, "stop", NULL, -1, GO_ON_TIMEOUT_MS, NULL, err);
    return rc < 0 ? rc : qmp_save(vm->monitor, fd, STATE_TIMEOUT_MS, err);
}

int machine_vm_go_on(struct machine *m, struct cb_error *err)
{
    struct vm *vm = m->private_data;
    int rc = qmp_run(vm->monitor, "cont", NULL, -1, GO_ON_TIMEOUT_MS, NULL, err);
    return rc < 0 ? cb_wrap(err, "let the machine go on") : 0;
}

static int vm_start(const struct settings *settings, const struct machine_spec *spec,
                    struct machine **out, struct cb_error *err)
{
    struct vm *vm = cb_xcalloc(1, sizeof(*vm));
    *vm = (struct vm){.qmp = -1, .terminal = -1};
    struct machine *m = cb_xcalloc(1, sizeof(*m));
    *m = (struct machine){
        .driver = &machine_vm, .stream = -1, .program = "QEMU", .private_data = vm};
    struct starting s = {.settings = settings, .spec = spec, .m = m, .vm = vm};
    s.q.spec = spec;
    int rc = start_all(&s, err);
    starting_release(&s);
    if (rc < 0) {
        vm_stop(m, 0);
        return cb_wrap(err, "start the virtual machine");
    }
    *out = m;
    return 0;
}

const struct machine_driver machine_vm = {"vm", vm_probe, vm_start, vm_stop};
