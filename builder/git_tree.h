/* git_tree: the files of a commit, straight from the object database into a pack: no checkout, no
 * filters, no attributes; times are the commit's. Submodules are taken with all that is in them, at
 * the commits that their parents name. Private to builder/. */
#pragma once

#include "builder/context_files.h"
#include "builder/git_mirror.h"

struct git_tree_request {
    const struct settings *settings;
    const char *url, *commit;
    const char *path; /* the part that is wanted; NULL: all of it */
    bool fetch;       /* a submodule that is not here is fetched; else -CB_E_NOTFOUND */
    uint64_t fetched; /* out: bytes that came for submodules */
};

/* @repo has the commit. -CB_E_CONFIG when there is no such path in it, -CB_E_UNTRUSTED for names
 * that git itself would not check out. */
int git_tree_pack(struct git_tree_request *r, git_repository *repo, struct pack *p,
                  struct context_place *place, struct cb_error *err);
