/* boot: PID 1 of the finished image, or a service where the image's own init is that. It prepares
 * the machine, runs the boot commands, then the start command, says when it is ready, and ends the
 * machine when the start command or the host says so. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define STOP_GRACE_MS 10000 /* between SIGTERM and SIGKILL */
#define AT_ONCE_MS 300      /* a start command without a port is ready when it lives this long */
#define KEPT_MAX 32
#define FOREIGN_DISK_WAIT_MS 3000 /* drivers of other machines look for their disks by and by */
#define LINGER_MS 15000           /* for a host that has not asked yet how the start went */
#define INIT_ENDS_MS 30000        /* until an init that was asked to end the machine stops us */
#define RESIZE_FS 0x40086610ul    /* EXT4_IOC_RESIZE_FS of linux/ext4.h */

struct boot {
    struct cmdline cmd;
    struct boot_conf conf;
    int sigfd, port;
    struct chan host;
    bool connected, watching, answered; /* answered: READY or START_EXITED went out */
    struct job main_job; /* a boot command, the start command, or the console's shell */
    struct job exec_job;
    struct job *kept[KEPT_MAX]; /* boot commands that go on running */
    size_t n_kept;
    size_t next_command;
    bool starting, started, ready, start_failed;
    int64_t started_at, ended_at, beat_at, look_at;
    int start_status;
    struct probe probe;
    bool service;      /* the image's own init is PID 1 */
    struct init_up up; /* which says when all is started */
    char ready_text[256];
    /* The newest output from before the host asked for it. */
    uint8_t backlog[16384];
    size_t backlog_len;
    bool stop, stop_asked; /* by a signal or the host; by the host, who wants an answer */
    bool signaled;
};

static bool is_link(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISLNK(st.st_mode);
}

static void write_if_empty(const char *path, const char *content)
{
    struct stat st;
    if (stat(path, &st) == 0 && st.st_size > 0)
        return;
    (void)unlink(path); /* a dangling link would lead elsewhere */
    if (write_file(path, content, strlen(content), 0644) < 0)
        console_say("write %s: %s", path, strerror(errno));
}

static const char *machine_name(const struct boot *b)
{
    const char *name = b->cmd.hostname[0] ? b->cmd.hostname : b->conf.hostname;
    if (name && *name)
        (void)!sethostname(name, strlen(name));
    return name;
}

static void name_machine(const struct boot *b)
{
    const char *name = machine_name(b);
    char text[512];
    (void)mkdir("/etc", 0755);
    (void)snprintf(text, sizeof text,
                   "127.0.0.1\tlocalhost\n127.0.1.1\t%.64s\n"
                   "::1\tlocalhost ip6-localhost ip6-loopback\n",
                   name && *name ? name : "localhost");
    write_if_empty("/etc/hosts", text);
    if (b->cmd.dns[0] && !init_is_ours(b->conf.init) && is_link("/etc/resolv.conf")) {
        init_tell_resolver(b->cmd.dns);
    } else if (b->cmd.dns[0]) {
        (void)snprintf(text, sizeof text, "nameserver %.60s\n", b->cmd.dns);
        write_if_empty("/etc/resolv.conf", text);
    }
}

/* The disk may be larger than the file system on it: then this makes use of it. */
static void grow_root(void)
{
    struct stat st;
    struct statvfs fs;
    struct text t = {0};
    char path[64];
    uint64_t sectors = 0;
    int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0 || fstatvfs(fd, &fs) < 0 || fs.f_bsize < 1024)
        goto out;
    (void)snprintf(path, sizeof path, "/sys/dev/block/%u:%u/size", major(st.st_dev),
                   minor(st.st_dev));
    if (read_file(path, 64, &t) < 0)
        goto out;
    t.p[strcspn(t.p, "\n")] = 0;
    if (parse_number(t.p, UINT64_MAX / 512, &sectors) && sectors) {
        uint64_t blocks = sectors * 512 / fs.f_bsize;
        if (ioctl(fd, (int)RESIZE_FS, &blocks) < 0 && errno != ENOTTY && errno != EINVAL)
            console_say("grow the file system: %s", strerror(errno));
    }
