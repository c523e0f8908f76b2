#include "layers/ext4_read.h"

#include "layers/ext4_fs.h"
#include "layers/ext4_layout.h"
#include "layers/ext4_read_private.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { SUPER_AT = 1024, NSEC_PER_SEC = 1000000000 };

int ext4_damaged(const char *path, const char *what, errcode_t code, struct cb_error *err)
{
    return cb_fail(err, CB_E_CORRUPT, "%.4096s in the image: %s%s%s", path, what, code ? ": " : "",
                   code ? error_message(code) : "");
}

/* ---- opening ---- */

static bool features_are_ours(const struct ext2_super_block *s)
{
    const uint32_t incompat = EXT2_FEATURE_INCOMPAT_FILETYPE | EXT3_FEATURE_INCOMPAT_EXTENTS |
                              EXT4_FEATURE_INCOMPAT_64BIT | EXT4_FEATURE_INCOMPAT_FLEX_BG |
                              EXT4_FEATURE_INCOMPAT_CSUM_SEED;
    return s->s_magic == EXT2_SUPER_MAGIC && s->s_log_block_size == 2 &&
           s->s_inode_size == EXT4_INODE && s->s_feature_incompat == incompat &&
           s->s_blocks_per_group == GROUP_BLOCKS && s->s_inodes_per_group == GROUP_INODES &&
           (s->s_feature_ro_compat & EXT4_FEATURE_RO_COMPAT_METADATA_CSUM);
}

/* What libext2fs takes memory for is known to be true before it does. */
static int check_super(const char *path, int fd, struct cb_error *err)
{
    struct ext2_super_block s;
    struct stat st;
    if (fstat(fd, &st) < 0)
        return cb_fail_sys(err, errno, "read %s", path);
    if (!S_ISREG(st.st_mode) || st.st_size < EXT4_BLOCK)
        return cb_fail(err, CB_E_CORRUPT, "%s is not an image", path);
    int rc = cb_pread_all(fd, &s, sizeof(s), SUPER_AT, err);
    if (rc < 0)
        return rc;
    if (!features_are_ours(&s))
        return cb_fail(err, CB_E_CORRUPT, "%s is not an image that capsule-build made", path);
    uint64_t blocks = ext2fs_blocks_count(&s);
    if (blocks == 0 || blocks > (uint64_t)st.st_size / EXT4_BLOCK ||
        layout_groups(blocks) > LAYOUT_GROUPS_MAX)
        return cb_fail(err, CB_E_CORRUPT,
                       "%s: the file system says it has %llu blocks, the file %lld", path,
                       (unsigned long long)blocks, (long long)st.st_size / EXT4_BLOCK);
    return 0;
}

int ext4_image_open(const char *path, unsigned flags, struct ext4_image **out, struct cb_error *err)
{
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return cb_fail(err, CB_E_NOTFOUND, "no image %s", path);
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s", path);
    int rc = check_super(path, fd, err);
    if (rc < 0)
        return rc;
    fs_load_words();
    CB_AUTO_FD theirs = fcntl(fd, F_DUPFD_CLOEXEC, 3); /* libext2fs closes it */
    if (theirs < 0)
        return cb_fail_sys(err, errno, "open %s", path);
    CB_AUTO_FREE char *name = cb_xasprintf("%d", theirs);
    ext2_filsys fs = NULL;
    int how = EXT2_FLAG_64BITS | EXT2_FLAG_SOFTSUPP_FEATURES;
    if (flags & EXT4_READ_NO_CHECKSUMS)
        how |= EXT2_FLAG_IGNORE_CSUM_ERRORS | EXT2_FLAG_IGNORE_SB_ERRORS;
    errcode_t code = ext2fs_open(name, how, 0, 0, unixfd_io_manager, &fs);
    theirs = -1; /* libext2fs closes it, also when it failed */
    if (code)
        return cb_fail(err, CB_E_CORRUPT, "%s: %s", path, error_message(code));
    struct ext4_image *im = cb_xcalloc(1, sizeof(*im));
    im->fs = fs;
    im->fd = cb_take_fd(&fd);
    im->blocks = ext2fs_blocks_count(fs->super);
    *out = im;
    return 0;
}

