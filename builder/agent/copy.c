/* copy: files from the host become files of the layer. Runs in the layer's init, whose root is the
 * layer's. Paths are resolved by the kernel inside that root: a link of the image may lead anywhere
 * in the image and nowhere else, and not into what is mounted there (/proc, /run...), for that is
 * not kept; drives are, and commands that fill them may copy there. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_openat2
#define SYS_openat2 437
#endif
/* linux/openat2.h, which the static libc's headers do not bring */
#define HOW_NO_XDEV 0x01u
#define HOW_NO_MAGICLINKS 0x02u
#define HOW_IN_ROOT 0x10u
struct how {
    uint64_t flags, mode, resolve;
};

static int take_path(const struct frame_field *x, char **out, struct fail *f)
{
    if (!frame_is_text(x, FRAME_PATH_MAX) || x->len == 0 || x->data[0] != '/')
        return fail_set(f, FAIL_PROTOCOL, "COPY: no absolute path");
    free(*out);
    *out = ag_strndup(x->data, x->len);
    return 0;
}

static int take_name(const struct frame_field *x, char **out, struct fail *f)
{
    if (!frame_is_text(x, 256))
        return fail_set(f, FAIL_PROTOCOL, "COPY: no user");
    free(*out);
    *out = ag_strndup(x->data, x->len);
    return 0;
}

void copy_spec_release(struct copy_spec *s)
{
    free(s->to);
    free(s->owner);
    free(s->user);
    *s = (struct copy_spec){0};
}

int copy_parse(struct copy_spec *s, const uint8_t *p, size_t n, struct fail *f)
{
    struct frame_field x;
    uint64_t v = 0;
    int got, rc = 0;
    *s = (struct copy_spec){.mode = -1};
    for (const uint8_t *end = p + n; rc == 0 && (got = frame_next(&p, end, &x)) != 0;) {
        if (got < 0)
            return fail_set(f, FAIL_PROTOCOL, "a field that does not end");
        bool number = x.tag == TAG_COPY_MODE || x.tag == TAG_COPY_FOLDER ||
                      x.tag == TAG_COPY_MOUNTS || x.tag == TAG_ROOT;
        if (number && !frame_number(&x, &v))
            return fail_set(f, FAIL_PROTOCOL, "field %u is not a number", x.tag);
        switch (x.tag) {
        case TAG_COPY_TO: rc = take_path(&x, &s->to, f); break;
        case TAG_COPY_OWNER: rc = take_name(&x, &s->owner, f); break;
        case TAG_USER: rc = take_name(&x, &s->user, f); break;
        case TAG_COPY_MODE: s->mode = (int)(v & 07777); break;
        case TAG_COPY_FOLDER: s->folder = v != 0; break;
        case TAG_COPY_MOUNTS: s->mounts = v != 0; break;
        case TAG_ROOT: s->root = v != 0; break;
        default: break;
        }
    }
    if (rc == 0 && !s->to)
        return fail_set(f, FAIL_PROTOCOL, "COPY without a place");
    return rc;
}

/* A descriptor of the folder @path of the layer, or -1 with errno. */
static int open_folder(const struct copying *c, const char *path)
{
    const struct how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
                            .resolve =
                                HOW_IN_ROOT | HOW_NO_MAGICLINKS | (c->mounts ? 0 : HOW_NO_XDEV)};
    long fd;
    do
        fd = syscall(SYS_openat2, c->root, path, &how, sizeof how);
    while (fd < 0 && (errno == EAGAIN || errno == EINTR));
    return (int)fd;
}

static int refuse(const char *path, int err, struct fail *f)
{
    if (err == EXDEV)
        return fail_set(f, FAIL_COMMAND,
                        "%s: nothing can be copied there: what is mounted there while commands run "
                        "is not part of the image",
                        path);
    if (err == ENOTDIR || err == EEXIST)
        return fail_set(f, FAIL_COMMAND, "%s: a part of this path is not a folder in the image",
                        path);
    if (err == ELOOP || err == ENAMETOOLONG)
        return fail_set(f, FAIL_COMMAND, "%s: %s", path, strerror(err));
    return fail_sys(f, err, "%s", path);
}

/* A new folder with its owner and mode. What a process of the layer puts in its place meanwhile is
 * not followed. */