out:
    text_release(&t);
    if (fd >= 0)
        (void)close(fd);
}

static void load_conf(struct boot *b)
{
    struct text t = {0};
    struct fail f;
    if (read_file(BOOT_CONF_PATH, BOOT_CONF_MAX, &t) < 0)
        console_say("%s: %s", BOOT_CONF_PATH, strerror(errno));
    else if (boot_conf_parse(t.p, t.n, &b->conf, &f) < 0)
        console_say("%s: %s", BOOT_CONF_PATH, f.text);
    text_release(&t);
}

/* --- jobs --- */

static void keep_output(struct boot *b, const uint8_t *p, size_t n)
{
    size_t max = sizeof b->backlog;
    if (n > max) {
        p += n - max;
        n = max;
    }
    size_t drop = b->backlog_len + n > max ? b->backlog_len + n - max : 0;
    memmove(b->backlog, b->backlog + drop, b->backlog_len - drop);
    b->backlog_len -= drop;
    memcpy(b->backlog + b->backlog_len, p, n);
    b->backlog_len += n;
}

static void on_output(void *arg, uint32_t step, int stream, const void *p, size_t n)
{
    struct boot *b = arg;
    (void)step;
    (void)write_all(stream, p, n);
    if (b->connected && b->watching && !b->answered) /* later nobody may be reading: never wait */
        (void)chan_send_output(&b->host, 0, stream, p, n);
    else if (!b->answered)
        keep_output(b, p, n);
}

static void on_exec_output(void *arg, uint32_t step, int stream, const void *p, size_t n)
{
    struct boot *b = arg;
    if (b->connected)
        (void)chan_send_output(&b->host, step, stream, p, n);
}

static void fill_env(struct boot *b, struct words *env, const struct words *more,
                     const struct ident *who, const char *term)
{
    for (size_t i = 0; i < b->conf.env.n; i++)
        env_set(env, b->conf.env.v[i]);
    for (size_t i = 0; more && i < more->n; i++)
        env_set(env, more->v[i]);
    env_default(env, "PATH", DEFAULT_PATH);
    env_default(env, "HOME", who->home);
    env_default(env, "USER", who->name);
    env_default(env, "LOGNAME", who->name);
    env_default(env, "SHELL", who->shell[0] ? who->shell : "/bin/sh");
    env_default(env, "TERM", term);
}

struct what {
    const char *script;
    const struct words *argv, *env;
    const char *user, *workdir;
    bool console;
    int64_t timeout_ms;
    uint32_t step;
};

static int start_job(struct boot *b, struct job *j, const struct what *w, struct fail *f)
{
    struct words env = {0}, argv = {0};
    struct ident who;
    if (ident_load(w->user ? w->user : "", &who, f) < 0)
        return -1;
    fill_env(b, &env, w->env, &who, w->console ? "linux" : "dumb");
    const char *path = env_get(&b->conf.env, "PATH");
    if (w->script)
        script_argv(&argv, w->script, path);
    for (size_t i = 0; !w->script && i < w->argv->n; i++)
        words_add(&argv, w->argv->v[i]);
    if (!w->script)
        mend_login_argv(&argv, path);
    struct job_spec spec = {.argv = &argv,
                            .env = &env,
                            .who = &who,
                            .workdir = w->workdir,
                            .console = w->console,
                            .timeout_ms = w->timeout_ms,
                            .step = w->step};
    int rc = job_start(j, &spec, f);
    words_release(&env);
    words_release(&argv);
    return rc;
}

