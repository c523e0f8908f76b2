#include "builder/container.h"
#include "support/cleanup.h"
#include "support/hash.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

enum {
    AGENT_OOM_SCORE = -900,
    PIDS_MAX = 16384,
    FILES_MAX = 1048576,
    SOFT_FILES = 1024,
    CPU_PERIOD_US = 100000
};

/* What the agent needs to stack file systems, switch users and read everything for a diff. It takes
 * the dangerous ones from the commands that it runs. */
static json_t *capabilities(void)
{
    static const char *const names[] = {
        "CAP_SYS_ADMIN", "CAP_SYS_CHROOT",  "CAP_SETUID",           "CAP_SETGID",
        "CAP_SETPCAP",   "CAP_CHOWN",       "CAP_DAC_OVERRIDE",     "CAP_FOWNER",
        "CAP_FSETID",    "CAP_MKNOD",       "CAP_SETFCAP",          "CAP_KILL",
        "CAP_NET_RAW",   "CAP_AUDIT_WRITE", "CAP_NET_BIND_SERVICE", "CAP_DAC_READ_SEARCH"};
    json_t *list = json_array();
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        (void)json_array_append_new(list, json_string(names[i]));
    return json_pack("{s:O, s:O, s:o}", "bounding", list, "effective", list, "permitted", list);
}

static void add_mount(json_t *mounts, const char *at, const char *type, const char *source,
                      const char *options)
{
    json_t *words = json_array();
    while (*options) {
        size_t n = strcspn(options, ",");
        (void)json_array_append_new(words, json_stringn(options, n));
        options += n + (options[n] == ',');
    }
    (void)json_array_append_new(mounts, json_pack("{s:s, s:s, s:s, s:o}", "destination", at, "type",
                                                  type, "source", source, "options", words));
}

static json_t *mounts(const struct container_spec *spec)
{
    json_t *m = json_array();
    add_mount(m, "/proc", "proc", "proc", "nosuid,noexec,nodev");
    add_mount(m, "/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k");
    add_mount(m, "/dev/pts", "devpts", "devpts",
              "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5");
    if (spec->limits) /* the container's own groups, for one a command; commands do not see them */
        add_mount(m, "/groups", "cgroup", "cgroup", "nosuid,noexec,nodev,rw");
    add_mount(m, "/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro");
    add_mount(m, "/tmp", "tmpfs", "tmpfs", "nosuid,nodev,mode=1777,size=65536k");
    add_mount(m, "/run", "tmpfs", "tmpfs", "nosuid,nodev,mode=755,size=65536k");
    if (spec->lower)
        add_mount(m, "/lower", "bind", spec->lower, "bind,ro,private");
    if (spec->scratch)
        add_mount(m, "/scratch", "bind", spec->scratch, "bind,rw,private");
    if (spec->output)
        add_mount(m, "/output", "bind", spec->output, "bind,rw,private");
    for (size_t i = 0; spec->drives && i < spec->drives->n; i++) {
        char at[32];
        (void)snprintf(at, sizeof(at), "/drives/%zu", i);
        add_mount(m, at, "bind", spec->drives->v[i], "bind,rw,private");
    }
    return m;
}

/* Refuses @name where the bits @mask of its argument @index are @value. What the kernel takes for
 * 32 bits must be compared as 32 bits: it does not look at the others, and whoever sets one of them
 * would be past the filter. */
static json_t *deny(const char *name, int index, uint32_t mask, uint32_t value)
{
    return json_pack("{s:[s], s:s, s:i, s:[{s:i, s:I, s:I, s:s}]}", "names", name, "action",
                     "SCMP_ACT_ERRNO", "errnoRet", EPERM, "args", "index", index, "value",
                     (json_int_t)mask, "valueTwo", (json_int_t)value, "op", "SCMP_CMP_MASKED_EQ");
}

/* Holes that capabilities leave open. Packet sockets and XDP's (CAP_NET_RAW) write to the interface
 * past the routing table, and with it past "169.254.0.0/16 leads nowhere"; a vsock reaches the
 * machine's own hypervisor. 32-bit programs make sockets through socketcall, whose arguments no
 * filter sees, and io_uring makes them without the call. In a user namespace of its own a command
 * would have every capability, and with them the parts of the kernel that have had the most holes,
 * and its control group; clone3 hides what it makes, and who is told that there is none takes
 * clone. open_by_handle_at opens any file of a file system that one file of is bound in (/output
 * is). */
