#include "layers/packages.h"
#include "layers/sbom.h"

#include "fuzz_check.h"
#include "support/cleanup.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* As fuzz_dpkg_status; and a license is an expression or it is not. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct package_list l = {0};
    int rc = packages_read_apk((const char *)data, size, &l, &err);
    must(rc == 0 || err.code == CB_E_CORRUPT || err.code == CB_E_LIMIT);
    package_list_sort(&l);
    for (size_t i = 0; i < l.n; i++) {
        must(l.v[i].name[0] && l.v[i].version[0] && l.v[i].kind == PACKAGE_APK);
        CB_AUTO_FREE char *purl = package_purl(&l.v[i], NULL, NULL);
        must(purl);
        CB_AUTO_FREE char *license = l.v[i].license ? spdx_license(l.v[i].license) : NULL;
        CB_AUTO_FREE char *again = license ? spdx_license(license) : NULL;
        must(!license || (again && strcmp(license, again) == 0));
    }
    package_list_release(&l);
    return 0;
}
