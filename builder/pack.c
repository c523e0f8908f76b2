#include "builder/pack.h"

#include "support/buf.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

enum {
    PIECE_MAX = 64 << 10, /* of DATA: several make a request */
    BUFFER_MAX = 1 << 20,
};

struct pack {
    int fd;
    struct cb_hasher *hasher;
    struct pack_sum sum;
    uint64_t left; /* of the file */
    struct cb_buf out;
};

struct pack *pack_new(int fd)
{
    struct pack *p = cb_xcalloc(1, sizeof(*p));
    p->fd = fd;
    p->hasher = cb_hasher_new();
    cb_buf_init(&p->out, BUFFER_MAX);
    return p;
}

void pack_free(struct pack *p)
{
    if (!p)
        return;
    cb_hasher_free(p->hasher);
    cb_buf_release(&p->out);
    free(p);
}

static int flush(struct pack *p, struct cb_error *err)
{
    if (p->fd < 0 || !p->out.len)
        return 0;
    int rc = cb_write_all(p->fd, p->out.data, p->out.len, err);
    cb_buf_clear(&p->out);
    return rc;
}

/* One field; there is room for it when the buffer is not nearly full. */
static int put(struct pack *p, enum frame_tag tag, const void *a, size_t n, const void *b, size_t m,
               const void *c, size_t k, struct cb_error *err)
{
    uint8_t head[6];
    if (p->fd < 0)
        return 0;
    if (p->out.len + sizeof(head) + n + m + k > BUFFER_MAX) {
        int rc = flush(p, err);
        if (rc < 0)
            return rc;
    }
    frame_store(head, (uint64_t)tag, 2);
    frame_store(head + 2, n + m + k, 4);
    (void)cb_buf_add(&p->out, head, sizeof(head));
    (void)cb_buf_add(&p->out, a, n);
    (void)cb_buf_add(&p->out, b, m);
    return cb_buf_add(&p->out, c, k);
}

static int check_entry(struct pack *p, const struct frame_entry *e, struct cb_error *err)
{
    if (p->left)
        return cb_fail(err, CB_E_BUG, "the file before it is not whole");
    if (!frame_path_clean(e->path, e->path_len))
        return cb_fail(err, CB_E_CONFIG, "a path that is too long, or no path");
    if (e->kind == ENTRY_LINK && (!e->target_len || e->target_len > FRAME_PATH_MAX))
        return cb_fail(err, CB_E_CONFIG, "a link whose target is empty or too long");
    if (p->sum.entries == PACK_ENTRIES_MAX)
        return cb_fail(err, CB_E_LIMIT, "more than %d files", PACK_ENTRIES_MAX);
    if (e->size > PACK_BYTES_MAX - p->sum.bytes)
        return cb_fail(err, CB_E_LIMIT, "more than %llu GiB of files",
                       (unsigned long long)(PACK_BYTES_MAX >> 30));
    return 0;
}

int pack_entry(struct pack *p, const struct frame_entry *e, struct cb_error *err)
{
    uint8_t head[FRAME_ENTRY_HEAD];
    if (check_entry(p, e, err) < 0) {
        CB_AUTO_FREE char *shown = pack_shown(e->path);
        return cb_wrap(err, "%s", shown);
    }
    p->sum.entries++;
    p->sum.bytes += e->size;
    p->left = e->size;
    struct frame_entry timeless = *e;
    timeless.mtime = 0;
    timeless.mtime_ns = 0;
    frame_entry_head(head, &timeless);
    cb_hasher_update(p->hasher, head, sizeof(head));
    uint8_t target_len[4]; /* in the pack the field's length says it */
    frame_store(target_len, e->target_len, 4);
    cb_hasher_update(p->hasher, target_len, sizeof(target_len));
    cb_hasher_update(p->hasher, e->path, e->path_len);
    cb_hasher_update(p->hasher, e->target, e->target_len);
    frame_entry_head(head, e);
    return put(p, TAG_ENTRY, head, sizeof(head), e->path, e->path_len, e->target, e->target_len,
               err);
}

int pack_data(struct pack *p, const void *data, size_t len, struct cb_error *err)
{
    const uint8_t *b = data;
    if (len > p->left)
        return cb_fail(err, CB_E_BUG, "more bytes than the file has");
    cb_hasher_update(p->hasher, data, len);
    p->left -= len;
    while (len) {
        size_t n = len < PIECE_MAX ? len : PIECE_MAX;
        int rc = put(p, TAG_DATA, b, n, NULL, 0, NULL, 0, err);
        if (rc < 0)
            return rc;
        b += n;
        len -= n;
    }
    return 0;
}

int pack_end(struct pack *p, struct pack_sum *out, struct cb_error *err)
{
    if (p->left)
        return cb_fail(err, CB_E_BUG, "the last file is not whole");
    int rc = flush(p, err);
    if (rc < 0)
        return rc;
    cb_hasher_final(p->hasher, &p->sum.digest);
    *out = p->sum;
    return 0;
}

/* Bytes of the UTF-8 character at @p, 0: it is none. */
static size_t utf8(const unsigned char *p)
{
    size_t n = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (p[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
        (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return n;
}

char *pack_shown(const char *path)
{
    char *out = cb_xstrdup(path);
    for (unsigned char *p = (unsigned char *)out; *p;) {
        size_t n = utf8(p);
        if (n == 0 || *p < 0x20 || *p == 0x7f)
            *p = '?';
        p += n ? n : 1;
    }
    return out;
}
