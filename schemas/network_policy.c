#include "schemas/network_policy.h"

#include "schemas/config_fields.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define RULES_MAX 1000u
#define PORTS_MAX 100u

static const char host_accepts[] = "a host such as example.com, *.example.com or 192.0.2.7";
static const char cidr_accepts[] = "a range of addresses such as 10.0.0.0/8 or 2001:db8::/32";
static const char port_accepts[] = "a port from 1 to 65535, or a range such as 8000-8100";

bool host_pattern_valid(const char *text)
{
    unsigned char address[16];
    if (strcmp(text, "*") == 0 || inet_pton(AF_INET6, text, address) == 1)
        return true;
    const char *p = strncmp(text, "*.", 2) == 0 ? text + 2 : text;
    if (strlen(text) > 253)
        return false;
    while (*p) {
        size_t n = 0;
        while (isalnum((unsigned char)p[n]) || p[n] == '-' || p[n] == '_')
            n++;
        if (n == 0 || n > 63 || p[0] == '-' || p[n - 1] == '-')
            return false;
        p += n;
        if (*p == '\0')
            return true;
        if (*p != '.')
            return false;
        p++;
    }
    return false; /* empty, or a dot at its end */
}

bool read_host(struct reader *r, const struct at *at, const struct doc_node *n,
               const struct field *f, void *to)
{
    const char *text = read_text(r, at, n, host_accepts);
    if (!text)
        return false;
    if (strstr(text, "://")) {
        read_problem(r, at, n, "expected %s, found a URL; give its host alone", host_accepts);
        return false;
    }
    if (!host_pattern_valid(text))
        return read_expected(r, at, n, host_accepts);
    return read_string(r, at, n, f, to);
}

bool read_hosts(struct reader *r, const struct at *at, const struct doc_node *n,
                const struct field *f, void *to)
{
    static const struct field host = {.max = 253};
    struct cb_strv *out = to;
    if (!read_strv(r, at, n, f, to))
        return false;
    for (size_t i = 0; i < out->n; i++) {
        const struct at here = {.up = at, .index = i};
        char *text = NULL;
        (void)read_host(r, &here, n->items[i], &host, &text);
        free(text);
    }
    return true;
}

static bool cidr_valid(const char *text)
{
    const char *slash = strchr(text, '/');
    size_t digits = slash ? strspn(slash + 1, "0123456789") : 0;
    if (!slash || digits == 0 || digits > 3 || slash[1 + digits] || (slash[1] == '0' && digits > 1))
        return false;
    unsigned char address[16];
    CB_AUTO_FREE char *left = cb_xstrndup(text, (size_t)(slash - text));
    unsigned bits = 0;
    for (const char *p = slash + 1; *p; p++)
        bits = bits * 10 + (unsigned)(*p - '0');
    return (inet_pton(AF_INET, left, address) == 1 && bits <= 32) ||
           (inet_pton(AF_INET6, left, address) == 1 && bits <= 128);
}

static bool read_cidr(struct reader *r, const struct at *at, const struct doc_node *n,
                      const struct field *f, void *to)
{
    const char *text = read_text(r, at, n, cidr_accepts);
    if (!text)
        return false;
    if (!cidr_valid(text))
        return read_expected(r, at, n, cidr_accepts);
    return read_string(r, at, n, f, to);
}

/* Digits at *@p as a port, 0 when there is none. */
static uint32_t port_at(const char **p)
{
    uint32_t v = 0;
    if (**p == '0')
        return 0;
    for (size_t i = 0; **p >= '0' && **p <= '9' && i < 6; i++, (*p)++)
        v = v * 10 + (uint32_t)(**p - '0');
    return v <= 65535 ? v : 0;
}

static bool read_port(struct reader *r, const struct at *at, const struct doc_node *n,
                      struct policy_ports *out)
{
    int64_t number;
    /* in JSON a port is a number, and a range a text */
    const char *text = doc_integer(n, &number) ? n->text : read_text(r, at, n, port_accepts);
    if (!text)
        return false;
    const char *p = text;
    uint32_t from = port_at(&p), to = from;
    if (*p == '-') {
        p++;
        to = port_at(&p);
    }
    if (*p || from == 0 || to == 0)
        return read_expected(r, at, n, port_accepts);
    if (to < from) {
        read_problem(r, at, n, "the range of ports %s ends before it begins", text);
        return false;
    }
    *out = (struct policy_ports){.from = (uint16_t)from, .to = (uint16_t)to};
    return true;
}

static bool read_ports(struct reader *r, const struct at *at, const struct doc_node *n,
                       const struct field *f, void *to)
{
    (void)f;
    struct policy_rule *rule = to;
    if (n->kind != DOC_LIST || n->n == 0 || n->n > PORTS_MAX)
        return read_expected(r, at, n, "a list of 1 to 100 ports such as [80, 443, 8000-8100]");
    rule->ports = cb_xcalloc(n->n, sizeof(*rule->ports));
    for (size_t i = 0; i < n->n; i++) {
        const struct at here = {.up = at, .index = i};
        if (read_port(r, &here, n->items[i], &rule->ports[rule->n_ports]))
            rule->n_ports++;
    }
    return true;
}

