/* docker_archive: manifest.json of what `docker save` writes: which members of the archive are an
 * image's config and layers. Input is hostile: sizes, counts and names are checked; unknown fields
 * are ignored. */
#pragma once

#include "support/buf.h"
#include "support/error.h"

#include <stddef.h>

struct docker_image {
    char *config;         /* member with the image config, owned */
    struct cb_strv tags;  /* "app:1" as written; may be none */
    struct cb_strv files; /* members with the layers, bottom first */
};
struct docker_archive {
    struct docker_image *images;
    size_t n;
};

/* Names of members come out relative and without "." or empty parts; one with ".." is
 * -CB_E_UNTRUSTED. */
int docker_archive_parse(const char *text, size_t len, struct docker_archive *out,
                         struct cb_error *err);
void docker_archive_release(struct docker_archive *a);
/* The image that @selector means: NULL (there must be one alone), "@N" counted from 0, or a name as
 * a registry has it. -CB_E_CONFIG or -CB_E_NOTFOUND with the names that there are. */
int docker_archive_select(const struct docker_archive *a, const char *selector, size_t *out,
                          struct cb_error *err);

/* A member's name without leading "/" and "./", "." and empty parts; @base non-NULL: the folder
 * that @name is relative to, and ".." leads up in it. Owned; NULL when it leads out of the archive,
 * is empty or too long. */
char *archive_member_name(const char *base, const char *name);
