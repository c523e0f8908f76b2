/* The driver "container": our agent under an OCI runtime. */
#include "builder/container.h"
#include "builder/console.h"
#include "builder/hop.h"
#include "builder/netns.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"
#include "support/proc.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { START_TIMEOUT_MS = 30000, STOP_MS = 5000, TICK_MS = 50, ARGS_MAX = 16 };

/* The runtimes, best first. crun without control groups is the last resort: no limits on memory and
 * processes, but a container. */
static const struct runtime {
    const char *name;
    const char *option;
    bool limits;
} runtimes[] = {
    {"crun", "--cgroup-manager=cgroupfs", true},
    {"runc", NULL, true},
    {"crun", "--cgroup-manager=disabled", false},
};
/* The one that worked; chosen once a process. */
static const struct runtime *chosen;

struct container {
    struct netns *ns;
    char *dir; /* the work folder, absolute; owned */
    char id[CONTAINER_ID_LEN + 1];
};

/* What a start needs for itself alone. */
struct starting {
    const struct machine_spec *spec;
    const struct runtime *runtime;
    struct machine *m;
    struct container *c;
    char *prog, *state, *bundle, *lower_at, *scratch_at, *output, *overlay;
    char *lower_device, *scratch_device;
    struct cb_strv drives_at, drive_devices;
    int drive_fds[MACHINE_DRIVES_MAX]; /* as many as there are devices */
    int lower_fd, scratch_fd, agent_fd;
};

static void starting_release(struct starting *s)
{
    char *const owned[] = {s->prog,         s->state,          s->bundle,
                           s->lower_at,     s->scratch_at,     s->output,
                           s->lower_device, s->scratch_device, s->overlay};
    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++)
        free(owned[i]);
    for (size_t i = 0; i < s->drive_devices.n; i++)
        cb_close(s->drive_fds[i]);
    cb_strv_release(&s->drive_devices);
    cb_strv_release(&s->drives_at);
    cb_close(s->lower_fd);
    cb_close(s->scratch_fd);
    cb_close(s->agent_fd);
}

static int make_folder(const char *parent, const char *name, char **out, struct cb_error *err)
{
    *out = cb_xasprintf("%s/%s", parent, name);
    return cb_mkdir_p(*out, 0755, err);
}

