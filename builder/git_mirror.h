/* git_mirror: a bare copy of a repository elsewhere, under $CAPSULE_BUILD_HOME/git, a folder for
 * each URL. A second fetch brings what is new alone; a commit that is there needs no network. One
 * process at a time fetches into a mirror (a lock beside it). One
 * that nobody has used for 30 days is removed after a fetch into another one; any may be removed at
 * any time.
 * Private to builder/. */
#pragma once

#include "builder/git_ref.h"

#include <git2.h>

/* Opens the mirror of @url when it has @commit: an owned repository, or -CB_E_NOTFOUND. */
int git_mirror_open(const struct settings *settings, const char *url, const char *commit,
                    git_repository **out, struct cb_error *err);
/* The same, fetching what is missing: by @found->name, by the commit itself, then all branches and
 * tags. 1: something was fetched, 0: it was there. *@bytes: how much came. -CB_E_NOTFOUND when the
 * repository has no such commit (any more). */
int git_mirror_fetch(const struct settings *settings, const char *url,
                     const struct git_found *found, uint64_t *bytes, git_repository **out,
                     struct cb_error *err);
