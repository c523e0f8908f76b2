/* doctor_run(): what this machine has and lacks. Everything is tried, nothing is assumed from
 * names. */
#include "builder/builder.h"
#include "builder/container.h"
#include "builder/gateway.h"
#include "builder/netns.h"
#include "builder/qemu.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"
#include "support/proc.h"

#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#define SPACE_WANTED (4ull << 30)
#define SPACE_NEEDED (1ull << 30)
#define KEYRING "/usr/share/keyrings/debian-archive-keyring.gpg"

enum { VERSION_TIMEOUT_MS = 20000, VERSION_MAX = 64 << 10, LOOP_FILE_BYTES = 1 << 20 };

struct report {
    const struct settings *settings;
    struct doctor_line *lines;
    size_t n, cap;
    char *tmp; /* a folder for what is tried; NULL when home cannot be written; owned */
    char *agent;
};

void doctor_free(struct doctor_line *lines, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(lines[i].what);
        free(lines[i].found);
        free(lines[i].advice);
    }
    free(lines);
}

/* @found is taken; @advice may be NULL. */
static void add(struct report *r, int state, const char *what, char *found, const char *advice)
{
    r->lines = cb_xgrow(r->lines, &r->cap, r->n, sizeof(*r->lines));
    struct doctor_line *l = &r->lines[r->n++];
    *l = (struct doctor_line){
        .what = cb_xstrdup(what), .found = found, .advice = cb_xstrdup0(advice)};
    l->state = state == DOCTOR_OK ? DOCTOR_OK : state == DOCTOR_WARN ? DOCTOR_WARN : DOCTOR_BAD;
}

/* The error becomes a line; its hint the advice. The error is empty afterwards. */
static void add_error(struct report *r, int state, const char *what, struct cb_error *err)
{
    add(r, state, what, cb_xstrdup(err->msg ? err->msg : "failed"), err->hint);
    cb_error_clear(err);
}

/* The first line that "PROGRAM --version" prints, or the program's path. Owned. */
static char *version_of(const char *path, const char *option)
{
    const char *const argv[] = {path, option, NULL};
    const struct cb_proc_spec spec = {.argv = argv, .own_session = true};
    struct cb_proc_result res = {.status = -1};
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    char *line = NULL;
    if (cb_proc_run(&spec, NULL, VERSION_MAX, VERSION_TIMEOUT_MS, &res, &ignored) == 0 &&
        res.status == 0 && res.out.len && *res.out.data != '\n')
        line = cb_xstrndup(res.out.data, strcspn(res.out.data, "\n"));
    cb_proc_result_release(&res);
    return line ? line : cb_xstrdup(path);
}

static const struct tool {
    const char *name, *version, *package;
    int without; /* the state when it is missing */
    const char *why;
} tools[] = {
    {"slirp4netns", "--version", "slirp4netns", DOCTOR_BAD, "the network of builds"},
    {"nft", "--version", "nftables", DOCTOR_WARN, "holds what a config allows of the network"},
    {"gpgv", "--version", "gpgv debian-archive-keyring", DOCTOR_BAD, "verifies what Debian signed"},
    {"mmdebstrap", "--version", "mmdebstrap", DOCTOR_WARN, "makes minimal-debian"},
    {"runc", "--version", "runc", DOCTOR_WARN, "the container builder"},
};

static void check_qemu(struct report *r)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = qemu_find(r->settings);
    if (path) {
        add(r, DOCTOR_OK, QEMU_PROGRAM, version_of(path, "-version"), NULL);
        return;
    }
    (void)qemu_missing(r->settings, &err);
    add_error(r, DOCTOR_BAD, QEMU_PROGRAM, &err);
}

static void check_tools(struct report *r)
{
    check_qemu(r);
    for (size_t i = 0; i < sizeof(tools) / sizeof(tools[0]); i++) {
        const struct tool *t = &tools[i];
        CB_AUTO_FREE char *path = cb_find_program(t->name);
        if (path) {
            add(r, DOCTOR_OK, t->name, version_of(path, t->version), NULL);
            continue;
        }
        CB_AUTO_FREE char *advice = cb_xasprintf("apt-get install %s", t->package);
        if (strcmp(t->name, "runc") == 0) {
            CB_AUTO_FREE char *crun = cb_find_program("crun");
            if (crun) {
                add(r, DOCTOR_OK, "crun", version_of(crun, "--version"), NULL);
                continue;
            }
        }
        add(r, t->without, t->name, cb_xasprintf("missing: %s", t->why), advice);
    }
    if (!cb_path_exists(KEYRING))
        add(r, DOCTOR_BAD, "debian-archive-keyring",
            cb_xstrdup("missing: the keys that Debian signs with"),
            "apt-get install debian-archive-keyring");
    r->agent = machine_agent();
    if (r->agent)
        add(r, DOCTOR_OK, "capsule-agent", cb_xstrdup(r->agent), NULL);
    else
        add(r, DOCTOR_BAD, "capsule-agent", cb_xstrdup("not beside this program"),
            "install capsule-agent beside capsule-build");
}

