#include "layers/registry.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include "fuzz_check.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What a Bearer challenge is good for is a realm to ask; nothing in it may end a line. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_FREE char *text = cb_xmalloc(size + 1);
    if (size)
        memcpy(text, data, size);
    text[size] = '\0';
    struct auth_challenge c = {0};
    if (!auth_challenge_parse(text, &c))
        return 0;
    must(!c.bearer || c.realm);
    const char *const values[] = {c.realm, c.service, c.scope, c.error};
    for (size_t i = 0; i < 4; i++)
        must(!values[i] || !strpbrk(values[i], "\r\n"));
    auth_challenge_release(&c);
    return 0;
}
