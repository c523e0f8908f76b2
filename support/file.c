#include "support/file.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

int cb_read_fd(int fd, const char *name, size_t max, struct cb_buf *out, struct cb_error *err)
{
    cb_buf_release(out);
    out->max = max;
    char tmp[16384];
    for (;;) {
        ssize_t n = read(fd, tmp, sizeof(tmp));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return cb_fail_sys(err, errno, "read %s", name);
        if (n == 0)
            break;
        if (cb_buf_add(out, tmp, (size_t)n) < 0)
            return cb_fail(err, CB_E_LIMIT, "%s is larger than %zu bytes", name, max);
    }
    return cb_buf_add(out, "", 0); /* data is never NULL, also for an empty file */
}

int cb_read_file(const char *path, size_t max, struct cb_buf *out, struct cb_error *err)
{
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return cb_fail(err, CB_E_NOTFOUND, "%s: no such file", path);
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s", path);
    return cb_read_fd(fd, path, max, out, err);
}

int cb_write_all(int fd, const void *p, size_t n, struct cb_error *err)
{
    const char *at = p;
    while (n) {
        ssize_t w = write(fd, at, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0)
            return cb_fail_sys(err, errno, "write");
        at += w;
        n -= (size_t)w;
    }
    return 0;
}

int cb_pwrite_all(int fd, const void *p, size_t n, off_t off, struct cb_error *err)
{
    const char *at = p;
    while (n) {
        ssize_t w = pwrite(fd, at, n, off);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0)
            return cb_fail_sys(err, errno, "write");
        at += w;
        off += w;
        n -= (size_t)w;
    }
    return 0;
}

int cb_pread_all(int fd, void *p, size_t n, off_t off, struct cb_error *err)
{
    char *at = p;
    while (n) {
        ssize_t r = pread(fd, at, n, off);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return cb_fail_sys(err, errno, "read");
        if (r == 0)
            return cb_fail(err, CB_E_CORRUPT, "the file ends %zu bytes early", n);
        at += r;
        off += r;
        n -= (size_t)r;
    }
    return 0;
}

static char *parent_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return cb_xstrdup(".");
    if (slash == path)
        return cb_xstrdup("/");
    return cb_xstrndup(path, (size_t)(slash - path));
}

int cb_fsync_dir(const char *path, struct cb_error *err)
{
    CB_AUTO_FD fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return cb_fail_sys(err, errno, "sync folder %s", path);
    return 0;
}

int cb_write_file(const char *path, const void *p, size_t n, mode_t mode, struct cb_error *err)
{
    CB_AUTO_FREE char *tmp = cb_xasprintf("%s.tmp-XXXXXX", path);
    CB_AUTO_FD fd = mkostemp(tmp, O_CLOEXEC);
    if (fd < 0)
        return cb_fail_sys(err, errno, "write %s", path);
    int rc = cb_write_all(fd, p, n, err);
    if (rc < 0)
        cb_wrap(err, "write %s", path);
    else if (fchmod(fd, mode) < 0 || fsync(fd) < 0 || rename(tmp, path) < 0)
        rc = cb_fail_sys(err, errno, "write %s", path);
    if (rc < 0) {
        (void)unlink(tmp);
        return rc;
    }
    CB_AUTO_FREE char *dir = parent_of(path);
    return cb_fsync_dir(dir, err);
}

int cb_mkdir_p(const char *path, mode_t mode, struct cb_error *err)
{
    CB_AUTO_FREE char *p = cb_xstrdup(path);
    for (char *s = p + 1;; s++) {
        char c = *s;
        if (c != '/' && c != '\0')
            continue;
        *s = '\0';
        if (mkdir(p, mode) < 0 && errno != EEXIST)
            return cb_fail_sys(err, errno, "make folder %s", p);
        if (c == '\0')
            break;
        *s = '/';
    }
    struct stat st;
    if (stat(path, &st) < 0)
        return cb_fail_sys(err, errno, "make folder %s", path);
    if (!S_ISDIR(st.st_mode))
        return cb_fail_sys(err, ENOTDIR, "make folder %s", path);
    return 0;
}

