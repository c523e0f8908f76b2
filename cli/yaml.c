#include "cli/yaml.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>
#include <strings.h>

enum { STEP = 2 };

static void indent(struct cb_buf *out, int depth)
{
    cb_buf_addf(out, "%*s", depth * STEP, "");
}

/* A character that is not shown as itself: controls, U+0080 to U+009F, the byte order mark, and the
 * line and direction marks of Unicode (U+2028 to U+202F, U+2066 to U+2069). Its length, or 0. */
static size_t unprintable(const char *at)
{
    const unsigned char *p = (const unsigned char *)at;
    if (p[0] < 0x20 || p[0] == 0x7f)
        return 1;
    if (p[0] == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f)
        return 2;
    if (p[0] == 0xe2 && p[1] == 0x80 && p[2] >= 0xa8 && p[2] <= 0xaf)
        return 3;
    if (p[0] == 0xe2 && p[1] == 0x81 && p[2] >= 0xa6 && p[2] <= 0xa9)
        return 3;
    return p[0] == 0xef && p[1] == 0xbb && p[2] == 0xbf ? 3 : 0;
}

static unsigned code_point(const char *at, size_t n)
{
    const unsigned char *p = (const unsigned char *)at;
    if (n == 1)
        return p[0];
    return n == 2 ? (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu)
                  : (p[0] & 0x0fu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
}

/* Would a reader take it for this very text, without quotes? */
static bool is_plain(const char *s)
{
    static const char *const words[] = {"true", "false", "null", "yes", "no",   "on",
                                        "off",  "y",     "n",    "~",   ".inf", ".nan"};
    if (!isalpha((unsigned char)*s) && *s != '/' && *s != '_')
        return false; /* numbers, dates, signs with a meaning, nothing at all */
    for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
        if (strcasecmp(s, words[i]) == 0)
            return false;
    size_t n = strlen(s);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c >= 0x80 || (!isalnum(c) && !strchr(" _./:@+-=,()", c)))
            return false;
        if (c == ':' && (s[i + 1] == ' ' || !s[i + 1]))
            return false;
    }
    return s[n - 1] != ' ';
}

static void quote(const char *s, struct cb_buf *out)
{
    cb_buf_adds(out, "\"");
    for (size_t n; *s; s += n) {
        size_t hidden = unprintable(s);
        n = hidden ? hidden : 1;
        if (*s == '"' || *s == '\\')
            cb_buf_addf(out, "\\%c", *s);
        else if (*s == '\n')
            cb_buf_adds(out, "\\n");
        else if (*s == '\t')
            cb_buf_adds(out, "\\t");
        else if (hidden)
            cb_buf_addf(out, "\\u%04x", code_point(s, n));
        else
            cb_buf_add(out, s, n);
    }
    cb_buf_adds(out, "\"");
}

/* Several lines, each of plain text, the first not indented: a block says them best. */
static bool fits_block(const char *s)
{
    if (!strchr(s, '\n') || *s == ' ' || *s == '\n')
        return false;
    for (const char *p = s; *p; p++)
        if (*p != '\n' && unprintable(p))
            return false;
    return true;
}

static void write_block(const char *s, int depth, struct cb_buf *out)
{
    size_t n = strlen(s), ends = 0;
    while (ends < n && s[n - 1 - ends] == '\n')
        ends++;
    cb_buf_adds(out, ends == 0 ? "|-\n" : ends == 1 ? "|\n" : "|+\n");
    while (*s) {
        size_t len = strcspn(s, "\n");
        if (len)
            indent(out, depth);
        cb_buf_add(out, s, len);
        cb_buf_adds(out, "\n");
        s += len + (s[len] == '\n');
    }
}

static void write_string(const char *s, int depth, struct cb_buf *out)
{
    if (fits_block(s)) {
        write_block(s, depth, out);
        return;
    }
    if (is_plain(s))
        cb_buf_adds(out, s);
    else
        quote(s, out);
    cb_buf_adds(out, "\n");
}

static bool is_inline(json_t *v)
{
    return !(json_is_object(v) && json_object_size(v)) && !(json_is_array(v) && json_array_size(v));
}

static void write_inline(json_t *v, int depth, struct cb_buf *out)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT: cb_buf_adds(out, "{}\n"); break;
    case JSON_ARRAY: cb_buf_adds(out, "[]\n"); break;
    case JSON_STRING: write_string(json_string_value(v), depth, out); break;
    case JSON_INTEGER: cb_buf_addf(out, "%lld\n", (long long)json_integer_value(v)); break;
    case JSON_REAL: cb_buf_addf(out, "%.17g\n", json_real_value(v)); break;
    case JSON_TRUE: cb_buf_adds(out, "true\n"); break;
    case JSON_FALSE: cb_buf_adds(out, "false\n"); break;
    case JSON_NULL: cb_buf_adds(out, "null\n"); break;
    }
}

static void write_value(json_t *v, int depth, bool in_item, struct cb_buf *out);

static void write_map(json_t *o, int depth, bool in_item, struct cb_buf *out)
{
    const char *key;
    json_t *v;
    json_object_foreach(o, key, v)
    {
        if (!in_item)
            indent(out, depth);
        in_item = false; /* only the first key stands behind a dash */
        if (is_plain(key))
            cb_buf_adds(out, key);
        else
            quote(key, out);
        cb_buf_adds(out, ":");
        if (is_inline(v)) {
            cb_buf_adds(out, " ");
            write_inline(v, depth + 1, out);
        } else {
            cb_buf_adds(out, "\n");
            write_value(v, depth + 1, false, out);
        }
    }
}

static void write_list(json_t *a, int depth, bool in_item, struct cb_buf *out)
{
    size_t i;
    json_t *v;
    json_array_foreach(a, i, v)
    {
        if (!in_item)
            indent(out, depth);
        in_item = false;
        cb_buf_adds(out, "- ");
        write_value(v, depth + 1, true, out);
    }
}

static void write_value(json_t *v, int depth, bool in_item, struct cb_buf *out)
{
    if (is_inline(v))
        write_inline(v, depth, out);
    else if (json_is_object(v))
        write_map(v, depth, in_item, out);
    else
        write_list(v, depth, in_item, out);
}

void yaml_write(json_t *value, struct cb_buf *out)
{
    write_value(value, 0, false, out);
}
