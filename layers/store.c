#include "layers/store_private.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>

static const char *const folders[] = {"blobs",     "blobs/sha256", "partial", "tmp",
                                      "cache",     "refs",         "images",  "lowers",
                                      "templates", "prefixes",     "layers",  "chunks"};

/* A folder that cannot be used is the machine's fault (exit status 3), whatever the errno. */
static int fail_open(struct cb_error *err, int sys, const char *dir)
{
    bool rights = sys == EACCES || sys == EPERM || sys == EROFS;
    cb_fail(err, CB_E_ENV, "store %s: %s", dir, strerror(sys));
    if (err)
        err->sys = sys;
    if (rights)
        cb_hint(err, "set CAPSULE_BUILD_HOME to a folder that you may write to");
    else if (sys == ENOSPC || sys == EDQUOT)
        cb_hint(err, "free some space on that disk (`df -h %s`), then run the same command again",
                dir);
    return -(int)CB_E_ENV;
}

int store_mkdir(struct store *s, const char *rel, struct cb_error *err)
{
    if (mkdirat(s->root, rel, 0755) < 0 && errno != EEXIST)
        return cb_fail_sys(err, errno, "make folder %s/%s", s->dir, rel);
    return 0;
}

int store_open(const char *dir, struct store **out, struct cb_error *err)
{
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    /* 0700: images hold other people's files, also those that only root may read */
    if (!cb_path_exists(dir) && cb_mkdir_p(dir, 0700, &why) < 0)
        return fail_open(err, why.sys, dir);
    CB_AUTO_FREE char *full = realpath(dir, NULL);
    CB_AUTO_FD root = full ? open(full, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (root < 0)
        return fail_open(err, errno, dir);
    for (size_t i = 0; i < sizeof(folders) / sizeof(*folders); i++) {
        if (mkdirat(root, folders[i], 0755) < 0 && errno != EEXIST)
            return fail_open(err, errno, full);
    }
    if (faccessat(root, "tmp", W_OK | X_OK, AT_EACCESS) < 0 ||
        faccessat(root, "blobs/sha256", W_OK | X_OK, AT_EACCESS) < 0)
        return fail_open(err, errno, full);

    struct store *s = cb_xcalloc(1, sizeof(*s));
    s->dir = cb_take_ptr(&full);
    s->root = cb_take_fd(&root);
    s->session = s->share_fd = -1;
    (void)pthread_mutex_init(&s->lock, NULL);
    (void)pthread_cond_init(&s->grown, NULL);
    (void)pthread_mutex_init(&s->share_lock, NULL);
    *out = s;
    return 0;
}

void store_free(struct store *s)
{
    if (!s)
        return;
    if (s->session >= 0 && s->session_pid == getpid()) {
        CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", s->dir, s->session_rel);
        (void)cb_remove_tree(path, NULL);
    }
    cb_close(s->share_fd);
    cb_close(s->session);
    cb_close(s->root);
    (void)pthread_cond_destroy(&s->grown);
    digest_set_release(&s->pinned);
    (void)pthread_mutex_destroy(&s->share_lock);
    (void)pthread_mutex_destroy(&s->lock);
    free(s->session_rel);
    free(s->dir);
    free(s);
}

const char *store_dir(const struct store *s)
{
    return s->dir;
}

/* Makes our folder in tmp/ and locks it. Between mkdir and flock a sweeper may take it for a dead
 * one's and remove it, so afterwards the name must still lead to what we hold. Called with the lock
 * held. */
static int open_session(struct store *s, struct cb_error *err)
{
    for (;;) {
        uint64_t r = 0;
        if (getrandom(&r, sizeof(r), 0) != (ssize_t)sizeof(r))
            return cb_fail_sys(err, errno, "random name");
        CB_AUTO_FREE char *rel =
            cb_xasprintf("tmp/%ld-%016llx", (long)getpid(), (unsigned long long)r);
        if (mkdirat(s->root, rel, 0700) < 0) {
            if (errno == EEXIST)
                continue;
            return cb_fail_sys(err, errno, "make folder %s/%s", s->dir, rel);
        }
        CB_AUTO_FD fd = openat(s->root, rel, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0 && errno == ENOENT)
            continue;
        if (fd < 0)
            return cb_fail_sys(err, errno, "open folder %s/%s", s->dir, rel);
        while (flock(fd, LOCK_EX) < 0) {
            if (errno != EINTR)
                return cb_fail_sys(err, errno, "lock folder %s/%s", s->dir, rel);
        }
        struct stat held, named;
        if (fstat(fd, &held) < 0 || fstatat(s->root, rel, &named, AT_SYMLINK_NOFOLLOW) < 0 ||
            held.st_ino != named.st_ino || held.st_dev != named.st_dev)
            continue;
        s->session = cb_take_fd(&fd);
        s->session_rel = cb_take_ptr(&rel);
        s->session_pid = getpid();
        return 0;
    }
}

/* Called with the lock held. */
static bool have_session(struct store *s, struct cb_error *err)
{
    if (s->session >= 0 && s->session_pid != getpid()) {
        /* forked: the folder is our parent's */
        cb_close(s->session);
        s->session = -1;
        free(cb_take_ptr(&s->session_rel));
    }
    return s->session >= 0 || open_session(s, err) == 0;
}

/* A path below the store that nobody else has, owned, or NULL. */
static char *tmp_name(struct store *s, const char *what, struct cb_error *err)
{
    char *rel = NULL;
    (void)pthread_mutex_lock(&s->lock);
    if (have_session(s, err))
        rel = cb_xasprintf("%s/%u-%s", s->session_rel, s->counter++, what);
    (void)pthread_mutex_unlock(&s->lock);
    return rel;
}

char *store_session_path(struct store *s, const char *name)
{
    char *rel = NULL;
    (void)pthread_mutex_lock(&s->lock);
    if (have_session(s, NULL))
        rel = cb_xasprintf("%s/%s", s->session_rel, name);
    (void)pthread_mutex_unlock(&s->lock);
    return rel;
}

char *store_tmp_path(struct store *s, const char *what)
{
    CB_AUTO_FREE char *rel = tmp_name(s, what, NULL);
    return rel ? cb_xasprintf("%s/%s", s->dir, rel) : NULL;
}

int store_tmp_open(struct store *s, const char *what, char **rel, struct cb_error *err)
{
    CB_AUTO_FREE char *name = tmp_name(s, what, err);
    if (!name)
        return err ? -(int)err->code : -(int)CB_E_SYS;
    CB_AUTO_FD fd = openat(s->root, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return cb_fail_sys(err, errno, "make %s/%s", s->dir, name);
    *rel = cb_take_ptr(&name);
    return cb_take_fd(&fd);
}

void store_sweep_tmp(struct store *s)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/tmp", s->dir);
    CB_AUTO_DIR d = opendir(path);
    if (!d)
        return;
    struct dirent *e;
    while ((e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.')
            continue;
        CB_AUTO_FD fd = openat(dirfd(d), e->d_name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
            continue; /* gone, or its owner lives */
        CB_AUTO_FREE char *dead = cb_xasprintf("%s/%s", path, e->d_name);
        (void)cb_remove_tree(dead, NULL);
    }
}

void store_touch(struct store *s, const char *rel)
{
    const struct timespec now[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_NOW}};
    (void)utimensat(s->root, rel, now, AT_SYMLINK_NOFOLLOW); /* without it, it only seems older */
}

int store_sync_dir(struct store *s, const char *rel, struct cb_error *err)
{
    store_step(rel);
    CB_AUTO_FD fd = openat(s->root, rel, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return cb_fail_sys(err, errno, "sync folder %s/%s", s->dir, rel);
    return 0;
}

int store_replace(struct store *s, const char *rel, const void *p, size_t n, struct cb_error *err)
{
    CB_AUTO_FREE char *tmp = NULL;
    CB_AUTO_FD fd = store_tmp_open(s, "small", &tmp, err);
    if (fd < 0 || !tmp)
        return cb_wrap(err, "write %s/%s", s->dir, rel);
    int rc = cb_write_all(fd, p, n, err);
    store_step(rel);
    if (rc < 0)
        cb_wrap(err, "write %s/%s", s->dir, rel);
    else if (fchmod(fd, 0644) < 0 || fdatasync(fd) < 0 || renameat(s->root, tmp, s->root, rel) < 0)
        rc = cb_fail_sys(err, errno, "write %s/%s", s->dir, rel);
    if (rc < 0) {
        (void)unlinkat(s->root, tmp, 0);
        return rc;
    }
    CB_AUTO_FREE char *parent = cb_xstrndup(rel, (size_t)(strrchr(rel, '/') - rel));
    return store_sync_dir(s, parent, err);
}

int store_read(struct store *s, const char *rel, struct cb_buf *out, struct cb_error *err)
{
    CB_AUTO_FD fd = openat(s->root, rel, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return cb_fail(err, CB_E_NOTFOUND, "%s/%s: no such file", s->dir, rel);
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s/%s", s->dir, rel);
    return cb_read_fd(fd, rel, STORE_SMALL_MAX, out, err);
}

static char *note_rel(const char *name)
{
    struct cb_digest d;
    char hex[CB_HEX_LEN + 1];
    cb_sha256(name, strlen(name), &d);
    cb_digest_hex(&d, hex);
    return cb_xasprintf("refs/%s.json", hex);
}

int store_note_get(struct store *s, const char *name, struct cb_buf *out, struct cb_error *err)
{
    CB_AUTO_FREE char *rel = note_rel(name);
    if (store_read(s, rel, out, err) < 0)
        return cb_wrap(err, "read the note on %s", name);
    store_touch(s, rel);
    return 0;
}

int store_note_put(struct store *s, const char *name, const char *text, struct cb_error *err)
{
    CB_AUTO_FREE char *rel = note_rel(name);
    size_t n = strlen(text);
    if (n > STORE_SMALL_MAX)
        return cb_fail(err, CB_E_LIMIT, "note on %s: %zu bytes, at most %u are kept", name, n,
                       STORE_SMALL_MAX);
    return store_replace(s, rel, text, n, err) < 0 ? cb_wrap(err, "keep the note on %s", name) : 0;
}
