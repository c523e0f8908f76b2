#include "builder/hop.h"

#include "support/cleanup.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* linux/ext4.h of newer kernels: ends a mounted file system without writing what is still in
 * memory. */
#define EXT4_SHUTDOWN _IOR('X', 125, uint32_t)
enum { EXT4_SHUTDOWN_NO_FLUSH = 2, AGENT_FD = 3, HIGH_FD = 64 };

struct hop_failure {
    int sys;
    char what[48];
};

/* All below runs in children: system calls only. */

__attribute__((noreturn)) static void hop_fail(int out, const char *what)
{
    struct hop_failure f = {.sys = errno};
    for (size_t i = 0; i + 1 < sizeof(f.what) && what[i]; i++)
        f.what[i] = what[i];
    ssize_t n = write(out, &f, sizeof(f));
    _exit(n == (ssize_t)sizeof(f) ? 127 : 126);
}

static void try_overlay(const struct hop_spec *s, int out)
{
    if (mount("tmpfs", s->try_overlay, "tmpfs", 0, NULL) < 0)
        hop_fail(out, "mount a tmpfs");
    if (chdir(s->try_overlay) < 0 || mkdir("l", 0755) < 0 || mkdir("u", 0755) < 0 ||
        mkdir("w", 0755) < 0 || mkdir("m", 0755) < 0)
        hop_fail(out, "make folders in a tmpfs");
    if (mount("overlay", "m", "overlay", 0, "lowerdir=l,upperdir=u,workdir=w") < 0)
        hop_fail(out, "mount an overlay");
    if (chdir("/") < 0)
        hop_fail(out, "chdir");
}

static void make_mounts(const struct hop_spec *s, int out)
{
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        hop_fail(out, "make mounts private");
    if (s->try_overlay)
        try_overlay(s, out);
    if (s->lower_device && mount(s->lower_device, s->lower_at, "ext4", MS_RDONLY, "noload") < 0)
        hop_fail(out, "mount the lower image");
    if (s->scratch_device && mount(s->scratch_device, s->scratch_at, "ext4", 0, "nobarrier") < 0)
        hop_fail(out, "mount the scratch image");
    for (size_t i = 0; i < s->n_drives; i++)
        if (mount(s->drive_devices[i], s->drives_at[i], "ext4", MS_NOATIME, NULL) < 0)
            hop_fail(out, "mount a drive");
}

/* Init of the PID namespace: becomes the runtime. */
__attribute__((noreturn)) static void run_runtime(const struct hop_spec *s, int out, int alive)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        hop_fail(out, "prctl");
    struct pollfd w = {.fd = alive, .events = POLLIN};
    if (poll(&w, 1, 0) != 0)
        _exit(126); /* the hop died before the call above */
    if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
        hop_fail(out, "mount /proc");
    int high = fcntl(out, F_DUPFD_CLOEXEC, HIGH_FD);
    int agent = fcntl(s->agent_fd, F_DUPFD_CLOEXEC, HIGH_FD);
    int log = fcntl(s->log_fd, F_DUPFD_CLOEXEC, HIGH_FD);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (high < 0 || agent < 0 || log < 0 || null < 0 || dup2(null, 0) < 0 || dup2(log, 1) < 0 ||
        dup2(log, 2) < 0)
        hop_fail(out, "descriptors");
    if (syscall(SYS_close_range, 3, ~0u, CLOSE_RANGE_CLOEXEC) < 0 || dup2(agent, AGENT_FD) < 0)
        hop_fail(high, "descriptors");
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    union {
        const char *const *in;
        char *const *out;
    } argv = {s->argv};
    static char path[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    char *const env[] = {path, NULL};
    execve(s->argv[0], argv.out, env);
    hop_fail(high, "execute the runtime");
}

/* Ends as the runtime ended. */
__attribute__((noreturn)) static void end_like(int status)
{
    if (WIFSIGNALED(status)) {
        sigset_t none;
        sigemptyset(&none);
        (void)sigprocmask(SIG_SETMASK, &none, NULL);
        (void)kill(getpid(), WTERMSIG(status));
        _exit(128 + WTERMSIG(status));
    }
    _exit(WEXITSTATUS(status));
}

