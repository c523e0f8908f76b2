#include "schemas/reader.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool bare_key(const char *key)
{
    size_t n = 0;
    for (; key[n]; n++)
        if (n == 64 || !(isalnum((unsigned char)key[n]) || strchr("_-", key[n])))
            return false;
    return n > 0;
}

static void add_path(struct cb_buf *out, const struct at *at)
{
    if (!at)
        return;
    add_path(out, at->up);
    if (!at->key) {
        (void)cb_buf_addf(out, "[%zu]", at->index);
    } else if (bare_key(at->key)) {
        (void)cb_buf_addf(out, "%s%s", out->len ? "." : "", at->key);
    } else {
        CB_AUTO_FREE char *q = quote_text(at->key, strlen(at->key));
        (void)cb_buf_addf(out, "[%s]", q);
    }
}

char *at_path(const struct at *at)
{
    CB_AUTO_BUF out = CB_BUF_INIT(16384);
    add_path(&out, at);
    return cb_buf_take(&out);
}

static void problem(struct reader *r, const struct at *at, const struct doc_node *n, bool warning,
                    const char *fmt, va_list ap) __attribute__((format(printf, 5, 0)));
static void problem(struct reader *r, const struct at *at, const struct doc_node *n, bool warning,
                    const char *fmt, va_list ap)
{
    if (n->broken || problem_dropped(r->problems, warning))
        return;
    CB_AUTO_FREE char *path = at_path(at);
    problem_vadd(r->problems, &r->doc->src, warning, n->line, n->column, path, fmt, ap);
}

void read_problem(struct reader *r, const struct at *at, const struct doc_node *n, const char *fmt,
                  ...)
{
    va_list ap;
    va_start(ap, fmt);
    problem(r, at, n, false, fmt, ap);
    va_end(ap);
}

void read_problem_private(struct reader *r, const struct at *at, const struct doc_node *n,
                          const char *fmt, ...)
{
    bool before = r->doc->src.no_excerpt;
    va_list ap;
    r->doc->src.no_excerpt = true;
    va_start(ap, fmt);
    problem(r, at, n, false, fmt, ap);
    va_end(ap);
    r->doc->src.no_excerpt = before;
}

