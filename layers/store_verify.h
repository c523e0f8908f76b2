/* store_verify: reads everything in a store and compares it with its name.
 *
 * Blobs, chunks, maps and images are checked against their digests, documents are parsed, and what
 * versions refer to must be there. Builds may run meanwhile: what goes away while it is looked at
 * is not missed. What has no digest (lowers, notes, downloads that were cut) is not read. */
#pragma once

#include "layers/store_gc.h"

struct verify_options {
    bool repair; /* moves what is bad to damaged/, and makes anew what the store itself can */
    /* How far it is, now and then, from any thread but one at a time. May be NULL. */
    void (*progress)(void *arg, uint64_t bytes, uint64_t of);
    void *arg;
};

struct verify_fault {
    char *what;  /* "chunks/HEX.zst", "hello version 3" */
    char *why;   /* what is wrong with it */
    char *hits;  /* versions that need it: "hello version 3, web version 1"; or NULL */
    bool moved;  /* it lies in damaged/ now */
    bool solved; /* and what needs it has a good one again, or nothing needs it */
};

struct verify_report {
    struct store_sum checked[STORE_KIND_N];
    struct verify_fault *v;
    size_t n, cap;
    bool good; /* nothing is wrong, any more */
};
void verify_report_release(struct verify_report *r);

/* Negative only when the store could not be looked through. *@out must be released in any case. */
int store_verify(struct store *s, const struct verify_options *o, struct verify_report *out,
                 struct cb_error *err);
