#include "schemas/keys.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include "fuzz_check.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A config that is accepted has a dump, and the dump reads as the same config with the same keys.
 * One that is not is explained. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"x.yaml", "x.json", "-", NULL};
    const char *name = names[size ? data[0] % 4 : 3];
    struct workload_config *c = NULL, *again = NULL;
    struct config_problems problems = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF said = CB_BUF_INIT(1u << 20);
    int rc = config_parse((const char *)data, size, name, CONFIG_AUTO, 0, &c, &problems, &err);
    config_problems_print(&problems, &said);
    must(!said.over);
    if (rc < 0) {
        must(rc == -CB_E_CONFIG && err.msg && problems.n_errors > 0 && said.len > 0);
        config_problems_release(&problems);
        return 0;
    }
    must(problems.n_errors == 0);
    CB_AUTO_FREE char *a = config_dump(c);
    rc = config_parse(a, strlen(a), "dump.json", CONFIG_JSON, CONFIG_NO_ENV, &again, &problems,
                      &err);
    if (rc < 0)
        fprintf(stderr, "%s\n%s\n", err.msg, a);
    must(rc == 0);
    CB_AUTO_FREE char *b = config_dump(again);
    must(strcmp(a, b) == 0);
    char ka[WORKLOAD_KEY_LEN + 1], kb[WORKLOAD_KEY_LEN + 1];
    keys_workload(c, ka);
    keys_workload(again, kb);
    must(strcmp(ka, kb) == 0);
    must(c->n_unsupported == again->n_unsupported);
    config_free(c);
    config_free(again);
    config_problems_release(&problems);
    return 0;
}
