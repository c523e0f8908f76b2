#include "schemas/pattern.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum token_kind {
    TOKEN_BYTE,
    TOKEN_ONE,   /* ? */
    TOKEN_CLASS, /* [...] */
    TOKEN_RUN,   /* * */
    TOKEN_DEEP,  /* "**" and a slash, if one follows: components, each with its slash */
    TOKEN_REST,  /* "**" at the end */
};

struct range {
    uint32_t low, high;
};

struct token {
    enum token_kind kind;
    unsigned char byte;
    bool negated;
    struct range *ranges; /* owned */
    size_t n_ranges, cap_ranges;
};

struct pattern {
    struct token *v;
    size_t n, cap;
};

/* The character at @p, which is not the end: its length. A byte that is not UTF-8 is one. */
static size_t character(const char *p, uint32_t *out)
{
    const unsigned char *u = (const unsigned char *)p;
    size_t n = u[0] < 0xc2 ? 1 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : u[0] < 0xf5 ? 4 : 1;
    uint32_t v = n == 1 ? u[0] : u[0] & (0xffu >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if ((u[i] & 0xc0) != 0x80) {
            *out = u[0];
            return 1;
        }
        v = v << 6 | (u[i] & 0x3f);
    }
    *out = v;
    return n;
}

static struct token *add(struct pattern *p, enum token_kind kind)
{
    p->v = cb_xgrow(p->v, &p->cap, p->n, sizeof(*p->v));
    p->v[p->n] = (struct token){.kind = kind};
    return &p->v[p->n++];
}

/* One end of a range; -1: the class is not one. */
static int class_character(const char **p, uint32_t *out)
{
    if (**p == '\\')
        (*p)++;
    else if (**p == '-' || **p == ']')
        return -1;
    if (!**p)
        return -1;
    *p += character(*p, out);
    return 0;
}

/* @p stands behind the bracket and ends behind the other one. */
static int compile_class(struct pattern *pat, const char **p, struct cb_error *err)
{
    struct token *t = add(pat, TOKEN_CLASS);
    t->negated = **p == '^';
    if (t->negated)
        (*p)++;
    do {
        struct range r;
        if (class_character(p, &r.low) < 0)
            return cb_fail(err, CB_E_CONFIG, "a bracket that is not closed, or has nothing in it");
        r.high = r.low;
        if (**p == '-') {
            (*p)++;
            if (class_character(p, &r.high) < 0)
                return cb_fail(err, CB_E_CONFIG, "a range in brackets that has no end");
        }
        if (r.high < r.low)
            return cb_fail(err, CB_E_CONFIG, "a range in brackets that ends before it begins");
        t->ranges = cb_xgrow(t->ranges, &t->cap_ranges, t->n_ranges, sizeof(*t->ranges));
        t->ranges[t->n_ranges++] = r;
    } while (**p && **p != ']');
    if (!**p)
        return cb_fail(err, CB_E_CONFIG, "a bracket that is not closed, or has nothing in it");
    (*p)++;
    return 0;
}

static void compile_stars(struct pattern *pat, const char **p, unsigned flags)
{
    (*p)++;
    if (**p != '*' || !(flags & PATTERN_DEEP)) {
        add(pat, TOKEN_RUN);
        return;
    }
    (*p)++;
    if (**p == '/')
        (*p)++;
    add(pat, **p ? TOKEN_DEEP : TOKEN_REST);
}

static int compile(struct pattern *pat, const char *p, unsigned flags, struct cb_error *err)
{
    while (*p) {
        if (*p == '*') {
            compile_stars(pat, &p, flags);
        } else if (*p == '?') {
            add(pat, TOKEN_ONE);
            p++;
        } else if (*p == '[') {
            p++;
            int rc = compile_class(pat, &p, err);
            if (rc < 0)
                return rc;
        } else {
            if (*p == '\\' && !*++p)
                return cb_fail(err, CB_E_CONFIG, "a backslash with nothing behind it");
            add(pat, TOKEN_BYTE)->byte = (unsigned char)*p++;
        }
    }
    return 0;
}

int pattern_compile(const char *text, unsigned flags, struct pattern **out, struct cb_error *err)
{
    if (strlen(text) > PATTERN_MAX)
        return cb_fail(err, CB_E_CONFIG, "a pattern of more than %d bytes", PATTERN_MAX);
    struct pattern *pat = cb_xcalloc(1, sizeof(*pat));
    int rc = compile(pat, text, flags, err);
    if (rc < 0)
        pattern_free(pat);
    else
        *out = pat;
    return rc;
}

void pattern_free(struct pattern *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n; i++)
        free(p->v[i].ranges);
    free(p->v);
    free(p);
}

static bool takes(const struct token *t, uint32_t c)
{
    if (c == '/')
        return false;
    if (t->kind == TOKEN_ONE)
        return true;
    bool in = false;
    for (size_t i = 0; i < t->n_ranges && !in; i++)
        in = c >= t->ranges[i].low && c <= t->ranges[i].high;
    return in != t->negated;
}

/* From the places of @name that the tokens before @t can end at (@from), those that @t can end at.
 */
static bool step(const struct token *t, const char *name, size_t n, const bool *from, bool *to)
{
    bool any = false, open = false;
    memset(to, 0, n + 1);
    for (size_t i = 0; i <= n; i++) {
        uint32_t c = 0;
        switch (t->kind) {
        case TOKEN_BYTE:
            if (from[i] && i < n && (unsigned char)name[i] == t->byte)
                to[i + 1] = any = true;
            break;
        case TOKEN_ONE:
        case TOKEN_CLASS:
            if (from[i] && i < n) {
                size_t len = character(name + i, &c);
                if (takes(t, c))
                    to[i + len] = any = true;
            }
            break;
        case TOKEN_RUN:
            open = from[i] || (open && name[i - 1] != '/');
            if (open)
                to[i] = any = true;
            break;
        case TOKEN_DEEP:
            if (from[i] || (open && name[i - 1] == '/'))
                to[i] = any = true;
            open = open || from[i];
            break;
        case TOKEN_REST:
            open = open || from[i];
            if (i == n && open)
                to[i] = any = true;
            break;
        }
    }
    return any;
}

bool pattern_match(const struct pattern *p, const char *name)
{
    bool rows[2][PATTERN_MAX + 1];
    size_t n = strlen(name);
    if (n > PATTERN_MAX)
        return false;
    memset(rows[0], 0, n + 1);
    rows[0][0] = true;
    size_t at = 0;
    for (size_t i = 0; i < p->n; i++, at = !at)
        if (!step(&p->v[i], name, n, rows[at], rows[!at]))
            return false;
    return rows[at][n];
}

bool pattern_is_wild(const char *text)
{
    return text[strcspn(text, "*?[\\")] != '\0';
}
