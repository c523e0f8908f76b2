#include "builder/gateway_peek.h"

#include "fuzz_check.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A name that is given out is a host's name, and what is decided is not decided otherwise when more
 * bytes come. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct peeked all, part;
    gateway_peek(data, size, &all);
    char name[HOST_NAME_MAX_LEN + 1];
    size_t len = strnlen(all.name, sizeof(all.name));
    must(len < sizeof(all.name));
    must(len == 0 || (gateway_host_name(all.name, len, name) && strcmp(name, all.name) == 0));
    must(all.kind != PEEK_PROXY || len);
    must(all.kind != PEEK_MORE || size < PEEK_MAX);
    for (size_t n = 0; n < size && n < 64; n++) {
        gateway_peek(data, size - 1 - n, &part);
        if (part.kind == PEEK_MORE || part.kind == PEEK_BROKEN || part.kind == PEEK_OTHER)
            continue;
        must(part.kind == all.kind && strcmp(part.name, all.name) == 0 &&
             part.length == all.length);
    }
    return 0;
}