static int remove_in(int dir, const char *name, dev_t dev, unsigned depth)
{
    if (unlinkat(dir, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return -1;
    if (depth > 512) {
        errno = ELOOP;
        return -1;
    }
    CB_AUTO_FD fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return -1;
    if (dev != 0 && st.st_dev != dev) {
        errno = EXDEV;
        return -1;
    }
    int walk_fd = dup(fd);
    CB_AUTO_DIR d = walk_fd < 0 ? NULL : fdopendir(walk_fd);
    if (!d)
        return -1;
    int bad = 0;
    struct dirent *e;
    while ((e = readdir(d)) != NULL) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (remove_in(fd, e->d_name, st.st_dev, depth + 1) < 0)
            bad = errno;
    }
    if (unlinkat(dir, name, AT_REMOVEDIR) < 0 && errno != ENOENT) {
        if (bad)
            errno = bad;
        return -1;
    }
    return 0;
}

int cb_remove_tree(const char *path, struct cb_error *err)
{
    if (remove_in(AT_FDCWD, path, 0, 0) < 0)
        return cb_fail_sys(err, errno, "remove %s", path);
    return 0;
}

bool cb_path_exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

char *cb_find_program(const char *name)
{
    if (strchr(name, '/'))
        return access(name, X_OK) == 0 ? cb_xstrdup(name) : NULL;
    const char *path = getenv("PATH");
    CB_AUTO_FREE char *all =
        cb_xasprintf("%s:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin", path ? path : "");
    char *rest = all;
    for (char *dir; (dir = strsep(&rest, ":")) != NULL;) {
        if (dir[0] != '/')
            continue;
        char *full = cb_xasprintf("%s/%s", dir, name);
        struct stat st;
        if (access(full, X_OK) == 0 && stat(full, &st) == 0 && S_ISREG(st.st_mode))
            return full;
        free(full);
    }
    return NULL;
}

int cb_copy_range(int from, off_t from_off, int to, off_t to_off, uint64_t len,
                  struct cb_error *err)
{
    enum { CHUNK = 1 << 18 };
    bool in_kernel = true;
    CB_AUTO_FREE char *buf = NULL;
    while (len) {
        size_t want = len > (1u << 30) ? (1u << 30) : (size_t)len;
        ssize_t n = -1;
        if (in_kernel) {
            n = copy_file_range(from, &from_off, to, &to_off, want, 0);
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0 && errno == ENOSPC)
                return cb_fail_sys(err, errno, "copy");
            if (n < 0) {
                in_kernel = false;
                continue;
            }
        } else {
            if (!buf)
                buf = cb_xmalloc(CHUNK);
            n = pread(from, buf, want > CHUNK ? CHUNK : want, from_off);
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0)
                return cb_fail_sys(err, errno, "read while copying");
            int rc = cb_pwrite_all(to, buf, (size_t)n, to_off, err);
            if (rc < 0)
                return rc;
            from_off += n;
            to_off += n;
        }
        if (n == 0)
            return cb_fail(err, CB_E_CORRUPT, "the source ends %llu bytes early",
                           (unsigned long long)len);
        len -= (uint64_t)n;
    }
    return 0;
}

int cb_clone_file(int from, int to, struct cb_error *err)
{
    if (ioctl(to, FICLONE, from) == 0)
        return 0;
    struct stat st;
    if (fstat(from, &st) < 0 || ftruncate(to, st.st_size) < 0)
        return cb_fail_sys(err, errno, "copy file");
    off_t at = 0;
    while (at < st.st_size) {
        off_t data = lseek(from, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        if (data < 0)
            data = at; /* no SEEK_DATA here: copy it all */
        off_t hole = lseek(from, data, SEEK_HOLE);
        if (hole <= data)
            hole = st.st_size;
        int rc = cb_copy_range(from, data, to, data, (uint64_t)(hole - data), err);
        if (rc < 0)
            return rc;
        at = hole;
    }
    return 0;
}

int cb_lock_file(const char *path, bool wait, struct cb_error *err)
{
    for (;;) {
        CB_AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
            return cb_fail_sys(err, errno, "open lock %s", path);
        int r;
        do {
            r = flock(fd, LOCK_EX | (wait ? 0 : LOCK_NB));
        } while (r < 0 && errno == EINTR);
        if (r < 0 && errno == EWOULDBLOCK)
            return cb_fail(err, CB_E_CONFLICT, "%s is locked by another process", path);
        if (r < 0)
            return cb_fail_sys(err, errno, "lock %s", path);
        struct stat held, named; /* the file may have been removed while we waited */
        if (fstat(fd, &held) == 0 && stat(path, &named) == 0 && held.st_ino == named.st_ino &&
            held.st_dev == named.st_dev)
            return cb_take_fd(&fd);
    }
}

void cb_human_bytes(uint64_t n, char *out, size_t size)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = (double)n;
    size_t u = 0;
    while (v >= 1024 && u + 1 < sizeof(unit) / sizeof(*unit)) {
        v /= 1024;
        u++;
    }
    (void)snprintf(out, size, u == 0 ? "%.0f %s" : "%.1f %s", v, unit[u]);
}
