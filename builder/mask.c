#include "builder/mask.h"

#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

enum {
    WRAP_COLUMNS = 48, /* shorter lines of encoded text are taken for ordinary ones */
    WRAP_BREAKS = 2,   /* CR LF */
};

/* Aho-Corasick: a tree of all patterns. Children are lists, but for the root, where most bytes
 * end. */
struct node {
    uint32_t child, sibling; /* 0: none */
    uint32_t fail;           /* the longest proper suffix that is in the tree */
    uint32_t depth;
    uint32_t match; /* length of the longest pattern that ends here, 0: none */
    uint8_t byte;
};

struct tree {
    struct node *v;
    size_t n, cap;
    uint32_t top[256]; /* children of the root */
};

struct mask {
    struct tree plain, coded;
    uint8_t code_of[256]; /* as_coded() */
    bool ready;
};

/* ---- the tree ---- */

static uint32_t new_node(struct tree *t)
{
    t->v = cb_xgrow(t->v, &t->cap, t->n, sizeof(*t->v));
    t->v[t->n] = (struct node){0};
    return (uint32_t)t->n++;
}

static uint32_t child_of(const struct tree *t, uint32_t at, uint8_t byte)
{
    if (at == 0)
        return t->top[byte];
    uint32_t c = t->v[at].child;
    while (c && t->v[c].byte != byte)
        c = t->v[c].sibling;
    return c;
}

static void tree_add(struct tree *t, const uint8_t *p, size_t n)
{
    uint32_t at = 0;
    if (t->n == 0)
        (void)new_node(t); /* the root */
    for (size_t i = 0; i < n; i++) {
        uint32_t c = child_of(t, at, p[i]);
        if (!c) {
            c = new_node(t);
            t->v[c].byte = p[i];
            t->v[c].depth = t->v[at].depth + 1;
            t->v[c].sibling = t->v[at].child;
            t->v[at].child = c;
            if (at == 0)
                t->top[p[i]] = c;
        }
        at = c;
    }
    t->v[at].match = (uint32_t)n;
}

static uint32_t tree_step(const struct tree *t, uint32_t at, uint8_t byte)
{
    while (at != 0) {
        uint32_t c = child_of(t, at, byte);
        if (c)
            return c;
        at = t->v[at].fail;
    }
    return t->top[byte];
}

/* Links each node to where the search goes on when it is a dead end; by depth, so that what a link
 * leads to is finished. */
static void tree_link(struct tree *t)
{
    if (t->n == 0)
        return;
    uint32_t *queue = cb_xcalloc(t->n, sizeof(*queue));
    size_t n = 0;
    for (uint32_t c = t->v[0].child; c; c = t->v[c].sibling)
        queue[n++] = c;
    for (size_t i = 0; i < n; i++) {
        const struct node *up = &t->v[queue[i]];
        for (uint32_t c = up->child; c; c = t->v[c].sibling) {
            struct node *x = &t->v[c];
            x->fail = tree_step(t, up->fail, x->byte);
            if (x->match == 0)
                x->match = t->v[x->fail].match;
            queue[n++] = c;
        }
    }
    free(queue);
}

static void tree_release(struct tree *t)
{
    if (t->v)
        explicit_bzero(t->v, t->cap * sizeof(*t->v));
    free(t->v);
}

/* ---- patterns ---- */

struct mask *mask_new(void)
{
    return cb_xcalloc(1, sizeof(struct mask));
}

void mask_free(struct mask *m)
{
    if (!m)
        return;
    tree_release(&m->plain);
    tree_release(&m->coded);
    free(m);
}

bool mask_is_empty(const struct mask *m)
{
    return m->plain.n == 0;
}

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* Base64 of @shift unknown bytes and @p: the characters that @p alone decides, from the first of
 * them on. With @end also the last one and its padding, as where the encoded text ends with @p. */
