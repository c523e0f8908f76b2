#include "layers/packages.h"

#include "fuzz_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct package_list l = {0};
    int rc = packages_read_rpm_header(data, size, &l, &err);
    must(rc == 0 ? l.n <= 1 : err.code == CB_E_CORRUPT && l.n == 0);
    if (l.n)
        must(l.v[0].name[0] && l.v[0].version[0]);
    package_list_release(&l);
    cb_error_clear(&err);
    return 0;
}
