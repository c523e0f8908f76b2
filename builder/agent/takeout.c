/* takeout: what a layer changed, read from the frozen upper folder of its overlay.
 *
 * overlayfs copies up whatever is opened for writing or touched, so an entry in the upper need not
 * be a change: each is compared with the merged view of the lowers (`below`) by type, mode, owner,
 * size, time, xattrs, target, device and, when all else is equal, content. The walk goes by folder
 * descriptors, three in step, follows no link, and takes names in byte order, so that equal uppers
 * give equal tars. */
#include "builder/agent/agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define DEPTH_MAX 1000
#define XATTR_LIST_MAX 65536

struct linked {
    dev_t dev;
    ino_t ino;
    char *path;
};

/* A folder on the way down. One that is not in the image but equals the agent's own (say /etc of an
 * image that has none) is written only when something in it is. */
struct level {
    struct level *up;
    const char *path;
    int upper;
    bool pending;
};

struct walk {
    struct takeout *t;
    struct text path;
    struct linked *links; /* hash table by inode; a free place has no path */
    size_t n_links, cap_links;
    uint8_t *buf_a, *buf_b;
    unsigned depth;
};

#define COMPARE_BUFFER (128u << 10)

struct xattrs {
    struct xattr *v;
    size_t n;
};

static void xattrs_release(struct xattrs *x)
{
    for (size_t i = 0; i < x->n; i++) {
        free(x->v[i].name);
        free(x->v[i].value);
    }
    free(x->v);
    *x = (struct xattrs){0};
}

/* Overlay's own, and labels that belong to this machine's security modules, are not the image's. */
static bool xattr_kept(const char *name)
{
    static const char *const dropped[] = {"trusted.",       "user.overlay.",  "security.selinux",
                                          "security.ima",   "security.evm",   "security.apparmor",
                                          "security.SMACK", "system.nfs4_acl"};
    for (size_t i = 0; i < ARRAY_LEN(dropped); i++)
        if (strncmp(name, dropped[i], strlen(dropped[i])) == 0)
            return false;
    return true;
}

static int xattr_order(const void *a, const void *b)
{
    return strcmp(((const struct xattr *)a)->name, ((const struct xattr *)b)->name);
}

/* The path that reaches entry @name of folder @dir without following it: xattr calls know no *at
 * form. */
static void fd_path(char *out, size_t size, int dir, const char *name)
{
    (void)snprintf(out, size, "/proc/self/fd/%d/%s", dir, name);
}

static int xattrs_load(int dir, const char *name, const char *shown, struct xattrs *x,
                       struct fail *f)
{
    char path[400];
    fd_path(path, sizeof path, dir, name);
    ssize_t n = llistxattr(path, NULL, 0);
    if (n == 0 || (n < 0 && (errno == ENOTSUP || errno == EPERM)))
        return 0;
    if (n < 0 || n > XATTR_LIST_MAX)
        return fail_sys(f, n < 0 ? errno : E2BIG, "%s: list extended attributes", shown);
    char *names = ag_alloc((size_t)n + 1);
    n = llistxattr(path, names, (size_t)n);
    int rc = n < 0 ? fail_sys(f, errno, "%s: list extended attributes", shown) : 0;
    for (ssize_t i = 0; i < n && rc == 0;) {
        const char *key = names + i;
        i += (ssize_t)strlen(key) + 1;
        if (!xattr_kept(key))
            continue;
        ssize_t len = lgetxattr(path, key, NULL, 0);
        uint8_t *value = ag_alloc(len < 0 ? 1 : (size_t)len + 1);
        if (len >= 0)
            len = lgetxattr(path, key, value, (size_t)len);
        if (len < 0) {
            free(value);
            rc = fail_sys(f, errno, "%s: read attribute %s", shown, key);
            break;
        }
        x->v = ag_realloc(x->v, (x->n + 1) * sizeof *x->v);
        x->v[x->n++] = (struct xattr){.name = ag_strdup(key), .value = value, .len = (size_t)len};
    }
    free(names);
    if (x->n > 1)
        qsort(x->v, x->n, sizeof *x->v, xattr_order);
    return rc;
}

static bool xattrs_equal(const struct xattrs *a, const struct xattrs *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (strcmp(a->v[i].name, b->v[i].name) != 0 || a->v[i].len != b->v[i].len ||
            (a->v[i].len && memcmp(a->v[i].value, b->v[i].value, a->v[i].len) != 0))
            return false;
    return true;
}

