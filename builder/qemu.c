#include "builder/qemu.h"

#include "builder/netns.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/hash.h"
#include "support/mem.h"
#include "support/proc.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    FIRST_FORWARD_PORT = 20000,
    VERSION_TIMEOUT_MS = 20000,
    VERSION_MAX = 64 << 10,
    CPUINFO_MAX = 16 << 20, /* some KiB a CPU */
    TSC_MEASURE_NS = 20000000,
    TSC_KHZ_MIN = 100000,
    TSC_KHZ_MAX = 10000000,
};

uint16_t qemu_forward_port(size_t i)
{
    return (uint16_t)(FIRST_FORWARD_PORT + i);
}

char *qemu_find(const struct settings *settings)
{
    if (!settings->qemu)
        return cb_find_program(QEMU_PROGRAM);
    return access(settings->qemu, X_OK) == 0 ? cb_xstrdup(settings->qemu) : NULL;
}

int qemu_missing(const struct settings *settings, struct cb_error *err)
{
    if (settings->qemu) {
        int why = access(settings->qemu, X_OK) < 0 ? errno : ENOEXEC;
        cb_fail(err, CB_E_ENV, "qemu: %s: %s", settings->qemu, strerror(why));
        return cb_hint(err, "Correct `qemu` in the settings, or leave it out: then " QEMU_PROGRAM
                            " is looked for in PATH.");
    }
    cb_fail(err, CB_E_ENV, QEMU_PROGRAM " is not on this machine");
    return cb_hint(err, "apt-get install qemu-system-x86");
}

bool qemu_has_sandbox(const char *program)
{
    const char *const argv[] = {program ? program : QEMU_PROGRAM, "-sandbox", "on", "-version",
                                NULL};
    const struct cb_proc_spec spec = {.argv = argv, .own_session = true};
    struct cb_proc_result res = {.status = -1};
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    int rc = cb_proc_run(&spec, NULL, VERSION_MAX, VERSION_TIMEOUT_MS, &res, &ignored);
    cb_proc_result_release(&res);
    return rc == 0 && res.status == 0;
}

uint32_t qemu_tsc_khz(void)
{
#if defined(__x86_64__)
    struct timespec a, b;
    struct timespec pause = {.tv_nsec = TSC_MEASURE_NS};
    (void)clock_gettime(CLOCK_MONOTONIC_RAW, &a);
    uint64_t first = __builtin_ia32_rdtsc();
    (void)nanosleep(&pause, NULL);
    (void)clock_gettime(CLOCK_MONOTONIC_RAW, &b);
    uint64_t ticks = __builtin_ia32_rdtsc() - first;
    int64_t ns = (int64_t)(b.tv_sec - a.tv_sec) * 1000000000 + (b.tv_nsec - a.tv_nsec);
    uint64_t khz = ns > 0 ? ticks * 1000000 / (uint64_t)ns : 0;
    return khz >= TSC_KHZ_MIN && khz <= TSC_KHZ_MAX ? (uint32_t)khz : 0;
#else
    return 0;
#endif
}

/* Paths go in as JSON, in which a comma or a percent sign is nothing special. */
static void add_blockdev(struct cb_strv *argv, json_t *node)
{
    char *text = node ? json_dumps(node, JSON_COMPACT) : NULL;
    json_decref(node);
    cb_strv_add(argv, "-blockdev");
    cb_strv_take(argv, text ? text : cb_xstrdup("{}"));
}

/* A raw file. No flush reaches the host's disk: what a crash loses here was to be thrown away
 * anyway. */
static json_t *raw_node(const char *name, const char *path, bool read_only)
{
    return json_pack("{s:s, s:s, s:b, s:s, s:{s:b, s:b}, s:{s:s, s:s, s:s, s:b, s:s}}", "driver",
                     "raw", "node-name", name, "read-only", read_only, "discard",
                     read_only ? "ignore" : "unmap", "cache", "direct", 0, "no-flush", 1, "file",
                     "driver", "file", "filename", path, "aio", "threads", "read-only", read_only,
                     "discard", read_only ? "ignore" : "unmap");
}

static json_t *overlay_node(const char *name, const char *path, const char *base, bool kept)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:{s:b, s:b}, s:{s:s, s:s, s:s, s:s}}", "driver",
                     "qcow2", "node-name", name, "backing", base, "discard", "unmap", "cache",
                     "direct", 0, "no-flush", !kept, "file", "driver", "file", "filename", path,
                     "aio", "threads", "discard", "unmap");
}

