#include "schemas/config.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include "fuzz_check.h"
#include <jansson.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct workload_config *with(const char *line, size_t len)
{
    json_auto_t *root = json_pack("{s:s, s:s%}", "base_image", "debian", "healthcheck", line, len);
    if (!root)
        return NULL; /* not UTF-8 */
    CB_AUTO_FREE char *config = json_dumps(root, 0);
    struct workload_config *c = NULL;
    struct config_problems problems = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int rc = config_parse(config, strlen(config), "x", CONFIG_JSON, 0, &c, &problems, &err);
    must(rc == 0 || (rc == -CB_E_CONFIG && problems.n_errors > 0 && !c));
    config_problems_release(&problems);
    return c;
}

/* What is accepted lies in its bounds, and the line that a dump makes of it means the same. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct workload_config *c = with((const char *)data, size);
    if (!c)
        return 0;
    const struct healthcheck *h = &c->healthcheck;
    must(h->present && *h->command && strncmp(h->command, "--", 2) != 0);
    must(h->interval_ms > 0 && h->timeout_ms > 0 && h->start_period_ms >= 0 && h->retries <= 1000);
    CB_AUTO_FREE char *line =
        cb_xasprintf("--interval=%lldms --timeout=%lldms --start-period=%lldms --retries=%u %s",
                     (long long)h->interval_ms, (long long)h->timeout_ms,
                     (long long)h->start_period_ms, h->retries, h->command);
    struct workload_config *again = with(line, strlen(line));
    if (again) {
        must(again->healthcheck.interval_ms == h->interval_ms);
        must(again->healthcheck.timeout_ms == h->timeout_ms);
        must(again->healthcheck.start_period_ms == h->start_period_ms);
        must(again->healthcheck.retries == h->retries);
        must(strcmp(again->healthcheck.command, h->command) == 0);
    } else {
        must(strlen(line) > 131071); /* only its own options made it too long */
    }
    config_free(c);
    config_free(again);
    return 0;
}
