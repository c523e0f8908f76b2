#include "builder/module_source.h"

#include "layers/ext4_read.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <fts.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define COPY_STEP (1u << 20)

CB_DEFINE_CLEANUP(ext4_file, struct ext4_file *, ext4_file_close);
CB_DEFINE_CLEANUP(ext4_walk, struct ext4_walk *, ext4_walk_close);

static int each_in_folder(const char *dir, module_source_add *add, void *to, struct cb_error *err)
{
    CB_AUTO_FREE char *root = cb_xstrdup(dir);
    char *const roots[] = {root, NULL};
    FTS *fts = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR | FTS_NOSTAT, NULL);
    if (!fts)
        return cb_fail_sys(err, errno, "read %s", root);
    int rc = 0;
    for (FTSENT *e; rc == 0 && (e = fts_read(fts)) != NULL;) {
        if (e->fts_info == FTS_DNR || e->fts_info == FTS_ERR)
            rc = cb_fail_sys(err, e->fts_errno, "read %s", e->fts_path);
        else if (e->fts_info == FTS_F || e->fts_info == FTS_NSOK)
            rc = add(to, e->fts_path, err);
    }
    (void)fts_close(fts);
    return rc;
}

/* Is @path what @dir is, or below it? */
static bool is_below(const char *path, const char *dir)
{
    size_t n = strlen(dir);
    return strncmp(path, dir, n) == 0 && (path[n] == '/' || path[n] == '\0');
}

static int each_in_image(struct ext4_image *im, const char *dir, module_source_add *add, void *to,
                         struct cb_error *err)
{
    CB_AUTO(ext4_walk) w = NULL;
    struct ext4_entry e;
    int rc = ext4_walk_open(im, 0, &w, err);
    while (rc == 0 && (rc = ext4_walk_next(w, &e, err)) == 1) {
        bool way = strcmp(e.path, ".") == 0 || is_below(dir, e.path);
        rc = 0;
        if (S_ISDIR(e.mode) && !way && !is_below(e.path, dir))
            ext4_walk_skip(w);
        else if (S_ISREG(e.mode) && is_below(e.path, dir))
            rc = add(to, e.path, err);
    }
    return rc;
}

int module_source_each(const struct module_source *s, module_source_add *add, void *to,
                       struct cb_error *err)
{
    return s->im ? each_in_image(s->im, s->dir, add, to, err)
                 : each_in_folder(s->dir, add, to, err);
}

static int copy_to(int fd, struct ext4_file *f, struct cb_error *err)
{
    CB_AUTO_FREE char *step = cb_xmalloc(COPY_STEP);
    for (uint64_t at = 0; at < ext4_file_size(f);) {
        int64_t n = ext4_file_pread(f, step, COPY_STEP, at, err);
        if (n <= 0)
            return n < 0 ? (int)n : cb_fail(err, CB_E_CORRUPT, "it ends too early");
        int rc = cb_pwrite_all(fd, step, (size_t)n, (off_t)at, err);
        if (rc < 0)
            return rc;
        at += (uint64_t)n;
    }
    return 0;
}

static int open_in_image(struct ext4_image *im, const char *path, size_t max, struct cb_error *err)
{
    struct ext4_entry e;
    CB_AUTO(ext4_file) f = NULL;
    int rc = ext4_image_lookup(im, path, true, &e, err);
    if (rc < 0)
        return rc;
    if (!S_ISREG(e.mode))
        return cb_fail(err, CB_E_NOTFOUND, "%s is not a file", path);
    if (e.size > max)
        return cb_fail(err, CB_E_LIMIT, "%s: larger than %zu MiB", path, max >> 20);
    if ((rc = ext4_file_open(im, e.ino, &f, err)) < 0)
        return rc;
    CB_AUTO_FD fd = memfd_create("module", MFD_CLOEXEC);
    if (fd < 0)
        return cb_fail_sys(err, errno, "read %s", path);
    if ((rc = copy_to(fd, f, err)) < 0)
        return cb_wrap(err, "read %s", path);
    return cb_take_fd(&fd);
}

int module_source_open(const struct module_source *s, const char *path, size_t max,
                       struct cb_error *err)
{
    if (s->im)
        return open_in_image(s->im, path, max, err);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return cb_fail(err, CB_E_NOTFOUND, "%s is not there", path);
    return fd < 0 ? cb_fail_sys(err, errno, "read %s", path) : fd;
}