void ext4_image_close(struct ext4_image *im)
{
    if (!im)
        return;
    ext4_details_release(&im->details);
    free(im->found);
    (void)ext2fs_free(im->fs);
    cb_close(im->fd);
    free(im);
}

/* ---- what an inode holds ---- */

void ext4_details_release(struct ext4_details *d)
{
    for (size_t i = 0; i < d->n_xattrs; i++) {
        free(d->xattrs[i].name);
        free(d->xattrs[i].value);
    }
    free(d->xattrs);
    *d = (struct ext4_details){0};
}

static int on_xattr(char *name, char *value, size_t len, void *arg)
{
    struct ext4_details *d = arg;
    d->xattrs = cb_xgrow(d->xattrs, &d->cap_xattrs, d->n_xattrs, sizeof(*d->xattrs));
    d->xattrs[d->n_xattrs++] = (struct ext4_xattr){cb_xstrdup(name), cb_xmemdup(value, len), len};
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const struct ext4_xattr *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int read_xattrs(struct ext4_image *im, const char *path, ext2_ino_t ino,
                       struct ext2_inode_large *in, struct ext4_details *d, struct cb_error *err)
{
    for (size_t i = 0; i < d->n_xattrs; i++) {
        free(d->xattrs[i].name);
        free(d->xattrs[i].value);
    }
    d->n_xattrs = 0;
    uint32_t magic;
    size_t at = EXT2_GOOD_OLD_INODE_SIZE + in->i_extra_isize;
    if (in->i_extra_isize % 4 || at + sizeof(magic) > EXT4_INODE)
        return ext4_damaged(path, "its inode says that it is larger than it is", 0, err);
    memcpy(&magic, (const char *)in + at, sizeof(magic));
    if (magic != EXT2_EXT_ATTR_MAGIC && in->i_file_acl == 0 &&
        in->osd2.linux2.l_i_file_acl_high == 0)
        return 0; /* most have none */
    struct ext2_xattr_handle *h = NULL;
    errcode_t code = ext2fs_xattrs_open(im->fs, ino, &h);
    if (!code)
        code = ext2fs_xattrs_read_inode(h, in);
    if (!code)
        code = ext2fs_xattrs_iterate(h, on_xattr, d);
    if (h)
        (void)ext2fs_xattrs_close(&h);
    if (code)
        return ext4_damaged(path, "read its attributes", code, err);
    if (d->n_xattrs > 1)
        qsort(d->xattrs, d->n_xattrs, sizeof(*d->xattrs), by_name);
    return 0;
}

static int read_target(struct ext4_image *im, const char *path, ext2_ino_t ino,
                       struct ext2_inode_large *in, struct ext4_details *d, struct cb_error *err)
{
    uint64_t size = EXT2_I_SIZE(in);
    if (size == 0 || size >= sizeof(d->target))
        return ext4_damaged(path, "a symbolic link of an impossible length", 0, err);
    if (ext2fs_is_fast_symlink((struct ext2_inode *)in)) {
        memcpy(d->target, in->i_block, (size_t)size);
    } else {
        struct ext4_file *f = NULL;
        int rc = ext4_file_open_inode(im, path, ino, in, &f, err);
        int64_t n = rc < 0 ? rc : ext4_file_pread(f, d->target, (size_t)size, 0, err);
        ext4_file_close(f);
        if (n < 0)
            return (int)n;
    }
    d->target[size] = '\0';
    if (strlen(d->target) != size)
        return ext4_damaged(path, "a symbolic link with a NUL in it", 0, err);
    return 0;
}

static void read_device(const struct ext2_inode_large *in, struct ext4_entry *out)
{
    uint32_t old = in->i_block[0], dev = in->i_block[1];
    out->major = old ? old >> 8 & 0xff : dev >> 8 & 0xfff;
    out->minor = old ? old & 0xff : (dev & 0xff) | (dev >> 12 & ~0xffu);
}

int ext4_read_inode(struct ext4_image *im, const char *path, ext2_ino_t ino,
                    struct ext2_inode_large *in, struct cb_error *err)
{
    memset(in, 0, EXT4_INODE);
    if (ino == 0 || ino > im->fs->super->s_inodes_count)
        return ext4_damaged(path, "an inode that does not exist", 0, err);
    errcode_t code = ext2fs_read_inode_full(im->fs, ino, (struct ext2_inode *)in, EXT4_INODE);
    return code ? ext4_damaged(path, "read its inode", code, err) : 0;
}

int ext4_read_entry(struct ext4_image *im, const char *path, ext2_ino_t ino, struct ext4_entry *out,
                    struct ext4_details *d, struct cb_error *err)
{
    union inode u;
    struct ext2_inode_large *in = &u.i;
    int rc = ext4_read_inode(im, path, ino, in, err);
    if (rc < 0)
        return rc;
    const char *slash = strrchr(path, '/');
    *out = (struct ext4_entry){
        .path = path,
        .name = slash ? slash + 1 : path,
        .mode = in->i_mode,
        .uid = inode_uid(*in),
        .gid = inode_gid(*in),
        .ino = ino,
        .nlink = in->i_links_count,
        .allocated = (in->i_blocks | (uint64_t)in->osd2.linux2.l_i_blocks_hi << 32) * 512,
        .mtime.tv_sec = (int32_t)in->i_mtime + ((int64_t)(in->i_mtime_extra & 3) << 32),
        .mtime.tv_nsec = in->i_mtime_extra >> 2,
    };
    if (in->i_flags & EXT4_HUGE_FILE_FL)
        out->allocated = out->allocated / 512 * EXT4_BLOCK;
    if (out->mtime.tv_nsec >= NSEC_PER_SEC)
        return ext4_damaged(path, "an impossible time", 0, err);
    switch (in->i_mode & S_IFMT) {
    case S_IFREG: out->size = EXT2_I_SIZE(in); break;
    case S_IFDIR:
    case S_IFIFO: break;
    case S_IFCHR:
    case S_IFBLK: read_device(in, out); break;
    case S_IFLNK:
        rc = read_target(im, path, ino, in, d, err);
        out->target = d->target;
        break;
    default: rc = ext4_damaged(path, "neither file, folder, link, device nor pipe", 0, err);
    }
    if (rc == 0)
        rc = read_xattrs(im, path, ino, in, d, err);
    out->xattrs = d->xattrs;
    out->n_xattrs = d->n_xattrs;
    return rc;
}

/* ---- the bytes of a file ---- */

struct extent_run {
    uint64_t at, len;  /* in the file, bytes */
    uint64_t position; /* in the image */
};

struct ext4_file {
    struct ext4_image *im;
    uint64_t size;
    struct extent_run *v; /* as they are stored */
    size_t n, cap;
    struct ext4_run *runs; /* as the caller sees them */
    size_t n_runs;
    size_t last; /* where the last read was, for the next */
};

static int add_extent(struct ext4_file *f, const char *path, const struct ext2fs_extent *e,
                      struct cb_error *err)
{
    if (e->e_pblk == 0 || e->e_len == 0 || e->e_pblk + e->e_len > f->im->blocks)
        return ext4_damaged(path, "blocks that do not exist", 0, err);
    uint64_t at = e->e_lblk * EXT4_BLOCK, len = (uint64_t)e->e_len * EXT4_BLOCK;
    if (f->n && at < f->v[f->n - 1].at + f->v[f->n - 1].len)
        return ext4_damaged(path, "blocks in the wrong order", 0, err);
    if (e->e_flags & EXT2_EXTENT_FLAGS_UNINIT || at >= f->size)
        return 0; /* reserved, never written */
    if (len > f->size - at)
        len = f->size - at;
    if (f->n == EXT4_EXTENTS_MAX)
        return cb_fail(err, CB_E_LIMIT, "%.4096s in the image: more than %u extents", path,
                       EXT4_EXTENTS_MAX);
    f->v = cb_xgrow(f->v, &f->cap, f->n, sizeof(*f->v));
    f->v[f->n++] = (struct extent_run){at, len, e->e_pblk * EXT4_BLOCK};
    return 0;
}

static int load_extents(struct ext4_file *f, const char *path, ext2_ino_t ino,
                        struct ext2_inode_large *in, struct cb_error *err)
{
    if (!(in->i_flags & EXT4_EXTENTS_FL))
        return ext4_damaged(path, "a file without extents", 0, err);
    ext2_extent_handle_t h;
    errcode_t code = ext2fs_extent_open2(f->im->fs, ino, (struct ext2_inode *)in, &h);
    if (code)
        return ext4_damaged(path, "read its extents", code, err);
    struct ext2fs_extent e;
    int rc = 0, op = EXT2_EXTENT_ROOT;
    uint64_t steps = 0;
    while (rc == 0 && (code = ext2fs_extent_get(h, op, &e)) == 0) {
        op = EXT2_EXTENT_NEXT;
        if (++steps > EXT4_EXTENTS_MAX * 2ull)
            rc = ext4_damaged(path, "a circle in its extents", 0, err);
        else if (e.e_flags & EXT2_EXTENT_FLAGS_LEAF)
            rc = add_extent(f, path, &e, err);
    }
    ext2fs_extent_free(h);
    if (rc == 0 && code != EXT2_ET_EXTENT_NO_NEXT && code != EXT2_ET_NO_CURRENT_NODE)
        rc = ext4_damaged(path, "read its extents", code, err);
    return rc;
}

int ext4_file_open_inode(struct ext4_image *im, const char *path, ext2_ino_t ino,
                         struct ext2_inode_large *in, struct ext4_file **out, struct cb_error *err)
{
    struct ext4_file *f = cb_xcalloc(1, sizeof(*f));
    f->im = im;
    f->size = EXT2_I_SIZE(in);
    int rc = f->size > (UINT64_C(1) << 32) * EXT4_BLOCK
                 ? ext4_damaged(path, "a file of an impossible length", 0, err)
                 : load_extents(f, path, ino, in, err);
    if (rc < 0) {
        ext4_file_close(f);
        return rc;
    }
    f->runs = cb_xcalloc(f->n + 1, sizeof(*f->runs));
    for (size_t i = 0; i < f->n; i++) {
        struct ext4_run *last = f->n_runs ? &f->runs[f->n_runs - 1] : NULL;
        if (last && last->at + last->len == f->v[i].at)
            last->len += f->v[i].len;
        else
            f->runs[f->n_runs++] = (struct ext4_run){f->v[i].at, f->v[i].len};
    }
    *out = f;
    return 0;
}

int ext4_file_open(struct ext4_image *im, uint32_t ino, struct ext4_file **out,
                   struct cb_error *err)
{
    union inode u;
    char path[32];
    (void)snprintf(path, sizeof(path), "inode %u", ino);
    int rc = ext4_read_inode(im, path, ino, &u.i, err);
    if (rc < 0)
        return rc;
    if (!S_ISREG(u.i.i_mode))
        return ext4_damaged(path, "not a file", 0, err);
    return ext4_file_open_inode(im, path, ino, &u.i, out, err);
}

uint64_t ext4_file_size(const struct ext4_file *f)
{
    return f->size;
}

const struct ext4_run *ext4_file_runs(const struct ext4_file *f, size_t *n)
{
    *n = f->n_runs;
    return f->runs;
}

bool ext4_file_place(const struct ext4_file *f, size_t i, struct ext4_place *out)
{
    if (i >= f->n)
        return false;
    *out = (struct ext4_place){f->v[i].at, f->v[i].len, f->v[i].position};
    return true;
}

int64_t ext4_file_pread(struct ext4_file *f, void *p, size_t n, uint64_t at, struct cb_error *err)
{
    if (at >= f->size)
        return 0;
    if (n > f->size - at)
        n = (size_t)(f->size - at);
    if (f->last < f->n && at < f->v[f->last].at)
        f->last = 0;
    size_t i = f->last;
    for (size_t done = 0; done < n;) {
        while (i < f->n && f->v[i].at + f->v[i].len <= at + done)
            i++;
        uint64_t next = i < f->n ? f->v[i].at : f->size, here = at + done;
        size_t part = n - done;
        if (here < next) {
            if (part > next - here)
                part = (size_t)(next - here);
            memset((char *)p + done, 0, part);
        } else {
            uint64_t in = here - f->v[i].at;
            if (part > f->v[i].len - in)
                part = (size_t)(f->v[i].len - in);
            int rc = cb_pread_all(f->im->fd, (char *)p + done, part, (off_t)(f->v[i].position + in),
                                  err);
            if (rc < 0)
                return rc;
        }
        done += part;
    }
    f->last = i < f->n ? i : 0;
    return (int64_t)n;
}

void ext4_file_close(struct ext4_file *f)
{
    if (!f)
        return;
    free(f->v);
    free(f->runs);
    free(f);
}
