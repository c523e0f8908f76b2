#include "schemas/config.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include "fuzz_check.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is accepted lies between 0 and a year, and means the same when written in milliseconds. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_FREE char *text = cb_xmalloc(size + 1);
    if (size)
        memcpy(text, data, size);
    text[size] = '\0';
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int64_t ms = duration_parse(text, &err);
    if (ms < 0) {
        must(ms == -CB_E_CONFIG && err.msg);
        return 0;
    }
    must(ms <= INT64_C(366) * 86400000);
    CB_AUTO_FREE char *again = cb_xasprintf("%lldms", (long long)ms);
    must(duration_parse(again, &err) == ms);
    return 0;
}
