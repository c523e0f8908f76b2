#include "layers/ext4_fs.h"
#include "layers/ext4_private.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "on-disk structures are written as they are");
_Static_assert(sizeof(struct ext2_inode_large) == INODE_ATTR_OFFSET, "the inode of this libext2fs");

const uint32_t image_hash_seed[4] = {0x0c1a5ecau, 0x95b11d00u, 0x7e4f11e5u, 0x5eed1e55u};

/* A run of zeros this long in a file's data is left out of the sparse file. */
#define ZERO_PIECE ((size_t)64 << 10)
#define DIRECT_WRITE ((size_t)128 << 10)

void bits_set(struct bits *b, uint64_t first, uint64_t count)
{
    size_t need = (size_t)((first + count + 63) / 64);
    if (need > b->words) {
        size_t words = need > 2 * b->words ? need : 2 * b->words;
        b->v = cb_xrealloc(b->v, words * sizeof(*b->v));
        memset(b->v + b->words, 0, (words - b->words) * sizeof(*b->v));
        b->words = words;
    }
    for (uint64_t i = first; i < first + count; i++)
        b->v[i / 64] |= (uint64_t)1 << (i % 64);
}

void bits_clear(struct bits *b, uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count && i / 64 < b->words; i++)
        b->v[i / 64] &= ~((uint64_t)1 << (i % 64));
}

bool bits_get(const struct bits *b, uint64_t i)
{
    return i / 64 < b->words && (b->v[i / 64] >> (i % 64) & 1) != 0;
}

uint64_t bits_last(const struct bits *b, uint64_t end)
{
    if (end > (uint64_t)b->words * 64)
        end = (uint64_t)b->words * 64;
    while (end > 0) {
        if (end % 64 == 0 && b->v[end / 64 - 1] == 0) {
            end -= 64;
            continue;
        }
        end--;
        if (bits_get(b, end))
            return end;
    }
    return 0;
}

bool bits_find(const struct bits *b, uint64_t from, uint64_t *at, uint64_t *count)
{
    uint64_t end = (uint64_t)b->words * 64;
    while (from < end && !bits_get(b, from))
        from += b->v[from / 64] >> (from % 64) == 0 ? 64 - from % 64 : 1;
    if (from >= end)
        return false;
    *at = from;
    *count = 1;
    while (*count < GROUP_BLOCKS && bits_get(b, from + *count))
        ++*count;
    return true;
}

uint64_t bits_next(const struct bits *b, uint64_t from, uint64_t *count)
{
    uint64_t at;
    return bits_find(b, from, &at, count) ? at : 0;
}

static int take_blocks(struct writer *w, uint64_t want, uint64_t *start, uint64_t *got,
                       struct cb_error *err);

/* libext2fs wants a block, for extents or attributes. */
static errcode_t on_alloc(ext2_filsys fs, blk64_t goal, blk64_t *out)
{
    struct writer *w = fs_writer(fs);
    uint64_t block, n;
    (void)goal;
    if (w->error.code != CB_OK || take_blocks(w, 1, &block, &n, &w->error) < 0)
        return EXT2_ET_BLOCK_ALLOC_FAIL;
    *out = block;
    return 0;
}

/* It took a block, or gave one back. */
static void on_change(ext2_filsys fs, blk64_t block, int change)
{
    struct writer *w = fs_writer(fs);
    if (change < 0 && w->error.code == CB_OK)
        (void)writer_free_blocks(w, block, 1, &w->error);
}

/* Longer than the image will become, until its end is known: XFS gives a file that grows more room
 * than it asks for, and what of that comes to lie in a hole stays taken. Beyond a limit on the
 * sizes of files a signal would come. */
static void make_long(int fd)
{
    const uint64_t bytes = LAYOUT_GROUPS_MAX * GROUP_BLOCKS * EXT4_BLOCK;
    struct rlimit most;
    if (getrlimit(RLIMIT_FSIZE, &most) == 0 &&
        (most.rlim_cur == RLIM_INFINITY || most.rlim_cur >= bytes))
        (void)!ftruncate(fd, (off_t)bytes);
}

