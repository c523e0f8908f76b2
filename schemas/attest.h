/* attest: statements about a template (in-toto), and the signed envelopes that they travel in
 * (DSSE: the payload in base64, and signatures over "DSSEv1", its type and its bytes).
 * docs/provenance.md describes both. */
#pragma once

#include "support/buf.h"
#include "support/sign.h"

#define ATTEST_PAYLOAD_TYPE "application/vnd.in-toto+json"
#define ATTEST_STATEMENT_TYPE "https://in-toto.io/Statement/v1"
#define ATTEST_SLSA_TYPE "https://slsa.dev/provenance/v1"
#define ATTEST_SPDX_TYPE "https://spdx.dev/Document"
/* The name of the algorithm of an image's digest (layers/chunk_map.h), which is no SHA-256 of the
 * file: a verifier that knows the name alone must not take it for one. */
#define ATTEST_IMAGE_DIGEST "capsuleChunkMap1"
#define ATTEST_MAX (128u << 20) /* of an envelope, bytes */

/* What a signature over an envelope is made of (the pre-authentication encoding). Appended. */
int attest_pae(const char *type, const void *payload, size_t len, struct cb_buf *out,
               struct cb_error *err);
/* @payload in an envelope with one signature. Appended. */
int attest_seal(const void *payload, size_t len, const struct cb_sign_key *key, struct cb_buf *out,
                struct cb_error *err);
/* The payload (appended) of an envelope that @key has signed. -CB_E_CORRUPT when it is none of
 * ours, -CB_E_UNTRUSTED when no signature in it is right and of that key. */
int attest_open(const char *text, size_t len, const struct cb_sign_key *key, struct cb_buf *out,
                struct cb_error *err);

/* What a statement is about: the image, and the manifest without what attest_manifest_digest()
 * leaves out. */
struct attest_subject {
    const char *name; /* the template's */
    struct cb_digest image, manifest;
};
/* SHA-256 of a manifest (its text: of a file, or from template_manifest_dump()) as canonical JSON
 * without the members "documents" and "version": of all that is known when the documents are made.
 * Other versions of this program may know more or fewer members; the text has those that it was
 * made with. -CB_E_CORRUPT. */
int attest_manifest_digest(const char *text, size_t len, struct cb_digest *out,
                           struct cb_error *err);
/* A statement with this predicate (JSON text). The same arguments give the same bytes. Appended. */
int attest_statement(const struct attest_subject *s, const char *type, const void *predicate,
                     size_t len, struct cb_buf *out, struct cb_error *err);
