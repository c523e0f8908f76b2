/* container: what the files of the container driver share. Private to builder/. */
#pragma once

#include "builder/machine.h"
#include "support/buf.h"

#include <jansson.h>

#define CONTAINER_ID_LEN 30 /* "capsule-build-" + 16 hex digits */

/* The container's and its control group's name: by its work folder, so that whoever knows the
 * folder can clean up. @id holds CONTAINER_ID_LEN + 1 bytes. */
void container_id(const char *work_dir, char *id);

struct container_spec {
    const char *id;
    const char *hostname;
    const char *lower, *scratch, *output; /* on this machine; NULL: none (the probe) */
    const struct cb_strv *drives;         /* folders; may be NULL */
    uint32_t memory_mib, vcpus;           /* 0: no limit */
    bool limits;                          /* the runtime makes a control group */
};
/* The OCI runtime configuration (opencontainers/runtime-spec, config.json). */
json_t *container_config(const struct container_spec *spec);

/* Attaches @path to a free loop device that lets go of it with its last user. *@out gets the
 * device's name (owned); returns an owned fd that keeps it attached. */
int loop_attach(const char *path, bool read_only, char **out, struct cb_error *err);
/* Detaches all loop devices whose files lie under @dir. */
void loop_detach_under(const char *dir);

/* Kills what is in the control groups named @id, in every hierarchy, and removes them. */
void container_remove_cgroups(const char *id);

/* The next probe tries again, whatever an earlier one found. */
void container_forget(const struct settings *settings);
/* Starts a container with @agent_path by each runtime there is. 0 and *@why (owned) when one works.
 */
int container_probe(const struct settings *settings, const char *agent_path, char **why,
                    struct cb_error *err);
