#include "layers/packages.h"
#include "layers/sbom.h"

#include "fuzz_check.h"
#include "support/cleanup.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Whatever the bytes are, what comes out has a name and a version, and can be written as a URL. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct package_list l = {0};
    int rc = packages_read_dpkg((const char *)data, size, &l, &err);
    must(rc == 0 || err.code == CB_E_CORRUPT || err.code == CB_E_LIMIT);
    package_list_sort(&l);
    for (size_t i = 0; i < l.n; i++) {
        must(l.v[i].name[0] && l.v[i].version[0] && l.v[i].kind == PACKAGE_DEB);
        CB_AUTO_FREE char *purl = package_purl(&l.v[i], NULL, NULL);
        must(purl);
    }
    package_list_release(&l);
    return 0;
}