static void add_disk(struct cb_strv *argv, const char *name)
{
    cb_strv_add(argv, "-device");
    cb_strv_addf(argv, "virtio-blk-device,drive=%s,serial=%s", name, name);
}

static void add_drives(const struct qemu_spec *q, struct cb_strv *argv)
{
    for (size_t i = 0; i < q->n_drives; i++) {
        const struct qemu_drive *d = &q->drives[i];
        CB_AUTO_FREE char *name = cb_xasprintf("drive%zu", i);
        CB_AUTO_FREE char *base = cb_xasprintf("drive%zu-base", i);
        add_blockdev(argv, raw_node(d->overlay ? base : name, d->path, d->read_only || d->overlay));
        if (d->overlay)
            add_blockdev(argv, overlay_node(name, d->overlay, base, d->kept));
        add_disk(argv, name);
    }
}

static void add_disks(const struct qemu_spec *q, struct cb_strv *argv)
{
    if (!q->lower)
        return;
    if (q->overlay) {
        add_blockdev(argv, raw_node("base", q->lower, true));
        add_blockdev(argv, overlay_node("root", q->overlay, "base", false));
        add_disk(argv, "root");
        return;
    }
    add_blockdev(argv, raw_node("lower", q->lower, true));
    add_disk(argv, "lower");
    add_blockdev(argv, raw_node("scratch", q->scratch, false));
    add_disk(argv, "scratch");
    add_blockdev(argv, raw_node("output", q->output, false));
    add_disk(argv, "output");
}

static void add_network(const struct qemu_spec *q, struct cb_strv *argv)
{
    if (q->net == QEMU_NET_NONE)
        return;
    CB_AUTO_BUF b = CB_BUF_INIT((size_t)64 << 10);
    (void)cb_buf_adds(&b, "user,id=net0,ipv6=off,net=10.0.5.0/24,host=" GUEST_GATEWAY
                          ",dns=10.0.5.3,dhcpstart=" GUEST_ADDRESS);
    for (size_t i = 0; i < q->spec->n_forwards; i++) {
        bool host = q->net == QEMU_NET_HOST;
        (void)cb_buf_addf(
            &b, ",hostfwd=tcp:%s:%u-" GUEST_ADDRESS ":%u", host ? "127.0.0.1" : NETNS_ADDRESS,
            host ? q->spec->forwards[i][0] : qemu_forward_port(i), q->spec->forwards[i][1]);
    }
    cb_strv_add(argv, "-netdev");
    cb_strv_take(argv, cb_buf_take(&b));
    cb_strv_add(argv, "-device");
    cb_strv_add(argv, "virtio-net-device,netdev=net0");
}

static void add_console(const struct qemu_spec *q, struct cb_strv *argv)
{
    cb_strv_add(argv, "-chardev");
    if (!q->channels)
        cb_strv_add(argv, "stdio,id=console,signal=off");
    else if (q->terminal)
        cb_strv_addf(argv, "stdio,id=console,signal=%s,logfile=/proc/self/fd/%d,logappend=on",
                     q->spec->console_signals ? "on" : "off", QEMU_FD_CONSOLE);
    else
        cb_strv_addf(argv, "file,id=console,path=/proc/self/fd/%d,append=on", QEMU_FD_CONSOLE);
    cb_strv_add(argv, "-serial");
    cb_strv_add(argv, "chardev:console");
}

static void add_channels(struct cb_strv *argv)
{
    cb_strv_add(argv, "-device");
    cb_strv_add(argv, "virtio-serial-device");
    cb_strv_add(argv, "-chardev");
    cb_strv_addf(argv, "socket,id=agent,fd=%d", QEMU_FD_AGENT);
    cb_strv_add(argv, "-device");
    cb_strv_add(argv, "virtserialport,chardev=agent,name=capsule.agent.0");
    cb_strv_add(argv, "-chardev");
    cb_strv_addf(argv, "socket,id=qmp,fd=%d", QEMU_FD_QMP);
    cb_strv_add(argv, "-mon");
    cb_strv_add(argv, "chardev=qmp,mode=control");
}

