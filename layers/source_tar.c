/* The headers of a tar, one after the other, without its data: where each member lies, so that any
 * of them can be read later, as often and in whatever order an image needs them. libarchive reads
 * tar streams, and does not say where a member's bytes are. */
#include "layers/source.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

enum {
    BLOCK = 512,
    WINDOW = 64 << 10,      /* read at once: headers of small members lie close together */
    MEMBERS_MAX = 100000,   /* 1024 layers of `docker save` need about 4000 */
    NAMES_MAX = 16 << 20,   /* bytes of all names */
    EXTENDED_MAX = 1 << 20, /* a PAX or GNU header's data */
    LINKS_MAX = 8,
};

struct member {
    char *name, *link; /* link: whole name of what it stands for, "" when that is outside */
    uint64_t offset, size;
    size_t order;
    bool sparse;
};

struct tar_index {
    struct member *v;
    size_t n, cap;
    size_t names;
};

/* What extended headers say of the member that follows. */
struct extended {
    char *name, *link;
    bool has_size, sparse;
    uint64_t size;
};

struct reader {
    int fd;
    uint64_t size, at;
    char *window;
    uint64_t window_at;
    size_t window_len;
    struct extended ext;
    struct tar_index *t;
};

static void extended_clear(struct extended *x)
{
    free(x->name);
    free(x->link);
    *x = (struct extended){0};
}

void tar_index_free(struct tar_index *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n; i++) {
        free(t->v[i].name);
        free(t->v[i].link);
    }
    free(t->v);
    free(t);
}

/* One block at @at, which lies in the file. Borrowed until the next call. */
static int block_at(struct reader *r, uint64_t at, const unsigned char **out, struct cb_error *err)
{
    if (at < r->window_at || at + BLOCK > r->window_at + r->window_len) {
        uint64_t left = r->size - at;
        size_t n = left < WINDOW ? (size_t)left : WINDOW;
        int rc = cb_pread_all(r->fd, r->window, n, (off_t)at, err);
        if (rc < 0)
            return rc;
        r->window_at = at;
        r->window_len = n;
    }
    *out = (const unsigned char *)r->window + (at - r->window_at);
    return 0;
}

/* --- one header --- */

/* Octal, or base 256 when the first bit is set. False: no number, or a negative one. */
static bool number(const unsigned char *p, size_t n, uint64_t *out)
{
    uint64_t v = 0;
    if (*p & 0x80) {
        if (*p & 0x40)
            return false;
        v = *p & 0x3f;
        for (size_t i = 1; i < n; i++) {
            if (v >> 55)
                return false;
            v = v << 8 | p[i];
        }
        *out = v;
        return true;
    }
    size_t i = 0;
    while (i < n && p[i] == ' ')
        i++;
    for (; i < n && p[i] >= '0' && p[i] <= '7'; i++)
        v = v << 3 | (unsigned)(p[i] - '0');
    if (i < n && p[i] != '\0' && p[i] != ' ')
        return false;
    *out = v;
    return true;
}

/* The sum over the header with blanks for the sum itself; old programs added signed bytes. */
static bool sum_ok(const unsigned char *h)
{
    uint64_t said;
    uint64_t sum = 0;
    int64_t as_signed = 0;
    if (!number(h + 148, 8, &said))
        return false;
    for (size_t i = 0; i < BLOCK; i++) {
        unsigned char c = i >= 148 && i < 156 ? ' ' : h[i];
        sum += c;
        as_signed += (signed char)c;
    }
    return said == sum || (int64_t)said == as_signed;
}

static bool all_zero(const unsigned char *h)
{
    return h[0] == 0 && memcmp(h, h + 1, BLOCK - 1) == 0;
}

/* name, or prefix/name in ustar. Owned. */
static char *header_name(const unsigned char *h)
{
    const char *name = (const char *)h, *prefix = (const char *)h + 345;
    bool ustar = memcmp(h + 257, "ustar\0", 6) == 0;
    size_t n = strnlen(name, 100), p = ustar ? strnlen(prefix, 155) : 0;
    return p ? cb_xasprintf("%.*s/%.*s", (int)p, prefix, (int)n, name) : cb_xstrndup(name, n);
}

