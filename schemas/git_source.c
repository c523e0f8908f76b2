#include "schemas/git_source.h"

#include "support/buf.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { VALUE_MAX = 4096 };

/* The length of "https://" in front of @text; 0: no scheme that we know. */
static size_t scheme_len(const char *text)
{
    static const char *const schemes[] = {"https://", "http://", "ssh://", "git://", "file:///"};
    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++)
        if (strncmp(text, schemes[i], strlen(schemes[i])) == 0)
            return strlen(schemes[i]);
    return 0;
}

bool git_url_valid(const char *text)
{
    size_t scheme = scheme_len(text);
    const char *host = text + scheme, *at_sign = strchr(host, '@'), *colon = strchr(host, ':');
    bool scp = !scheme && at_sign && colon && at_sign > text && at_sign < colon && colon[1];
    bool ok = (scheme || scp) && *host && *text != '-';
    for (const char *p = text; ok && *p; p++)
        ok = isgraph((unsigned char)*p);
    return ok;
}

bool git_url_has_password(const char *text)
{
    size_t scheme = scheme_len(text);
    const char *host = text + scheme, *at_sign = strchr(host, '@'), *colon = strchr(host, ':');
    return scheme && at_sign && colon && colon < at_sign && at_sign < host + strcspn(host, "/");
}

/* ---- .gitmodules ---- */

void git_modules_release(struct git_modules *m)
{
    for (size_t i = 0; i < m->n; i++) {
        free(m->v[i].path);
        free(m->v[i].url);
    }
    free(m->v);
    *m = (struct git_modules){0};
}

const char *git_modules_url(const struct git_modules *m, const char *path)
{
    for (size_t i = 0; i < m->n; i++)
        if (m->v[i].path && m->v[i].url && strcmp(m->v[i].path, path) == 0)
            return m->v[i].url;
    return NULL;
}

struct parser {
    const char *p, *end;
    size_t line;
    bool in_module; /* the section is one of a submodule */
};

static int fail_line(const struct parser *x, struct cb_error *err)
{
    return cb_fail(err, CB_E_CORRUPT, ".gitmodules:%zu: not as git writes it", x->line);
}

static void skip_blank(struct parser *x)
{
    while (x->p < x->end && (*x->p == ' ' || *x->p == '\t' || *x->p == '\r'))
        x->p++;
}

static void skip_line(struct parser *x)
{
    while (x->p < x->end && *x->p != '\n')
        x->p++;
}

/* [submodule "NAME"]; the name does not matter, each has a section of its own. */
static int parse_section(struct parser *x, struct git_modules *out, struct cb_error *err)
{
    const char *name = ++x->p;
    while (x->p < x->end && (isalnum((unsigned char)*x->p) || *x->p == '-' || *x->p == '.'))
        x->p++;
    size_t n = (size_t)(x->p - name);
    x->in_module = n == 9 && strncasecmp(name, "submodule", n) == 0;
    skip_blank(x);
    if (x->p < x->end && *x->p == '"') {
        for (x->p++; x->p < x->end && *x->p != '"' && *x->p != '\n'; x->p++)
            if (*x->p == '\\' && x->p + 1 < x->end && x->p[1] != '\n')
                x->p++;
        if (x->p == x->end || *x->p != '"')
            return fail_line(x, err);
        x->p++;
    } else {
        x->in_module = false;
    }
    if (x->p == x->end || *x->p != ']')
        return fail_line(x, err);
    x->p++;
    if (!x->in_module)
        return 0;
    if (out->n == GIT_MODULES_MAX)
        return cb_fail(err, CB_E_LIMIT, ".gitmodules: more than %d submodules", GIT_MODULES_MAX);
    out->v = cb_xgrow(out->v, &out->cap, out->n, sizeof(*out->v));
    out->v[out->n++] = (struct git_module){0};
    return 0;
}

/* One escaped character; -1: none that git has. */
static int escaped(char c)
{
    return c == 'n' ? '\n' : c == 't' ? '\t' : c == 'b' ? '\b' : c == '"' || c == '\\' ? c : -1;
}

/* What follows "=": quotes, escapes, a comment at its end; blanks at both ends do not count. */
static int parse_value(struct parser *x, struct cb_buf *out, struct cb_error *err)
{
    bool quoted = false;
    size_t kept = 0; /* without blanks that nothing followed */
    for (skip_blank(x); x->p < x->end && *x->p != '\n'; x->p++) {
        char c = *x->p;
        if (!quoted && (c == '#' || c == ';')) {
            skip_line(x);
            break;
        }
        if (c == '"') {
            quoted = !quoted;
            kept = out->len;
            continue;
        }
        if (c == '\\') {
            if (++x->p == x->end)
                return fail_line(x, err);
            if (*x->p == '\n') {
                x->line++;
                continue;
            }
            int e = escaped(*x->p);
            if (e < 0)
                return fail_line(x, err);
            c = (char)e;
        }
        if (!c || cb_buf_add(out, &c, 1) < 0)
            return fail_line(x, err);
        if (quoted || (c != ' ' && c != '\t' && c != '\r'))
            kept = out->len;
    }
    if (quoted)
        return fail_line(x, err);
    if (out->data) {
        out->len = kept;
        out->data[kept] = '\0';
    }
    return 0;
}

