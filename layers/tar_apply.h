/* tar_apply: the entries of layers become names and inodes, by the rules of the OCI image
 * specification (image layer filesystem changeset).
 *
 * Entries act in the order of the stream, a later one of the same name wins; whiteouts and opaque
 * markers act on what lower layers had, wherever in the layer they stand. No path is ever looked up
 * on the host: parents are found in the tree, through the image's own links, inside its root. */
#pragma once

#include "layers/ext4_writer.h"
#include "layers/tar_read.h"
#include "layers/tree.h"

/* Applies the next layer, number @layer (rising from 1), and writes the folders that it changed. An
 * error names the entry. */
int tar_apply_layer(struct writer *w, struct tree *t, uint16_t layer,
                    const struct tar_source *source, struct cb_error *err);