static void start_over(struct boot *b, int status, const char *what)
{
    b->start_status = status;
    b->start_failed = true;
    b->ended_at = now_ms();
    if (WIFSIGNALED(status))
        console_say("%s was killed by signal %d", what, WTERMSIG(status));
    else
        console_say("%s ended with exit status %d", what, WEXITSTATUS(status));
}

static void cannot_start(struct boot *b, const struct fail *f)
{
    console_say("%s", f->text);
    (void)snprintf(b->probe.last, sizeof b->probe.last, "%.250s", f->text);
    start_over(b, 127 << 8, "the start command");
}

static void start_shell(struct boot *b)
{
    struct words argv = {0};
    struct fail f;
    const char *path = env_get(&b->conf.env, "PATH");
    const char *shell = program_exists("bash", path) ? "bash" : "sh";
    if (b->cmd.no_shell || !isatty(0) || !program_exists(shell, path))
        return;
    words_add(&argv, shell);
    words_add(&argv, "-l");
    const struct what w = {.argv = &argv,
                           .user = b->conf.default_user,
                           .workdir = b->conf.default_workdir,
                           .console = true};
    if (start_job(b, &b->main_job, &w, &f) < 0)
        console_say("%s", f.text);
    words_release(&argv);
}

static void become_ready(struct boot *b, const char *how)
{
    b->ready = true;
    (void)snprintf(b->ready_text, sizeof b->ready_text, "%s", how);
    console_say("ready: %s", how);
}

static const char *command_user(const struct boot *b, const struct step_spec *s)
{
    if (s->root)
        return "0";
    return s->user ? s->user : b->conf.default_user;
}

static struct job *new_kept(struct boot *b, struct fail *f)
{
    if (b->n_kept == KEPT_MAX) {
        (void)fail_set(f, FAIL_IMAGE, "more than %d boot commands that go on running", KEPT_MAX);
        return NULL;
    }
    struct job *j = ag_alloc(sizeof *j);
    *j = (struct job){.out = {{.fd = -1}, {.fd = -1}}};
    b->kept[b->n_kept++] = j;
    return j;
}

/* What goes on may end: that is said, and the machine goes on. */
static void work_kept(struct boot *b, int64_t now)
{
    for (size_t i = 0; i < b->n_kept; i++) {
        struct job *j = b->kept[i];
        if (!j->pid || !job_work(j, now, on_output, b))
            continue;
        console_say("what boot command %zu started ended with exit status %d", i + 1,
                    exit_code_of(j->status));
        job_close(j);
    }
}

/* The next thing of the boot: boot commands, then the start command. */
static void go_on(struct boot *b)
{
    struct fail f;
    if (b->main_job.pid || b->started || b->start_failed || b->stop)
        return;
    while (b->next_command < b->conf.n_commands) {
        const struct step_spec *s = &b->conf.commands[b->next_command++];
        const struct what w = {.script = s->script,
                               .argv = &s->argv,
                               .env = &s->env,
                               .user = command_user(b, s),
                               .workdir = s->workdir ? s->workdir : b->conf.default_workdir,
                               .timeout_ms = s->goes_on ? 0 : (int64_t)s->timeout_ms};
        struct job *j = s->goes_on ? new_kept(b, &f) : &b->main_job;
        if (!j || start_job(b, j, &w, &f) < 0) {
            cannot_start(b, &f);
            return;
        }
        if (!s->goes_on)
            return;
    }
    b->started = true;
    b->started_at = b->probe.started = now_ms();
    if (b->conf.start_argv.n == 0) {
        if (b->service && init_up_is_asked(b->conf.init))
            return;
        become_ready(b, "booted, no start command");
        if (!b->service) /* else who may log in on the console is the init's business */
            start_shell(b);
        return;
    }
    const struct what w = {.argv = &b->conf.start_argv,
                           .env = &b->conf.start_env,
                           .user = b->conf.user ? b->conf.user : b->conf.default_user,
                           .workdir = b->conf.workdir ? b->conf.workdir : b->conf.default_workdir};
    if (start_job(b, &b->main_job, &w, &f) < 0)
        cannot_start(b, &f);
}