static bool read_action(struct reader *r, const struct at *at, const struct doc_node *n,
                        const struct field *f, void *to)
{
    static const char *const words[] = {"allow", "deny", NULL};
    static const struct word_meant meant[] = {
        {"accept", "allow"}, {"permit", "allow"}, {"block", "deny"}, {"drop", "deny"},
        {"reject", "deny"},  {"none", "deny"},    {"open", "allow"}, {NULL, NULL}};
    (void)f;
    size_t i = 0;
    if (!read_one_of(r, at, n, words, meant, &i))
        return false;
    *(enum policy_action *)to = i ? POLICY_DENY : POLICY_ALLOW;
    return true;
}

static bool read_protocol(struct reader *r, const struct at *at, const struct doc_node *n,
                          const struct field *f, void *to)
{
    static const char *const words[] = {"tcp", "udp", NULL};
    (void)f;
    size_t i = 0;
    if (!read_one_of(r, at, n, words, NULL, &i))
        return false;
    *(enum policy_protocol *)to = i ? POLICY_UDP : POLICY_TCP;
    return true;
}

#define AT(member) offsetof(struct policy_rule, member)

static const struct field rule_fields[] = {
    {.name = "host", .read = read_host, .offset = AT(host)},
    {.name = "cidr", .read = read_cidr, .offset = AT(cidr)},
    {.name = "ports", .read = read_ports},
    {.name = "protocol", .read = read_protocol, .offset = AT(protocol)},
    {.name = "action", .read = read_action, .offset = AT(action)},
    {.name = NULL},
};
#undef AT

static bool read_rules(struct reader *r, const struct at *at, const struct doc_node *n,
                       const struct field *f, void *to)
{
    (void)f;
    struct network_policy *p = to;
    if (n->kind == DOC_LIST && n->n > RULES_MAX) {
        read_problem(r, at, n, "more than %u rules", RULES_MAX);
        return false;
    }
    void *v = NULL;
    bool set = read_structs(r, at, n, rule_fields, "a list of rules such as [{host: example.com}]",
                            sizeof(struct policy_rule), SIZE_MAX, &v, &p->n_rules);
    p->rules = v;
    for (size_t i = 0; i < p->n_rules; i++) {
        const struct at here = {.up = at, .index = i};
        const struct doc_node *item = n->items[i];
        if (doc_child(item, "host") && doc_child(item, "cidr"))
            read_problem(r, &here, item, "either `host` or `cidr`, not both; make two rules");
        else if (item->kind == DOC_MAP && item->n == 0)
            read_problem(r, &here, item, "an empty rule; expected `host`, `cidr` or `ports`");
    }
    return set;
}

static const struct field policy_fields[] = {
    {.name = "default", .read = read_action, .offset = offsetof(struct network_policy, otherwise)},
    {.name = "egress", .read = read_rules},
    {.name = NULL},
};

void network_policy_release(struct network_policy *p)
{
    for (size_t i = 0; i < p->n_rules; i++) {
        free(p->rules[i].host);
        free(p->rules[i].cidr);
        free(p->rules[i].ports);
    }
    free(p->rules);
    *p = (struct network_policy){0};
}

bool read_network_policy(struct reader *r, const struct at *at, const struct doc_node *n,
                         const struct field *f, void *to)
{
    struct network_policy p = {0};
    bool ok = read_map(r, at, n, policy_fields, &p);
    network_policy_release(&p);
    return ok && read_object(r, at, n, f, to);
}

int network_policy_parse(const char *text, size_t len, const char *name, struct network_policy *out,
                         struct config_problems *problems, struct cb_error *err)
{
    struct doc d;
    struct network_policy p = {.otherwise = POLICY_UNSAID};
    if (doc_read(&d, text, len, name, CONFIG_AUTO, problems)) {
        struct reader r = {.doc = &d, .problems = problems};
        (void)read_map(&r, NULL, d.root, policy_fields, &p);
    }
    doc_release(&d);
    problems_sort(problems);
    int rc = problems_summary(problems, name ? name : "the network policy", err);
    if (rc < 0)
        network_policy_release(&p);
    else
        *out = p;
    return rc;
}

static bool names_hosts(const struct commands *l)
{
    for (size_t i = 0; i < l->n; i++)
        if (l->v[i].allowed_hosts.n)
            return true;
    return false;
}

bool config_without_network(const struct workload_config *c)
{
    if (!c->network_policy_preset || strcmp(c->network_policy_preset, "none") != 0 ||
        c->network_policy || c->task)
        return false;
    for (size_t i = 0; i < c->n_layers; i++) {
        const struct layer *l = &c->layers[i];
        if (names_hosts(&l->init_commands) || names_hosts(&l->refresh_commands))
            return false;
        for (size_t k = 0; k < l->n_drives; k++)
            if (names_hosts(&l->drives[k].commands))
                return false;
    }
    return true;
}
