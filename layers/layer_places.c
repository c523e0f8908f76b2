#include "layers/layer_places_private.h"

#include "layers/ext4_private.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

/* What may be saved of an image's bytes before they become holes: a part, and a little more. */
#define REST_PART 20u
#define REST_FREE 256u

/* Blocks in a row, as a record has them. Little-endian as the machines that make images. */
struct span {
    uint64_t stream; /* the first one's number of all data blocks of the layer */
    uint64_t block;  /* where it lies in the file */
    uint32_t count;
    uint32_t file; /* IMAGE, REST, or LOST: it is nowhere any more */
};

static char *layer_rel(const struct cb_digest *diff_id, const char *what)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(diff_id, hex);
    return cb_xasprintf(PLACES_FOLDER "/%s.%s", hex, what);
}

/* ---- while an image is made ---- */

/* A span while the image is made: what was saved keeps where it lay. */
struct piece {
    uint64_t stream, block, rest;
    uint32_t count, file;
};

struct saved { /* blocks that became a hole */
    uint64_t start, count, rest;
    bool lost;
};

struct kept {
    struct cb_digest diff_id;
    struct piece *v; /* rising in stream and block */
    size_t n, cap;
    uint64_t stream; /* data blocks so far */
    uint64_t first, last;
    bool odd; /* too many pieces: no record is made */
    int rest;
    char *rest_rel;
    uint64_t rest_blocks;
    struct saved *saved; /* since the last places_end() */
    size_t n_saved, cap_saved;
};

struct places {
    struct store *store;
    struct writer *w;
    struct kept *v;
    size_t n, cap;
    bool open; /* the last layer is not at its end */
    uint64_t rest_blocks;
};

struct places *places_new(struct store *s)
{
    struct places *p = cb_xcalloc(1, sizeof(*p));
    p->store = s;
    return p;
}

void places_clear(struct places *p)
{
    for (size_t i = 0; i < p->n; i++) {
        struct kept *l = &p->v[i];
        cb_close(l->rest);
        if (l->rest_rel)
            (void)unlinkat(p->store->root, l->rest_rel, 0);
        free(l->rest_rel);
        free(l->v);
        free(l->saved);
    }
    p->n = 0;
    p->rest_blocks = 0;
    p->open = false;
    p->w = NULL;
}

void places_free(struct places *p)
{
    if (!p)
        return;
    places_clear(p);
    free(p->v);
    free(p);
}

void places_done(struct places **p)
{
    places_free(*p);
}

void places_detach(struct places *p)
{
    if (p)
        p->w = NULL;
}

