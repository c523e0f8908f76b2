/* init: an image whose own init (systemd, or what starts OpenRC) is process 1. The agent prepares
 * the machine as an initramfs would, becomes that init by exec, and is started by it again as one
 * of its services, which ends the machine by asking the init to. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* The host looks for the same programs before it boots an image (builder/image_init.c). */
static const struct init_kind {
    const char *name;
    const char *programs[2]; /* the first that is there becomes process 1 */
} kinds[] = {
    {"systemd", {"/usr/lib/systemd/systemd", "/lib/systemd/systemd"}},
    {"openrc", {"/sbin/init", "/sbin/openrc-init"}},
};

static const struct init_kind *find_kind(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    return NULL;
}

static bool is_systemd(const char *name)
{
    return name && strcmp(name, "systemd") == 0;
}

bool init_is_ours(const char *name)
{
    return !name || !*name || strcmp(name, "agent") == 0;
}

static bool any_exists(const char *a, const char *b)
{
    return access(a, F_OK) == 0 || access(b, F_OK) == 0;
}

/* Devices become units by udev alone. Without it, a login on the serial console would wait for its
 * device, and all that waits for logins with it, until systemd gives up. The mask is in memory. */
static void mask_serial_login(void)
{
    if (any_exists("/usr/lib/systemd/systemd-udevd", "/lib/systemd/systemd-udevd"))
        return;
    (void)make_dirs("/run/systemd/system", 0755);
    (void)!symlink("/dev/null", "/run/systemd/system/serial-getty@ttyS0.service");
}

/* Where resolv.conf is a link into /run it is systemd-resolved's, which is told by a file of its
 * own. */
void init_tell_resolver(const char *dns)
{
    char text[128];
    int n = snprintf(text, sizeof text, "[Resolve]\nDNS=%.60s\n", dns);
    (void)make_dirs("/run/systemd/resolved.conf.d", 0755);
    (void)write_file("/run/systemd/resolved.conf.d/50-capsule.conf", text, (size_t)n, 0644);
}

/* Where @path leads to in the end is a program named @name. */
static bool leads_to(const char *path, const char *name)
{
    char *real = realpath(path, NULL);
    const char *slash = real ? strrchr(real, '/') : NULL;
    bool is = slash && strcmp(slash + 1, name) == 0;
    free(real);
    return is;
}

int init_become(const char *name, struct fail *f)
{
    const struct init_kind *k = find_kind(name);
    if (!k)
        return fail_set(f, FAIL_IMAGE, "init: %.40s is not known to this agent", name);
    bool systemd = is_systemd(name);
    if (systemd)
        mask_serial_login();
    char word[] = "init";
    char *const argv[] = {word, NULL};
    char path[] = "PATH=" DEFAULT_PATH;
    char *const env[] = {path, NULL};
    int err = ENOENT;
    const char *tried = k->programs[0];
    for (size_t i = 0; i < ARRAY_LEN(k->programs); i++) {
        if (!systemd && leads_to(k->programs[i], "systemd"))
            continue; /* /sbin/init of an image that has both */
        (void)execve(k->programs[i], argv, env);
        if (errno != ENOENT) {
            err = errno;
            tried = k->programs[i];
        }
    }
    return fail_sys(f, err, "init: %s: start %s", name, tried);
}

/* Waits for @pid up to @ms; true when it ended well. */
static bool ended_well(pid_t pid, int64_t ms)
{
    int status = -1;
    int64_t until = now_ms() + ms;
    pid_t got = 0;
    while (pid > 0 && (got = waitpid(pid, &status, WNOHANG)) == 0 && now_ms() < until)
        (void)usleep(10000);
    return got == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* @words: its argv, one word after the other with spaces between. */
static pid_t start_program(const char *words, int out)
{
    static char path[] = "PATH=" DEFAULT_PATH;
    char *const env[] = {path, NULL};
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)signal(SIGPIPE, SIG_DFL);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    (void)dup2(null, 0);
    if (out >= 0) {
        (void)dup2(out, 1);
        (void)dup2(null, 2);
    }
    struct words argv = {0};
    char *copy = ag_strdup(words), *save = NULL;
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save))
        words_add(&argv, w);
    (void)setenv("PATH", DEFAULT_PATH, 1);
    (void)execvpe(argv.v[0], argv.v, env);
    _exit(127);
}

/* What makes that init end the machine. Of those that start OpenRC its own has a program of its own
 * for it; sysvinit and busybox have the usual ones. */
static const char *ending_words(const char *name, bool by_reboot)
{
    if (is_systemd(name))
        return by_reboot
                   ? "systemctl --no-block --job-mode=replace-irreversibly start reboot.target"
                   : "systemctl --no-block --job-mode=replace-irreversibly start poweroff.target";
    if (leads_to("/proc/1/exe", "openrc-init"))
        return by_reboot ? "openrc-shutdown -r now" : "openrc-shutdown -p now";
    return by_reboot ? "reboot" : "poweroff";
}

bool init_end_machine(const char *name, bool by_reboot)
{
    return ended_well(start_program(ending_words(name, by_reboot), -1), 10000);
}

/* --- is it up? --- */

bool init_up_is_asked(const char *name)
{
    return is_systemd(name);
}

int init_up_start(struct init_up *u)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return -1;
    u->pid = start_program("systemctl is-system-running --wait", fds[1]);
    (void)close(fds[1]);
    u->fd = fds[0];
    if (u->pid > 0)
        return 0;
    (void)close(u->fd);
    u->pid = 0;
    u->fd = -1;
    return -1;
}

bool init_up_word(const char *word, char *how, size_t size)
{
    if (!*word || strcmp(word, "initializing") == 0 || strcmp(word, "starting") == 0 ||
        strcmp(word, "unknown") == 0)
        return false;
    (void)snprintf(how, size, "booted, no start command; systemd: %.40s", word);
    return true;
}

bool init_up_reaped(struct init_up *u, char *how, size_t size)
{
    char word[64] = "";
    ssize_t n = read(u->fd, word, sizeof word - 1);
    word[n > 0 ? n : 0] = 0;
    word[strcspn(word, "\n")] = 0;
    (void)close(u->fd);
    u->fd = -1;
    u->pid = 0;
    u->next_at = now_ms() + 500;
    return init_up_word(word, how, size);
}
