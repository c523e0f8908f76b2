/* documents: what is said about a template when it is published: which packages are in it, how it
 * was made, and both signed when there is a key (docs/provenance.md). Private to builder/. */
#pragma once

#include "builder/build_private.h"

/* -CB_E_CONFIG when a signing key is configured that cannot sign. Asked before anything is done. */
int documents_check_key(const struct settings *s, struct cb_error *err);
/* Makes them for the image in @image_path, puts them into the store, and their digests into @m,
 * which is complete but for its version. */
int documents_make(struct build *b, const char *image_path, struct template_manifest *m,
                   struct cb_error *err);
/* The predicate of SLSA provenance v1, JSON. @sbom: the digest of the package list. Owned. */
char *provenance_dump(const struct build *b, const struct cb_digest *sbom, int64_t finished_ms);
/* The package URL of the base image when it is a registry's. Owned, or NULL. */
char *documents_base_purl(const struct build *b);
/* The config as it may be shown to anybody: credentials are left out, of environments the names
 * alone are kept (their values may come from the environment of who builds), of secrets the ids.
 * Owned. */
json_t *provenance_config(const struct workload_config *c);
