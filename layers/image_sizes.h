/* image_sizes: where the bytes of an image are, by layer and by folder. A file with several names
 * counts once, where its first name is. Which layer a file came from is told by the layers'
 * indexes (layers/layer_index.h). */
#pragma once

#include "layers/store.h"

#define IMAGE_SIZES_TOP_MAX 1000u

struct layer_size {
    bool known;         /* its index is in the store; else the numbers are 0 */
    uint64_t content;   /* of its files, bytes */
    uint64_t kept;      /* of that: what no later layer deleted or replaced */
    uint64_t allocated; /* what the kept files take in the image */
};
struct folder_size {
    char *path; /* "." is the root; owned */
    uint64_t files, content, allocated;
};
struct image_sizes {
    struct layer_size *layers; /* one for each */
    size_t n_layers;
    struct layer_size other;     /* files whose layer is not known */
    struct folder_size *folders; /* the largest by allocated bytes first */
    size_t n_folders, top;
};
void image_sizes_release(struct image_sizes *s);
/* Of the image at @path, which is made of @layers. Folders at most @depth below the root (0: it
 * alone) are ranked, the @top largest kept. Memory: 16 bytes for each file of the layers. */
int image_sizes_get(struct store *s, const struct layer_blob *layers, size_t n, const char *path,
                    unsigned depth, size_t top, struct image_sizes *out, struct cb_error *err);
