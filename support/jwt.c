#include "support/jwt.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <string.h>

enum { BITS_MIN = 2048 };

CB_DEFINE_CLEANUP(pkey, EVP_PKEY *, EVP_PKEY_free);
CB_DEFINE_CLEANUP(md, EVP_MD_CTX *, EVP_MD_CTX_free);

/* Nobody is asked for a password. */
static int no_password(char *buf, int size, int rw, void *arg)
{
    (void)buf;
    (void)size;
    (void)rw;
    (void)arg;
    return -1;
}

static EVP_PKEY *read_key(const char *pem, struct cb_error *err)
{
    BIO *in = BIO_new_mem_buf(pem, -1);
    EVP_PKEY *key = in ? PEM_read_bio_PrivateKey(in, NULL, no_password, NULL) : NULL;
    BIO_free(in);
    if (key && EVP_PKEY_base_id(key) == EVP_PKEY_RSA && EVP_PKEY_bits(key) >= BITS_MIN)
        return key;
    EVP_PKEY_free(key);
    cb_fail(err, CB_E_CONFIG, "its private key is no RSA key of at least %d bits", BITS_MIN);
    return NULL;
}

/* base64 with the URL alphabet, without padding. Owned. */
static char *encode(const void *p, size_t n)
{
    char *out = cb_xcalloc(1, (n + 2) / 3 * 4 + 1);
    (void)EVP_EncodeBlock((unsigned char *)out, p, (int)n);
    for (char *c = out; *c; c++)
        *c = (char)(*c == '+' ? '-' : *c == '/' ? '_' : *c == '=' ? '\0' : *c);
    return out;
}

int cb_jwt_rs256(const char *pem, const char *header, const char *claims, char **out,
                 struct cb_error *err)
{
    CB_AUTO(pkey) key = read_key(pem, err);
    if (!key)
        return -(int)CB_E_CONFIG;
    CB_AUTO_FREE char *head = encode(header, strlen(header));
    CB_AUTO_FREE char *body = encode(claims, strlen(claims));
    CB_AUTO_FREE char *text = cb_xasprintf("%s.%s", head, body);
    CB_AUTO(md) ctx = EVP_MD_CTX_new();
    size_t n = (size_t)EVP_PKEY_size(key);
    CB_AUTO_FREE unsigned char *sig = cb_xmalloc(n);
    if (!ctx || EVP_DigestSignInit(ctx, NULL, EVP_sha256(), NULL, key) != 1 ||
        EVP_DigestSign(ctx, sig, &n, (const unsigned char *)text, strlen(text)) != 1)
        return cb_fail(err, CB_E_BUG, "libcrypto does not sign");
    CB_AUTO_FREE char *end = encode(sig, n);
    *out = cb_xasprintf("%s.%s", text, end);
    return 0;
}
