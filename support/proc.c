#include "support/proc.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { FD_HIGH = 512, MAX_FDS = 64, ERR_TAIL = 64 << 10 };

struct child_error {
    int sys;
    char what[32];
};

__attribute__((noreturn)) static void child_fail(int pipe_fd, const char *what)
{
    struct child_error e = {.sys = errno};
    for (size_t i = 0; i + 1 < sizeof(e.what) && what[i]; i++)
        e.what[i] = what[i];
    ssize_t n = write(pipe_fd, &e, sizeof(e));
    _exit(n == (ssize_t)sizeof(e) ? 127 : 126);
}

static void write_proc_file(int pipe_fd, const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        child_fail(pipe_fd, path);
    (void)close(fd);
}

/* Between fork and exec: system calls only, nothing that allocates (snprintf of integers is fine).
 */
__attribute__((noreturn)) static void child_main(const struct cb_proc_spec *s, const char *prog,
                                                 pid_t parent, int pipe_fd, uid_t uid, gid_t gid)
{
    if (s->own_session && setsid() < 0)
        child_fail(pipe_fd, "setsid");
    for (size_t i = 0; i < s->n_setns; i++)
        if (setns(s->setns[i], 0) < 0)
            child_fail(pipe_fd, "join a namespace");
    if (s->unshare && unshare((int)s->unshare) < 0)
        child_fail(pipe_fd, "unshare");
    if (s->unshare & CLONE_NEWUSER) {
        char map[64];
        write_proc_file(pipe_fd, "/proc/self/setgroups", "deny");
        (void)snprintf(map, sizeof(map), "0 %u 1", (unsigned)uid);
        write_proc_file(pipe_fd, "/proc/self/uid_map", map);
        (void)snprintf(map, sizeof(map), "0 %u 1", (unsigned)gid);
        write_proc_file(pipe_fd, "/proc/self/gid_map", map);
    }
    if (!s->outlive_parent) {
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
            child_fail(pipe_fd, "prctl");
        if (getppid() != parent)
            _exit(126); /* the parent died before the call above */
    }
    int high = fcntl(pipe_fd, F_DUPFD_CLOEXEC, FD_HIGH + MAX_FDS);
    if (high < 0)
        child_fail(pipe_fd, "fcntl");
    int moved[MAX_FDS];
    for (size_t i = 0; i < s->n_fds; i++) {
        moved[i] = fcntl(s->fds[i].ours, F_DUPFD_CLOEXEC, FD_HIGH);
        if (moved[i] < 0)
            child_fail(high, "fcntl");
    }
    for (int fd = 0; fd < 3; fd++) {
        int null = open("/dev/null", O_RDWR);
        if (null < 0 || (null != fd && (dup2(null, fd) < 0 || close(null) < 0)))
            child_fail(high, "open /dev/null");
    }
    if (syscall(SYS_close_range, 3, ~0u, CLOSE_RANGE_CLOEXEC) < 0)
        child_fail(high, "close_range");
    for (size_t i = 0; i < s->n_fds; i++)
        if (dup2(moved[i], s->fds[i].theirs) < 0)
            child_fail(high, "dup2");
    if (s->cwd && chdir(s->cwd) < 0)
        child_fail(high, "chdir");
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    for (int sig = 1; sig < 32; sig++) /* an ignored signal would stay ignored over exec */
        if (sig != SIGKILL && sig != SIGSTOP)
            (void)signal(sig, SIG_DFL);
    union {
        const char *const *in;
        char *const *out;
    } argv = {s->argv}, env = {s->env};
    execve(prog, argv.out, s->env ? env.out : environ);
    child_fail(high, "exec");
}

