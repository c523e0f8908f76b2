#include "builder/image_kernel.h"

#include "builder/bzimage.h"
#include "builder/module_source.h"
#include "layers/ext4_read.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define KERNEL_FILE_MAX ((size_t)256 << 20)
#define CANDIDATES_MAX 64
#define ADVICE                                                                                     \
    "Install a kernel with its modules in a layer (Debian: `apt-get install -y "                   \
    "--no-install-recommends linux-image-amd64`), or leave `kernel` out."

CB_DEFINE_CLEANUP(ext4_file, struct ext4_file *, ext4_file_close);
CB_DEFINE_CLEANUP(ext4_walk, struct ext4_walk *, ext4_walk_close);

struct candidate {
    char *path; /* in the image, without a slash in front; owned */
    uint32_t ino;
    char release[KERNEL_RELEASE_MAX + 1]; /* "": it is no bzImage */
    bool has_modules;
};

struct search {
    struct ext4_image *im;
    char *modules; /* where /lib/modules is; owned, NULL: it is not */
    struct candidate v[CANDIDATES_MAX];
    size_t n;
};

static void search_release(struct search *s)
{
    for (size_t i = 0; i < s->n; i++)
        free(s->v[i].path);
    free(s->modules);
    ext4_image_close(s->im);
}

void image_kernel_release(struct image_kernel *k)
{
    kernel_release(&k->kernel);
    free(k->from);
    free(k->initramfs);
    *k = (struct image_kernel){0};
}

/* The folder behind @path, links followed: where it is (owned), or NULL. */
static int find_folder(struct ext4_image *im, const char *path, char **out, struct cb_error *err)
{
    struct ext4_entry e;
    int rc = ext4_image_find(im, path, &e, err);
    *out = rc > 0 && S_ISDIR(e.mode) ? cb_xstrdup(e.path) : NULL;
    return rc < 0 ? rc : 0;
}

/* What is left of @path behind folder @dir and a slash, or NULL. */
static const char *below(const char *path, const char *dir)
{
    size_t n = dir ? strlen(dir) : 0;
    return n && strncmp(path, dir, n) == 0 && path[n] == '/' ? path + n + 1 : NULL;
}

/* /boot/vmlinuz*, or RELEASE/vmlinuz below the modules. */
static bool may_be_kernel(const struct search *s, const struct ext4_entry *e)
{
    const char *in_boot = below(e->path, "boot"), *in_modules = below(e->path, s->modules);
    if (!S_ISREG(e->mode))
        return false;
    if (in_boot)
        return strncmp(in_boot, "vmlinuz", 7) == 0 && !strchr(in_boot, '/');
    return in_modules && strchr(in_modules, '/') &&
           strcmp(strchr(in_modules, '/'), "/vmlinuz") == 0;
}

/* May there be one in folder @e? */
static bool is_on_the_way(const struct search *s, const struct ext4_entry *e)
{
    const char *in_modules = below(e->path, s->modules);
    return strcmp(e->path, ".") == 0 || strcmp(e->path, "boot") == 0 ||
           (s->modules && (strcmp(e->path, s->modules) == 0 || below(s->modules, e->path))) ||
           (in_modules && !strchr(in_modules, '/'));
}

static int find_candidates(struct search *s, struct cb_error *err)
{
    CB_AUTO(ext4_walk) w = NULL;
    struct ext4_entry e;
    int rc = ext4_walk_open(s->im, 0, &w, err);
    while (rc == 0 && (rc = ext4_walk_next(w, &e, err)) == 1) {
        rc = 0;
        if (S_ISDIR(e.mode) && !is_on_the_way(s, &e))
            ext4_walk_skip(w);
        if (!may_be_kernel(s, &e))
            continue;
        if (s->n == CANDIDATES_MAX)
            return cb_fail(err, CB_E_LIMIT, "kernel: image: more than %d kernels", CANDIDATES_MAX);
        s->v[s->n++] = (struct candidate){.path = cb_xstrdup(e.path), .ino = e.ino};
    }
    return rc;
}

