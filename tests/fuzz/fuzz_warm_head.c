/* The head of a saved machine: what is taken is within its bounds. */
#include "layers/warm_blob.h"

#include "fuzz_check.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct warm_head h;
    int rc = warm_head_parse(data, size, &h, &err);
    must(rc == 0 || rc == 1 || err.code == CB_E_CORRUPT);
    if (rc != 1)
        return 0;
    must(h.n_disks <= WARM_DISKS_MAX && size >= WARM_HEAD_FIXED + h.n_disks * WARM_HEAD_DISK);
    for (size_t i = 0; i < h.n_disks; i++)
        must(strlen(h.disks[i].name) <= WARM_NAME_MAX);
    return 0;
}
