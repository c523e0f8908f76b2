#include "schemas/manifest.h"

#include "fuzz_check.h"
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is accepted can be written, and reading that gives the same text again. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    CB_AUTO_ERROR err = CB_ERROR_INIT, err2 = CB_ERROR_INIT;
    struct template_manifest *m = NULL, *back = NULL;
    if (template_manifest_parse(text, size, &m, &err) == 0) {
        char *once = template_manifest_dump(m);
        must(once && m->version > 0 && m->n_layers > 0);
        must(template_manifest_parse(once, strlen(once), &back, NULL) == 0);
        char *twice = template_manifest_dump(back);
        must(twice && strcmp(once, twice) == 0);
        free(once);
        free(twice);
        template_manifest_free(m);
        template_manifest_free(back);
    }
    struct cache_record r = {0}, again = {0};
    if (cache_record_parse(text, size, &r, &err2) == 0) {
        char *once = cache_record_dump(&r);
        must(once && cache_record_parse(once, strlen(once), &again, NULL) == 0);
        must(strcmp(r.inputs, again.inputs) == 0);
        free(once);
        cache_record_release(&r);
        cache_record_release(&again);
    }
    return 0;
}
