/* Names: what may be asked for goes on to the resolver, and its addresses are remembered. */
#include "builder/gateway_loop.h"

#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

enum { PATIENCE_MS = 10000, TTL_MOST = 600 };

static void answer(struct loop *g, const struct asked *a, const uint8_t *p, size_t n)
{
    if (a->conn >= 0)
        tcp_answer(g, (size_t)a->conn, a->generation, p, n);
    else
        udp_send(g, &a->to, &a->from, p, n);
}

static void answer_code(struct loop *g, const struct asked *a, int code)
{
    uint8_t out[512];
    answer(g, a, out, dns_write_code(a->query, &a->question, code, out, sizeof(out)));
}

/* As if there were no such name: programs give up at once, and say so. */
static void refuse(struct loop *g, const struct asked *a, const char *host, enum gateway_verdict v)
{
    struct gateway_report r = {.event = GATEWAY_REFUSED_NAME, .verdict = v};
    memcpy(r.name, host, strlen(host) + 1);
    loop_report(g, &r);
    answer_code(g, a, DNS_NXDOMAIN);
}

static struct asked *free_slot(struct loop *g)
{
    struct asked *oldest = &g->asked[0];
    for (size_t i = 0; i < ASKED_MAX; i++) {
        if (!g->asked[i].used)
            return &g->asked[i];
        if (g->asked[i].since_ms < oldest->since_ms)
            oldest = &g->asked[i];
    }
    return oldest;
}

static uint16_t fresh_id(const struct loop *g)
{
    uint16_t id = 0;
    for (bool taken = true; taken;) {
        if (getrandom(&id, sizeof(id), 0) != sizeof(id))
            return id;
        taken = false;
        for (size_t i = 0; i < ASKED_MAX; i++)
            taken = taken || (g->asked[i].used && g->asked[i].id == id);
    }
    return id;
}

static void ask(struct loop *g, const struct asked *from)
{
    uint8_t out[DNS_MESSAGE_MAX];
    struct asked *a = free_slot(g);
    *a = *from;
    a->used = true;
    a->since_ms = g->now_ms;
    a->id = fresh_id(g);
    size_t n = dns_write_query(a->query, &a->question, a->id, out, sizeof(out));
    if (n == 0 || send(g->resolver, out, n, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        answer_code(g, a, DNS_SERVFAIL);
        a->used = false;
    }
}

/* A service is its host's: "_http._tcp.example.com" is judged as "example.com". */
static const char *of_service(const char *name)
{
    while (name[0] == '_' && strchr(name, '.'))
        name = strchr(name, '.') + 1;
    return name;
}

void resolve_query(struct loop *g, const uint8_t *query, size_t n, int conn,
                   const struct sockaddr_in *from, const struct sockaddr_in *to)
{
    struct asked a = {.conn = conn, .generation = conn >= 0 ? g->conns[conn].generation : 0};
    a.from = from ? *from : a.from;
    a.to = to ? *to : a.to;
    a.query_len = n < sizeof(a.query) ? n : sizeof(a.query); /* a name is shorter */
    memcpy(a.query, query, a.query_len);
    int code = dns_read_question(a.query, a.query_len, &a.question);
    if (code != 0) {
        if (code > 0)
            answer_code(g, &a, code);
        return;
    }
    const char *host = a.question.type == DNS_SRV ? of_service(a.question.name) : a.question.name;
    enum gateway_verdict v = gateway_decide_name(g->policy, host, NULL);
    if (v != GATEWAY_ALLOWED) {
        refuse(g, &a, host, v);
        return;
    }
    uint8_t out[512];
    switch (a.question.type) {
    case DNS_AAAA: /* there is no IPv6 inside; and these two would name other ways to a host */
    case DNS_SVCB:
    case DNS_HTTPS:
        answer(g, &a, out, dns_write_addresses(a.query, &a.question, NULL, 0, 0, out, sizeof(out)));
        return;
    case DNS_SRV: /* names other hosts, which no policy has; without an answer the host itself is
                   * taken
                   */
        if (g->open_policy)
            ask(g, &a);
        else
            answer_code(g, &a, DNS_NXDOMAIN);
        return;
    case DNS_ANY: answer_code(g, &a, DNS_NOTIMP); return;
    default: ask(g, &a);
    }
}

/* Addresses that may not be reached are not handed out: a name that is allowed does not lead to
 * this machine. */
static void answer_addresses(struct loop *g, const struct asked *a, struct dns_reply *r)
{
    uint8_t out[512];
    uint32_t give[DNS_ADDRESSES_MAX];
    enum gateway_verdict refused = GATEWAY_ALLOWED;
    size_t n = 0;
    for (size_t i = 0; i < r->n; i++) {
        enum gateway_verdict v = gateway_decide_name(g->policy, a->question.name, &r->addresses[i]);
        refused = v != GATEWAY_ALLOWED ? v : refused;
        if (v != GATEWAY_ALLOWED)
            continue;
        give[n++] = r->addresses[i];
        names_give(g, r->addresses[i], a->question.name, r->ttl);
    }
    uint32_t ttl = r->ttl < TTL_MOST ? r->ttl : TTL_MOST;
    if (refused != GATEWAY_ALLOWED && n == 0)
        refuse(g, a, a->question.name, refused);
    else if (r->code != DNS_NOERROR && n == 0)
        answer_code(g, a, r->code);
    else
        answer(g, a, out,
               dns_write_addresses(a->query, &a->question, give, n, ttl, out, sizeof(out)));
}

static void take_reply(struct loop *g, uint8_t *p, size_t n)
{
    struct asked *a = NULL;
    struct dns_reply r;
    for (size_t i = 0; n >= 2 && i < ASKED_MAX && !a; i++)
        if (g->asked[i].used && g->asked[i].id == (uint16_t)(p[0] << 8 | p[1]))
            a = &g->asked[i];
    if (!a || !dns_read_reply(p, n, a->id, &a->question, &r))
        return;
    a->used = false;
    if (a->question.type == DNS_A) {
        answer_addresses(g, a, &r);
        return;
    }
    p[0] = (uint8_t)(a->question.id >> 8); /* what names no address goes on as it came */
    p[1] = (uint8_t)a->question.id;
    answer(g, a, p, n);
}

void resolve_readable(struct loop *g)
{
    uint8_t p[DNS_MESSAGE_MAX];
    for (int i = 0; i < 64; i++) {
        ssize_t n = recv(g->resolver, p, sizeof(p), MSG_DONTWAIT);
        if (n < 0)
            return; /* also a refusal of the last question: its time will be over */
        take_reply(g, p, (size_t)n);
    }
}

bool resolve_tick(struct loop *g)
{
    bool some = false;
    for (size_t i = 0; i < ASKED_MAX; i++) {
        struct asked *a = &g->asked[i];
        if (a->used && g->now_ms - a->since_ms > PATIENCE_MS) {
            a->used = false;
            answer_code(g, a, DNS_SERVFAIL);
        }
        some = some || a->used;
    }
    return some;
}