char *qemu_kernel_words(const struct qemu_spec *q)
{
    CB_AUTO_BUF b = CB_BUF_INIT(4096);
    (void)cb_buf_addf(&b, "console=ttyS0 quiet panic=-1 random.trust_cpu=on capsule.mode=%s",
                      q->mode);
    if (q->net != QEMU_NET_NONE)
        (void)cb_buf_addf(
            &b, " capsule.ip=" GUEST_ADDRESS "/24 capsule.gw=" GUEST_GATEWAY " capsule.dns=%s",
            q->dns);
    /* microvm ends by a reboot: with -no-reboot that is QEMU's end */
    (void)cb_buf_adds(&b, " capsule.poweroff=reboot");
    if (q->parks)
        (void)cb_buf_adds(&b, " capsule.park=1");
    if (q->spec && q->spec->hostname) /* else the name that the image itself holds */
        (void)cb_buf_addf(&b, " capsule.hostname=%s", q->spec->hostname);
    if (q->spec && q->spec->cmdline_extra && *q->spec->cmdline_extra)
        (void)cb_buf_addf(&b, " %s", q->spec->cmdline_extra);
    return cb_buf_take(&b);
}

static void add_words(const struct qemu_spec *q, struct cb_strv *argv)
{
    CB_AUTO_FREE char *words = qemu_kernel_words(q);
    /* microvm has a timer chip without the port that Linux measures it by: when the quick
     * measurement is disturbed (a busy host) there is no second one and the guest hangs. The
     * counter is the host's, the same on all CPUs, so Linux is told its rate, and that it can be
     * trusted: then it is the guest's clock, which without KVM would be the timer interrupt. */
    if (q->tsc_khz)
        cb_strv_addf(argv, "%s tsc=reliable tsc_early_khz=%u", words, q->tsc_khz);
    else
        cb_strv_add(argv, words);
}

const char *qemu_machine(const struct qemu_spec *q)
{
    (void)q;
    return "microvm";
}

/* The value of the first line "@name : ..." of /proc/cpuinfo. Owned. */
static char *cpu_word(const struct cb_buf *info, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = info->data; p && *p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL) {
        if (strncmp(p, name, n) != 0 || (p[n] != '\t' && p[n] != ' ' && p[n] != ':'))
            continue;
        const char *v = p + n + strspn(p + n, "\t :");
        return cb_xstrndup(v, strcspn(v, "\n"));
    }
    return cb_xstrdup("unknown");
}

char *qemu_cpu(bool kvm)
{
    if (!kvm)
        return cb_xstrdup("max, emulated");
    CB_AUTO_BUF info = CB_BUF_INIT(CPUINFO_MAX);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    (void)cb_read_file("/proc/cpuinfo", CPUINFO_MAX, &info, &ignored);
    CB_AUTO_FREE char *model = cpu_word(&info, "model name");
    CB_AUTO_FREE char *microcode = cpu_word(&info, "microcode");
    CB_AUTO_FREE char *features = cpu_word(&info, "flags");
    struct cb_digest d;
    char hex[CB_HEX_LEN + 1];
    cb_sha256(features, strlen(features), &d);
    cb_digest_hex(&d, hex);
    return cb_xasprintf("%s, microcode %s, features %.12s", model, microcode, hex);
}

void qemu_command(const struct qemu_spec *q, struct cb_strv *argv)
{
    static const char *const base[] = {
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", NULL};
    cb_strv_add(argv, q->program ? q->program : QEMU_PROGRAM);
    for (size_t i = 0; base[i]; i++)
        cb_strv_add(argv, base[i]);
    /* ACPI is how the distribution's kernel finds the virtio-mmio devices */
    cb_strv_addf(argv, "%s,acpi=on", qemu_machine(q));
    cb_strv_add(argv, "-accel");
    cb_strv_add(argv, q->kvm ? "kvm" : "tcg,thread=multi");
    cb_strv_add(argv, "-cpu");
    cb_strv_add(argv, q->kvm ? "host" : "max");
    cb_strv_add(argv, "-smp");
    cb_strv_addf(argv, "%u", q->vcpus);
    cb_strv_add(argv, "-m");
    cb_strv_addf(argv, "%uM", q->memory_mib);
    if (q->sandbox) {
        cb_strv_add(argv, "-sandbox");
        cb_strv_add(argv,
                    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    }
    cb_strv_add(argv, "-kernel");
    cb_strv_add(argv, q->kernel);
    cb_strv_add(argv, "-initrd");
    cb_strv_add(argv, q->initramfs);
    cb_strv_add(argv, "-append");
    add_words(q, argv);
    if (q->incoming) {
        cb_strv_add(argv, "-S");
        cb_strv_add(argv, "-incoming");
        cb_strv_add(argv, "defer");
    }
    add_console(q, argv);
    if (q->channels)
        add_channels(argv);
    cb_strv_add(argv, "-device");
    cb_strv_add(argv, "virtio-rng-device");
    add_disks(q, argv);
    add_drives(q, argv);
    add_network(q, argv);
}