static int open_writer(const char *path, int from, uint64_t max_blocks, struct writer **out,
                       struct cb_error *err)
{
    CB_AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return cb_fail_sys(err, errno, "make %s", path);
    struct writer *w = cb_xcalloc(1, sizeof(*w));
    w->path = cb_xstrdup(path);
    w->fd = cb_take_fd(&fd);
    w->max_blocks = max_blocks;
    w->next_block = layout_data_start();
    w->next_ino = INO_FIRST;
    w->window = cb_xmalloc((size_t)WINDOW_INODES * EXT4_INODE);
    w->buffer = cb_xmalloc(WRITE_BUFFER);
    w->cloned = from >= 0;
    int rc = fs_open(w, LAYOUT_GROUPS_MAX * GROUP_BLOCKS, &w->fs, err);
    if (rc == 0 && w->cloned && (rc = cb_clone_file(from, w->fd, err)) < 0)
        rc = cb_wrap(err, "write %s", path);
    if (rc < 0) {
        writer_free(w);
        return rc;
    }
    make_long(w->fd);
    ext2fs_set_alloc_block_callback(w->fs, on_alloc, NULL);
    ext2fs_set_block_alloc_stats_callback(w->fs, on_change, NULL);
    *out = w;
    return 0;
}

int writer_open(const char *path, uint64_t max_blocks, struct writer **out, struct cb_error *err)
{
    return open_writer(path, -1, max_blocks, out, err);
}

int writer_clone(const char *path, int from, uint64_t max_blocks, struct writer **out,
                 struct cb_error *err)
{
    return open_writer(path, from, max_blocks, out, err);
}

void writer_free(struct writer *w)
{
    if (!w)
        return;
    ext2fs_free(w->fs);
    cb_close(w->fd);
    if (!w->keep)
        (void)unlink(w->path);
    free(w->path);
    free(w->blocks.v);
    free(w->inodes.v);
    free(w->dirty.v);
    free(w->owed.v);
    free(w->dirs);
    free(w->window);
    free(w->buffer);
    cb_error_clear(&w->error);
    free(w);
}

int writer_fd(const struct writer *w)
{
    return w->fd;
}

bool writer_is_full(const struct writer *w)
{
    return w->full;
}

void writer_end_layer(struct writer *w)
{
    uint64_t last = bits_last(&w->blocks, w->next_block);
    w->next_block = last ? last + 1 : layout_data_start();
    uint64_t ino = bits_last(&w->inodes, w->next_ino);
    w->next_ino = ino ? (uint32_t)ino + 1 : INO_FIRST;
}

