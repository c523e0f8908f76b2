/* What failed builds left to be looked at (builder/kept.h): also for who builds nothing. */
#include "builder/sweep.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { FOLDERS_MAX = 10000, DAY_MS = 86400000 };

struct found {
    char *name;
    int64_t made_ms;
    uint64_t bytes;
};

/* What would be free without it: not what is the store's as well. */
static uint64_t bytes_of(int at, const char *name)
{
    uint64_t sum = 0;
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    CB_AUTO_DIR d = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *e;
    if (!d)
        cb_close(fd);
    while (d && (e = readdir(d))) {
        struct stat st;
        if (fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode) &&
            st.st_nlink == 1)
            sum += (uint64_t)st.st_blocks * 512;
    }
    return sum;
}

static int newest_first(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    if (x->made_ms != y->made_ms)
        return x->made_ms < y->made_ms ? 1 : -1;
    return strcmp(y->name, x->name); /* names of builds grow with time */
}

static size_t list(int at, DIR *d, struct found **out)
{
    size_t n = 0, cap = 0;
    const struct dirent *e;
    *out = NULL;
    while (n < FOLDERS_MAX && (e = readdir(d))) {
        struct stat st;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 ||
            fstatat(at, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        *out = cb_xgrow(*out, &cap, n, sizeof(**out));
        (*out)[n++] = (struct found){
            cb_xstrdup(e->d_name), (int64_t)st.st_mtim.tv_sec * 1000 + st.st_mtim.tv_nsec / 1000000,
            bytes_of(at, e->d_name)};
    }
    if (n)
        qsort(*out, n, sizeof(**out), newest_first);
    return n;
}

void kept_states(const char *home, struct kept_sum *sum)
{
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/failed", home);
    CB_AUTO_DIR d = opendir(dir);
    struct found *v = NULL;
    *sum = (struct kept_sum){0};
    size_t n = d ? list(dirfd(d), d, &v) : 0;
    for (size_t i = 0; i < n; i++) {
        sum->n++;
        sum->bytes += v[i].bytes;
        free(v[i].name);
    }
    free(v);
}

bool kept_is_there(const char *home, const char *id)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/failed/%s/state.json", home, id);
    return cb_path_exists(path);
}

void kept_remove(const char *home, const char *id)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/failed/%s", home, id);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    (void)cb_remove_tree(path, &ignored);
}

/* A folder that was being filled has a day to be done. */
static bool too_old(const struct found *f, int64_t now, int64_t most_ms)
{
    int64_t age = now - f->made_ms;
    return age > (f->name[0] == '.' && most_ms > DAY_MS ? DAY_MS : most_ms);
}

void kept_trim(const char *home, const struct kept_limits *limits, bool dry_run,
               struct kept_sum *gone)
{
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/failed", home);
    CB_AUTO_DIR d = opendir(dir);
    struct found *v = NULL;
    uint64_t n_kept = 0, sum = 0;
    int64_t now = cb_now_ms();
    *gone = (struct kept_sum){0};
    size_t n = d ? list(dirfd(d), d, &v) : 0;
    for (size_t i = 0; i < n; i++) {
        bool is_state = v[i].name[0] != '.';
        if (too_old(&v[i], now, limits->age_ms) ||
            (is_state && (n_kept >= limits->count || sum + v[i].bytes > limits->bytes))) {
            if (!dry_run)
                kept_remove(home, v[i].name);
            gone->n += is_state;
            gone->bytes += v[i].bytes;
        } else if (is_state) {
            n_kept++;
            sum += v[i].bytes;
        }
        free(v[i].name);
    }
    free(v);
}
