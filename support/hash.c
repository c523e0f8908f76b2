/* The functions of OpenSSL 1.1, not EVP: the first use of EVP reads openssl.cnf and sets up
 * providers, 1 ms and 2.4 MiB, which was half of what `capsule-build validate` cost, and later uses
 * look the algorithm up each time (0.4 us, felt with many small hashes). The code that does the
 * work is the same. OpenSSL 3 calls these deprecated but keeps them. */
#define OPENSSL_API_COMPAT 10100

#include "support/hash.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <errno.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct cb_hasher {
    SHA256_CTX ctx;
};

/* They cannot fail: they allocate nothing and have no limit but 2^61 bytes. */
static void must(int ok)
{
    if (ok != 1)
        abort();
}

struct cb_hasher *cb_hasher_new(void)
{
    struct cb_hasher *h = cb_xcalloc(1, sizeof(*h));
    must(SHA256_Init(&h->ctx));
    return h;
}

void cb_hasher_free(struct cb_hasher *h)
{
    free(h);
}

void cb_hasher_update(struct cb_hasher *h, const void *p, size_t n)
{
    must(SHA256_Update(&h->ctx, p, n));
}

void cb_hasher_final(struct cb_hasher *h, struct cb_digest *out)
{
    must(SHA256_Final(out->b, &h->ctx));
    must(SHA256_Init(&h->ctx));
}

void cb_sha256(const void *p, size_t n, struct cb_digest *out)
{
    SHA256_CTX ctx;
    must(SHA256_Init(&ctx));
    must(SHA256_Update(&ctx, p, n));
    must(SHA256_Final(out->b, &ctx));
}

CB_DEFINE_CLEANUP(hasher, struct cb_hasher *, cb_hasher_free);

int cb_sha256_fd(int fd, struct cb_digest *out, struct cb_error *err)
{
    enum { CHUNK = 1 << 18 };
    CB_AUTO(hasher) h = cb_hasher_new();
    CB_AUTO_FREE void *buf = cb_xmalloc(CHUNK);
    off_t at = 0;
    for (;;) {
        ssize_t n = pread(fd, buf, CHUNK, at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return cb_fail_sys(err, errno, "read while hashing");
        if (n == 0)
            break;
        cb_hasher_update(h, buf, (size_t)n);
        at += n;
    }
    cb_hasher_final(h, out);
    return 0;
}

void cb_digest_hex(const struct cb_digest *d, char *hex)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < CB_SHA256_LEN; i++) {
        hex[2 * i] = digits[d->b[i] >> 4];
        hex[2 * i + 1] = digits[d->b[i] & 15];
    }
    hex[CB_HEX_LEN] = '\0';
}

void cb_digest_text(const struct cb_digest *d, char *text)
{
    memcpy(text, "sha256:", 7);
    cb_digest_hex(d, text + 7);
}

static int nibble(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

bool cb_digest_parse_hex(const char *hex, struct cb_digest *out)
{
    struct cb_digest d;
    for (size_t i = 0; i < CB_SHA256_LEN; i++) {
        int hi = nibble(hex[2 * i]);
        if (hi < 0)
            return false;
        int lo = nibble(hex[2 * i + 1]);
        if (lo < 0)
            return false;
        d.b[i] = (uint8_t)(hi << 4 | lo);
    }
    if (hex[CB_HEX_LEN] != '\0')
        return false;
    *out = d;
    return true;
}

bool cb_digest_parse(const char *text, struct cb_digest *out)
{
    return strncmp(text, "sha256:", 7) == 0 && cb_digest_parse_hex(text + 7, out);
}

bool cb_digest_eq(const struct cb_digest *a, const struct cb_digest *b)
{
    return memcmp(a->b, b->b, CB_SHA256_LEN) == 0;
}