pid_t cb_proc_start(const struct cb_proc_spec *spec, struct cb_error *err)
{
    if (spec->n_fds > MAX_FDS)
        return cb_fail(err, CB_E_BUG, "start %s: too many descriptors", spec->argv[0]);
    CB_AUTO_FREE char *prog = cb_find_program(spec->argv[0]);
    if (!prog)
        return cb_fail(err, CB_E_ENV, "%s: no such program on this machine", spec->argv[0]);
    int p[2];
    if (pipe2(p, O_CLOEXEC) < 0)
        return cb_fail_sys(err, errno, "start %s", spec->argv[0]);
    CB_AUTO_FD in = p[0];
    CB_AUTO_FD out = p[1];
    pid_t parent = getpid();
    uid_t uid = geteuid();
    gid_t gid = getegid();
    pid_t pid = fork();
    if (pid < 0)
        return cb_fail_sys(err, errno, "start %s", spec->argv[0]);
    if (pid == 0)
        child_main(spec, prog, parent, out, uid, gid);
    cb_close(cb_take_fd(&out));
    struct child_error e;
    ssize_t n;
    do {
        n = read(in, &e, sizeof(e));
    } while (n < 0 && errno == EINTR);
    if (n == (ssize_t)sizeof(e)) {
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
        }
        e.what[sizeof(e.what) - 1] = '\0';
        return cb_fail_sys(err, e.sys, "start %s: %s", prog, e.what);
    }
    return pid;
}

int cb_proc_wait(pid_t pid, int64_t timeout_ms, int *status, struct cb_error *err)
{
    CB_AUTO_FD pfd = timeout_ms < 0 ? -1 : (int)syscall(SYS_pidfd_open, pid, 0);
    int64_t end = cb_monotonic_ms() + timeout_ms;
    for (;;) {
        pid_t r = waitpid(pid, status, timeout_ms < 0 ? 0 : WNOHANG);
        if (r == pid)
            return 1;
        if (r < 0 && errno != EINTR)
            return cb_fail_sys(err, errno, "wait for process %d", (int)pid);
        if (r < 0)
            continue;
        int64_t left = end - cb_monotonic_ms();
        if (left <= 0)
            return 0;
        struct pollfd w = {.fd = pfd, .events = POLLIN};
        (void)poll(&w, 1, left > 1000 ? 1000 : (int)left);
    }
}

void cb_proc_stop(pid_t pid, bool group, int64_t grace_ms)
{
    if (pid <= 0)
        return;
    int status;
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    if (grace_ms > 0) {
        (void)kill(group ? -pid : pid, SIGTERM);
        if (cb_proc_wait(pid, grace_ms, &status, &ignored) != 0) {
            if (group)
                (void)kill(-pid, SIGKILL);
            return;
        }
    }
    (void)kill(group ? -pid : pid, SIGKILL);
    (void)cb_proc_wait(pid, -1, &status, &ignored);
}

void cb_proc_result_release(struct cb_proc_result *r)
{
    cb_buf_release(&r->out);
    cb_buf_release(&r->err);
}

struct pump {
    int in, out, err; /* our ends; -1 when closed */
    const char *input;
    size_t left;
    struct cb_proc_result *res;
};

static void close_end(int *fd)
{
    cb_close(cb_take_fd(fd));
}

static void pump_read(struct pump *p, int *fd, bool is_err)
{
    char tmp[16384];
    ssize_t n = read(*fd, tmp, sizeof(tmp));
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n <= 0) {
        close_end(fd);
        return;
    }
    struct cb_buf *b = is_err ? &p->res->err : &p->res->out;
    if (is_err && b->len + (size_t)n > ERR_TAIL)
        cb_buf_drop(b, b->len + (size_t)n - ERR_TAIL);
    if (b->len + (size_t)n > b->max)
        n = (ssize_t)(b->max - b->len);
    (void)cb_buf_add(b, tmp, (size_t)n);
}

/* Returns 1 when all ends are closed, 0 at the deadline. */
static int pump_all(struct pump *p, int64_t end)
{
    while (p->in >= 0 || p->out >= 0 || p->err >= 0) {
        int64_t left = end < 0 ? 1000 : end - cb_monotonic_ms();
        if (left <= 0)
            return 0;
        struct pollfd w[3] = {{.fd = p->in, .events = POLLOUT},
                              {.fd = p->out, .events = POLLIN},
                              {.fd = p->err, .events = POLLIN}};
        if (poll(w, 3, left > 1000 ? 1000 : (int)left) <= 0)
            continue;
        if (p->in >= 0 && w[0].revents) {
            ssize_t n = write(p->in, p->input, p->left);
            if (n > 0) {
                p->input += n;
                p->left -= (size_t)n;
            }
            if (p->left == 0 || (n < 0 && errno != EINTR && errno != EAGAIN))
                close_end(&p->in);
        }
        if (p->out >= 0 && w[1].revents)
            pump_read(p, &p->out, false);
        if (p->err >= 0 && w[2].revents)
            pump_read(p, &p->err, true);
    }
    return 1;
}

