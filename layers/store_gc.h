/* store_gc: what takes how much of a store, and making room in it.
 *
 * Everything that a published version refers to stays, and so does what a living process has said
 * that it uses (layers/store_pin.c). Besides there are leaves, on which nothing else rests: files
 * of images whose chunks are there, lowers, results of commands, base images that were pulled. They
 * are worth keeping as long as there is room, least recently used first to go. Bytes are blocks on
 * the disk, as du counts them.
 *
 * Reads documents alone, no content of images. */
#pragma once

#include "layers/store.h"

#include <jansson.h>

enum store_kind {
    STORE_BLOBS, /* layers, kernels, documents of images */
    STORE_CHUNKS,
    STORE_IMAGES,
    STORE_MAPS,
    STORE_LOWERS,
    STORE_INDEXES, /* of layers: what is where in an image */
    STORE_VERSIONS,
    STORE_RECORDS, /* of the cache */
    STORE_NOTES,
    STORE_PARTIALS, /* downloads that were cut */
    STORE_DAMAGED,  /* put aside by `verify --repair` */
    STORE_KIND_N
};
/* "blobs", "chunks"...: stable words, also the keys of JSON. */
const char *store_kind_name(enum store_kind kind);

struct store_sum {
    uint64_t n, bytes;
};

#define STORE_NO_CEILING UINT64_MAX
#define STORE_MIN_AGE_MS (3600 * (int64_t)1000)
#define STORE_PARTIAL_AGE_MS (24 * 3600 * (int64_t)1000)

struct gc_options {
    uint64_t max_bytes;     /* the store shall not take more, or STORE_NO_CEILING */
    uint64_t keep_versions; /* of a template, besides the one in use and the newest; 0: all */
    int64_t min_age_ms;     /* what nothing refers to goes only when it is older; so for damaged */
    int64_t partial_age_ms;
    bool dry_run;
};

struct gc_report {
    uint64_t before, after; /* bytes of the whole store */
    struct store_sum removed[STORE_KIND_N];
    uint64_t not_held;       /* bytes that are above the ceiling and in use */
    struct cb_strv versions; /* removed: "hello version 3" */
};
void gc_report_release(struct gc_report *r);

/* Makes room. Processes that find or publish something wait meanwhile. A crash in the middle leaves
 * garbage for the next one. *@out must be released, also on failure. */
int store_gc(struct store *s, const struct gc_options *o, struct gc_report *out,
             struct cb_error *err);

struct df_template {
    char *name;
    uint64_t versions;
    uint64_t own;    /* bytes that no other template needs */
    uint64_t shared; /* that others need as well */
};

struct df_report {
    struct store_sum kinds[STORE_KIND_N];
    uint64_t other; /* records about images, unfinished work, the store's own folders */
    uint64_t total;
    uint64_t garbage; /* what store_gc() without limits would free now */
    uint64_t cached;  /* what it could free besides, without taking a version */
    struct df_template *templates;
    size_t n_templates;
};
void df_report_release(struct df_report *r);
int store_df(struct store *s, struct df_report *out, struct cb_error *err);

/* Removes version @version of a template, or with 0 the whole of it. The one in use cannot go alone
 * (-CB_E_CONFLICT). What it referred to goes with the next store_gc(). */
int store_template_remove(struct store *s, const char *name, uint64_t version,
                          struct cb_error *err);
