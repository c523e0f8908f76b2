/* An image's accounts: "SPEC NUL passwd NUL group". */
#include "builder/agent/agent.h"

#include <stdlib.h>
#include <string.h>

static const char *piece(char **p, const char *end)
{
    char *s = *p;
    *p += strlen(s);
    if (*p < end)
        ++*p;
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *copy = ag_strndup(data, size), *p = copy;
    const char *end = copy + size;
    const char *spec = piece(&p, end), *passwd = piece(&p, end), *group = piece(&p, end);
    struct ident who;
    struct fail f;
    if (ident_resolve(spec, passwd, group, &who, &f) == 0 &&
        (who.home[0] != '/' || who.n_groups > ARRAY_LEN(who.groups)))
        abort();
    free(copy);
    return 0;
}
