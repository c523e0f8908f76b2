/* after_failure: a command said no. Its builder's disk is kept for who wants to look at it
 * (builder/shell.c), and a later build goes on from there. Private to builder/. */
#pragma once

#include "builder/kept.h"
#include "builder/run_command.h"

/* The build failed with @rc: when that is for a command's sake, and failed states are kept, brings
 * the builder to write everything to its disk. True when it did: after_failure_keep() follows once
 * the machine is gone. */
bool after_failure_park(struct talk *t, int rc);
/* Keeps the disk, and says in the log how to use it, or why it is not kept. */
void after_failure_keep(struct talk *t, const char *lower);
/* Can layer @first go on from the state of the build that this one resumes? Says in the log why
 * not. *@k is to be released in any case. */
bool after_failure_find(struct build *b, size_t first, struct kept_state *k);
