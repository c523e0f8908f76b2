/* drives: file systems of their own beside the root. While building, the machine has them at
 * /drives/N, and a layer's init puts those of the layer where they belong, in its own mount
 * namespace alone: nothing of what is on them is ever in a diff. In a booted machine they are found
 * by label. */
#include "builder/agent/agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* linux/mount.h and linux/fs.h, which libcs have or have not. */
#define TREE_CLONE 1u
#define TREE_CLOEXEC O_CLOEXEC
#define MOVE_EMPTY_PATH 4u
#define TRIM_UNUSED 0xc0185879ul /* FITRIM */
#define TRIM_LEAST 65536u

/* Where an ext4 file system says that it is one, and its name. */
enum { SUPER_AT = 1024, SUPER_LEN = 256, MAGIC_AT = 56, LABEL_AT = 120, LABEL_LEN = 16 };

/* --- in a build --- */

void drives_release(struct drive_place *v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(v[i].path);
        v[i].path = NULL;
    }
}

static int take_path(struct layer_spec *l, const struct frame_field *x, bool *named, struct fail *f)
{
    bool ok = *named && x->len > 1 && x->data[0] == '/' && frame_is_text(x, DRIVE_PATH_MAX);
    if (!ok)
        return fail_set(f, FAIL_PROTOCOL, "a drive without a place for it");
    l->drives[l->n_drives++].path = ag_strndup(x->data, x->len);
    *named = false;
    return 0;
}

int drives_parse(struct layer_spec *l, const uint8_t *p, size_t n, struct fail *f)
{
    struct frame_field x;
    bool named = false;
    uint64_t disk = 0;
    int got;
    drives_release(l->drives, l->n_drives);
    l->n_drives = 0;
    free(l->drives_user);
    l->drives_user = NULL;
    for (const uint8_t *end = p + n; (got = frame_next(&p, end, &x)) != 0;) {
        if (got < 0)
            return fail_set(f, FAIL_PROTOCOL, "a field that does not end");
        if (x.tag == TAG_DRIVE) {
            if (named || l->n_drives == AG_DRIVES_MAX || !frame_number(&x, &disk) ||
                disk >= AG_DRIVES_MAX)
                return fail_set(f, FAIL_PROTOCOL, "a drive that cannot be");
            l->drives[l->n_drives].disk = (unsigned)disk;
            named = true;
        } else if (x.tag == TAG_DRIVE_PATH && take_path(l, &x, &named, f) < 0) {
            return -1;
        } else if (x.tag == TAG_USER && !l->drives_user && frame_is_text(&x, FRAME_REQUEST_MAX)) {
            l->drives_user = ag_strndup(x.data, x.len);
        }
    }
    return named ? fail_set(f, FAIL_PROTOCOL, "a drive without a place for it") : 0;
}

static void folder_of(const char *root, unsigned disk, char *out, size_t size)
{
    (void)snprintf(out, size, "%s/%u", root, disk);
}

int drives_attach(const struct layer_spec *l, const char *root, bool machine, struct fail *f)
{
    for (size_t i = 0; machine && i < l->n_drives; i++) {
        char at[256], serial[16];
        folder_of(root, l->drives[i].disk, at, sizeof at);
        (void)snprintf(serial, sizeof serial, "drive%u", l->drives[i].disk);
        if (make_dirs(root, 0755) < 0)
            return fail_sys(f, errno, "make %s", root);
        if (disk_mount(serial, at, MS_NOATIME, NULL, f) < 0)
            return -1;
    }
    return 0;
}

/* What is free is zeros for whoever stores it, though files were there. */
static void trim(const char *at)
{
    struct {
        uint64_t start, len, least;
    } range = {0, UINT64_MAX, TRIM_LEAST};
    int fd = open(at, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 && ioctl(fd, (int)TRIM_UNUSED, &range) < 0) {
        /* more bytes to keep, nothing else */
    }
    if (fd >= 0)
        (void)close(fd);
}

