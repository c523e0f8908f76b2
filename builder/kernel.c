#include "builder/bzimage.h"
#include "builder/deb.h"
#include "builder/debian.h"
#include "builder/fetch.h"
#include "builder/machine.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"
#include "support/proc.h"

#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>

/* The distribution whose cloud kernel guests boot, and the key ring that its lists are signed with.
 */
#define SUITE "bookworm"
#define META_PACKAGE "linux-image-cloud-amd64"
#define KERNEL_PREFIX "linux-image-"
#define KERNEL_SUFFIX "cloud-amd64"
#define LIST_PATH "main/binary-amd64/Packages.xz"
#define KEYRING "/usr/share/keyrings/debian-archive-keyring.gpg"

enum {
    RELEASE_FILE_MAX = 4 << 20,
    GPGV_TIMEOUT_MS = 60000,
    CURRENT_MAX = 64 << 10,
    LOCK_POLL_MS = 100,
};

struct getter {
    const struct settings *settings;
    void (*note)(void *, const char *);
    void *arg;
    char *dir; /* home/kernels; owned */
    char *tmp; /* home/kernels/.tmp: there while the lock is held; owned */
};

CB_DEFINE_CLEANUP(json, json_t *, json_decref);

void kernel_release(struct kernel *k)
{
    free(k->image);
    free(k->modules);
    free(k->release);
    *k = (struct kernel){0};
}

static void say(const struct getter *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(const struct getter *g, const char *fmt, ...)
{
    if (!g->note)
        return;
    va_list ap;
    va_start(ap, fmt);
    CB_AUTO_FREE char *text = cb_xvasprintf(fmt, ap);
    va_end(ap);
    g->note(g->arg, text);
}

static int image_release(const char *path, char **out, struct cb_error *err)
{
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        cb_fail(err, CB_E_ENV, "no kernel to boot: %s: %s", path, strerror(errno));
        return cb_hint(err, "Give the path of a bzImage with --kernel, or leave it out.");
    }
    char text[KERNEL_RELEASE_MAX + 1];
    CB_AUTO_FREE char *head = cb_xmalloc(BZIMAGE_HEAD);
    ssize_t n = pread(fd, head, BZIMAGE_HEAD, 0);
    if (n < 0 || !bzimage_release(head, (size_t)n, text)) {
        cb_fail(err, CB_E_ENV, "no kernel to boot: %s is not a Linux bzImage", path);
        return cb_hint(err,
                       "Give a compressed x86-64 kernel (bzImage, usually /boot/vmlinuz-...).");
    }
    *out = cb_xstrdup(text);
    return 0;
}

/* DIR/lib/modules/RELEASE, where DIR holds the kernel or is the folder above "boot". */
static char *modules_beside(const char *image, const char *release)
{
    CB_AUTO_FREE char *dir = cb_xstrdup(image);
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir ? 1 : 0] = '\0';
    static const char *const ups[] = {"", "/.."};
    for (size_t i = 0; i < sizeof(ups) / sizeof(ups[0]); i++) {
        char *m = cb_xasprintf("%s%s/lib/modules/%s", slash ? dir : ".", ups[i], release);
        if (cb_path_exists(m))
            return m;
        free(m);
    }
    return NULL;
}

static int configured_kernel(const char *path, struct kernel *out, struct cb_error *err)
{
    char *release = NULL;
    int rc = image_release(path, &release, err);
    if (rc < 0)
        return rc;
    *out = (struct kernel){
        .image = cb_xstrdup(path), .modules = modules_beside(path, release), .release = release};
    return 0;
}