/* --- extended headers --- */

static int64_t digits(const char *p, size_t n)
{
    int64_t v = 0;
    if (n == 0 || n > 18)
        return -1;
    for (size_t i = 0; i < n; i++) {
        if (p[i] < '0' || p[i] > '9')
            return -1;
        v = v * 10 + (p[i] - '0');
    }
    return v;
}

static bool key_is(const char *rec, size_t key, const char *name)
{
    return key == strlen(name) && memcmp(rec, name, key) == 0;
}

/* "LEN key=value\n", again and again. */
static bool take_pax(struct extended *x, const char *p, size_t n)
{
    while (n) {
        const char *blank = memchr(p, ' ', n);
        int64_t len = blank ? digits(p, (size_t)(blank - p)) : -1;
        if (len < 0 || (uint64_t)len > n || len <= blank + 2 - p || p[len - 1] != '\n')
            return false;
        const char *rec = blank + 1;
        size_t all = (size_t)(p + len - 1 - rec);
        const char *eq = memchr(rec, '=', all);
        if (!eq)
            return false;
        size_t key = (size_t)(eq - rec), value = all - key - 1;
        char **text = key_is(rec, key, "path")       ? &x->name
                      : key_is(rec, key, "linkpath") ? &x->link
                                                     : NULL;
        if (text) {
            free(*text);
            *text = cb_xstrndup(eq + 1, value);
        } else if (key_is(rec, key, "size")) {
            int64_t v = digits(eq + 1, value);
            if (v < 0)
                return false;
            x->has_size = true;
            x->size = (uint64_t)v;
        } else if (key > 11 && memcmp(rec, "GNU.sparse.", 11) == 0) {
            x->sparse = true;
        }
        p += len;
        n -= (size_t)len;
    }
    return true;
}

static int take_extended(struct reader *r, char type, uint64_t data, uint64_t size,
                         struct cb_error *err)
{
    if (size > EXTENDED_MAX)
        return cb_fail(err, CB_E_LIMIT, "an extended header of %llu bytes",
                       (unsigned long long)size);
    CB_AUTO_FREE char *text = cb_xmalloc((size_t)size + 1);
    int rc = cb_pread_all(r->fd, text, (size_t)size, (off_t)data, err);
    if (rc < 0)
        return rc;
    text[size] = '\0';
    if (type == 'L' || type == 'K') {
        char **to = type == 'L' ? &r->ext.name : &r->ext.link;
        free(*to);
        *to = cb_xstrdup(text);
        return 0;
    }
    struct extended unused = {0};
    bool ok = take_pax(type == 'x' ? &r->ext : &unused, text, (size_t)size);
    extended_clear(&unused);
    return ok ? 0 : cb_fail(err, CB_E_CORRUPT, "an extended header that is none");
}

/* --- members --- */

/* What a link stands for, as a member's name; "" when that is outside the archive. Owned. */
static char *link_target(const char *name, char type, const char *target)
{
    CB_AUTO_FREE char *base = cb_xstrdup(name);
    char *slash = strrchr(base, '/');
    if (slash)
        *slash = '\0';
    else
        *base = '\0';
    char *to = archive_member_name(type == '1' ? "" : base, target);
    return to ? to : cb_xstrdup("");
}

static int add_member(struct reader *r, const unsigned char *h, char type, uint64_t data,
                      uint64_t size, struct cb_error *err)
{
    struct tar_index *t = r->t;
    CB_AUTO_FREE char *raw = r->ext.name ? cb_take_ptr(&r->ext.name) : header_name(h);
    CB_AUTO_FREE char *name = archive_member_name(NULL, raw);
    if (!name)
        return 0; /* "./", or a name that nothing can ask for */
    struct member m = {.offset = data, .size = size, .order = t->n};
    if (type == '1' || type == '2') {
        CB_AUTO_FREE char *target =
            r->ext.link ? cb_take_ptr(&r->ext.link) : cb_xstrndup((const char *)h + 157, 100);
        m.link = link_target(name, type, target);
    }
    m.sparse = r->ext.sparse || type == 'S';
    t->names += strlen(name) + (m.link ? strlen(m.link) : 0);
    m.name = cb_take_ptr(&name);
    t->v = cb_xgrow(t->v, &t->cap, t->n, sizeof(*t->v));
    t->v[t->n++] = m;
    if (t->n > MEMBERS_MAX || t->names > NAMES_MAX)
        return cb_fail(err, CB_E_LIMIT, "more than %d members, or names of more than 16 MiB",
                       MEMBERS_MAX);
    return 0;
}

