#include "layers/tar_pax.h"

#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

#define PIECES_MAX ((size_t)1 << 20) /* of one sparse file: 16 MiB of memory */
#define SCHILY "SCHILY.xattr."
#define LIBARCHIVE "LIBARCHIVE.xattr."

/* ---- numbers ---- */

static bool base_256(const unsigned char *f, size_t n, int64_t *out)
{
    unsigned char invert = f[0] & 0x40 ? 0xff : 0;
    uint64_t x = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = f[i] ^ invert;
        if (i == 0)
            c &= 0x7f;
        if (x >> 55) /* the sign has a bit of its own */
            return false;
        x = x << 8 | c;
    }
    *out = invert ? (int64_t)~x : (int64_t)x;
    return true;
}

bool tar_field(const unsigned char *f, size_t n, int64_t *out)
{
    if (f[0] & 0x80)
        return base_256(f, n, out);
    while (n > 0 && (*f == ' ' || *f == '\0')) {
        f++;
        n--;
    }
    int64_t x = 0;
    size_t i = 0;
    for (; i < n && f[i] >= '0' && f[i] <= '7'; i++) {
        if (x >> 60)
            return false;
        x = x << 3 | (f[i] - '0');
    }
    for (; i < n && f[i] == ' '; i++)
        ;
    *out = x;
    return i == n || f[i] == '\0'; /* what follows a NUL is nobody's */
}

bool tar_decimal(const char *text, uint64_t *out)
{
    uint64_t x = 0;
    if (!*text)
        return false;
    for (; *text >= '0' && *text <= '9'; text++) {
        uint64_t digit = (uint64_t)(*text - '0');
        if (x > (UINT64_MAX - digit) / 10)
            return false;
        x = x * 10 + digit;
    }
    *out = x;
    return *text == '\0';
}

bool tar_time(const char *text, int64_t *sec, uint32_t *ns)
{
    bool negative = *text == '-';
    uint64_t whole = 0;
    uint32_t part = 0, digits = 0;
    text += negative;
    if (*text < '0' || *text > '9')
        return false;
    for (; *text >= '0' && *text <= '9'; text++) {
        if (whole > (uint64_t)INT64_MAX / 10)
            return false;
        whole = whole * 10 + (uint64_t)(*text - '0');
    }
    if (whole > INT64_MAX)
        return false;
    if (*text == '.')
        for (text++; *text >= '0' && *text <= '9'; text++) {
            if (digits < 9) {
                part = part * 10 + (uint32_t)(*text - '0');
                digits++;
            }
        }
    for (; digits < 9; digits++)
        part *= 10;
    *sec = negative ? -(int64_t)whole : (int64_t)whole;
    *ns = part;
    if (negative && part > 0) {
        --*sec;
        *ns = 1000000000u - part;
    }
    return *text == '\0';
}

/* ---- maps of sparse files ---- */

int tar_map_add(struct tar_map *m, uint64_t at, uint64_t len, struct cb_error *err)
{
    if (m->n == PIECES_MAX)
        return cb_fail(err, CB_E_LIMIT, "a sparse file of more than %zu pieces", PIECES_MAX);
    if (m->n == m->cap) {
        m->cap = m->cap ? 2 * m->cap : 16;
        m->v = cb_xrealloc(m->v, m->cap * sizeof(*m->v));
    }
    m->v[m->n++] = (struct tar_piece){at, len};
    return 0;
}

static int bad_map(struct cb_error *err)
{
    return cb_fail(err, CB_E_CORRUPT, "tar: the map of a sparse file is malformed");
}

int tar_map_parse(struct tar_map *m, const char *text, struct cb_error *err)
{
    uint64_t pair[2];
    for (int i = 0;; i ^= 1) {
        char digits[24];
        size_t n = strcspn(text, ",");
        if (n >= sizeof(digits))
            return bad_map(err);
        memcpy(digits, text, n);
        digits[n] = '\0';
        if (!tar_decimal(digits, &pair[i]))
            return bad_map(err);
        int rc = i == 1 ? tar_map_add(m, pair[0], pair[1], err) : 0;
        if (rc < 0)
            return rc;
        if (!text[n]) /* after an offset its length must follow */
            return i == 1 ? 0 : bad_map(err);
        text += n + 1;
    }
}

