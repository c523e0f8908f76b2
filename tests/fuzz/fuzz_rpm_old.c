#include "layers/packages.h"

#include "fuzz_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef int (*reader)(const void *, size_t, struct package_list *, size_t *, struct cb_error *);

static void read_with(reader read, const uint8_t *data, size_t size)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct package_list l = {0};
    size_t bad = 0;
    int rc = read(data, size, &l, &bad, &err);
    must(rc == 0 || err.code == CB_E_CORRUPT || err.code == CB_E_LIMIT);
    for (size_t i = 0; i < l.n; i++)
        must(l.v[i].name[0] && l.v[i].version[0]);
    must(l.n + bad <= size);
    package_list_release(&l);
    cb_error_clear(&err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    read_with(packages_read_rpm_ndb, data, size);
    read_with(packages_read_rpm_bdb, data, size);
    return 0;
}
