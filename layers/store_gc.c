#include "layers/store_inventory.h"

#include "layers/layer_places.h"
#include "layers/prefix.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

void gc_report_release(struct gc_report *r)
{
    cb_strv_release(&r->versions);
    *r = (struct gc_report){0};
}

void df_report_release(struct df_report *r)
{
    for (size_t i = 0; i < r->n_templates; i++)
        free(r->templates[i].name);
    free(r->templates);
    *r = (struct df_report){0};
}

/* -- what is to go -- */

static bool stands_alone(const struct item *it)
{
    return it->kind == STORE_VERSIONS || it->kind == STORE_RECORDS || it->kind == STORE_NOTES ||
           it->kind == STORE_LOWERS || it->kind == STORE_INDEXES;
}

/* A shared lock on a file of an image or a download says that somebody is at it. */
static bool is_open(struct inventory *inv, const struct item *it)
{
    CB_AUTO_FREE char *rel = inventory_rel(inv, it);
    CB_AUTO_FD fd = openat(inv->s->root, rel, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    return fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0;
}

static void take_old_versions(struct inventory *inv, uint64_t keep)
{
    for (size_t i = 0; i < inv->n && keep; i++) {
        struct item *it = &inv->v[i];
        if (it->kind != STORE_VERSIONS || it->current || it->newest || it->pinned)
            continue;
        uint64_t newer = 0; /* that could go as well */
        for (size_t j = 0; j < inv->n; j++) {
            const struct item *o = &inv->v[j];
            newer += o->kind == STORE_VERSIONS && o->template == it->template &&
                     o->version > it->version && !o->current && !o->newest;
        }
        if (newer >= keep)
            inventory_drop(inv, it);
    }
}

/* What nothing refers to. What is young may belong to somebody who has not said so yet. */
static int take_garbage(struct inventory *inv, const struct gc_options *o, int64_t now,
                        struct cb_error *err)
{
    int rc = 0;
    for (size_t i = 0; i < inv->n && rc == 0; i++) {
        struct item *it = &inv->v[i];
        if (it->users == 0 && !it->gone && !stands_alone(it) && it->kind != STORE_PARTIALS &&
            it->kind != STORE_DAMAGED && now - it->used_ms < o->min_age_ms)
            rc = inventory_hold(inv, it, err);
    }
    for (size_t i = 0; i < inv->n && rc == 0; i++) {
        struct item *it = &inv->v[i];
        if (it->users || it->gone)
            continue;
        if (it->kind == STORE_PARTIALS || it->kind == STORE_DAMAGED) {
            if (now - it->used_ms < o->partial_age_ms || is_open(inv, it))
                continue;
        }
        inventory_remove(inv, it);
    }
    return rc;
}

/* What removing it would free: itself, and what nobody else refers to. */
static uint64_t gain(const struct inventory *inv, const struct item *it)
{
    uint64_t sum = it->gone ? 0 : it->bytes;
    for (size_t i = 0; i < it->n_refs; i++)
        if (inv->v[it->refs[i]].users == 1)
            sum += gain(inv, &inv->v[it->refs[i]]);
    return sum;
}

/* What can be made again goes first, whatever it is, least recently used first; then versions that
 * are neither in use nor the newest. */
static bool is_leaf(struct inventory *inv, const struct item *it, bool versions)
{
    if (it->gone || it->pinned || it->fixed)
        return false;
    switch (it->kind) {
    case STORE_VERSIONS: return versions && !it->current && !it->newest;
    case STORE_IMAGES: return !versions && inventory_has_chunks(inv, it) && !is_open(inv, it);
    case STORE_LOWERS: return !versions && !is_open(inv, it);
    case STORE_INDEXES: return !versions;
    case STORE_RECORDS:
    case STORE_NOTES: return !versions && it->n_refs > 0;
    default: return false;
    }
}

static int by_use(const void *a, const void *b)
{
    const struct item *x = *(struct item *const *)a, *y = *(struct item *const *)b;
    if (x->used_ms != y->used_ms)
        return x->used_ms < y->used_ms ? -1 : 1;
    return memcmp(x->id.b, y->id.b, sizeof(x->id.b));
}

static struct item **leaves(struct inventory *inv, bool versions, size_t *n)
{
    struct item **v = NULL;
    size_t cap = 0;
    *n = 0;
    for (size_t i = 0; i < inv->n; i++) {
        if (!is_leaf(inv, &inv->v[i], versions))
            continue;
        v = cb_xgrow(v, &cap, *n, sizeof(*v));
        v[(*n)++] = &inv->v[i];
    }
    if (*n)
        qsort(v, *n, sizeof(*v), by_use);
    return v;
}

static void take_leaf(struct inventory *inv, struct item *it)
{
    if (it->kind == STORE_IMAGES)
        inventory_remove(inv, it); /* versions still refer to it: by its digest, to its chunks */
    else
        inventory_drop(inv, it);
}

static void hold_ceiling(struct inventory *inv, uint64_t max)
{
    for (int versions = 0; versions < 2; versions++) {
        size_t n = 0;
        CB_AUTO_FREE struct item **v = leaves(inv, versions == 1, &n);
        /* a document whose blobs others need as well frees nothing: only when nothing else helps */
        for (int round = 0; round < 2; round++) {
            for (size_t i = 0; i < n && inv->alive + inv->other > max; i++) {
                bool helps = v[i]->n_refs == 0 || gain(inv, v[i]) > v[i]->bytes;
                if (!v[i]->gone && (helps || round == 1))
                    take_leaf(inv, v[i]);
            }
        }
    }
}

/* -- taking it -- */

static int unlink_item(struct inventory *inv, const struct item *it, struct cb_error *err)
{
    CB_AUTO_FREE char *rel = inventory_rel(inv, it);
    store_step(rel);
    if (unlinkat(inv->s->root, rel, 0) < 0 && errno != ENOENT)
        return cb_fail_sys(err, errno, "remove %s/%s", inv->s->dir, rel);
    return 0;
}

/* First what refers to others, durably, then the others: a crash in between leaves garbage. */
static int take_all(struct inventory *inv, struct cb_error *err)
{
    int rc = 0;
    bool documents = false;
    for (size_t i = 0; i < inv->n && rc == 0; i++) {
        struct item *it = &inv->v[i];
        if (!it->gone)
            continue;
        if (it->kind == STORE_VERSIONS)
            rc = store_version_unlink(inv->s, inv->names.v[it->template], it->version, err);
        else if (it->kind == STORE_RECORDS || it->kind == STORE_NOTES || it->kind == STORE_MAPS)
            rc = unlink_item(inv, it, err);
        documents = documents || it->kind != STORE_VERSIONS;
    }
    static const char *const folders[] = {"cache", "refs", "images"};
    for (size_t i = 0; i < 3 && documents && rc == 0; i++)
        rc = store_sync_dir(inv->s, folders[i], err);
    for (size_t i = 0; i < inv->n && rc == 0; i++) {
        const struct item *it = &inv->v[i];
        if (it->gone && it->kind != STORE_VERSIONS && it->kind != STORE_RECORDS &&
            it->kind != STORE_NOTES && it->kind != STORE_MAPS)
            rc = unlink_item(inv, it, err);
    }
    return rc;
}

static void report(const struct inventory *inv, uint64_t max, struct gc_report *out)
{
    out->after = inv->alive + inv->other;
    out->not_held = out->after > max ? out->after - max : 0;
    for (size_t i = 0; i < inv->n; i++) {
        const struct item *it = &inv->v[i];
        if (!it->gone)
            continue;
        out->removed[it->kind].n++;
        out->removed[it->kind].bytes += it->bytes;
        if (it->kind == STORE_VERSIONS)
            cb_strv_addf(&out->versions, "%s version %llu", inv->names.v[it->template],
                         (unsigned long long)it->version);
    }
}

static int collect(struct store *s, const struct gc_options *o, struct gc_report *out,
                   struct cb_error *err)
{
    struct inventory inv;
    int rc = inventory_make(s, &inv, err);
    if (rc < 0)
        return rc;
    out->before = inv.alive + inv.other;
    rc = inventory_hold_roots(&inv, err);
    if (rc == 0) {
        take_old_versions(&inv, o->keep_versions);
        rc = take_garbage(&inv, o, cb_now_ms(), err);
    }
    if (rc == 0 && inv.alive + inv.other > o->max_bytes)
        hold_ceiling(&inv, o->max_bytes);
    if (rc == 0)
        report(&inv, o->max_bytes, out);
    if (rc == 0 && !o->dry_run) {
        rc = take_all(&inv, err);
        prefix_trim(s);
        places_trim(s);
    }
    inventory_release(&inv);
    return rc;
}

int store_gc(struct store *s, const struct gc_options *o, struct gc_report *out,
             struct cb_error *err)
{
    *out = (struct gc_report){0};
    if (!o->dry_run)
        store_sweep_tmp(s);
    CB_AUTO_FD alone = store_lock_alone(s, err);
    int rc = alone < 0 ? alone : collect(s, o, out, err);
    return rc < 0 ? cb_wrap(err, "garbage collection") : 0;
}

/* -- df -- */

/* Everything that a template's versions lead to, each once. */
struct reach {
    const struct inventory *inv;
    uint32_t *seen; /* one an item: the last stamp */
    uint32_t stamp;
    uint32_t *users;       /* one an item: templates that lead to it; being counted, or: */
    struct df_template *d; /* when they are known: what is added up */
};

static void reach(struct reach *r, uint32_t i)
{
    const struct item *it = &r->inv->v[i];
    if (r->seen[i] == r->stamp)
        return;
    r->seen[i] = r->stamp;
    if (!r->d)
        r->users[i]++;
    else if (r->users[i] > 1)
        r->d->shared += it->bytes;
    else
        r->d->own += it->bytes;
    for (size_t j = 0; j < it->n_refs; j++)
        reach(r, it->refs[j]);
}

static int compare_templates(const void *a, const void *b)
{
    return strcmp(((const struct df_template *)a)->name, ((const struct df_template *)b)->name);
}

static void share_out(const struct inventory *inv, struct df_report *out)
{
    CB_AUTO_FREE uint32_t *seen = cb_xcalloc(inv->n + 1, sizeof(*seen));
    CB_AUTO_FREE uint32_t *users = cb_xcalloc(inv->n + 1, sizeof(*users));
    struct reach r = {.inv = inv, .seen = seen, .users = users};
    out->n_templates = inv->names.n;
    out->templates = cb_xcalloc(inv->names.n + 1, sizeof(*out->templates));
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t t = 0; t < inv->names.n; t++) {
            struct df_template *d = &out->templates[t];
            r.stamp++;
            r.d = pass ? d : NULL;
            for (uint32_t i = 0; i < inv->n; i++) {
                if (inv->v[i].kind != STORE_VERSIONS || inv->v[i].template != t)
                    continue;
                reach(&r, i);
                d->versions += pass == 0;
            }
            if (pass == 0)
                d->name = cb_xstrdup(inv->names.v[t]);
        }
    }
    if (out->n_templates)
        qsort(out->templates, out->n_templates, sizeof(*out->templates), compare_templates);
}

