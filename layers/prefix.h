/* prefix: images in the store by the layers that they are made of, so that flatten() can start from
 * the one that has the most of a new image's first layers.
 *
 * A record says where such an image lies (images/ or lowers/), and what it consists of; it is found
 * by the layers' diff_ids and the version of the on-disk format, in prefixes/HEX. Neither the
 * compression of the layers nor the size of the image matters. An image that is gone or has
 * changed makes its record worthless; a damaged record is none. */
#pragma once

#include "layers/chunk_map.h"
#include "layers/store.h"

#include <stddef.h>

/* Raise it when the same layers give other bytes. */
#define PREFIX_FORMAT 1

struct prefix {
    size_t n_layers; /* of the first layers that were asked for */
    int fd;          /* owned: keeps the image from being trimmed */
    struct chunk_map chunks;
};
#define PREFIX_INIT                                                                                \
    {                                                                                              \
        .fd = -1                                                                                   \
    }
void prefix_release(struct prefix *p);
#define CB_AUTO_PREFIX __attribute__((cleanup(prefix_release))) struct prefix

/* 1 and the image of the most layers among the first 1 to @n of @layers, or 0. */
int prefix_find(struct store *s, const struct layer_blob *layers, size_t n, struct prefix *out);

enum prefix_folder { PREFIX_IMAGES, PREFIX_LOWERS, PREFIX_FOLDER_N };
/* Notes that the published image or lower @name is made of exactly these layers. */
int prefix_put(struct store *s, const struct layer_blob *layers, size_t n,
               enum prefix_folder folder, const struct cb_digest *name,
               const struct chunk_map *chunks, struct cb_error *err);
/* Removes the records of images that are gone. */
void prefix_trim(struct store *s);
