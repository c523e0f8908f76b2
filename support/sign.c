#include "support/sign.h"

#include "support/buf.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <string.h>
#include <sys/stat.h>

#define KEY_FILE_MAX (64u << 10)

struct cb_sign_key {
    EVP_PKEY *pkey;
    char id[CB_KEY_ID_LEN + 1];
};

CB_DEFINE_CLEANUP(sign_key, struct cb_sign_key *, cb_sign_key_free);
CB_DEFINE_CLEANUP(md_ctx, EVP_MD_CTX *, EVP_MD_CTX_free);

void cb_sign_key_free(struct cb_sign_key *k)
{
    if (!k)
        return;
    EVP_PKEY_free(k->pkey);
    free(k);
}

const char *cb_sign_key_id(const struct cb_sign_key *k)
{
    return k->id;
}

/* Called when a key is behind a password. There is nobody to ask. */
static int no_password(char *buf, int size, int rw, void *asked)
{
    (void)buf;
    (void)size;
    (void)rw;
    *(bool *)asked = true;
    return -1;
}

static int make_id(struct cb_sign_key *k, const char *name, struct cb_error *err)
{
    unsigned char *der = NULL;
    int n = i2d_PUBKEY(k->pkey, &der);
    if (n <= 0)
        return cb_fail(err, CB_E_CONFIG, "%s: the public key cannot be written", name);
    struct cb_digest d;
    cb_sha256(der, (size_t)n, &d);
    OPENSSL_free(der);
    cb_digest_hex(&d, k->id);
    return 0;
}

static int refuse(const char *name, bool private_key, bool asked, const char *found,
                  struct cb_error *err)
{
    if (asked) {
        cb_fail(err, CB_E_CONFIG,
                "%s: the key is behind a password, and nobody is there to give it", name);
        return cb_hint(err, "`openssl pkey -in KEY -out NEW` writes it without one; give NEW mode "
                            "0600");
    }
    if (found)
        cb_fail(err, CB_E_CONFIG, "%s: the key is of the kind %s; only ED25519 is accepted", name,
                found);
    else
        cb_fail(err, CB_E_CONFIG, "%s: no %s key in PEM", name, private_key ? "private" : "public");
    if (private_key)
        return cb_hint(err, "`openssl genpkey -algorithm ed25519 -out KEY` makes one");
    return cb_hint(err, "`openssl pkey -in KEY -pubout -out KEY.pub` writes the public key");
}

int cb_sign_key_parse(const char *pem, size_t len, bool private_key, const char *name,
                      struct cb_sign_key **out, struct cb_error *err)
{
    if (len > KEY_FILE_MAX)
        return cb_fail(err, CB_E_CONFIG, "%s: too large for a key", name);
    bool asked = false;
    BIO *bio = BIO_new_mem_buf(pem, (int)len);
    CB_AUTO(sign_key) k = cb_xcalloc(1, sizeof(*k));
    if (bio)
        k->pkey = private_key ? PEM_read_bio_PrivateKey(bio, NULL, no_password, &asked)
                              : PEM_read_bio_PUBKEY(bio, NULL, no_password, &asked);
    BIO_free(bio);
    ERR_clear_error(); /* its words are for programmers */
    if (!k->pkey)
        return refuse(name, private_key, asked, NULL, err);
    if (EVP_PKEY_get_base_id(k->pkey) != EVP_PKEY_ED25519) {
        const char *kind = EVP_PKEY_get0_type_name(k->pkey);
        return refuse(name, private_key, false, kind ? kind : "another", err);
    }
    int rc = make_id(k, name, err);
    if (rc == 0)
        *out = cb_take_ptr(&k);
    return rc;
}

/* The key file is opened once; what is checked is what is read. */
static int load(const char *path, bool private_key, struct cb_sign_key **out, struct cb_error *err)
{
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return cb_fail(err, CB_E_CONFIG, "the key %s cannot be opened: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return cb_fail(err, CB_E_CONFIG, "the key %s is not a file", path);
    if (private_key && (st.st_mode & 077)) {
        cb_fail(err, CB_E_CONFIG, "the key %s can be read or changed by others (mode %04o)", path,
                (unsigned)(st.st_mode & 07777));
        return cb_hint(err, "chmod 600 it, and make a new one if it was so for long");
    }
    if (private_key && st.st_uid != geteuid() && st.st_uid != 0)
        return cb_fail(err, CB_E_CONFIG, "the key %s belongs to another user (%u)", path,
                       (unsigned)st.st_uid);
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    if (cb_read_fd(fd, path, KEY_FILE_MAX, &text, &why) < 0)
        return cb_fail(err, CB_E_CONFIG, "the key %s cannot be read: %s", path, why.msg);
    int rc = cb_sign_key_parse(text.data ? text.data : "", text.len, private_key, path, out, err);
    if (text.data)
        explicit_bzero(text.data, text.len);
    return rc;
}

int cb_sign_key_load(const char *path, struct cb_sign_key **out, struct cb_error *err)
{
    return load(path, true, out, err);
}

int cb_verify_key_load(const char *path, struct cb_sign_key **out, struct cb_error *err)
{
    return load(path, false, out, err);
}

int cb_sign(const struct cb_sign_key *k, const void *p, size_t n, uint8_t out[CB_SIGNATURE_LEN],
            struct cb_error *err)
{
    CB_AUTO(md_ctx) ctx = EVP_MD_CTX_new();
    size_t len = CB_SIGNATURE_LEN;
    if (!ctx || EVP_DigestSignInit(ctx, NULL, NULL, NULL, k->pkey) != 1 ||
        EVP_DigestSign(ctx, out, &len, p, n) != 1 || len != CB_SIGNATURE_LEN)
        return cb_fail(err, CB_E_SYS, "libcrypto cannot sign with the key %.16s...", k->id);
    return 0;
}

bool cb_verify(const struct cb_sign_key *k, const void *p, size_t n,
               const uint8_t sig[CB_SIGNATURE_LEN])
{
    CB_AUTO(md_ctx) ctx = EVP_MD_CTX_new();
    bool good = ctx && EVP_DigestVerifyInit(ctx, NULL, NULL, NULL, k->pkey) == 1 &&
                EVP_DigestVerify(ctx, sig, CB_SIGNATURE_LEN, p, n) == 1;
    ERR_clear_error();
    return good;
}
