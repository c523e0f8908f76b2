/* A .dockerignore, and after a NUL the names that it is asked about, a line each. */
#include "schemas/ignore.h"
#include "schemas/pattern.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include "fuzz_check.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Asking folder by folder, as a walk does, gives what asking for the whole path gives. */
static void ask(const struct ignore *ig, char *path)
{
    size_t n = ignore_rules(ig) + 1;
    CB_AUTO_FREE uint8_t *above = cb_xcalloc(n, 1);
    CB_AUTO_FREE uint8_t *here = cb_xcalloc(n, 1);
    bool out = false;
    for (char *p = path;; p++) {
        if (*p && *p != '/')
            continue;
        char kept = *p;
        *p = '\0';
        out = ignore_match(ig, path, above, here);
        memcpy(above, here, n);
        *p = kept;
        if (!kept)
            break;
    }
    must(out == ignore_match_path(ig, path));
    must(!out || ignore_rules(ig) > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct ignore *ig = NULL;
    if (size > 8192)
        return 0;
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    size_t len = end ? (size_t)(end - data) : size;
    if (ignore_parse((const char *)data, len, "x", &ig, &err) < 0) {
        must(err.code == CB_E_CONFIG && err.msg && strncmp(err.msg, "x:", 2) == 0);
        return 0;
    }
    CB_AUTO_FREE char *names = cb_xcalloc(1, size - len + 1);
    if (end && size > len + 1)
        memcpy(names, end + 1, size - len - 1);
    char *save = NULL;
    for (char *p = strtok_r(names, "\n", &save); p; p = strtok_r(NULL, "\n", &save)) {
        CB_AUTO_FREE char *clean = path_clean(p);
        CB_AUTO_FREE char *again = path_clean(clean);
        must(strcmp(clean, again) == 0);
        ask(ig, clean);
    }
    ignore_free(ig);
    return 0;
}
