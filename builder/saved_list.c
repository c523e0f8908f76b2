/* What builder machines are saved (builder/saved.h): also for who builds nothing. */
#include "builder/sweep.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <fcntl.h>
#include <sys/stat.h>

void saved_machines(const char *home, uint64_t *n, uint64_t *bytes)
{
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/saved", home);
    CB_AUTO_DIR d = opendir(dir);
    const struct dirent *e;
    *n = *bytes = 0;
    while (d && (e = readdir(d))) {
        struct stat st;
        if (e->d_name[0] == '.' || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
            !S_ISREG(st.st_mode))
            continue;
        *n += 1;
        *bytes += (uint64_t)st.st_blocks * 512;
    }
}