/* What current.json pins. -CB_E_NOTFOUND when there is none that can be used. */
static int pinned_kernel(const struct getter *g, struct kernel *out, struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/current.json", g->dir);
    CB_AUTO_BUF text = CB_BUF_INIT(CURRENT_MAX);
    int rc = cb_read_file(path, CURRENT_MAX, &text, err);
    if (rc < 0)
        return rc;
    CB_AUTO(json)
    root = json_loadb(text.data ? text.data : "", text.len, JSON_REJECT_DUPLICATES, NULL);
    const char *release = json_string_value(json_object_get(root, "release"));
    if (!release || !kernel_release_ok(release))
        return cb_fail(err, CB_E_NOTFOUND, "%s names no kernel", path);
    struct kernel k = {.image = cb_xasprintf("%s/%s/vmlinuz", g->dir, release),
                       .modules = cb_xasprintf("%s/%s/lib/modules/%s", g->dir, release, release),
                       .release = cb_xstrdup(release)};
    if (!cb_path_exists(k.image)) {
        cb_fail(err, CB_E_NOTFOUND, "%s is gone", k.image);
        kernel_release(&k);
        return -CB_E_NOTFOUND;
    }
    if (!cb_path_exists(k.modules)) {
        free(k.modules);
        k.modules = NULL;
    }
    *out = k;
    return 0;
}

/* Opens @tmp/@name, new and empty. */
static int temp_file(const struct getter *g, const char *name, struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", g->tmp, name);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    return fd < 0 ? cb_fail_sys(err, errno, "make %s", path) : fd;
}

/* Downloads @rel of the archive and returns an owned fd at its start. */
static int download(const struct getter *g, const char *rel, const char *what, uint64_t max,
                    const char *name, struct fetch_result *res, struct cb_error *err)
{
    CB_AUTO_FD fd = temp_file(g, name, err);
    if (fd < 0)
        return fd;
    const char *base = g->settings->debian_mirror;
    size_t n = strlen(base);
    while (n && base[n - 1] == '/')
        n--;
    CB_AUTO_FREE char *url = cb_xasprintf("%.*s/%s", (int)n, base, rel);
    struct fetch_spec spec = {
        .url = url, .what = what, .max = max, .note = g->note, .note_arg = g->arg};
    int rc = fetch_to_fd(&spec, fd, res, err);
    if (rc < 0)
        return rc;
    if (lseek(fd, 0, SEEK_SET) < 0)
        return cb_fail_sys(err, errno, "read %s", name);
    return cb_take_fd(&fd);
}

static bool has_status(const char *text, const char *word)
{
    CB_AUTO_FREE char *line = cb_xasprintf("[GNUPG:] %s ", word);
    for (const char *p = text; p; p = strchr(p, '\n'), p = p ? p + 1 : NULL)
        if (strncmp(p, line, strlen(line)) == 0)
            return true;
    return false;
}

/* Checks InRelease's signature; @text gets what was signed and nothing else. gpgv's exit status is
 * no judge: a list signed by several keys, one of which an older key ring lacks, ends with 2. */
static int verify_release(const struct getter *g, struct cb_buf *text, struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/InRelease", g->tmp);
    if (!cb_path_exists(KEYRING)) {
        cb_fail(err, CB_E_ENV, "no kernel to boot: %s is missing", KEYRING);
        return cb_hint(err, "apt-get install debian-archive-keyring");
    }
    const char *const argv[] = {"gpgv",     "--keyring", KEYRING, "--status-fd", "2",
                                "--output", "-",         path,    NULL};
    const struct cb_proc_spec spec = {.argv = argv, .own_session = true};
    struct cb_proc_result res;
    int rc = cb_proc_run(&spec, NULL, RELEASE_FILE_MAX, GPGV_TIMEOUT_MS, &res, err);
    if (rc == -CB_E_ENV)
        cb_hint(err, "apt-get install gpgv");
    if (rc == 0) {
        const char *status = res.err.data ? res.err.data : "";
        if (!has_status(status, "GOODSIG") || !has_status(status, "VALIDSIG") ||
            has_status(status, "BADSIG") || res.out.len == 0) {
            rc = cb_fail(err, CB_E_UNTRUSTED,
                         "%s/dists/" SUITE "/InRelease is not signed by Debian's archive keys",
                         g->settings->debian_mirror);
            cb_hint(err,
                    "Check debian_mirror in the settings; an old debian-archive-keyring may also "
                    "lack the key.");
        } else {
            rc = cb_buf_add(text, res.out.data, res.out.len);
        }
    }
    cb_proc_result_release(&res);
    if (rc < 0)
        return rc;
    CB_AUTO_FREE char *codename = debian_release_field(text->data, "Codename");
    if (!codename || strcmp(codename, SUITE) != 0)
        return cb_fail(err, CB_E_UNTRUSTED, "%s: the list for " SUITE " is one for %s",
                       g->settings->debian_mirror, codename ? codename : "nothing");
    return 0;
}