int drives_detach(const struct layer_spec *l, const char *root, bool machine, struct fail *f)
{
    for (size_t i = 0; i < l->n_drives; i++) {
        char at[256];
        folder_of(root, l->drives[i].disk, at, sizeof at);
        trim(at);
        /* Everything is on the disk then, its journal is empty, and nothing can follow. */
        if (mount(NULL, at, NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0)
            return fail_sys(f, errno, "end the writing to the drive at %s", l->drives[i].path);
        if (machine && umount2(at, 0) < 0)
            return fail_sys(f, errno, "unmount the drive of %s", l->drives[i].path);
    }
    return 0;
}

int drives_open(const struct layer_spec *l, const char *root, int *fds, struct fail *f)
{
    for (size_t i = 0; i < l->n_drives; i++) {
        char at[256];
        folder_of(root, l->drives[i].disk, at, sizeof at);
        fds[i] = (int)syscall(SYS_open_tree, AT_FDCWD, at, TREE_CLONE | TREE_CLOEXEC);
        if (fds[i] < 0)
            return fail_sys(f, errno, "the drive of %s", l->drives[i].path);
    }
    return 0;
}

/* A fresh drive is root's; it is to be filled by whoever runs the layer's commands. */
static int own(const char *path, const struct ident *who, struct fail *f)
{
    struct stat st;
    if (stat(path, &st) < 0 || st.st_uid != 0 || st.st_gid != 0 || who->uid == 0)
        return 0;
    if (chown(path, who->uid, who->gid) < 0)
        return fail_sys(f, errno, "give %s to user %s", path, who->name);
    return 0;
}

int drives_place(const struct layer_spec *l, const int *fds, const struct ident *who,
                 struct fail *f)
{
    for (size_t i = 0; i < l->n_drives; i++) {
        const char *path = l->drives[i].path;
        if (make_dirs(path, 0755) < 0)
            return fail_set(f, FAIL_COMMAND, "mount_path %s: %s", path, strerror(errno));
        if (syscall(SYS_move_mount, fds[i], "", AT_FDCWD, path, MOVE_EMPTY_PATH) < 0)
            return fail_set(f, FAIL_COMMAND, "mount_path %s: %s", path, strerror(errno));
        (void)close(fds[i]);
        if (own(path, who, f) < 0)
            return -1;
    }
    return 0;
}

/* --- in a booted machine --- */

bool drive_has_label(const uint8_t *super, const char *label)
{
    char name[LABEL_LEN + 1] = "";
    memcpy(name, super + LABEL_AT, LABEL_LEN);
    return super[MAGIC_AT] == 0x53 && super[MAGIC_AT + 1] == 0xef && *label &&
           strcmp(name, label) == 0;
}

static bool device_has_label(const char *dev, const char *label)
{
    uint8_t super[SUPER_LEN];
    int fd = open(dev, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    bool found = fd >= 0 && pread(fd, super, sizeof super, SUPER_AT) == (ssize_t)sizeof super &&
                 drive_has_label(super, label);
    if (fd >= 0)
        (void)close(fd);
    return found;
}

/* The block device whose file system is called @label, the first by name. */
static bool find_label(const char *label, char *out, size_t size)
{
    DIR *d = opendir("/sys/class/block");
    const struct dirent *e;
    bool found = false;
    while (d && (e = readdir(d))) {
        char dev[300];
        if (e->d_name[0] == '.')
            continue;
        (void)snprintf(dev, sizeof dev, "/dev/%s", e->d_name);
        if ((found && strcmp(out, dev) <= 0) || !device_has_label(dev, label))
            continue;
        (void)snprintf(out, size, "%s", dev);
        found = true;
    }
    if (d)
        (void)closedir(d);
    return found;
}

static void mount_drive(struct boot_drive *d, const char *dev, const char *user)
{
    struct ident who;
    struct fail f;
    if (make_dirs(d->path, 0755) < 0 ||
        mount(dev, d->path, "ext4", d->read_only ? MS_RDONLY : 0, NULL) < 0) {
        console_say("drive %s (%s) at %s: %s", d->label, dev, d->path, strerror(errno));
        return;
    }
    d->mounted = true;
    if (d->own && !d->read_only &&
        (ident_load(user ? user : "", &who, &f) < 0 || own(d->path, &who, &f) < 0))
        console_say("%s", f.text);
}

void drives_boot(struct boot_conf *c, int64_t wait_ms)
{
    int64_t until = now_ms() + wait_ms;
    for (size_t i = 0; i < c->n_drives; i++) {
        struct boot_drive *d = &c->drives[i];
        char dev[300] = "";
        if (!d->path)
            continue; /* the boot file is broken, which was said */
        while (!find_label(d->label, dev, sizeof dev) && now_ms() < until)
            (void)poll(NULL, 0, 50);
        if (dev[0])
            mount_drive(d, dev, c->default_user);
        else
            console_say("there is no disk with the label %s: %s is a folder of the image", d->label,
                        d->path);
    }
}

void drives_end(const struct boot_conf *c)
{
    for (size_t i = c->n_drives; i-- > 0;)
        if (c->drives[i].mounted)
            (void)mount(NULL, c->drives[i].path, NULL, MS_REMOUNT | MS_RDONLY, NULL);
}
