/* contexts: what the layers of a build take from outside, files beside the config and what commands
 * of type copy name. Their digests are part of the plan; what a layer that is not cached needs is
 * kept in the work folder before its machine starts, so edits after that do not matter. Private to
 * builder/. */
#pragma once

#include "builder/build_private.h"
#include "builder/pack.h"
#include "schemas/keys.h"

/* One source of `context`, or the sources of one copy. */
struct content {
    bool known;
    bool folder; /* goes into a folder, the destination */
    struct pack_sum sum;
    char *path; /* the pack in the work folder; owned, NULL: not kept */
};

/* Learns the content of everything that the build's layers take. */
int contents_resolve(struct build *b, struct cb_error *err);
/* The digests for the keys of layer @i; @in borrows from @b until contents_release(). */
void contents_of_layer(struct build *b, size_t i, struct layer_contents *in);
/* Keeps the packs of the layers from @first on. -CB_E_CONFLICT when a file is not what the plan
 * saw. */
int contents_keep(struct build *b, size_t first, struct cb_error *err);
void contents_release(struct build *b);
/* For a plan: [{src, dst, digest, files, bytes}], and of copies [{command, digest...}]. Owned. */
json_t *contents_json(const struct build *b, size_t i);
json_t *contents_copies_json(const struct build *b, size_t i);

/* While layer @l runs: puts its context in place, a step for each source. */
struct talk;
int run_contexts(struct talk *t, const struct build_layer *l, struct cb_error *err);
/* Command @i of it, which is a copy. */
int run_copy(struct talk *t, const struct layer *l, size_t i, struct cb_error *err);