static void main_job_over(struct boot *b)
{
    int status = b->main_job.status;
    bool timed_out = b->main_job.timed_out;
    job_close(&b->main_job);
    if (b->started) {
        start_over(b, status, b->conf.start_argv.n ? "the start command" : "the shell");
    } else if (status != 0 || timed_out) {
        char what[64];
        (void)snprintf(what, sizeof what, "boot command %zu%s", b->next_command,
                       timed_out ? " (too slow)" : "");
        start_over(b, status ? status : 1 << 8, what);
    }
}

/* --- readiness --- */

static void look_for_ready(struct boot *b, int64_t now)
{
    if (!b->started || b->ready || b->start_failed)
        return;
    if (b->conf.start_argv.n == 0) { /* as a service: ready when the others are */
        if (!b->up.pid && now >= b->up.next_at && init_up_start(&b->up) < 0)
            b->up.next_at = now + 500;
    } else if (!b->conf.port) {
        if (now - b->started_at >= AT_ONCE_MS)
            become_ready(b, "the start command runs");
    } else if (probe_is_due(&b->probe, b->conf.port, now)) {
        if (probe_start(&b->probe, b->conf.port, b->conf.health) < 0)
            b->probe.next_at = now + 500;
    }
}

static void on_probe(struct boot *b, int status)
{
    bool changed;
    bool ok = probe_reaped(&b->probe, status, &changed);
    if (ok && !b->start_failed)
        become_ready(b, b->probe.last);
    else if (changed && b->connected && b->watching && !b->answered)
        (void)chan_send_text(&b->host, FRAME_PROBE, 0, b->probe.last);
}

static void on_init_up(struct boot *b)
{
    char how[128];
    if (init_up_reaped(&b->up, how, sizeof how) && !b->start_failed)
        become_ready(b, how);
}

static void answer_watch(struct boot *b)
{
    if (!b->connected || !b->watching || b->answered)
        return;
    if (b->start_failed) {
        struct frame_out o;
        if (b->probe.last[0])
            (void)chan_send_text(&b->host, FRAME_PROBE, 0, b->probe.last);
        int st = b->start_status;
        frame_begin(&o, b->host.out, FRAME_HEAD + FRAME_REPLY_MAX, FRAME_START_EXITED, 0);
        frame_put_number(&o, TAG_EXIT, (uint64_t)exit_code_of(st));
        frame_put_number(&o, TAG_SIGNAL, WIFSIGNALED(st) ? (uint64_t)WTERMSIG(st) : 0);
        (void)chan_send(&b->host, &o);
        b->answered = true;
    } else if (b->ready) {
        (void)chan_send_text(&b->host, FRAME_READY, 0, b->ready_text);
        b->answered = true;
    }
}

/* --- the host --- */

static void disconnect(struct boot *b)
{
    b->connected = b->watching = b->answered = false;
    b->host.in_len = 0;
    b->host.hungup = false;
}

static bool can_write(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    return poll(&p, 1, 0) > 0 && (p.revents & POLLOUT);
}

static void look_for_host(struct boot *b, int64_t now)
{
    if (b->connected || now < b->look_at)
        return;
    b->look_at = now + 100;
    if (b->port < 0)
        b->port = port_open(0);
    if (b->port < 0 || !port_connected(b->port))
        return;
    if (!b->host.out)
        chan_init(&b->host, b->port, FRAME_REQUEST_MAX);
    b->connected = chan_send_hello(&b->host, "boot", NULL) == 0;
    b->beat_at = now + FRAME_HEARTBEAT_MS;
}

