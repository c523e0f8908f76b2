/* A layer is refreshed: its refresh_commands run on what it left the last time, in the place of its
 * init_commands. The result is kept where the earlier one was, with a key of its own, so that what
 * stands on it is made anew, and later builds go on from it. */
#include "builder/build_private.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

void refresh_release(struct build_layer *l)
{
    if (l->refresh)
        layer_blob_release(&l->previous.diff);
    drive_images_free(l->previous.drives, l->previous.n_drives);
    cb_strv_release(&l->previous.hosts);
    l->previous = (struct refresh_from){0};
}

bool refresh_any(const struct build *b)
{
    return b->o->refresh.n > 0 && !b->o->resume; /* which goes on behind it */
}

bool refresh_asked(const struct build *b, const struct layer *l)
{
    if (!refresh_any(b))
        return false;
    for (size_t i = 0; i < b->o->refresh.n; i++)
        if (strcmp(b->o->refresh.v[i], l->name) == 0)
            return true;
    return false;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

void refresh_hosts(struct build_layer *l)
{
    size_t own = l->hosts.n;
    l->watched = l->watched && l->previous.watched;
    for (size_t i = 0; i < l->previous.hosts.n; i++) {
        char *const *key = &l->previous.hosts.v[i];
        if (!own || !bsearch(key, l->hosts.v, own, sizeof(*l->hosts.v), by_text))
            cb_strv_add(&l->hosts, *key);
    }
    if (l->hosts.n)
        qsort(l->hosts.v, l->hosts.n, sizeof(*l->hosts.v), by_text);
}

void refresh_say(struct build *b)
{
    for (size_t i = 0; i < b->n_layers; i++) {
        const struct build_layer *l = &b->layers[i];
        if (refresh_asked(b, l->declared) && !l->refresh)
            emit_note(&b->em,
                      "layer %s is not refreshed: it has no result that fits what is below it now; "
                      "its init_commands run",
                      l->declared->name);
    }
}

/* Of a result: the diff, and what is on the drives. */
static void digest_of(const struct build_layer *l, struct cb_digest *out)
{
    struct cb_hasher *h = cb_hasher_new();
    cb_hasher_update(h, &l->diff.diff_id, sizeof(l->diff.diff_id));
    for (size_t i = 0; i < l->n_drives; i++)
        cb_hasher_update(h, &l->drives[i].image, sizeof(l->drives[i].image));
    cb_hasher_final(h, out);
    cb_hasher_free(h);
}

int refresh_layer(struct build *b, size_t i)
{
    struct build_layer *l = &b->layers[i];
    if (!refresh_asked(b, l->declared))
        return 0;
    struct cb_digest previous;
    digest_of(l, &previous);
    struct cache_key key;
    keys_cache_refresh(&l->key, l->declared, &previous, &key);
    cache_key_release(&l->key);
    l->key = key;
    l->refresh = true;
    l->refreshes++;
    l->previous = (struct refresh_from){l->diff, l->drives, l->n_drives, l->watched, l->hosts};
    l->hosts = (struct cb_strv){0};
    l->watched = false;
    l->diff = (struct layer_blob){0};
    l->drives = NULL;
    l->n_drives = 0;
    l->have_diff = l->cached = false;
    return 1;
}
