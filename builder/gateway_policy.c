#include "builder/gateway_policy.h"

#include "builder/netns.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

bool gateway_forbidden(uint32_t address)
{
    static const struct {
        uint32_t net;
        unsigned bits;
    } nets[] = {
        {0x00000000, 8},  /* "this network": 0.0.0.0 is the loopback to Linux */
        {0x7f000000, 8},  /* loopback */
        {0xa9fe0000, 16}, /* link-local: metadata services */
        {NETNS_AZURE, 32}, {NETNS_ALIBABA, 32},
        {0x0a000200, 24}, /* slirp4netns' own: its gateway stands for this machine */
        {0xe0000000, 3},  /* multicast, reserved, broadcast */
    };
    for (size_t i = 0; i < sizeof(nets) / sizeof(nets[0]); i++)
        if (((address ^ nets[i].net) >> (32 - nets[i].bits)) == 0)
            return true;
    return false;
}

bool gateway_host_name(const char *text, size_t len, char out[HOST_NAME_MAX_LEN + 1])
{
    out[0] = '\0';
    if (len && text[len - 1] == '.')
        len--;
    if (len == 0 || len > HOST_NAME_MAX_LEN || text[len - 1] == '.')
        return false;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        bool dot = c == '.' && i > 0 && text[i - 1] != '.';
        if (!dot && c != '-' && c != '_' && !(c < 128 && isalnum(c))) {
            out[0] = '\0';
            return false;
        }
        out[i] = (char)(c >= 'A' && c <= 'Z' ? c + 32 : c);
    }
    out[len] = '\0';
    return true;
}

static bool is_address(const char *text, uint32_t address)
{
    struct in_addr a;
    return inet_pton(AF_INET, text, &a) == 1 && ntohl(a.s_addr) == address;
}

/* "example.com", "*.example.com" (below it, not itself), "*". */
static bool pattern_fits(const char *pattern, const char *name)
{
    if (strcmp(pattern, "*") == 0)
        return true;
    if (!name)
        return false;
    if (strncmp(pattern, "*.", 2) != 0)
        return strcasecmp(pattern, name) == 0;
    size_t below = strlen(pattern + 1), len = strlen(name);
    return len > below && strcasecmp(pattern + 1, name + len - below) == 0;
}

enum fit { FITS_NOT, FITS_UNVOUCHED, FITS };

/* An address needs nobody to vouch for it where the pattern is the address itself, or "*". */
static enum fit host_fits(const char *pattern, const struct gateway_question *q)
{
    if (strcmp(pattern, "*") == 0 || (!q->no_address && is_address(pattern, q->address)))
        return FITS;
    if (!pattern_fits(pattern, q->name))
        return FITS_NOT;
    return q->vouched ? FITS : FITS_UNVOUCHED;
}

static enum fit any_host_fits(const struct cb_strv *hosts, const struct gateway_question *q)
{
    enum fit best = FITS_NOT;
    for (size_t i = 0; hosts && i < hosts->n && best != FITS; i++) {
        enum fit f = host_fits(hosts->v[i], q);
        best = f > best ? f : best;
    }
    return best;
}

static bool cidr_fits(const char *cidr, uint32_t address)
{
    char text[INET_ADDRSTRLEN];
    const char *slash = strchr(cidr, '/');
    size_t len = slash ? (size_t)(slash - cidr) : sizeof(text);
    struct in_addr net;
    if (len >= sizeof(text))
        return false;
    memcpy(text, cidr, len);
    text[len] = '\0';
    unsigned long bits = strtoul(slash + 1, NULL, 10);
    if (inet_pton(AF_INET, text, &net) != 1 || bits > 32)
        return false; /* IPv6: there is none in a build */
    return bits == 0 || ((address ^ ntohl(net.s_addr)) >> (32 - bits)) == 0;
}

static bool port_fits(const struct policy_rule *r, enum policy_protocol protocol, uint16_t port)
{
    if (r->protocol != POLICY_ANY && r->protocol != protocol)
        return false;
    bool fits = r->n_ports == 0;
    for (size_t i = 0; i < r->n_ports && !fits; i++)
        fits = port >= r->ports[i].from && port <= r->ports[i].to;
    return fits;
}

static enum fit rule_fits(const struct policy_rule *r, const struct gateway_question *q)
{
    if (!port_fits(r, q->protocol, q->port))
        return FITS_NOT;
    if (r->cidr)
        return !q->no_address && cidr_fits(r->cidr, q->address) ? FITS : FITS_NOT;
    if (!r->host)
        return FITS;
    enum fit f = host_fits(r->host, q);
    /* what calls itself by a name that is denied is denied, whatever its address */
    return f == FITS_UNVOUCHED && r->action == POLICY_DENY ? FITS : f;
}

