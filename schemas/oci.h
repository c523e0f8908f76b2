/* oci: image index, manifest and config, as registries send them.
 * Input is hostile: sizes, counts, digests and media types are checked; unknown fields are ignored;
 * a document that is manifest and index at once is refused (CVE-2021-41190). */
#pragma once

#include "support/buf.h"
#include "support/error.h"
#include "support/hash.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OCI_INDEX "application/vnd.oci.image.index.v1+json"
#define OCI_MANIFEST "application/vnd.oci.image.manifest.v1+json"
#define OCI_CONFIG "application/vnd.oci.image.config.v1+json"
#define OCI_LAYER_TAR "application/vnd.oci.image.layer.v1.tar"
#define OCI_LAYER_GZIP "application/vnd.oci.image.layer.v1.tar+gzip"
#define OCI_LAYER_ZSTD "application/vnd.oci.image.layer.v1.tar+zstd"
#define DOCKER_LIST "application/vnd.docker.distribution.manifest.list.v2+json"
#define DOCKER_MANIFEST "application/vnd.docker.distribution.manifest.v2+json"
#define DOCKER_CONFIG "application/vnd.docker.container.image.v1+json"
#define DOCKER_LAYER_GZIP "application/vnd.docker.image.rootfs.diff.tar.gzip"
#define DOCKER_LAYER_TAR "application/vnd.docker.image.rootfs.diff.tar"

struct oci_descriptor {
    char *media_type; /* owned */
    struct cb_digest digest;
    uint64_t size;
    char *architecture, *os, *variant; /* platform, in an index only; owned or NULL */
    char *ref_name;                    /* what an index on disk calls it; owned or NULL */
    char *image_name;                  /* the whole name, as containerd notes it; owned or NULL */
    bool features;                     /* it asks for os.features: never for us */
    bool attestation;                  /* BuildKit's attestation entry: never a platform */
};

enum oci_kind { OCI_KIND_INDEX, OCI_KIND_MANIFEST };

struct oci_manifest {
    enum oci_kind kind;
    struct oci_descriptor config;  /* manifest */
    struct oci_descriptor *layers; /* manifest: bottom first; index: the manifests */
    size_t n_layers;
};
/* @content_type may be NULL (then mediaType or the shape decides). */
int oci_manifest_parse(const char *text, size_t len, const char *content_type,
                       struct oci_manifest *out, struct cb_error *err);
void oci_manifest_release(struct oci_manifest *m);
/* The entry for linux/@arch, strictly (no fallback), or -CB_E_NOTFOUND that lists what there is. */
int oci_index_select(const struct oci_manifest *index, const char *arch, size_t *entry,
                     struct cb_error *err);

/* True when every machine of @arch runs @variant (which may be NULL): no amd64/v3. */
bool oci_variant_is_baseline(const char *arch, const char *variant);

/* What an image config says that matters to a machine made from it. */
struct oci_image_config {
    char *architecture, *os, *variant; /* variant: NULL when absent */
    struct cb_strv env;                /* "K=V", later duplicates already won */
    char *user;                        /* "" when absent */
    char *workdir;                     /* "/" when absent */
    struct cb_strv entrypoint, cmd;
    char *stop_signal;
    struct cb_digest *diff_ids;
    size_t n_diff_ids;
};
/* True for an entry of an index that is an image, or an index of them: no attestation and nothing
 * unknown. */
bool oci_entry_is_image(const struct oci_descriptor *d);
/* The `oci-layout` file of a layout: -CB_E_CORRUPT unless it says version 1.x.y. */
int oci_layout_check(const char *text, size_t len, struct cb_error *err);
int oci_config_parse(const char *text, size_t len, struct oci_image_config *out,
                     struct cb_error *err);
void oci_config_release(struct oci_image_config *c);
