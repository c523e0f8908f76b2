/* What comes with a kernel: Debian's lists, and what kernels and modules say of themselves. */
#include "builder/bzimage.h"
#include "builder/debian.h"
#include "builder/modinfo.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_STRV depends = {0};
    (void)modinfo_depends(data, n, &depends, &err);
    cb_error_clear(&err);

    char release[KERNEL_RELEASE_MAX + 1];
    if (bzimage_release(data, n, release) && !kernel_release_ok(release))
        abort();

    CB_AUTO_FREE char *text = cb_xstrndup((const char *)data, n);
    CB_AUTO_FREE char *codename = debian_release_field(text, "Codename");
    (void)codename;
    uint64_t size;
    struct cb_digest digest;
    (void)debian_release_file(text, "main/binary-amd64/Packages.xz", &size, &digest, &err);
    cb_error_clear(&err);

    struct debian_list l;
    const struct debian_package *p;
    debian_list_init(&l, "linux-image-", "cloud-amd64");
    size_t half = n / 2;
    if (debian_list_feed(&l, (const char *)data, half, &err) == 0 &&
        debian_list_feed(&l, (const char *)data + half, n - half, &err) == 0 &&
        debian_list_end(&l, &err) == 0)
        (void)debian_list_resolve(&l, "linux-image-cloud-amd64", &p, &err);
    debian_list_release(&l);
    return 0;
}