/* bundle/rootfs: the agent and the places where things are mounted, nothing else. */
static int make_rootfs(const struct starting *s, struct cb_error *err)
{
    static const char *const folders[] = {"proc", "dev",   "sys",     "tmp",
                                          "run",  "lower", "scratch", "groups"};
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        CB_AUTO_FREE char *path = cb_xasprintf("%s/rootfs/%s", s->bundle, folders[i]);
        int rc = cb_mkdir_p(path, 0755, err);
        if (rc < 0)
            return rc;
    }
    for (size_t i = 0; i < s->spec->n_drives; i++) {
        CB_AUTO_FREE char *path = cb_xasprintf("%s/rootfs/drives/%zu", s->bundle, i);
        int rc = cb_mkdir_p(path, 0755, err);
        if (rc < 0)
            return rc;
    }
    CB_AUTO_FREE char *output = cb_xasprintf("%s/rootfs/output", s->bundle);
    int rc = cb_write_file(output, "", 0, 0644, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FREE char *agent = cb_xasprintf("%s/rootfs/capsule-agent", s->bundle);
    CB_AUTO_FD from = open(s->spec->agent_path, O_RDONLY | O_CLOEXEC);
    CB_AUTO_FD to = open(agent, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
    if (from < 0)
        return cb_fail_sys(err, errno, "open %s", s->spec->agent_path);
    if (to < 0 || fchmod(to, 0755) < 0)
        return cb_fail_sys(err, errno, "make %s", agent);
    return cb_clone_file(from, to, err);
}

static int write_config(const struct starting *s, struct cb_error *err)
{
    const struct container_spec spec = {
        .id = s->c->id,
        .hostname = s->spec->hostname ? s->spec->hostname : "capsule",
        .lower = s->spec->lower ? s->lower_at : NULL,
        .scratch = s->spec->scratch ? s->scratch_at : NULL,
        .output = s->output,
        .drives = &s->drives_at,
        .memory_mib = s->spec->memory_mib,
        .vcpus = s->spec->vcpus,
        .limits = s->runtime->limits,
    };
    json_t *root = container_config(&spec);
    CB_AUTO_FREE char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (!text)
        return cb_fail(err, CB_E_BUG, "the container's configuration cannot be written");
    CB_AUTO_FREE char *path = cb_xasprintf("%s/config.json", s->bundle);
    return cb_write_file(path, text, strlen(text), 0644, err);
}

/* They are mounted at folders of the bundle, as the scratch disk is. */
static int attach_drives(struct starting *s, struct cb_error *err)
{
    const struct machine_spec *spec = s->spec;
    if (spec->n_drives > MACHINE_DRIVES_MAX)
        return cb_fail(err, CB_E_BUG, "a container with %zu drives", spec->n_drives);
    for (size_t i = 0; i < spec->n_drives; i++) {
        char *device = NULL, *at = NULL;
        char name[32];
        int fd = loop_attach(spec->drives[i].path, false, &device, err);
        if (fd < 0)
            return fd;
        s->drive_fds[s->drive_devices.n] = fd;
        cb_strv_take(&s->drive_devices, device);
        (void)snprintf(name, sizeof(name), "drive%zu", i);
        int rc = make_folder(s->bundle, name, &at, err);
        cb_strv_take(&s->drives_at, at);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int attach_disks(struct starting *s, struct cb_error *err)
{
    const struct machine_spec *spec = s->spec;
    if (spec->lower) {
        s->lower_fd = loop_attach(spec->lower, true, &s->lower_device, err);
        if (s->lower_fd < 0)
            return s->lower_fd;
    }
    if (spec->scratch) {
        s->scratch_fd = loop_attach(spec->scratch, false, &s->scratch_device, err);
        if (s->scratch_fd < 0)
            return s->scratch_fd;
    }
    int rc = attach_drives(s, err);
    if (rc < 0)
        return rc;
    if (spec->output) {
        s->output = realpath(spec->output, NULL);
        if (!s->output)
            return cb_fail_sys(err, errno, "%s", spec->output);
    }
    return 0;
}

static int prepare(struct starting *s, bool probe, struct cb_error *err)
{
    int rc = cb_mkdir_p(s->spec->work_dir, 0700, err);
    if (rc < 0)
        return rc;
    s->c->dir = realpath(s->spec->work_dir, NULL);
    if (!s->c->dir)
        return cb_fail_sys(err, errno, "%s", s->spec->work_dir);
    container_id(s->c->dir, s->c->id);
    s->m->console = cb_xasprintf("%s/container.log", s->c->dir);
    s->m->log = cb_xstrdup(s->m->console);
    CB_AUTO_FREE char *bundle = cb_xasprintf("%s/bundle", s->c->dir);
    rc = cb_remove_tree(bundle, err);
    if (rc == 0)
        rc = make_folder(s->c->dir, "bundle", &s->bundle, err);
    if (rc == 0)
        rc = make_folder(s->c->dir, "runtime", &s->state, err);
    if (rc == 0)
        rc = make_folder(s->bundle, "lower", &s->lower_at, err);
    if (rc == 0)
        rc = make_folder(s->bundle, "scratch", &s->scratch_at, err);
    if (rc == 0 && probe)
        rc = make_folder(s->bundle, "overlay", &s->overlay, err);
    if (rc == 0)
        rc = make_rootfs(s, err);
    if (rc == 0)
        rc = netns_open(s->c->dir, s->spec->network, s->spec->gateway, &s->c->ns, err);
    if (rc == 0)
        rc = attach_disks(s, err);
    return rc < 0 ? rc : write_config(s, err);
}

static int spawn(struct starting *s, struct cb_error *err)
{
    int pair[2], ns[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return cb_fail_sys(err, errno, "start the container");
    s->m->stream = pair[0];
    s->agent_fd = pair[1];
    CB_AUTO_FD log = -1;
    int rc = console_open(s->m->console, &s->m->console_log, &log, err);
    if (rc < 0)
        return rc;
    const char *argv[ARGS_MAX];
    size_t n = 0;
    argv[n++] = s->prog;
    argv[n++] = "--root";
    argv[n++] = s->state;
    if (s->runtime->option)
        argv[n++] = s->runtime->option;
    argv[n++] = "run";
    argv[n++] = "--preserve-fds";
    argv[n++] = "1";
    argv[n++] = "--bundle";
    argv[n++] = s->bundle;
    argv[n++] = s->c->id;
    argv[n] = NULL;
    const struct hop_spec hop = {.argv = argv,
                                 .lower_device = s->lower_device,
                                 .lower_at = s->lower_at,
                                 .scratch_device = s->scratch_device,
                                 .scratch_at = s->scratch_at,
                                 .drive_devices = (const char *const *)s->drive_devices.v,
                                 .drives_at = (const char *const *)s->drives_at.v,
                                 .n_drives = s->drives_at.n,
                                 .try_overlay = s->overlay,
                                 .setns = ns,
                                 .n_setns = netns_fds(s->c->ns, ns),
                                 .agent_fd = s->agent_fd,
                                 .log_fd = log};
    s->m->pid = hop_start(&hop, err);
    if (s->m->pid < 0) {
        rc = (int)s->m->pid;
        s->m->pid = 0;
        return rc;
    }
    cb_close(cb_take_fd(&s->agent_fd));
    return 0;
}

static int not_started(struct starting *s, struct cb_error *err)
{
    int status;
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    if (!s->m->ended && cb_proc_wait(s->m->pid, STOP_MS, &status, &ignored) == 1) {
        s->m->ended = true;
        s->m->status = status;
    }
    CB_AUTO_FREE char *last = machine_console_tail(s->m, 1);
    return cb_fail(err, CB_E_ENV, "%s did not start the container: %s", s->runtime->name,
                   *last ? last : "it said nothing");
}

/* The agent speaks first; until then the runtime may still fail. Its words stay in the stream. */
static int wait_for_agent(struct starting *s, struct cb_error *err)
{
    int64_t end = cb_monotonic_ms() + START_TIMEOUT_MS;
    while (!machine_canceled()) {
        struct pollfd w = {.fd = s->m->stream, .events = POLLIN};
        char c;
        if (cb_monotonic_ms() >= end)
            return cb_fail(err, CB_E_TIMEOUT, "%s did not start the container within %d s",
                           s->runtime->name, START_TIMEOUT_MS / 1000);
        if (poll(&w, 1, TICK_MS) <= 0)
            continue;
        ssize_t n = recv(s->m->stream, &c, 1, MSG_PEEK);
        if (n == 1)
            return 0;
        if (n == 0 || errno != EINTR)
            return not_started(s, err);
    }
    return cb_fail(err, CB_E_CANCELED, "start the container: stopped");
}

static void container_stop(struct machine *m, int64_t grace_ms)
{
    if (!m)
        return;
    struct container *c = m->private_data;
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    int status;
    cb_close(cb_take_fd(&m->stream)); /* the agent ends when its host is gone */
    if (m->pid > 0 && !m->ended && grace_ms > 0)
        m->ended = cb_proc_wait(m->pid, grace_ms, &status, &ignored) != 0;
    if (!m->ended)
        cb_proc_stop(m->pid, false, STOP_MS);
    console_close(m->console_log);
    netns_close(c->ns);
    if (m->pid > 0)
        container_remove_cgroups(c->id);
    static const char *const folders[] = {"runtime", "bundle"};
    for (size_t i = 0; c->dir && i < sizeof(folders) / sizeof(folders[0]); i++) {
        CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", c->dir, folders[i]);
        CB_AUTO_ERROR why = CB_ERROR_INIT;
        (void)cb_remove_tree(path, &why);
    }
    free(c->dir);
    free(c);
    free(m->console);
    free(m->log);
    free(m);
}

/* Starts with the given runtime. @probe: without disks, and an overlay is tried first. */
static int start_with(const struct runtime *r, const struct machine_spec *spec, bool probe,
                      struct machine **out, struct cb_error *err)
{
    struct container *c = cb_xcalloc(1, sizeof(*c));
    struct machine *m = cb_xcalloc(1, sizeof(*m));
    *m = (struct machine){
        .driver = &machine_container, .stream = -1, .program = r->name, .private_data = c};
    struct starting s = {.spec = spec,
                         .runtime = r,
                         .m = m,
                         .c = c,
                         .prog = cb_find_program(r->name),
                         .lower_fd = -1,
                         .scratch_fd = -1,
                         .agent_fd = -1};
    int rc = s.prog ? prepare(&s, probe, err)
                    : cb_fail(err, CB_E_ENV, "%s is not on this machine", r->name);
    if (rc == 0)
        rc = spawn(&s, err);
    if (rc == 0)
        rc = wait_for_agent(&s, err);
    if (rc == 0 && spec->network)
        (void)snprintf(m->dns, sizeof(m->dns), "%s", NETNS_DNS);
    starting_release(&s);
    if (rc < 0) {
        container_stop(m, 0);
        return rc;
    }
    *out = m;
    return 0;
}

static int try_runtime(const struct runtime *r, const char *agent_path, const char *dir,
                       struct cb_error *err)
{
    struct machine *m = NULL;
    const struct machine_spec spec = {.mode = MACHINE_BUILD,
                                      .work_dir = dir,
                                      .agent_path = agent_path,
                                      .memory_mib = 256,
                                      .console_fd = -1};
    int rc = start_with(r, &spec, true, &m, err);
    container_stop(m, 0);
    return rc;
}

/* What of this machine a runtime's start depends on, in one line. Owned; NULL: there is no such
 * program. */
static char *runtime_record(const struct runtime *r, const char *agent_path)
{
    CB_AUTO_FREE char *prog = cb_find_program(r->name);
    CB_AUTO_BUF boot = CB_BUF_INIT(128);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    struct stat st, agent;
    if (!prog || stat(prog, &st) < 0 || stat(agent_path, &agent) < 0 ||
        cb_read_file("/proc/sys/kernel/random/boot_id", 127, &boot, &ignored) < 0)
        return NULL;
    return cb_xasprintf("%s %s %lld %lld.%09ld %s %lld %lld %.36s\n", prog,
                        r->option ? r->option : "-", (long long)st.st_size,
                        (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec, agent_path,
                        (long long)agent.st_size, (long long)agent.st_mtim.tv_sec, boot.data);
}

static char *record_path(const struct settings *settings)
{
    return cb_xasprintf("%s/container-probe", settings->home);
}

/* A trial costs more than the container that follows. One that worked since this machine booted,
 * with this runtime and agent, is not made again; a start that fails makes it forgotten. */
static const struct runtime *remembered(const struct settings *settings, const char *agent_path)
{
    CB_AUTO_FREE char *path = record_path(settings);
    CB_AUTO_BUF text = CB_BUF_INIT(8192);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    if (cb_read_file(path, 8191, &text, &ignored) < 0 || !text.data)
        return NULL;
    for (size_t i = 0; i < sizeof(runtimes) / sizeof(runtimes[0]); i++) {
        CB_AUTO_FREE char *record = runtime_record(&runtimes[i], agent_path);
        if (record && strcmp(record, text.data) == 0)
            return &runtimes[i];
    }
    return NULL;
}

void container_forget(const struct settings *settings)
{
    CB_AUTO_FREE char *path = record_path(settings);
    (void)unlink(path);
}

static void remember(const struct settings *settings, const char *agent_path)
{
    CB_AUTO_FREE char *path = record_path(settings);
    CB_AUTO_FREE char *record = runtime_record(chosen, agent_path);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    if (record)
        (void)cb_write_file(path, record, strlen(record), 0600, &ignored);
}

/* The reasons of all that failed become one. */
static int choose(const struct settings *settings, const char *agent_path, struct cb_error *err)
{
    if (chosen)
        return 0;
    if (geteuid() != 0) {
        cb_fail(err, CB_E_ENV, "containers need root (mounts and loop devices)");
        return cb_hint(err, "Run as root, or use --isolation vm.");
    }
    if ((chosen = remembered(settings, agent_path)))
        return 0;
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/tmp/container-probe-XXXXXX", settings->home);
    char *leaf = strrchr(dir, '/');
    *leaf = '\0';
    int rc = cb_mkdir_p(dir, 0755, err);
    *leaf = '/';
    if (rc < 0)
        return rc;
    if (!mkdtemp(dir))
        return cb_fail_sys(err, errno, "make a folder in %s/tmp", settings->home);
    CB_AUTO_BUF reasons = CB_BUF_INIT(8192);
    for (size_t i = 0; i < sizeof(runtimes) / sizeof(runtimes[0]) && !chosen; i++) {
        CB_AUTO_ERROR why = CB_ERROR_INIT;
        rc = try_runtime(&runtimes[i], agent_path, dir, &why);
        if (rc == -CB_E_CANCELED) {
            cb_error_move(err, &why);
            break;
        }
        if (rc == 0)
            chosen = &runtimes[i];
        else
            (void)cb_buf_addf(&reasons, "%s%s", reasons.len ? "; " : "", why.msg);
    }
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    (void)cb_remove_tree(dir, &ignored);
    if (chosen)
        remember(settings, agent_path);
    if (chosen || rc == -CB_E_CANCELED)
        return chosen ? 0 : rc;
    cb_fail(err, CB_E_ENV, "no container can be started here: %s", reasons.data);
    return cb_hint(err, "apt-get install runc slirp4netns, or use --isolation vm.");
}

int container_probe(const struct settings *settings, const char *agent_path, char **why,
                    struct cb_error *err)
{
    int rc = choose(settings, agent_path, err);
    if (rc == 0 && why)
        *why = cb_xasprintf("%s starts a container%s", chosen->name,
                            chosen->limits ? "" : " (without limits: no control groups)");
    return rc;
}

static int container_driver_probe(const struct settings *settings, char **why, struct cb_error *err)
{
    CB_AUTO_FREE char *agent = machine_agent();
    if (!agent)
        return cb_fail(err, CB_E_ENV, "capsule-agent is not where this program is");
    CB_AUTO_FREE char *slirp = cb_find_program("slirp4netns");
    if (!slirp) {
        cb_fail(err, CB_E_ENV, "slirp4netns is not on this machine");
        return cb_hint(err, "apt-get install slirp4netns");
    }
    return container_probe(settings, agent, why, err);
}

static int container_start(const struct settings *settings, const struct machine_spec *spec,
                           struct machine **out, struct cb_error *err)
{
    if (spec->mode != MACHINE_BUILD)
        return cb_fail(err, CB_E_BUG, "a finished image is booted in a virtual machine");
    int rc = choose(settings, spec->agent_path, err);
    if (rc == 0)
        rc = start_with(chosen, spec, false, out, err);
    if (rc < 0 && rc != -(int)CB_E_CANCELED)
        container_forget(settings);
    return rc < 0 ? cb_wrap(err, "start the builder container") : 0;
}

const struct machine_driver machine_container = {"container", container_driver_probe,
                                                 container_start, container_stop};
