/* run_command: one command of a layer in a builder that runs, by its type. Private to builder/. */
#pragma once

#include "builder/build_private.h"
#include "builder/drives.h"
#include "builder/kept.h"
#include "builder/session.h"
#include "builder/state.h"

/* The command that runs, by its places in the config. */
struct place {
    bool in_command;
    size_t layer, command;
};

/* A build's talk with its machine. */
struct talk {
    struct build *b;
    struct machine *m;
    struct session *s;
    int output_fd;
    struct build_state state;
    struct drive_disks drives;       /* of all layers that it runs */
    const struct commands *commands; /* the list that is run: a layer's, or a drive's of it */
    const char *drive_id;            /* whose they are; NULL: the layer's own */
    struct session_callbacks cb;     /* for the machine's session */
    struct place at;
    const char *driver;            /* that runs it */
    size_t first;                  /* the first layer that is not in the lower */
    const struct kept_state *kept; /* the scratch disk is a copy of this one; NULL: a new one */
    const char *kept_id;           /* the build that left it */
};

/* builder/run_layers.c: starts the machine over @lower, for the layers from
 * @first on, and sets it up: t->m and t->s. Both are the
 * caller's, also on failure. */
int talk_start(struct talk *t, size_t first, const char *lower, struct cb_error *err);

/* Command @i of t->commands in layer @l, as a step. What it left running stays until the layer's
 * end. */
int run_command(struct talk *t, const struct layer *l, size_t i, struct cb_error *err);
/* Once the state says gcp-auth: finds the credential, and takes over the command's scopes. */
int run_gcp(struct talk *t, struct cb_error *err);
/* After a restack: what earlier commands of type start had started runs again. */
int run_starts_again(struct talk *t, const struct layer *l, struct cb_error *err);
/* When the machine itself ended, that is the reason, and its console says more than a closed
 * stream: puts both into @err. Returns its code. */
int talk_explain(struct talk *t, struct cb_error *err);
