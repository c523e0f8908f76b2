/* sweep: removes what a builder that was killed left behind. Apart from the rest of builder/ so
 * that a supervisor can link it without what reads images and talks to registries. */
#pragma once

#include "support/error.h"

#include <stdbool.h>
#include <stdint.h>

/* What lies under @work_dir and what is named after it: a container's control groups, loop devices,
 * files. The caller knows that the folder's owner is dead. */
int build_sweep(const char *work_dir, struct cb_error *err);

/* How many builder machines are saved below @home to start builds from, and what they take on the
 * disk. They may be removed at any time. */
void saved_machines(const char *home, uint64_t *n, uint64_t *bytes);

/* The same for copies of git repositories (builder/git_mirror.h). */
void git_mirrors(const char *home, uint64_t *n, uint64_t *bytes);

/* The states of failed builds below @home (builder/kept.h), and what the disk would have more
 * without them. */
struct kept_sum {
    uint64_t n, bytes;
};
#define KEPT_AGE_MS (INT64_C(7) * 86400000)
void kept_states(const char *home, struct kept_sum *sum);
bool kept_is_there(const char *home, const char *id);
void kept_remove(const char *home, const char *id);
struct kept_limits {
    uint64_t count, bytes;
    int64_t age_ms;
};
/* Removes those beyond the limits, oldest first; only says in *@gone which those are with
 * @dry_run. */
void kept_trim(const char *home, const struct kept_limits *limits, bool dry_run,
               struct kept_sum *gone);