/* Home's free space and whether it can be written. */
static void check_home(struct report *r)
{
    const char *home = r->settings->home;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/tmp", home);
    r->tmp = cb_xasprintf("%s/doctor-XXXXXX", dir);
    int rc = cb_mkdir_p(dir, 0755, &err);
    if (rc == 0 && !mkdtemp(r->tmp))
        rc = cb_fail_sys(&err, errno, "make a folder in %s", dir);
    if (rc < 0) {
        CB_AUTO_FREE char *advice =
            cb_xasprintf("make %s writable, or name another folder in CAPSULE_BUILD_HOME", home);
        add(r, DOCTOR_BAD, "home", cb_xstrdup(err.msg), advice);
        free(r->tmp);
        r->tmp = NULL;
        return;
    }
    add(r, DOCTOR_OK, "home", cb_xstrdup(home), NULL);
    struct statvfs v;
    if (statvfs(home, &v) < 0)
        return;
    uint64_t space = (uint64_t)v.f_bavail * v.f_frsize;
    char text[32];
    cb_human_bytes(space, text, sizeof(text));
    int state = space >= SPACE_WANTED   ? DOCTOR_OK
                : space >= SPACE_NEEDED ? DOCTOR_WARN
                                        : DOCTOR_BAD;
    add(r, state, "free space", cb_xasprintf("%s under %s", text, home),
        state == DOCTOR_OK ? NULL : "free some: builds want 4 GiB");
}

static void check_network(struct report *r)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (netns_probe(&err) < 0) {
        add_error(r, DOCTOR_BAD, "namespaces", &err);
        return;
    }
    add(r, DOCTOR_OK, "namespaces", cb_xstrdup("a network namespace can be made"), NULL);
    struct netns *ns = NULL;
    if (!r->tmp)
        return;
    const struct gateway_policy open = {.preset = PRESET_OPEN};
    const struct gateway_spec spec = {.policies = &open, .n_policies = 1, .optional = true};
    struct gateway *g = gateway_new(&spec);
    if (netns_open(r->tmp, true, g, &ns, &err) < 0)
        add_error(r, DOCTOR_BAD, "build network", &err);
    else
        add(r, DOCTOR_OK, "build network", cb_xstrdup("slirp4netns serves a namespace"), NULL);
    if (gateway_runs(g))
        add(r, DOCTOR_OK, "network policy", cb_xstrdup("a gateway stands between"), NULL);
    else if (gateway_why_not(g))
        add(r, DOCTOR_WARN, "network policy", cb_xstrdup(gateway_why_not(g)),
            "apt-get install nftables; modprobe nft_redir");
    netns_close(ns);
    gateway_free(g);
}

static void check_kernel(struct report *r)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct kernel k = {0};
    if (!r->tmp)
        return;
    if (kernel_get(r->settings, NULL, NULL, &k, &err) < 0) {
        add_error(r, DOCTOR_BAD, "kernel", &err);
        return;
    }
    add(r, DOCTOR_OK, "kernel", cb_xasprintf("%s (%s)", k.release, k.image), NULL);
    kernel_release(&k);
    if (!r->agent)
        return;
    char *why = NULL;
    bool works = kvm_probe(r->settings, r->agent, &why);
    CB_AUTO_FREE char *text = why;
    if (works)
        add(r, DOCTOR_OK, "kvm", cb_xstrdup(text), NULL);
    else
        add(r, DOCTOR_WARN, "kvm",
            cb_xasprintf("%s: guests are emulated, several times slower", text),
            strstr(text, "Permission denied") ? "usermod -aG kvm USER, then log in again" : NULL);
}

static void check_loop(struct report *r)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/loop", r->tmp);
    CB_AUTO_FREE char *data = cb_xcalloc(1, LOOP_FILE_BYTES);
    CB_AUTO_FREE char *device = NULL;
    int rc = cb_write_file(path, data, LOOP_FILE_BYTES, 0600, &err);
    CB_AUTO_FD fd = rc < 0 ? -1 : loop_attach(path, true, &device, &err);
    if (fd < 0)
        add_error(r, DOCTOR_WARN, "loop devices", &err);
    else
        add(r, DOCTOR_OK, "loop devices", cb_xasprintf("%s was free", device), NULL);
}

static void check_container(struct report *r)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *why = NULL;
    if (!r->tmp || !r->agent)
        return;
    if (geteuid() == 0)
        check_loop(r);
    container_forget(r->settings);
    if (container_probe(r->settings, r->agent, &why, &err) < 0)
        add_error(r, DOCTOR_WARN, "container builder", &err);
    else
        add(r, DOCTOR_OK, "container builder", cb_xasprintf("%s, with an overlay", why), NULL);
}

int doctor_run(const struct settings *settings, struct doctor_line **lines, size_t *n,
               struct cb_error *err)
{
    struct report r = {.settings = settings};
    check_tools(&r);
    check_home(&r);
    check_network(&r);
    check_kernel(&r);
    check_container(&r);
    int rc = r.tmp ? cb_remove_tree(r.tmp, err) : 0;
    free(r.tmp);
    free(r.agent);
    if (rc < 0) {
        doctor_free(r.lines, r.n);
        return rc;
    }
    *lines = r.lines;
    *n = r.n;
    return 0;
}
