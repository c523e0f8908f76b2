/* JSON (RFC 8259), read strictly: no comments, no trailing commas, no NUL, pairs of surrogates
 * only. */
#include "schemas/doc.h"

#include <stdlib.h>
#include <string.h>

struct json_reader {
    struct doc_builder *b;
    const char *p, *end;
    int line, column; /* of @p */
    struct cb_buf text;
};

/* Goes on by @n bytes that hold no line break. */
static void skip(struct json_reader *r, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (((unsigned char)r->p[i] & 0xc0) != 0x80)
            r->column++;
    r->p += n;
}

static void skip_space(struct json_reader *r)
{
    for (; r->p < r->end; r->p++) {
        if (*r->p == '\n' || *r->p == '\r') {
            if (*r->p == '\r' && r->p + 1 < r->end && r->p[1] == '\n')
                r->p++;
            r->line++;
            r->column = 1;
        } else if (*r->p == ' ' || *r->p == '\t') {
            r->column++;
        } else {
            return;
        }
    }
}

/* "expected X, found Y", at the place reached. */
static bool expected(struct json_reader *r, const char *what)
{
    if (r->p == r->end) {
        doc_problem(r->b, r->line, r->column, "not valid JSON: expected %s, found the end", what);
        return false;
    }
    uint32_t cp = 0;
    size_t n = utf8_next(r->p, (size_t)(r->end - r->p), &cp);
    char *q = quote_text(r->p, n ? n : 1);
    doc_problem(r->b, r->line, r->column, "not valid JSON: expected %s, found %s", what, q);
    free(q);
    return false;
}

static bool hex4(struct json_reader *r, uint32_t *out)
{
    uint32_t v = 0;
    for (int i = 0; i < 4; i++) {
        if (r->p == r->end)
            return expected(r, "four hex digits");
        char c = *r->p;
        uint32_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint32_t)(c - '0');
        else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
            digit = (uint32_t)((c | 0x20) - 'a') + 10;
        else
            return expected(r, "four hex digits");
        v = v << 4 | digit;
        skip(r, 1);
    }
    *out = v;
    return true;
}

static void add_utf8(struct cb_buf *b, uint32_t cp)
{
    char u[4];
    size_t n;
    if (cp < 0x80) {
        u[0] = (char)cp;
        n = 1;
    } else if (cp < 0x800) {
        u[0] = (char)(0xc0 | cp >> 6);
        u[1] = (char)(0x80 | (cp & 0x3f));
        n = 2;
    } else if (cp < 0x10000) {
        u[0] = (char)(0xe0 | cp >> 12);
        u[1] = (char)(0x80 | (cp >> 6 & 0x3f));
        u[2] = (char)(0x80 | (cp & 0x3f));
        n = 3;
    } else {
        u[0] = (char)(0xf0 | cp >> 18);
        u[1] = (char)(0x80 | (cp >> 12 & 0x3f));
        u[2] = (char)(0x80 | (cp >> 6 & 0x3f));
        u[3] = (char)(0x80 | (cp & 0x3f));
        n = 4;
    }
    (void)cb_buf_add(b, u, n);
}

/* Behind a backslash. */
static bool escape(struct json_reader *r)
{
    static const char from[] = "\"\\/bfnrt";
    static const char to[] = "\"\\/\b\f\n\r\t";
    if (r->p == r->end)
        return expected(r, "an escape");
    const char *at = *r->p ? strchr(from, *r->p) : NULL;
    if (at) {
        (void)cb_buf_add(&r->text, &to[at - from], 1);
        skip(r, 1);
        return true;
    }
    if (*r->p != 'u')
        return expected(r, "one of the escapes \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX");
    int line = r->line, column = r->column - 1;
    skip(r, 1);
    uint32_t cp = 0, low = 0;
    if (!hex4(r, &cp))
        return false;
    bool lone = cp >= 0xdc00 && cp <= 0xdfff;
    if (cp >= 0xd800 && cp <= 0xdbff) {
        lone = !(r->end - r->p >= 2 && r->p[0] == '\\' && r->p[1] == 'u');
        if (!lone) {
            skip(r, 2);
            if (!hex4(r, &low))
                return false;
            lone = low < 0xdc00 || low > 0xdfff;
            cp = 0x10000 + ((cp - 0xd800) << 10) + (low - 0xdc00);
        }
    }
    if (lone) {
        doc_problem(r->b, line, column, "not valid JSON: half of a surrogate pair");
        return false;
    }
    if (cp == 0) {
        doc_problem(r->b, line, column, "a NUL character is not accepted in a text");
        return false;
    }
    add_utf8(&r->text, cp);
    return true;
}

