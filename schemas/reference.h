/* reference: names of images, as Docker's clients read them.
 * Grammar and normalisation follow distribution/reference: "debian" is
 * docker.io/library/debian:latest; the part before the first slash is a host only if it is
 * "localhost" or holds '.', ':' or an upper-case letter. */
#pragma once

#include "support/error.h"
#include "support/hash.h"

#include <stdbool.h>

enum source_kind {
    SOURCE_REGISTRY,       /* host/path[:tag][@digest] */
    SOURCE_BUILTIN,        /* minimal-debian, minimal-debian:trixie */
    SOURCE_SCRATCH,        /* scratch: an empty image */
    SOURCE_OCI_LAYOUT,     /* oci:DIR[:tag], oci:FILE[:tag]: the folder, or a tar of it */
    SOURCE_DOCKER_ARCHIVE, /* docker-archive:FILE[:name[:tag]], docker-archive:FILE:@N */
    SOURCE_TEMPLATE,       /* template:NAME[:version], template:NAME[@version] */
};

struct image_ref {
    enum source_kind kind;
    char *text;   /* as written, owned */
    char *domain; /* "docker.io", "127.0.0.1:5000" (SOURCE_REGISTRY), owned */
    char *path;   /* repository "library/debian"; or the folder, file, template or built-in name;
                     owned */
    char *tag;    /* NULL when a digest alone was given, or none is needed; of an archive what
                     stands behind the file, of a template the version in digits; owned */
    bool has_digest;
    struct cb_digest digest;
};

/* Reads @text. -CB_E_CONFIG with what is wrong and what is accepted. */
int image_ref_parse(const char *text, struct image_ref *out, struct cb_error *err);
void image_ref_release(struct image_ref *r);
/* "docker.io/library/debian:bookworm", with "@sha256:..." when it has a digest. Owned. */
char *image_ref_canonical(const struct image_ref *r);
/* True for a built-in base name (minimal-debian, minimal-debian:trixie). */
bool image_ref_is_builtin(const char *text);
/* True when @text names a file or folder of this machine by a relative path. */
bool image_ref_is_relative(const char *text);
/* @text with such a path made one below @dir, an absolute one; else @text as it is. Owned. */
char *image_ref_below(const char *text, const char *dir);
