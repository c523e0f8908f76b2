/* network_policy: which hosts a build may talk to, as `config.network_policy` says it:
 *
 *     default: deny
 *     egress:
 *       - {host: "*.debian.org", ports: [80, 443]}
 *       - {cidr: 10.0.0.0/8, ports: [8000-8100], protocol: tcp, action: deny}
 *
 * The first rule that fits decides, `default` when none does. Rules without `action` allow; without
 * `ports` or `protocol` they hold for all of them; without `host` and `cidr` for every address. */
#pragma once

#include "schemas/config.h"

enum policy_action { POLICY_ALLOW, POLICY_DENY, POLICY_UNSAID };
enum policy_protocol { POLICY_ANY, POLICY_TCP, POLICY_UDP };

struct policy_ports {
    uint16_t from, to;
};

struct policy_rule {
    enum policy_action action;
    enum policy_protocol protocol;
    char *host; /* "example.com", "*.example.com" (below it, not itself), "*"; or NULL */
    char *cidr; /* "10.0.0.0/8", "2001:db8::/32"; or NULL */
    struct policy_ports *ports;
    size_t n_ports; /* 0: every port */
};

struct network_policy {
    enum policy_action otherwise; /* `default`; POLICY_UNSAID: allow, or what a preset says */
    struct policy_rule *rules;
    size_t n_rules;
};

/* Reads @text: YAML or JSON, such as workload_config.network_policy. Problems as config_parse()
 * gives them. */
int network_policy_parse(const char *text, size_t len, const char *name, struct network_policy *out,
                         struct config_problems *problems, struct cb_error *err);
void network_policy_release(struct network_policy *p);

/* A host, or "*." and a host, or "*", or an IP address: what `allowed_hosts` takes. */
bool host_pattern_valid(const char *text);
