#include "layers/digest_set.h"

#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

struct digest_entry {
    struct cb_digest d;
    uint32_t number;
    bool used;
};

void digest_set_release(struct digest_set *s)
{
    free(s->v);
    *s = (struct digest_set){0};
}

/* Where @d is or belongs. */
static struct digest_entry *slot(const struct digest_set *s, const struct cb_digest *d)
{
    uint64_t h;
    memcpy(&h, d->b, sizeof(h));
    for (size_t i = (size_t)h & (s->cap - 1);; i = (i + 1) & (s->cap - 1))
        if (!s->v[i].used || cb_digest_eq(&s->v[i].d, d))
            return &s->v[i];
}

static void grow(struct digest_set *s)
{
    struct digest_set bigger = {.n = s->n, .cap = s->cap ? s->cap * 2 : 64};
    bigger.v = cb_xcalloc(bigger.cap, sizeof(*bigger.v));
    for (size_t i = 0; i < s->cap; i++)
        if (s->v[i].used)
            *slot(&bigger, &s->v[i].d) = s->v[i];
    free(s->v);
    *s = bigger;
}

bool digest_set_add(struct digest_set *s, const struct cb_digest *d, uint32_t number)
{
    if (s->n * 2 >= s->cap)
        grow(s);
    struct digest_entry *e = slot(s, d);
    if (e->used)
        return false;
    *e = (struct digest_entry){*d, number, true};
    s->n++;
    return true;
}

bool digest_set_find(const struct digest_set *s, const struct cb_digest *d, uint32_t *number)
{
    if (s->n == 0)
        return false;
    const struct digest_entry *e = slot(s, d);
    if (e->used && number)
        *number = e->number;
    return e->used;
}