static json_t *seccomp(void)
{
    static const int families[] = {AF_PACKET, AF_VSOCK, AF_XDP};
    json_t *rules = json_array();
    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++)
        (void)json_array_append_new(rules, deny("socket", 0, UINT32_MAX, (uint32_t)families[i]));
    (void)json_array_append_new(rules, deny("socketcall", 0, UINT32_MAX, 1 /* SYS_SOCKET */));
    (void)json_array_append_new(rules, deny("unshare", 0, CLONE_NEWUSER, CLONE_NEWUSER));
    (void)json_array_append_new(rules, deny("clone", 0, CLONE_NEWUSER, CLONE_NEWUSER));
    (void)json_array_append_new(rules, json_pack("{s:[s], s:s, s:i}", "names", "clone3", "action",
                                                 "SCMP_ACT_ERRNO", "errnoRet", ENOSYS));
    (void)json_array_append_new(
        rules, json_pack("{s:[s,s,s,s,s,s,s,s,s,s,s,s,s,s], s:s, s:i}", "names",
                         "open_by_handle_at", "bpf", "perf_event_open", "kexec_load",
                         "kexec_file_load", "init_module", "finit_module", "delete_module",
                         "add_key", "request_key", "keyctl", "io_uring_setup", "io_uring_enter",
                         "io_uring_register", "action", "SCMP_ACT_ERRNO", "errnoRet", EPERM));
    return json_pack("{s:s, s:[s,s,s], s:o}", "defaultAction", "SCMP_ACT_ALLOW", "architectures",
                     "SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "syscalls", rules);
}

/* No device of the machine but the usual harmless ones, which runtimes add; nodes of any kind may
 * be made (packages do), which opens nothing. */
static json_t *resources(const struct container_spec *spec)
{
    json_t *r = json_pack("{s:[{s:b, s:s}, {s:b, s:s, s:s}, {s:b, s:s, s:s}]}", "devices", "allow",
                          0, "access", "rwm", "allow", 1, "type", "c", "access", "m", "allow", 1,
                          "type", "b", "access", "m");
    if (!spec->limits)
        return r;
    (void)json_object_set_new(r, "pids", json_pack("{s:i}", "limit", PIDS_MAX));
    if (spec->vcpus)
        (void)json_object_set_new(r, "cpu",
                                  json_pack("{s:I, s:i}", "quota",
                                            (json_int_t)spec->vcpus * CPU_PERIOD_US, "period",
                                            CPU_PERIOD_US));
    if (spec->memory_mib)
        (void)json_object_set_new(r, "memory",
                                  json_pack("{s:I}", "limit", (json_int_t)spec->memory_mib << 20));
    return r;
}

static json_t *linux_part(const struct container_spec *spec)
{
    /* no "network" here: the runtime is started in the network namespace and the container stays in
     * it */
    json_t *l =
        json_pack("{s:[{s:s}, {s:s}, {s:s}, {s:s}], s:o, s:o, s:[s,s,s,s,s], s:[s,s,s,s,s]}",
                  "namespaces", "type", "pid", "type", "mount", "type", "ipc", "type", "uts",
                  "resources", resources(spec), "seccomp", seccomp(), "maskedPaths", "/proc/kcore",
                  "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware", "readonlyPaths",
                  "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger");
    if (spec->limits) {
        char path[CONTAINER_ID_LEN + 2];
        (void)snprintf(path, sizeof(path), "/%s", spec->id);
        (void)json_object_set_new(l, "cgroupsPath", json_string(path));
        /* Without one, a runtime on a machine with one hierarchy mounts its root for the agent. */
        (void)json_array_append_new(json_object_get(l, "namespaces"),
                                    json_pack("{s:s}", "type", "cgroup"));
    }
    return l;
}

/* As many open files as we may have ourselves, but the usual soft limit: some old programs loop
 * over all descriptors up to it. */
static json_t *rlimits(void)
{
    struct rlimit r = {SOFT_FILES, SOFT_FILES};
    (void)getrlimit(RLIMIT_NOFILE, &r);
    rlim_t hard = r.rlim_max < FILES_MAX ? r.rlim_max : FILES_MAX;
    return json_pack("[{s:s, s:I, s:I}]", "type", "RLIMIT_NOFILE", "hard", (json_int_t)hard, "soft",
                     (json_int_t)(hard < SOFT_FILES ? hard : SOFT_FILES));
}

json_t *container_config(const struct container_spec *spec)
{
    json_t *process =
        json_pack("{s:b, s:{s:i, s:i}, s:[s,s,s,s,s,s,s,s,s,s], s:[s], s:s, s:o, s:o, s:b}",
                  "terminal", 0, "user", "uid", 0, "gid", 0, "args", "/capsule-agent", "build",
                  "--lower", "/lower", "--scratch", "/scratch", "--output", "/output", "--fd", "3",
                  "env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "cwd",
                  "/", "capabilities", capabilities(), "rlimits", rlimits(), "noNewPrivileges", 0);
    if (spec->limits) {
        json_t *args = json_object_get(process, "args");
        (void)json_array_append_new(args, json_string("--groups"));
        (void)json_array_append_new(args, json_string("/groups"));
    }
    return json_pack("{s:s, s:o, s:{s:s, s:b}, s:s, s:o, s:o}", "ociVersion", "1.0.2", "process",
                     process, "root", "path", "rootfs", "readonly", 1, "hostname", spec->hostname,
                     "mounts", mounts(spec), "linux", linux_part(spec));
}
