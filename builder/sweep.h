/* sweep: removes what a builder that was killed left behind. Apart from the rest of builder/ so
 * that a supervisor can link it without what reads images and talks to registries. */
#pragma once

#include "support/error.h"

/* What lies under @work_dir and what is named after it: a container's control groups, loop devices,
 * files. The caller knows that the folder's owner is dead. */
int build_sweep(const char *work_dir, struct cb_error *err);
