/* secrets: what a config's `layers[].secrets` and `credentials` name, read where the build runs,
 * and kept in this process's memory alone. Values go to the guest (session_step(),
 * session_layer_begin()) and to the mask that everything said passes through; they are overwritten
 * when they are let go. Private to builder/. */
#pragma once

#include "builder/mask.h"
#include "builder/session.h"
#include "schemas/config.h"
#include "support/error.h"

enum {
    SECRET_MAX = 64 << 10,         /* bytes of one value */
    SECRETS_LAYER_MAX = 128 << 10, /* of all that a layer is given: they travel in one frame */
    SECRETS_MAX = 256 << 10,       /* of a build */
};

/* What the commands of one layer get. */
struct layer_secrets {
    struct config_pairs env;
    struct guest_secret *files; /* their bytes are owned */
    size_t n_files;
};

/* What to look for where no secret should be. */
struct secret_value {
    char *what; /* "secret npm-token"; owned */
    char *data; /* owned */
    size_t len;
};

struct secrets {
    size_t first; /* the layer that layers[0] belongs to */
    struct layer_secrets *layers;
    size_t n_layers;
    struct mask *mask;
    struct secret_value *values;
    size_t n_values, cap_values;
    struct cb_strv unmasked; /* "secret npm-token": too short to be looked for */
};

/* Reads what the layers of @c from @first on are given. *@out is NULL when they are given nothing.
 * A variable that a secret comes from is taken out of this process's environment, so that no child
 * has it. -CB_E_CONFIG names the secret that cannot be had, and where it was looked for. */
int secrets_load(const struct workload_config *c, size_t first, struct secrets **out,
                 struct cb_error *err);
void secrets_free(struct secrets *s); /* NULL is fine */
/* Of layer @i of the config; NULL: none. Borrowed. */
const struct layer_secrets *secrets_of(const struct secrets *s, size_t i);
/* From now on this process and what it starts leave no core files, piped ones neither. */
void secrets_no_cores(void);
