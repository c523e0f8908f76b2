#include "schemas/network_policy.h"
#include "support/cleanup.h"

#include "fuzz_check.h"
#include <arpa/inet.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is accepted can be acted on: hosts are hosts, ranges are ranges, ports are in order. What is
 * not is explained. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct network_policy p = {0};
    struct config_problems problems = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int rc = network_policy_parse((const char *)data, size, "x", &p, &problems, &err);
    if (rc < 0) {
        must(rc == -CB_E_CONFIG && err.msg && problems.n_errors > 0 && !p.rules && !p.n_rules);
        config_problems_release(&problems);
        return 0;
    }
    must(problems.n_errors == 0 && p.n_rules <= 1000);
    for (size_t i = 0; i < p.n_rules; i++) {
        const struct policy_rule *r = &p.rules[i];
        must(!(r->host && r->cidr));
        must(!r->host || host_pattern_valid(r->host));
        if (r->cidr) {
            char address[64];
            unsigned char raw[16];
            size_t len = strcspn(r->cidr, "/");
            must(len < sizeof(address) && r->cidr[len] == '/');
            memcpy(address, r->cidr, len);
            address[len] = '\0';
            must(inet_pton(AF_INET, address, raw) == 1 || inet_pton(AF_INET6, address, raw) == 1);
        }
        for (size_t k = 0; k < r->n_ports; k++)
            must(r->ports[k].from > 0 && r->ports[k].from <= r->ports[k].to);
    }
    network_policy_release(&p);
    config_problems_release(&problems);
    return 0;
}
