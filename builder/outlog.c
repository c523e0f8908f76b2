#include "builder/outlog.h"

#include "support/mem.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define TAIL_MAX (UINT64_C(1) << 20)
enum { PIECE_MAX = 32 << 10, PIECES_MAX = 4096, LINE_MAX_MORE = 4096 };

/* A run of bytes of one stream. */
struct piece {
    int stream;
    size_t len, cap;
    char *data; /* owned */
};

struct outlog {
    uint64_t head_max, tail_max;
    outlog_sink *sink;
    void *arg;
    uint64_t total;   /* bytes that were written */
    uint64_t dropped; /* of them: neither handed on nor in the ring */
    uint64_t held;    /* bytes in the ring */
    bool cut;         /* the beginning is complete */
    struct piece ring[PIECES_MAX];
    size_t first, n;
};

struct outlog *outlog_new(uint64_t max, outlog_sink *sink, void *arg)
{
    struct outlog *o = cb_xcalloc(1, sizeof(*o));
    o->tail_max = max / 4 < TAIL_MAX ? max / 4 : TAIL_MAX;
    o->head_max = max - o->tail_max;
    o->sink = sink;
    o->arg = arg;
    return o;
}

static void drop_first(struct outlog *o)
{
    struct piece *p = &o->ring[o->first];
    o->held -= p->len;
    free(p->data);
    *p = (struct piece){0};
    o->first = (o->first + 1) % PIECES_MAX;
    o->n--;
}

void outlog_begin(struct outlog *o)
{
    while (o->n)
        drop_first(o);
    o->total = o->dropped = 0;
    o->cut = false;
}

void outlog_free(struct outlog *o)
{
    if (!o)
        return;
    outlog_begin(o);
    free(o);
}

/* The piece that more bytes of @stream go to: the last one, or a new one. */
static struct piece *piece_for(struct outlog *o, int stream)
{
    struct piece *last = o->n ? &o->ring[(o->first + o->n - 1) % PIECES_MAX] : NULL;
    if (last && last->stream == stream && last->len < PIECE_MAX)
        return last;
    if (o->n == PIECES_MAX) {
        o->dropped += o->ring[o->first].len;
        drop_first(o);
    }
    last = &o->ring[(o->first + o->n++) % PIECES_MAX];
    *last = (struct piece){.stream = stream};
    return last;
}

static void keep(struct outlog *o, int stream, const char *p, size_t len)
{
    while (len) {
        struct piece *to = piece_for(o, stream);
        size_t n = PIECE_MAX - to->len < len ? PIECE_MAX - to->len : len;
        if (to->len + n > to->cap) {
            to->cap = to->len + n < PIECE_MAX / 2 ? (to->len + n) * 2 : PIECE_MAX;
            to->data = cb_xrealloc(to->data, to->cap);
        }
        memcpy(to->data + to->len, p, n);
        to->len += n;
        o->held += n;
        p += n;
        len -= n;
    }
    /* whole pieces go: of the end, at most one piece less is kept than there was room for */
    while (o->n > 1 && o->held > o->tail_max) {
        o->dropped += o->ring[o->first].len;
        drop_first(o);
    }
}

/* How much of @len bytes still belongs to the beginning, of which @room are left: whole lines where
 * they are not long. */
static size_t to_hand_on(const char *data, size_t len, uint64_t room)
{
    if (len <= room)
        return len;
    const char *nl = room ? memrchr(data, '\n', (size_t)room) : NULL;
    if (!nl && room)
        nl = memchr(data + room, '\n', len - room < LINE_MAX_MORE ? len - room : LINE_MAX_MORE);
    return nl ? (size_t)(nl - data) + 1 : (size_t)room;
}

void outlog_add(struct outlog *o, int stream, const void *data, size_t len)
{
    uint64_t room = o->cut || o->total >= o->head_max ? 0 : o->head_max - o->total;
    size_t now = to_hand_on(data, len, room);
    o->total += len;
    if (now)
        o->sink(o->arg, stream, data, now);
    if (now < len) {
        o->cut = true;
        keep(o, stream, (const char *)data + now, len - now);
    }
}

/* Whole lines read better: what was cut off from the front is cut to the next line, unless that is
 * far. */
static void skip_to_line(struct outlog *o)
{
    struct piece *p = &o->ring[o->first];
    const char *nl = memchr(p->data, '\n', p->len);
    if (!nl || (size_t)(nl - p->data) + 1 == p->len)
        return;
    size_t n = (size_t)(nl - p->data) + 1;
    memmove(p->data, nl + 1, p->len - n);
    p->len -= n;
    o->held -= n;
    o->dropped += n;
}

void outlog_end(struct outlog *o)
{
    if (o->dropped) {
        skip_to_line(o);
        o->sink(o->arg, 0, NULL, o->dropped);
    }
    while (o->n) {
        const struct piece *p = &o->ring[o->first];
        o->sink(o->arg, p->stream, p->data, p->len);
        drop_first(o);
    }
    o->cut = false;
    o->total = o->dropped = 0;
}

uint64_t outlog_withheld(const struct outlog *o)
{
    return o->cut ? o->total : 0;
}
