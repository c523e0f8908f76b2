#include "schemas/keys.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include "fuzz_check.h"
#include <jansson.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A command's text is kept byte by byte: nothing in it is expanded, trimmed or split. The same text
 * as an argument of a map is kept too, and is another command. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *text = json_stringn((const char *)data, size);
    if (!text)
        return 0; /* not UTF-8 */
    json_auto_t *root = json_pack("{s:s, s:[{s:s, s:[O, {s:[s, O]}]}]}", "base_image", "debian",
                                  "layers", "name", "a", "init_commands", text, "args", "p", text);
    must(root);
    CB_AUTO_FREE char *config = json_dumps(root, 0);
    struct workload_config *c = NULL;
    struct config_problems problems = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int rc = config_parse(config, strlen(config), "x", CONFIG_JSON, 0, &c, &problems, &err);
    if (rc < 0) { /* a NUL, nothing but white space, or too long */
        const char *t = json_string_value(text);
        must(memchr(data, '\0', size) || size > 131071 || t[strspn(t, " \t\r\n")] == '\0');
    } else {
        const struct commands *l = &c->layers[0].init_commands;
        must(l->n == 2 && l->v[0].script && !l->v[1].script && l->v[1].args.n == 2);
        must(strlen(l->v[0].script) == size && memcmp(l->v[0].script, data, size) == 0);
        must(strcmp(l->v[1].args.v[1], l->v[0].script) == 0);
        config_free(c);
    }
    config_problems_release(&problems);
    json_decref(text);
    return 0;
}
