/* sweep: removes what a builder that was killed left behind. Apart from the rest of builder/ so
 * that a supervisor can link it without what reads images and talks to registries. */
#pragma once

#include "support/error.h"

#include <stdint.h>

/* What lies under @work_dir and what is named after it: a container's control groups, loop devices,
 * files. The caller knows that the folder's owner is dead. */
int build_sweep(const char *work_dir, struct cb_error *err);

/* How many builder machines are saved below @home to start builds from, and what they take on the
 * disk. They may be removed at any time. */
void saved_machines(const char *home, uint64_t *n, uint64_t *bytes);
