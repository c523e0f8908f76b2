/* sbom: the packages in an image, and the SPDX 2.3 document that lists them.
 *
 * They are read from the finished image and not while its layers stream in: what a later layer
 * replaced is right without being followed, and an image that was made from a stored one of its
 * first layers (layers/prefix.h) gives the same list as one that was made from nothing. */
#pragma once

#include "layers/packages.h"
#include "support/buf.h"
#include "support/hash.h"

struct image_packages {
    struct package_list list; /* sorted */
    char *distro;             /* ID of os-release: "debian"; or NULL */
    char *distro_version;     /* VERSION_ID: "12"; or NULL */
    struct cb_strv sources;   /* databases that were read: paths in the image */
    struct cb_strv notes;     /* what was found and not read, or not all of it, and why */
    int64_t newest;           /* seconds since 1970: the last change of a database; 0 without one */
};
/* Of the image at @image_path. @scratch: a path where nothing is, in a folder for temporary files.
 * A database that is damaged or of a form that is not known is a note; the rest is read. */
int image_packages_read(const char *image_path, const char *scratch, struct image_packages *out,
                        struct cb_error *err);
void image_packages_release(struct image_packages *p);

struct sbom_spec {
    const char *name; /* the template's */
    struct cb_digest image;
    const char *base_ref;  /* as written; NULL: the image has no base */
    const char *base_purl; /* or NULL */
    struct cb_digest base;
    const struct image_packages *packages;
};
/* The document, JSON. The same arguments give the same bytes: its time is that of the newest
 * database, its namespace is made from its content. @out is appended to; -CB_E_LIMIT by its
 * ceiling. */
int sbom_spdx(const struct sbom_spec *spec, struct cb_buf *out, struct cb_error *err);

/* @declared as an expression of the SPDX licence list, when it is one that we know. Owned, or
 * NULL. */
char *spdx_license(const char *declared);
/* A package URL (pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12). Owned. */
char *package_purl(const struct package *p, const char *distro, const char *distro_version);
/* pkg:oci/debian@sha256:...?repository_url=docker.io/library/debian&tag=bookworm. @tag may be
 * NULL. Owned. */
char *image_purl(const char *domain, const char *path, const char *tag,
                 const struct cb_digest *manifest);