int cb_proc_run(const struct cb_proc_spec *spec, const char *input, size_t max_out,
                int64_t timeout_ms, struct cb_proc_result *res, struct cb_error *err)
{
    *res = (struct cb_proc_result){.out = CB_BUF_INIT(max_out), .err = CB_BUF_INIT(ERR_TAIL)};
    int p[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}};
    int sys = 0;
    for (int i = 0; i < 3; i++)
        if (pipe2(p[i], O_CLOEXEC) < 0)
            sys = errno;
    pid_t pid = -1;
    if (!sys) {
        struct cb_proc_fd fds[MAX_FDS] = {{p[0][0], 0}, {p[1][1], 1}, {p[2][1], 2}};
        struct cb_proc_spec s = *spec;
        for (size_t i = 0; i < spec->n_fds && i + 3 < MAX_FDS; i++)
            fds[i + 3] = spec->fds[i];
        s.fds = fds;
        s.n_fds = spec->n_fds + 3;
        pid = cb_proc_start(&s, err);
    }
    cb_close(p[0][0]);
    cb_close(p[1][1]);
    cb_close(p[2][1]);
    if (sys || pid < 0) {
        cb_close(p[0][1]);
        cb_close(p[1][0]);
        cb_close(p[2][0]);
        return sys ? cb_fail_sys(err, sys, "start %s", spec->argv[0]) : (int)pid;
    }
    (void)fcntl(p[0][1], F_SETFL, O_NONBLOCK);
    struct sigaction ign = {.sa_handler = SIG_IGN}, old;
    (void)sigaction(SIGPIPE, &ign, &old);
    struct pump pump = {p[0][1], p[1][0], p[2][0], input, input ? strlen(input) : 0, res};
    if (pump.left == 0)
        close_end(&pump.in);
    int64_t end = timeout_ms < 0 ? -1 : cb_monotonic_ms() + timeout_ms;
    int done = pump_all(&pump, end);
    close_end(&pump.in);
    close_end(&pump.out);
    close_end(&pump.err);
    (void)sigaction(SIGPIPE, &old, NULL);
    if (done) {
        int64_t left = end < 0 ? -1 : end - cb_monotonic_ms();
        done = cb_proc_wait(pid, end < 0 ? -1 : (left > 0 ? left : 0), &res->status, err);
        if (done < 0)
            return done;
    }
    if (!done) {
        cb_proc_stop(pid, spec->own_session, 0);
        return cb_fail(err, CB_E_TIMEOUT, "%s took longer than %lld s and was stopped",
                       spec->argv[0], (long long)(timeout_ms / 1000));
    }
    return 0;
}

int cb_proc_check(const struct cb_proc_result *r, const char *what, struct cb_error *err)
{
    if (WIFEXITED(r->status) && WEXITSTATUS(r->status) == 0)
        return 0;
    char st[64];
    cb_status_text(r->status, st, sizeof(st));
    CB_AUTO_FREE char *text = cb_xstrdup(r->err.data ? r->err.data : "");
    size_t n = strlen(text);
    while (n && (text[n - 1] == '\n' || text[n - 1] == ' '))
        text[--n] = '\0';
    const char *nl = strrchr(text, '\n');
    const char *last = nl ? nl + 1 : text;
    if (!*last)
        return cb_fail(err, CB_E_SYS, "%s: %s", what, st);
    return cb_fail(err, CB_E_SYS, "%s: %s: %.500s", what, st, last);
}

const char *cb_signal_name(int sig)
{
    static char unknown[32];
    const char *abbrev = sigabbrev_np(sig);
    if (!abbrev) {
        (void)snprintf(unknown, sizeof(unknown), "signal %d", sig);
        return unknown;
    }
    static char names[64][16];
    if (sig < 0 || sig >= 64)
        return abbrev;
    (void)snprintf(names[sig], sizeof(names[sig]), "SIG%s", abbrev);
    return names[sig];
}

void cb_status_text(int status, char *out, size_t size)
{
    if (WIFSIGNALED(status))
        (void)snprintf(out, size, "killed by %s", cb_signal_name(WTERMSIG(status)));
    else
        (void)snprintf(out, size, "exit status %d", WEXITSTATUS(status));
}
