/* digest_set: digests, each with a number. For marking what is in use, and for finding it again. */
#pragma once

#include "support/hash.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One of zeros is empty. Only SHA-256 digests go in: their own bits are the hash. Whoever can
 * choose them can make it slow, not wrong. */
struct digest_set {
    struct digest_entry *v; /* owned */
    size_t n, cap;
};
void digest_set_release(struct digest_set *s);
/* Adds @d with @number, unless it is there. True when it was not. */
bool digest_set_add(struct digest_set *s, const struct cb_digest *d, uint32_t number);
/* True when it is there; then *@number (may be NULL) is the one that it came with. */
bool digest_set_find(const struct digest_set *s, const struct cb_digest *d, uint32_t *number);
