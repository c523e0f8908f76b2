#include "builder/debian.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <string.h>

enum {
    LINE_MAX_BYTES = 64 << 10,
    FOUND_MAX = 4096,
    FIELD_MAX = 4096,
};
#define PACKAGE_SIZE_MAX (1ull << 30)

/* Decimal digits alone, up to @max. */
static bool parse_size(const char *s, size_t n, uint64_t max, uint64_t *out)
{
    uint64_t v = 0;
    if (n == 0 || n > 19)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (s[i] < '0' || s[i] > '9')
            return false;
        v = v * 10 + (uint64_t)(s[i] - '0');
    }
    *out = v;
    return v <= max;
}

static const char *skip_blanks(const char *p, const char *end)
{
    while (p < end && (*p == ' ' || *p == '\t'))
        p++;
    return p;
}

static const char *line_end(const char *p)
{
    const char *nl = strchr(p, '\n');
    return nl ? nl : p + strlen(p);
}

/* The text behind "@field:" at the start of a line; NULL when there is no such line. */
static const char *field_start(const char *text, const char *field)
{
    size_t n = strlen(field);
    for (const char *p = text; *p; p = line_end(p), p += *p == '\n')
        if (strncmp(p, field, n) == 0 && p[n] == ':')
            return p + n + 1;
    return NULL;
}

char *debian_release_field(const char *text, const char *field)
{
    const char *p = field_start(text, field);
    if (!p)
        return NULL;
    const char *end = line_end(p);
    p = skip_blanks(p, end);
    return cb_xstrndup(p, (size_t)(end - p));
}

int debian_release_file(const char *text, const char *path, uint64_t *size, struct cb_digest *out,
                        struct cb_error *err)
{
    const char *p = field_start(text, "SHA256");
    size_t path_len = strlen(path);
    while (p) {
        p = line_end(p);
        if (*p != '\n' || p[1] != ' ')
            break;
        p++;
        const char *end = line_end(p);
        const char *hash = skip_blanks(p, end);
        const char *hash_end = memchr(hash, ' ', (size_t)(end - hash));
        if (!hash_end)
            continue;
        const char *num = skip_blanks(hash_end, end);
        const char *num_end = memchr(num, ' ', (size_t)(end - num));
        if (!num_end)
            continue;
        const char *name = skip_blanks(num_end, end);
        if ((size_t)(end - name) != path_len || memcmp(name, path, path_len) != 0)
            continue;
        char hex[CB_HEX_LEN + 1] = "";
        if (hash_end - hash == CB_HEX_LEN)
            memcpy(hex, hash, CB_HEX_LEN);
        if (!cb_digest_parse_hex(hex, out) ||
            !parse_size(num, (size_t)(num_end - num), PACKAGE_SIZE_MAX, size))
            return cb_fail(err, CB_E_CORRUPT, "Release file: the entry for %s cannot be read",
                           path);
        return 0;
    }
    return cb_fail(err, CB_E_CORRUPT, "Release file: no SHA-256 for %s", path);
}

static void package_release(struct debian_package *p)
{
    free(p->name);
    free(p->version);
    free(p->depends);
    free(p->filename);
    *p = (struct debian_package){0};
}

void debian_list_init(struct debian_list *l, const char *prefix, const char *suffix)
{
    *l = (struct debian_list){
        .prefix = prefix, .suffix = suffix, .line = CB_BUF_INIT(LINE_MAX_BYTES)};
}

void debian_list_release(struct debian_list *l)
{
    cb_buf_release(&l->line);
    package_release(&l->current);
    for (size_t i = 0; i < l->n; i++)
        package_release(&l->found[i]);
    free(l->found);
    l->found = NULL;
    l->n = l->cap = 0;
}

/* Does @name start with the prefix and end with the suffix, with at least nothing between? */
static bool wanted(const struct debian_list *l, const char *name, size_t n)
{
    size_t pre = strlen(l->prefix), suf = strlen(l->suffix);
    return n >= pre && n >= suf && memcmp(name, l->prefix, pre) == 0 &&
           memcmp(name + n - suf, l->suffix, suf) == 0;
}

static int stanza_end(struct debian_list *l, struct cb_error *err)
{
    if (!l->current.name)
        return 0;
    if (l->n == FOUND_MAX)
        return cb_fail(err, CB_E_LIMIT, "package list: more than %d kernels", FOUND_MAX);
    l->found = cb_xgrow(l->found, &l->cap, l->n, sizeof(*l->found));
    l->found[l->n++] = l->current;
    l->current = (struct debian_package){0};
    return 0;
}

static void set_text(char **slot, const char *v, size_t n)
{
    if (*slot || n > FIELD_MAX || memchr(v, '\0', n))
        return;
    *slot = cb_xstrndup(v, n);
}

