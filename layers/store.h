/* store: the content-addressed home of blobs, cache records, images and templates: one folder.
 *
 *   blobs/sha256/HEX      complete and verified, never changed
 *   partial/HEX           downloads that can go on; tmp/ everything else that is unfinished
 *   cache/HEX.json        cache records by cache key
 *   refs/HEX.json         notes, as the locks: what a moving name was last resolved to
 *   images/HEX.ext4       file systems by image digest; HEX.chunks: what they consist of
 *   chunks/HEX.zst        chunks of images by the SHA-256 of their content, compressed
 *   lowers/HEX.ext4       file systems that builders start from, by what they are made of
 *   layers/HEX.*          what layers hold and where, by diff_id (layer_index.h, layer_places.h)
 *   prefixes/HEX          which image or lower is made of which layers (layers/prefix.h)
 *   templates/NAME/N.json versions; templates/NAME/current the pointer, replaced atomically
 *   templates/NAME/by-key/HEX   lookups that can be rebuilt from the versions
 *
 *   lock, tmp/X/pins      who deletes, and what may not be deleted (layers/store_pin.c)
 *
 * A blob or image appears only when complete and its digest matched; what a crash leaves is in
 * partial/ and tmp/ and is garbage at worst. Several processes may share the folder; one handle
 * belongs to one thread at a time, except store_blob_* which any number of threads may call on one
 * handle. */
#pragma once

#include "layers/chunk_map.h"
#include "schemas/manifest.h"
#include "support/error.h"
#include "support/hash.h"

#include <stdbool.h>
#include <stdint.h>

struct store;
/* Makes the folder when missing. -CB_E_ENV when it cannot be written. *@out is owned. */
int store_open(const char *dir, struct store **out, struct cb_error *err);
/* Also removes what was made under store_tmp_path() and not published. NULL is fine. */
void store_free(struct store *s);
const char *store_dir(const struct store *s); /* borrowed */

/* A new read-only fd (owned) and its size (may be NULL), or -CB_E_NOTFOUND. */
int store_blob_open(struct store *s, const struct cb_digest *d, uint64_t *size,
                    struct cb_error *err);
bool store_blob_has(struct store *s, const struct cb_digest *d);

/* Writing: hashed as it streams, published by commit. */
struct blob_writer;
/* @expect non-NULL: the digest it must have; a partial download of it is continued, and
 * blob_writer_offset() says from where (at its end: commit at once). While another writer has that
 * partial file, this one begins anew in a file of its own, and the first to commit wins.
 * @max_bytes: more is -CB_E_CORRUPT at once. */
int store_blob_begin(struct store *s, const struct cb_digest *expect, uint64_t max_bytes,
                     struct blob_writer **out, struct cb_error *err);
uint64_t blob_writer_offset(const struct blob_writer *w);
/* Throws away what was there: the server ignored our Range. */
int blob_writer_restart(struct blob_writer *w, struct cb_error *err);
/* A failed one changes nothing and may be repeated. */
int blob_writer_add(struct blob_writer *w, const void *p, size_t n, struct cb_error *err);
/* Verifies, syncs, publishes; the writer is taken, also on failure. A wrong digest is -CB_E_CORRUPT
 * and leaves nothing. @d and @size may be NULL. */
int blob_writer_commit(struct blob_writer *w, struct cb_digest *d, uint64_t *size,
                       struct cb_error *err);
/* Keeps the partial file for later when a digest was expected, else removes it. NULL is fine. */
void blob_writer_abort(struct blob_writer *w);
/* A whole small blob. */
int store_blob_put(struct store *s, const void *p, size_t n, struct cb_digest *d,
                   struct cb_error *err);

/* Takes a tar that lies in @fd at @offset (from a stranger: a builder's guest), checks that it is a
 * sane layer from end to end, compresses it with zstd and publishes it. *@out owns its strings. */
int store_layer_import(struct store *s, int fd, uint64_t offset, uint64_t len,
                       struct layer_blob *out, struct cb_error *err);

