#include "builder/context_files.h"

#include "schemas/pattern.h"
#include "support/buf.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

enum {
    DEPTH_MAX = 200, /* folders in folders: each is an open descriptor */
    IGNORE_FILE_MAX = 1 << 20,
    READ_SIZE = 256 << 10,
};

/* A folder on the way to what is being read. One that .dockerignore names is told to the pack only
 * when something in it was taken back in. */
struct level {
    struct level *up;
    size_t path_len;
    struct stat st;
    bool told;
};

struct walk {
    const struct context_folder *c;
    struct pack *p;
    char path[CB_PATH_MAX]; /* relative to the config's folder */
    size_t cut;             /* where the path in the pack begins */
    uint64_t taken;
    unsigned depth;
    uint8_t *buffer; /* READ_SIZE */
};

int context_folder_open(struct context_folder *c, const char *path, struct cb_error *err)
{
    CB_AUTO_BUF text = CB_BUF_INIT(IGNORE_FILE_MAX);
    *c = (struct context_folder){.fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (c->fd < 0)
        return cb_fail_sys(err, errno, "open the config's folder %s", path);
    int rc = 0;
    CB_AUTO_FD fd =
        openat(c->fd, ".dockerignore", O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return 0;
    if (fd < 0)
        rc = cb_fail(err, CB_E_CONFIG, ".dockerignore: %s",
                     errno == ELOOP ? "a symbolic link is not followed" : strerror(errno));
    else
        rc = cb_read_fd(fd, ".dockerignore", IGNORE_FILE_MAX, &text, err);
    if (rc == 0)
        rc = ignore_parse(text.data ? text.data : "", text.len, ".dockerignore", &c->ignore, err);
    if (rc < 0)
        context_folder_close(c);
    return rc;
}

void context_folder_close(struct context_folder *c)
{
    cb_close(c->fd);
    ignore_free(c->ignore);
    *c = (struct context_folder){.fd = -1};
}

static int fail_at(const struct walk *w, enum cb_code code, const char *what, struct cb_error *err)
{
    CB_AUTO_FREE char *shown = pack_shown(w->path);
    return cb_fail(err, code, "%s: %s", shown, what);
}

static int fail_sys_at(const struct walk *w, int sys, struct cb_error *err)
{
    CB_AUTO_FREE char *shown = pack_shown(w->path);
    if (sys == EACCES || sys == EPERM) {
        cb_fail(err, CB_E_CONFIG, "%s: %s", shown, strerror(sys));
        return cb_hint(err, "make it readable, or leave it out by a line in .dockerignore");
    }
    return cb_fail_sys(err, sys, "%s", shown);
}

static int changed(const struct walk *w, struct cb_error *err)
{
    fail_at(w, CB_E_CONFLICT, "it changed while it was read", err);
    return cb_hint(err, "build again when nothing writes there, or leave it out by a line in "
                        ".dockerignore");
}

static int special(const struct walk *w, mode_t mode, struct cb_error *err)
{
    fail_at(w, CB_E_CONFIG,
            S_ISSOCK(mode)   ? "a socket cannot be copied"
            : S_ISFIFO(mode) ? "a named pipe cannot be copied"
                             : "a device cannot be copied",
            err);
    return cb_hint(err, "leave it out by a line in .dockerignore");
}

/* A folder beneath the config's, reached without a link. -1 with errno. */
static int open_beneath(const struct context_folder *c, const char *path)
{
    const struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC,
                                 .resolve =
                                     RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    long fd;
    do
        fd = syscall(SYS_openat2, c->fd, path, &how, sizeof(how));
    while (fd < 0 && (errno == EAGAIN || errno == EINTR));
    return (int)fd;
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The names in folder @fd, sorted. */
static int list(const struct walk *w, int fd, struct cb_strv *names, struct cb_error *err)
{
    CB_AUTO_FD again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CB_AUTO_DIR d = again < 0 ? NULL : fdopendir(again);
    if (!d)
        return fail_sys_at(w, errno, err);
    (void)cb_take_fd(&again);
    for (;;) {
        errno = 0;
        const struct dirent *e = readdir(d);
        if (!e && errno)
            return fail_sys_at(w, errno, err);
        if (!e)
            break;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (names->n == PACK_ENTRIES_MAX)
            return fail_at(w, CB_E_LIMIT, "too many files in one folder", err);
        cb_strv_add(names, e->d_name);
    }
    if (names->n)
        qsort(names->v, names->n, sizeof(*names->v), by_bytes);
    return 0;
}

static struct frame_entry entry_of(const struct walk *w, size_t path_len, const struct stat *st,
                                   enum frame_entry_kind kind)
{
    size_t cut = w->cut < path_len ? w->cut : path_len;
    return (struct frame_entry){.kind = kind,
                                .mode = kind == ENTRY_LINK ? 0777 : (uint16_t)(st->st_mode & 0777),
                                .mtime = st->st_mtim.tv_sec,
                                .mtime_ns = (uint32_t)st->st_mtim.tv_nsec,
                                .path = w->path + cut,
                                .path_len = (uint16_t)(path_len - cut)};
}

/* Tells the pack of the folders that what comes next is in. */
static int tell(struct walk *w, struct level *l, struct cb_error *err)
{
    if (!l || l->told)
        return 0;
    int rc = tell(w, l->up, err);
    l->told = true;
    if (rc < 0 || l->path_len <= w->cut)
        return rc; /* the source itself is the destination */
    char kept = w->path[l->path_len];
    w->path[l->path_len] = '\0';
    struct frame_entry e = entry_of(w, l->path_len, &l->st, ENTRY_FOLDER);
    rc = pack_entry(w->p, &e, err);
    w->path[l->path_len] = kept;
    w->taken++;
    return rc;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static int take_file(struct walk *w, int dir, const char *name, const struct stat *seen,
                     struct cb_error *err)
{
    struct stat st;
    CB_AUTO_FD fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT || errno == ELOOP ? changed(w, err) : fail_sys_at(w, errno, err);
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || !same_file(&st, seen))
        return changed(w, err);
    struct frame_entry e = entry_of(w, strlen(w->path), &st, ENTRY_FILE);
    e.size = (uint64_t)st.st_size;
    int rc = pack_entry(w->p, &e, err);
    for (uint64_t left = e.size; rc >= 0 && left;) {
        ssize_t n = read(fd, w->buffer, left < READ_SIZE ? (size_t)left : (size_t)READ_SIZE);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? fail_sys_at(w, errno, err) : changed(w, err);
        left -= (uint64_t)n;
        rc = pack_data(w->p, w->buffer, (size_t)n, err);
    }
    if (rc >= 0 && (fstat(fd, &st) < 0 || !same_file(&st, seen)))
        return changed(w, err);
    return rc;
}

static int take_link(struct walk *w, int dir, const char *name, const struct stat *st,
                     struct cb_error *err)
{
    char target[CB_PATH_MAX];
    ssize_t n = readlinkat(dir, name, target, sizeof(target));
    if (n < 0)
        return changed(w, err);
    if ((size_t)n == sizeof(target))
        return fail_at(w, CB_E_CONFIG, "a link whose target is too long", err);
    target[n] = '\0';
    struct frame_entry e = entry_of(w, strlen(w->path), st, ENTRY_LINK);
    e.target = target;
    e.target_len = (uint32_t)n;
    return pack_entry(w->p, &e, err);
}

static int take_folder(struct walk *w, int fd, struct level *l, const uint8_t *fits,
                       struct cb_error *err);

/* What is at w->path: @name in folder @dir. @up: the folder's level; NULL: @name is the source
 * itself. @ignored: by .dockerignore; @fits: what of it fits. */
static int take(struct walk *w, int dir, const char *name, struct level *up, bool ignored,
                const uint8_t *fits, struct cb_error *err)
{
    struct level l = {.up = up, .path_len = strlen(w->path)};
    if (fstatat(dir, name, &l.st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT && up ? changed(w, err) : fail_sys_at(w, errno, err);
    bool folder = S_ISDIR(l.st.st_mode);
    if (ignored && !(folder && ignore_takes_back(w->c->ignore)))
        return 0;
    if (!folder && !S_ISREG(l.st.st_mode) && !S_ISLNK(l.st.st_mode))
        return special(w, l.st.st_mode, err);
    if (!folder) {
        int rc = tell(w, up, err);
        w->taken++;
        if (rc < 0)
            return rc;
        return S_ISREG(l.st.st_mode) ? take_file(w, dir, name, &l.st, err)
                                     : take_link(w, dir, name, &l.st, err);
    }
    CB_AUTO_FD fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT || errno == ELOOP || errno == ENOTDIR ? changed(w, err)
                                                                     : fail_sys_at(w, errno, err);
    if (!up) /* the source itself: what is in it goes to the destination */
        w->cut = l.path_len + 1;
    if (!ignored) {
        int rc = tell(w, &l, err);
        if (rc < 0)
            return rc;
    }
    return take_folder(w, fd, &l, fits, err);
}

/* All that is in the folder at w->path. */
static int take_folder(struct walk *w, int fd, struct level *l, const uint8_t *fits,
                       struct cb_error *err)
{
    CB_AUTO_STRV names = {0};
    int rc = w->depth == DEPTH_MAX ? fail_at(w, CB_E_LIMIT, "too many folders in folders", err)
                                   : list(w, fd, &names, err);
    size_t len = strlen(w->path);
    CB_AUTO_FREE uint8_t *here = cb_xcalloc(ignore_rules(w->c->ignore) + 1, 1);
    w->depth++;
    for (size_t i = 0; rc >= 0 && i < names.n; i++) {
        const char *slash = len ? "/" : "";
        int n = snprintf(w->path + len, sizeof(w->path) - len, "%s%s", slash, names.v[i]);
        if (n < 0 || (size_t)n >= sizeof(w->path) - len) {
            rc = fail_at(w, CB_E_LIMIT, "a path that is too long", err);
            break;
        }
        bool ignored = ignore_match(w->c->ignore, w->path, fits, here);
        rc = take(w, fd, names.v[i], l, ignored, here, err);
    }
    w->path[len] = '\0';
    w->depth--;
    return rc;
}

/* The whole of the config's folder. */
static int take_all(struct walk *w, struct cb_error *err)
{
    struct level top = {.told = true};
    CB_AUTO_FD fd = openat(w->c->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return fail_sys_at(w, errno, err);
    return take_folder(w, fd, &top, NULL, err);
}

static int fail_source(const struct walk *w, int sys, struct cb_error *err)
{
    if (sys == ENOENT || sys == ENOTDIR)
        return fail_at(w, CB_E_CONFIG, "there is no such file or folder beside the config", err);
    if (sys == ELOOP)
        return fail_at(w, CB_E_CONFIG,
                       "the way there goes through a symbolic link, which is not followed; name "
                       "what it leads to",
                       err);
    if (sys == EXDEV)
        return fail_at(w, CB_E_CONFIG, "it is not in the config's folder", err);
    return fail_sys_at(w, sys, err);
}

/* 1: taken, 0: .dockerignore leaves all of it out. */
static int take_source(struct walk *w, struct context_place *place, struct cb_error *err)
{
    CB_AUTO_FREE uint8_t *fits = cb_xcalloc(ignore_rules(w->c->ignore) + 1, 1);
    CB_AUTO_FREE char *parent = cb_xstrdup(w->path);
    char *slash = strrchr(parent, '/');
    const char *name = slash ? slash + 1 : w->path;
    CB_AUTO_FREE char *last = cb_xstrdup(name);
    w->cut = (size_t)(slash ? slash + 1 - parent : 0);
    for (char *s = strchr(parent, '/'); s; s = strchr(s + 1, '/')) {
        *s = '\0';
        (void)ignore_match(w->c->ignore, parent, fits, fits);
        if (s != slash)
            *s = '/';
    }
    bool ignored = ignore_match(w->c->ignore, w->path, fits, fits);
    CB_AUTO_FD dir = open_beneath(w->c, slash ? parent : ".");
    struct stat st;
    if (dir < 0 || fstatat(dir, last, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return fail_source(w, errno, err);
    if (S_ISDIR(st.st_mode))
        place->folder = true;
    int rc = take(w, dir, last, NULL, ignored, fits, err);
    return rc < 0 ? rc : !ignored || w->taken > 0;
}

static int walk_init(struct walk *w, const struct context_folder *c, const char *source,
                     struct pack *p, struct cb_error *err)
{
    CB_AUTO_FREE char *clean = path_clean(source);
    *w = (struct walk){.c = c, .p = p};
    size_t len = strlen(clean);
    if (len >= sizeof(w->path))
        return cb_fail(err, CB_E_CONFIG, "a path that is too long");
    if (strcmp(clean, ".") != 0)
        memcpy(w->path, clean, len + 1);
    if (*clean == '/' || strcmp(clean, "..") == 0 || strncmp(clean, "../", 3) == 0)
        return fail_source(w, EXDEV, err);
    w->buffer = cb_xmalloc(READ_SIZE);
    return 0;
}

/* 1: taken, 0: left out. */
static int pack_source(const struct context_folder *c, const char *source, struct pack *p,
                       struct context_place *place, struct cb_error *err)
{
    struct walk w;
    int rc = walk_init(&w, c, source, p, err);
    if (rc < 0)
        return rc;
    if (w.path[0]) {
        rc = take_source(&w, place, err);
    } else {
        place->folder = true;
        rc = take_all(&w, err);
        rc = rc < 0 ? rc : 1;
    }
    free(w.buffer);
    return rc;
}

int context_pack(const struct context_folder *c, const char *source, struct pack *p,
                 struct context_place *place, struct cb_error *err)
{
    int rc = pack_source(c, source, p, place, err);
    if (rc == 0) {
        CB_AUTO_FREE char *shown = pack_shown(source);
        return cb_fail(err, CB_E_CONFIG, "%s: .dockerignore leaves it out", shown);
    }
    return rc < 0 ? rc : 0;
}

/* ---- wildcards ---- */

/* What fits @rest below @prefix ("" or "a/b/"), in the order of names. */
static int expand(const struct context_folder *c, const char *prefix, const char *rest,
                  struct cb_strv *out, struct cb_error *err)
{
    size_t n = strcspn(rest, "/");
    bool last = rest[n] == '\0';
    CB_AUTO_FREE char *part = cb_xstrndup(rest, n);
    struct pattern *pat = NULL;
    int rc = pattern_compile(part, 0, &pat, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FD dir = open_beneath(c, *prefix ? prefix : ".");
    CB_AUTO_STRV names = {0};
    struct walk at = {.c = c};
    (void)snprintf(at.path, sizeof(at.path), "%s", prefix);
    if (dir >= 0)
        rc = list(&at, dir, &names, err);
    else if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP)
        rc = fail_sys_at(&at, errno, err); /* else it is no folder, and fits nothing */
    for (size_t i = 0; rc >= 0 && i < names.n; i++) {
        if (!pattern_match(pat, names.v[i]))
            continue;
        if (last) {
            cb_strv_addf(out, "%s%s", prefix, names.v[i]);
            continue;
        }
        CB_AUTO_FREE char *below = cb_xasprintf("%s%s/", prefix, names.v[i]);
        rc = expand(c, below, rest + n + 1, out, err);
    }
    pattern_free(pat);
    return rc;
}

int context_pack_wild(const struct context_folder *c, const char *source, struct pack *p,
                      struct context_place *place, struct cb_error *err)
{
    if (!pattern_is_wild(source))
        return context_pack(c, source, p, place, err);
    CB_AUTO_FREE char *clean = path_clean(source);
    CB_AUTO_STRV found = {0};
    CB_AUTO_FREE char *shown = pack_shown(source);
    int rc = expand(c, "", clean, &found, err);
    if (rc < 0)
        return cb_wrap(err, "%s", shown);
    size_t taken = 0;
    for (size_t i = 0; rc >= 0 && i < found.n; i++) {
        rc = pack_source(c, found.v[i], p, place, err);
        taken += rc > 0;
    }
    if (rc >= 0 && !taken)
        return cb_fail(err, CB_E_CONFIG, "%s: nothing beside the config fits%s", shown,
                       found.n ? " but what .dockerignore leaves out" : "");
    place->folder = place->folder || taken > 1;
    return rc < 0 ? rc : 0;
}