static int line_done(struct debian_list *l, struct cb_error *err)
{
    const char *p = l->line.data;
    size_t n = l->line.len;
    if (n == 0)
        return stanza_end(l, err);
    const char *colon = memchr(p, ':', n);
    if (!colon || *p == ' ' || *p == '\t')
        return 0;
    const char *v = skip_blanks(colon + 1, p + n);
    size_t key = (size_t)(colon - p), len = (size_t)(p + n - v);
    struct debian_package *c = &l->current;
    if (key == 7 && memcmp(p, "Package", 7) == 0) {
        if (wanted(l, v, len))
            set_text(&c->name, v, len);
        return 0;
    }
    if (!c->name) /* "Package" is the first field of a stanza in every list that apt makes or reads
                   */
        return 0;
    if (key == 7 && memcmp(p, "Version", 7) == 0)
        set_text(&c->version, v, len);
    else if (key == 7 && memcmp(p, "Depends", 7) == 0)
        set_text(&c->depends, v, len);
    else if (key == 8 && memcmp(p, "Filename", 8) == 0)
        set_text(&c->filename, v, len);
    else if (key == 4 && memcmp(p, "Size", 4) == 0 &&
             !parse_size(v, len, PACKAGE_SIZE_MAX, &c->size))
        c->size = 0;
    else if (key == 6 && memcmp(p, "SHA256", 6) == 0 && len == CB_HEX_LEN) {
        char hex[CB_HEX_LEN + 1] = "";
        memcpy(hex, v, CB_HEX_LEN);
        c->has_sha256 = cb_digest_parse_hex(hex, &c->sha256);
    }
    return 0;
}

int debian_list_feed(struct debian_list *l, const char *p, size_t n, struct cb_error *err)
{
    const char *end = p + n;
    while (p < end) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        size_t piece = (size_t)((nl ? nl : end) - p);
        if (!l->long_line && cb_buf_add(&l->line, p, piece) < 0)
            l->long_line = true;
        p += piece;
        if (!nl)
            break;
        p++;
        if (!l->long_line) {
            int rc = line_done(l, err);
            if (rc < 0)
                return rc;
        }
        cb_buf_clear(&l->line);
        l->long_line = false;
    }
    return 0;
}

int debian_list_end(struct debian_list *l, struct cb_error *err)
{
    int rc = l->line.len && !l->long_line ? line_done(l, err) : 0;
    cb_buf_clear(&l->line);
    return rc < 0 ? rc : stanza_end(l, err);
}

static const struct debian_package *find(const struct debian_list *l, const char *name, size_t n,
                                         const char *version, size_t version_len)
{
    for (size_t i = 0; i < l->n; i++) {
        const struct debian_package *p = &l->found[i];
        if (strlen(p->name) != n || memcmp(p->name, name, n) != 0)
            continue;
        if (!version || (p->version && strlen(p->version) == version_len &&
                         memcmp(p->version, version, version_len) == 0))
            return p;
    }
    return NULL;
}

/* Of the paths in the archive: relative, plain characters, no "..". */
static bool good_filename(const char *s)
{
    if (!*s || *s == '/' || strstr(s, ".."))
        return false;
    for (; *s; s++)
        if (*s <= ' ' || *s == 127 || strchr("?#\\\"<>%", *s))
            return false;
    return true;
}

int debian_list_resolve(const struct debian_list *l, const char *meta,
                        const struct debian_package **out, struct cb_error *err)
{
    const struct debian_package *m = find(l, meta, strlen(meta), NULL, 0);
    if (!m || !m->depends)
        return cb_fail(err, CB_E_CORRUPT, "package list: no %s", meta);
    const char *p = m->depends;
    while (*p) { /* "linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1), other" */
        p += strspn(p, " ,");
        size_t n = strcspn(p, " ,(");
        if (!wanted(l, p, n) || (n == strlen(meta) && memcmp(p, meta, n) == 0)) {
            p += strcspn(p, ",");
            continue;
        }
        const char *name = p;
        p += n + strspn(p + n, " ");
        const char *version = strncmp(p, "(= ", 3) == 0 ? p + 3 : NULL;
        const struct debian_package *k =
            find(l, name, n, version, version ? strcspn(version, ")") : 0);
        if (!k)
            return cb_fail(err, CB_E_CORRUPT,
                           "package list: %s depends on %.*s, which is not there", meta, (int)n,
                           name);
        if (!k->version || !k->filename || !k->has_sha256 || !k->size ||
            !good_filename(k->filename))
            return cb_fail(err, CB_E_CORRUPT, "package list: the entry of %s is incomplete",
                           k->name);
        *out = k;
        return 0;
    }
    return cb_fail(err, CB_E_CORRUPT, "package list: %s depends on no kernel (%s)", meta,
                   m->depends);
}
