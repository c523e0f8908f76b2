/* --with-kernel: what boots a file system that was exported: kernel, initramfs, command line, and a
 * configuration for Firecracker. */
#include "layers/export_private.h"

#include "layers/vmlinux.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* The file system is the first virtio disk. */
#define ROOT_WORDS "root=/dev/vda"
/* Firecracker has no ACPI power switch: the guest's reboot is its end. */
#define FIRECRACKER_WORDS ROOT_WORDS " reboot=k capsule.poweroff=reboot"

static int create(const struct export *x, const char *name, struct cb_error *err)
{
    CB_AUTO_FREE char *rel = cb_xasprintf("out/%s", name);
    CB_AUTO_FREE char *path = export_tmp(x, rel);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    return fd < 0 ? cb_fail_sys(err, errno, "make %s", path) : fd;
}

static int sync_file(int fd, const char *name, int rc, struct cb_error *err)
{
    return rc == 0 && fsync(fd) < 0 ? cb_fail_sys(err, errno, "sync %s", name) : rc;
}

static int put_blob(struct export *x, const struct cb_digest *d, const char *name,
                    struct cb_error *err)
{
    CB_AUTO_FD from = store_blob_open(x->s->store, d, NULL, err);
    if (from < 0)
        return cb_wrap(err, "%s of %s", name, x->s->t->name);
    CB_AUTO_FD to = create(x, name, err);
    if (to < 0)
        return to;
    return sync_file(to, name, export_copy(x, from, to, 0, err), err);
}

static int put_vmlinux(struct export *x, struct cb_error *err)
{
    CB_AUTO_FD from = store_blob_open(x->s->store, &x->s->t->kernel, NULL, err);
    if (from < 0)
        return cb_wrap(err, "the kernel of %s", x->s->t->name);
    CB_AUTO_FD to = create(x, "vmlinux", err);
    if (to < 0)
        return to;
    return sync_file(to, "vmlinux", vmlinux_extract(from, to, err), err);
}

static int put_text(struct export *x, const char *name, const char *text, struct cb_error *err)
{
    CB_AUTO_FD fd = create(x, name, err);
    if (fd < 0)
        return fd;
    return sync_file(fd, name, cb_write_all(fd, text, strlen(text), err), err);
}

/* Absolute, without asking whether it is there. Owned. */
static char *absolute(const char *path)
{
    if (path[0] == '/')
        return cb_xstrdup(path);
    CB_AUTO_FREE char *cwd = getcwd(NULL, 0);
    return cb_xasprintf("%s/%s", cwd ? cwd : ".", path);
}

static int put_firecracker(struct export *x, struct cb_error *err)
{
    const struct template_manifest *t = x->s->t;
    CB_AUTO_FREE char *dir = absolute(x->s->kernel_dir);
    CB_AUTO_FREE char *vmlinux = cb_xasprintf("%s/vmlinux", dir);
    CB_AUTO_FREE char *initramfs = cb_xasprintf("%s/initramfs", dir);
    CB_AUTO_FREE char *words = cb_xasprintf("%s %s", t->cmdline, FIRECRACKER_WORDS);
    CB_AUTO_FREE char *disk = absolute(export_to_stdout(x) ? "rootfs.ext4" : x->s->out);
    json_auto_t *j =
        json_pack("{s:{s:s, s:s, s:s}, s:[{s:s, s:s, s:b, s:b}], s:{s:i, s:i}}", "boot-source",
                  "kernel_image_path", vmlinux, "initrd_path", initramfs, "boot_args", words,
                  "drives", "drive_id", "rootfs", "path_on_host", disk, "is_root_device", 0,
                  "is_read_only", 0, "machine-config", "vcpu_count", (int)tier_vcpus(t->tier),
                  "mem_size_mib", (int)tier_memory_mib(t->tier));
    CB_AUTO_FREE char *text = j ? json_dumps(j, JSON_INDENT(2)) : NULL;
    if (!text)
        return cb_fail(err, CB_E_CONFIG, "--with-kernel: a path that is not UTF-8");
    CB_AUTO_FREE char *line = cb_xasprintf("%s\n", text);
    return put_text(x, "firecracker.json", line, err);
}

static int fill(struct export *x, struct cb_error *err)
{
    CB_AUTO_FREE char *out = export_tmp(x, "out");
    CB_AUTO_FREE char *words = cb_xasprintf("%s %s\n", x->s->t->cmdline, ROOT_WORDS);
    if (mkdir(out, 0755) < 0)
        return cb_fail_sys(err, errno, "make %s", out);
    int rc = put_blob(x, &x->s->t->kernel, "vmlinuz", err);
    if (rc == 0)
        rc = put_vmlinux(x, err);
    if (rc == 0)
        rc = put_blob(x, &x->s->t->initramfs, "initramfs", err);
    if (rc == 0)
        rc = put_text(x, "cmdline", words, err);
    return rc == 0 ? put_firecracker(x, err) : rc;
}

int export_make_kernel_dir(struct export *x, struct cb_error *err)
{
    struct export k = {.s = x->s}; /* it may lie on another file system */
    uint64_t ignored;
    int rc = export_begin(&k, x->s->kernel_dir, err);
    if (rc == 0)
        rc = fill(&k, err);
    if (rc == 0)
        rc = export_publish(&k, x->s->kernel_dir, &ignored, err);
    export_end(&k);
    return rc < 0 ? cb_wrap(err, "--with-kernel %s", x->s->kernel_dir) : 0;
}