/* Bytes of the image file; what was never written reads as zeros, also behind its end. */
static int read_at(struct writer *w, void *p, size_t n, uint64_t at, struct cb_error *err)
{
    unsigned char *b = p;
    while (n > 0) {
        ssize_t got = pread(w->fd, b, n, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return cb_fail_sys(err, errno, "read %s", w->path);
        if (got == 0) {
            memset(b, 0, n);
            return 0;
        }
        b += got;
        at += (uint64_t)got;
        n -= (size_t)got;
    }
    return 0;
}

void writer_soil(struct writer *w, uint64_t at, uint64_t n)
{
    if (w->cloned && n > 0)
        bits_set(&w->dirty, at / WRITER_PIECE, (at + n - 1) / WRITER_PIECE - at / WRITER_PIECE + 1);
}

uint64_t writer_dirty(const struct writer *w, uint64_t at, uint64_t *start)
{
    uint64_t n, first = (at + WRITER_PIECE - 1) / WRITER_PIECE;
    if (!bits_find(&w->dirty, first, &first, &n))
        return 0;
    *start = first * WRITER_PIECE;
    return n * WRITER_PIECE;
}

static int write_at(struct writer *w, const void *p, size_t n, uint64_t at, struct cb_error *err)
{
    writer_soil(w, at, n);
    if (cb_pwrite_all(w->fd, p, n, (off_t)at, err) < 0)
        return cb_wrap(err, "write %s", w->path);
    return 0;
}

/* ---- inodes ---- */

static int flush_window(struct writer *w, struct cb_error *err)
{
    if (!w->window_dirty)
        return 0;
    w->window_dirty = false;
    return write_at(w, w->window, (size_t)WINDOW_INODES * EXT4_INODE,
                    layout_inode_offset(w->window_first), err);
}

/* The window holds @ino from now on. Windows never straddle groups: GROUP_INODES is a multiple. */
static int move_window(struct writer *w, uint32_t ino, struct cb_error *err)
{
    uint32_t first = (ino - 1) / WINDOW_INODES * WINDOW_INODES + 1;
    if (first == w->window_first)
        return 0;
    int rc = flush_window(w, err);
    if (rc == 0)
        rc = writer_flush_data(w, err); /* which may hold a part of it */
    if (rc < 0)
        return rc;
    w->window_first = first;
    return read_at(w, w->window, (size_t)WINDOW_INODES * EXT4_INODE, layout_inode_offset(first),
                   err);
}

/* Bytes [at, at + n) of the file in the window, or NULL. The window goes along with the newest
 * inode: more will follow beside it. */
static int find_in_window(struct writer *w, uint64_t at, size_t n, unsigned char **out,
                          struct cb_error *err)
{
    uint64_t newest = w->next_ino > INO_FIRST ? layout_inode_offset(w->next_ino - 1) : 0;
    if (newest >= at && newest < at + n) {
        int rc = move_window(w, w->next_ino - 1, err);
        if (rc < 0)
            return rc;
    }
    uint64_t first = w->window_first ? layout_inode_offset(w->window_first) : UINT64_MAX;
    bool inside = at >= first && at + n <= first + (uint64_t)WINDOW_INODES * EXT4_INODE;
    *out = inside ? w->window + (at - first) : NULL;
    return 0;
}

/* Blocks that the file system may have. */
static uint64_t block_limit(const struct writer *w)
{
    uint64_t limit = LAYOUT_GROUPS_MAX * GROUP_BLOCKS;
    return w->max_blocks && w->max_blocks < limit ? w->max_blocks : limit;
}

static int fail_full(struct writer *w, struct cb_error *err)
{
    w->full = true;
    return cb_fail(err, CB_E_LIMIT, "needs more than the %llu MiB that the file system is to have",
                   (unsigned long long)block_limit(w) / 256);
}

static int fail_inodes(struct writer *w, struct cb_error *err)
{
    w->full = true;
    return cb_fail(
        err, CB_E_LIMIT,
        "needs more than the %llu inodes of the %llu MiB that the file system is to have",
        (unsigned long long)layout_groups(block_limit(w)) * GROUP_INODES,
        (unsigned long long)block_limit(w) / 256);
}

int writer_new_inode(struct writer *w, uint32_t *ino, struct cb_error *err)
{
    if (w->next_ino > layout_groups(block_limit(w)) * GROUP_INODES)
        return fail_inodes(w, err);
    bits_set(&w->inodes, w->next_ino, 1);
    w->inodes_in_use++;
    *ino = w->next_ino++;
    return 0;
}

uint64_t writer_next_block(const struct writer *w)
{
    return w->next_block;
}

uint32_t writer_next_inode(const struct writer *w)
{
    return w->next_ino;
}

void writer_count_dirs(struct writer *w, uint32_t ino, int change)
{
    size_t group = (ino - 1) / GROUP_INODES;
    if (group >= w->n_dirs) {
        w->dirs = cb_xrealloc(w->dirs, (group + 1) * sizeof(*w->dirs));
        memset(w->dirs + w->n_dirs, 0, (group + 1 - w->n_dirs) * sizeof(*w->dirs));
        w->n_dirs = group + 1;
    }
    w->dirs[group] += (uint32_t)change;
}

uint32_t writer_dirs_in_group(const struct writer *w, uint64_t group)
{
    return group < w->n_dirs ? w->dirs[group] : 0;
}

int writer_get_inode(struct writer *w, uint32_t ino, union inode *out, struct cb_error *err)
{
    errcode_t rc = ext2fs_read_inode_full(w->fs, ino, EXT2_INODE(&out->i), EXT4_INODE);
    return fs_done(w, rc, "read an inode", err);
}

int writer_put_inode(struct writer *w, uint32_t ino, union inode *in, struct cb_error *err)
{
    errcode_t rc = ext2fs_write_inode_full(w->fs, ino, EXT2_INODE(&in->i), EXT4_INODE);
    return fs_done(w, rc, "write an inode", err);
}

int writer_free_inode(struct writer *w, uint32_t ino, struct cb_error *err)
{
    union inode in;
    int rc = writer_get_inode(w, ino, &in, err);
    if (rc < 0)
        return rc;
    rc = fs_done(w, ext2fs_free_ext_attr(w->fs, ino, &in.i), "free attributes", err);
    if (rc < 0)
        return rc;
    if ((in.i.i_flags & EXT4_EXTENTS_FL) && (rc = writer_free_extents(w, ino, &in, err)) < 0)
        return rc;
    if (S_ISDIR(in.i.i_mode))
        writer_count_dirs(w, ino, -1);
    bits_clear(&w->inodes, ino, 1);
    w->inodes_in_use--;
    memset(&in, 0, sizeof(in)); /* as if there had never been one: without a checksum */
    errcode_t failed =
        ext2fs_write_inode2(w->fs, ino, EXT2_INODE(&in.i), EXT4_INODE, WRITE_INODE_NOCSUM);
    return fs_done(w, failed, "free an inode", err);
}

uint64_t inode_size(const union inode *in)
{
    return EXT2_I_SIZE(&in->i);
}

void inode_set_size(union inode *in, uint64_t size)
{
    in->i.i_size = (uint32_t)size;
    in->i.i_size_high = (uint32_t)(size >> 32);
}

/* ---- blocks ---- */

int writer_flush_data(struct writer *w, struct cb_error *err)
{
    size_t n = w->buffer_len;
    int rc = writer_flush_copies(w, err);
    if (rc < 0)
        return rc;
    w->buffer_len = 0;
    return n ? write_at(w, w->buffer, n, w->buffer_at, err) : 0;
}

int writer_flush(struct writer *w, struct cb_error *err)
{
    int rc = writer_flush_data(w, err);
    return rc < 0 ? rc : flush_window(w, err);
}

/* Where bytes [at, at + n) of the file lie in the buffer, or NULL. */
static unsigned char *in_buffer(const struct writer *w, uint64_t at, size_t n)
{
    bool inside = at >= w->buffer_at && at + n <= w->buffer_at + w->buffer_len;
    return inside ? w->buffer + (at - w->buffer_at) : NULL;
}

/* Bytes on their way to the file; small neighbours are put together. */
static int put_bytes(struct writer *w, uint64_t at, const void *p, size_t n, struct cb_error *err)
{
    uint64_t end = w->buffer_at + w->buffer_len;
    unsigned char *again = in_buffer(w, at, n);
    if (again) {
        memcpy(again, p, n);
        return 0;
    }
    bool joins = w->buffer_len > 0 && at >= end && at - end < EXT4_BLOCK &&
                 w->buffer_len + (at - end) + n <= WRITE_BUFFER;
    if (!joins) {
        int rc = writer_flush_data(w, err);
        if (rc < 0)
            return rc;
        if (n >= DIRECT_WRITE)
            return write_at(w, p, n, at, err);
        w->buffer_at = at;
        end = at;
    }
    memset(w->buffer + w->buffer_len, 0, (size_t)(at - end)); /* the rest of a last block */
    w->buffer_len += (size_t)(at - end);
    memcpy(w->buffer + w->buffer_len, p, n);
    w->buffer_len += n;
    return 0;
}

int writer_read(struct writer *w, uint64_t at, void *p, size_t n, struct cb_error *err)
{
    unsigned char *from;
    int rc = find_in_window(w, at, n, &from, err);
    if (rc < 0)
        return rc;
    if (!from)
        from = in_buffer(w, at, n);
    if (from) {
        memcpy(p, from, n);
        return 0;
    }
    rc = writer_flush_data(w, err);
    return rc < 0 ? rc : read_at(w, p, n, at, err);
}

int writer_write(struct writer *w, uint64_t at, const void *p, size_t n, struct cb_error *err)
{
    unsigned char *to;
    int rc = find_in_window(w, at, n, &to, err);
    if (rc < 0 || !to)
        return rc < 0 ? rc : put_bytes(w, at, p, n, err);
    memcpy(to, p, n);
    w->window_dirty = true;
    return 0;
}

static bool all_zero(const unsigned char *p, size_t n)
{
    return n >= 16 && memcmp(p, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16) == 0 &&
           memcmp(p, p + 16, n - 16) == 0;
}

/* put_bytes() that leaves long runs of zeros as holes of the image file. */
static int put_sparse(struct writer *w, uint64_t at, const unsigned char *p, size_t n,
                      struct cb_error *err)
{
    size_t from = 0;
    for (size_t i = 0; n - i >= ZERO_PIECE; i += ZERO_PIECE) {
        if (!all_zero(p + i, ZERO_PIECE))
            continue;
        if (i > from && put_bytes(w, at + from, p + from, i - from, err) < 0)
            return -(int)err->code;
        from = i + ZERO_PIECE;
    }
    return n > from ? put_bytes(w, at + from, p + from, n - from, err) : 0;
}

void extents_release(struct extents *x)
{
    free(x->v);
    *x = (struct extents){NULL, 0, 0, 0};
}

static void extents_add(struct extents *x, uint32_t logical, uint64_t start, uint64_t count)
{
    x->blocks += count;
    while (count > 0) {
        struct extent *last = x->n > 0 ? &x->v[x->n - 1] : NULL;
        uint32_t n = count > GROUP_BLOCKS ? GROUP_BLOCKS : (uint32_t)count;
        if (last && last->logical + last->len == logical && last->start + last->len == start &&
            last->len < GROUP_BLOCKS) {
            if (n > GROUP_BLOCKS - last->len)
                n = GROUP_BLOCKS - last->len;
            last->len += n;
        } else {
            x->v = cb_xgrow(x->v, &x->cap, x->n, sizeof(*x->v));
            x->v[x->n++] = (struct extent){logical, n, start};
        }
        logical += n;
        start += n;
        count -= n;
    }
}

void writer_join(struct extents *x, const struct extent *e)
{
    extents_add(x, e->logical, e->start, e->len);
}

/* Up to @want blocks in a row at the frontier. */
static int take_blocks(struct writer *w, uint64_t want, uint64_t *start, uint64_t *got,
                       struct cb_error *err)
{
    uint64_t room, at = layout_data_from(w->next_block, &room);
    *got = want < room ? want : room;
    *start = at;
    if (at + *got > block_limit(w))
        return fail_full(w, err);
    w->next_block = at + *got;
    bits_set(&w->blocks, at, *got);
    w->data_in_use += *got;
    return 0;
}

int writer_alloc(struct writer *w, struct extents *x, uint32_t logical, uint32_t count,
                 struct cb_error *err)
{
    while (count > 0) {
        uint64_t start, got;
        int rc = take_blocks(w, count, &start, &got, err);
        if (rc < 0)
            return rc;
        extents_add(x, logical, start, got);
        logical += (uint32_t)got;
        count -= (uint32_t)got;
    }
    return 0;
}

static const struct extent *find_extent(const struct extents *x, uint32_t logical)
{
    for (size_t i = x->n; i-- > 0;) /* the newest first: writes go forward */
        if (x->v[i].logical <= logical)
            return logical - x->v[i].logical < x->v[i].len ? &x->v[i] : NULL;
    return NULL;
}

/* Bytes to logical position @at, whose blocks are all there. */
static int put_logical(struct writer *w, const struct extents *x, uint64_t at,
                       const unsigned char *p, size_t n, struct cb_error *err)
{
    while (n > 0) {
        const struct extent *e = find_extent(x, (uint32_t)(at / EXT4_BLOCK));
        if (!e)
            return cb_fail(err, CB_E_BUG, "no block for byte %llu", (unsigned long long)at);
        uint64_t into = at - (uint64_t)e->logical * EXT4_BLOCK;
        uint64_t room = (uint64_t)e->len * EXT4_BLOCK - into;
        size_t now = n < room ? n : (size_t)room;
        int rc = put_sparse(w, e->start * EXT4_BLOCK + into, p, now, err);
        if (rc < 0)
            return rc;
        at += now;
        p += now;
        n -= now;
    }
    return 0;
}

int writer_blocks(struct writer *w, const struct extents *x, uint32_t logical, const void *p,
                  size_t n, struct cb_error *err)
{
    return put_logical(w, x, (uint64_t)logical * EXT4_BLOCK, p, n, err);
}

int writer_data(struct writer *w, struct extents *x, uint64_t at, const void *p, size_t n,
                struct cb_error *err)
{
    if (n == 0)
        return 0;
    uint64_t first = at / EXT4_BLOCK, last = (at + n - 1) / EXT4_BLOCK;
    if (last >= UINT32_MAX)
        return cb_fail(err, CB_E_LIMIT, "a file above 16 TiB");
    if (x->n > 0) {
        const struct extent *e = &x->v[x->n - 1];
        uint64_t have = (uint64_t)e->logical + e->len;
        if (first < have)
            first = have;
    }
    if (first <= last) {
        int rc = writer_alloc(w, x, (uint32_t)first, (uint32_t)(last - first + 1), err);
        if (rc < 0)
            return rc;
    }
    return put_logical(w, x, at, p, n, err);
}

int writer_read_block(struct writer *w, uint64_t block, void *p, struct cb_error *err)
{
    int rc = writer_flush_data(w, err);
    return rc < 0 ? rc : read_at(w, p, EXT4_BLOCK, block * EXT4_BLOCK, err);
}

int writer_punch(struct writer *w, uint64_t start, uint64_t count, struct cb_error *err)
{
    static const unsigned char zero[EXT4_BLOCK];
    int rc = writer_flush_data(w, err);
    if (rc < 0)
        return rc;
    off_t at = (off_t)start * EXT4_BLOCK, n = (off_t)count * EXT4_BLOCK;
    writer_soil(w, (uint64_t)at, (uint64_t)n);
    if (fallocate(w->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, n) == 0)
        return 0;
    if (errno != EOPNOTSUPP)
        return cb_fail_sys(err, errno, "free a part of %s", w->path);
    for (uint64_t i = 0; i < count; i++)
        if ((rc = write_at(w, zero, EXT4_BLOCK, (start + i) * EXT4_BLOCK, err)) < 0)
            return rc;
    return 0;
}

int writer_free_blocks(struct writer *w, uint64_t start, uint64_t count, struct cb_error *err)
{
    for (uint64_t i = 0; i < count; i++)
        if (!bits_get(&w->blocks, start + i)) /* of an image that was loaded */
            return cb_fail(err, CB_E_CORRUPT, "block %llu is freed twice",
                           (unsigned long long)(start + i));
    if (w->on_free)
        w->on_free(w->on_free_arg, start, count);
    bits_clear(&w->blocks, start, count);
    bits_clear(&w->owed, start, count);
    w->data_in_use -= count;
    return writer_punch(w, start, count, err);
}
