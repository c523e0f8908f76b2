/* git_ref: which commit a branch or tag of a repository elsewhere means now, by libgit2. */
#pragma once

#include "schemas/settings.h"
#include "support/error.h"

#include <stdbool.h>
#include <stdint.h>

#define GIT_COMMIT_LEN 40 /* hex digits of a SHA-1 */
#define GIT_NAME_MAX 512

struct git_found {
    char commit[GIT_COMMIT_LEN + 1];
    char name[GIT_NAME_MAX]; /* "refs/heads/main", "HEAD"; "" when a whole commit was given */
};

/* Is @ref a whole commit? NULL: no. */
bool git_is_commit(const char *ref);
/* @ref: a branch, else a tag (of a tag object: the commit that it names), a name below refs/, a
 * whole commit (nobody is asked), or NULL: what HEAD means there. The proxy and the authorities are
 * those of @settings, logins those of builder/git_call.h. -CB_E_NOTFOUND when there is no such ref,
 * -CB_E_TIMEOUT after @timeout_ms without an answer. */
int git_ref_resolve(const struct settings *settings, const char *url, const char *ref,
                    int64_t timeout_ms, struct git_found *out, struct cb_error *err);
