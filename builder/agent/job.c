/* job: one running command: its process, its two pipes, its time limit. The caller owns the poll
 * loop and reaps; here is what to do with what happened. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define LINE_WAIT_MS 20
#define DRAIN_MS 200
#define TERM_GRACE_MS 5000

extern char **environ;

/* What a container gets by default (Docker's list): chown, dac_override, fowner, fsetid, kill,
 * setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap. */
static const uint64_t container_caps = 1ull << 0 | 1ull << 1 | 1ull << 3 | 1ull << 4 | 1ull << 5 |
                                       1ull << 6 | 1ull << 7 | 1ull << 8 | 1ull << 10 | 1ull << 13 |
                                       1ull << 18 | 1ull << 27 | 1ull << 29 | 1ull << 31;

/* The kernel's own layout (linux/capability.h), which musl does not carry. */
struct cap_head {
    uint32_t version;
    int pid;
};
struct cap_data {
    uint32_t effective, permitted, inheritable;
};

static void limit_bounding_set(void)
{
    for (int cap = 0; cap < 64; cap++)
        if (!(container_caps & (1ull << cap)))
            (void)prctl(PR_CAPBSET_DROP, (unsigned long)cap, 0UL, 0UL, 0UL);
    struct cap_head head = {.version = 0x20080522};
    struct cap_data data[2] = {{0}, {0}};
    if (syscall(SYS_capget, &head, data) == 0) {
        data[0].inheritable = data[1].inheritable = 0;
        (void)syscall(SYS_capset, &head, data);
    }
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0UL, 0UL, 0UL);
}

static void set_limits(bool secretive)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        rlim_t want_hard = 524288, want_soft = 65536;
        struct rlimit r = {.rlim_cur = want_soft, .rlim_max = want_hard};
        if (setrlimit(RLIMIT_NOFILE, &r) < 0) { /* raising the hard limit may be out of reach */
            r.rlim_max = files.rlim_max;
            r.rlim_cur = files.rlim_max < want_soft ? files.rlim_max : want_soft;
            (void)setrlimit(RLIMIT_NOFILE, &r);
        }
    }
    struct rlimit core;
    if (getrlimit(RLIMIT_CORE, &core) == 0) {
        core.rlim_cur = 0; /* a core dump would end up in the image */
        if (secretive)     /* 1: nor is it piped to a program of the machine around a container */
            core.rlim_cur = core.rlim_max = core.rlim_max > 1 ? 1 : core.rlim_max;
        (void)setrlimit(RLIMIT_CORE, &core);
    }
}

