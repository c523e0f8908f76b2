#include "layers/registry_http.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include "fuzz_check.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Retry-After, Content-Range, an upload's Range, Warning, Location: any text is read by each. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_FREE char *text = cb_xmalloc(size + 1);
    if (size)
        memcpy(text, data, size);
    text[size] = '\0';
    int64_t s = http_retry_after(text, 1700000000);
    must(s >= 0 && s <= INT32_MAX);
    if (http_range_fits(text, 5, 10))
        must(strncasecmp(text, "bytes 5-9/", 10) == 0 || strstr(text, "9/"));
    uint64_t have = 1;
    if (http_upload_range(text, &have))
        must(have >= 1);
    CB_AUTO_FREE char *warning = http_warning(text);
    must(!warning || !strpbrk(warning, "\r\n\x1b"));
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *next = NULL;
    int rc = http_follow("https://registry.example.com/v2/a/blobs/x", text, &next, &err);
    must(rc == 0 ? strncasecmp(next, "https://", 8) == 0 : err.msg != NULL);
    return 0;
}