int tar_map_check(const struct tar_map *m, uint64_t size, uint64_t stored, struct cb_error *err)
{
    uint64_t end = 0, sum = 0;
    for (size_t i = 0; i < m->n; i++) {
        const struct tar_piece *p = &m->v[i];
        if (p->at < end || p->at > size || p->len > size - p->at)
            return cb_fail(err, CB_E_CORRUPT, "tar: the map of a sparse file is out of order");
        end = p->at + p->len;
        sum += p->len;
    }
    if (sum == stored)
        return 0;
    return cb_fail(err, CB_E_CORRUPT,
                   "tar: the map of a sparse file has %llu bytes, %llu are stored",
                   (unsigned long long)sum, (unsigned long long)stored);
}

/* ---- records ---- */

void tar_pax_init(struct tar_pax *p, size_t max_body)
{
    memset(p, 0, sizeof(*p));
    cb_buf_init(&p->body, max_body);
}

void tar_pax_release(struct tar_pax *p)
{
    cb_buf_release(&p->body);
    free(p->pieces.v);
    free(p->xattrs);
}

void tar_pax_clear(struct tar_pax *p)
{
    p->path = p->link = p->size = p->uid = p->gid = p->mtime = NULL;
    p->major = p->minor = p->name = p->realsize = p->map = NULL;
    p->sparse = false;
    p->pieces.n = p->n_xattrs = 0;
    cb_buf_clear(&p->body);
}

/* One record, its '=' and newline replaced by NULs. */
struct one_record {
    char *key, *value;
    size_t len; /* of the value */
};

static void add_xattr(struct tar_pax *p, const char *name, const void *value, size_t len)
{
    if (p->n_xattrs == p->cap_xattrs) {
        p->cap_xattrs = p->cap_xattrs ? 2 * p->cap_xattrs : 8;
        p->xattrs = cb_xrealloc(p->xattrs, p->cap_xattrs * sizeof(*p->xattrs));
    }
    p->xattrs[p->n_xattrs++] = (struct tar_xattr){name, value, len};
}

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "%20" and its kin, in place. False when malformed or with a NUL. */
static bool url_decode(char *s)
{
    char *out = s;
    for (; *s; s++) {
        if (*s != '%') {
            *out++ = *s;
            continue;
        }
        int high = hex(s[1]), low = high < 0 ? -1 : hex(s[2]);
        if (low < 0 || high + low == 0)
            return false;
        *out++ = (char)(high << 4 | low);
        s += 2;
    }
    *out = '\0';
    return true;
}

