/* image_init: an image whose own init is process 1 (config.init), with the agent as one of its
 * services.
 *
 * The service's files stand in the image's last layer, the agent's, so that layers and their keys
 * are the same whatever the init is. */
#pragma once

#include "support/error.h"

#include <stdbool.h>
#include <stddef.h>

/* Is it the agent itself? NULL is. */
bool image_init_is_agent(const char *init);

/* One entry of the agent's layer: a file, or a link when @target is not NULL. */
struct image_init_file {
    const char *path; /* without a slash in front */
    unsigned mode;
    const char *text, *target;
};
/* The files of a service for @init; *@n of them, static. NULL for the agent. */
const struct image_init_file *image_init_files(const char *init, size_t *n);

/* Does the finished image in the file @image have what @init needs? -CB_E_CONFIG says what it lacks
 * and how it comes in. */
int image_init_check(const char *image, const char *init, struct cb_error *err);
