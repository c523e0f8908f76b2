/* store_coming: blobs that this process is fetching, readable while they grow.
 *
 * Whoever fetches in the background announces digests (store_coming_add), the blob writers of this
 * store tell how far they are, and readers wait for bytes. What is read this way was checked by
 * nobody yet: a reader must throw away all that it made of it unless the fetch ends well. */
#pragma once

#include "layers/store.h"

/* Until store_coming_remove() a reader of @d waits instead of being told that it is not there. */
void store_coming_add(struct store *s, const struct cb_digest *d);
/* No more will come: the blob is in the store, or readers get -CB_E_CANCELED. */
void store_coming_remove(struct store *s, const struct cb_digest *d);

struct coming_reader; /* opaque */
/* Opens @d to be read from its beginning, whole or growing; waits until its first bytes are there.
 * *@out is NULL when it is whole. The owned fd, or -CB_E_NOTFOUND when it is neither there nor
 * announced. */
int store_coming_open(struct store *s, const struct cb_digest *d, uint64_t *size,
                      struct coming_reader **out, struct cb_error *err);
/* Waits until bytes below @upto (at most the blob's size) can be read from the fd, and returns how
 * many are there in all. -CB_E_CANCELED when no more will come, or when they began anew in another
 * file. */
int64_t coming_wait(struct coming_reader *r, uint64_t upto, struct cb_error *err);
/* Whoever waits for @r in another thread is told -CB_E_CANCELED, now and later. */
void coming_reader_stop(struct coming_reader *r);
void coming_reader_free(struct coming_reader *r); /* NULL is fine */

/* --- for the blob writers --- */
void store_coming_begun(struct store *s, const struct cb_digest *d, int fd, uint64_t have);
void store_coming_grown(struct store *s, const struct cb_digest *d, uint64_t have);
