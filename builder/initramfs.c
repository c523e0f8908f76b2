#include "builder/deb.h"
#include "builder/machine.h"
#include "builder/modinfo.h"
#include "builder/module_source.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <string.h>
#include <sys/stat.h>

enum {
    INITRAMFS_MAX = 256 << 20,
    MODULE_MAX = 64 << 20,
    AGENT_MAX = 64 << 20,
    BUILTIN_MAX = 4 << 20,
    MODULES_MAX = 64, /* in one initramfs */
    FILES_MAX = 100000,
};

/* What guests need, in the order in which it is loaded; dependencies come in front of each. Those
 * that are needed must be a module or built in. The others serve other machine types and kernels.
 */
static const struct wanted {
    const char *name;
    bool needed;
} wanted[] = {
    {"virtio_mmio", true},     {"virtio_pci", false},    {"virtio_blk", true},
    {"virtio_net", true},      {"virtio_console", true}, {"virtio_rng", false},
    {"crc32c_generic", false}, {"ext4", true},           {"overlay", true},
};

/* What disks and networks of other hypervisors need. Guests load it when their root is a partition
 * of an ordinary disk (`root=` on the command line), as in the images that are made to be carried
 * elsewhere. */
static const char *const hardware[] = {"virtio_scsi", "sd_mod",    "gve",          "ena",
                                       "hv_storvsc",  "hv_netvsc", "xen_blkfront", "xen_netfront"};

struct module_file {
    char *name; /* "virtio_blk"; owned */
    char *path; /* owned */
};
struct module {
    char *name;         /* owned */
    struct cb_buf data; /* the plain .ko */
};
struct composer {
    const struct kernel *kernel;
    const struct module_source *src; /* NULL: everything is built in */
    struct module_file *files;
    size_t n_files, cap_files;
    struct module mods[MODULES_MAX]; /* in load order */
    size_t n_mods;
    size_t n_always;       /* of them; the others are for other hardware */
    struct cb_buf builtin; /* modules.builtin, with a newline in front */
};

static void composer_release(struct composer *c)
{
    for (size_t i = 0; i < c->n_files; i++) {
        free(c->files[i].name);
        free(c->files[i].path);
    }
    free(c->files);
    for (size_t i = 0; i < c->n_mods; i++) {
        free(c->mods[i].name);
        cb_buf_release(&c->mods[i].data);
    }
    cb_buf_release(&c->builtin);
}

/* "virtio_blk" of "virtio-blk.ko.xz"; NULL when it is no module's file. Owned. */
static char *module_name(const char *file)
{
    const char *ko = strstr(file, ".ko");
    static const char *const ends[] = {".ko", ".ko.xz", ".ko.gz", ".ko.zst"};
    bool known = false;
    for (size_t i = 0; ko && i < sizeof(ends) / sizeof(ends[0]); i++)
        known |= strcmp(ko, ends[i]) == 0;
    if (!known)
        return NULL;
    char *name = cb_xstrndup(file, (size_t)(ko - file));
    for (char *p = name; *p; p++)
        if (*p == '-')
            *p = '_';
    return name;
}

static int add_file(void *to, const char *path, struct cb_error *err)
{
    struct composer *c = to;
    const char *slash = strrchr(path, '/');
    char *name = module_name(slash ? slash + 1 : path);
    if (!name)
        return 0;
    if (c->n_files == FILES_MAX) {
        free(name);
        return cb_fail(err, CB_E_LIMIT, "%s: more than %d modules", c->src->dir, FILES_MAX);
    }
    c->files = cb_xgrow(c->files, &c->cap_files, c->n_files, sizeof(*c->files));
    c->files[c->n_files++] = (struct module_file){name, cb_xstrdup(path)};
    return 0;
}

static int read_builtin(struct composer *c, struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/modules.builtin", c->src->dir);
    CB_AUTO_BUF text = CB_BUF_INIT(BUILTIN_MAX);
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    CB_AUTO_FD fd = module_source_open(c->src, path, BUILTIN_MAX, &why);
    int rc = fd < 0 ? fd : cb_read_fd(fd, path, BUILTIN_MAX, &text, &why);
    if (rc < 0 && rc != -CB_E_NOTFOUND)
        return cb_error_move(err, &why);
    for (size_t i = 0; i < text.len; i++)
        if (text.data[i] == '-')
            text.data[i] = '_';
    (void)cb_buf_add(&c->builtin, text.data ? text.data : "", text.len);
    return 0;
}

