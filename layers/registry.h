/* registry: one repository of images, asked over the OCI distribution API. Private to layers/.
 *
 * A session knows the places to ask, in order (a mirror, then the host itself), and one
 * authorization for each. A place that does not deliver is left for the next with a note; the last
 * one's words, and briefly those before, become the error. Everything that is worth another try is
 * tried again here, downloads from where they stopped. Nothing is taken over before its digest
 * fits.
 *
 * Threads: any number may use one session, each with a client of its own. */
#pragma once

#include "layers/image.h"
#include "layers/registry_auth.h"
#include "layers/registry_http.h"
#include "layers/store.h"
#include "support/buf.h"

#include <stdbool.h>
#include <stdint.h>

/* --- registry: the session --- */

struct registry;
/* @p (may be NULL) is called from whichever thread works and must allow that. @settings is borrowed
 * until registry_free(). */
int registry_open(const struct settings *settings, const struct image_ref *ref,
                  const struct layers_progress *p, struct registry **out, struct cb_error *err);
void registry_free(struct registry *r);
/* A client with the session's limits, for one thread. */
struct http_client *registry_client(const struct registry *r);

/* A manifest or index, from the store when it is there, else from the registry (and then kept in
 * the store). @tag non-NULL: asks where it points now and sets *@digest; NULL: *@digest says which.
 * *@type is the Content-Type it came with (owned), NULL from the store. @body's ceiling is set
 * here. */
int registry_manifest(struct registry *r, struct http_client *c, struct store *s, const char *tag,
                      struct cb_digest *digest, struct cb_buf *body, char **type,
                      struct cb_error *err);

/* How a download goes: @delta may be negative (started over). False: stop (-CB_E_CANCELED). */
typedef bool registry_moved(void *arg, int64_t delta);
/* Brings the blob into the store; what a failure leaves is gone on with the next time. */
int registry_blob(struct registry *r, struct http_client *c, struct store *s,
                  const struct cb_digest *digest, uint64_t size, registry_moved *moved, void *arg,
                  struct cb_error *err);

/* How long a second of waiting before another try takes, ms. Tests lower it. */
extern int64_t registry_second_ms;
/* Folders with a folder HOST[:PORT] of certificates each; NULL ends them. Tests have their own. */
extern const char *registry_certs_dirs[3];

/* --- builtin: bases made here (builtin.c) --- */

/* Sets @out from the store, or makes the image when it is not there. */
int builtin_resolve(struct store *s, const struct settings *settings, const char *name,
                    const char *arch, enum pull_policy policy, const struct layers_progress *p,
                    struct base_image *out, struct cb_error *err);

/* --- image: what both kinds of base end in (image.c) --- */

/* A whole small blob (manifest, config) of the store. */
int image_read_small(struct store *s, const struct cb_digest *d, struct cb_buf *out,
                     struct cb_error *err);
/* Fills config and layers of @out from the manifest @digest and its config, both in the store. The
 * names of the lock and of the error are the caller's business. -CB_E_NOTFOUND when a blob is
 * missing. */
int image_load(struct store *s, const struct cb_digest *digest, const char *arch,
               struct base_image *out, struct cb_error *err);
/* What @ref was last resolved to. */
int image_lock_put(struct store *s, const struct image_ref *ref, const char *arch,
                   const struct cb_digest *manifest, struct cb_error *err);
/* Fills @out with what the lock names, if its documents are still in the store: 1; else 0. */
int image_from_lock(struct store *s, const struct image_ref *ref, const char *arch,
                    struct base_image *out, int64_t *resolved_ms);
