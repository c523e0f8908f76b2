/* After a build: keeps the store within its limits, however the build ended. */
#include "builder/build_private.h"

#include "layers/layer_places.h"
#include "layers/prefix.h"
#include "layers/store_gc.h"
#include "support/cleanup.h"
#include "support/file.h"

/* Images that builders stood on are a convenience: the least recently used go first. */
static const uint64_t lowers_keep_bytes = UINT64_C(16) << 30;

/* What this build made and used stays: its pins last as long as its store is open. */
static void hold_ceiling(struct build *b)
{
    const struct gc_options o = {.max_bytes = (uint64_t)b->settings->store_max_gb << 30,
                                 .keep_versions = b->settings->keep_versions,
                                 .min_age_ms = STORE_MIN_AGE_MS,
                                 .partial_age_ms = STORE_PARTIAL_AGE_MS};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct gc_report r;
    char freed[32], over[32];
    if (store_gc(b->store, &o, &r, &err) < 0) { /* no reason to fail a build */
        emit_warning(&b->em, "the store was not trimmed: %s", err.msg);
    } else {
        cb_human_bytes(r.before - r.after, freed, sizeof(freed));
        cb_human_bytes(r.not_held, over, sizeof(over));
        if (r.before > r.after)
            emit_note(&b->em, "made room in the store: %s", freed);
        if (r.not_held)
            emit_warning(&b->em, "the store is %s above store_max_gb: all of it is in use", over);
    }
    gc_report_release(&r);
}

void build_trim(struct build *b)
{
    store_lower_trim(b->store, lowers_keep_bytes);
    prefix_trim(b->store);
    places_trim(b->store);
    if (b->settings->store_max_gb)
        hold_ceiling(b);
}
