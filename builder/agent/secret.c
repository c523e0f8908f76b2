/* secret: files that a layer's commands see and its diff does not. Their bytes lie on the tmpfs at
 * /run of the layer's namespaces and nowhere else; each is mounted, read-only, at its place. A
 * place that is not there is made first, by the main loop, in the layer's files: the stubs. They
 * are removed before the layer is frozen, and the folders that they were in get their times back,
 * so that the diff has nothing of it. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef SYS_openat2
#define SYS_openat2 437
#endif
/* linux/openat2.h, which the static libc's headers do not bring */
#define HOW_NO_MAGICLINKS 0x02u
#define HOW_IN_ROOT 0x10u
#define TMPFS_MAGIC 0x01021994 /* linux/magic.h */
struct how {
    uint64_t flags, mode, resolve;
};

/* ---- what the host sends ---- */

static void wipe(void *p, size_t n)
{
    if (p)
        explicit_bzero(p, n);
    free(p);
}

void secret_files_release(struct secret_files *s)
{
    for (size_t i = 0; i < s->n; i++) {
        free(s->v[i].path);
        wipe(s->v[i].data, s->v[i].len);
    }
    free(s->v);
    *s = (struct secret_files){0};
}

static int take_path(struct secret_files *s, const struct frame_field *x, struct fail *f)
{
    if (!frame_is_text(x, FRAME_PATH_MAX) || x->len < 2 || x->data[0] != '/' ||
        x->data[x->len - 1] == '/')
        return fail_set(f, FAIL_PROTOCOL, "a secret without an absolute path");
    if (s->n == SECRET_FILES_MAX)
        return fail_set(f, FAIL_PROTOCOL, "more than %d secrets", SECRET_FILES_MAX);
    s->v = ag_realloc(s->v, (s->n + 1) * sizeof *s->v);
    s->v[s->n++] = (struct secret_file){.path = ag_strndup(x->data, x->len)};
    return 0;
}

int secret_files_take(struct secret_files *s, const struct frame_field *x, struct fail *f)
{
    if (x->tag == TAG_SECRET_PATH)
        return take_path(s, x, f);
    struct secret_file *last = s->n ? &s->v[s->n - 1] : NULL;
    if (!last || last->data)
        return fail_set(f, FAIL_PROTOCOL, "a secret's bytes without its path");
    last->data = ag_alloc(x->len + 1);
    memcpy(last->data, x->data, x->len);
    last->len = x->len;
    return 0;
}

/* ---- places ---- */

static int open_in(int root, const char *path, uint64_t flags)
{
    const struct how how = {.flags = flags | O_PATH | O_CLOEXEC,
                            .resolve = HOW_IN_ROOT | HOW_NO_MAGICLINKS};
    long fd;
    do
        fd = syscall(SYS_openat2, root, path, &how, sizeof how);
    while (fd < 0 && (errno == EAGAIN || errno == EINTR));
    return (int)fd;
}

static int refuse(const char *path, const char *why, struct fail *f)
{
    return fail_set(f, FAIL_COMMAND, "secret file %s: %s", path, why);
}

/* Makes @name in @folder, which is taken: kept with the stub, or closed. 0 or -1 with errno. */
static int make_stub(struct stubs *s, int folder, const char *name, bool is_folder)
{
    struct stat up, made, now;
    int fd = -1, rc = fstat(folder, &up);
    if (rc == 0 && is_folder) {
        rc = mkdirat(folder, name, 0755);
        if (rc == 0) /* ~/.config is the user's whose home it is in */
            (void)!fchownat(folder, name, up.st_uid, up.st_gid, AT_SYMLINK_NOFOLLOW);
    } else if (rc == 0) {
        fd = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0);
        rc = fd < 0 ? -1 : 0;
    }
    if (rc == 0)
        rc = fstatat(folder, name, &made, AT_SYMLINK_NOFOLLOW) < 0 || fstat(folder, &now) < 0;
    int saved = errno;
    if (fd >= 0)
        (void)close(fd);
    if (rc != 0) {
        (void)close(folder);
        errno = saved;
        return -1;
    }
    s->v = ag_realloc(s->v, (s->n + 1) * sizeof *s->v);
    s->v[s->n++] = (struct stub){.folder = folder,
                                 .name = ag_strdup(name),
                                 .is_folder = is_folder,
                                 .ino = made.st_ino,
                                 .before = up.st_mtim,
                                 .after = now.st_mtim};
    return 0;
}

/* The folder @path of @root (owned), made where it is missing; @name: its last part, @up: the
 * folder before it. */
