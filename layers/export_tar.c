/* dir-tar: all names of the image in one PAX tar, by libarchive. */
#include "layers/export_private.h"

#include "layers/ext4_read.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <locale.h>
#include <string.h>
#include <sys/stat.h>

enum { PIECE = 1 << 20 };

struct tar {
    struct export *x;
    struct ext4_image *image;
    struct archive *a;
    int fd;
    bool failed; /* nothing more is written */
    char *buf;   /* PIECE bytes */
};

CB_DEFINE_CLEANUP(image, struct ext4_image *, ext4_image_close);
CB_DEFINE_CLEANUP(walk, struct ext4_walk *, ext4_walk_close);
CB_DEFINE_CLEANUP(content, struct ext4_file *, ext4_file_close);
CB_DEFINE_CLEANUP(entry, struct archive_entry *, archive_entry_free);

/* libarchive keeps errors of ours as numbers only: what failed is said by who closes. */
static la_ssize_t on_write(struct archive *a, void *arg, const void *p, size_t n)
{
    const struct tar *t = arg;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (t->failed) /* archive_write_free() ends the archive; archive_write_fail() leaks */
        return (la_ssize_t)n;
    if (export_write(t->x, t->fd, p, n, &err) == 0)
        return (la_ssize_t)n;
    archive_set_error(a, err.code == CB_E_CANCELED ? ECANCELED : err.sys, "%s", err.msg);
    return -1;
}

static int tar_failed(const struct tar *t, const char *path, struct cb_error *err)
{
    int sys = archive_errno(t->a);
    if (sys == ECANCELED)
        return cb_fail(err, CB_E_CANCELED, "interrupted; nothing was left");
    const char *why = archive_error_string(t->a);
    if (sys == ENOSPC || sys == EDQUOT || sys == EROFS)
        return cb_fail_sys(err, sys, "write the tar");
    return cb_fail(err, CB_E_SYS, "write the tar: %.4096s: %s", path, why ? why : "failed");
}

/* "./etc/passwd": names that begin with a letter or a dash, or are empty, are no special case then.
 */
static char *member(const char *path, bool folder)
{
    if (strcmp(path, ".") == 0)
        return cb_xstrdup("./");
    return cb_xasprintf("./%s%s", path, folder ? "/" : "");
}

static void set_name(struct archive_entry *e, const char *path, bool folder)
{
    CB_AUTO_FREE char *name = member(path, folder);
    archive_entry_copy_pathname(e, name);
}

static int put_content(struct tar *t, struct ext4_file *f, const char *path, struct cb_error *err)
{
    uint64_t size = ext4_file_size(f);
    for (uint64_t at = 0; at < size;) {
        int64_t n = ext4_file_pread(f, t->buf, PIECE, at, err);
        if (n < 0)
            return (int)n;
        if (archive_write_data(t->a, t->buf, (size_t)n) != n)
            return tar_failed(t, path, err);
        int rc = export_advance(t->x, 0, err);
        if (rc < 0)
            return rc;
        at += (uint64_t)n;
    }
    return 0;
}

/* The header of a file says where its holes are; a file without any gets none of that. */
static void describe_holes(struct archive_entry *e, const struct ext4_file *f)
{
    size_t n;
    const struct ext4_run *r = ext4_file_runs(f, &n);
    uint64_t size = ext4_file_size(f);
    if (size == 0 || (n == 1 && r[0].at == 0 && r[0].len == size))
        return;
    for (size_t i = 0; i < n; i++)
        archive_entry_sparse_add_entry(e, (la_int64_t)r[i].at, (la_int64_t)r[i].len);
    if (n == 0) /* a hole alone */
        archive_entry_sparse_add_entry(e, (la_int64_t)size, 0);
}

/* libarchive writes the fraction of a negative time as if it were a part of the whole number: -2 s
 * and 0.25 s become "-2.25", where all who read (but libarchive) expect "-1.75". So it gets the
 * parts of that; in the last second before 1970 there is no such pair, and the fraction is dropped.
 */
static void set_time(struct archive_entry *e, struct timespec t)
{
    if (t.tv_sec < 0 && t.tv_nsec > 0) {
        t.tv_nsec = t.tv_sec < -1 ? 1000000000 - t.tv_nsec : 0;
        t.tv_sec += t.tv_sec < -1;
    }
    archive_entry_set_mtime(e, t.tv_sec, t.tv_nsec);
}

