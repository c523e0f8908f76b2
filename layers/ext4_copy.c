/* Blocks that another file has: copied by ranges, so that whole layers take a few calls. */
#include "layers/ext4_private.h"

#include "support/file.h"

#include <errno.h>
#include <unistd.h>

#define COPY_MAX ((uint64_t)64 << 20) /* at a time */

/* The next bytes of @fd in [at, end) that are no hole: their start, and their end in *@stop. */
static uint64_t next_data(int fd, uint64_t at, uint64_t end, uint64_t *stop)
{
    *stop = end;
    off_t data = lseek(fd, (off_t)at, SEEK_DATA);
    if (data < 0)
        return errno == ENXIO ? end : at; /* a file system that does not tell */
    if ((uint64_t)data >= end)
        return end;
    off_t hole = lseek(fd, data, SEEK_HOLE);
    if (hole > data && (uint64_t)hole < end)
        *stop = (uint64_t)hole;
    return (uint64_t)data;
}

int writer_flush_copies(struct writer *w, struct cb_error *err)
{
    uint64_t at = w->copy_from, end = at + w->copy_len, stop;
    uint64_t to = w->copy_to - w->copy_from; /* modulo 2^64 */
    w->copy_len = 0;
    for (; at < end; at = stop) {
        at = next_data(w->copy_fd, at, end, &stop);
        if (at >= end)
            break;
        writer_soil(w, at + to, stop - at);
        int rc = cb_copy_range(w->copy_fd, (off_t)at, w->fd, (off_t)(at + to), stop - at, err);
        if (rc < 0)
            return cb_wrap(err, "copy a layer's files to %s", w->path);
    }
    return 0;
}

static int copy_later(struct writer *w, int fd, uint64_t from, uint64_t to, uint64_t len,
                      struct cb_error *err)
{
    bool joins = w->copy_len > 0 && w->copy_fd == fd && w->copy_from + w->copy_len == from &&
                 w->copy_to + w->copy_len == to && w->copy_len + len <= COPY_MAX;
    if (joins) {
        w->copy_len += len;
        return 0;
    }
    int rc = writer_flush_copies(w, err);
    w->copy_fd = fd;
    w->copy_from = from;
    w->copy_to = to;
    w->copy_len = len;
    return rc;
}

int writer_copy(struct writer *w, struct extents *x, uint32_t logical, uint32_t count, int fd,
                uint64_t from, struct cb_error *err)
{
    struct extents now = {NULL, 0, 0, 0};
    int rc = writer_alloc(w, &now, logical, count, err);
    for (size_t i = 0; rc == 0 && i < now.n; i++) {
        const struct extent *e = &now.v[i];
        rc = copy_later(w, fd, (from + (e->logical - logical)) * EXT4_BLOCK, e->start * EXT4_BLOCK,
                        (uint64_t)e->len * EXT4_BLOCK, err);
        if (rc == 0)
            writer_join(x, e);
    }
    extents_release(&now);
    return rc;
}

int writer_owe(struct writer *w, struct extents *x, uint32_t logical, uint32_t count,
               struct cb_error *err)
{
    struct extents now = {NULL, 0, 0, 0};
    int rc = writer_alloc(w, &now, logical, count, err);
    for (size_t i = 0; rc == 0 && i < now.n; i++) {
        bits_set(&w->owed, now.v[i].start, now.v[i].len);
        writer_join(x, &now.v[i]);
    }
    extents_release(&now);
    return rc;
}

bool writer_owes(const struct writer *w)
{
    uint64_t at, n;
    return bits_find(&w->owed, 0, &at, &n);
}
