/* leaks: does what a layer leaves hold a secret? Nothing of ours puts one there; a command may, and
 * then it is in the template for good, where nobody would look for it. Private to builder/. */
#pragma once

#include "builder/secrets.h"

enum {
    LEAK_SHORTEST = 8, /* bytes: a shorter value is found where it is none */
};

/* Looks for each value, as it is, in the layer tar that lies in @fd at @offset, @len bytes of it.
 * Tells
 * @found of each that is there, once: what the secret is called, and the path of the first entry
 * that holds it ("?" where the tar does not say). */
int leaks_find(const struct secrets *s, int fd, uint64_t offset, uint64_t len,
               void (*found)(void *arg, const char *secret, const char *path), void *arg,
               struct cb_error *err);
