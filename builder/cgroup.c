#include "builder/container.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"

#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>

enum { PROCS_MAX = 1 << 20, REMOVE_MS = 3000, TICK_MS = 20, DEPTH_MAX = 16 };

static void kill_members(const char *dir)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/cgroup.procs", dir);
    CB_AUTO_BUF text = CB_BUF_INIT(PROCS_MAX);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    if (cb_read_file(path, PROCS_MAX, &text, &ignored) < 0 || !text.data)
        return;
    char *save = NULL;
    for (char *p = strtok_r(text.data, "\n", &save); p; p = strtok_r(NULL, "\n", &save)) {
        long pid = strtol(p, NULL, 10);
        if (pid > 1 && pid != getpid())
            (void)kill((pid_t)pid, SIGKILL);
    }
}

/* One pass over the group and those below it. True when it is gone. */
static bool remove_once(const char *dir, unsigned depth)
{
    kill_members(dir);
    CB_AUTO_DIR d = depth < DEPTH_MAX ? opendir(dir) : NULL;
    for (const struct dirent *e; d && (e = readdir(d)) != NULL;) {
        CB_AUTO_FREE char *sub = cb_xasprintf("%s/%s", dir, e->d_name);
        struct stat st;
        if (e->d_name[0] != '.' && lstat(sub, &st) == 0 && S_ISDIR(st.st_mode))
            (void)remove_once(sub, depth + 1);
    }
    return rmdir(dir) == 0 || errno == ENOENT;
}

/* A group can be removed when its last process was reaped, which takes the kernel a moment. */
static void remove_group(const char *dir)
{
    struct stat st;
    if (lstat(dir, &st) < 0 || !S_ISDIR(st.st_mode))
        return;
    int64_t end = cb_monotonic_ms() + REMOVE_MS;
    while (!remove_once(dir, 0) && cb_monotonic_ms() < end)
        (void)poll(NULL, 0, TICK_MS);
}

void container_remove_cgroups(const char *id)
{
    CB_AUTO_FILE f = fopen("/proc/self/mountinfo", "re");
    CB_AUTO_FREE char *line = NULL;
    size_t cap = 0;
    while (f && getline(&line, &cap, f) > 0) {
        /* "36 31 0:33 / /sys/fs/cgroup/devices rw,relatime shared:5 - cgroup cgroup rw,devices" */
        char at[CB_PATH_MAX];
        const char *type = strstr(line, " - cgroup");
        if (type && sscanf(line, "%*d %*d %*s %*s %4095s", at) == 1) {
            CB_AUTO_FREE char *dir = cb_xasprintf("%s/%s", at, id);
            remove_group(dir);
        }
    }
}
