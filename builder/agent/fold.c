/* fold: two overlay uppers become one. A command that may be tried again works on an upper of its
 * own; when it succeeded, what it did is moved into the layer's upper, which lay right below.
 * Afterwards the layer's upper alone shows what the two showed together, so a layer has one upper
 * at its end, however many of its commands could have been tried again. All moves are renames
 * within one file system; no content is read.
 *
 * What decides is the kind of the upper's entry and of what lies in its place below:
 *
 *     whiteout, or no folder      replaces what is there
 *     opaque folder               replaces what is there, and stays opaque
 *     folder over a folder        gives it its attributes; then the same for what is in it
 *     folder over anything else   replaces it and becomes opaque: what was hidden stays hidden
 *     folder over nothing         is moved; what lies further below shows through as before */
#include "builder/agent/agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define DEPTH_MAX 1100 /* of takeout.c, which refuses before, and some */

static int open_dir_at(int at, const char *name)
{
    return openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static DIR *list(int at, const char *name)
{
    int fd = open_dir_at(at, name);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d && fd >= 0) {
        int saved = errno;
        (void)close(fd);
        errno = saved;
    }
    return d;
}

static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* Without recursion: a hostile tree is as deep as its maker likes. Each pass goes down to a folder
 * that has no folders and takes it away; @at stays where it is. -1 with errno. */
static int empty_folder(int at, const char *name)
{
    for (;;) {
        int fd = open_dir_at(at, name), up = -1;
        char last[256] = "";
        if (fd < 0)
            return errno == ENOENT ? 0 : -1;
        for (bool down = true; down;) {
            DIR *d = list(fd, ".");
            const struct dirent *e;
            down = false;
            while (d && !down && (e = readdir(d))) {
                struct stat st;
                if (is_dots(e->d_name))
                    continue;
                if (fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode)) {
                    int below = open_dir_at(fd, e->d_name);
                    if (below < 0)
                        break;
                    (void)snprintf(last, sizeof last, "%s", e->d_name);
                    if (up >= 0)
                        (void)close(up);
                    up = fd;
                    fd = below;
                    down = true;
                } else {
                    (void)unlinkat(fd, e->d_name, 0);
                }
            }
            if (d)
                (void)closedir(d);
        }
        int rc = up < 0 ? unlinkat(at, name, AT_REMOVEDIR) : unlinkat(up, last, AT_REMOVEDIR);
        int saved = errno;
        (void)close(fd);
        if (up >= 0)
            (void)close(up);
        errno = saved;
        if (rc < 0 || up < 0)
            return rc;
    }
}

int remove_below(int at, const char *name, struct fail *f)
{
    struct stat st;
    if (fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : fail_sys(f, errno, "scratch: %s", name);
    int rc = S_ISDIR(st.st_mode) ? empty_folder(at, name) : unlinkat(at, name, 0);
    return rc < 0 ? fail_sys(f, errno, "scratch: remove %s", name) : 0;
}

static bool opaque_as(int fd, const char *attribute)
{
    char v;
    return fgetxattr(fd, attribute, &v, 1) == 1 && v == 'y';
}

static bool is_opaque(int fd)
{
    return opaque_as(fd, "trusted.overlay.opaque") || opaque_as(fd, "user.overlay.opaque");
}

/* In a user namespace overlay's attributes are user.*; the first that can be set is the right one.
 */
static int make_opaque(int fd)
{
    if (fsetxattr(fd, "trusted.overlay.opaque", "y", 1, 0) == 0)
        return 0;
    return fsetxattr(fd, "user.overlay.opaque", "y", 1, 0);
}

static int replace(int from, int to, const char *name, struct fail *f)
{
    if (remove_below(to, name, f) < 0)
        return -1;
    if (renameat(from, name, to, name) < 0)
        return fail_sys(f, errno, "scratch: move %s", name);
    return 0;
}

static int fold(int from, int to, unsigned depth, struct fail *f);

static int fold_folder(int from, int to, const char *name, unsigned depth, struct fail *f)
{
    struct stat old;
    bool there = fstatat(to, name, &old, AT_SYMLINK_NOFOLLOW) == 0;
    int a = open_dir_at(from, name);
    if (a < 0)
        return fail_sys(f, errno, "scratch: open %s", name);
    bool opaque = is_opaque(a);
    int rc = 0;
    if (!there || opaque || !S_ISDIR(old.st_mode)) {
        if (there && !opaque && make_opaque(a) < 0)
            rc = fail_sys(f, errno, "scratch: %s", name);
        if (rc == 0)
            rc = replace(from, to, name, f);
        (void)close(a);
        return rc;
    }
    int b = open_dir_at(to, name);
    if (b < 0)
        rc = fail_sys(f, errno, "scratch: open %s", name);
    if (rc == 0)
        rc = fold(a, b, depth + 1, f);
    if (b >= 0)
        (void)close(b);
    (void)close(a);
    if (rc == 0 && unlinkat(from, name, AT_REMOVEDIR) < 0)
        rc = fail_sys(f, errno, "scratch: remove %s", name);
    return rc;
}

/* Attributes that were removed are gone from the one that they are copied to as well; what is
 * overlay's own stays with it. */
static int take_attributes(int from, int to, struct fail *f)
{
    static char names[65536];
    ssize_t n = flistxattr(to, names, sizeof names);
    for (ssize_t i = 0; i < n;) {
        const char *key = names + i;
        i += (ssize_t)strlen(key) + 1;
        if (strncmp(key, "trusted.overlay.", 16) != 0 && strncmp(key, "user.overlay.", 13) != 0 &&
            fgetxattr(from, key, NULL, 0) < 0)
            (void)fremovexattr(to, key);
    }
    if (copy_dir_attributes(from, to) < 0)
        return fail_sys(f, errno, "scratch: copy attributes");
    return 0;
}

static int fold(int from, int to, unsigned depth, struct fail *f)
{
    struct words names = {0};
    int rc = 0;
    if (depth > DEPTH_MAX)
        return fail_set(f, FAIL_COMMAND, "folders deeper than %d levels", DEPTH_MAX);
    DIR *d = list(from, ".");
    if (!d)
        return fail_sys(f, errno, "scratch: read a folder");
    const struct dirent *e;
    while ((e = readdir(d)))
        if (!is_dots(e->d_name))
            words_add(&names, e->d_name);
    (void)closedir(d);
    /* before its times change by what is moved out of it */
    struct stat st;
    if (fstat(from, &st) < 0)
        rc = fail_sys(f, errno, "scratch: stat a folder");
    for (size_t i = 0; rc == 0 && i < names.n; i++) {
        struct stat s;
        if (fstatat(from, names.v[i], &s, AT_SYMLINK_NOFOLLOW) < 0)
            rc = fail_sys(f, errno, "scratch: %s", names.v[i]);
        else if (S_ISDIR(s.st_mode))
            rc = fold_folder(from, to, names.v[i], depth, f);
        else
            rc = replace(from, to, names.v[i], f);
    }
    words_release(&names);
    if (rc < 0)
        return rc;
    const struct timespec times[2] = {st.st_atim, st.st_mtim};
    if (take_attributes(from, to, f) < 0)
        return -1;
    return futimens(to, times) < 0 ? fail_sys(f, errno, "scratch: set times") : 0;
}

int fold_upper(int from, int to, struct fail *f)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) { /* two descriptors a level of folders */
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    return fold(from, to, 0, f);
}