static void add_coded(struct tree *t, const uint8_t *p, size_t n, size_t shift, bool end)
{
    size_t bits = 8 * (shift + n), first = (8 * shift + 5) / 6, last = bits / 6;
    size_t total = end ? (shift + n + 2) / 3 * 4 : last;
    uint8_t *out = cb_xmalloc(total + 1);
    size_t len = 0;
    for (size_t c = first; c < total; c++) {
        unsigned v = 0;
        if (c * 6 >= bits) {
            out[len++] = '=';
            continue;
        }
        for (size_t bit = c * 6; bit < c * 6 + 6; bit++) {
            size_t byte = bit / 8;
            unsigned of = byte < shift + n && byte >= shift ? p[byte - shift] : 0;
            v = v << 1 | (of >> (7 - bit % 8) & 1u);
        }
        out[len++] = (uint8_t)alphabet[v];
    }
    tree_add(t, out, len);
    explicit_bzero(out, total + 1);
    free(out);
}

static void add_value(struct mask *m, const uint8_t *p, size_t n)
{
    if (n < MASK_SHORTEST)
        return;
    tree_add(&m->plain, p, n);
    uint8_t *line = cb_xmalloc(n + 1); /* as `echo` gives it to an encoder */
    memcpy(line, p, n);
    line[n] = '\n';
    for (size_t shift = 0; shift < 3; shift++) {
        add_coded(&m->coded, p, n, shift, false);
        add_coded(&m->coded, p, n, shift, true);
        add_coded(&m->coded, line, n + 1, shift, true);
    }
    explicit_bzero(line, n + 1);
    free(line);
}

static bool is_blank(uint8_t c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

void mask_add(struct mask *m, const void *value, size_t len)
{
    const uint8_t *p = value, *end = p + len;
    while (end > p && (end[-1] == '\n' || end[-1] == '\r')) /* who prints it may drop these */
        end--;
    add_value(m, p, (size_t)(end - p));
    if (!memchr(p, '\n', (size_t)(end - p)))
        return;
    while (p < end) {
        const uint8_t *nl = memchr(p, '\n', (size_t)(end - p));
        const uint8_t *from = p, *to = nl ? nl : end;
        p = nl ? nl + 1 : end;
        while (from < to && is_blank(*from))
            from++;
        while (to > from && is_blank(to[-1]))
            to--;
        add_value(m, from, (size_t)(to - from));
    }
}

/* ---- streams ---- */

void mask_add_later(struct mask *m, const void *value, size_t len)
{
    mask_add(m, value, len);
    m->ready = false;
}

/* The byte @c as one of base64, in its usual alphabet; 0: it is none. */
static uint8_t as_coded(uint8_t c)
{
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '+' ||
        c == '/' || c == '=')
        return c;
    return c == '-' ? '+' : c == '_' ? '/' : 0;
}

void mask_stream_init(struct mask_stream *s, struct mask *m)
{
    *s = (struct mask_stream){
        .mask = m, .held = CB_BUF_INIT(SIZE_MAX / 2), .hit = CB_BUF_INIT(SIZE_MAX / 2)};
    if (!m->ready) {
        tree_link(&m->plain);
        tree_link(&m->coded);
        for (unsigned c = 0; c < 256; c++)
            m->code_of[c] = as_coded((uint8_t)c);
        m->ready = true;
    }
}

void mask_stream_release(struct mask_stream *s)
{
    if (s->held.data)
        explicit_bzero(s->held.data, s->held.cap);
    cb_buf_release(&s->held);
    cb_buf_release(&s->hit);
}

/* The bytes of `held` from @from on, up to @to, are a secret's. Ends come in rising order. */
static void mark(struct mask_stream *s, size_t from, size_t to)
{
    size_t start = from >= s->hit_from && from <= s->hit_to ? s->hit_to : from;
    if (start < to)
        memset(s->hit.data + start, 1, to - start);
    if (from < s->hit_from || from > s->hit_to)
        s->hit_from = from;
    s->hit_to = to;
}