static int new_folder(const struct copying *c, int at, const char *name, int mode)
{
    if (mkdirat(at, name, 0700) < 0)
        return -1;
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int rc = fd < 0 || fchown(fd, c->uid, c->gid) < 0 || fchmod(fd, (mode_t)mode) < 0 ? -1 : 0;
    int saved = errno;
    if (fd >= 0)
        (void)close(fd);
    errno = saved;
    return rc;
}

/* The folder @path, made with @mode when it is missing, with all that it is below. An owned
 * descriptor. */
static int make_folder(const struct copying *c, const char *path, int mode, struct fail *f)
{
    int fd = open_folder(c, path);
    if (fd >= 0)
        return fd;
    if (errno != ENOENT)
        return refuse(path, errno, f);
    const char *name = strrchr(path, '/') + 1;
    char *parent = ag_strndup(path, name - 1 > path ? (size_t)(name - 1 - path) : 1);
    int up = make_folder(c, parent, 0755, f);
    free(parent);
    if (up < 0)
        return -1;
    int rc = new_folder(c, up, name, mode);
    int saved = errno;
    (void)close(up);
    if (rc < 0)
        return refuse(path, saved, f);
    fd = open_folder(c, path);
    return fd < 0 ? refuse(path, errno, f) : fd;
}

void copy_end(struct copying *c)
{
    if (c->root > 0)
        (void)close(c->root);
    if (c->parent > 0)
        (void)close(c->parent);
    if (c->file > 0)
        (void)close(c->file);
    free(c->to);
    free(c->as);
    free(c->parent_path);
    *c = (struct copying){0};
}

/* A mode of --chmod is one for files: a folder that can be read can be entered too. */
static int folder_mode(const struct copying *c, int own_mode)
{
    return c->mode < 0 ? own_mode : c->mode | (c->mode & 0444) >> 2;
}

int copy_begin(struct copying *c, const struct copy_spec *s, const struct ident *who,
               struct fail *f)
{
    copy_end(c);
    if (s->to[1] && !frame_path_clean(s->to + 1, strlen(s->to + 1)))
        return fail_set(f, FAIL_PROTOCOL, "COPY: no clean path");
    c->root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (c->root < 0)
        return fail_sys(f, errno, "open the layer's root");
    c->uid = who->uid;
    c->gid = who->gid;
    c->mode = s->mode;
    c->open = true;
    c->mounts = s->mounts;
    c->to = ag_strdup(s->to);
    int fd = s->folder ? make_folder(c, c->to, folder_mode(c, 0755), f) : open_folder(c, c->to);
    if (fd >= 0) {
        (void)close(fd);
        return 0;
    }
    if (s->folder)
        return -1;
    if (errno != ENOENT && errno != ENOTDIR)
        return refuse(c->to, errno, f);
    char *slash = strrchr(c->to, '/'); /* a file of that name, in a folder that may be missing */
    c->as = ag_strdup(slash + 1);
    slash[slash == c->to] = 0;
    fd = make_folder(c, c->to, 0755, f);
    if (fd < 0)
        return -1;
    (void)close(fd);
    return 0;
}

/* "/srv/app" and an entry "a/b": "/srv/app/a/b". */
static char *place_of(const struct copying *c, const struct frame_entry *e)
{
    struct text t = {0};
    text_puts(&t, strcmp(c->to, "/") == 0 ? "" : c->to);
    text_puts(&t, "/");
    if (c->as)
        text_puts(&t, c->as);
    else
        text_add(&t, e->path, e->path_len);
    return t.p;
}

/* Opens the folder that @path is in; entries of one folder come one after the other. */
static int enter_parent(struct copying *c, const char *path, struct fail *f)
{
    size_t n = (size_t)(strrchr(path, '/') - path);
    n += n == 0;
    if (c->parent_path && strlen(c->parent_path) == n && memcmp(c->parent_path, path, n) == 0)
        return 0;
    char *up = ag_strndup(path, n);
    int fd = make_folder(c, up, 0755, f);
    if (fd < 0) {
        free(up);
        return -1;
    }
    if (c->parent > 0)
        (void)close(c->parent);
    free(c->parent_path);
    c->parent = fd;
    c->parent_path = up;
    return 0;
}

