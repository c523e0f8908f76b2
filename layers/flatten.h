/* flatten: layer tars straight into an ext4 image. No mount, no root, nothing unpacked on the host.
 *
 * Layers apply bottom to top by the OCI rules (docs/architecture.md, "Applying a layer"). The same
 * layers and size give the same bytes: no clock, no randomness, times come from the layers; and it
 * makes no difference whether all layers are applied or the last ones to an image of the others. */
#pragma once

#include "layers/chunk_map.h"
#include "layers/image.h"
#include "layers/layer_places.h"
#include "layers/store.h"

#include <stdint.h>

/* An image of the first layers of another one, to start from. */
struct flatten_parent {
    int fd; /* borrowed */
    size_t n_layers;
    const struct chunk_map *chunks; /* what it consists of, or NULL: all is hashed */
};

enum flatten_flags {
    FLATTEN_INFLATE = 1 << 0, /* layers that were inflated before are inflated again */
};

struct flatten_spec {
    struct store *store; /* where the blobs are */
    const struct layer_blob *layers;
    size_t n_layers;
    uint64_t size_bytes;  /* the file system's size; 0: smallest that fits, plus 512 MiB free */
    const char *label;    /* volume label, at most 16 bytes, or NULL */
    const char *out_path; /* made; must not exist */
    const struct layers_progress *progress;
    struct chunk_map *chunks; /* empty; receives what the image consists of (owned), or NULL */
    /* NULL: all layers are applied. Else the image is a copy of this one with the layers that it
     * lacks applied; the bytes are the same. A damaged one is left aside. */
    const struct flatten_parent *parent;
    enum flatten_flags flags;
    /* NULL, or what to give places_put() when the image was published. */
    struct places *places;
};

struct flatten_result {
    uint64_t size;           /* length of the file, bytes */
    uint64_t allocated;      /* blocks it takes, bytes */
    uint64_t entries;        /* names in the finished tree */
    struct cb_digest digest; /* image_digest() of it */
    size_t inherited;        /* layers that came with the parent */
    size_t copied;           /* layers that were not inflated: their bytes came from other images */
};

/* -CB_E_CORRUPT for a bad layer (names layer and entry; a diff_id that does not match too),
 * -CB_E_LIMIT when it cannot fit @size_bytes (with the numbers). Nothing is left on failure. */
int flatten(const struct flatten_spec *spec, struct flatten_result *out, struct cb_error *err);
/* The same while @f (image_fetch_start(); taken) brings the layers: inflates what has arrived. What
 * it made of them counts only when the fetch ends well, and its error comes before one of our own.
 */
int flatten_arriving(struct image_fetching *f, const struct flatten_spec *spec,
                     struct flatten_result *out, struct cb_error *err);

/* The digest of a file system image: chunk_map_digest() of its map with chunks of
 * CHUNK_SIZE_DEFAULT: SHA-256 over its length and the index and SHA-256 of every chunk that is not
 * all zero, so that holes cost nothing whatever the size. @allocated (may be NULL): the bytes that
 * its blocks take. */
int image_digest(int fd, struct cb_digest *out, uint64_t *allocated, struct cb_error *err);

/* An empty ext4 file system in a sparse file (scratch disks). Not reproducible in its UUID alone.
 */
int ext4_make_empty(const char *path, uint64_t size_bytes, const char *label, struct cb_error *err);
/* The same with one folder @name, which holds the layer as overlayfs keeps it in an upper
 * (layers/tar_apply.h). Nothing is left on failure. */
int ext4_make_upper(struct store *s, const struct layer_blob *layer, const char *name,
                    const char *path, uint64_t size_bytes, const char *label, struct cb_error *err);
/* The same with a UUID that follows from size and label: same input, same bytes. */
int ext4_make_drive(const char *path, uint64_t size_bytes, const char *label, struct cb_error *err);