static int parse_key(struct parser *x, struct git_modules *out, struct cb_error *err)
{
    const char *key = x->p;
    CB_AUTO_BUF value = CB_BUF_INIT(VALUE_MAX);
    while (x->p < x->end && (isalnum((unsigned char)*x->p) || *x->p == '-'))
        x->p++;
    size_t n = (size_t)(x->p - key);
    if (n == 0 || !isalpha((unsigned char)*key))
        return fail_line(x, err);
    skip_blank(x);
    if (x->p < x->end && *x->p == '=') {
        x->p++;
        int rc = parse_value(x, &value, err);
        if (rc < 0)
            return rc;
    } else if (x->p < x->end && *x->p != '\n' && *x->p != '#' && *x->p != ';') {
        return fail_line(x, err);
    }
    if (!x->in_module)
        return 0;
    struct git_module *m = &out->v[out->n - 1];
    char **to = n == 4 && strncasecmp(key, "path", n) == 0  ? &m->path
                : n == 3 && strncasecmp(key, "url", n) == 0 ? &m->url
                                                            : NULL;
    if (to) {
        free(*to);
        *to = cb_buf_take(&value);
    }
    return 0;
}

static int parse(struct parser *x, struct git_modules *out, struct cb_error *err)
{
    int rc = 0;
    while (rc == 0 && x->p < x->end) {
        skip_blank(x);
        if (x->p == x->end)
            break;
        if (*x->p == '\n') {
            x->p++;
            x->line++;
        } else if (*x->p == '#' || *x->p == ';') {
            skip_line(x);
        } else if (*x->p == '[') {
            rc = parse_section(x, out, err);
        } else {
            rc = parse_key(x, out, err);
        }
    }
    return rc;
}

int git_modules_parse(const char *text, size_t len, struct git_modules *out, struct cb_error *err)
{
    struct parser x = {.p = text, .end = text + len, .line = 1};
    *out = (struct git_modules){0};
    int rc = parse(&x, out, err);
    if (rc < 0)
        git_modules_release(out);
    return rc;
}

/* ---- URLs in it ---- */

/* Where the path of a URL begins. */
static size_t path_at(const char *url)
{
    if (strncmp(url, "file:///", 8) == 0)
        return 7;
    size_t from = scheme_len(url);
    const char *colon = from ? NULL : strchr(url, ':'); /* user@host:path */
    return colon ? (size_t)(colon - url) + 1 : from + strcspn(url + from, "/");
}

/* The parent's URL without its last component; NULL: nothing is left to take. */
static char *without_last(const char *url)
{
    size_t floor = path_at(url), n = strlen(url);
    while (n > floor && url[n - 1] == '/')
        n--;
    if (n <= floor)
        return NULL;
    while (n > floor && url[n - 1] != '/')
        n--;
    while (n > floor && url[n - 1] == '/')
        n--;
    return cb_xstrndup(url, n);
}

int git_module_url(const char *parent, const char *url, char **out, struct cb_error *err)
{
    CB_AUTO_FREE char *base = cb_xstrdup(parent);
    bool relative = strncmp(url, "./", 2) == 0 || strncmp(url, "../", 3) == 0;
    const char *rest = url;
    while (strncmp(rest, "./", 2) == 0 || strncmp(rest, "../", 3) == 0) {
        bool up = rest[1] == '.';
        rest += up ? 3 : 2;
        if (!up)
            continue;
        char *shorter = without_last(base);
        if (!shorter)
            return cb_fail(err, CB_E_UNTRUSTED, "its submodule's URL %s leads above %s", url,
                           parent);
        free(base);
        base = shorter;
    }
    size_t n = strlen(base);
    while (n > path_at(parent) && base[n - 1] == '/')
        base[--n] = '\0';
    bool scp = relative && !scheme_len(base) && n && base[n - 1] == ':';
    CB_AUTO_FREE char *got =
        relative ? cb_xasprintf("%s%s%s", base, scp ? "" : "/", rest) : cb_xstrdup(url);
    if (!git_url_valid(got) || git_url_has_password(got))
        return cb_fail(err, CB_E_UNTRUSTED, "its submodule's URL %s is none that is fetched", url);
    if (strncmp(got, "file:", 5) == 0 && strncmp(parent, "file:", 5) != 0)
        return cb_fail(err, CB_E_UNTRUSTED,
                       "its submodule's URL %s leads to this machine's files, from a repository "
                       "elsewhere",
                       url);
    *out = cb_take_ptr(&got);
    return 0;
}