/* Where the last @n characters before @end begin, line ends not counted. */
static size_t back(const struct mask_stream *s, size_t end, size_t n)
{
    while (n) {
        char c = s->held.data[--end];
        n -= c != '\n' && c != '\r';
    }
    return end;
}

/* The byte @c at @at of `held`, as one of base64. */
static void step_coded(struct mask_stream *s, uint8_t c, size_t at)
{
    const struct tree *t = &s->mask->coded;
    uint8_t code = s->mask->code_of[c];
    if (!code) {
        bool breaks = (c == '\n' || c == '\r') && s->coded && s->run >= WRAP_COLUMNS;
        if (breaks && s->breaks < WRAP_BREAKS) {
            s->breaks++;
            return;
        }
        s->coded = 0;
        s->run = s->breaks = 0;
        return;
    }
    s->run = s->breaks ? 1 : s->run + 1;
    s->breaks = 0;
    s->coded = tree_step(t, s->coded, code);
    if (s->coded && t->v[s->coded].match)
        mark(s, back(s, at + 1, t->v[s->coded].match), at + 1);
}

static void step_plain(struct mask_stream *s, uint8_t c, size_t at)
{
    const struct tree *t = &s->mask->plain;
    s->plain = tree_step(t, s->plain, c);
    if (s->plain && t->v[s->plain].match)
        mark(s, at + 1 - t->v[s->plain].match, at + 1);
}

/* Hands on the first @n bytes that are held. */
static void release(struct mask_stream *s, size_t n, struct cb_buf *out)
{
    for (size_t i = 0; i < n;) {
        bool hit = s->hit.data[i] != 0;
        const char *end = memchr(s->hit.data + i, !hit, n - i);
        size_t run = end ? (size_t)(end - (s->hit.data + i)) : n - i;
        if (!hit)
            (void)cb_buf_add(out, s->held.data + i, run);
        else if (!s->masking)
            (void)cb_buf_adds(out, MASK_TEXT);
        s->masking = hit;
        i += run;
    }
    if (n)
        explicit_bzero(s->held.data, n);
    cb_buf_drop(&s->held, n);
    cb_buf_drop(&s->hit, n);
    s->hit_from = s->hit_from > n ? s->hit_from - n : 0;
    s->hit_to = s->hit_to > n ? s->hit_to - n : 0;
}

void mask_feed(struct mask_stream *s, const void *p, size_t n, struct cb_buf *out)
{
    size_t at = s->held.len;
    if (mask_is_empty(s->mask)) {
        (void)cb_buf_add(out, p, n);
        return;
    }
    (void)cb_buf_add(&s->held, p, n);
    static const char none[4096];
    while (s->hit.len < s->held.len) {
        size_t more = s->held.len - s->hit.len;
        (void)cb_buf_add(&s->hit, none, more < sizeof(none) ? more : sizeof(none));
    }
    for (; at < s->held.len; at++) {
        uint8_t c = (uint8_t)s->held.data[at];
        step_plain(s, c, at);
        step_coded(s, c, at);
    }
    size_t plain = s->held.len - s->mask->plain.v[s->plain].depth;
    size_t coded = s->held.len;
    if (s->coded)
        coded = back(s, s->held.len, s->mask->coded.v[s->coded].depth);
    release(s, plain < coded ? plain : coded, out);
}

void mask_flush(struct mask_stream *s, struct cb_buf *out)
{
    release(s, s->held.len, out);
    s->plain = s->coded = 0;
    s->run = s->breaks = 0;
    s->masking = false;
}

char *mask_text(struct mask *m, const char *text)
{
    if (mask_is_empty(m))
        return NULL;
    struct mask_stream s;
    struct cb_buf out = CB_BUF_INIT(SIZE_MAX / 2);
    mask_stream_init(&s, m);
    mask_feed(&s, text, strlen(text), &out);
    mask_flush(&s, &out);
    mask_stream_release(&s);
    char *masked = cb_buf_take(&out);
    if (strcmp(masked, text) != 0)
        return masked;
    free(masked);
    return NULL;
}
