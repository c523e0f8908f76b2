/* keys: the hashes that decide what may be used again (docs/architecture.md, "Hashes").
 *
 * Everything is hashed as canonical JSON: objects with their keys sorted by bytes, no white space,
 * integers without a fraction, strings escaped minimally, so each value is delimited by its own
 * syntax and never by a separator that could occur in it. */
#pragma once

#include "schemas/config.h"
#include "support/hash.h"

/* Raised by hand when the same inputs would give other results: what the agent does to a layer, how
 * a diff is taken out, how the image is laid out. An upgrade alone does not throw caches away. */
#define PLATFORM_VERSION 2

#define WORKLOAD_KEY_LEN 16 /* hex characters, without the NUL */

/* declared(0) is layer `_platform` (base image as written, platform version); declared(k) is layer
 * k - 1 of the config. @out holds n_layers + 1 digests. */
void keys_declared(const struct workload_config *c, struct cb_digest *out);
/* A task is a layer of its own, on top of the others (@parent: the last one's declared hash). */
void keys_declared_task(const struct workload_config *c, const struct cb_digest *parent,
                        struct cb_digest *out);
/* @out holds WORKLOAD_KEY_LEN + 1 bytes. */
void keys_workload(const struct workload_config *c, char *out);

/* What a cache key was made from is kept beside the result, to explain later why it was not reused.
 */
struct cache_key {
    struct cb_digest digest;
    char *inputs; /* canonical JSON, owned */
};
void cache_key_release(struct cache_key *k);

/* cache(0): @base is the base image's manifest digest, @arch "amd64". */
void keys_cache_base(const struct cb_digest *base, const char *arch, struct cache_key *out);
/* What a layer takes from outside, by the digests of its content. Borrowed. */
struct layer_contents {
    const struct cb_digest *context;       /* of each source of `context` */
    const struct cb_digest *copied;        /* of each command; used for those of type copy */
    const struct cb_digest *const *drives; /* of each drive: the same for its commands */
};
/* cache(k) of @layer on @parent. The config's runner_user and the layer's env, user and workdir
 * take part, and what @in says is copied, wherever it comes from; tier, limits and secret values do
 * not. @in may be NULL for a layer that takes nothing. */
void keys_cache_layer(const struct workload_config *c, const struct layer *layer,
                      const struct layer_contents *in, const struct cb_digest *parent,
                      struct cache_key *out);
/* The key of @layer refreshed once more: @plain is its key as above, @previous the digest of the
 * result that its refresh_commands run on. */
void keys_cache_refresh(const struct cache_key *plain, const struct layer *layer,
                        const struct cb_digest *previous, struct cache_key *out);
/* cache(n + 1) of the task's layer: only what decides about files takes part, no limits. */
void keys_cache_task(const struct workload_config *c, const struct cb_digest *parent,
                     struct cache_key *out);

/* What the finished image depends on besides its layers. Borrowed. */
struct template_inputs {
    struct cb_digest last_cache; /* the last layer's, or the task's */
    struct cb_digest kernel;     /* with kernel: image, neither it nor the initramfs takes part */
    struct cb_digest agent;
    struct cb_digest initramfs; /* modules and init that the template boots with */
    uint64_t size_bytes_asked;  /* 0: smallest that fits */
};
void keys_template(const struct workload_config *c, const struct template_inputs *in,
                   struct cache_key *out);

/* Which build a second call may attach to: the hash of the whole normalised config and of the
 * options that change its result (@options: canonical JSON or ""). */
void keys_request(const struct workload_config *c, const char *options, struct cb_digest *out);
