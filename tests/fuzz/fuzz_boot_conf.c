/* The boot file in an image, which any layer may have written. */
#include "builder/agent/agent.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct boot_conf b;
    struct fail f;
    (void)boot_conf_parse((const char *)data, size, &b, &f);
    boot_conf_release(&b);
    return 0;
}