static void describe(struct archive_entry *e, const struct ext4_entry *in)
{
    archive_entry_set_mode(e, in->mode);
    archive_entry_set_uid(e, in->uid);
    archive_entry_set_gid(e, in->gid);
    set_time(e, in->mtime);
    if (in->target)
        archive_entry_copy_symlink(e, in->target);
    if (S_ISCHR(in->mode) || S_ISBLK(in->mode)) {
        archive_entry_set_rdevmajor(e, in->major);
        archive_entry_set_rdevminor(e, in->minor);
    }
    for (size_t i = 0; i < in->n_xattrs; i++)
        archive_entry_xattr_add_entry(e, in->xattrs[i].name, in->xattrs[i].value,
                                      in->xattrs[i].len);
}

static int put_entry(struct tar *t, const struct ext4_entry *in, struct cb_error *err)
{
    CB_AUTO(entry) e = archive_entry_new();
    CB_AUTO(content) f = NULL;
    int rc = 0;
    set_name(e, in->path, S_ISDIR(in->mode));
    describe(e, in);
    if (in->link_to) {
        CB_AUTO_FREE char *to = member(in->link_to, false);
        archive_entry_copy_hardlink(e, to);
    } else if (S_ISREG(in->mode)) {
        if ((rc = ext4_file_open(t->image, in->ino, &f, err)) < 0)
            return cb_wrap(err, "%.4096s", in->path);
        archive_entry_set_size(e, (la_int64_t)in->size);
        describe_holes(e, f);
    }
    if (archive_write_header(t->a, e) < ARCHIVE_WARN)
        return tar_failed(t, in->path, err);
    if (f)
        rc = put_content(t, f, in->path, err);
    return rc < 0 ? rc : export_advance(t->x, in->link_to ? 0 : in->allocated, err);
}

static int put_all(struct tar *t, struct cb_error *err)
{
    CB_AUTO(walk) w = NULL;
    struct ext4_entry e;
    int rc = ext4_walk_open(t->image, EXT4_WALK_NO_EMPTY_LOST_FOUND, &w, err);
    while (rc >= 0 && (rc = ext4_walk_next(w, &e, err)) == 1)
        rc = put_entry(t, &e, err);
    return rc;
}

static int write_tar(struct tar *t, struct cb_error *err)
{
    t->a = archive_write_new();
    /* attributes in the form that GNU tar knows, too */
    if (archive_write_set_format_pax(t->a) != ARCHIVE_OK ||
        archive_write_set_options(t->a, "xattrheader=SCHILY") < ARCHIVE_WARN ||
        archive_write_set_bytes_per_block(t->a, PIECE) != ARCHIVE_OK ||
        archive_write_set_bytes_in_last_block(t->a, 1) != ARCHIVE_OK ||
        archive_write_open(t->a, t, NULL, on_write, NULL) != ARCHIVE_OK)
        return tar_failed(t, "its beginning", err);
    int rc = put_all(t, err);
    if (rc == 0 && archive_write_close(t->a) != ARCHIVE_OK)
        rc = tar_failed(t, "its end", err);
    t->failed = rc < 0;
    return rc;
}

int export_make_tar(struct export *x, struct cb_error *err)
{
    CB_AUTO_FREE char *path = NULL;
    CB_AUTO_FD image = export_open_image(x, &path, err);
    if (image < 0)
        return image;
    CB_AUTO(image) im = NULL;
    int rc = ext4_image_open(path, 0, &im, err);
    if (rc < 0)
        return rc;
    x->total = x->s->t->image_allocated;
    CB_AUTO_FD out = export_open_out(x, err);
    if (out < 0)
        return out;
    CB_AUTO_FREE char *buf = cb_xmalloc(PIECE);
    struct tar t = {.x = x, .image = im, .fd = out, .buf = buf};
    /* libarchive asks the locale what the bytes of a name are. Nearly all names are UTF-8; the
     * others become "binary" ones, each by itself. */
    locale_t utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    locale_t before = utf8 ? uselocale(utf8) : (locale_t)0;
    rc = write_tar(&t, err);
    (void)archive_write_free(t.a);
    if (utf8) {
        (void)uselocale(before);
        freelocale(utf8);
    }
    return rc;
}
