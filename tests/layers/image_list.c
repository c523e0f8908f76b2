#include "image_list.h"

#include "support/hash.h"
#include "support/mem.h"

#include <errno.h>
#include <ext2fs/ext2fs.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define BLOCK 4096u

struct listing {
    ext2_filsys fs;
    FILE *out;
    struct cb_error *err;
    int rc; /* of a failure inside a callback */
};

struct folder {
    struct listing *l;
    const char *path;
};

static int failed(struct listing *l, const char *path, const char *what, errcode_t code)
{
    return cb_fail(l->err, CB_E_CORRUPT, "%.200s: %s: error %ld of libext2fs", path, what,
                   (long)code);
}

static void put_text(FILE *out, const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)p[i];
        if (c > ' ' && c < 0x7f && c != '\\' && c != '=')
            (void)fputc(c, out);
        else
            (void)fprintf(out, "\\x%02x", c);
    }
}

/* ---- data ---- */

struct data {
    struct listing *l;
    struct cb_hasher *h;
    uint64_t size, at; /* bytes; hashed so far */
    bool holes;        /* see image_list.h */
    uint64_t blocks;
};

static void hash_zeros(struct data *d, uint64_t until)
{
    static const char zero[1 << 16];
    while (!d->holes && d->at < until) {
        uint64_t n = until - d->at < sizeof(zero) ? until - d->at : sizeof(zero);
        cb_hasher_update(d->h, zero, (size_t)n);
        d->at += n;
    }
}

static int on_block(ext2_filsys fs, blk64_t *block, e2_blkcnt_t count, blk64_t ref, int offset,
                    void *arg)
{
    struct data *d = arg;
    static char bytes[BLOCK], zero[BLOCK];
    uint64_t number = (uint64_t)count, start = number * BLOCK;
    (void)ref;
    (void)offset;
    d->blocks++;
    errcode_t code = io_channel_read_blk64(fs->io, *block, 1, bytes);
    if (code || start >= d->size) {
        d->l->rc = failed(d->l, "a file", code ? "read" : "a block behind its end", code);
        return BLOCK_ABORT;
    }
    if (d->holes) {
        if (memcmp(bytes, zero, BLOCK) == 0)
            return 0;
        cb_hasher_update(d->h, &number, sizeof(number));
        cb_hasher_update(d->h, bytes, BLOCK);
        return 0;
    }
    hash_zeros(d, start);
    uint64_t n = d->size - start < BLOCK ? d->size - start : BLOCK;
    cb_hasher_update(d->h, bytes, (size_t)n);
    d->at = start + n;
    return 0;
}

static int put_data(struct listing *l, const char *path, ext2_ino_t ino, uint64_t size)
{
    struct data d = {.l = l, .h = cb_hasher_new(), .size = size, .holes = size > LIST_PLAIN_MAX};
    errcode_t code = ext2fs_block_iterate3(l->fs, ino, BLOCK_FLAG_READ_ONLY | BLOCK_FLAG_DATA_ONLY,
                                           NULL, on_block, &d);
    hash_zeros(&d, size);
    struct cb_digest digest;
    char hex[CB_HEX_LEN + 1];
    cb_hasher_final(d.h, &digest);
    cb_hasher_free(d.h);
    if (l->rc < 0)
        return l->rc;
    if (code)
        return failed(l, path, "blocks", code);
    cb_digest_hex(&digest, hex);
    (void)fprintf(l->out, "\tsize=%" PRIu64 "\tblocks=%" PRIu64 "\t%s=%s", size, d.blocks,
                  d.holes ? "holes" : "sha256", hex);
    return 0;
}

static int put_target(struct listing *l, const char *path, ext2_ino_t ino, struct ext2_inode *in,
                      uint64_t size)
{
    char text[BLOCK + 1];
    if (size > BLOCK)
        return failed(l, path, "a target of more than a block", 0);
    if (ext2fs_is_fast_symlink(in)) {
        memcpy(text, in->i_block, (size_t)size);
    } else {
        blk64_t block = 0;
        errcode_t code = ext2fs_bmap2(l->fs, ino, NULL, NULL, 0, 0, NULL, &block);
        if (!code)
            code = io_channel_read_blk64(l->fs->io, block, 1, text);
        if (code)
            return failed(l, path, "target", code);
    }
    if (memchr(text, '\0', (size_t)size))
        return failed(l, path, "a target with a NUL", 0);
    (void)fputs("\ttarget=", l->out);
    put_text(l->out, text, (size_t)size);
    return 0;
}

/* ---- attributes ---- */

struct attributes {
    struct listing *l;
    struct ext2_xattr_handle *h;
};

/* The value as system calls give it: ext4 stores ACLs in a form of its own. */
static int on_xattr(char *name, char *stored, size_t stored_len, void *arg)
{
    struct attributes *a = arg;
    void *value = NULL;
    size_t len = 0;
    (void)stored;
    (void)stored_len;
    errcode_t code = ext2fs_xattr_get(a->h, name, &value, &len);
    if (code) {
        a->l->rc = failed(a->l, name, "value", code);
        return XATTR_ABORT;
    }
    (void)fputs("\txattr:", a->l->out);
    put_text(a->l->out, name, strlen(name));
    (void)fputc('=', a->l->out);
    for (size_t i = 0; i < len; i++)
        (void)fprintf(a->l->out, "%02x", ((const unsigned char *)value)[i]);
    (void)ext2fs_free_mem(&value);
    return 0;
}