static int start_exec(struct boot *b, const struct frame_head *h, const uint8_t *p, struct fail *f)
{
    struct step_spec s = {0};
    int rc = -1;
    if (b->exec_job.pid)
        (void)fail_set(f, FAIL_PROTOCOL, "a command is running already");
    else if (step_parse(&s, p, h->length, f) == 0) {
        const struct what w = {.script = s.script,
                               .argv = &s.argv,
                               .env = &s.env,
                               .user = s.root ? "0" : b->conf.default_user,
                               .workdir = b->conf.default_workdir,
                               .timeout_ms = (int64_t)s.timeout_ms,
                               .step = h->step};
        rc = start_job(b, &b->exec_job, &w, f);
    }
    step_release(&s);
    return rc;
}

/* The machine is saved while we wait in here. What goes on may be a copy, with another host: it
 * knows nothing of what was said before. */
static int be_saved(struct boot *b, struct fail *f)
{
    struct resume r;
    if (b->exec_job.pid)
        return fail_set(f, FAIL_PROTOCOL, "a command is running");
    sync();
    if (park(&b->host, &r, f) < 0) {
        console_say("%s", f->text);
        disconnect(b);
        return 0;
    }
    resume_apply(&r);
    console_say("resumed");
    disconnect(b);
    b->connected = chan_send_hello(&b->host, "boot", &r) == 0;
    b->beat_at = now_ms() + FRAME_HEARTBEAT_MS;
    return 0;
}

static void on_host(struct boot *b)
{
    struct frame_head h;
    const uint8_t *p;
    struct fail f;
    int got;
    while (b->connected && (got = chan_peek(&b->host, &h, &p)) != 0) {
        int rc = 0;
        if (got < 0) {
            disconnect(b);
            return;
        }
        if (h.type == FRAME_WATCH) {
            b->watching = true;
            b->answered = false;
            (void)chan_send_empty(&b->host, FRAME_DONE, 0);
            if (b->backlog_len)
                (void)chan_send_output(&b->host, 0, 1, b->backlog, b->backlog_len);
            b->backlog_len = 0;
            if (b->probe.last[0])
                (void)chan_send_text(&b->host, FRAME_PROBE, 0, b->probe.last);
        } else if (h.type == FRAME_EXEC) {
            rc = start_exec(b, &h, p, &f);
        } else if (h.type == FRAME_PARK) {
            chan_pop(&b->host, &h); /* nothing of this host is left when another one speaks */
            if (be_saved(b, &f) < 0)
                (void)chan_send_fail(&b->host, h.step, &f);
            continue;
        } else if (h.type == FRAME_SHUTDOWN) {
            b->stop = b->stop_asked = true;
        } else {
            rc = fail_set(&f, FAIL_PROTOCOL, "unknown request %u", h.type);
        }
        if (rc < 0)
            (void)chan_send_fail(&b->host, h.step, &f);
        chan_pop(&b->host, &h);
    }
}

/* --- the end --- */

static bool reap_all(void)
{
    pid_t pid;
    do
        pid = waitpid(-1, NULL, WNOHANG);
    while (pid > 0);
    return pid < 0 && errno == ECHILD;
}

static void say_done(struct boot *b)
{
    if (b->stop_asked && b->connected && port_connected(b->port)) {
        (void)chan_send_empty(&b->host, FRAME_DONE, 0);
        (void)poll(NULL, 0, 100); /* what is in the port's ring does not survive the machine */
    }
}

static _Noreturn void end_machine(struct boot *b)
{
    (void)kill(-1, SIGTERM);
    (void)kill(-1, SIGCONT);
    int64_t until = now_ms() + STOP_GRACE_MS;
    while (!reap_all() && now_ms() < until)
        (void)poll(NULL, 0, 20);
    (void)kill(-1, SIGKILL);
    until = now_ms() + 2000;
    while (!reap_all() && now_ms() < until)
        (void)poll(NULL, 0, 10);
    sync();
    drives_end(&b->conf);
    (void)mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    say_done(b);
    console_say("power off");
    machine_end(&b->cmd);
}

