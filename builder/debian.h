/* debian: just enough of Debian's archive format to find one kernel package: the signed Release
 * file, the package list, and what the meta package points to. Pure parsing: the caller verifies
 * signatures and digests before anything read here is acted on. Private to builder/. */
#pragma once

#include "support/buf.h"
#include "support/error.h"
#include "support/hash.h"

#include <stdbool.h>
#include <stdint.h>

/* The value of @field in the Release file @text ("Codename"), or NULL. Owned. */
char *debian_release_field(const char *text, const char *field);
/* Size and SHA-256 of the index file @path; -CB_E_CORRUPT when the file does not list it. */
int debian_release_file(const char *text, const char *path, uint64_t *size, struct cb_digest *out,
                        struct cb_error *err);

struct debian_package {
    char *name, *version, *depends, *filename; /* owned; NULL when the stanza has no such field */
    uint64_t size;
    struct cb_digest sha256;
    bool has_sha256;
};

/* Collects the stanzas of a package list whose name has a prefix and a suffix, as the list streams
 * by. */
struct debian_list {
    const char *prefix, *suffix;
    struct cb_buf line;
    bool long_line; /* the rest of this line is dropped */
    struct debian_package current;
    struct debian_package *found; /* owned */
    size_t n, cap;
};
void debian_list_init(struct debian_list *l, const char *prefix, const char *suffix);
void debian_list_release(struct debian_list *l);
int debian_list_feed(struct debian_list *l, const char *p, size_t n, struct cb_error *err);
/* The end of the list: its last stanza need not end with an empty line. */
int debian_list_end(struct debian_list *l, struct cb_error *err);

/* The package that @meta depends on under the list's prefix and suffix, in the version it asks for.
 * Borrowed from the list. -CB_E_CORRUPT when the list holds no such package or the entry lacks what
 * a download needs. */
int debian_list_resolve(const struct debian_list *l, const char *meta,
                        const struct debian_package **out, struct cb_error *err);
