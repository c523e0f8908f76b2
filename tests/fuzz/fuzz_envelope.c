#include "schemas/attest.h"

#include "../sign_keys.h"
#include "fuzz_check.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct cb_sign_key *key;
    if (!key)
        must(cb_sign_key_parse(KEY_ED25519_PUBLIC, strlen(KEY_ED25519_PUBLIC), false, "key", &key,
                               NULL) == 0);
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF out = CB_BUF_INIT(ATTEST_MAX);
    int rc = attest_open((const char *)data, size, key, &out, &err);
    must(rc == 0 || ((err.code == CB_E_CORRUPT || err.code == CB_E_UNTRUSTED) && out.len == 0));
    return 0;
}