/* Is it compiled in? Unknown (no modules.builtin) counts as yes: then the guest finds out. */
static bool is_builtin(const struct composer *c, const char *name)
{
    if (c->builtin.len == 0)
        return true;
    CB_AUTO_FREE char *file = cb_xasprintf("/%s.ko", name);
    size_t n = strlen(file);
    for (const char *p = c->builtin.data; (p = strstr(p, file)) != NULL; p += n)
        if (p[n] == '\n' || p[n] == '\0')
            return true;
    return false;
}

static const struct module_file *find_file(const struct composer *c, const char *name)
{
    const struct module_file *best = NULL; /* by path: the order of a folder must not matter */
    for (size_t i = 0; i < c->n_files; i++)
        if (strcmp(c->files[i].name, name) == 0 &&
            (!best || strcmp(c->files[i].path, best->path) < 0))
            best = &c->files[i];
    return best;
}

static int add_data(void *arg, const char *p, size_t n, struct cb_error *err)
{
    if (cb_buf_add(arg, p, n) < 0)
        return cb_fail(err, CB_E_LIMIT, "more than %d bytes", MODULE_MAX);
    return 0;
}

static int add_module(struct composer *c, const char *name, unsigned depth, struct cb_error *err);

/* Adds the module in @f behind what it depends on. */
static int add_module_file(struct composer *c, const struct module_file *f, unsigned depth,
                           struct cb_error *err)
{
    CB_AUTO_FD fd = module_source_open(c->src, f->path, MODULE_MAX, err);
    if (fd < 0)
        return fd;
    CB_AUTO_BUF data = CB_BUF_INIT(MODULE_MAX);
    CB_AUTO_STRV depends = {0};
    int rc = deb_decompress(fd, f->path, add_data, &data, err);
    if (rc < 0)
        return rc;
    rc = modinfo_depends(data.data ? data.data : "", data.len, &depends, err);
    if (rc < 0)
        return cb_wrap(err, "%s", f->path);
    for (size_t i = 0; i < depends.n; i++) {
        rc = add_module(c, depends.v[i], depth + 1, err);
        if (rc < 0)
            return rc;
    }
    if (c->n_mods == MODULES_MAX)
        return cb_fail(err, CB_E_LIMIT, "more than %d kernel modules", MODULES_MAX);
    c->mods[c->n_mods++] = (struct module){cb_xstrdup(f->name), data};
    cb_buf_init(&data, MODULE_MAX); /* moved */
    return 0;
}

static int add_module(struct composer *c, const char *name, unsigned depth, struct cb_error *err)
{
    for (size_t i = 0; i < c->n_mods; i++)
        if (strcmp(c->mods[i].name, name) == 0)
            return 0;
    if (depth > MODULES_MAX)
        return cb_fail(err, CB_E_CORRUPT, "kernel modules depend on each other in a circle (%s)",
                       name);
    const struct module_file *f = find_file(c, name);
    return f ? add_module_file(c, f, depth, err) : 0;
}

static int lacks(const struct composer *c, const char *name, struct cb_error *err)
{
    bool of_image = c->src->im;
    cb_fail(err, of_image ? CB_E_CONFIG : CB_E_ENV, "kernel %s has no %s, built in or as a module",
            c->kernel->release, name);
    return cb_hint(err, of_image ? "Install the whole of another kernel's package in a layer, or "
                                   "leave `kernel` out."
                                 : "Use another kernel, or leave out --kernel.");
}

static int collect(struct composer *c, struct cb_error *err)
{
    if (!c->src)
        return 0;
    int rc = module_source_each(c->src, add_file, c, err);
    if (rc == 0)
        rc = read_builtin(c, err);
    for (size_t i = 0; rc == 0 && i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        if (wanted[i].needed && !find_file(c, wanted[i].name) && !is_builtin(c, wanted[i].name))
            return lacks(c, wanted[i].name, err);
        rc = add_module(c, wanted[i].name, 0, err);
    }
    c->n_always = c->n_mods;
    for (size_t i = 0; rc == 0 && i < sizeof(hardware) / sizeof(hardware[0]); i++)
        rc = add_module(c, hardware[i], 0, err);
    return rc;
}

