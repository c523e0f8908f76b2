/* parallel: the same work for many items, on a few threads. */
#pragma once

#include "support/error.h"

#include <stddef.h>

#define PARALLEL_MAX 8u /* threads, whatever the machine has */

/* How many threads parallel_run() uses for @n items: 1 to PARALLEL_MAX. For who keeps a buffer for
 * each. */
unsigned parallel_workers(size_t n);

/* One item. @worker is below parallel_workers(n) and belongs to one thread at a time. */
typedef int (*parallel_fn)(void *arg, unsigned worker, size_t item, struct cb_error *err);

/* Calls @fn for each of the items 0 to @n - 1, in rising order of their start. The first failure
 * stops it: no item is begun after that, and its error is returned once all threads have ended. The
 * calling thread works too; where no others can be made it does everything. Other threads receive
 * no signals. */
int parallel_run(size_t n, parallel_fn fn, void *arg, struct cb_error *err);
