/* sign: Ed25519 signatures by libcrypto, with keys in PEM files. */
#pragma once

#include "support/error.h"
#include "support/hash.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CB_SIGNATURE_LEN 64
#define CB_KEY_ID_LEN CB_HEX_LEN

struct cb_sign_key; /* opaque: a private key, or a public one */

/* A private key (PKCS #8: "BEGIN PRIVATE KEY") that nobody but its owner can read, and who owns it
 * is us or root. -CB_E_CONFIG says what is wrong with it, with a hint: not there, another kind of
 * key, behind a password, readable by others. *@out is owned. */
int cb_sign_key_load(const char *path, struct cb_sign_key **out, struct cb_error *err);
/* A public key ("BEGIN PUBLIC KEY"). -CB_E_CONFIG. */
int cb_verify_key_load(const char *path, struct cb_sign_key **out, struct cb_error *err);
/* Of PEM text; @name is what messages call it. What the two above do with the file's content. */
int cb_sign_key_parse(const char *pem, size_t len, bool private_key, const char *name,
                      struct cb_sign_key **out, struct cb_error *err);
void cb_sign_key_free(struct cb_sign_key *k); /* NULL is fine */

/* The key's name in signatures: SHA-256 of the public key as DER (SubjectPublicKeyInfo), in hex.
 * `openssl pkey -in KEY -pubout -outform DER | sha256sum` prints the same. Borrowed. */
const char *cb_sign_key_id(const struct cb_sign_key *k);
int cb_sign(const struct cb_sign_key *k, const void *p, size_t n, uint8_t out[CB_SIGNATURE_LEN],
            struct cb_error *err);
bool cb_verify(const struct cb_sign_key *k, const void *p, size_t n,
               const uint8_t sig[CB_SIGNATURE_LEN]);