static void reset_signals(void)
{
    for (int s = 1; s < 65; s++)
        (void)signal(s, SIG_DFL);
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Like a shell's own words and statuses, on the command's stderr. */
static _Noreturn void child_fails(const char *what, const char *name, int err)
{
    char msg[512];
    int n = snprintf(msg, sizeof msg, "capsule: %s%s: %s\n", what, name, strerror(err));
    (void)!write(2, msg, n < (int)sizeof msg ? (size_t)n : sizeof msg - 1);
    _exit(err == ENOENT || err == ENOTDIR ? 127 : 126);
}

static _Noreturn void child_main(const struct job_spec *s, int out, int err)
{
    int joined = s->group ? group_join(s->group) : 0, why = errno;
    (void)setsid();
    reset_signals();
    int null = s->terminal ? s->terminal
                           : open(s->console ? "/dev/console" : "/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0)
        null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (s->console || s->terminal) {
        (void)ioctl(null, TIOCSCTTY, 0);
        out = err = null;
    }
    (void)dup2(out, 1);
    (void)dup2(err, 2);
    if (null < 0 || dup2(s->input ? s->input : null, 0) < 0)
        child_fails("open ", "/dev/null", errno);
    if (joined < 0)
        child_fails("enter ", "the control group", why);
    close_from(3, -1, -1);
    (void)umask(022);
    poke("/proc/self/oom_score_adj", "0");
    set_limits(s->secretive);
    const char *dir = s->workdir && *s->workdir ? s->workdir : "/";
    if (chdir(dir) < 0 && (make_dirs(dir, 0755) < 0 || chdir(dir) < 0))
        child_fails("working directory ", dir, errno);
    const char *what = NULL;
    if (s->files && confine(s->files, &what) < 0)
        child_fails("allowed_files: ", what, errno);
    if (s->contained)
        limit_bounding_set();
    if (setgroups(s->who->n_groups, s->who->groups) < 0 || setgid(s->who->gid) < 0 ||
        setuid(s->who->uid) < 0)
        child_fails("become user ", s->who->name, errno);
    environ = s->env->v;
    (void)execvp(s->argv->v[0], s->argv->v);
    child_fails("", s->argv->v[0], errno);
}

static int make_pipe(int fds[2], struct fail *f)
{
    if (pipe2(fds, O_CLOEXEC) < 0)
        return fail_sys(f, errno, "pipe");
    (void)fcntl(fds[0], F_SETFL, O_NONBLOCK);
    return 0;
}

int job_start(struct job *j, const struct job_spec *spec, struct fail *f)
{
    if (spec->argv->n == 0)
        return fail_set(f, FAIL_PROTOCOL, "a command without a word");
    int out[2] = {-1, -1}, err[2] = {-1, -1};
    bool captured = !spec->console && !spec->terminal;
    if (captured && make_pipe(out, f) < 0)
        return -1;
    if (captured && make_pipe(err, f) < 0) {
        (void)close(out[0]);
        (void)close(out[1]);
        return -1;
    }
    int64_t now = now_ms();
    pid_t pid = fork();
    if (pid == 0)
        child_main(spec, out[1], err[1]);
    int saved = errno;
    if (out[1] >= 0)
        (void)close(out[1]);
    if (err[1] >= 0)
        (void)close(err[1]);
    j->pid = pid;
    j->step = spec->step;
    j->exited = j->timed_out = j->eager = false;
    j->contained = spec->contained;
    j->status = 0;
    j->limit = LIMIT_NONE;
    j->limit_value = 0;
    j->started = now;
    j->term_at = spec->timeout_ms > 0 ? now + spec->timeout_ms : 0;
    j->kill_at = j->drain_until = 0;
    j->out[0].fd = out[0];
    j->out[1].fd = err[0];
    for (int i = 0; i < 2; i++) {
        j->out[i].number = i + 1;
        j->out[i].len = 0;
    }
    if (pid < 0) {
        j->pid = 0;
        job_close(j);
        return fail_sys(f, saved, "start a process");
    }
    return 0;
}

void job_exited(struct job *j, int status, const struct rusage *ru)
{
    j->exited = true;
    j->status = status;
    j->ended = now_ms();
    j->drain_until = j->ended + DRAIN_MS;
    j->cpu_ms = ((int64_t)ru->ru_utime.tv_sec + ru->ru_stime.tv_sec) * 1000 +
                (ru->ru_utime.tv_usec + ru->ru_stime.tv_usec) / 1000;
    j->max_rss_kib = (uint64_t)ru->ru_maxrss;
}

static void close_stream(struct stream *s)
{
    if (s->fd >= 0)
        (void)close(s->fd);
    s->fd = -1;
}

static void hand_on(struct job *j, struct stream *s, size_t n, job_sink *sink, void *arg)
{
    sink(arg, j->step, s->number, s->buf, n);
    memmove(s->buf, s->buf + n, s->len - n);
    s->len -= n;
}

/* Reads what is in the pipe, a bounded amount, and hands on whole lines, and what is old or much.
 */
static void work_stream(struct job *j, struct stream *s, int64_t now, job_sink *sink, void *arg)
{
    for (int rounds = 0; s->fd >= 0 && rounds < 16; rounds++) {
        ssize_t n = read(s->fd, s->buf + s->len, sizeof s->buf - s->len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n <= 0) {
            close_stream(s);
            break;
        }
        if (s->len == 0)
            s->since = now;
        s->len += (size_t)n;
        const uint8_t *end = j->eager ? s->buf + s->len - 1 : memrchr(s->buf, '\n', s->len);
        if (end) {
            hand_on(j, s, (size_t)(end - s->buf) + 1, sink, arg);
            s->since = now;
        }
        if (s->len == sizeof s->buf)
            hand_on(j, s, s->len, sink, arg);
    }
    if (s->len && (s->fd < 0 || now - s->since >= LINE_WAIT_MS))
        hand_on(j, s, s->len, sink, arg);
}

/* All that the step runs: the whole namespace where we are its init, else the command's session. */
static void signal_job(const struct job *j, int sig)
{
    if (j->contained)
        (void)kill(-1, sig);
    else
        (void)kill(-j->pid, sig);
}

bool job_work(struct job *j, int64_t now, job_sink *sink, void *arg)
{
    work_stream(j, &j->out[0], now, sink, arg);
    work_stream(j, &j->out[1], now, sink, arg);
    if (!j->exited && j->term_at && now >= j->term_at) {
        j->timed_out = true;
        j->term_at = 0;
        j->kill_at = now + TERM_GRACE_MS;
        signal_job(j, SIGTERM);
    }
    if (!j->exited && j->kill_at && now >= j->kill_at) {
        j->kill_at = now + TERM_GRACE_MS;
        signal_job(j, SIGKILL);
    }
    if (!j->exited)
        return false;
    bool open = j->out[0].fd >= 0 || j->out[1].fd >= 0;
    if (open && now < j->drain_until)
        return false;
    for (int i = 0; i < 2; i++)
        if (j->out[i].len)
            hand_on(j, &j->out[i], j->out[i].len, sink, arg);
    return true;
}

static int sooner(int a, int64_t b)
{
    if (b < 0)
        b = 0;
    if (b > 60000)
        b = 60000;
    return a < 0 || b < a ? (int)b : a;
}

int job_timeout(const struct job *j, int64_t now)
{
    int t = -1;
    if (!j->pid)
        return t;
    for (int i = 0; i < 2; i++)
        if (j->out[i].len)
            t = sooner(t, j->out[i].since + LINE_WAIT_MS - now);
    if (j->exited)
        return sooner(t, j->drain_until - now);
    if (j->term_at)
        t = sooner(t, j->term_at - now);
    if (j->kill_at)
        t = sooner(t, j->kill_at - now);
    return t;
}

void job_close(struct job *j)
{
    close_stream(&j->out[0]);
    close_stream(&j->out[1]);
    j->pid = 0;
}

size_t job_pollfds(const struct job *j, struct pollfd *p)
{
    size_t n = 0;
    for (int i = 0; j->pid && i < 2; i++)
        if (j->out[i].fd >= 0)
            p[n++] = (struct pollfd){.fd = j->out[i].fd, .events = POLLIN};
    return n;
}

int exit_code_of(int status)
{
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int job_report(const struct job *j, struct chan *c)
{
    struct frame_out o;
    frame_begin(&o, c->out, FRAME_HEAD + FRAME_REPLY_MAX, FRAME_STEP_DONE, j->step);
    frame_put_number(&o, TAG_EXIT, (uint64_t)exit_code_of(j->status));
    frame_put_number(&o, TAG_SIGNAL, WIFSIGNALED(j->status) ? (uint64_t)WTERMSIG(j->status) : 0);
    frame_put_number(&o, TAG_TIMED_OUT, j->timed_out);
    frame_put_number(&o, TAG_ELAPSED, (uint64_t)(j->ended - j->started));
    frame_put_number(&o, TAG_CPU, (uint64_t)j->cpu_ms);
    frame_put_number(&o, TAG_RSS, j->max_rss_kib);
    frame_put_number(&o, TAG_LIMIT, j->limit);
    frame_put_number(&o, TAG_LIMIT_VALUE, j->limit_value);
    return chan_send(c, &o);
}
