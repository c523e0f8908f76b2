#include "layers/packages.h"

#include "schemas/source.h"
#include "support/buf.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <string.h>
#include <strings.h>

#define TEXT_MAX 1024u
#define WORD_MAX 255u

const char *package_kind_name(enum package_kind k)
{
    static const char *const names[] = {"apk", "deb", "rpm"};
    return names[k];
}

void package_release(struct package *p)
{
    free(p->name);
    free(p->version);
    free(p->arch);
    free(p->epoch);
    free(p->source);
    free(p->source_version);
    free(p->vendor);
    free(p->maintainer);
    free(p->license);
    *p = (struct package){0};
}

void package_list_release(struct package_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        package_release(&l->v[i]);
    free(l->v);
    *l = (struct package_list){0};
}

int package_list_add(struct package_list *l, struct package *p, struct cb_error *err)
{
    if (l->n == PACKAGES_MAX) {
        package_release(p);
        return cb_fail(err, CB_E_LIMIT, "more than %u packages", PACKAGES_MAX);
    }
    l->v = cb_xgrow(l->v, &l->cap, l->n, sizeof(*l->v));
    l->v[l->n++] = *p;
    *p = (struct package){0};
    return 0;
}

static int compare_text(const char *a, const char *b)
{
    return strcmp(a ? a : "", b ? b : "");
}

static int compare(const void *a, const void *b)
{
    const struct package *x = a, *y = b;
    int c = (int)x->kind - (int)y->kind;
    if (c == 0)
        c = strcmp(x->name, y->name);
    if (c == 0)
        c = compare_text(x->epoch, y->epoch);
    if (c == 0)
        c = strcmp(x->version, y->version);
    if (c == 0)
        c = compare_text(x->arch, y->arch);
    return c;
}

/* Which of several stays must not depend on qsort(). */
static int compare_all(const void *a, const void *b)
{
    const struct package *x = a, *y = b;
    int c = compare(a, b);
    if (c == 0)
        c = compare_text(x->source, y->source);
    if (c == 0)
        c = compare_text(x->source_version, y->source_version);
    if (c == 0)
        c = compare_text(x->maintainer, y->maintainer);
    if (c == 0)
        c = compare_text(x->vendor, y->vendor);
    return c ? c : compare_text(x->license, y->license);
}

void package_list_sort(struct package_list *l)
{
    if (l->n == 0)
        return;
    qsort(l->v, l->n, sizeof(*l->v), compare_all);
    size_t kept = 1;
    for (size_t i = 1; i < l->n; i++) {
        if (compare(&l->v[kept - 1], &l->v[i]) == 0)
            package_release(&l->v[i]);
        else
            l->v[kept++] = l->v[i];
    }
    l->n = kept;
}

char *package_word(const char *p, size_t n)
{
    if (n == 0 || n > WORD_MAX)
        return NULL;
    for (size_t i = 0; i < n; i++)
        if (p[i] <= ' ' || p[i] > '~')
            return NULL;
    return cb_xstrndup(p, n);
}

char *package_text(const char *p, size_t n)
{
    CB_AUTO_BUF out = CB_BUF_INIT(TEXT_MAX + 1);
    bool space = false;
    while (n > 0) {
        uint32_t cp = 0;
        size_t len = utf8_next(p, n, &cp);
        const char *from = p;
        size_t take = len;
        if (len == 0) {
            from = "\xef\xbf\xbd";
            take = 3;
            len = 1;
        }
        p += len;
        n -= len;
        if (take == len && (cp <= ' ' || (cp >= 0x7f && cp <= 0xa0))) {
            space = out.len > 0;
            continue;
        }
        if (out.len + take + space > TEXT_MAX)
            break;
        if (space)
            (void)cb_buf_add(&out, " ", 1);
        space = false;
        (void)cb_buf_add(&out, from, take);
    }
    return out.len ? cb_buf_take(&out) : NULL;
}
