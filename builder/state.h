/* state: what holds for a command besides files: environment, user, working folder, and the
 * processes that `start` keeps. As in a Dockerfile it goes on from command to command and from
 * layer to layer. It follows from the config alone, so layers that are cached have it as well.
 * Private to builder/. */
#pragma once

#include "schemas/config.h"

struct step_state {
    struct config_pairs env; /* beyond the image's */
    char *user;              /* NULL: runner_user, else the image's */
    char *workdir;           /* NULL: the image's */
    const struct command
        *auth; /* the last one of type gcp-auth; borrowed from the config, or NULL */
};
void step_state_release(struct step_state *s);

/* A process that was started, with what held when it was. */
struct kept_start {
    const struct command *command; /* borrowed from the config */
    struct step_state state;
};

struct build_state {
    struct step_state now;
    struct kept_start *starts;
    size_t n_starts, cap_starts;
};
void build_state_release(struct build_state *s);
/* @layer begins. */
void build_state_layer(struct build_state *s, const struct layer *layer);
/* @cmd was carried out. */
void build_state_command(struct build_state *s, const struct command *cmd);
/* All of the first @n layers. */
void build_state_layers(struct build_state *s, const struct workload_config *c, size_t n);

/* Sets @key in @to; a later value takes the place of an earlier one. */
void config_pairs_set(struct config_pairs *to, const char *key, const char *value);
