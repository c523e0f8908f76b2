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

/* ---- logins ---- */

/* A URL of a store of credentials, in pieces that point into it. */
struct pieces {
    const char *scheme, *user, *password, *host, *path;
    size_t scheme_len, user_len, password_len, host_len, path_len;
};

static bool split(const char *url, size_t n, struct pieces *out)
{
    *out = (struct pieces){.scheme = url};
    const char *sep = memmem(url, n, "://", 3), *end = url + n;
    if (!sep)
        return false;
    out->scheme_len = (size_t)(sep - url);
    const char *host = sep + 3, *slash = memchr(host, '/', (size_t)(end - host));
    const char *host_end = slash ? slash : end;
    const char *at = memrchr(host, '@', (size_t)(host_end - host));
    if (at) {
        const char *colon = memchr(host, ':', (size_t)(at - host));
        out->user = host;
        out->user_len = (size_t)((colon ? colon : at) - host);
        out->password = colon ? colon + 1 : NULL;
        out->password_len = colon ? (size_t)(at - colon) - 1 : 0;
        host = at + 1;
    }
    out->host = host;
    out->host_len = (size_t)(host_end - host);
    out->path = slash ? slash + 1 : end;
    out->path_len = (size_t)(end - out->path);
    while (out->path_len && out->path[out->path_len - 1] == '/')
        out->path_len--;
    return out->host_len > 0;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* Without its percent signs; NULL: not well-formed, or with a NUL in it. Owned. */
static char *decoded(const char *p, size_t n)
{
    char *out = cb_xmalloc(n + 1);
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        int c = (unsigned char)p[i];
        if (c == '%') {
            int high = n - i > 2 ? hex_digit(p[i + 1]) : -1;
            int low = n - i > 2 ? hex_digit(p[i + 2]) : -1;
            c = high < 0 || low < 0 ? 0 : high * 16 + low;
            i += 2;
        }
        if (!c) {
            free(out);
            return NULL;
        }
        out[k++] = (char)c;
    }
    out[k] = '\0';
    return out;
}

static bool same_part(const char *a, size_t n, const char *b, size_t m)
{
    return n == m && memcmp(a, b, n) == 0;
}

bool git_credentials_find(const char *text, const char *url, char **user, char **password)
{
    struct pieces want, line;
    if (!split(url, strlen(url), &want))
        return false;
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, "\n"), len = n && p[n - 1] == '\r' ? n - 1 : n;
        bool fits =
            split(p, len, &line) && line.user && line.password &&
            same_part(line.scheme, line.scheme_len, want.scheme, want.scheme_len) &&
            line.host_len == want.host_len &&
            strncasecmp(line.host, want.host, line.host_len) == 0 &&
            (!line.path_len || same_part(line.path, line.path_len, want.path, want.path_len)) &&
            (!want.user || same_part(line.user, line.user_len, want.user, want.user_len));
        if (fits) {
            *user = decoded(line.user, line.user_len);
            *password = decoded(line.password, line.password_len);
            if (*user && *password)
                return true;
            free(*user);
            free(*password);
        }
        p += n + (p[n] == '\n');
    }
    return false;
}
