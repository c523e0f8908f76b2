/* What copies of git repositories there are (builder/git_mirror.h): also for who builds nothing. */
#include "builder/sweep.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

enum { DEPTH_MAX = 16 };

/* What is below folder @name of @at takes on the disk. */
static uint64_t size_below(int at, const char *name, unsigned depth)
{
    uint64_t sum = 0;
    CB_AUTO_FD fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    CB_AUTO_DIR d = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *e;
    if (d)
        (void)cb_take_fd(&fd);
    while (d && depth < DEPTH_MAX && (e = readdir(d))) {
        struct stat st;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 ||
            fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        sum += (uint64_t)st.st_blocks * 512;
        if (S_ISDIR(st.st_mode))
            sum += size_below(dirfd(d), e->d_name, depth + 1);
    }
    return sum;
}

void git_mirrors(const char *home, uint64_t *n, uint64_t *bytes)
{
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/git", home);
    CB_AUTO_DIR d = opendir(dir);
    const struct dirent *e;
    *n = *bytes = 0;
    while (d && (e = readdir(d))) {
        struct stat st;
        if (e->d_name[0] == '.' || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
            !S_ISDIR(st.st_mode))
            continue;
        *n += 1;
        *bytes += (uint64_t)st.st_blocks * 512 + size_below(dirfd(d), e->d_name, 0);
    }
}