/* Cache records by key. -CB_E_NOTFOUND when absent or when its blob is gone. */
int store_cache_get(struct store *s, const struct cb_digest *key, struct cache_record *out,
                    struct cb_error *err);
int store_cache_put(struct store *s, const struct cb_digest *key, const struct cache_record *r,
                    struct cb_error *err);

/* Small named JSON documents (locks, probe results), replaced atomically. @name is hashed. */
int store_note_get(struct store *s, const char *name, struct cb_buf *out, struct cb_error *err);
int store_note_put(struct store *s, const char *name, const char *text, struct cb_error *err);

/* A path (owned) in tmp/ that nobody else has and where nothing is yet, for files that
 * store_image_publish() takes. It goes away with the handle or, after a crash, with the next sweep.
 * NULL when tmp/ cannot be written. */
char *store_tmp_path(struct store *s, const char *what);
/* Removes what dead processes left in tmp/. */
void store_sweep_tmp(struct store *s);

/* Images by digest (layers/flatten.h defines the digest). Publishing renames @path into place; the
 * file must lie in tmp/. */
int store_image_publish(struct store *s, const char *path, const struct cb_digest *digest,
                        struct cb_error *err);
/* Stores what of the image @fd (its map is @map) is not there yet as chunks, and then its map. The
 * bytes are checked against the map. From then on the image can be made again from its chunks. */
struct store_chunks {
    struct cb_digest map; /* of the map's document */
    uint64_t added;       /* chunks that were not there */
    uint64_t added_bytes; /* what they take, compressed */
};
struct layers_progress;
int store_chunks_put(struct store *s, int fd, const struct chunk_map *map,
                     const struct layers_progress *progress, struct store_chunks *out,
                     struct cb_error *err);
/* The path (owned) of the image's file, which stays for as long as this store is open. One whose
 * chunks alone are there is made from them, with every chunk checked. -CB_E_NOTFOUND. */
int store_image_path(struct store *s, const struct cb_digest *digest, char **path,
                     struct cb_error *err);
/* The path (owned) of its file if that is there, or -CB_E_NOTFOUND. */
int store_image_find(struct store *s, const struct cb_digest *digest, char **path,
                     struct cb_error *err);
/* Intermediate images (a builder's lower) by the digest of what they are made of; may vanish at any
 * time but not while the returned fd is open. -CB_E_NOTFOUND. */
int store_lower_open(struct store *s, const struct cb_digest *key, char **path,
                     struct cb_error *err);
int store_lower_publish(struct store *s, const char *path, const struct cb_digest *key,
                        struct cb_error *err);

/* Removes the longest unused ones that nobody has open, until the others take at most @keep_bytes.
 */
void store_lower_trim(struct store *s, uint64_t keep_bytes);

/* A slug (lower-case letters, digits, inner hyphens, at most 64), with PROJECT~ in front for a
 * project's: what may become a folder below templates/. Every call here checks; CB_E_CONFIG. */
bool store_template_name_ok(const char *name);
/* Publishes a template as the next version of @m->name (sets @m->version): blobs and image must be
 * there. Order: version file, key lookup, pointer (when @move_pointer); each atomic and synced. */
int store_template_publish(struct store *s, struct template_manifest *m, bool move_pointer,
                           struct cb_error *err);
/* @version 0: the current one. -CB_E_NOTFOUND. *@out is owned: template_manifest_free(). */
int store_template_get(struct store *s, const char *name, uint64_t version,
                       struct template_manifest **out, struct cb_error *err);
/* The version of @name with this template key, complete (image and blobs there), or -CB_E_NOTFOUND.
 */
int store_template_find(struct store *s, const char *name, const struct cb_digest *template_key,
                        struct template_manifest **out, struct cb_error *err);
/* Moves the pointer of @name to @version, which must be complete. */
int store_template_point(struct store *s, const char *name, uint64_t version, struct cb_error *err);
/* Names that have a current version, sorted. */
int store_template_names(struct store *s, struct cb_strv *out, struct cb_error *err);
