/* group: control groups, one a command, so that what it takes can be limited, counted and ended. In
 * a machine of our own the kernel's one hierarchy is mounted for it; in a container it is what the
 * runtime gave us, of either version: one folder for all, or one a controller. */
#include "builder/agent/agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define FILE_MAX_BYTES (64u << 10)
#define KILL_ROUNDS 200
#define KILL_PAUSE_MS 5
#define MIB (UINT64_C(1) << 20)
#define RESERVE_MIN (64 * MIB)
#define PROCESSES_STEP                                                                             \
    256 /* one for each MiB, in whole steps: a machine has a little less memory than it was given  \
         */
#define PROCESSES_MIN 1024
#define PROCESSES_MAX 16000
#define CPU_PERIOD_US 100000

static const char *const controllers[GROUP_KINDS] = {"memory", "pids", "cpu", "cpuacct"};

/* The folder of @kind; with one hierarchy that of all. */
static int dir_of(const int dirs[GROUP_KINDS], enum group_kind kind)
{
    return dirs[kind] >= 0 ? dirs[kind] : dirs[0];
}

static int read_at(int dir, const char *name, struct text *out)
{
    int fd = dir < 0 ? -1 : openat(dir, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    char buf[4096];
    ssize_t n;
    while ((n = read(fd, buf, sizeof buf)) > 0 && out->n < FILE_MAX_BYTES)
        text_add(out, buf, (size_t)n);
    (void)close(fd);
    return n < 0 || !out->p ? -1 : 0;
}

/* A file that is one number; 0 when it is not there, or "max". */
static uint64_t number_at(int dir, const char *name)
{
    struct text t = {0};
    uint64_t v = 0;
    if (read_at(dir, name, &t) == 0) {
        t.p[strcspn(t.p, "\n")] = '\0';
        (void)parse_number(t.p, INT64_MAX, &v);
    }
    text_release(&t);
    return v;
}

/* The number behind @key in a file of lines "KEY NUMBER"; 0 when there is none. */
static uint64_t keyed_at(int dir, const char *name, const char *key)
{
    struct text t = {0};
    uint64_t v = 0;
    size_t n = strlen(key);
    if (read_at(dir, name, &t) == 0) {
        char *save = NULL;
        for (char *l = strtok_r(t.p, "\n", &save); l; l = strtok_r(NULL, "\n", &save))
            if (strncmp(l, key, n) == 0 && l[n] == ' ')
                (void)parse_number(l + n + 1, INT64_MAX, &v);
    }
    text_release(&t);
    return v;
}

static int write_at(int dir, const char *name, const char *word)
{
    int fd = dir < 0 ? -1 : openat(dir, name, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = write(fd, word, strlen(word));
    int saved = errno;
    (void)close(fd);
    errno = saved;
    return n < 0 ? -1 : 0;
}

static int write_number_at(int dir, const char *name, uint64_t v)
{
    char word[24];
    (void)snprintf(word, sizeof word, "%llu", (unsigned long long)v);
    return write_at(dir, name, word);
}

int groups_mount(const char *at, struct fail *f)
{
    if (mkdir(at, 0755) < 0 && errno != EEXIST)
        return fail_sys(f, errno, "make %s", at);
    if (mount("cgroup2", at, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
        return fail_sys(f, errno, "mount control groups");
    return 0;
}

bool groups_are_ours(const char *text)
{
    static const char *const ours[] = {"0::/\n", "0::/agent\n"};
    for (const char *l = text; *l; l += strcspn(l, "\n") + (l[strcspn(l, "\n")] == '\n'))
        for (size_t i = 0; i < ARRAY_LEN(ours); i++)
            if (strncmp(l, ours[i], strlen(ours[i])) == 0)
                return true;
    return false;
}

/* What is mounted must be the group that we are in: the root of a machine of ours, or of a
 * container's namespace. In any other, groups would be made beside it. */
static int check_ours(struct fail *f)
{
    struct text t = {0};
    bool ours = read_file("/proc/self/cgroup", FILE_MAX_BYTES, &t) == 0 && groups_are_ours(t.p);
    text_release(&t);
    return ours ? 0 : fail_set(f, FAIL_SYSTEM, "control groups: they are not the container's own");
}

/* One hierarchy: whoever is not its root may hand on controllers only when nothing runs in it. */
static int open_unified(struct groups *g, struct fail *f)
{
    if (check_ours(f) < 0)
        return -1;
    if (write_at(g->dirs[0], "cgroup.subtree_control", "+memory +pids +cpu") == 0)
        return 0;
    if (mkdirat(g->dirs[0], "agent", 0755) < 0 && errno != EEXIST)
        return fail_sys(f, errno, "make a control group");
    int own = openat(g->dirs[0], "agent", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = write_at(own, "cgroup.procs", "0");
    if (rc == 0)
        rc = write_at(g->dirs[0], "cgroup.subtree_control", "+memory +pids +cpu");
    int saved = errno;
    if (own >= 0)
        (void)close(own);
    return rc < 0 ? fail_sys(f, saved, "use control groups") : 0;
}

/* What all commands together may take: our own group's limit, or what the machine has. */
static uint64_t memory_of(const struct groups *g)
{
    struct text t = {0};
    uint64_t kib = 0,
             own = number_at(g->dirs[0], g->unified ? "memory.max" : "memory.limit_in_bytes");
    if (read_file("/proc/meminfo", FILE_MAX_BYTES, &t) == 0) {
        const char *p = strstr(t.p, "MemTotal:");
        p = p ? p + strlen("MemTotal:") : "";
        kib = strtoull(p, NULL, 10);
    }
    text_release(&t);
    uint64_t all = kib << 10;
    return own && (own < all || !all) ? own : all;
}

int groups_open(struct groups *g, const char *path, struct fail *f)
{
    *g = (struct groups){.dirs = {-1, -1, -1, -1}};
    char name[300];
    (void)snprintf(name, sizeof name, "%s/cgroup.controllers", path);
    g->unified = access(name, F_OK) == 0;
    for (int i = 0; i < (g->unified ? 1 : GROUP_KINDS); i++) {
        (void)snprintf(name, sizeof name, "%s/%s", path, g->unified ? "." : controllers[i]);
        g->dirs[i] = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (g->dirs[i] < 0) {
            int saved = errno;
            groups_close(g);
            return fail_sys(f, saved, "control groups: %s", name);
        }
    }
    if (g->unified && open_unified(g, f) < 0) {
        groups_close(g);
        return -1;
    }
    uint64_t all = memory_of(g), reserve = all / 16 > RESERVE_MIN ? all / 16 : RESERVE_MIN;
    g->memory = all > 2 * reserve ? all - reserve : all;
    g->processes = (all / MIB + PROCESSES_STEP - 1) / PROCESSES_STEP * PROCESSES_STEP;
    if (g->processes < PROCESSES_MIN)
        g->processes = PROCESSES_MIN;
    if (g->processes > PROCESSES_MAX)
        g->processes = PROCESSES_MAX;
    g->open = true;
    return 0;
}

void groups_close(struct groups *g)
{
    for (int i = 0; i < GROUP_KINDS; i++) {
        if (g->dirs[i] >= 0)
            (void)close(g->dirs[i]);
        g->dirs[i] = -1;
    }
    g->open = false;
}

void groups_sweep(struct groups *g)
{
    for (int i = 0; g->open && i < GROUP_KINDS; i++) {
        int fd = g->dirs[i] < 0 ? -1 : openat(g->dirs[i], ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *d = fd < 0 ? NULL : fdopendir(fd);
        const struct dirent *e;
        while (d && (e = readdir(d)))
            if (e->d_name[0] == 's' && e->d_name[1] >= '0' && e->d_name[1] <= '9')
                (void)unlinkat(g->dirs[i], e->d_name, AT_REMOVEDIR);
        if (d)
            (void)closedir(d);
        else if (fd >= 0)
            (void)close(fd);
    }
}

/* The next name that is free in all hierarchies. */
static int make_folders(struct groups *g, struct cgroup *out)
{
    for (unsigned tries = 0; tries < 1000; tries++) {
        bool taken = false;
        (void)snprintf(out->name, sizeof out->name, "s%u", g->next++);
        for (int i = 0; i < GROUP_KINDS && !taken; i++) {
            if (g->dirs[i] < 0)
                continue;
            if (mkdirat(g->dirs[i], out->name, 0755) < 0) {
                if (errno != EEXIST)
                    return -1;
                taken = true;
                break;
            }
            out->dirs[i] = openat(g->dirs[i], out->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            if (out->dirs[i] < 0)
                return -1;
        }
        if (!taken)
            return 0;
        group_end(g, out);
    }
    errno = EEXIST;
    return -1;
}

static int set_limits(const struct groups *g, struct cgroup *out, unsigned cpu_percent)
{
    int memory = dir_of(out->dirs, GROUP_MEMORY), cpu = dir_of(out->dirs, GROUP_CPU);
    char quota[48];
    (void)snprintf(quota, sizeof quota, g->unified ? "%llu %d" : "%llu",
                   (unsigned long long)cpu_percent * (CPU_PERIOD_US / 100), CPU_PERIOD_US);
    if (write_number_at(memory, g->unified ? "memory.max" : "memory.limit_in_bytes", out->memory) <
            0 ||
        write_number_at(dir_of(out->dirs, GROUP_PIDS), "pids.max", out->processes) < 0 ||
        (cpu_percent && write_at(cpu, g->unified ? "cpu.max" : "cpu.cfs_quota_us", quota) < 0))
        return -1;
    /* Not everywhere: without swap there is nothing to limit, and only the one hierarchy ends a
     * whole group; watch.c does where it does not. */
    (void)write_number_at(memory, g->unified ? "memory.swap.max" : "memory.memsw.limit_in_bytes",
                          g->unified ? 0 : out->memory);
    (void)write_at(memory, "memory.oom.group", "1");
    return 0;
}

int group_make(struct groups *g, uint64_t memory, unsigned cpu_percent, struct cgroup *out,
               struct fail *f)
{
    *out = (struct cgroup){.dirs = {-1, -1, -1, -1}, .unified = g->unified};
    out->memory = memory && memory < g->memory ? memory : g->memory;
    out->processes = g->processes;
    if (make_folders(g, out) < 0 || set_limits(g, out, cpu_percent) < 0) {
        int saved = errno;
        group_end(g, out);
        return fail_sys(f, saved, "a control group for the command");
    }
    return 0;
}

int group_join(const struct cgroup *g)
{
    for (int i = 0; i < GROUP_KINDS; i++)
        if (g->dirs[i] >= 0 && write_at(g->dirs[i], "cgroup.procs", "0") < 0)
            return -1;
    return 0;
}

void group_look(const struct cgroup *g, struct group_use *u)
{
    int memory = dir_of(g->dirs, GROUP_MEMORY), pids = dir_of(g->dirs, GROUP_PIDS);
    *u = (struct group_use){0};
    u->processes = number_at(pids, "pids.current");
    u->refused_processes = keyed_at(pids, "pids.events", "max");
    if (g->unified) {
        u->killed = keyed_at(memory, "memory.events", "oom_kill");
        u->memory =
            keyed_at(memory, "memory.stat", "anon") + keyed_at(memory, "memory.stat", "shmem");
        u->cpu_ms = keyed_at(memory, "cpu.stat", "usage_usec") / 1000;
    } else {
        u->killed = keyed_at(memory, "memory.oom_control", "oom_kill");
        u->memory =
            keyed_at(memory, "memory.stat", "rss") + keyed_at(memory, "memory.stat", "shmem");
        u->cpu_ms = number_at(dir_of(g->dirs, GROUP_CPUACCT), "cpuacct.usage") / 1000000;
    }
}

/* Whoever is left can start nothing any more, so this ends. */
void group_kill(const struct cgroup *g)
{
    (void)write_number_at(dir_of(g->dirs, GROUP_PIDS), "pids.max", 0);
    if (g->unified && write_at(g->dirs[0], "cgroup.kill", "1") == 0)
        return;
    for (int round = 0; round < KILL_ROUNDS; round++) {
        struct text t = {0};
        bool any = false;
        if (read_at(dir_of(g->dirs, GROUP_PIDS), "cgroup.procs", &t) == 0) {
            char *save = NULL;
            for (char *l = strtok_r(t.p, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
                uint64_t pid = 0;
                if (parse_number(l, INT32_MAX, &pid) && pid > 1)
                    any = kill((pid_t)pid, SIGKILL) == 0 || any;
            }
        }
        text_release(&t);
        if (!any)
            return;
        struct timespec pause = {.tv_nsec = KILL_PAUSE_MS * 1000000L};
        (void)nanosleep(&pause, NULL);
    }
}

void group_end(struct groups *g, struct cgroup *out)
{
    for (int i = 0; i < GROUP_KINDS; i++) {
        if (out->dirs[i] < 0)
            continue;
        (void)close(out->dirs[i]);
        out->dirs[i] = -1;
        (void)unlinkat(g->dirs[i], out->name, AT_REMOVEDIR); /* unless something runs on in it */
    }
}
