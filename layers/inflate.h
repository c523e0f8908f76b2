/* inflate: the uncompressed bytes of a layer blob, and their SHA-256.
 *
 * gzip (any number of members), zstd (any number of frames) and plain data are told apart by their
 * first bytes. Two threads work behind it: one decompresses into a bounded ring of buffers, one
 * hashes the same buffers; the caller reads them in place. One caller thread per object. */
#pragma once

#include "support/error.h"
#include "support/hash.h"

#include <stddef.h>
#include <stdint.h>

struct inflate; /* opaque */

/* For a blob that is still arriving: waits until bytes below @upto can be read, and returns how
 * many are there from the beginning, or an error. Called by the decompressing thread. */
typedef int64_t inflate_wait(void *arg, uint64_t upto, struct cb_error *err);

/* Reads @size bytes from offset 0 of @fd (borrowed until inflate_free()). More than @max_out bytes
 * of output is -CB_E_LIMIT, and so is what no honest blob of its size holds (a bomb) above a 64th
 * of that. */
int inflate_start(int fd, uint64_t size, uint64_t max_out, struct inflate **out,
                  struct cb_error *err);
int inflate_start_growing(int fd, uint64_t size, uint64_t max_out, inflate_wait *wait, void *arg,
                          struct inflate **out, struct cb_error *err);
/* The next piece: 1 and *@data (borrowed until the next call), 0 at the end, or the error that the
 * stream ended with. */
int inflate_next(struct inflate *z, const void **data, size_t *len, struct cb_error *err);
/* Bytes of the blob that were read so far. */
uint64_t inflate_consumed(const struct inflate *z);
/* Reads what is left and gives the digest and length of everything that was inside. */
int inflate_finish(struct inflate *z, struct cb_digest *diff_id, uint64_t *bytes,
                   struct cb_error *err);
/* Stops the threads, also in the middle. NULL is fine. */
void inflate_free(struct inflate *z);
