/* hop: the process between us and an OCI runtime. It has mounts of its own and starts the runtime
 * as init of a PID namespace of its own, so that the kernel ends all of it when the hop goes, and
 * the hop goes when we do: whatever the runtime or the container's programs do, nothing outlives
 * us. Private to builder/. */
#pragma once

#include "support/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct hop_spec {
    const char *const *argv;  /* the runtime's command line; argv[0] is a path */
    const char *lower_device; /* mounted read-only at lower_at; NULL: none */
    const char *lower_at;
    const char *scratch_device; /* mounted at scratch_at, thrown away at the end */
    const char *scratch_at;
    const char *const *drive_devices; /* each mounted at its folder of drives_at */
    const char *const *drives_at;
    size_t n_drives;
    const char *try_overlay; /* a folder to try an overlay mount in; NULL: not tried */
    const int *setns;
    size_t n_setns;
    int agent_fd; /* becomes 3 */
    int log_fd;   /* becomes 1 and 2 */
};
/* Returns the hop's pid when the runtime was executed; the hop ends as the runtime does. SIGTERM
 * ends it all at once. Negative code: nothing runs. */
pid_t hop_start(const struct hop_spec *spec, struct cb_error *err);