/* The piece that has @block, or the first one behind it. */
static size_t search(const struct kept *l, uint64_t block)
{
    size_t low = 0, high = l->n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (l->v[mid].block + l->v[mid].count <= block)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* False when there is no room for more of them. */
static bool save_bytes(struct places *p, struct kept *l, uint64_t start, uint64_t count)
{
    uint64_t allowed = p->w->data_in_use / REST_PART + REST_FREE;
    if (p->rest_blocks + count > allowed)
        return false;
    if (l->rest < 0)
        l->rest = store_tmp_open(p->store, "rest", &l->rest_rel, NULL);
    return l->rest >= 0 && writer_flush_data(p->w, NULL) == 0 &&
           cb_copy_range(p->w->fd, (off_t)start * EXT4_BLOCK, l->rest,
                         (off_t)l->rest_blocks * EXT4_BLOCK, count * EXT4_BLOCK, NULL) == 0;
}

static void save(struct places *p, struct kept *l, uint64_t start, uint64_t count)
{
    bool saved = save_bytes(p, l, start, count);
    l->saved = cb_xgrow(l->saved, &l->cap_saved, l->n_saved, sizeof(*l->saved));
    l->saved[l->n_saved++] = (struct saved){start, count, l->rest_blocks, !saved};
    if (saved) {
        l->rest_blocks += count;
        p->rest_blocks += count;
    }
}

/* Blocks [start, start + count) of the image are about to become a hole. Which layer's they are,
 * and if they are data at all, shows in the spans: spans of the image are apart, and their numbers
 * are given out again only behind the end of a layer that freed its own last ones, when its spans
 * say so. */
static void on_free(void *arg, uint64_t start, uint64_t count)
{
    struct places *p = arg;
    for (size_t i = p->n; i-- > 0;) {
        struct kept *l = &p->v[i];
        if (l->odd || l->n == 0 || start >= l->last || start + count <= l->first)
            continue;
        for (size_t s = search(l, start); s < l->n && l->v[s].block < start + count; s++) {
            const struct piece *v = &l->v[s];
            uint64_t from = v->block > start ? v->block : start;
            uint64_t end =
                v->block + v->count < start + count ? v->block + v->count : start + count;
            if (v->file == IMAGE && from < end)
                save(p, l, from, end - from);
        }
    }
}

void places_begin(struct places *p, struct writer *w, const struct cb_digest *diff_id)
{
    p->v = cb_xgrow(p->v, &p->cap, p->n, sizeof(*p->v));
    p->v[p->n++] = (struct kept){.diff_id = *diff_id, .rest = -1, .first = UINT64_MAX};
    p->open = true;
    p->w = w;
    w->on_free = on_free;
    w->on_free_arg = p;
}

static void add_piece(struct kept *l, const struct piece *p)
{
    struct piece *last = l->n > 0 ? &l->v[l->n - 1] : NULL;
    if (last && last->file == p->file && last->stream + last->count == p->stream &&
        last->block + last->count == p->block &&
        (p->file != REST || last->rest + last->count == p->rest) &&
        (uint64_t)last->count + p->count <= UINT32_MAX) {
        last->count += p->count;
        return;
    }
    if (l->n == PLACES_SPANS_MAX) {
        l->odd = true;
        return;
    }
    l->v = cb_xgrow(l->v, &l->cap, l->n, sizeof(*l->v));
    l->v[l->n++] = *p;
}

void places_add(struct places *p, const struct extents *x)
{
    if (!p || !p->open)
        return;
    struct kept *l = &p->v[p->n - 1];
    for (size_t i = 0; i < x->n; i++) {
        uint64_t end = x->v[i].start + x->v[i].len;
        add_piece(l, &(struct piece){.stream = l->stream,
                                     .block = x->v[i].start,
                                     .count = x->v[i].len,
                                     .file = IMAGE});
        l->stream += x->v[i].len;
        l->first = x->v[i].start < l->first ? x->v[i].start : l->first;
        l->last = end > l->last ? end : l->last;
    }
}

static int by_start(const void *a, const void *b)
{
    const struct saved *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

/* The part of @p in front of or in the first of @l's saved blocks that reach behind its start, from
 * number *@s on. */
static struct piece cut(const struct kept *l, const struct piece *p, size_t *s)
{
    struct piece out = *p;
    while (*s < l->n_saved && l->saved[*s].start + l->saved[*s].count <= p->block)
        ++*s;
    if (*s == l->n_saved)
        return out;
    const struct saved *v = &l->saved[*s];
    uint64_t n = v->start - p->block;
    if (v->start <= p->block) {
        n = v->start + v->count - p->block;
        out.file = v->lost ? LOST : REST;
        out.rest = v->rest + (p->block - v->start);
    }
    if (n < out.count)
        out.count = (uint32_t)n;
    return out;
}

/* What was saved since the last time gets its new place. */
static void resolve(struct kept *l)
{
    struct kept now = {.v = NULL};
    size_t s = 0;
    if (l->n_saved)
        qsort(l->saved, l->n_saved, sizeof(*l->saved), by_start);
    for (size_t i = 0; i < l->n && !l->odd; i++) {
        struct piece p = l->v[i];
        while (p.count > 0) {
            struct piece part = p.file == IMAGE ? cut(l, &p, &s) : p;
            add_piece(&now, &part);
            p.stream += part.count;
            p.block += part.count;
            p.count -= part.count;
        }
    }
    free(l->v);
    l->v = now.v;
    l->n = now.n;
    l->cap = now.cap;
    l->odd = l->odd || now.odd;
    l->n_saved = 0;
}

void places_end(struct places *p)
{
    for (size_t i = 0; i < p->n; i++)
        if (p->v[i].n_saved > 0 || p->v[i].odd)
            resolve(&p->v[i]);
    p->open = false;
}

static void put_layer(struct places *p, struct kept *l, struct places_head *h)
{
    CB_AUTO_FREE char *rel = layer_rel(&l->diff_id, "places");
    CB_AUTO_FREE char *rest = layer_rel(&l->diff_id, "rest");
    CB_AUTO_BUF all = CB_BUF_INIT(sizeof(*h) + PLACES_SPANS_MAX * sizeof(struct span));
    struct stat st;
    h->files[REST] = (struct file_id){0, 0};
    if (l->rest_blocks > 0) {
        if (fstat(l->rest, &st) < 0 ||
            renameat(p->store->root, l->rest_rel, p->store->root, rest) < 0)
            return;
        free(cb_take_ptr(&l->rest_rel));
        h->files[REST] = (struct file_id){st.st_ino, (uint64_t)st.st_size};
    }
    h->diff_id = l->diff_id;
    h->spans = l->n;
    CB_AUTO_FREE struct span *v = cb_xcalloc(l->n + 1, sizeof(*v));
    for (size_t i = 0; i < l->n; i++) {
        const struct piece *q = &l->v[i];
        uint64_t block = q->file == REST ? q->rest : q->file == IMAGE ? q->block : 0;
        v[i] = (struct span){q->stream, block, q->count, q->file};
    }
    cb_sha256(v, l->n * sizeof(*v), &h->body);
    if (cb_buf_add(&all, h, sizeof(*h)) == 0 &&
        (l->n == 0 || cb_buf_add(&all, v, l->n * sizeof(*v)) == 0))
        (void)store_replace(p->store, rel, all.data, all.len, NULL);
}

void places_put(struct places *p, enum prefix_folder folder, const struct cb_digest *name)
{
    struct places_head h = {.folder = folder, .name = *name};
    struct stat st;
    memcpy(h.magic, PLACES_MAGIC, sizeof(h.magic));
    CB_AUTO_FD fd = places_open_image(p->store, &h, &st);
    if (fd < 0)
        return;
    h.files[IMAGE] = (struct file_id){st.st_ino, (uint64_t)st.st_size};
    for (size_t i = 0; i < p->n; i++)
        if (!p->v[i].odd)
            put_layer(p, &p->v[i], &h);
}

/* ---- for another image ---- */

struct place_reader {
    int fd[FILES];
    struct span *v;
    size_t n, at;
};

void place_free(struct place_reader *r)
{
    if (!r)
        return;
    for (int i = 0; i < FILES; i++)
        cb_close(r->fd[i]);
    free(r->v);
    free(r);
}

/* All blocks of the layer, one after the other, inside their files. */
static bool spans_fit(const struct place_reader *r, const struct places_head *h, uint64_t blocks,
                      bool whole)
{
    uint64_t stream = 0;
    for (size_t i = 0; i < r->n; i++) {
        const struct span *v = &r->v[i];
        if (v->stream != stream || v->count == 0 || v->file >= KINDS || (whole && v->file == LOST))
            return false;
        uint64_t size = v->file == LOST ? UINT64_MAX : h->files[v->file].size / EXT4_BLOCK;
        if (v->block > size || v->count > size - v->block)
            return false;
        stream += v->count;
    }
    return stream == blocks;
}

static bool load(struct store *s, int fd, const struct cb_digest *diff_id, uint64_t blocks,
                 bool whole, struct place_reader *r)
{
    struct places_head h;
    struct stat st;
    struct cb_digest sum;
    if (!places_read_head(fd, &h) || !cb_digest_eq(&h.diff_id, diff_id))
        return false;
    r->n = (size_t)h.spans;
    r->v = cb_xcalloc(r->n + 1, sizeof(*r->v));
    if (cb_pread_all(fd, r->v, r->n * sizeof(*r->v), sizeof(h), NULL) < 0)
        return false;
    cb_sha256(r->v, r->n * sizeof(*r->v), &sum);
    if (!cb_digest_eq(&sum, &h.body) || !spans_fit(r, &h, blocks, whole))
        return false;
    r->fd[IMAGE] = places_open_image(s, &h, &st);
    if (r->fd[IMAGE] < 0 || st.st_ino != h.files[IMAGE].ino ||
        (uint64_t)st.st_size != h.files[IMAGE].size)
        return false;
    (void)futimens(r->fd[IMAGE],
                   (struct timespec[2]){{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_OMIT}});
    if (h.files[REST].size == 0)
        return true;
    CB_AUTO_FREE char *rest = layer_rel(diff_id, "rest");
    r->fd[REST] = openat(s->root, rest, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    store_touch(s, rest);
    return r->fd[REST] >= 0 && fstat(r->fd[REST], &st) == 0 && st.st_ino == h.files[REST].ino &&
           (uint64_t)st.st_size == h.files[REST].size;
}

struct place_reader *place_open(struct store *s, const struct cb_digest *diff_id, uint64_t blocks,
                                bool whole)
{
    CB_AUTO_FREE char *rel = layer_rel(diff_id, "places");
    CB_AUTO_FD fd = openat(s->root, rel, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    struct place_reader *r = cb_xcalloc(1, sizeof(*r));
    r->fd[IMAGE] = r->fd[REST] = -1;
    if (load(s, fd, diff_id, blocks, whole, r)) {
        store_touch(s, rel);
        return r;
    }
    place_free(r);
    return NULL;
}

uint64_t place_find(struct place_reader *r, uint64_t stream, int *fd, uint64_t *block)
{
    while (r->at > 0 && r->v[r->at].stream > stream)
        r->at--;
    while (r->at < r->n && r->v[r->at].stream + r->v[r->at].count <= stream)
        r->at++;
    if (r->at == r->n || r->v[r->at].stream > stream)
        return 0;
    const struct span *v = &r->v[r->at];
    *fd = v->file == LOST ? -1 : r->fd[v->file];
    *block = v->block + (stream - v->stream);
    return v->count - (stream - v->stream);
}
