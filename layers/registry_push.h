/* registry_push: content of the store into a repository of a registry.
 *
 * What the registry has is not sent; what another repository of it has is mounted when it lets us.
 * A blob goes up in one request; after a cut, or where that is too large for somebody on the way,
 * in pieces, each from where the registry says it stands. A manifest is sent as the bytes that it
 * is, last, and the digest under which the registry keeps it is compared.
 *
 * Only the host of the reference is asked, never a mirror. One thread at a time may use a session;
 * it has threads of its own for blobs. */
#pragma once

#include "layers/image.h"
#include "layers/store.h"

struct push; /* opaque */
/* @ref names host, repository and tag. @from: a repository of the same host that blobs may be
 * mounted from, or NULL. @settings and @p are borrowed until push_free(). *@out is owned. */
int push_open(const struct settings *settings, const struct image_ref *ref, const char *from,
              const struct layers_progress *p, struct push **out, struct cb_error *err);
void push_free(struct push *p); /* NULL is fine */

struct push_blob {
    const char *media_type;
    struct cb_digest digest;
    uint64_t size;
    const void *mem; /* its @size bytes; NULL: a blob of the store */
};
struct push_result {
    size_t sent, mounted, there; /* blobs, by what became of them */
    uint64_t bytes;              /* of those sent */
};
/* Sends what is missing, several at once; the same blob twice in the list is sent once. A failure
 * ends all; a repeat finds what was sent. @out is added to. */
int push_blobs(struct push *p, struct store *s, const struct push_blob *blobs, size_t n,
               struct push_result *out, struct cb_error *err);
/* Sends a manifest under @tag (NULL: under its digest alone). Its blobs must be there.
 * -CB_E_CORRUPT when the registry kept something else. */
int push_manifest(struct push *p, const char *media_type, const void *text, size_t len,
                  const char *tag, struct cb_digest *digest, struct cb_error *err);

/* An artifact about @subject (of which it holds the manifest's media type, digest and size): its
 * one blob, an OCI manifest with @type as its artifactType, and, where the registry keeps no list
 * of referrers, an entry in the index under the tag sha256-HEX. *@digest is the artifact's. */
struct push_artifact {
    const char *type;
    struct push_blob blob;
    const char *title; /* annotation org.opencontainers.image.title, or NULL */
    struct push_blob subject;
};
int push_artifact(struct push *p, struct store *s, const struct push_artifact *a,
                  struct push_result *out, struct cb_digest *digest, struct cb_error *err);

/* A template as an OCI image (layers/export_oci.h) under @to's tag, and what is known about it as
 * artifacts that refer to that image: list of packages, provenance, signatures of both. Blobs that
 * the registry has in the repository of the template's base image are mounted from there. *@digest
 * is the image's manifest; @artifacts (may be NULL) how many were attached. */
int push_template(struct store *s, const struct settings *settings,
                  const struct template_manifest *t, const struct image_ref *to,
                  const struct layers_progress *p, struct push_result *out,
                  struct cb_digest *digest, size_t *artifacts, struct cb_error *err);

/* A piece of an upload in pieces, bytes. Tests lower it. */
extern uint64_t push_piece;
