/* owner: who holds a build, in words by which another process can tell whether that one still
 * lives. */
#include "queue/store.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* Field 22 of /proc/PID/stat (the start, in clock ticks since boot); 0 when there is no such
 * process or only its zombie. */
static unsigned long long start_time(long pid)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/%ld/stat", pid);
    CB_AUTO_BUF b = CB_BUF_INIT(0);
    if (cb_read_file(path, 8192, &b, NULL) < 0)
        return 0;
    char *p = strrchr(b.data, ')'); /* the name before it may hold anything */
    if (!p || p[1] != ' ' || p[2] == 'Z' || p[2] == 'X')
        return 0;
    p += 2;
    for (int field = 3; p && field < 22; field++) {
        p = strchr(p, ' ');
        p = p ? p + 1 : NULL;
    }
    return p ? strtoull(p, NULL, 10) : 0;
}

static unsigned long long pid_namespace(void)
{
    struct stat st;
    return stat("/proc/self/ns/pid", &st) == 0 ? (unsigned long long)st.st_ino : 0;
}

static void boot_id(char *out, size_t size)
{
    CB_AUTO_BUF b = CB_BUF_INIT(0);
    if (cb_read_file("/proc/sys/kernel/random/boot_id", 128, &b, NULL) < 0)
        cb_buf_clear(&b);
    (void)snprintf(out, size, "%.*s", (int)strcspn(b.data ? b.data : "", "\n"),
                   b.data ? b.data : "");
}

char *queue_owner_self(void)
{
    char boot[64];
    boot_id(boot, sizeof(boot));
    return cb_xasprintf("cli:%ld:%llu:%llu:%s", (long)getpid(), start_time(getpid()),
                        pid_namespace(), boot);
}

enum owner_state queue_owner_state(const char *owner)
{
    unsigned long long v[3]; /* pid, start, namespace */
    char now[64];
    if (strncmp(owner, "cli:", 4) != 0)
        return OWNER_UNKNOWN;
    const char *p = owner + 4;
    for (int i = 0; i < 3; i++) {
        char *end;
        v[i] = strtoull(p, &end, 10);
        if (end == p || *end != ':')
            return OWNER_UNKNOWN;
        p = end + 1;
    }
    boot_id(now, sizeof(now));
    if (strcmp(p, now) != 0)
        return OWNER_GONE;
    if (v[2] != pid_namespace())
        return OWNER_UNKNOWN;
    return start_time((long)v[0]) == v[1] ? OWNER_ALIVE : OWNER_GONE;
}
