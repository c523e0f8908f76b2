/* export_oci: a template as an OCI image: which layers it has, and the config and the manifest that
 * describe them. Writes nothing; what a registry or a folder needs is these two documents and the
 * layers' blobs, which are in the store.
 *
 * The agent's layer is left out: a container has no use for an init of a machine. The image's
 * command is the start command, as its user, in its folder, with its environment; without one, the
 * base image's entrypoint and command. Commands of every boot (workload.init_commands) have no
 * place in an OCI image: who exports says so. The same template gives the same documents. */
#pragma once

#include "schemas/manifest.h"
#include "support/error.h"

#include <stddef.h>

struct oci_document {
    const char *media_type;
    char *text; /* owned */
    size_t len;
    struct cb_digest digest;
};

struct oci_image {
    struct layer_blob *layers; /* bottom first, with media types of OCI; owned */
    char **names;              /* of the layers, as in the template; owned */
    size_t n_layers;
    struct oci_document config, manifest;
};

/* The layers of @t. -CB_E_CORRUPT when one has no media type that a layer can have. Then, after
 * replacing what is stored in another way (media type, digest and size; never the diff_id), the
 * documents. */
int oci_image_layers(const struct template_manifest *t, struct oci_image *out,
                     struct cb_error *err);
int oci_image_documents(const struct template_manifest *t, struct oci_image *im,
                        struct cb_error *err);
void oci_image_release(struct oci_image *im);