static int put_xattrs(struct listing *l, const char *path, ext2_ino_t ino)
{
    struct attributes a = {.l = l};
    errcode_t code = ext2fs_xattrs_open(l->fs, ino, &a.h);
    if (!code)
        code = ext2fs_xattrs_read(a.h);
    if (!code)
        code = ext2fs_xattrs_iterate(a.h, on_xattr, &a);
    if (a.h)
        (void)ext2fs_xattrs_close(&a.h);
    if (l->rc < 0)
        return l->rc;
    return code ? failed(l, path, "attributes", code) : 0;
}

static const char *type_of(uint32_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG: return "file";
    case S_IFDIR: return "dir";
    case S_IFLNK: return "link";
    case S_IFCHR: return "char";
    case S_IFBLK: return "block";
    case S_IFIFO: return "fifo";
    default: return "unknown";
    }
}

static void put_device(struct listing *l, const struct ext2_inode *in)
{
    uint32_t odd = in->i_block[0], dev = in->i_block[1];
    if (odd) /* the old form, of 8 bits each */
        (void)fprintf(l->out, "\tdev=%u:%u", odd >> 8 & 0xff, odd & 0xff);
    else
        (void)fprintf(l->out, "\tdev=%u:%u", dev >> 8 & 0xfff, (dev & 0xff) | (dev >> 12 & ~0xffu));
}

static int put_entry(struct listing *l, const char *path, ext2_ino_t ino,
                     struct ext2_inode_large *in)
{
    uint32_t mode = in->i_mode;
    uint64_t size = EXT2_I_SIZE(in);
    int64_t seconds = (int32_t)in->i_mtime + ((int64_t)(in->i_mtime_extra & 3) << 32);
    put_text(l->out, path, strlen(path));
    (void)fprintf(l->out,
                  "\ttype=%s\tmode=%04o\tuid=%u\tgid=%u\tmtime=%" PRId64 ".%09u\tnlink=%u\tino=%u",
                  type_of(mode), mode & 07777, inode_uid(*in), inode_gid(*in), seconds,
                  in->i_mtime_extra >> 2, in->i_links_count, ino);
    int rc = 0;
    if (S_ISREG(mode))
        rc = put_data(l, path, ino, size);
    else if (S_ISLNK(mode))
        rc = put_target(l, path, ino, (struct ext2_inode *)in, size);
    else if (S_ISCHR(mode) || S_ISBLK(mode))
        put_device(l, (struct ext2_inode *)in);
    if (rc == 0)
        rc = put_xattrs(l, path, ino);
    (void)fputc('\n', l->out);
    return rc;
}

/* ---- names ---- */

static int list(struct listing *l, const char *path, ext2_ino_t ino);

static int on_name(ext2_ino_t dir, int where, struct ext2_dir_entry *e, int offset, int blocksize,
                   char *buf, void *arg)
{
    struct folder *f = arg;
    (void)dir;
    (void)offset;
    (void)blocksize;
    (void)buf;
    if (where != DIRENT_OTHER_FILE)
        return 0;
    size_t n = (size_t)ext2fs_dirent_name_len(e), up = strlen(f->path);
    char *path = cb_xmalloc(up + n + 2);
    size_t at = 0;
    if (strcmp(f->path, ".") != 0) {
        memcpy(path, f->path, up);
        path[up] = '/';
        at = up + 1;
    }
    memcpy(path + at, e->name, n);
    path[at + n] = '\0';
    f->l->rc = list(f->l, path, e->inode);
    free(path);
    return f->l->rc < 0 ? DIRENT_ABORT : 0;
}

/* Depth is the tree's: TREE_DEPTH_MAX at most. */
static int list(struct listing *l, const char *path, ext2_ino_t ino)
{
    struct ext2_inode_large in;
    memset(&in, 0, sizeof(in));
    errcode_t code = ext2fs_read_inode_full(l->fs, ino, (struct ext2_inode *)&in, (int)sizeof(in));
    if (code)
        return failed(l, path, "inode", code);
    int rc = put_entry(l, path, ino, &in);
    if (rc < 0 || !LINUX_S_ISDIR(in.i_mode))
        return rc;
    struct folder f = {l, path};
    code = ext2fs_dir_iterate2(l->fs, ino, 0, NULL, on_name, &f);
    if (l->rc < 0)
        return l->rc;
    return code ? failed(l, path, "names", code) : 0;
}

int image_list(const char *image, FILE *out, struct cb_error *err)
{
    struct listing l = {.out = out, .err = err};
    errcode_t code = ext2fs_open(image, EXT2_FLAG_64BITS, 0, 0, unix_io_manager, &l.fs);
    if (code)
        return failed(&l, image, "open", code);
    int rc = list(&l, ".", EXT2_ROOT_INO);
    (void)ext2fs_close(l.fs);
    if (rc == 0 && ferror(out))
        rc = cb_fail_sys(err, errno, "write the listing of %s", image);
    return rc;
}
