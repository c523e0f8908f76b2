/* chunk_map: what an image file consists of: its length, and the index and SHA-256 of every chunk
 * that is not all zero. Holes cost nothing, and how zeros are stored makes no difference.
 *
 * The image's digest is made of the map alone, so whoever has the map of a parent and knows which
 * bytes have changed since gets the digest by hashing those chunks and no others. The chunk size is
 * a property of the map; the same content cut differently has another digest.
 *
 * The document (chunk_map_dump) is binary, little-endian: "capsule chunks 1" (16 bytes), chunk size
 * (32 bits), 0 (32 bits), length (64), number of entries (64), then index (64) and SHA-256 (32
 * bytes) of each in rising order. From the length on, without the number, it is what the digest is
 * made of: a map can be checked against the digest of its image. */
#pragma once

#include "support/buf.h"
#include "support/hash.h"

#include <stdint.h>

#define CHUNK_SIZE_DEFAULT (1u << 20)
#define CHUNK_SIZE_MIN (64u << 10) /* sizes are powers of two */
#define CHUNK_SIZE_MAX (16u << 20)
#define CHUNK_IMAGE_MAX ((uint64_t)1 << 42) /* length of an image that we make: ext4_layout.h */

struct chunk {
    uint64_t index; /* its place in the file, in chunks */
    struct cb_digest digest;
};

struct chunk_map {
    uint64_t length;     /* of the file, bytes */
    uint32_t chunk_size; /* bytes; the last chunk of the file may be shorter */
    struct chunk *v;     /* owned; in rising order of the index */
    size_t n;
};
void chunk_map_release(struct chunk_map *m); /* makes it empty; one of zeros is fine */
#define CB_AUTO_CHUNK_MAP __attribute__((cleanup(chunk_map_release))) struct chunk_map

/* Bytes @at to @at + @len - 1 of a file. */
struct byte_range {
    uint64_t at, len;
};

bool chunk_size_ok(uint64_t size);
/* The bytes that the chunk at @index has in the file. */
uint32_t chunk_length(const struct chunk_map *m, uint64_t index);

/* Reads the data of @fd (its position moves), in parallel. *@out must be empty and is owned; on
 * failure it stays empty. */
int chunk_map_make(int fd, uint32_t chunk_size, struct chunk_map *out, struct cb_error *err);
/* The same for a file that equals the one of @parent outside of @dirty (in any order, overlaps and
 * empty ones are fine) and of what lies behind the parent's end: reads those chunks alone. The
 * lengths may differ. Ranges behind the end of the file are those that a shorter child lost. */
int chunk_map_update(int fd, const struct chunk_map *parent, const struct byte_range *dirty,
                     size_t n_dirty, struct chunk_map *out, struct cb_error *err);

/* The digest of the image. */
void chunk_map_digest(const struct chunk_map *m, struct cb_digest *out);

/* Appends the document. -CB_E_LIMIT by @out's ceiling. */
int chunk_map_dump(const struct chunk_map *m, struct cb_buf *out, struct cb_error *err);
/* Strict: what it accepts, chunk_map_dump() writes with the same bytes. -CB_E_CORRUPT. */
int chunk_map_parse(const void *data, size_t len, struct chunk_map *out, struct cb_error *err);
