#include "layers/registry_auth.h"

#include "fuzz_check.h"
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A helper's answer is a user with a password or an identity token, on one line each. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct auth_credentials c = {0};
    int rc = auth_helper_read((const char *)data, size, "helper", &c, &err);
    must(rc == 0 || (rc == -CB_E_AUTH && err.msg));
    must(auth_has_credentials(&c) == (rc == 0));
    if (rc == 0) {
        must(!c.username == !c.password && !c.username != !c.identity);
        must(!strpbrk(c.identity ? c.identity : c.password, "\r\n"));
    }
    auth_credentials_release(&c);
    return 0;
}
