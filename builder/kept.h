/* kept: what a failed command left, under $CAPSULE_BUILD_HOME/failed/BUILD/, for `shell` and
 * `resume`: the scratch disk of the builder, unmounted in good order, the file system that it
 * stands on (a link to the store's, so that it stays when the store lets go of it), and state.json.
 * A folder is complete or not there; it is only ever read, and may be removed at any time. It holds
 * no memory of the machine and no secret: those were never on a disk. Private to builder/. */
#pragma once

#include "schemas/config.h"
#include "support/error.h"
#include "support/hash.h"

#include <stdbool.h>
#include <stdint.h>

/* Where a build stopped. Texts are owned: kept_state_release(). */
struct kept_state {
    char *name;       /* of the config */
    char *driver;     /* "vm", "container" */
    char *layer_name; /* and the title of its command, for people */
    char *title;
    uint64_t first;   /* the first layer that is on the scratch disk and not in what it stands on */
    uint64_t layer;   /* the one that failed, by its place in the config */
    uint64_t command; /* and its command */
    struct cb_digest layer_key; /* the failed layer's cache key */
    struct cb_digest content;   /* build_content() of all layers before it */
    struct cb_strv env;         /* the base image's, and the next two */
    char *user, *workdir;
    bool watched;         /* `hosts` is all that the failed layer's commands talked to until then */
    struct cb_strv hosts; /* as in struct cache_record */
};
#define KEPT_LOWER "lower.ext4"
void kept_state_release(struct kept_state *k);

struct kept_limits; /* builder/sweep.h */
/* Keeps @k as the state of build @id: moves the file @scratch there, and links or copies @lower.
 * Older states go so that the limits hold. -CB_E_LIMIT when this one alone is above them. */
int kept_save(const char *home, const char *id, const struct kept_limits *limits,
              const struct kept_state *k, const char *scratch, const char *lower,
              struct cb_error *err);
/* -CB_E_NOTFOUND when there is none (any more), -CB_E_CORRUPT when it is none. */
int kept_load(const char *home, const char *id, struct kept_state *out, struct cb_error *err);
/* The file @leaf of it ("lower.ext4"). Owned. */
char *kept_file(const char *home, const char *id, const char *leaf);
/* A copy of the scratch disk at @path, which is new: the state itself stays as it is. */
int kept_copy_scratch(const char *home, const char *id, const char *path, struct cb_error *err);
