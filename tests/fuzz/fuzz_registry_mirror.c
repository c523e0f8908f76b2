#include "schemas/settings.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include "fuzz_check.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A mirror that is accepted is an http or https URL without user, query or white space, for one
 * host. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_FREE char *text = cb_xmalloc(size + 1);
    if (size)
        memcpy(text, data, size);
    text[size] = '\0';
    struct settings *s = cb_xcalloc(1, sizeof(*s));
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int rc = settings_add_mirror(s, text, &err);
    must(rc == 0 || (rc == -CB_E_CONFIG && err.msg && s->n_registries == 0));
    if (rc == 0) {
        const struct registry_settings *r = &s->registries[0];
        must(s->n_registries == 1 && settings_find_registry(s, r->host) == r);
        must(strncmp(r->mirror, "http://", 7) == 0 || strncmp(r->mirror, "https://", 8) == 0);
        must(!strpbrk(r->mirror, "@?# \t\r\n") && !strpbrk(r->host, "/=@ \r\n"));
        CB_AUTO_FREE char *again = cb_xasprintf("%s=%s", r->host, r->mirror);
        rc = settings_add_mirror(s, again, &err);
        must(rc == 0 && s->n_registries == 1);
    }
    settings_free(s);
    return 0;
}