static int read_candidate(struct search *s, struct candidate *c, struct cb_error *err)
{
    CB_AUTO(ext4_file) f = NULL;
    CB_AUTO_FREE char *head = cb_xmalloc(BZIMAGE_HEAD);
    int rc = ext4_file_open(s->im, c->ino, &f, err);
    int64_t n = rc < 0 ? rc : ext4_file_pread(f, head, BZIMAGE_HEAD, 0, err);
    if (n < 0)
        return cb_wrap(err, "kernel: image: /%s", c->path);
    if (!bzimage_release(head, (size_t)n, c->release)) {
        c->release[0] = '\0';
        return 0;
    }
    CB_AUTO_FREE char *want = cb_xasprintf("lib/modules/%s", c->release);
    CB_AUTO_FREE char *found = NULL;
    rc = find_folder(s->im, want, &found, err);
    c->has_modules = found != NULL;
    return rc;
}

/* Is @a the better one? */
static bool is_better(const struct candidate *a, const struct candidate *b)
{
    if (!b)
        return true;
    if (a->has_modules != b->has_modules)
        return a->has_modules;
    return strverscmp(a->release, b->release) > 0;
}

static int choose(struct search *s, const struct candidate **out, struct cb_error *err)
{
    const struct candidate *best = NULL;
    for (size_t i = 0; i < s->n; i++) {
        int rc = read_candidate(s, &s->v[i], err);
        if (rc < 0)
            return rc;
        if (is_better(&s->v[i], best))
            best = &s->v[i];
    }
    *out = best;
    if (!best)
        cb_fail(err, CB_E_CONFIG,
                "kernel: image: the image has no kernel, neither /boot/vmlinuz* nor "
                "/lib/modules/RELEASE/vmlinuz");
    else if (!best->release[0])
        cb_fail(err, CB_E_CONFIG, "kernel: image: /%s is not a Linux bzImage", best->path);
    else if (!best->has_modules)
        cb_fail(err, CB_E_CONFIG,
                "kernel: image: /%s is kernel %s, and the image has no /lib/modules/%s", best->path,
                best->release, best->release);
    else
        return 0;
    return cb_hint(err, ADVICE);
}

static int copy_out(struct search *s, const struct candidate *c, const char *to,
                    struct cb_error *err)
{
    const struct module_source src = {.im = s->im};
    CB_AUTO_BUF data = CB_BUF_INIT(KERNEL_FILE_MAX);
    CB_AUTO_FD fd = module_source_open(&src, c->path, KERNEL_FILE_MAX, err);
    if (fd < 0)
        return fd;
    int rc = cb_read_fd(fd, c->path, KERNEL_FILE_MAX, &data, err);
    return rc < 0 ? rc : cb_write_file(to, data.data, data.len, 0644, err);
}

static int make_initramfs(struct search *s, const struct image_kernel *k, const char *agent_path,
                          struct cb_error *err)
{
    CB_AUTO_FREE char *want = cb_xasprintf("lib/modules/%s", k->kernel.release);
    CB_AUTO_FREE char *dir = NULL;
    int rc = find_folder(s->im, want, &dir, err);
    if (rc < 0)
        return rc;
    const struct module_source src = {.dir = dir, .im = s->im};
    rc = initramfs_make_from(&k->kernel, &src, agent_path, k->initramfs, err);
    return rc < 0 ? cb_wrap(err, "kernel: image") : 0;
}

int image_kernel_take(const char *image, const char *agent_path, const char *dir,
                      struct image_kernel *out, struct cb_error *err)
{
    struct search s = {0};
    const struct candidate *c = NULL;
    int rc = cb_mkdir_p(dir, 0700, err);
    if (rc >= 0)
        rc = ext4_image_open(image, 0, &s.im, err);
    if (rc >= 0)
        rc = find_folder(s.im, "lib/modules", &s.modules, err);
    if (rc >= 0)
        rc = find_candidates(&s, err);
    if (rc >= 0)
        rc = choose(&s, &c, err);
    if (rc >= 0) {
        *out = (struct image_kernel){
            .kernel = {.image = cb_xasprintf("%s/vmlinuz", dir), .release = cb_xstrdup(c->release)},
            .from = cb_xasprintf("/%s", c->path),
            .initramfs = cb_xasprintf("%s/initramfs", dir)};
        rc = copy_out(&s, c, out->kernel.image, err);
    }
    if (rc >= 0)
        rc = make_initramfs(&s, out, agent_path, err);
    if (rc < 0)
        image_kernel_release(out);
    search_release(&s);
    return rc < 0 ? rc : 0;
}
