/* The databases that are text: dpkg's paragraphs of "Field: value", apk's of "F:value". */
#include "layers/packages.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

struct span {
    const char *p;
    size_t n;
};

struct lines {
    const char *p, *end;
    size_t number; /* of the line that came last */
};

static bool next_line(struct lines *l, struct span *out)
{
    if (l->p == l->end)
        return false;
    const char *nl = memchr(l->p, '\n', (size_t)(l->end - l->p));
    const char *end = nl ? nl : l->end;
    *out = (struct span){l->p, (size_t)(end - l->p)};
    l->p = nl ? nl + 1 : l->end;
    l->number++;
    return true;
}

static struct span trim(struct span s)
{
    while (s.n && (s.p[0] == ' ' || s.p[0] == '\t')) {
        s.p++;
        s.n--;
    }
    while (s.n && (s.p[s.n - 1] == ' ' || s.p[s.n - 1] == '\t' || s.p[s.n - 1] == '\r'))
        s.n--;
    return s;
}

static bool is(struct span s, const char *word)
{
    return s.n == strlen(word) && strncasecmp(s.p, word, s.n) == 0;
}

/* Splits "Key: value". False for a line that continues the one above, or has no key. */
static bool split(struct span line, struct span *key, struct span *value)
{
    if (line.n == 0 || line.p[0] == ' ' || line.p[0] == '\t')
        return false;
    const char *colon = memchr(line.p, ':', line.n);
    if (!colon || colon == line.p)
        return false;
    *key = (struct span){line.p, (size_t)(colon - line.p)};
    *value = trim((struct span){colon + 1, line.n - key->n - 1});
    return true;
}

static bool is_blank(struct span line)
{
    return trim(line).n == 0;
}

/* The last one wins, as with dpkg. */
static void set(char **to, char *value)
{
    free(*to);
    *to = value;
}

/* ---- dpkg ---- */

struct dpkg_entry {
    struct package p;
    bool absent;   /* not installed, or only its configuration */
    bool bad_word; /* a name or version that cannot be one */
    size_t line;   /* the paragraph's first, 0: none yet */
};

static void dpkg_status(struct dpkg_entry *e, struct span v)
{
    /* "install ok installed": what it should be, whether something is wrong, what it is */
    const char *last = memrchr(v.p, ' ', v.n);
    struct span state = last ? (struct span){last + 1, v.n - (size_t)(last + 1 - v.p)} : v;
    e->absent = is(state, "not-installed") || is(state, "config-files");
}

/* "glibc", or "glibc (2.36-9)" when the versions differ. */
static void dpkg_source(struct package *p, struct span v)
{
    const char *open = memchr(v.p, '(', v.n);
    struct span name = trim((struct span){v.p, open ? (size_t)(open - v.p) : v.n});
    set(&p->source, package_word(name.p, name.n));
    set(&p->source_version, NULL);
    const char *end = v.p + v.n;
    const char *close = open ? memchr(open, ')', (size_t)(end - open)) : NULL;
    if (close)
        set(&p->source_version, package_word(open + 1, (size_t)(close - open - 1)));
}

static void dpkg_field(struct dpkg_entry *e, struct span key, struct span v)
{
    struct package *p = &e->p;
    char **word = is(key, "Package")        ? &p->name
                  : is(key, "Version")      ? &p->version
                  : is(key, "Architecture") ? &p->arch
                                            : NULL;
    if (word) {
        set(word, package_word(v.p, v.n));
        e->bad_word |= !*word;
    } else if (is(key, "Status")) {
        dpkg_status(e, v);
    } else if (is(key, "Source")) {
        dpkg_source(p, v);
    } else if (is(key, "Maintainer")) {
        set(&p->maintainer, package_text(v.p, v.n));
    }
}

static int dpkg_end(struct dpkg_entry *e, struct package_list *l, struct cb_error *err)
{
    int rc = 0;
    if (e->line == 0)
        return 0;
    if (e->absent) {
        package_release(&e->p);
    } else if (e->bad_word || !e->p.name || !e->p.version) {
        rc = cb_fail(err, CB_E_CORRUPT, "line %zu: an entry without a package's name and version",
                     e->line);
        package_release(&e->p);
    } else {
        e->p.kind = PACKAGE_DEB;
        rc = package_list_add(l, &e->p, err);
    }
    *e = (struct dpkg_entry){0};
    return rc;
}

int packages_read_dpkg(const char *text, size_t len, struct package_list *l, struct cb_error *err)
{
    struct lines in = {text, text + len, 0};
    struct dpkg_entry e = {0};
    struct span line, key, value;
    int rc = 0;
    while (rc == 0 && next_line(&in, &line)) {
        if (is_blank(line)) {
            rc = dpkg_end(&e, l, err);
            continue;
        }
        if (e.line == 0)
            e.line = in.number;
        if (split(line, &key, &value))
            dpkg_field(&e, key, value);
        else if (line.p[0] != ' ' && line.p[0] != '\t')
            rc = cb_fail(err, CB_E_CORRUPT, "line %zu is not a field of a package", in.number);
    }
    if (rc == 0)
        rc = dpkg_end(&e, l, err);
    package_release(&e.p);
    return rc;
}

/* ---- apk ---- */

static bool apk_field(struct package *p, char key, struct span v)
{
    char **word = NULL;
    switch (key) {
    case 'P': word = &p->name; break;
    case 'V': word = &p->version; break;
    case 'A': word = &p->arch; break;
    case 'o': set(&p->source, package_word(v.p, v.n)); return true;
    case 'm': set(&p->maintainer, package_text(v.p, v.n)); return true;
    case 'L': set(&p->license, package_text(v.p, v.n)); return true;
    default: return true; /* dependencies, files, checksums */
    }
    set(word, package_word(v.p, v.n));
    return *word != NULL;
}

static int apk_end(struct package *p, size_t line, bool bad, struct package_list *l,
                   struct cb_error *err)
{
    if (bad || !p->name || !p->version) {
        package_release(p);
        return cb_fail(err, CB_E_CORRUPT, "line %zu: an entry without a package's name and version",
                       line);
    }
    p->kind = PACKAGE_APK;
    return package_list_add(l, p, err);
}

int packages_read_apk(const char *text, size_t len, struct package_list *l, struct cb_error *err)
{
    struct lines in = {text, text + len, 0};
    struct package p = {0};
    struct span line, key, value;
    size_t first = 0;
    bool bad = false;
    int rc = 0;
    while (rc == 0 && next_line(&in, &line)) {
        if (is_blank(line)) {
            if (first)
                rc = apk_end(&p, first, bad, l, err);
            first = 0;
            bad = false;
            continue;
        }
        if (!first)
            first = in.number;
        if (!split(line, &key, &value) || key.n != 1)
            rc = cb_fail(err, CB_E_CORRUPT, "line %zu is not a field of a package", in.number);
        else
            bad |= !apk_field(&p, key.p[0], value);
    }
    if (rc == 0 && first)
        rc = apk_end(&p, first, bad, l, err);
    package_release(&p);
    return rc;
}