static bool string(struct json_reader *r)
{
    int line = r->line, column = r->column;
    cb_buf_clear(&r->text);
    skip(r, 1);
    for (;;) {
        const char *from = r->p;
        while (r->p < r->end && *r->p != '"' && *r->p != '\\' && (unsigned char)*r->p >= 0x20) {
            if (((unsigned char)*r->p & 0xc0) != 0x80)
                r->column++;
            r->p++;
        }
        (void)cb_buf_add(&r->text, from, (size_t)(r->p - from));
        if (r->p == r->end) {
            doc_problem(r->b, line, column, "not valid JSON: this string has no end");
            return false;
        }
        char c = *r->p;
        if (c != '"' && c != '\\') {
            doc_problem(r->b, r->line, r->column,
                        "not valid JSON: a %s inside a string; write it as an escape",
                        c == '\n' || c == '\r' ? "line break"
                        : c == '\t'            ? "tab"
                                               : "control character");
            return false;
        }
        skip(r, 1);
        if (c == '"')
            return doc_add_scalar(r->b, r->text.data ? r->text.data : "", r->text.len, false, line,
                                  column, NULL);
        if (!escape(r))
            return false;
    }
}

static size_t digits(const char *p, const char *end)
{
    const char *from = p;
    while (p < end && *p >= '0' && *p <= '9')
        p++;
    return (size_t)(p - from);
}

/* A number, true, false or null: kept as it is written. */
static bool word(struct json_reader *r)
{
    static const char *const words[] = {"true", "false", "null"};
    const char *p = r->p;
    size_t left = (size_t)(r->end - p), n = 0;
    for (size_t i = 0; i < 3 && n == 0; i++)
        if (left >= strlen(words[i]) && memcmp(p, words[i], strlen(words[i])) == 0)
            n = strlen(words[i]);
    if (n == 0) {
        size_t i = left && *p == '-' ? 1 : 0;
        size_t whole = digits(p + i, r->end);
        if (whole == 0 || (whole > 1 && p[i] == '0'))
            return expected(r, "a value");
        i += whole;
        if (i < left && p[i] == '.') {
            size_t fraction = digits(p + i + 1, r->end);
            if (fraction == 0)
                return expected(r, "a value");
            i += 1 + fraction;
        }
        if (i < left && (p[i] == 'e' || p[i] == 'E')) {
            size_t sign = i + 1 < left && (p[i + 1] == '+' || p[i + 1] == '-') ? 1 : 0;
            size_t exponent = digits(p + i + 1 + sign, r->end);
            if (exponent == 0)
                return expected(r, "a value");
            i += 1 + sign + exponent;
        }
        n = i;
    }
    if (!doc_add_scalar(r->b, p, n, true, r->line, r->column, NULL))
        return false;
    skip(r, n);
    return true;
}

static bool value(struct json_reader *r);

static bool list_or_map(struct json_reader *r, enum doc_kind kind)
{
    char close = kind == DOC_MAP ? '}' : ']';
    if (!doc_open(r->b, kind, r->line, r->column, NULL))
        return false;
    skip(r, 1);
    skip_space(r);
    for (bool first = true;; first = false) {
        if (r->p < r->end && *r->p == close && first)
            break;
        if (kind == DOC_MAP) {
            if (r->p == r->end || *r->p != '"')
                return expected(r, "a key in quotes");
            if (!string(r))
                return false;
            skip_space(r);
            if (r->p == r->end || *r->p != ':')
                return expected(r, "':'");
            skip(r, 1);
            skip_space(r);
        }
        if (!value(r))
            return false;
        skip_space(r);
        if (r->p < r->end && *r->p == ',') {
            skip(r, 1);
            skip_space(r);
            continue;
        }
        if (r->p == r->end || *r->p != close)
            return expected(r, close == '}' ? "',' or '}'" : "',' or ']'");
        break;
    }
    skip(r, 1);
    return doc_close(r->b);
}

/* Recursion is bounded by DOC_DEPTH_MAX in doc_open(). */
static bool value(struct json_reader *r)
{
    if (r->p == r->end)
        return expected(r, "a value");
    switch (*r->p) {
    case '{': return list_or_map(r, DOC_MAP);
    case '[': return list_or_map(r, DOC_LIST);
    case '"': return string(r);
    default: return word(r);
    }
}

bool doc_read_json(struct doc_builder *b)
{
    struct source *s = &b->doc->src;
    struct json_reader r = {.b = b, .p = s->text, .end = s->text + s->len, .line = 1, .column = 1};
    cb_buf_init(&r.text, s->len + 1);
    skip_space(&r);
    bool ok = value(&r);
    if (ok) {
        skip_space(&r);
        if (r.p != r.end)
            ok = expected(&r, "the end of the file");
    }
    cb_buf_release(&r.text);
    return ok;
}
