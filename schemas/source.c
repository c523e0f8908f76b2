#include "schemas/source.h"

#include "support/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Characters of a line that are shown around the place of a problem. */
#define SHOWN_BEFORE 60
#define SHOWN_MAX 120

size_t utf8_next(const char *text, size_t n, uint32_t *cp)
{
    const unsigned char *p = (const unsigned char *)text;
    if (n == 0)
        return 0;
    if (p[0] < 0x80) {
        *cp = p[0];
        return 1;
    }
    size_t len = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4 || n < len)
        return 0;
    uint32_t v = p[0] & (0x7fu >> len);
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        v = v << 6 | (p[i] & 0x3f);
    }
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (v < least[len] || v > 0x10ffff || (v >= 0xd800 && v <= 0xdfff))
        return 0;
    *cp = v;
    return len;
}

bool utf8_valid(const char *p, size_t n)
{
    uint32_t cp;
    for (size_t i = 0; i < n;) {
        size_t len = utf8_next(p + i, n - i, &cp);
        if (len == 0)
            return false;
        i += len;
    }
    return true;
}

void source_release(struct source *s)
{
    free(s->starts);
    s->starts = NULL;
    s->n_lines = 0;
}

/* Bytes of the line break at @i, or 0. YAML 1.1, which libyaml reads, also breaks lines at NEL, LS
 * and PS. */
static size_t break_at(const struct source *s, size_t i)
{
    const char *p = s->text + i;
    size_t left = s->len - i;
    if (*p == '\n')
        return 1;
    if (*p == '\r')
        return left > 1 && p[1] == '\n' ? 2 : 1;
    if (!s->yaml)
        return 0;
    if (left >= 2 && memcmp(p, "\xc2\x85", 2) == 0)
        return 2;
    if (left >= 3 && (memcmp(p, "\xe2\x80\xa8", 3) == 0 || memcmp(p, "\xe2\x80\xa9", 3) == 0))
        return 3;
    return 0;
}

static void index_lines(struct source *s)
{
    if (s->starts)
        return;
    size_t cap = 0;
    s->starts = cb_xgrow(NULL, &cap, 0, sizeof(*s->starts));
    s->starts[s->n_lines++] = 0;
    for (size_t i = 0; i < s->len;) {
        size_t n = break_at(s, i);
        if (n) {
            s->starts = cb_xgrow(s->starts, &cap, s->n_lines, sizeof(*s->starts));
            s->starts[s->n_lines++] = (uint32_t)(i + n);
        }
        i += n ? n : 1;
    }
}

static size_t char_len(const struct source *s, size_t i)
{
    uint32_t cp;
    size_t n = utf8_next(s->text + i, s->len - i, &cp);
    return n ? n : 1;
}

size_t source_offset(struct source *s, int line, int column)
{
    index_lines(s);
    if (line < 1 || (size_t)line > s->n_lines)
        return s->len;
    size_t i = s->starts[line - 1];
    for (int c = 1; c < column && i < s->len; c++)
        i += char_len(s, i);
    return i;
}

/* Control characters, and those that turn the direction of text: a terminal must not act on them.
 */
static bool unprintable(uint32_t cp)
{
    return cp < 0x20 || (cp >= 0x7f && cp < 0xa0) || cp == 0xfeff ||
           (cp >= 0x200b && cp <= 0x200f) || (cp >= 0x2028 && cp <= 0x202e) ||
           (cp >= 0x2066 && cp <= 0x2069);
}

/* The part of the line that is worth showing, made harmless for a terminal; *@caret is the column
 * of the problem in it. NULL when there is no such line. */
static char *line_text(struct source *s, int line, int column, int *caret)
{
    index_lines(s);
    if (line < 1 || (size_t)line > s->n_lines)
        return NULL;
    int skip = column > SHOWN_MAX - 20 ? column - SHOWN_BEFORE : 0;
    CB_AUTO_BUF out = CB_BUF_INIT((size_t)8 * SHOWN_MAX);
    if (skip)
        (void)cb_buf_adds(&out, "...");
    *caret = column - skip + (skip ? 3 : 0);
    size_t i = s->starts[line - 1];
    for (int c = 0; i < s->len && !break_at(s, i); c++) {
        uint32_t cp = 0;
        size_t n = utf8_next(s->text + i, s->len - i, &cp);
        if (c >= skip + SHOWN_MAX) {
            (void)cb_buf_adds(&out, "...");
            break;
        }
        if (c < skip)
            ; /* left of the window */
        else if (cp == '\t')
            (void)cb_buf_adds(&out, " ");
        else if (n == 0 || unprintable(cp))
            (void)cb_buf_adds(&out, "?");
        else
            (void)cb_buf_add(&out, s->text + i, n);
        i += n ? n : 1;
    }
    return cb_buf_take(&out);
}

bool problem_dropped(struct config_problems *p, bool warning)
{
    if (p->n < (warning ? PROBLEMS_MAX / 2 : PROBLEMS_MAX)) /* warnings crowd out no error */
        return false;
    p->n_dropped++;
    if (!warning)
        p->n_errors++;
    return true;
}