/* Nobody wants them any more: unmounting must not write gigabytes. What was wanted of a drive was
 * taken when it was made read-only. */
static void shut_down(int first, int n)
{
    uint32_t how = EXT4_SHUTDOWN_NO_FLUSH;
    for (int fd = first; fd < first + n; fd++)
        (void)ioctl(fd, EXT4_SHUTDOWN, &how);
}

/* @n file systems are open from @first on. */
__attribute__((noreturn)) static void watch(pid_t child, int first, int n, const sigset_t *set)
{
    for (;;) {
        int status;
        int sig = sigwaitinfo(set, NULL);
        if (sig == SIGTERM) {
            shut_down(first, n);
            (void)kill(child, SIGKILL);
        }
        if (waitpid(child, &status, sig == SIGTERM ? 0 : WNOHANG) != child)
            continue;
        shut_down(first, n);
        end_like(status);
    }
}

/* Holds what is mounted at @at open as descriptor @fd. */
static void hold(const char *at, int fd, int out)
{
    int got = open(at, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (got < 0 || dup3(got, fd, O_CLOEXEC) < 0)
        hop_fail(out, "open a mounted file system");
    (void)close(got);
}

__attribute__((noreturn)) static void hop_main(const struct hop_spec *s, pid_t parent, int out)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGCHLD);
    (void)sigprocmask(SIG_SETMASK, &set, NULL);
    for (int sig = 1; sig < 32; sig++)
        if (sig != SIGKILL && sig != SIGSTOP)
            (void)signal(sig, SIG_DFL);
    if (setsid() < 0 || prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        hop_fail(out, "setsid");
    if (getppid() != parent)
        _exit(126);
    for (size_t i = 0; i < s->n_setns; i++)
        if (setns(s->setns[i], 0) < 0)
            hop_fail(out, "join the network namespace");
    if (unshare(CLONE_NEWNS | CLONE_NEWPID) < 0)
        hop_fail(out, "unshare");
    make_mounts(s, out);
    int alive[2];
    if (pipe2(alive, O_CLOEXEC) < 0)
        hop_fail(out, "pipe");
    pid_t child = fork();
    if (child < 0)
        hop_fail(out, "fork");
    if (child == 0) {
        (void)close(alive[1]);
        run_runtime(s, out, alive[0]);
    }
    /* What is open here stays open until the end: the write end of `alive`, and what was mounted.
     */
    if (dup3(alive[1], HIGH_FD, O_CLOEXEC) < 0)
        hop_fail(out, "descriptors");
    int held = 0;
    if (s->scratch_device)
        hold(s->scratch_at, HIGH_FD + ++held, out);
    for (size_t i = 0; i < s->n_drives; i++)
        hold(s->drives_at[i], HIGH_FD + ++held, out);
    (void)syscall(SYS_close_range, 0, HIGH_FD - 1, 0);
    (void)syscall(SYS_close_range, HIGH_FD + held + 1, ~0u, 0);
    watch(child, HIGH_FD + 1, held, &set);
}

pid_t hop_start(const struct hop_spec *spec, struct cb_error *err)
{
    int p[2];
    if (pipe2(p, O_CLOEXEC) < 0)
        return cb_fail_sys(err, errno, "start the container");
    CB_AUTO_FD in = p[0];
    CB_AUTO_FD out = p[1];
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid < 0)
        return cb_fail_sys(err, errno, "start the container");
    if (pid == 0)
        hop_main(spec, parent, out);
    cb_close(cb_take_fd(&out));
    struct hop_failure f;
    ssize_t n;
    do {
        n = read(in, &f, sizeof(f));
    } while (n < 0 && errno == EINTR);
    if (n != (ssize_t)sizeof(f))
        return pid; /* closed by exec */
    (void)kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
    f.what[sizeof(f.what) - 1] = '\0';
    return cb_fail_sys(err, f.sys, "%s", f.what);
}
