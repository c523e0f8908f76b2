#include "schemas/ignore.h"

#include "schemas/pattern.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

struct rule {
    struct pattern *pattern;
    bool back; /* takes back in */
};

struct ignore {
    struct rule *v;
    size_t n, cap;
    bool takes_back;
};

char *path_clean(const char *path)
{
    size_t len = strlen(path), n = 0, floor = *path == '/' ? 1 : 0;
    char *out = cb_xmalloc(len + 2);
    if (floor)
        out[n++] = '/';
    for (const char *p = path; *p;) {
        size_t part = strcspn(p, "/");
        bool dots = part == 2 && p[0] == '.' && p[1] == '.';
        if (part == 0 || (part == 1 && *p == '.')) {
            /* nothing */
        } else if (dots && n > floor) {
            while (n > floor && out[n - 1] != '/')
                n--;
            if (n > floor)
                n--; /* the slash */
        } else if (!dots || *path != '/') {
            if (n && out[n - 1] != '/')
                out[n++] = '/';
            memcpy(out + n, p, part);
            n += part;
            if (dots)
                floor = n; /* nothing takes it back */
        }
        p += part + (p[part] == '/');
    }
    if (n == 0)
        out[n++] = '.';
    out[n] = '\0';
    return out;
}

static const char *skip_space(const char *p)
{
    return p + strspn(p, " \t\r\v\f");
}

static int add_rule(struct ignore *ig, const char *text, struct cb_error *err)
{
    bool back = *text == '!';
    if (back)
        text = skip_space(text + 1);
    if (!*text)
        return cb_fail(err, CB_E_CONFIG, "\"!\" without a pattern");
    CB_AUTO_FREE char *clean = path_clean(text);
    struct pattern *p = NULL;
    int rc =
        pattern_compile(clean[0] == '/' && clean[1] ? clean + 1 : clean, PATTERN_DEEP, &p, err);
    if (rc < 0)
        return rc;
    ig->v = cb_xgrow(ig->v, &ig->cap, ig->n, sizeof(*ig->v));
    ig->v[ig->n++] = (struct rule){p, back};
    ig->takes_back = ig->takes_back || back;
    return 0;
}

static int parse(struct ignore *ig, const char *text, size_t len, const char *name,
                 struct cb_error *err)
{
    size_t line = 0;
    if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
        text += 3;
        len -= 3;
    }
    for (size_t at = 0; at < len;) {
        const char *end = memchr(text + at, '\n', len - at);
        size_t n = end ? (size_t)(end - text) - at : len - at;
        line++;
        if (memchr(text + at, '\0', n))
            return cb_fail(err, CB_E_CONFIG, "%s:%zu: a NUL byte", name, line);
        CB_AUTO_FREE char *whole = cb_xstrndup(text + at, n);
        at += n + 1;
        const char *rule = skip_space(whole);
        for (size_t k = strlen(whole); k && strchr(" \t\r\v\f", whole[k - 1]); k--)
            whole[k - 1] = '\0';
        if (*whole == '#' || !*rule)
            continue;
        if (ig->n == IGNORE_RULES_MAX)
            return cb_fail(err, CB_E_CONFIG, "%s:%zu: more than %d rules", name, line,
                           IGNORE_RULES_MAX);
        if (add_rule(ig, rule, err) < 0)
            return cb_wrap(err, "%s:%zu: %s", name, line, rule);
    }
    return 0;
}

int ignore_parse(const char *text, size_t len, const char *name, struct ignore **out,
                 struct cb_error *err)
{
    struct ignore *ig = cb_xcalloc(1, sizeof(*ig));
    int rc = parse(ig, text, len, name, err);
    if (rc < 0)
        ignore_free(ig);
    else
        *out = ig;
    return rc;
}

void ignore_free(struct ignore *ig)
{
    if (!ig)
        return;
    for (size_t i = 0; i < ig->n; i++)
        pattern_free(ig->v[i].pattern);
    free(ig->v);
    free(ig);
}

size_t ignore_rules(const struct ignore *ig)
{
    return ig ? ig->n : 0;
}

bool ignore_takes_back(const struct ignore *ig)
{
    return ig && ig->takes_back;
}

bool ignore_match(const struct ignore *ig, const char *path, const uint8_t *above, uint8_t *here)
{
    bool out = false;
    for (size_t i = 0; i < ignore_rules(ig); i++) {
        here[i] = (above && above[i]) || pattern_match(ig->v[i].pattern, path);
        if (here[i])
            out = !ig->v[i].back;
    }
    return out;
}

bool ignore_match_path(const struct ignore *ig, const char *path)
{
    CB_AUTO_FREE uint8_t *fits = cb_xcalloc(ignore_rules(ig) + 1, 1);
    CB_AUTO_FREE char *part = cb_xstrdup(path);
    for (char *slash = strchr(part, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void)ignore_match(ig, part, fits, fits);
        *slash = '/';
    }
    return ignore_match(ig, path, fits, fits);
}
