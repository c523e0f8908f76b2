/* Which address was given for which name. */
#include "builder/gateway_loop.h"

#include <arpa/inet.h>
#include <string.h>

/* Programs keep an address beyond its time to live; one that was right minutes ago still counts. */
enum { GRACE_MS = 600 * 1000, TTL_MAX_S = 24 * 3600 };

static bool is_given(const struct loop *g, const struct given *n, uint32_t address)
{
    return n->until_ms > g->now_ms && n->address == address;
}

void names_give(struct loop *g, uint32_t address, const char *name, uint32_t ttl)
{
    struct given *to = &g->given[0]; /* the same, else a free one, else the one that ends first */
    for (size_t i = 0; i < NAMES_MAX; i++) {
        struct given *n = &g->given[i];
        if (n->until_ms && n->address == address && strcmp(n->name, name) == 0) {
            to = n;
            break;
        }
        if (n->until_ms < to->until_ms)
            to = n;
    }
    int64_t until = g->now_ms + GRACE_MS + (int64_t)(ttl < TTL_MAX_S ? ttl : TTL_MAX_S) * 1000;
    to->address = address;
    to->until_ms = until;
    memcpy(to->name, name, strlen(name) + 1);
}

bool names_vouch(const struct loop *g, uint32_t address, const char *name)
{
    for (size_t i = 0; i < NAMES_MAX; i++)
        if (is_given(g, &g->given[i], address) && strcmp(g->given[i].name, name) == 0)
            return true;
    return false;
}

static bool is_among(uint32_t address, const uint32_t *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (list[i] == address)
            return true;
    return false;
}

uint32_t names_other(const struct loop *g, uint32_t address, const uint32_t *tried, size_t n)
{
    for (size_t i = 0; i < NAMES_MAX; i++) {
        const struct given *a = &g->given[i];
        if (a->until_ms > g->now_ms && !is_among(a->address, tried, n) &&
            names_vouch(g, address, a->name))
            return a->address;
    }
    return 0;
}

bool names_is_proxy(const struct loop *g, uint32_t address, uint16_t port)
{
    const char *proxy = g->policy->proxy;
    const struct gateway_question q = {.protocol = POLICY_TCP,
                                       .address = address,
                                       .port = port,
                                       .name = proxy,
                                       .vouched = proxy && names_vouch(g, address, proxy)};
    return gateway_is_proxy(g->policy, &q);
}

static bool is_literal(const char *name)
{
    struct in_addr a;
    return inet_pton(AF_INET, name, &a) == 1;
}

enum gateway_verdict names_decide(struct loop *g, const char *claimed, struct gateway_question *q)
{
    if (claimed && *claimed && !is_literal(claimed)) {
        q->name = claimed;
        q->vouched = names_vouch(g, q->address, claimed);
        return gateway_decide(g->policy, q);
    }
    enum gateway_verdict first = GATEWAY_VERDICT_N;
    const char *name = NULL;
    for (size_t i = 0; i < NAMES_MAX; i++) {
        if (!is_given(g, &g->given[i], q->address))
            continue;
        q->name = g->given[i].name;
        q->vouched = true;
        enum gateway_verdict v = gateway_decide(g->policy, q);
        if (v == GATEWAY_ALLOWED)
            return v;
        if (first == GATEWAY_VERDICT_N) {
            first = v;
            name = q->name;
        }
    }
    q->name = NULL;
    q->vouched = false;
    enum gateway_verdict v = gateway_decide(g->policy, q);
    if (v != GATEWAY_ALLOWED && first != GATEWAY_VERDICT_N) {
        q->name = name;
        v = first;
    }
    return v;
}
