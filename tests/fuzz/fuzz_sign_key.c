#include "support/sign.h"

#include "fuzz_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Libcrypto reads the key; what we say about it must hold for any file. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    for (int private_key = 0; private_key < 2; private_key++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct cb_sign_key *k = NULL;
        int rc = cb_sign_key_parse((const char *)data, size, private_key, "key", &k, &err);
        must(rc == 0 ? k != NULL : !k && err.code == CB_E_CONFIG);
        uint8_t sig[CB_SIGNATURE_LEN];
        if (k && private_key)
            must(cb_sign(k, data, size, sig, &err) == 0 && cb_verify(k, data, size, sig));
        cb_sign_key_free(k);
        cb_error_clear(&err);
    }
    return 0;
}
