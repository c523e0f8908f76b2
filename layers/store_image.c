#include "layers/store_private.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

static char *file_rel(const char *folder, const struct cb_digest *d)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(d, hex);
    return cb_xasprintf("%s/%s.ext4", folder, hex);
}

/* Only what lies in tmp/ is published, or removed. */
static int check_path(const struct store *s, const char *path, struct cb_error *err)
{
    size_t n = strlen(s->dir);
    if (strncmp(path, s->dir, n) != 0 || strncmp(path + n, "/tmp/", 5) != 0)
        return cb_fail(err, CB_E_BUG, "publish %s: it is not in %s/tmp", path, s->dir);
    return 0;
}

/* Moves the finished file @path to @rel, in the place of one that is there. */
static int publish_file(struct store *s, const char *path, const char *rel, struct cb_error *err)
{
    int rc = check_path(s, path, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FD fd = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return cb_fail(err, CB_E_NOTFOUND, "publish %s: no such file", path);
    store_step(rel);
    if (fd < 0 || fchmod(fd, 0444) < 0 || fdatasync(fd) < 0 ||
        renameat(AT_FDCWD, path, s->root, rel) < 0)
        return cb_fail_sys(err, errno, "publish %s as %s", path, rel);
    return 0;
}

int store_image_publish(struct store *s, const char *path, const struct cb_digest *digest,
                        struct cb_error *err)
{
    CB_AUTO_FREE char *rel = file_rel("images", digest);
    struct stat there, new;
    store_share(s);
    store_pin(s, PIN_IMAGE, digest);
    bool known = fstatat(s->root, rel, &there, AT_SYMLINK_NOFOLLOW) == 0 && lstat(path, &new) == 0;
    store_unshare(s);
    if (!known)
        return publish_file(s, path, rel, err);
    /* the same by its name: others may have the old one open or share its blocks */
    int rc = check_path(s, path, err);
    if (rc == 0)
        (void)unlink(path);
    store_touch(s, rel);
    return rc;
}

int store_image_find(struct store *s, const struct cb_digest *digest, char **path,
                     struct cb_error *err)
{
    CB_AUTO_FREE char *rel = file_rel("images", digest);
    struct stat st;
    store_share(s);
    store_pin(s, PIN_IMAGE, digest);
    int r = fstatat(s->root, rel, &st, AT_SYMLINK_NOFOLLOW);
    store_unshare(s);
    if (r < 0 && errno != ENOENT)
        return cb_fail_sys(err, errno, "%s/%s", s->dir, rel);
    if (r < 0 || !S_ISREG(st.st_mode))
        return cb_fail(err, CB_E_NOTFOUND, "image %s is not in the store", rel + strlen("images/"));
    *path = cb_xasprintf("%s/%s", s->dir, rel);
    return 0;
}

/* A shared lock says that the file is in use; who wants to remove it needs an exclusive one. */
int store_lower_open(struct store *s, const struct cb_digest *key, char **path,
                     struct cb_error *err)
{
    CB_AUTO_FREE char *rel = file_rel("lowers", key);
    for (;;) {
        store_share(s);
        store_pin(s, PIN_LOWER, key);
        CB_AUTO_FD fd = openat(s->root, rel, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        store_unshare(s);
        if (fd < 0 && errno == ENOENT)
            return cb_fail(err, CB_E_NOTFOUND, "%s is not in the store", rel);
        if (fd < 0)
            return cb_fail_sys(err, errno, "open %s/%s", s->dir, rel);
        while (flock(fd, LOCK_SH) < 0) {
            if (errno != EINTR)
                return cb_fail_sys(err, errno, "lock %s/%s", s->dir, rel);
        }
        struct stat held, named; /* it may have been removed while we waited */
        if (fstat(fd, &held) < 0 || fstatat(s->root, rel, &named, AT_SYMLINK_NOFOLLOW) < 0 ||
            held.st_ino != named.st_ino || held.st_dev != named.st_dev)
            continue;
        store_touch(s, rel);
        if (path)
            *path = cb_xasprintf("%s/%s", s->dir, rel);
        return cb_take_fd(&fd);
    }
}

int store_lower_publish(struct store *s, const char *path, const struct cb_digest *key,
                        struct cb_error *err)
{
    CB_AUTO_FREE char *rel = file_rel("lowers", key);
    store_share(s);
    store_pin(s, PIN_LOWER, key); /* whoever made it opens it next */
    store_unshare(s);
    return publish_file(s, path, rel, err);
}

struct lower {
    char *name;
    uint64_t bytes;
    struct timespec used;
};

static int by_last_use(const void *a, const void *b)
{
    const struct lower *x = a, *y = b;
    if (x->used.tv_sec != y->used.tv_sec)
        return x->used.tv_sec > y->used.tv_sec ? -1 : 1;
    if (x->used.tv_nsec != y->used.tv_nsec)
        return x->used.tv_nsec > y->used.tv_nsec ? -1 : 1;
    return strcmp(x->name, y->name);
}

void store_lower_trim(struct store *s, uint64_t keep_bytes)
{
    CB_AUTO_FREE char *folder = cb_xasprintf("%s/lowers", s->dir);
    CB_AUTO_DIR d = opendir(folder);
    struct lower *v = NULL;
    size_t n = 0, cap = 0;
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        struct stat st;
        if (e->d_name[0] == '.' || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        v = cb_xgrow(v, &cap, n, sizeof(*v));
        v[n++] = (struct lower){cb_xstrdup(e->d_name), (uint64_t)st.st_blocks * 512, st.st_mtim};
    }
    if (n)
        qsort(v, n, sizeof(*v), by_last_use);
    uint64_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        kept += v[i].bytes;
        CB_AUTO_FD fd =
            kept > keep_bytes ? openat(dirfd(d), v[i].name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC) : -1;
        if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0) /* else somebody builds on it */
            (void)unlinkat(dirfd(d), v[i].name, 0);
        free(v[i].name);
    }
    free(v);
}