static int feed_list(void *arg, const char *p, size_t n, struct cb_error *err)
{
    return debian_list_feed(arg, p, n, err);
}

/* Gets and verifies the archive's lists; @list then holds the kernels. */
static int get_list(const struct getter *g, struct debian_list *list, struct cb_error *err)
{
    struct fetch_result res = {0};
    CB_AUTO_FD release = download(g, "dists/" SUITE "/InRelease", "Debian's release file",
                                  RELEASE_FILE_MAX, "InRelease", &res, err);
    if (release < 0)
        return release;
    CB_AUTO_BUF text = CB_BUF_INIT(RELEASE_FILE_MAX);
    int rc = verify_release(g, &text, err);
    uint64_t size = 0;
    struct cb_digest digest = {0};
    if (rc == 0)
        rc = debian_release_file(text.data, LIST_PATH, &size, &digest, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FD packages = download(g, "dists/" SUITE "/" LIST_PATH, "Debian's package list", size,
                                   "Packages.xz", &res, err);
    if (packages < 0)
        return packages;
    if (res.size != size || !cb_digest_eq(&res.digest, &digest))
        return cb_fail(err, CB_E_UNTRUSTED, "%s: the package list is not the one that was signed",
                       g->settings->debian_mirror);
    rc = deb_decompress(packages, "package list", feed_list, list, err);
    return rc < 0 ? rc : debian_list_end(list, err);
}

/* Writes current.json: which kernel from now on. */
static int pin(const struct getter *g, const struct debian_package *p, const char *release,
               const struct cb_digest *image, struct cb_error *err)
{
    char deb[CB_DIGEST_LEN + 1], img[CB_DIGEST_LEN + 1];
    cb_digest_text(&p->sha256, deb);
    cb_digest_text(image, img);
    CB_AUTO(json)
    root = json_pack("{s:s, s:s, s:s, s:s, s:s}", "release", release, "package", p->name, "version",
                     p->version, "deb", deb, "vmlinuz", img);
    CB_AUTO_FREE char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    if (!text)
        return cb_fail(err, CB_E_BUG, "current.json cannot be written");
    CB_AUTO_FREE char *path = cb_xasprintf("%s/current.json", g->dir);
    return cb_write_file(path, text, strlen(text), 0644, err);
}

/* Unpacks the verified package beside its final place and moves it there. */
static int publish(const struct getter *g, const struct debian_package *p, int deb,
                   struct cb_error *err)
{
    CB_AUTO_FREE char *release = cb_xstrdup(p->name + strlen(KERNEL_PREFIX));
    if (!kernel_release_ok(release))
        return cb_fail(err, CB_E_CORRUPT, "package list: %s is no kernel's name", p->name);
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/kernel", g->tmp);
    CB_AUTO_FREE char *final = cb_xasprintf("%s/%s", g->dir, release);
    int rc = cb_mkdir_p(dir, 0755, err);
    if (rc == 0)
        rc = deb_unpack_kernel(deb, release, dir, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FREE char *image = cb_xasprintf("%s/vmlinuz", dir);
    CB_AUTO_FD fd = open(image, O_RDONLY | O_CLOEXEC);
    struct cb_digest digest;
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s", image);
    rc = cb_sha256_fd(fd, &digest, err);
    if (rc == 0 && syncfs(fd) < 0) /* hundreds of small files: all of them before the rename */
        rc = cb_fail_sys(err, errno, "write %s", dir);
    if (rc == 0)
        rc = cb_remove_tree(final, err); /* what a crash left, or whose pin is gone */
    if (rc == 0 && rename(dir, final) < 0)
        rc = cb_fail_sys(err, errno, "make %s", final);
    if (rc == 0)
        rc = cb_fsync_dir(g->dir, err);
    if (rc == 0)
        rc = pin(g, p, release, &digest, err);
    return rc;
}

static int download_kernel(const struct getter *g, struct cb_error *err)
{
    int rc = cb_remove_tree(g->tmp, err);
    if (rc == 0)
        rc = cb_mkdir_p(g->tmp, 0755, err);
    if (rc < 0)
        return rc;
    struct debian_list list;
    debian_list_init(&list, KERNEL_PREFIX, KERNEL_SUFFIX);
    say(g, "no kernel yet: asking %s for %s", g->settings->debian_mirror, META_PACKAGE);
    rc = get_list(g, &list, err);
    const struct debian_package *p = NULL;
    if (rc == 0)
        rc = debian_list_resolve(&list, META_PACKAGE, &p, err);
    if (rc == 0) {
        char size[32];
        cb_human_bytes(p->size, size, sizeof(size));
        say(g, "downloading %s %s (%s)", p->name, p->version, size);
        struct fetch_result res = {0};
        CB_AUTO_FD deb = download(g, p->filename, p->name, p->size, "kernel.deb", &res, err);
        if (deb < 0)
            rc = deb;
        else if (res.size != p->size || !cb_digest_eq(&res.digest, &p->sha256))
            rc = cb_fail(err, CB_E_UNTRUSTED, "%s: %s is not the package that was signed",
                         g->settings->debian_mirror, p->filename);
        else
            rc = publish(g, p, deb, err);
        if (rc == 0)
            say(g, "kernel %s is in %s", p->name + strlen(KERNEL_PREFIX), g->dir);
    }
    debian_list_release(&list);
    return rc;
}

/* To a user who has no network, "name not resolved" is not the news: there is no kernel is. */
static int no_kernel(struct cb_error *err, struct cb_error *failed)
{
    if (failed->code == CB_E_NET || failed->code == CB_E_NOTFOUND || failed->code == CB_E_TIMEOUT) {
        failed->code = CB_E_ENV;
        cb_wrap(failed, "no kernel to boot");
        cb_hint(failed, "Connect this machine to the network once, set debian_mirror in the "
                        "settings, or give a bzImage with --kernel FILE.");
    } else {
        cb_wrap(failed, "get a kernel");
    }
    return cb_error_move(err, failed);
}

/* The lock of home/kernels, waited for: whoever has it is downloading the same kernel. */
static int lock_kernels(const struct getter *g, struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/.lock", g->dir);
    for (bool said = false;;) {
        CB_AUTO_ERROR busy = CB_ERROR_INIT;
        int fd = cb_lock_file(path, false, &busy);
        if (fd != -CB_E_CONFLICT)
            return fd >= 0 ? fd : cb_error_move(err, &busy);
        if (machine_canceled())
            return cb_fail(err, CB_E_CANCELED, "get a kernel: stopped");
        if (!said)
            say(g, "another build is downloading the kernel: waiting for it");
        said = true;
        (void)poll(NULL, 0, LOCK_POLL_MS);
    }
}

static int get_pinned_or_download(const struct getter *g, struct kernel *out, struct cb_error *err)
{
    CB_AUTO_ERROR missing = CB_ERROR_INIT;
    if (pinned_kernel(g, out, &missing) == 0)
        return 0;
    int rc = cb_mkdir_p(g->dir, 0755, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FD lock = lock_kernels(g, err);
    if (lock < 0)
        return lock;
    cb_error_clear(&missing);
    if (pinned_kernel(g, out, &missing) == 0) /* another process was first */
        return 0;
    CB_AUTO_ERROR failed = CB_ERROR_INIT;
    rc = download_kernel(g, &failed);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    (void)cb_remove_tree(g->tmp, &ignored);
    if (rc == 0)
        rc = pinned_kernel(g, out, &failed);
    return rc < 0 ? no_kernel(err, &failed) : 0;
}

int kernel_get(const struct settings *settings, void (*note)(void *, const char *), void *arg,
               struct kernel *out, struct cb_error *err)
{
    if (settings->kernel)
        return configured_kernel(settings->kernel, out, err);
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/kernels", settings->home);
    CB_AUTO_FREE char *tmp = cb_xasprintf("%s/.tmp", dir);
    const struct getter g = {settings, note, arg, dir, tmp};
    return get_pinned_or_download(&g, out, err);
}

int kernel_present(const struct settings *settings, struct kernel *out, struct cb_error *err)
{
    if (settings->kernel)
        return configured_kernel(settings->kernel, out, err);
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/kernels", settings->home);
    const struct getter g = {.settings = settings, .dir = dir};
    return pinned_kernel(&g, out, err);
}