static int need_folder(struct stubs *s, int root, int up, const char *path, const char *name)
{
    int fd = open_in(root, path, O_DIRECTORY);
    if (fd >= 0 || errno != ENOENT)
        return fd;
    int own = fcntl(up, F_DUPFD_CLOEXEC, 0);
    if (own < 0 || make_stub(s, own, name, true) < 0)
        return -1;
    return openat(up, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* The folder that @path lies in. Owned, or -1 with errno. */
static int folder_of(struct stubs *s, int root, char *path)
{
    int up = open_in(root, "/", O_DIRECTORY);
    for (char *p = path; up >= 0; p++) {
        char *slash = strchr(p + 1, '/');
        if (!slash)
            return up;
        *slash = 0;
        int fd =
            slash == p + 1 ? fcntl(up, F_DUPFD_CLOEXEC, 0) : need_folder(s, root, up, path, p + 1);
        int saved = errno;
        *slash = '/';
        (void)close(up);
        errno = saved;
        up = fd;
        p = slash - 1;
    }
    return -1;
}

/* Sees to it that there is a file at @path to mount another one on. */
static int need_file(struct stubs *s, int root, const char *path, struct fail *f)
{
    char *copy = ag_strdup(path);
    struct stat st;
    int up = folder_of(s, root, copy), rc;
    const char *name = strrchr(copy, '/') + 1;
    if (up < 0 && (errno == ENOTDIR || errno == EEXIST || errno == ELOOP)) {
        rc = refuse(path, "a part of this path is not a folder in the image", f);
    } else if (up < 0) {
        rc = fail_sys(f, errno, "secret file %s", path);
    } else if (fstatat(up, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        rc = S_ISREG(st.st_mode) ? 0
                                 : refuse(path, "the image has something there that is no file", f);
        (void)close(up);
    } else {
        rc = make_stub(s, up, name, false) < 0 ? fail_sys(f, errno, "secret file %s", path) : 0;
    }
    free(copy);
    return rc;
}

/* What the layer's init mounts over: nothing there is the layer's. */
static bool is_mounted_over(const char *path)
{
    static const char *const tops[] = {"/proc/", "/sys/", "/dev/", "/run/"};
    for (size_t i = 0; i < ARRAY_LEN(tops); i++)
        if (strncmp(path, tops[i], strlen(tops[i])) == 0)
            return true;
    return false;
}

int stubs_make(struct stubs *s, const char *at, const struct secret_files *secrets, struct fail *f)
{
    int root = open(at, O_PATH | O_DIRECTORY | O_CLOEXEC), rc = 0;
    if (root < 0)
        return fail_sys(f, errno, "open the layer");
    for (size_t i = 0; rc == 0 && i < secrets->n; i++)
        if (!is_mounted_over(secrets->v[i].path))
            rc = need_file(s, root, secrets->v[i].path, f);
    (void)close(root);
    return rc;
}

static bool same_time(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

/* Unless it is another's by now, or holds something. Who else changed the folder keeps its time. */
static void remove_stub(const struct stub *s)
{
    struct stat st, up;
    if (fstatat(s->folder, s->name, &st, AT_SYMLINK_NOFOLLOW) < 0 || st.st_ino != s->ino ||
        fstat(s->folder, &up) < 0 ||
        unlinkat(s->folder, s->name, s->is_folder ? AT_REMOVEDIR : 0) < 0)
        return;
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                                      same_time(&up.st_mtim, &s->after) ? s->before : up.st_mtim};
    (void)utimensat(s->folder, ".", times, 0);
}

static void stubs_forget(struct stubs *s)
{
    for (size_t i = 0; i < s->n; i++) {
        (void)close(s->v[i].folder);
        free(s->v[i].name);
    }
    free(s->v);
    *s = (struct stubs){0};
}

void stubs_remove(struct stubs *s)
{
    for (size_t i = s->n; i-- > 0;)
        remove_stub(&s->v[i]);
    stubs_forget(s);
}

/* ---- in the layer's init, whose root is the layer's ---- */

#define HIDDEN "/run/.secret"

static void of_fd(char *out, size_t size, int fd)
{
    (void)snprintf(out, size, "/proc/self/fd/%d", fd);
}

/* Mounts the file @fd at @path, read-only. 0 or -1 with errno. */
static int mount_at(int fd, int root, const char *path)
{
    char from[40], to[40];
    int at = open_in(root, path, O_NOFOLLOW);
    of_fd(from, sizeof from, fd);
    of_fd(to, sizeof to, at);
    int rc = at < 0 ? -1 : mount(from, to, NULL, MS_BIND, NULL);
    if (at >= 0)
        (void)close(at);
    if (rc < 0)
        return -1;
    at = open_in(root, path, O_NOFOLLOW); /* that which is mounted now */
    of_fd(to, sizeof to, at);
    rc = at < 0 ? -1
                : mount(NULL, to, NULL,
                        MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    if (at >= 0)
        (void)close(at);
    return rc;
}

/* Its bytes in a file that has no name any more; the descriptor stays with the init. */
static int place(const struct secret_file *s, int *fd, int root, struct fail *f)
{
    *fd = open(HIDDEN, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0400);
    if (*fd < 0)
        return fail_sys(f, errno, "secret file %s", s->path);
    int rc = write_all(*fd, s->data, s->len);
    if (rc == 0)
        rc = mount_at(*fd, root, s->path);
    int saved = errno;
    (void)unlink(HIDDEN);
    return rc < 0 ? fail_sys(f, saved, "secret file %s", s->path) : 0;
}

static bool is_tmpfs(int fd)
{
    struct statfs fs;
    return fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
}

int secret_files_place(const struct secret_files *s, int *fds, struct fail *f)
{
    struct stubs made = {0}; /* on what is mounted here: it goes with the namespace */
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), rc = 0;
    if (root < 0)
        return fail_sys(f, errno, "open the layer");
    for (size_t i = 0; rc == 0 && i < s->n; i++) {
        rc = need_file(&made, root, s->v[i].path, f);
        if (rc == 0 && made.n && !is_tmpfs(made.v[made.n - 1].folder)) {
            stubs_remove(&made);
            rc =
                refuse(s->v[i].path, "it lies on a drive, which would keep an empty file there", f);
        }
        if (rc == 0)
            rc = place(&s->v[i], &fds[i], root, f);
    }
    stubs_forget(&made);
    (void)close(root);
    return rc;
}

int secret_files_give(const struct secret_files *s, const int *fds, const struct ident *who,
                      struct fail *f)
{
    for (size_t i = 0; i < s->n; i++)
        if (fchown(fds[i], who->uid, who->gid) < 0)
            return fail_sys(f, errno, "secret file %s", s->v[i].path);
    return 0;
}
