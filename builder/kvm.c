/* Does KVM run a guest here? /dev/kvm says nothing: inside some virtual machines it is there and
 * guests hang. So a guest is booted once, and the answer kept. */
#include "builder/machine.h"
#include "builder/qemu.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"
#include "support/proc.h"

#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>

#define PROBE_OK "capsule-agent: probe ok"

enum {
    DEADLINE_MS = 5000, /* a guest on KVM is there in well under a second */
    TICK_MS = 100,
    CONSOLE_MAX = 256 << 10,
    CACHE_MAX = 64 << 10,
    PROBE_MEMORY_MIB = 128,
};

CB_DEFINE_CLEANUP(json, json_t *, json_decref);

/* What the answer depends on: this host's kernel and boot, QEMU's program, the guest's kernel. */
static char *probe_key(const struct settings *s, const char *release)
{
    struct utsname u;
    CB_AUTO_BUF boot = CB_BUF_INIT(256);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    (void)cb_read_file("/proc/sys/kernel/random/boot_id", 256, &boot, &ignored);
    if (boot.len && boot.data[boot.len - 1] == '\n')
        boot.data[boot.len - 1] = '\0';
    CB_AUTO_FREE char *qemu = qemu_find(s);
    struct stat st = {0};
    if (!qemu || stat(qemu, &st) < 0 || uname(&u) < 0)
        return NULL;
    return cb_xasprintf("%s|%s|%s|%lld.%09ld|%lld|%s", u.release, boot.data ? boot.data : "", qemu,
                        (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec, (long long)st.st_size,
                        release);
}

/* 1 works, 0 does not, -1 not known. */
static int cached_answer(const char *path, const char *key, char **why)
{
    CB_AUTO_BUF text = CB_BUF_INIT(CACHE_MAX);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    if (cb_read_file(path, CACHE_MAX, &text, &ignored) < 0)
        return -1;
    CB_AUTO(json) root = json_loadb(text.data ? text.data : "", text.len, 0, NULL);
    const char *had = json_string_value(json_object_get(root, "key"));
    const char *reason = json_string_value(json_object_get(root, "why"));
    const json_t *works = json_object_get(root, "works");
    if (!had || !reason || !json_is_boolean(works) || strcmp(had, key) != 0)
        return -1;
    *why = cb_xstrdup(reason);
    return json_is_true(works);
}

static void keep_answer(const char *path, const char *key, bool works, const char *why)
{
    CB_AUTO(json) root = json_pack("{s:s, s:b, s:s}", "key", key, "works", works, "why", why);
    CB_AUTO_FREE char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    CB_AUTO_ERROR ignored = CB_ERROR_INIT; /* then the next build probes again */
    if (text)
        (void)cb_write_file(path, text, strlen(text), 0644, &ignored);
}

/* Reads the console until the agent's word, the end or the deadline. */
static bool wait_for_word(int fd, struct cb_buf *seen)
{
    int64_t end = cb_monotonic_ms() + DEADLINE_MS;
    while (cb_monotonic_ms() < end && !machine_canceled()) {
        struct pollfd w = {.fd = fd, .events = POLLIN};
        char tmp[4096];
        if (poll(&w, 1, TICK_MS) <= 0)
            continue;
        ssize_t n = read(fd, tmp, sizeof(tmp));
        if (n <= 0 || cb_buf_add(seen, tmp, (size_t)n) < 0)
            return false;
        if (memmem(seen->data, seen->len, PROBE_OK, strlen(PROBE_OK)))
            return true;
    }
    return false;
}

/* Boots the probe guest. 1 works, 0 does not; negative: could not be tried. */
static int boot_probe(const struct settings *s, const struct kernel *k, const char *initramfs,
                      char **why, struct cb_error *err)
{
    int p[2];
    if (pipe2(p, O_CLOEXEC) < 0)
        return cb_fail_sys(err, errno, "probe KVM");
    CB_AUTO_FD in = p[0];
    CB_AUTO_FD out = p[1];
    struct qemu_spec q = {.program = s->qemu,
                          .kernel = k->image,
                          .initramfs = initramfs,
                          .mode = "probe",
                          .kvm = true,
                          .sandbox = qemu_has_sandbox(s->qemu),
                          .vcpus = 1,
                          .memory_mib = PROBE_MEMORY_MIB};
    CB_AUTO_STRV argv = {0};
    qemu_command(&q, &argv);
    const struct cb_proc_fd fds[] = {{out, 1}, {out, 2}};
    const struct cb_proc_spec spec = {
        .argv = (const char *const *)argv.v, .fds = fds, .n_fds = 2, .own_session = true};
    pid_t pid = cb_proc_start(&spec, err);
    if (pid < 0)
        return (int)pid;
    cb_close(cb_take_fd(&out));
    CB_AUTO_BUF seen = CB_BUF_INIT(CONSOLE_MAX);
    int64_t start = cb_monotonic_ms();
    bool works = wait_for_word(in, &seen);
    int64_t took = cb_monotonic_ms() - start;
    cb_proc_stop(pid, false, 0);
    if (machine_canceled())
        return cb_fail(err, CB_E_CANCELED, "probe KVM: stopped");
    if (works) {
        *why = cb_xasprintf("KVM works (a guest was up in %lld ms)", (long long)took);
        return 1;
    }
    const char *slash = strrchr(argv.v[0], '/'); /* QEMU's messages begin with its name */
    CB_AUTO_FREE char *name = cb_xasprintf("%s: ", slash ? slash + 1 : argv.v[0]);
    char *said = seen.len ? strstr(seen.data, name) : NULL;
    if (said)
        said[strcspn(said, "\r\n")] = '\0';
    *why = said ? cb_xasprintf("KVM does not work here: %s", said)
                : cb_xasprintf("KVM does not run a guest here (nothing within %d s)",
                               DEADLINE_MS / 1000);
    return 0;
}

static int probe(const struct settings *s, const struct kernel *k, const char *agent_path,
                 char **why, struct cb_error *err)
{
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/tmp/kvm-probe-%d-XXXXXX", s->home, (int)getpid());
    char *leaf = strrchr(dir, '/');
    *leaf = '\0';
    int rc = cb_mkdir_p(dir, 0755, err);
    *leaf = '/';
    if (rc < 0)
        return rc;
    if (!mkdtemp(dir))
        return cb_fail_sys(err, errno, "make a folder in %s/tmp", s->home);
    CB_AUTO_FREE char *initramfs = cb_xasprintf("%s/initramfs", dir);
    rc = initramfs_make(k, agent_path, initramfs, err);
    if (rc == 0)
        rc = boot_probe(s, k, initramfs, why, err);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    (void)cb_remove_tree(dir, &ignored);
    return rc;
}

static int answer(const struct settings *s, const char *agent_path, char **why,
                  struct cb_error *err)
{
    CB_AUTO_FD dev = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (dev < 0) {
        *why = errno == ENOENT ? cb_xstrdup("no KVM here (/dev/kvm is missing)")
                               : cb_xasprintf("KVM cannot be used: /dev/kvm: %s", strerror(errno));
        return 0;
    }
    struct kernel k = {0};
    int rc = kernel_get(s, NULL, NULL, &k, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/kvm-probe.json", s->home);
    CB_AUTO_FREE char *key = probe_key(s, k.release);
    rc = key ? cached_answer(path, key, why) : -1;
    if (rc < 0) {
        rc = probe(s, &k, agent_path, why, err);
        if (rc >= 0 && key)
            keep_answer(path, key, rc == 1, *why);
    }
    kernel_release(&k);
    return rc;
}

bool kvm_probe(const struct settings *settings, const char *agent_path, char **why)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    char *text = NULL;
    int rc = answer(settings, agent_path, &text, &err);
    if (rc < 0)
        text = cb_xasprintf("KVM could not be tried: %s", err.msg);
    if (why)
        *why = text;
    else
        free(text);
    return rc == 1;
}

bool kvm_works(const struct settings *settings, char **why)
{
    CB_AUTO_FREE char *agent = machine_agent();
    if (agent)
        return kvm_probe(settings, agent, why);
    if (why)
        *why = cb_xstrdup("KVM could not be tried: capsule-agent is not where this program is");
    return false;
}
