/* tar_apply: the entries of layers become names and inodes, by the rules of the OCI image
 * specification (image layer filesystem changeset).
 *
 * Entries act in the order of the stream, a later one of the same name wins; whiteouts and opaque
 * markers act on what lower layers had, wherever in the layer they stand. No path is ever looked up
 * on the host: parents are found in the tree, through the image's own links, inside its root. */
#pragma once

#include "layers/ext4_writer.h"
#include "layers/layer_index.h"
#include "layers/layer_places.h"
#include "layers/tar_read.h"
#include "layers/tree.h"

/* Applies the next layer, number @layer (rising from 1), and writes the folders that it changed. An
 * error names the entry. */
int tar_apply_layer(struct writer *w, struct tree *t, uint16_t layer,
                    const struct tar_source *source, struct cb_error *err);

/* Where a layer comes from: a tar, or an index of it and a place that has its bytes; the outcome is
 * the same. What a tar is found to hold is kept for the next time. */
struct layer_input {
    const struct tar_source *tar; /* or NULL: */
    struct index_reader *index;
    struct place_reader *place;

    struct index_writer *keep_index; /* for a tar; NULL: not kept */
    struct places *keep_places;
};
/* The layer as overlayfs keeps it in an upper folder: below folder @name of the root, which is
 * made. Whiteouts are devices 0:0, opaque folders have overlay's attribute, and those that no entry
 * describes, whose description is the one of what is below, UPPER_IMPLICIT. */
#define UPPER_OPAQUE "trusted.overlay.opaque"
#define UPPER_IMPLICIT "trusted.capsule.implicit"
int tar_apply_upper(struct writer *w, struct tree *t, uint16_t layer, const char *name,
                    const struct tar_source *source, struct cb_error *err);
int tar_apply_input(struct writer *w, struct tree *t, uint16_t layer, const struct layer_input *in,
                    struct cb_error *err);
