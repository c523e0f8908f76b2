/* image_of: the file system of a template, or of what stands when one of its layers is done. */
#pragma once

#include "cli/cli.h"
#include "layers/chunk_map.h"
#include "layers/layers.h"

struct image_of {
    struct template_manifest *m;
    char *layer; /* or NULL: the whole template */
    size_t n_layers;
    struct cb_digest digest; /* of the image */
    char *path;
    int fd;                  /* what @path leads to, or -1 */
    struct chunk_map chunks; /* none when it is not known */
    bool temporary;
};
#define IMAGE_OF_INIT                                                                              \
    {                                                                                              \
        .fd = -1                                                                                   \
    }
/* @word is NAME[:VERSION] or NAME[:VERSION]/LAYER. An image of a layer's state that is not in the
 * store is made, and goes away with image_of_release(). */
int image_of_open(struct store *s, const char *word, struct image_of *out, struct cb_error *err);
void image_of_release(struct image_of *i);
/* Sets "path" in @o. A path is bytes: one that is not UTF-8 is also given in hex ("path_hex"), and
 * shown with what can be shown. */
void cli_json_path(json_t *o, const char *path);