/* Overlay marks a folder that hides what is below with an xattr of its own. */
static bool is_opaque(int dir)
{
    static const char *const names[] = {"trusted.overlay.opaque", "user.overlay.opaque"};
    char v;
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (fgetxattr(dir, names[i], &v, 1) == 1 && v == 'y')
            return true;
    return false;
}

static int read_target(int dir, const char *name, char *out, size_t size, struct fail *f)
{
    ssize_t n = readlinkat(dir, name, out, size - 1);
    if (n < 0)
        return fail_sys(f, errno, "read link %s", name);
    out[n] = 0;
    return 0;
}

/* 1: equal, 0: not, -1: failed. */
static int same_content(struct walk *w, int a_dir, int b_dir, const char *name, struct fail *f)
{
    int a = openat(a_dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    int b = openat(b_dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    int rc = a < 0 || b < 0 ? fail_sys(f, errno, "open %s", w->path.p) : 1;
    while (rc == 1) {
        ssize_t n = read(a, w->buf_a, COMPARE_BUFFER);
        if (n < 0)
            rc = fail_sys(f, errno, "read %s", w->path.p);
        if (n <= 0)
            break;
        for (ssize_t got = 0; rc == 1 && got < n;) {
            ssize_t m = read(b, w->buf_b + got, (size_t)(n - got));
            if (m < 0)
                rc = fail_sys(f, errno, "read %s", w->path.p);
            else if (m == 0)
                rc = 0;
            got += m;
        }
        if (rc == 1 && memcmp(w->buf_a, w->buf_b, (size_t)n) != 0)
            rc = 0;
    }
    if (a >= 0)
        (void)close(a);
    if (b >= 0)
        (void)close(b);
    return rc;
}

/* 1 when entry @name of the upper is what is below already. */
static int same_entry(struct walk *w, int upper, int below, const char *name, const struct stat *st,
                      const struct xattrs *x, struct fail *f)
{
    struct stat old;
    if (below < 0 || fstatat(below, name, &old, AT_SYMLINK_NOFOLLOW) < 0)
        return 0;
    if (old.st_mode != st->st_mode || old.st_uid != st->st_uid || old.st_gid != st->st_gid ||
        old.st_mtim.tv_sec != st->st_mtim.tv_sec || old.st_mtim.tv_nsec != st->st_mtim.tv_nsec)
        return 0;
    if (S_ISREG(st->st_mode) && old.st_size != st->st_size)
        return 0;
    if ((S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode)) && old.st_rdev != st->st_rdev)
        return 0;
    struct xattrs old_x = {0};
    int rc = xattrs_load(below, name, w->path.p, &old_x, f);
    if (rc == 0)
        rc = xattrs_equal(x, &old_x);
    xattrs_release(&old_x);
    if (rc == 1 && S_ISLNK(st->st_mode)) {
        char a[4096], b[4096];
        if (read_target(upper, name, a, sizeof a, f) < 0 ||
            read_target(below, name, b, sizeof b, f) < 0)
            return -1;
        return strcmp(a, b) == 0;
    }
    if (rc == 1 && S_ISREG(st->st_mode))
        return same_content(w, upper, below, name, f);
    return rc;
}

static void entry_of(struct tar_entry *e, const char *path, const struct stat *st)
{
    *e = (struct tar_entry){
        .path = path,
        .mode = st->st_mode & 07777,
        .uid = st->st_uid,
        .gid = st->st_gid,
        .mtime = st->st_mtim.tv_sec,
        .mtime_ns = (uint32_t)st->st_mtim.tv_nsec,
    };
}

static int put_folder(struct walk *w, const char *path, const struct stat *st,
                      const struct xattrs *x, struct fail *f)
{
    struct tar_entry e;
    entry_of(&e, *path ? path : ".", st);
    e.type = '5';
    e.xattrs = x->v;
    e.n_xattrs = x->n;
    return tar_add(w->t->tar, &e, -1, f);
}

/* Writes the folders above that waited for something to be in them. */
static int put_pending(struct walk *w, struct level *l, struct fail *f)
{
    if (!l || !l->pending)
        return 0;
    if (put_pending(w, l->up, f) < 0)
        return -1;
    l->pending = false;
    struct stat st;
    struct xattrs x = {0};
    if (fstat(l->upper, &st) < 0)
        return fail_sys(f, errno, "stat %s", l->path);
    int rc = xattrs_load(l->upper, ".", l->path, &x, f);
    if (rc == 0)
        rc = put_folder(w, l->path, &st, &x, f);
    xattrs_release(&x);
    return rc;
}

/* A marker: `.wh.NAME` or `.wh..wh..opq` in the folder of w->path (which ends at @parent_len). */
static int put_marker(struct walk *w, size_t parent_len, const char *name, struct fail *f)
{
    struct text p = {0};
    if (parent_len) {
        text_add(&p, w->path.p, parent_len);
        text_puts(&p, "/");
    }
    text_puts(&p, ".wh.");
    text_puts(&p, name);
    struct tar_entry e = {.path = p.p, .type = '0', .mode = 0};
    int rc = tar_add(w->t->tar, &e, -1, f);
    text_release(&p);
    return rc;
}

static struct linked *linked_slot(struct linked *table, size_t cap, dev_t dev, ino_t ino)
{
    size_t i = (size_t)((uint64_t)ino * 0x9e3779b97f4a7c15u >> 20) & (cap - 1);
    while (table[i].path && (table[i].ino != ino || table[i].dev != dev))
        i = (i + 1) & (cap - 1);
    return &table[i];
}

/* The first name of an inode that has several, or NULL after remembering this one. */
static const char *first_name(struct walk *w, const struct stat *st)
{
    if (w->n_links * 2 >= w->cap_links) {
        size_t cap = w->cap_links ? w->cap_links * 2 : 256;
        struct linked *table = ag_alloc(cap * sizeof *table);
        for (size_t i = 0; i < w->cap_links; i++)
            if (w->links[i].path)
                *linked_slot(table, cap, w->links[i].dev, w->links[i].ino) = w->links[i];
        free(w->links);
        w->links = table;
        w->cap_links = cap;
    }
    struct linked *l = linked_slot(w->links, w->cap_links, st->st_dev, st->st_ino);
    if (l->path)
        return l->path;
    *l = (struct linked){st->st_dev, st->st_ino, ag_strdup(w->path.p)};
    w->n_links++;
    return NULL;
}

static int put_other(struct walk *w, int upper, const char *name, const struct stat *st,
                     const struct xattrs *x, struct fail *f)
{
    struct tar_entry e;
    char target[4096];
    entry_of(&e, w->path.p, st);
    const char *first = st->st_nlink > 1 ? first_name(w, st) : NULL;
    if (first) {
        e.type = '1';
        e.link = first;
        return tar_add(w->t->tar, &e, -1, f);
    }
    e.xattrs = x->v;
    e.n_xattrs = x->n;
    if (S_ISREG(st->st_mode)) {
        e.type = '0';
        e.size = (uint64_t)st->st_size;
        int fd = openat(upper, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0)
            return fail_sys(f, errno, "open %s", w->path.p);
        int rc = tar_add(w->t->tar, &e, fd, f);
        (void)close(fd);
        return rc;
    }
    if (S_ISLNK(st->st_mode)) {
        if (read_target(upper, name, target, sizeof target, f) < 0)
            return -1;
        e.type = '2';
        e.mode = 0777;
        e.link = target;
    } else if (S_ISFIFO(st->st_mode)) {
        e.type = '6';
    } else {
        e.type = S_ISCHR(st->st_mode) ? '3' : '4';
        e.major = major(st->st_rdev);
        e.minor = minor(st->st_rdev);
    }
    return tar_add(w->t->tar, &e, -1, f);
}

static int walk_folder(struct walk *w, struct level *l, int below, int image, struct fail *f);

static int open_folder(int at, const char *name)
{
    return at < 0 ? -1 : openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static int take_folder(struct walk *w, struct level *up, int below, int image, const char *name,
                       const struct stat *st, const struct xattrs *x, struct fail *f)
{
    int fd = open_folder(up->upper, name);
    if (fd < 0)
        return fail_sys(f, errno, "open folder %s", w->path.p);
    if (w->depth >= DEPTH_MAX) {
        (void)close(fd);
        return fail_set(f, FAIL_COMMAND, "folders deeper than %d levels: %.200s...", DEPTH_MAX,
                        w->path.p);
    }
    bool opaque = is_opaque(fd);
    int old = open_folder(below, name), old_image = open_folder(image, name);
    int same = same_entry(w, up->upper, below, name, st, x, f);
    struct level l = {.up = up, .upper = fd, .path = NULL, .pending = false};
    int rc = same < 0 ? -1 : 0;
    char *path = ag_strdup(w->path.p);
    l.path = path;
    if (rc == 0 && same && !opaque && old_image < 0)
        l.pending = true;
    else if (rc == 0 && (!same || opaque)) {
        rc = put_pending(w, up, f);
        if (rc == 0)
            rc = put_folder(w, w->path.p, st, x, f);
        if (rc == 0 && opaque && old_image >= 0)
            rc = put_marker(w, w->path.n, ".wh..opq", f);
    }
    w->depth++;
    if (rc == 0)
        rc = walk_folder(w, &l, opaque ? -1 : old, opaque ? -1 : old_image, f);
    w->depth--;
    free(path);
    (void)close(fd);
    if (old >= 0)
        (void)close(old);
    if (old_image >= 0)
        (void)close(old_image);
    return rc;
}

static int take_entry(struct walk *w, struct level *l, int below, int image, const char *name,
                      size_t parent_len, struct fail *f)
{
    struct stat st, old;
    struct xattrs x = {0};
    if (fstatat(l->upper, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return fail_sys(f, errno, "stat %s", w->path.p);
    if (S_ISCHR(st.st_mode) && st.st_rdev == 0) { /* overlay's whiteout */
        if (image < 0 || fstatat(image, name, &old, AT_SYMLINK_NOFOLLOW) < 0)
            return 0;
        if (put_pending(w, l, f) < 0 || put_marker(w, parent_len, name, f) < 0)
            return -1;
        w->t->whiteouts++;
        return 0;
    }
    if (strncmp(name, ".wh.", 4) == 0)
        return fail_set(f, FAIL_COMMAND,
                        "/%s: a file name that starts with .wh. cannot be kept in a layer",
                        w->path.p);
    if (S_ISSOCK(st.st_mode)) {
        char note[512];
        (void)snprintf(note, sizeof note, "/%.400s is a socket: left out of the layer", w->path.p);
        w->t->note(w->t->arg, note);
        return 0;
    }
    int rc = xattrs_load(l->upper, name, w->path.p, &x, f);
    if (rc == 0 && S_ISDIR(st.st_mode)) {
        rc = take_folder(w, l, below, image, name, &st, &x, f);
    } else if (rc == 0) {
        int same = st.st_nlink > 1 ? 0 : same_entry(w, l->upper, below, name, &st, &x, f);
        rc = same < 0 ? -1 : 0;
        if (same == 0)
            rc = put_pending(w, l, f);
        if (rc == 0 && same == 0)
            rc = put_other(w, l->upper, name, &st, &x, f);
    }
    xattrs_release(&x);
    return rc;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int list_folder(int fd, const char *path, struct words *names, struct fail *f)
{
    int own = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = own < 0 ? NULL : fdopendir(own);
    if (!d) {
        int saved = errno;
        if (own >= 0)
            (void)close(own);
        return fail_sys(f, saved, "open folder /%s", path);
    }
    const struct dirent *e;
    while (errno = 0, (e = readdir(d)))
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            words_add(names, e->d_name);
    int saved = errno;
    (void)closedir(d);
    if (saved)
        return fail_sys(f, saved, "read folder /%s", path);
    if (names->n > 1)
        qsort(names->v, names->n, sizeof *names->v, by_name);
    return 0;
}

static int walk_folder(struct walk *w, struct level *l, int below, int image, struct fail *f)
{
    struct words names = {0};
    size_t parent = w->path.n;
    int rc = list_folder(l->upper, w->path.p, &names, f);
    for (size_t i = 0; rc == 0 && i < names.n; i++) {
        if (parent)
            text_puts(&w->path, "/");
        text_puts(&w->path, names.v[i]);
        rc = take_entry(w, l, below, image, names.v[i], parent, f);
        w->path.n = parent;
        w->path.p[parent] = 0;
    }
    words_release(&names);
    return rc;
}

int takeout_run(struct takeout *t, struct fail *f)
{
    struct walk w = {.t = t, .buf_a = ag_alloc(COMPARE_BUFFER), .buf_b = ag_alloc(COMPARE_BUFFER)};
    struct level root = {.upper = t->upper, .path = "", .pending = false};
    struct xattrs x = {0};
    struct stat st;
    text_puts(&w.path, "");
    int rc = xattrs_load(t->upper, ".", "/", &x, f);
    if (rc == 0 && fstat(t->upper, &st) < 0)
        rc = fail_sys(f, errno, "stat the layer's folder");
    if (rc == 0) {
        int same = same_entry(&w, t->upper, t->below, ".", &st, &x, f);
        rc = same < 0 ? -1 : same ? 0 : put_folder(&w, "", &st, &x, f);
    }
    xattrs_release(&x);
    if (rc == 0)
        rc = walk_folder(&w, &root, t->below, t->image, f);
    for (size_t i = 0; i < w.cap_links; i++)
        free(w.links[i].path);
    free(w.links);
    text_release(&w.path);
    free(w.buf_a);
    free(w.buf_b);
    return rc;
}