/* The "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst): a header
 * of 8-digit hexadecimal fields, the name, the data, each padded to 4 bytes. Times and owners are 0
 * and inode numbers count up, so that the same content gives the same bytes. */
struct cpio {
    struct cb_buf out;
    unsigned inode;
};

static void pad4(struct cb_buf *b)
{
    while (b->len % 4 && !b->over)
        (void)cb_buf_add(b, "", 1);
}

static void cpio_add(struct cpio *c, const char *name, unsigned mode, unsigned major,
                     unsigned minor, const void *data, size_t n)
{
    (void)cb_buf_addf(&c->out, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
                      ++c->inode, mode, 0u, 0u, S_ISDIR(mode) ? 2u : 1u, 0u, (unsigned)n, 0u, 0u,
                      major, minor, (unsigned)(strlen(name) + 1), 0u);
    (void)cb_buf_add(&c->out, name, strlen(name) + 1);
    pad4(&c->out);
    if (n)
        (void)cb_buf_add(&c->out, data, n);
    pad4(&c->out);
}

static void cpio_all(struct cpio *cpio, const struct composer *c, const struct cb_buf *agent)
{
    static const char *const folders[] = {"dev", "proc", "sys", "run", "tmp", "mnt", "root"};
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++)
        cpio_add(cpio, folders[i], S_IFDIR | 0755, 0, 0, NULL, 0);
    /* Without it the kernel starts init with descriptors 0 to 2 closed. */
    cpio_add(cpio, "dev/console", S_IFCHR | 0600, 5, 1, NULL, 0);
    cpio_add(cpio, "init", S_IFREG | 0755, 0, 0, agent->data, agent->len);
    cpio_add(cpio, "modules", S_IFDIR | 0755, 0, 0, NULL, 0);
    CB_AUTO_BUF list = CB_BUF_INIT((size_t)MODULES_MAX * 256);
    CB_AUTO_BUF more = CB_BUF_INIT((size_t)MODULES_MAX * 256);
    for (size_t i = 0; i < c->n_mods; i++) {
        CB_AUTO_FREE char *name = cb_xasprintf("modules/%s.ko", c->mods[i].name);
        cpio_add(cpio, name, S_IFREG | 0644, 0, 0, c->mods[i].data.data, c->mods[i].data.len);
        (void)cb_buf_addf(i < c->n_always ? &list : &more, "/%s\n", name);
    }
    cpio_add(cpio, "modules.list", S_IFREG | 0644, 0, 0, list.data, list.len);
    if (more.len)
        cpio_add(cpio, "modules.hardware", S_IFREG | 0644, 0, 0, more.data, more.len);
    cpio_add(cpio, "TRAILER!!!", 0, 0, 0, NULL, 0);
}

int initramfs_make(const struct kernel *k, const char *agent_path, const char *path,
                   struct cb_error *err)
{
    const struct module_source folder = {.dir = k->modules};
    return initramfs_make_from(k, k->modules ? &folder : NULL, agent_path, path, err);
}

int initramfs_make_from(const struct kernel *k, const struct module_source *src,
                        const char *agent_path, const char *path, struct cb_error *err)
{
    CB_AUTO_BUF agent = CB_BUF_INIT(AGENT_MAX);
    int rc = cb_read_file(agent_path, AGENT_MAX, &agent, err);
    if (rc < 0)
        return cb_wrap(err, "read the agent");
    struct composer *c = cb_xcalloc(1, sizeof(*c));
    c->kernel = k;
    c->src = src;
    cb_buf_init(&c->builtin, BUILTIN_MAX);
    struct cpio cpio = {.out = CB_BUF_INIT(INITRAMFS_MAX)};
    rc = collect(c, err);
    if (rc == 0) {
        cpio_all(&cpio, c, &agent);
        rc = cpio.out.over ? cb_fail(err, CB_E_LIMIT, "more than %d bytes", INITRAMFS_MAX)
                           : cb_write_file(path, cpio.out.data, cpio.out.len, 0644, err);
    }
    cb_buf_release(&cpio.out);
    composer_release(c);
    free(c);
    return rc < 0 ? cb_wrap(err, "make the initramfs") : 0;
}
