/* inventory: everything in a store, and what refers to what. Private to the store. */
#pragma once

#include "layers/store_gc.h"
#include "layers/store_private.h"

#define NO_TEMPLATE UINT32_MAX

struct item {
    enum store_kind kind;
    struct cb_digest id; /* what its name says; versions and damaged ones have none */
    char *file;          /* its name when that is more than the digest (owned), or NULL */
    uint32_t template;   /* of a version: its place in names */
    uint64_t version;
    uint64_t bytes;
    int64_t used_ms; /* when it was last used, as far as is known */
    uint32_t *refs;  /* owned: what it refers to, once it is held */
    size_t n_refs, cap_refs;
    uint32_t users; /* how many refer to it, counting itself when it stands by itself */
    bool looked;    /* refs are there */
    bool pinned;    /* a living process uses it */
    bool current, newest;
    bool fixed; /* never taken for its age or size */
    bool gone;  /* to be removed, or removed */
};

struct inventory {
    struct store *s;
    struct item *v;
    size_t n, cap;
    struct digest_set by_id[STORE_KIND_N];
    struct cb_strv names; /* templates */
    uint64_t other;       /* bytes of what is no item */
    uint64_t alive;       /* bytes of the items that are not gone */
};

/* Lists and stats everything. Called with the store's lock (shared: what goes meanwhile is not
 * seen). */
int inventory_make(struct store *s, struct inventory *out, struct cb_error *err);
void inventory_release(struct inventory *inv);
/* The item of that kind and digest, or NULL. */
struct item *inventory_find(const struct inventory *inv, enum store_kind kind,
                            const struct cb_digest *d);
/* Fills in what @it refers to: every digest that its document names and the store has. */
int inventory_look(struct inventory *inv, struct item *it, struct cb_error *err);
/* One more, or one less, that refers to it. When it was the first or the last, so for what it
 * refers to itself. */
int inventory_hold(struct inventory *inv, struct item *it, struct cb_error *err);
void inventory_drop(struct inventory *inv, struct item *it);
/* It is to go. */
void inventory_remove(struct inventory *inv, struct item *it);
/* The path below the store. Owned. */
char *inventory_rel(const struct inventory *inv, const struct item *it);
/* Everything that stands by itself: versions, records, notes, lowers, and what is pinned. */
int inventory_hold_roots(struct inventory *inv, struct cb_error *err);
/* All chunks of the image's map are there. */
bool inventory_has_chunks(struct inventory *inv, const struct item *image);
