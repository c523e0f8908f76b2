/* image: from the name of a base image to verified layers in the store.
 *
 * Resolving asks where the name points now and answers with a manifest digest, the image's config
 * and the list of layers; fetching brings the blobs that the store lacks. Everything that arrives
 * is checked against its digest before anybody sees it. */
#pragma once

#include "layers/store.h"
#include "schemas/schemas.h"

#include <stdbool.h>
#include <stdint.h>

/* How long work shows that it lives. Either may be NULL. Called from any thread, one at a time. */
struct layers_progress {
    void (*bytes)(void *arg, uint64_t current, uint64_t total, const char *unit);
    void (*note)(void *arg, const char *text); /* a line for the log: host asked, retry, warning */
    void *arg;
};

struct base_image {
    struct image_ref ref;
    struct cb_digest manifest; /* decides the cache key */
    struct oci_image_config config;
    struct layer_blob *layers; /* bottom first; diff_id from the config */
    size_t n_layers;
    uint64_t template_version; /* of template:NAME: the version that it meant; else 0 */
    bool from_lock; /* the registry could not be reached, or the file is gone: the last lock was
                     * used */
};
void base_image_release(struct base_image *b);

/* Resolves @text for linux/@arch. PULL_ALWAYS asks the registry and falls back to the last lock
 * when it cannot be reached (a note says so); PULL_MISSING asks only without a lock; PULL_NEVER
 * never asks. A name that the registry does not know is -CB_E_NOTFOUND with the registry's words.
 * `minimal-debian` is made here when it is missing (mmdebstrap; minutes the first time), from
 * @settings->debian_mirror. Files and templates of this machine are read each time; with another
 * policy than PULL_ALWAYS the last lock does when they are gone. Their paths must be absolute
 * (image_ref_below()). */
int image_resolve(struct store *s, const struct settings *settings, const char *text,
                  const char *arch, enum pull_policy policy, const struct layers_progress *p,
                  struct base_image *out, struct cb_error *err);
/* The same by a lock: @text as it was when it meant @manifest, wherever it points now. A registry
 * is asked for that digest when its documents are not in the store and @policy lets it. */
int image_resolve_locked(struct store *s, const struct settings *settings, const char *text,
                         const struct cb_digest *manifest, const char *arch,
                         enum pull_policy policy, const struct layers_progress *p,
                         struct base_image *out, struct cb_error *err);
/* Brings the layers that are missing. A repeat after a failure continues. */
int image_fetch(struct store *s, const struct settings *settings, const struct base_image *b,
                const struct layers_progress *p, struct cb_error *err);
/* The same in the background. Until image_fetch_end() flatten() reads the layers of @s as they
 * arrive (layers/store_coming.h). @settings, @b and @p must stay until then. */
struct image_fetching;
int image_fetch_start(struct store *s, const struct settings *settings, const struct base_image *b,
                      const struct layers_progress *p, struct image_fetching **out,
                      struct cb_error *err);
/* True when something was missing, so that image_fetch_end() may have to wait. */
bool image_fetch_busy(const struct image_fetching *f);
/* Waits until everything is there and verified; @f is taken. After a failure nothing that was read
 * ahead may be used. */
int image_fetch_end(struct image_fetching *f, struct cb_error *err);
/* Makes the built-in base @name anew (from the archive as it is now) for later image_resolve()
 * calls. */
int image_builtin_renew(struct store *s, const struct settings *settings, const char *name,
                        const struct layers_progress *p, struct cb_error *err);
