/* build_options: what a build is asked for besides its config. It travels as JSON from whoever
 * enqueues a build to the process that runs it. */
#pragma once

#include "schemas/config.h"
#include "support/error.h"

#include <stdbool.h>
#include <stdint.h>

enum isolation { ISOLATION_AUTO, ISOLATION_VM, ISOLATION_CONTAINER };
/* -1 for an unknown word. */
int isolation_from_name(const char *name);

/* When a registry is asked what a name means: at every build, when no lock says it, not at all. */
enum pull_policy { PULL_ALWAYS, PULL_MISSING, PULL_NEVER };
/* "always", "missing", "never"; -1 for another word. */
int pull_from_name(const char *name);

struct build_options {
    enum isolation isolation;
    enum pull_policy pull;
    bool force;             /* ignore the cache for user layers */
    bool clean;             /* and for the platform layer */
    bool renew_builtin;     /* a built-in base image is made anew (an explicit `--pull always`) */
    bool locked;            /* the base image by the lock of the version in use */
    struct cb_strv refresh; /* layers whose refresh_commands are to run; owned */
    bool no_boot_check;
    int64_t boot_timeout_ms; /* 0: 60 s, five times that under TCG */
    char *
        resume; /* a failed build: the layer that failed goes on from its command; or NULL. Owned */
    char *lock; /* what moving names were resolved to then, JSON as in its plan; or NULL. Owned */
    char *base_dir; /* the config's folder, absolute: a base image's relative path is below it, and
                       so are files that layers take; NULL when nothing is. Owned:
                       build_options_release() */

    /* Not in the JSON: whoever runs the build says them. */
    const char *build_id; /* or NULL: nothing of it is kept when it fails */
    const char *work_dir; /* made for this build alone, removed at its end */
    const char
        *agent_path; /* capsule-agent, or NULL: beside this program, else the libexec folder */
};
/* Sets base_dir from the place of @c's file: for whoever has read the user's file. */
void build_options_place(struct build_options *o, const struct workload_config *c);
void build_options_release(struct build_options *o);
/* As JSON, and back. Owned text. */
char *build_options_dump(const struct build_options *o);
int build_options_parse(const char *text, struct build_options *o, struct cb_error *err);

/* What is valid and cannot be built yet, or has nothing to build on: -CB_E_CONFIG with its place.
 * Asked by whoever still has the user's file, and again by the build. */
int build_refuse(const struct workload_config *c, struct cb_error *err);
/* The same for layers that are to be refreshed and cannot be. */
int build_refuse_refresh(const struct build_options *o, const struct workload_config *c,
                         struct cb_error *err);