static void signal_jobs(const struct boot *b, int sig)
{
    if (b->main_job.pid && !b->main_job.exited)
        (void)kill(-b->main_job.pid, sig);
    if (b->exec_job.pid && !b->exec_job.exited)
        (void)kill(-b->exec_job.pid, sig);
    for (size_t i = 0; i < b->n_kept; i++)
        if (b->kept[i]->pid && !b->kept[i]->exited)
            (void)kill(-b->kept[i]->pid, sig);
}

/* What we started ends with us, and the machine with the init, which stops us on its way. */
static _Noreturn void end_service(struct boot *b)
{
    struct pollfd sig = {.fd = b->sigfd, .events = POLLIN};
    struct signalfd_siginfo si;
    int64_t until = now_ms() + INIT_ENDS_MS;
    if (!b->signaled && !init_end_machine(b->conf.init, b->cmd.reboot_ends))
        until = 0;
    while (!b->signaled && now_ms() < until) {
        (void)poll(&sig, 1, 1000);
        while (read(b->sigfd, &si, sizeof si) > 0)
            b->signaled |= si.ssi_signo != SIGCHLD;
    }
    signal_jobs(b, SIGTERM);
    int64_t grace = now_ms() + STOP_GRACE_MS;
    while (!reap_all() && now_ms() < grace)
        (void)poll(NULL, 0, 20);
    signal_jobs(b, SIGKILL);
    say_done(b);
    if (b->signaled)
        _exit(0);
    console_say("%s did not end the machine", b->conf.init ? b->conf.init : "the init");
    machine_end(&b->cmd);
}

/* When the start command is over so is the machine, once the host knows (if there is one that may
 * ask). */
static bool time_to_end(const struct boot *b, int64_t now)
{
    if (b->stop)
        return true;
    if (!b->start_failed || b->exec_job.pid)
        return false;
    bool host_will_ask = b->connected && !b->answered;
    return !host_will_ask || now - b->ended_at >= LINGER_MS;
}

static void reap(struct boot *b)
{
    struct signalfd_siginfo si;
    while (read(b->sigfd, &si, sizeof si) > 0)
        if (si.ssi_signo != SIGCHLD)
            b->stop = b->signaled = true;
    int status;
    struct rusage ru;
    pid_t pid;
    while ((pid = wait4(-1, &status, WNOHANG, &ru)) > 0) {
        if (pid == b->main_job.pid)
            job_exited(&b->main_job, status, &ru);
        else if (pid == b->exec_job.pid)
            job_exited(&b->exec_job, status, &ru);
        else if (pid == b->probe.pid)
            on_probe(b, status);
        else if (pid == b->up.pid)
            on_init_up(b);
        for (size_t i = 0; i < b->n_kept; i++)
            if (pid == b->kept[i]->pid)
                job_exited(b->kept[i], status, &ru);
    }
}

static int sooner(int a, int b)
{
    return a < 0 || (b >= 0 && b < a) ? b : a;
}

static int next_wake(const struct boot *b, int64_t now)
{
    int t = 1000;
    t = sooner(t, job_timeout(&b->main_job, now));
    t = sooner(t, job_timeout(&b->exec_job, now));
    for (size_t i = 0; i < b->n_kept; i++)
        t = sooner(t, job_timeout(b->kept[i], now));
    if (b->started && !b->ready && !b->start_failed)
        t = sooner(t, 20);
    if (!b->connected || b->start_failed)
        t = sooner(t, 100);
    return t;
}

static void wait_for_something(struct boot *b)
{
    struct pollfd p[6 + 2 * KEPT_MAX];
    size_t n = 0;
    p[n++] = (struct pollfd){.fd = b->sigfd, .events = POLLIN};
    p[n++] = (struct pollfd){.fd = b->connected ? b->port : -1, .events = POLLIN};
    n += job_pollfds(&b->main_job, p + n);
    n += job_pollfds(&b->exec_job, p + n);
    for (size_t i = 0; i < b->n_kept; i++)
        n += job_pollfds(b->kept[i], p + n);
    (void)poll(p, n, next_wake(b, now_ms()));
    if (b->connected && p[1].revents) {
        if (chan_fill(&b->host) < 0)
            disconnect(b);
        else
            on_host(b);
    }
}

