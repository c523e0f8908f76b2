/* hash: SHA-256 by OpenSSL, whole or as it streams, and `sha256:<hex>` digests. */
#pragma once

#include "support/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CB_SHA256_LEN 32

/* A content digest. Only sha256 is made and accepted for content we verify. */
struct cb_digest {
    uint8_t b[CB_SHA256_LEN];
};

#define CB_HEX_LEN 64          /* without the NUL */
#define CB_DIGEST_LEN (7 + 64) /* "sha256:" + hex, without the NUL */

struct cb_hasher; /* opaque: a running SHA-256 */
struct cb_hasher *cb_hasher_new(void);
void cb_hasher_free(struct cb_hasher *h); /* NULL is fine */
void cb_hasher_update(struct cb_hasher *h, const void *p, size_t n);
/* Ends the run; the hasher starts anew. */
void cb_hasher_final(struct cb_hasher *h, struct cb_digest *out);

void cb_sha256(const void *p, size_t n, struct cb_digest *out);
/* The digest of a whole file from offset 0 to its end; the fd's position is not used. */
int cb_sha256_fd(int fd, struct cb_digest *out, struct cb_error *err);

/* @hex holds CB_HEX_LEN + 1 bytes. */
void cb_digest_hex(const struct cb_digest *d, char *hex);
/* @text holds CB_DIGEST_LEN + 1 bytes: "sha256:...". */
void cb_digest_text(const struct cb_digest *d, char *text);
/* Strict: "sha256:" and 64 lower-case hex digits, nothing behind. */
bool cb_digest_parse(const char *text, struct cb_digest *out);
bool cb_digest_parse_hex(const char *hex, struct cb_digest *out);
bool cb_digest_eq(const struct cb_digest *a, const struct cb_digest *b);
