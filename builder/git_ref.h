/* git_ref: which commit a branch or tag of a repository elsewhere means now, by libgit2. */
#pragma once

#include "schemas/settings.h"
#include "support/error.h"

#include <stdint.h>

#define GIT_COMMIT_LEN 40 /* hex digits of a SHA-1 */

/* @ref: a branch, else a tag (of a tag object: the commit that it names), a name below refs/, a
 * whole commit (nobody is asked), or NULL: what HEAD means there. Logs in by the ssh agent alone.
 * The proxy and the authorities are those of @settings. -CB_E_NOTFOUND when there is no such ref,
 * -CB_E_TIMEOUT after @timeout_ms: the attempt then goes on in a thread that nobody waits for, so
 * this is for programs that end soon. */
int git_ref_resolve(const struct settings *settings, const char *url, const char *ref,
                    int64_t timeout_ms, char commit[GIT_COMMIT_LEN + 1], struct cb_error *err);