static void set_up_console(void)
{
    int console = open("/dev/console", O_RDWR | O_NOCTTY);
    for (int i = 0; console >= 0 && i < 3; i++)
        (void)dup2(console, i);
    if (console > 2)
        (void)close(console);
}

/* Is descriptor @fd /dev/null? */
static bool is_null(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3);
}

static void block_signals(struct boot *b)
{
    sigset_t set;
    (void)signal(SIGPIPE, SIG_IGN);
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGCHLD);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGPWR);
    (void)sigprocmask(SIG_BLOCK, &set, NULL);
    b->sigfd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void mount_drives(struct boot *b)
{
    drives_boot(&b->conf, b->cmd.root[0] ? FOREIGN_DISK_WAIT_MS : 0);
}

/* All that is there before the first other process, whoever is PID 1 then. */
static void prepare(struct boot *b)
{
    struct fail f;
    (void)umask(022);
    (void)!chdir("/");
    mounts_of_kernel();
    set_up_console();
    cmdline_read(&b->cmd);
    load_conf(b);
    network_ask(&b->cmd);
    name_machine(b);
    if (network_up(&b->cmd, &f) < 0)
        console_say("%s", f.text);
    grow_root();
    if (init_is_ours(b->conf.init))
        return;
    mount_drives(b);
    (void)init_become(b->conf.init, &f);
    console_say("%s", f.text);
    machine_end(&b->cmd);
}

static _Noreturn void run(struct boot *b)
{
    for (;;) {
        int64_t now = now_ms();
        look_for_host(b, now);
        go_on(b);
        look_for_ready(b, now);
        answer_watch(b);
        if (b->connected && now >= b->beat_at) {
            if (can_write(b->port))
                (void)chan_send_empty(&b->host, FRAME_HEARTBEAT, 0);
            b->beat_at = now + FRAME_HEARTBEAT_MS;
        }
        wait_for_something(b);
        reap(b);
        now = now_ms();
        if (b->main_job.pid && job_work(&b->main_job, now, on_output, b))
            main_job_over(b);
        if (b->exec_job.pid && job_work(&b->exec_job, now, on_exec_output, b)) {
            if (b->connected)
                (void)job_report(&b->exec_job, &b->host);
            job_close(&b->exec_job);
        }
        work_kept(b, now);
        answer_watch(b);
        if (b->host.hungup)
            disconnect(b);
        if (time_to_end(b, now) && b->service)
            end_service(b);
        if (time_to_end(b, now))
            end_machine(b);
    }
}

static struct boot *new_boot(void)
{
    static struct boot b; /* large: not on the stack, and not as data in the program either */
    b.port = b.host.fd = b.probe.fd = b.up.fd = -1;
    for (int i = 0; i < 2; i++)
        b.main_job.out[i].fd = b.exec_job.out[i].fd = -1;
    return &b;
}

_Noreturn void boot_main(void)
{
    struct boot *b = new_boot();
    prepare(b);
    mounts_for_boot();
    mount_drives(b);
    block_signals(b);
    (void)reboot(RB_DISABLE_CAD); /* Ctrl-Alt-Del is SIGINT then */
    run(b);
}

_Noreturn void boot_service(void)
{
    struct boot *b = new_boot();
    (void)umask(022);
    (void)!chdir("/");
    b->service = true;
    (void)setsid(); /* whoever started us in the background */
    if (is_null(1))
        set_up_console();
    cmdline_read(&b->cmd);
    load_conf(b);
    (void)machine_name(b); /* the init has given it the one in /etc/hostname */
    block_signals(b);
    run(b);
}
