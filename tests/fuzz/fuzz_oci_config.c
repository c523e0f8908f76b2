#include "schemas/oci.h"

#include "fuzz_check.h"
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct oci_image_config c;
    if (oci_config_parse((const char *)data, size, &c, &err) < 0)
        return 0;
    for (size_t i = 0; i < c.env.n; i++)
        must(strchr(c.env.v[i], '=') && c.env.v[i][0] != '=');
    must(c.user && c.workdir[0] == '/' && c.architecture && c.os);
    oci_config_release(&c);
    return 0;
}