/* What is in the way of a file or link goes; a folder stays, and that is an error. */
static int make_way(const struct copying *c, const char *path, const char *name, struct fail *f)
{
    struct stat st;
    if (fstatat(c->parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : fail_sys(f, errno, "%s", path);
    if (S_ISDIR(st.st_mode))
        return fail_set(f, FAIL_COMMAND, "%s: there is a folder of that name in the image", path);
    if (unlinkat(c->parent, name, 0) < 0)
        return fail_sys(f, errno, "%s", path);
    return 0;
}

static int put_link(const struct copying *c, const char *path, const char *name,
                    const struct frame_entry *e, struct fail *f)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                                      {.tv_sec = e->mtime, .tv_nsec = e->mtime_ns}};
    char *target = ag_strndup(e->target, e->target_len);
    int rc = symlinkat(target, c->parent, name);
    free(target);
    if (rc < 0 || fchownat(c->parent, name, c->uid, c->gid, AT_SYMLINK_NOFOLLOW) < 0 ||
        utimensat(c->parent, name, times, AT_SYMLINK_NOFOLLOW) < 0)
        return fail_sys(f, errno, "%s", path);
    return 0;
}

/* Everything of the file is there. */
static int finish_file(struct copying *c, struct fail *f)
{
    if (c->file <= 0)
        return 0;
    if (c->left)
        return fail_set(f, FAIL_PROTOCOL, "COPY_DATA: a file that is too short");
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, c->mtime};
    int rc = fchown(c->file, c->uid, c->gid) < 0 || fchmod(c->file, c->file_mode) < 0 ||
             futimens(c->file, times) < 0;
    int saved = errno;
    (void)close(c->file);
    c->file = 0;
    return rc ? fail_sys(f, saved, "set the owner and mode of a file") : 0;
}

static int put_file(struct copying *c, const char *path, const char *name,
                    const struct frame_entry *e, struct fail *f)
{
    c->file = openat(c->parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (c->file < 0)
        return fail_sys(f, errno, "%s", path);
    c->left = e->size;
    c->mtime = (struct timespec){.tv_sec = e->mtime, .tv_nsec = e->mtime_ns};
    c->file_mode = c->mode < 0 ? e->mode : (mode_t)c->mode;
    return e->size ? 0 : finish_file(c, f);
}

static int put_entry(struct copying *c, const struct frame_field *x, struct fail *f)
{
    struct frame_entry e;
    if (finish_file(c, f) < 0)
        return -1;
    if (!frame_entry_parse(x->data, x->len, &e))
        return fail_set(f, FAIL_PROTOCOL, "COPY_DATA: a malformed entry");
    char *path = place_of(c, &e);
    const char *name = strrchr(path, '/') + 1;
    int rc = 0;
    if (e.kind == ENTRY_FOLDER) {
        int fd = make_folder(c, path, folder_mode(c, e.mode), f);
        rc = fd < 0 ? -1 : 0;
        if (fd >= 0)
            (void)close(fd);
    } else if (enter_parent(c, path, f) < 0 || make_way(c, path, name, f) < 0) {
        rc = -1;
    } else {
        rc = e.kind == ENTRY_LINK ? put_link(c, path, name, &e, f) : put_file(c, path, name, &e, f);
    }
    free(path);
    return rc;
}

static int put_data(struct copying *c, const struct frame_field *x, struct fail *f)
{
    if (c->file <= 0 || x->len > c->left)
        return fail_set(f, FAIL_PROTOCOL, "COPY_DATA: bytes of no file");
    if (write_all(c->file, x->data, x->len) < 0)
        return fail_sys(f, errno, "write to the layer");
    c->left -= x->len;
    return c->left ? 0 : finish_file(c, f);
}

int copy_data(struct copying *c, const uint8_t *p, size_t n, struct fail *f)
{
    struct frame_field x;
    int got, rc = 0;
    if (!c->open)
        return fail_set(f, FAIL_PROTOCOL, "COPY_DATA without COPY");
    for (const uint8_t *end = p + n; rc == 0 && (got = frame_next(&p, end, &x)) != 0;) {
        if (got < 0)
            return fail_set(f, FAIL_PROTOCOL, "a field that does not end");
        if (x.tag == TAG_ENTRY)
            rc = put_entry(c, &x, f);
        else if (x.tag == TAG_DATA)
            rc = put_data(c, &x, f);
        else if (x.tag == TAG_COPY_END && (rc = finish_file(c, f)) == 0)
            copy_end(c);
        if (!c->open)
            break;
    }
    return rc;
}