static enum policy_action said(const struct network_policy *n)
{
    return n ? n->otherwise : POLICY_UNSAID;
}

/* What holds where no rule fits. */
static enum gateway_verdict otherwise(const struct gateway_policy *p,
                                      const struct gateway_question *q)
{
    enum fit f;
    switch (said(p->rules)) {
    case POLICY_ALLOW: return GATEWAY_ALLOWED;
    case POLICY_DENY: return REFUSED_BY_RULES;
    case POLICY_UNSAID: break;
    }
    switch (p->preset) {
    case PRESET_OPEN: return GATEWAY_ALLOWED;
    case PRESET_NONE: return REFUSED_BY_PRESET;
    case PRESET_PACKAGES: break;
    }
    f = any_host_fits(p->packages, q);
    return f == FITS ? GATEWAY_ALLOWED : f == FITS_UNVOUCHED ? REFUSED_ADDRESS : REFUSED_BY_PRESET;
}

bool gateway_is_proxy(const struct gateway_policy *p, const struct gateway_question *q)
{
    if (!p->proxy || q->protocol != POLICY_TCP || q->port != p->proxy_port)
        return false;
    return host_fits(p->proxy, q) == FITS;
}

enum gateway_verdict gateway_decide(const struct gateway_policy *p,
                                    const struct gateway_question *q)
{
    if (!q->no_address && gateway_forbidden(q->address))
        return REFUSED_ALWAYS;
    if (!q->no_address && gateway_is_proxy(p, q))
        return GATEWAY_ALLOWED;
    bool unvouched = false, decided = false;
    for (size_t i = 0; p->rules && i < p->rules->n_rules && !decided; i++) {
        const struct policy_rule *r = &p->rules->rules[i];
        enum fit f = rule_fits(r, q);
        unvouched = unvouched || f == FITS_UNVOUCHED;
        decided = f == FITS;
        if (decided && r->action == POLICY_DENY)
            return REFUSED_BY_RULES;
    }
    if (p->only) { /* it allows what rules do not; what they deny stays denied */
        enum fit f = any_host_fits(p->only, q);
        return f == FITS             ? GATEWAY_ALLOWED
               : f == FITS_UNVOUCHED ? REFUSED_ADDRESS
                                     : REFUSED_BY_COMMAND;
    }
    enum gateway_verdict v = decided ? GATEWAY_ALLOWED : otherwise(p, q);
    return v != GATEWAY_ALLOWED && unvouched ? REFUSED_ADDRESS : v;
}

/* Does the rule hold for the name on some port? One that denies must hold for all of it. */
static bool fits_name(const struct policy_rule *r, const char *name, const uint32_t *address)
{
    bool denies = r->action == POLICY_DENY;
    if (denies && (r->n_ports || r->protocol != POLICY_ANY))
        return false;
    if (r->cidr)
        return address ? cidr_fits(r->cidr, *address) : !denies;
    return !r->host || pattern_fits(r->host, name) || (address && is_address(r->host, *address));
}

enum gateway_verdict gateway_decide_name(const struct gateway_policy *p, const char *name,
                                         const uint32_t *address)
{
    const struct policy_rule *rule = NULL;
    if (address && gateway_forbidden(*address))
        return REFUSED_ALWAYS;
    if (p->proxy && strcasecmp(p->proxy, name) == 0)
        return GATEWAY_ALLOWED;
    for (size_t i = 0; p->rules && i < p->rules->n_rules && !rule; i++)
        rule = fits_name(&p->rules->rules[i], name, address) ? &p->rules->rules[i] : NULL;
    if (rule && rule->action == POLICY_DENY)
        return REFUSED_BY_RULES;
    const struct gateway_question q = {.protocol = POLICY_TCP,
                                       .address = address ? *address : 0,
                                       .name = name,
                                       .vouched = true,
                                       .no_address = !address};
    if (p->only)
        return any_host_fits(p->only, &q) == FITS ? GATEWAY_ALLOWED : REFUSED_BY_COMMAND;
    return rule ? GATEWAY_ALLOWED : otherwise(p, &q);
}

bool gateway_policy_open(const struct gateway_policy *p)
{
    bool rules = p->rules && (p->rules->n_rules || p->rules->otherwise == POLICY_DENY);
    bool said_allow = said(p->rules) == POLICY_ALLOW;
    return !rules && !p->only && (p->preset == PRESET_OPEN || said_allow);
}