static int measure(struct store *s, struct df_report *out, struct cb_error *err)
{
    static const struct gc_options plain = {.max_bytes = STORE_NO_CEILING,
                                            .min_age_ms = STORE_MIN_AGE_MS,
                                            .partial_age_ms = STORE_PARTIAL_AGE_MS};
    struct inventory inv;
    int rc = inventory_make(s, &inv, err);
    if (rc < 0)
        return rc;
    out->other = inv.other;
    out->total = inv.alive + inv.other;
    for (size_t i = 0; i < inv.n; i++) {
        out->kinds[inv.v[i].kind].n++;
        out->kinds[inv.v[i].kind].bytes += inv.v[i].bytes;
    }
    rc = inventory_hold_roots(&inv, err);
    if (rc == 0)
        share_out(&inv, out);
    uint64_t before = inv.alive;
    if (rc == 0)
        rc = take_garbage(&inv, &plain, cb_now_ms(), err);
    out->garbage = before - inv.alive;
    size_t n = 0;
    CB_AUTO_FREE struct item **v = rc == 0 ? leaves(&inv, false, &n) : NULL;
    before = inv.alive;
    for (size_t i = 0; i < n; i++)
        if (!v[i]->gone)
            take_leaf(&inv, v[i]);
    out->cached = before - inv.alive;
    inventory_release(&inv);
    return rc;
}

int store_df(struct store *s, struct df_report *out, struct cb_error *err)
{
    *out = (struct df_report){0};
    store_share(s);
    int rc = measure(s, out, err);
    store_unshare(s);
    return rc;
}