void problem_vadd(struct config_problems *p, struct source *s, bool warning, int line, int column,
                  const char *path, const char *fmt, va_list ap)
{
    if (problem_dropped(p, warning))
        return;
    if (!warning)
        p->n_errors++;
    p->v = cb_xgrow(p->v, &p->cap, p->n, sizeof(*p->v));
    struct config_problem *out = &p->v[p->n++];
    *out = (struct config_problem){
        .warning = warning,
        .loc = {.file = cb_xstrdup0(s->name),
                .path = cb_xstrdup0(path),
                .line = line,
                .column = column},
        .msg = cb_xvasprintf(fmt, ap),
    };
    if (line > 0 && !s->no_excerpt)
        out->line_text = line_text(s, line, column, &out->caret);
}

void problem_add(struct config_problems *p, struct source *s, bool warning, int line, int column,
                 const char *path, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    problem_vadd(p, s, warning, line, column, path, fmt, ap);
    va_end(ap);
}

void problem_unreadable(struct config_problems *p, const char *path, const struct cb_error *why)
{
    struct source s = {.name = path};
    const char *words = why->code == CB_E_NOTFOUND ? "no such file"
                        : why->code == CB_E_LIMIT  ? "larger than 1 MiB"
                        : why->sys                 ? strerror(why->sys)
                                                   : why->msg;
    problem_add(p, &s, false, 0, 0, NULL, "%s", words);
}

void config_problems_release(struct config_problems *p)
{
    for (size_t i = 0; i < p->n; i++) {
        free(p->v[i].loc.file);
        free(p->v[i].loc.path);
        free(p->v[i].msg);
        free(p->v[i].line_text);
    }
    free(p->v);
    *p = (struct config_problems){0};
}

void problems_sort(struct config_problems *p)
{
    for (size_t i = 1; i < p->n; i++) { /* insertion: there are few, and they come nearly sorted */
        struct config_problem x = p->v[i];
        size_t k = i;
        for (; k > 0; k--) {
            const struct cb_loc *a = &p->v[k - 1].loc;
            if (a->line < x.loc.line || (a->line == x.loc.line && a->column <= x.loc.column))
                break;
            p->v[k] = p->v[k - 1];
        }
        p->v[k] = x;
    }
}

int problems_summary(const struct config_problems *p, const char *name, struct cb_error *err)
{
    if (p->n_errors == 0)
        return 0;
    const struct config_problem *first = NULL;
    for (size_t i = 0; i < p->n && !first; i++)
        if (!p->v[i].warning)
            first = &p->v[i];
    if (!first || p->n_errors > 1)
        return cb_fail(err, CB_E_CONFIG, "%s has %zu errors", name, p->n_errors);
    int rc = cb_fail(err, CB_E_CONFIG, "%s: %s", name, first->msg);
    if (err) {
        err->loc.file = cb_xstrdup0(first->loc.file);
        err->loc.path = cb_xstrdup0(first->loc.path);
        err->loc.line = first->loc.line;
        err->loc.column = first->loc.column;
    }
    return rc;
}

void config_problems_print(const struct config_problems *p, struct cb_buf *out)
{
    for (size_t i = 0; i < p->n; i++) {
        const struct config_problem *x = &p->v[i];
        (void)cb_buf_adds(out, x->loc.file ? x->loc.file : "config");
        if (x->loc.line > 0)
            (void)cb_buf_addf(out, ":%d:%d", x->loc.line, x->loc.column);
        (void)cb_buf_addf(out, ": %s", x->warning ? "warning: " : "");
        if (x->loc.path && *x->loc.path)
            (void)cb_buf_addf(out, "%s: ", x->loc.path);
        (void)cb_buf_addf(out, "%s\n", x->msg);
        if (x->line_text && *x->line_text) {
            (void)cb_buf_addf(out, "%5d | %s\n", x->loc.line, x->line_text);
            (void)cb_buf_addf(out, "      | %*s^\n", x->caret - 1, "");
        }
    }
    if (p->n_dropped)
        (void)cb_buf_addf(out, "and %zu more\n", p->n_dropped);
}

char *quote_text(const char *text, size_t len)
{
    CB_AUTO_BUF out = CB_BUF_INIT(1024);
    (void)cb_buf_adds(&out, "\"");
    size_t shown = 0;
    for (size_t i = 0; i < len; shown++) {
        uint32_t cp = 0;
        size_t n = utf8_next(text + i, len - i, &cp);
        if (shown == 60) {
            (void)cb_buf_adds(&out, "...");
            break;
        }
        if (n == 0 || unprintable(cp)) {
            const char *esc = cp == '\n' ? "\\n" : cp == '\t' ? "\\t" : cp == '\r' ? "\\r" : NULL;
            if (n && esc)
                (void)cb_buf_adds(&out, esc);
            else
                (void)cb_buf_addf(&out, cp > 0xff ? "\\u%04x" : "\\x%02x",
                                  n ? (unsigned)cp : (unsigned char)text[i]);
        } else if (cp == '"' || cp == '\\') {
            (void)cb_buf_addf(&out, "\\%c", (char)cp);
        } else {
            (void)cb_buf_add(&out, text + i, n);
        }
        i += n ? n : 1;
    }
    (void)cb_buf_adds(&out, "\"");
    return cb_buf_take(&out);
}
