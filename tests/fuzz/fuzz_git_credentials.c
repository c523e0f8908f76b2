/* A store of credentials, and after a NUL the URL that a login is looked for. */
#include "schemas/git_source.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include "fuzz_check.h"
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    size_t len = end ? (size_t)(end - data) : size;
    CB_AUTO_FREE char *text = cb_xstrndup((const char *)data, len);
    CB_AUTO_FREE char *url = end ? cb_xstrndup((const char *)end + 1, size - len - 1)
                                 : cb_xstrdup("https://h.example/r");
    CB_AUTO_FREE char *user = NULL;
    CB_AUTO_FREE char *password = NULL;
    char *u = NULL, *p = NULL;
    if (!git_credentials_find(text, url, &u, &p))
        return 0;
    user = u;
    password = p;
    must(user && password && strstr(url, "://") && strstr(text, "://"));
    return 0;
}
