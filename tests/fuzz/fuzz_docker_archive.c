/* manifest.json of docker save: names that come out stay inside, and a choice is one of the list.
 */
#include "fuzz_check.h"
#include "schemas/docker_archive.h"
#include "support/cleanup.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void inside(const char *name)
{
    must(*name && *name != '/');
    for (const char *p = name; p; p = strchr(p, '/') ? strchr(p, '/') + 1 : NULL) {
        size_t n = strcspn(p, "/");
        must(n > 0 && !(n == 1 && *p == '.') && !(n == 2 && memcmp(p, "..", 2) == 0));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct docker_archive a;
    size_t at = 0;
    if (docker_archive_parse((const char *)data, size, &a, &err) < 0) {
        must(err.msg != NULL);
        return 0;
    }
    for (size_t i = 0; i < a.n; i++) {
        inside(a.images[i].config);
        for (size_t k = 0; k < a.images[i].files.n; k++)
            inside(a.images[i].files.v[k]);
    }
    const char *const selectors[] = {NULL, "@0", "app:1",
                                     a.images[0].tags.n ? a.images[0].tags.v[0] : NULL};
    for (size_t i = 0; i < 4; i++) {
        if (docker_archive_select(&a, selectors[i], &at, &err) == 0)
            must(at < a.n);
        cb_error_clear(&err);
    }
    docker_archive_release(&a);
    return 0;
}