static int base64_digit(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* In place; its padding may be missing. False when malformed. */
static bool base64_decode(char *s, size_t *len)
{
    size_t n = *len, out = 0;
    uint32_t bits = 0;
    int have = 0;
    for (int i = 0; i < 2 && n > 0 && s[n - 1] == '='; i++)
        n--;
    for (size_t i = 0; i < n; i++) {
        int d = base64_digit(s[i]);
        if (d < 0)
            return false;
        bits = bits << 6 | (uint32_t)d;
        have += 6;
        if (have >= 8) {
            have -= 8;
            s[out++] = (char)(bits >> have & 0xff);
        }
    }
    *len = out;
    return n % 4 != 1;
}

static int bad_record(const struct one_record *r, struct cb_error *err)
{
    return cb_fail(err, CB_E_CORRUPT, "tar: a malformed PAX record (%.40s)", r->key);
}

/* Format 0.0 of sparse files: offset, numbytes, offset, numbytes... */
static int sparse_pair(struct tar_pax *p, const struct one_record *r, bool offset,
                       struct cb_error *err)
{
    struct tar_map *m = &p->pieces;
    uint64_t x;
    bool open = m->n > 0 && m->v[m->n - 1].len == UINT64_MAX; /* its length is still to come */
    if (!tar_decimal(r->value, &x) || x == UINT64_MAX || open == offset)
        return bad_record(r, err);
    if (offset)
        return tar_map_add(m, x, UINT64_MAX, err);
    m->v[m->n - 1].len = x;
    return 0;
}

static int sparse_record(struct tar_pax *p, const struct one_record *r, struct cb_error *err)
{
    const char *key = r->key + strlen("GNU.sparse."), *value = r->len ? r->value : NULL;
    p->sparse |= value != NULL;
    if (strcmp(key, "offset") == 0 || strcmp(key, "numbytes") == 0)
        return sparse_pair(p, r, key[0] == 'o', err);
    if (strcmp(key, "major") == 0)
        p->major = value;
    else if (strcmp(key, "minor") == 0)
        p->minor = value;
    else if (strcmp(key, "name") == 0)
        p->name = value;
    else if (strcmp(key, "map") == 0)
        p->map = value;
    else if (strcmp(key, "size") == 0 || strcmp(key, "realsize") == 0)
        p->realsize = value;
    return 0;
}

static int xattr_record(struct tar_pax *p, struct one_record *r, struct cb_error *err)
{
    if (strncmp(r->key, SCHILY, strlen(SCHILY)) == 0) {
        add_xattr(p, r->key + strlen(SCHILY), r->value, r->len);
        return 0;
    }
    char *name = r->key + strlen(LIBARCHIVE);
    if (!url_decode(name) || !base64_decode(r->value, &r->len))
        return bad_record(r, err);
    add_xattr(p, name, r->value, r->len);
    return 0;
}

static int take_record(struct tar_pax *p, struct one_record *r, struct cb_error *err)
{
    static const struct {
        const char *key;
        size_t at;
    } keys[] = {
        {"path", offsetof(struct tar_pax, path)}, {"linkpath", offsetof(struct tar_pax, link)},
        {"size", offsetof(struct tar_pax, size)}, {"uid", offsetof(struct tar_pax, uid)},
        {"gid", offsetof(struct tar_pax, gid)},   {"mtime", offsetof(struct tar_pax, mtime)},
    };
    if (strncmp(r->key, SCHILY, strlen(SCHILY)) == 0 ||
        strncmp(r->key, LIBARCHIVE, strlen(LIBARCHIVE)) == 0)
        return xattr_record(p, r, err);
    bool sparse = strncmp(r->key, "GNU.sparse.", strlen("GNU.sparse.")) == 0;
    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++) {
        if (strcmp(r->key, keys[i].key) != 0)
            continue;
        if (strlen(r->value) != r->len)
            return bad_record(r, err); /* a NUL: some readers would stop there */
        const char *value = r->len ? r->value : NULL;
        memcpy((char *)p + keys[i].at, &value, sizeof(value));
        return 0;
    }
    if (sparse && strlen(r->value) != r->len)
        return bad_record(r, err);
    return sparse ? sparse_record(p, r, err) : 0;
}

/* "LENGTH KEY=VALUE\n" at @at; LENGTH counts all of it. False when it is not that. */
static bool cut_record(char *at, size_t left, struct one_record *r, size_t *total)
{
    uint64_t len = 0;
    size_t i = 0;
    for (; i < left && i < 10 && at[i] >= '0' && at[i] <= '9'; i++)
        len = len * 10 + (uint64_t)(at[i] - '0');
    if (i == 0 || i >= left || at[i] != ' ' || len > left || len < i + 4 || at[len - 1] != '\n')
        return false;
    r->key = at + i + 1;
    char *end = at + len - 1, *equals = memchr(r->key, '=', (size_t)(end - r->key));
    if (!equals || equals == r->key || memchr(r->key, '\0', (size_t)(equals - r->key)))
        return false;
    *equals = *end = '\0';
    r->value = equals + 1;
    r->len = (size_t)(end - r->value);
    *total = (size_t)len;
    return true;
}

int tar_pax_parse(struct tar_pax *p, struct cb_error *err)
{
    for (size_t at = 0; at < p->body.len;) {
        struct one_record r;
        size_t n;
        if (!cut_record(p->body.data + at, p->body.len - at, &r, &n))
            return cb_fail(err, CB_E_CORRUPT, "tar: a malformed PAX header");
        int rc = take_record(p, &r, err);
        if (rc < 0)
            return rc;
        at += n;
    }
    const struct tar_map *m = &p->pieces;
    if (m->n > 0 && m->v[m->n - 1].len == UINT64_MAX)
        return bad_map(err);
    return 0;
}
