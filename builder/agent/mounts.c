/* mounts: what a root folder needs before anything can run in it. The same in both builders; a
 * booted machine gets the real devices instead of a container's few. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static int need_folder(const char *path, struct fail *f)
{
    struct stat st;
    if (lstat(path, &st) < 0 || !S_ISDIR(st.st_mode))
        return fail_set(f, FAIL_IMAGE, "the image's /%s is not a folder", path);
    return 0;
}

static int do_mount(const char *type, const char *at, unsigned long flags, const char *options,
                    struct fail *f)
{
    if (mount(type, at, type, flags, options) < 0)
        return fail_sys(f, errno, "mount %s", at);
    return 0;
}

/* A node, or where a user namespace may not make one, a bind of the one we have. */
static int make_device(const char *name, unsigned major_no, unsigned minor_no, struct fail *f)
{
    char path[32], ours[32];
    (void)snprintf(path, sizeof path, "dev/%s", name);
    (void)snprintf(ours, sizeof ours, "/dev/%s", name);
    if (mknod(path, S_IFCHR | 0666, makedev(major_no, minor_no)) == 0)
        return 0;
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        return fail_sys(f, errno, "make /dev/%s", name);
    (void)close(fd);
    if (mount(ours, path, NULL, MS_BIND, NULL) < 0)
        return fail_sys(f, errno, "bind /dev/%s", name);
    return 0;
}

static int make_dev(struct fail *f)
{
    static const struct {
        const char *name;
        unsigned major_no, minor_no;
    } nodes[] = {{"null", 1, 3},   {"zero", 1, 5},    {"full", 1, 7},
                 {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
    static const char *const links[][2] = {{"/proc/self/fd", "dev/fd"},
                                           {"/proc/self/fd/0", "dev/stdin"},
                                           {"/proc/self/fd/1", "dev/stdout"},
                                           {"/proc/self/fd/2", "dev/stderr"},
                                           {"pts/ptmx", "dev/ptmx"}};
    if (do_mount("tmpfs", "dev", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k", f) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(nodes); i++)
        if (make_device(nodes[i].name, nodes[i].major_no, nodes[i].minor_no, f) < 0)
            return -1;
    for (size_t i = 0; i < ARRAY_LEN(links); i++)
        if (symlink(links[i][0], links[i][1]) < 0)
            return fail_sys(f, errno, "make /%s", links[i][1]);
    if (mkdir("dev/pts", 0755) < 0 || mkdir("dev/shm", 01777) < 0 || mkdir("dev/mqueue", 0755) < 0)
        return fail_sys(f, errno, "make folders in /dev");
    if (mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
              "newinstance,ptmxmode=0666,mode=0620,gid=5") < 0 &&
        do_mount("devpts", "dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620",
                 f) < 0)
        return -1;
    (void)mount("mqueue", "dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    return do_mount("tmpfs", "dev/shm", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=65536k",
                    f);
}

static void bind_read_only(const char *path)
{
    if (mount(path, path, NULL, MS_BIND | MS_REC, NULL) == 0)
        (void)mount(NULL, path, NULL,
                    MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}

/* Root in a layer has file permissions on the kernel's switches: those are shut as containers do.
 */
static void shut_kernel_files(void)
{
    static const char *const read_only[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys",
                                            "proc/sysrq-trigger"};
    static const char *const hidden[] = {"proc/kcore",         "proc/keys",
                                         "proc/latency_stats", "proc/timer_list",
                                         "proc/sched_debug",   "proc/kmsg"};
    static const char *const hidden_folders[] = {"proc/acpi", "proc/scsi", "sys/firmware"};
    for (size_t i = 0; i < ARRAY_LEN(read_only); i++)
        bind_read_only(read_only[i]);
    for (size_t i = 0; i < ARRAY_LEN(hidden); i++)
        (void)mount("dev/null", hidden[i], NULL, MS_BIND, NULL);
    for (size_t i = 0; i < ARRAY_LEN(hidden_folders); i++)
        (void)mount("tmpfs", hidden_folders[i], "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV,
                    "size=0,mode=755");
}

static int mount_sys(struct fail *f)
{
    unsigned long flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
    if (mount("sysfs", "sys", "sysfs", flags, NULL) == 0)
        return 0;
    if (errno != EPERM)
        return fail_sys(f, errno, "mount /sys");
    /* A network namespace that is not of our user namespace: take the sysfs that is there. */
    if (mount("/sys", "sys", NULL, MS_BIND | MS_REC, NULL) < 0)
        return fail_sys(f, errno, "bind /sys");
    (void)mount(NULL, "sys", NULL, MS_BIND | MS_REMOUNT | flags, NULL);
    return 0;
}

int mounts_for_layer(struct fail *f)
{
    static const char *const points[] = {"proc", "sys", "dev", "run"};
    for (size_t i = 0; i < ARRAY_LEN(points); i++)
        if (need_folder(points[i], f) < 0)
            return -1;
    (void)umask(0);
    if (do_mount("proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, f) < 0 ||
        mount_sys(f) < 0 || make_dev(f) < 0 ||
        do_mount("tmpfs", "run", MS_NOSUID | MS_NODEV, "mode=755", f) < 0)
        return -1;
    if (mkdir("run/lock", 01777) < 0)
        return fail_sys(f, errno, "make /run/lock");
    shut_kernel_files();
    (void)umask(022);
    return 0;
}

/* A mount is on @path when its device is not its parent's. */
static bool is_mounted(const char *path)
{
    struct stat a, b;
    char up[64];
    (void)snprintf(up, sizeof up, "%s/..", path);
    return stat(path, &a) == 0 && stat(up, &b) == 0 && a.st_dev != b.st_dev;
}

static void boot_mount(const char *type, const char *at, unsigned long flags, const char *options)
{
    (void)mkdir(at, 0755);
    if (!is_mounted(at) && mount(type, at, type, flags, options) < 0)
        console_say("mount %s: %s", at, strerror(errno));
}

/* Lets the whole tree of control groups limit what the kernel can limit. */
static void enable_controllers(void)
{
    struct text t = {0};
    if (read_file("/sys/fs/cgroup/cgroup.controllers", 4096, &t) == 0) {
        char *save = NULL;
        for (char *p = strtok_r(t.p, " \n", &save); p; p = strtok_r(NULL, " \n", &save)) {
            char word[64];
            (void)snprintf(word, sizeof word, "+%s", p);
            poke("/sys/fs/cgroup/cgroup.subtree_control", word);
        }
    }
    text_release(&t);
}

void mounts_of_kernel(void)
{
    boot_mount("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    (void)mount(NULL, "/", NULL, MS_REMOUNT, NULL); /* rw, when the kernel mounted it ro */
    boot_mount("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    boot_mount("devtmpfs", "/dev", MS_NOSUID, "mode=755");
    boot_mount("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755");
}

void mounts_for_boot(void)
{
    static const char *const links[][2] = {{"/proc/self/fd", "/dev/fd"},
                                           {"/proc/self/fd/0", "/dev/stdin"},
                                           {"/proc/self/fd/1", "/dev/stdout"},
                                           {"/proc/self/fd/2", "/dev/stderr"}};
    boot_mount("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
    boot_mount("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
    boot_mount("cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    enable_controllers();
    for (size_t i = 0; i < ARRAY_LEN(links); i++)
        (void)!symlink(links[i][0], links[i][1]);
    mode_t old = umask(0);
    (void)mkdir("/run/lock", 01777);
    (void)mkdir("/tmp", 01777);
    (void)umask(old);
    (void)mkdir("/dev/mqueue", 0755);
    (void)mount("mqueue", "/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}
