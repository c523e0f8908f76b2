/* adopt: a layer's earlier result as an upper of overlayfs, which the host wrote from the layer's
 * tar. A tar says nothing of a folder that did not change, and overlayfs needs one where something
 * in it did: those are marked, and get here what the folder below has. */
#include "builder/agent/agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define IMPLICIT "trusted.capsule.implicit" /* layers/tar_apply.h */
#define DEPTH_MAX 300                       /* three descriptors a level */

static int adopt_in(int upper, int below, unsigned depth, struct fail *f);

static int open_folder(int at, const char *name)
{
    return at < 0 ? -1 : openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* @below: -1 where there is nothing. */
static int adopt_one(int upper, int below, unsigned depth, struct fail *f)
{
    char value[8];
    if (depth > DEPTH_MAX)
        return fail_set(f, FAIL_COMMAND, "the earlier result has folders deeper than %d levels",
                        DEPTH_MAX);
    if (adopt_in(upper, below, depth, f) < 0)
        return -1;
    if (fgetxattr(upper, IMPLICIT, value, sizeof value) < 0)
        return 0;
    if (fremovexattr(upper, IMPLICIT) < 0 || (below >= 0 && copy_dir_attributes(below, upper) < 0))
        return fail_sys(f, errno, "scratch: describe a folder of the earlier result");
    return 0;
}

static int adopt_in(int upper, int below, unsigned depth, struct fail *f)
{
    int own = openat(upper, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;
    DIR *d = own < 0 ? NULL : fdopendir(own);
    if (!d) {
        int saved = errno;
        if (own >= 0)
            (void)close(own);
        return fail_sys(f, saved, "scratch: read the earlier result");
    }
    const struct dirent *e;
    while (rc == 0 && (e = readdir(d))) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        int a = open_folder(upper, e->d_name);
        if (a < 0)
            continue; /* no folder */
        int b = open_folder(below, e->d_name);
        rc = adopt_one(a, b, depth + 1, f);
        (void)close(a);
        if (b >= 0)
            (void)close(b);
    }
    (void)closedir(d);
    return rc;
}

int adopt_folders(int upper, int below, struct fail *f)
{
    return adopt_one(upper, below, 0, f);
}
