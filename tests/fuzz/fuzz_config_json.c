#include "schemas/doc.h"

#include "fuzz_check.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Numbers aside: jansson rounds and limits them, we keep their text. */
static bool same(json_t *a, json_t *b)
{
    if (json_is_number(a) && (json_is_number(b) || json_is_string(b)))
        return true;
    if (json_typeof(a) != json_typeof(b))
        return false;
    if (json_is_string(a))
        return strcmp(json_string_value(a), json_string_value(b)) == 0;
    if (json_is_array(a)) {
        bool ok = json_array_size(a) == json_array_size(b);
        for (size_t i = 0; ok && i < json_array_size(a); i++)
            ok = same(json_array_get(a, i), json_array_get(b, i));
        return ok;
    }
    if (json_is_object(a)) {
        bool ok = json_object_size(a) == json_object_size(b);
        const char *key;
        json_t *value;
        json_object_foreach(a, key, value)
        {
            json_t *other = json_object_get(b, key);
            ok = ok && other && same(value, other);
        }
        return ok;
    }
    return true;
}

/* Our reader, which knows places, and jansson agree on what is JSON and on what it says. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    if (size >= 2 && data[0] >= 0xef)
        return 0; /* a byte order mark: ours takes it */
    if (size && memchr(data, '\0', size))
        return 0; /* jansson takes a NUL for the end */
    struct doc d;
    struct config_problems problems = {0};
    bool ours = doc_read(&d, text, size, "x", CONFIG_JSON, &problems) && problems.n_errors == 0;
    bool limit = false;
    for (size_t i = 0; i < problems.n; i++)
        limit = limit || strstr(problems.v[i].msg, "more than 32 levels") ||
                strstr(problems.v[i].msg, "the document grows") ||
                strstr(problems.v[i].msg, "1 MiB");
    json_error_t je = {0};
    json_auto_t *theirs = json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &je);
    if (ours && !theirs)
        must(json_error_code(&je) == json_error_numeric_overflow);
    if (!ours && theirs)
        must(limit);
    if (ours && theirs) {
        json_auto_t *read = doc_to_json(d.root);
        must(read && same(theirs, read));
    }
    doc_release(&d);
    config_problems_release(&problems);
    return 0;
}