static void read_warning(struct reader *r, const struct at *at, const struct doc_node *n,
                         const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static void read_warning(struct reader *r, const struct at *at, const struct doc_node *n,
                         const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    problem(r, at, n, true, fmt, ap);
    va_end(ap);
}

/* What stands there, in words. Owned. */
static char *found(const struct doc_node *n)
{
    if (n->kind != DOC_SCALAR)
        return cb_xstrdup(n->kind == DOC_LIST ? "a list" : "a map");
    if (doc_is_null(n))
        return cb_xstrdup(*n->text ? "null" : "nothing");
    char *q = quote_text(n->text, n->n);
    if (!n->plain) {
        char *text = cb_xasprintf("the text %s", q);
        free(q);
        return text;
    }
    size_t len = strlen(q); /* without its quotes */
    memmove(q, q + 1, len - 2);
    q[len - 2] = '\0';
    return q;
}

bool read_expected(struct reader *r, const struct at *at, const struct doc_node *n,
                   const char *what)
{
    CB_AUTO_FREE char *f = found(n);
    read_problem(r, at, n, "expected %s, found %s", what, f);
    return false;
}

struct cb_loc read_loc(struct reader *r, const struct at *at, const struct doc_node *n)
{
    return (struct cb_loc){.file = cb_xstrdup0(r->doc->src.name),
                           .path = at_path(at),
                           .line = n->line,
                           .column = n->column};
}

/* Edit distance with swaps of neighbours; case and '-' against '_' count nothing. At most @most
 * + 1. */
static size_t distance(const char *a, const char *b, size_t most)
{
    enum { MAX = 40 };
    size_t n = strlen(a), m = strlen(b);
    if (n > MAX || m > MAX || (n > m ? n - m : m - n) > most)
        return most + 1;
    size_t rows[3][MAX + 1];
    size_t *before = rows[0], *prev = rows[1], *cur = rows[2];
    for (size_t j = 0; j <= m; j++)
        prev[j] = before[j] = j;
    for (size_t i = 1; i <= n; i++) {
        cur[0] = i;
        for (size_t j = 1; j <= m; j++) {
            int ca = tolower((unsigned char)(a[i - 1] == '-' ? '_' : a[i - 1]));
            int cb = tolower((unsigned char)(b[j - 1] == '-' ? '_' : b[j - 1]));
            size_t d = prev[j - 1] + (ca != cb);
            d = prev[j] + 1 < d ? prev[j] + 1 : d;
            d = cur[j - 1] + 1 < d ? cur[j - 1] + 1 : d;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d = before[j - 2] + 1 < d ? before[j - 2] + 1 : d;
            cur[j] = d;
        }
        size_t *t = before;
        before = prev;
        prev = cur;
        cur = t;
    }
    return prev[m];
}

struct nearest {
    const char *given, *name;
    size_t len, best;
};

static struct nearest nearest_begin(const char *given)
{
    size_t len = strlen(given);
    return (struct nearest){.given = given, .len = len, .best = len <= 3 ? 1 : len <= 6 ? 2 : 3};
}

static void nearest_try(struct nearest *x, const char *name)
{
    size_t d = distance(x->given, name, x->best);
    size_t len = strlen(name);
    if (x->len >= 3 && strncmp(x->given, name, x->len) == 0 && d > 1)
        d = 1; /* the beginning of it: `env` for `env_variables` */
    if (x->len >= 4 && len > x->len && name[len - x->len - 1] == '_' &&
        strcmp(x->given, name + len - x->len) == 0 && d > 1)
        d = 1; /* its last word: `image` for `base_image` */
    if (d < x->best || (d == x->best && !x->name)) {
        x->best = d;
        x->name = name;
    }
}

const char *nearest_name(const char *given, const struct field *fields)
{
    struct nearest x = nearest_begin(given);
    for (const struct field *f = fields; f->name; f++)
        nearest_try(&x, f->name);
    return x.name;
}

const char *nearest_word(const char *given, const char *const *words)
{
    struct nearest x = nearest_begin(given);
    for (; *words; words++)
        if (strlen(*words) > 1) /* all that is short is near to one letter */
            nearest_try(&x, *words);
    return x.name;
}

static const struct field *find_field(const struct field *fields, const char *name)
{
    while (fields->name && strcmp(fields->name, name) != 0)
        fields++;
    return fields->name ? fields : NULL;
}

bool is_misspelt(const struct reader *r, const struct doc_node *map, const struct field *fields,
                 const char *name)
{
    enum { KEYS_MAX = 64 }; /* a map with more is no slip of the pen */
    if (r->flags & CONFIG_ALLOW_UNKNOWN || map->n > KEYS_MAX)
        return false;
    for (size_t i = 0; i < map->n; i++) {
        const char *key = map->pairs[i].key->text;
        const char *near = find_field(fields, key) ? NULL : nearest_name(key, fields);
        if (near && strcmp(near, name) == 0)
            return true;
    }
    return false;
}

static const char *home_of(const struct reader *r, const char *key, const struct field *not_here)
{
    for (const struct field_home *h = r->homes; h && h->fields; h++)
        if (h->fields != not_here && find_field(h->fields, key))
            return h->where;
    return NULL;
}

static void unknown_key(struct reader *r, const struct at *at, const struct doc_node *key,
                        const struct field *fields)
{
    if (problem_dropped(r->problems, r->flags & CONFIG_ALLOW_UNKNOWN))
        return;
    CB_AUTO_FREE char *q = quote_text(key->text, key->n);
    const char *near = nearest_name(key->text, fields);
    const char *home = near ? NULL : home_of(r, key->text, fields);
    CB_AUTO_BUF all = CB_BUF_INIT(4096);
    if (near)
        (void)cb_buf_addf(&all, "did you mean \"%s\"?", near);
    else if (home)
        (void)cb_buf_addf(&all, "it belongs %s", home);
    else
        (void)cb_buf_adds(&all, "accepted here: ");
    for (const struct field *f = fields; f->name && !near && !home; f++)
        (void)cb_buf_addf(&all, "%s%s", f == fields ? "" : ", ", f->name);
    if (r->flags & CONFIG_ALLOW_UNKNOWN)
        read_warning(r, at, key, "unknown key %s is ignored; %s", q, all.data);
    else
        read_problem(r, at, key, "unknown key %s; %s", q, all.data);
}

const struct doc_node *doc_child(const struct doc_node *map, const char *key)
{
    for (size_t i = 0; map->kind == DOC_MAP && i < map->n; i++)
        if (strcmp(map->pairs[i].key->text, key) == 0)
            return map->pairs[i].value;
    return NULL;
}

bool read_map(struct reader *r, const struct at *at, const struct doc_node *n,
              const struct field *fields, void *base)
{
    if (n->kind != DOC_MAP)
        return read_expected(r, at, n, "a map");
    uint64_t seen = 0;
    for (size_t i = 0; i < n->n; i++) {
        const struct doc_node *key = n->pairs[i].key, *value = n->pairs[i].value;
        const struct at here = {.up = at, .key = key->text};
        size_t k = 0;
        while (fields[k].name && strcmp(fields[k].name, key->text) != 0)
            k++;
        const struct field *f = &fields[k];
        if (!f->name) {
            unknown_key(r, &here, key, fields);
            continue;
        }
        seen |= UINT64_C(1) << k;
        if (f->read(r, &here, value, f, (char *)base + f->offset) && f->note)
            reader_note(r, &here, key, f->note);
    }
    for (size_t k = 0; fields[k].name; k++)
        if (fields[k].required && !(seen >> k & 1) && !is_misspelt(r, n, fields, fields[k].name))
            read_problem(r, at, n, "`%s` is missing%s%s", fields[k].name,
                         fields[k].accepts ? ": " : "", fields[k].accepts ? fields[k].accepts : "");
    return true;
}

const char *read_text(struct reader *r, const struct at *at, const struct doc_node *n,
                      const char *accepts)
{
    /* JSON says itself what is a text; in YAML every plain word is one where a text is asked for.
     */
    if (n->kind != DOC_SCALAR || doc_is_null(n) || (r->doc->json && n->plain)) {
        bool quote = n->kind == DOC_SCALAR && n->plain && *n->text;
        CB_AUTO_FREE char *what =
            cb_xasprintf("%s%s", accepts, quote ? " (in quotes if that text is meant)" : "");
        (void)read_expected(r, at, n, what);
        return NULL;
    }
    return n->text;
}

bool read_string(struct reader *r, const struct at *at, const struct doc_node *n,
                 const struct field *f, void *to)
{
    const char *accepts = f->accepts ? f->accepts : "a text";
    const char *text = read_text(r, at, n, accepts);
    if (!text)
        return false;
    if (n->n == 0)
        return read_expected(r, at, n, accepts);
    size_t max = f->max ? (size_t)f->max : FIELD_TEXT_MAX - 1;
    if (n->n > max) {
        read_problem(r, at, n, "longer than %zu bytes", max);
        return false;
    }
    char **out = to;
    free(*out);
    *out = cb_xstrdup(text);
    return true;
}

bool read_expected_near(struct reader *r, const struct at *at, const struct doc_node *n,
                        const char *what, const char *near)
{
    if (!near)
        return read_expected(r, at, n, what);
    CB_AUTO_FREE char *f = found(n);
    read_problem(r, at, n, "expected %s, found %s; did you mean \"%s\"?", what, f, near);
    return false;
}

bool read_one_of(struct reader *r, const struct at *at, const struct doc_node *n,
                 const char *const *words, const struct word_meant *meant, size_t *out)
{
    CB_AUTO_BUF all = CB_BUF_INIT(1024);
    for (size_t i = 0; words[i]; i++)
        (void)cb_buf_addf(&all, "%s%s", i ? ", " : words[1] ? "one of " : "", words[i]);
    const char *text = read_text(r, at, n, all.data);
    if (!text)
        return false;
    for (size_t i = 0; words[i]; i++)
        if (strcmp(text, words[i]) == 0) {
            *out = i;
            return true;
        }
    const char *near = NULL;
    for (; meant && meant->given && !near; meant++)
        near = strcasecmp(text, meant->given) == 0 ? meant->meant : NULL;
    return read_expected_near(r, at, n, all.data, near ? near : nearest_word(text, words));
}

bool read_choice(struct reader *r, const struct at *at, const struct doc_node *n,
                 const struct field *f, void *to)
{
    const char *const *words = f->more;
    size_t i = 0;
    if (!read_one_of(r, at, n, words, NULL, &i))
        return false;
    char **out = to;
    free(*out);
    *out = cb_xstrdup(words[i]);
    return true;
}

bool read_structs(struct reader *r, const struct at *at, const struct doc_node *n,
                  const struct field *fields, const char *accepts, size_t size, size_t loc_at,
                  void **out, size_t *count)
{
    if (n->kind != DOC_LIST)
        return read_expected(r, at, n, accepts);
    if (n->n == 0)
        return false;
    char *v = cb_xcalloc(n->n, size);
    *out = v;
    *count = n->n;
    for (size_t i = 0; i < n->n; i++) {
        const struct at here = {.up = at, .index = i};
        if (loc_at != SIZE_MAX) {
            struct cb_loc loc = read_loc(r, &here, n->items[i]);
            memcpy(v + i * size + loc_at, &loc, sizeof(loc));
        }
        (void)read_map(r, &here, n->items[i], fields, v + i * size);
    }
    return true;
}

static bool boolean(struct reader *r, const struct at *at, const struct doc_node *n, bool *out)
{
    static const char *const yes[] = {"yes", "on", "y", "true", "1"};
    static const char *const no[] = {"no", "off", "n", "false", "0"};
    if (n->kind != DOC_SCALAR)
        return read_expected(r, at, n, "true or false");
    if (n->plain && (strcmp(n->text, "true") == 0 || strcmp(n->text, "false") == 0)) {
        *out = n->text[0] == 't';
        return true;
    }
    const char *meant = NULL;
    for (size_t i = 0; i < 5; i++)
        meant = strcasecmp(n->text, yes[i]) == 0  ? "true"
                : strcasecmp(n->text, no[i]) == 0 ? "false"
                                                  : meant;
    CB_AUTO_FREE char *f = found(n);
    if (meant)
        read_problem(r, at, n, "expected true or false, found %s; write %s, without quotes", f,
                     meant);
    else
        read_problem(r, at, n, "expected true or false, found %s", f);
    return false;
}

bool read_bool(struct reader *r, const struct at *at, const struct doc_node *n,
               const struct field *f, void *to)
{
    (void)f;
    bool *out = to;
    return boolean(r, at, n, out) && *out;
}

bool read_auto_bool(struct reader *r, const struct at *at, const struct doc_node *n,
                    const struct field *f, void *to)
{
    (void)f;
    bool v = false;
    if (!boolean(r, at, n, &v))
        return false;
    *(enum auto_bool *)to = v ? AUTO_TRUE : AUTO_FALSE;
    return v;
}

static bool integer(struct reader *r, const struct at *at, const struct doc_node *n,
                    const struct field *f, int64_t *out)
{
    if (doc_integer(n, out) && *out >= f->min && *out <= f->max)
        return true;
    CB_AUTO_FREE char *what =
        cb_xasprintf("a whole number from %lld to %lld%s%s", (long long)f->min, (long long)f->max,
                     f->accepts ? " " : "", f->accepts ? f->accepts : "");
    return read_expected(r, at, n, what);
}

bool read_u32(struct reader *r, const struct at *at, const struct doc_node *n,
              const struct field *f, void *to)
{
    int64_t v = 0;
    if (!integer(r, at, n, f, &v))
        return false;
    *(uint32_t *)to = (uint32_t)v;
    return v != 0;
}

bool read_u16(struct reader *r, const struct at *at, const struct doc_node *n,
              const struct field *f, void *to)
{
    int64_t v = 0;
    if (!integer(r, at, n, f, &v))
        return false;
    *(uint16_t *)to = (uint16_t)v;
    return v != 0;
}

bool read_i64(struct reader *r, const struct at *at, const struct doc_node *n,
              const struct field *f, void *to)
{
    int64_t v = 0;
    if (!integer(r, at, n, f, &v))
        return false;
    *(int64_t *)to = v;
    return v != 0;
}

bool read_duration(struct reader *r, const struct at *at, const struct doc_node *n,
                   const struct field *f, void *to)
{
    const char *accepts = "a duration such as 90s, 30m or 1h30m";
    int64_t bare;
    if (doc_integer(n, &bare)) {
        read_problem(r, at, n, "expected %s, found %s without a unit", accepts, n->text);
        return false;
    }
    const char *text = read_text(r, at, n, accepts);
    if (!text)
        return false;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int64_t v = duration_parse(text, &err);
    if (v < 0) {
        read_problem(r, at, n, "%s", err.msg);
        return false;
    }
    if (v < f->min || v > f->max) {
        read_problem(r, at, n, "%s is too %s; accepted are %lld ms to %lld h", text,
                     v < f->min ? "short" : "long", (long long)f->min,
                     (long long)(f->max / 3600000));
        return false;
    }
    *(int64_t *)to = v;
    return v != 0;
}

bool read_strv(struct reader *r, const struct at *at, const struct doc_node *n,
               const struct field *f, void *to)
{
    struct cb_strv *out = to;
    const char *accepts = f->accepts ? f->accepts : "a list of texts";
    if (n->kind != DOC_LIST || n->n == 0) {
        if (n->kind == DOC_LIST)
            read_problem(r, at, n, "expected %s, found an empty list", accepts);
        else
            (void)read_expected(r, at, n, accepts);
        return false;
    }
    bool ok = true;
    for (size_t i = 0; i < n->n; i++) {
        const struct at here = {.up = at, .index = i};
        const char *text = read_text(r, &here, n->items[i], "a text");
        if (text && n->items[i]->n >= FIELD_TEXT_MAX) {
            read_problem(r, &here, n->items[i],
                         "longer than %u bytes, which no program takes as one argument",
                         FIELD_TEXT_MAX - 1);
            text = NULL;
        }
        if (text)
            cb_strv_add(out, text);
        else
            ok = false;
    }
    return ok;
}

bool read_object(struct reader *r, const struct at *at, const struct doc_node *n,
                 const struct field *f, void *to)
{
    if (n->kind != DOC_MAP)
        return read_expected(r, at, n, f->accepts ? f->accepts : "a map");
    json_auto_t *v = doc_to_json(n);
    char **out = to;
    free(*out);
    *out = json_dumps(v, JSON_SORT_KEYS | JSON_COMPACT);
    return *out && n->n > 0;
}

/* One ${NAME} at @p (behind the "${"). Returns the bytes used, 0 after a problem. */
static size_t expand_one(struct reader *r, const struct at *at, const struct doc_node *n,
                         const char *p, struct cb_buf *out)
{
    size_t len = 0;
    while (isalnum((unsigned char)p[len]) || p[len] == '_')
        len++;
    if (len == 0 || isdigit((unsigned char)*p) || p[len] != '}') {
        read_problem(r, at, n,
                     "expected ${NAME}: a variable of letters, digits and _ (write $${ for the "
                     "text ${)");
        return 0;
    }
    CB_AUTO_FREE char *name = cb_xstrndup(p, len);
    if (r->flags & CONFIG_NO_ENV) {
        if (out)
            read_problem(r, at, n, "${%.60s} is not expanded here", name);
        return out ? 0 : len + 1;
    }
    const char *value = getenv(name);
    if (!value) {
        read_problem(r, at, n,
                     "the variable %.60s is not set in the environment; set it, or write "
                     "$${%.60s} for the text ${%.60s}",
                     name, name, name);
        return 0;
    }
    if (!utf8_valid(value, strlen(value))) {
        read_problem(r, at, n, "the value of the variable %.60s is not UTF-8", name);
        return 0;
    }
    if (out && cb_buf_adds(out, value) < 0) {
        read_problem(r, at, n, "longer than %u bytes, with its variables", FIELD_TEXT_MAX - 1);
        return 0;
    }
    return len + 1;
}

bool read_expand(struct reader *r, const struct at *at, const struct doc_node *n, const char *text,
                 struct cb_buf *out)
{
    for (const char *p = text; *p;) {
        if (strncmp(p, "$${", 3) == 0) {
            if (out)
                (void)cb_buf_adds(out, "${");
            p += 3;
        } else if (strncmp(p, "${", 2) == 0) {
            size_t used = expand_one(r, at, n, p + 2, out);
            if (used == 0)
                return false;
            p += 2 + used;
        } else {
            size_t run = 1 + strcspn(p + 1, "$");
            if (out)
                (void)cb_buf_add(out, p, run);
            p += run;
        }
    }
    return true;
}

char *expand_escape(const char *text)
{
    CB_AUTO_BUF out = CB_BUF_INIT((size_t)2 * FIELD_TEXT_MAX);
    for (const char *p; (p = strstr(text, "${")) != NULL; text = p + 2) {
        (void)cb_buf_add(&out, text, (size_t)(p - text));
        (void)cb_buf_adds(&out, "$${");
    }
    (void)cb_buf_adds(&out, text);
    return cb_buf_take(&out);
}

bool read_env(struct reader *r, const struct at *at, const struct doc_node *n,
              const struct field *f, void *to)
{
    struct config_pairs *out = to;
    if (n->kind != DOC_MAP)
        return read_expected(r, at, n, "a map such as {NAME: value}");
    for (size_t i = 0; i < n->n; i++) {
        const struct doc_node *key = n->pairs[i].key, *value = n->pairs[i].value;
        const struct at here = {.up = at, .key = key->text};
        if (key->n == 0 || memchr(key->text, '=', key->n)) {
            read_problem(r, &here, key, "the name of a variable is not empty and holds no '='");
            continue;
        }
        if (value->kind != DOC_SCALAR || doc_is_null(value)) {
            (void)read_expected(r, &here, value, "a text (\"\" for an empty one)");
            continue;
        }
        CB_AUTO_BUF text = CB_BUF_INIT(FIELD_TEXT_MAX - 1);
        bool ok = true;
        if (f->more)
            ok = read_expand(r, &here, value, value->text, &text);
        else
            (void)cb_buf_adds(&text, value->text);
        if (!ok)
            continue;
        if (text.over || text.len + key->n + 2 > FIELD_TEXT_MAX) {
            read_problem(r, &here, value, "longer than %u bytes with its name", FIELD_TEXT_MAX - 2);
            continue;
        }
        out->v = cb_xgrow(out->v, &out->cap, out->n, sizeof(*out->v));
        out->v[out->n++] =
            (struct config_pair){.key = cb_xstrdup(key->text), .value = cb_buf_take(&text)};
    }
    return n->n > 0;
}
