#include "schemas/reference.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include "fuzz_check.h"
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A name that is accepted stays the same when its canonical form is read again. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_FREE char *text = cb_xmalloc(size + 1);
    if (size)
        memcpy(text, data, size);
    text[size] = '\0';
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct image_ref r, again;
    if (image_ref_parse(text, &r, &err) < 0) {
        must(err.code == CB_E_CONFIG && err.msg && err.hint);
        return 0;
    }
    CB_AUTO_FREE char *a = image_ref_canonical(&r);
    int rc = image_ref_parse(a, &again, &err);
    must(rc == 0);
    CB_AUTO_FREE char *b = image_ref_canonical(&again);
    must(strcmp(a, b) == 0 && r.kind == again.kind);
    image_ref_release(&r);
    image_ref_release(&again);
    return 0;
}