/* 1 and one header taken, 0 at the end. */
static int next(struct reader *r, struct cb_error *err)
{
    const unsigned char *h;
    if (r->size - r->at < BLOCK)
        return 0; /* without the blocks of zeros: some programs forget them */
    int rc = block_at(r, r->at, &h, err);
    if (rc < 0 || all_zero(h))
        return rc;
    uint64_t size;
    char type = (char)h[156];
    if (!sum_ok(h) || !number(h + 124, 12, &size))
        return cb_fail(err, CB_E_CORRUPT, "no tar header at byte %llu", (unsigned long long)r->at);
    bool extended = type == 'x' || type == 'g' || type == 'L' || type == 'K';
    if (type >= '1' && type <= '6')
        size = 0; /* links, devices and folders: whatever the field says, no data follows */
    else if (!extended && r->ext.has_size)
        size = r->ext.size;
    uint64_t data = r->at + BLOCK;
    if (size > r->size - data) {
        CB_AUTO_FREE char *name = header_name(h);
        return cb_fail(err, CB_E_CORRUPT,
                       "truncated: member \"%.100s\" has %llu bytes where %llu are left", name,
                       (unsigned long long)size, (unsigned long long)(r->size - data));
    }
    if (extended)
        rc = take_extended(r, type, data, size, err);
    else if (type == '0' || type == '\0' || type == '7' || type == '1' || type == '2' ||
             type == 'S')
        rc = add_member(r, h, type, data, size, err);
    if (!extended)
        extended_clear(&r->ext);
    uint64_t blocks = size / BLOCK + (size % BLOCK != 0);
    r->at = blocks > (r->size - data) / BLOCK ? r->size : data + blocks * BLOCK;
    return rc < 0 ? rc : 1;
}

static int by_name(const void *a, const void *b)
{
    const struct member *x = a, *y = b;
    int c = strcmp(x->name, y->name);
    return c ? c : (x->order > y->order) - (x->order < y->order);
}

int tar_index_read(int fd, uint64_t size, struct tar_index **out, struct cb_error *err)
{
    struct reader r = {.fd = fd, .size = size, .window = cb_xmalloc(WINDOW)};
    r.t = cb_xcalloc(1, sizeof(*r.t));
    int rc;
    do {
        rc = next(&r, err);
    } while (rc > 0);
    extended_clear(&r.ext);
    free(r.window);
    if (rc < 0) {
        tar_index_free(r.t);
        return rc;
    }
    if (r.t->n)
        qsort(r.t->v, r.t->n, sizeof(*r.t->v), by_name);
    *out = r.t;
    return 0;
}

static const struct member *find(const struct tar_index *t, const char *name)
{
    size_t lo = 0, hi = t->n;
    while (lo < hi) { /* the first one behind all of that name */
        size_t mid = lo + (hi - lo) / 2;
        if (strcmp(t->v[mid].name, name) <= 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo && strcmp(t->v[lo - 1].name, name) == 0 ? &t->v[lo - 1] : NULL;
}

int tar_index_find(const struct tar_index *t, const char *name, uint64_t *offset, uint64_t *size,
                   struct cb_error *err)
{
    const struct member *m = find(t, name);
    for (int i = 0; m && m->link; i++) {
        if (i == LINKS_MAX)
            return cb_fail(err, CB_E_UNTRUSTED, "%s is a link to a link, %d times over", name,
                           LINKS_MAX);
        if (!*m->link)
            return cb_fail(err, CB_E_UNTRUSTED, "%s is a link that leads out of the archive", name);
        m = find(t, m->link);
    }
    if (!m)
        return cb_fail(err, CB_E_NOTFOUND, "there is no %s", name);
    if (m->sparse)
        return cb_fail(err, CB_E_CORRUPT, "%s is a sparse member", name);
    *offset = m->offset;
    *size = m->size;
    return 0;
}
