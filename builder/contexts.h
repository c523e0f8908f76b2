/* contexts: what the layers of a build take from outside, files beside the config and what commands
 * of type copy name. Their digests are part of the plan; what a layer that is not cached needs is
 * kept in the work folder before its machine starts, so edits after that do not matter. Private to
 * builder/. */
#pragma once

#include "builder/build_private.h"
#include "builder/git_ref.h"
#include "builder/pack.h"
#include "schemas/keys.h"

/* One source of `context`, or the sources of one copy. */
struct content {
    bool known;
    bool folder;                     /* goes into a folder, the destination */
    char commit[GIT_COMMIT_LEN + 1]; /* of a git source; "": not known */
    struct pack_sum sum;
    char *path; /* the pack in the work folder; owned, NULL: not kept */
};

/* Learns the content of everything that the build's layers take. */
int contents_resolve(struct build *b, struct cb_error *err);
/* Is it known? A plan, which fetches nothing, may not know what comes from git; why is in
 * b->unknown. */
bool contents_known(const struct build *b, size_t i);
/* The digests for the keys of layer @i; @in borrows from @b until contents_release(). */
void contents_of_layer(struct build *b, size_t i, struct layer_contents *in);
/* Keeps the packs of the layers from @first on. -CB_E_CONFLICT when a file is not what the plan
 * saw. */
int contents_keep(struct build *b, size_t first, struct cb_error *err);
void contents_release(struct build *b);
/* How many sources are from git: each is a step of resolving. */
size_t contents_count_git(const struct build *b);
/* What their refs mean: [{layer, git, ref, commit}]. Owned. */
json_t *contents_lock(const struct build *b);
/* For a plan: [{src, dst, digest, files, bytes}], and of copies [{command, digest...}]. Owned. */
json_t *contents_json(const struct build *b, size_t i);
json_t *contents_copies_json(const struct build *b, size_t i);

/* builder/contexts_git.c: the commit of a git source, and its content where that can be had. In a
 * plan it may stay unknown. */
int content_git_learn(struct build *b, const struct layer *l, const struct context_source *s,
                      struct content *c, struct cb_error *err);
/* The content of a source that is known, into @p. */
int content_git_pack(struct build *b, const struct context_source *s, struct content *c,
                     struct pack *p, struct cb_error *err);

/* While layer @l runs: puts its context in place, a step for each source. */
struct talk;
int run_contexts(struct talk *t, const struct build_layer *l, struct cb_error *err);
/* Command @i of it, which is a copy. */
int run_copy(struct talk *t, const struct layer *l, size_t i, struct cb_error *err);
