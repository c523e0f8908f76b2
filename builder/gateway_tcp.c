/* Connections: judged by address when they come and by what the client says first, then relayed. */
#include "builder/gateway_loop.h"
#include "support/cleanup.h"

#include <arpa/inet.h>
#include <linux/netfilter_ipv4.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { ROUNDS = 8, DNS_PORT = 53 };

/* ---- the end of a connection ---- */

/* Closes with a reset: the other side learns at once, and nothing lingers. */
static void reset(int *fd)
{
    struct linger at_once = {.l_onoff = 1};
    if (*fd >= 0)
        (void)setsockopt(*fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    cb_close(cb_take_fd(fd));
}

static void report(struct loop *g, struct conn *c, enum gateway_verdict v, const char *name)
{
    struct gateway_report r = {.event = v == GATEWAY_ALLOWED ? GATEWAY_CONTACT : GATEWAY_REFUSED,
                               .verdict = v,
                               .protocol = POLICY_TCP,
                               .address = c->address,
                               .port = c->port};
    if (c->peeked.kind == PEEK_PROXY && c->peeked.name[0]) {
        name = c->peeked.name;
        r.port = c->peeked.port;
        r.address = 0; /* the proxy's business */
    }
    if (name)
        memcpy(r.name, name, strlen(name) + 1);
    if (v != GATEWAY_ALLOWED || !c->reported)
        loop_report(g, &r);
    c->reported = true;
}

/* One that was let through and closed before its client had said anything is one still. */
static void note_contact(struct loop *g, struct conn *c)
{
    struct gateway_question q = {.protocol = POLICY_TCP, .address = c->address, .port = c->port};
    if (c->reported || c->state == CONN_DNS)
        return;
    if (names_decide(g, NULL, &q) == GATEWAY_ALLOWED)
        report(g, c, GATEWAY_ALLOWED, q.name);
}

static void drop(struct conn *c)
{
    reset(&c->client);
    reset(&c->server);
    c->state = CONN_DEAD;
}

void tcp_sweep(struct loop *g)
{
    bool room = false;
    for (size_t i = 0; i < g->n_conns; i++) {
        if (g->conns[i].state == CONN_DEAD)
            g->conns[i].state = CONN_FREE;
        room = room || g->conns[i].state == CONN_FREE;
    }
    if (room != g->listening) {
        loop_watch(g, EPOLL_CTL_MOD, g->listener, room ? EPOLLIN : 0, IO_LISTENER, 0);
        g->listening = room;
    }
}

/* ---- one direction ---- */

/* False when the connection is broken. */
static bool fill(struct stream *s, int fd, bool *moved)
{
    if (s->eof || s->len == BUFFER)
        return true;
    if (s->at && s->at + s->len == BUFFER) {
        memmove(s->data, s->data + s->at, s->len);
        s->at = 0;
    }
    ssize_t n = recv(fd, s->data + s->at + s->len, BUFFER - s->at - s->len, MSG_DONTWAIT);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    s->eof = n == 0;
    s->len += (uint32_t)n;
    *moved = true;
    return true;
}

/* Sends at most *@left, unless that is PEEK_ALL. */
static bool flush(struct stream *s, int fd, uint64_t *left, bool *moved)
{
    while (s->len && *left) {
        size_t most = s->len < *left ? s->len : (size_t)*left;
        ssize_t n = send(fd, s->data + s->at, most, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        s->at += (uint32_t)n;
        s->len -= (uint32_t)n;
        *left -= *left == PEEK_ALL ? 0 : (uint64_t)n;
        *moved = true;
    }
    if (s->len)
        return true;
    s->at = 0;
    if (s->eof && !s->shut) {
        s->shut = true;
        *moved = true;
        (void)shutdown(fd, SHUT_WR);
    }
    return true;
}

/* Nothing is waited for by taking the socket out: epoll reports its hang-up whatever is asked. */
static void watch_one(struct loop *g, int fd, uint32_t *have, uint32_t want, enum io_kind kind,
                      size_t index)
{
    int op = !want ? EPOLL_CTL_DEL : *have ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (fd >= 0 && want != *have)
        loop_watch(g, op, fd, want, kind, index);
    *have = want;
}

static void watch_both(struct loop *g, struct conn *c)
{
    size_t index = (size_t)(c - g->conns);
    bool up = c->state == CONN_OPEN && !c->connecting && c->up.len && c->left;
    uint32_t client =
        (c->up.eof || c->up.len == BUFFER ? 0u : EPOLLIN) | (c->down.len ? (uint32_t)EPOLLOUT : 0u);
    uint32_t server = (c->connecting || up ? (uint32_t)EPOLLOUT : 0u) |
                      (c->down.eof || c->down.len == BUFFER ? 0u : EPOLLIN);
    watch_one(g, c->client, &c->client_events, client, IO_CLIENT, index);
    watch_one(g, c->server, &c->server_events, server, IO_SERVER, index);
}

/* ---- what the client says first ---- */

/* A request that a proxy carries on is judged by the name that it asks the proxy for. */
static enum gateway_verdict judge_proxied(const struct loop *g, const struct conn *c)
{
    struct in_addr a;
    struct gateway_question q = {.protocol = POLICY_TCP,
                                 .port = c->peeked.port,
                                 .name = c->peeked.name,
                                 .vouched = true,
                                 .no_address = true};
    if (c->peeked.kind != PEEK_PROXY)
        return REFUSED_UNREADABLE;
    if (!c->peeked.tunnel && c->peeked.length == PEEK_ALL)
        return REFUSED_UNREADABLE; /* the next request could not be told from this one's body */
    if (c->peeked.tunnel && c->carried)
        return REFUSED_UNREADABLE; /* nor the answer to this one from that to the last */
    if (inet_pton(AF_INET, q.name, &a) == 1) {
        q.address = ntohl(a.s_addr);
        q.no_address = false;
    }
    return gateway_decide(g->policy, &q);
}

static enum gateway_verdict judge(struct loop *g, const struct conn *c, const char **name)
{
    struct gateway_question q = {.protocol = POLICY_TCP, .address = c->address, .port = c->port};
    bool own = c->peeked.kind == PEEK_TLS || c->peeked.kind == PEEK_HTTP;
    enum gateway_verdict v = names_decide(g, own ? c->peeked.name : NULL, &q);
    *name = q.name;
    if (v != GATEWAY_ALLOWED || g->open_policy || c->peeked.kind == PEEK_MORE)
        return v;
    if (c->proxy || c->peeked.kind == PEEK_PROXY)
        return judge_proxied(g, c);
    return c->peeked.kind == PEEK_BROKEN ? REFUSED_UNREADABLE : v;
}

/* Who was contacted is not what a client says it is: a name counts where the gateway gave this
 * address for it, or where the proxy of the settings looks for it. */
static void report_allowed(struct loop *g, struct conn *c, const char *name)
{
    struct gateway_question q = {.protocol = POLICY_TCP, .address = c->address, .port = c->port};
    struct gateway_report r = {.event = GATEWAY_CONTACT, .protocol = POLICY_TCP};
    bool named = name && names_vouch(g, c->address, name);
    if (!named && names_decide(g, NULL, &q) == GATEWAY_ALLOWED)
        name = q.name;
    if (c->peeked.kind == PEEK_PROXY && !c->proxy) {
        r.address = c->address;
        r.port = c->port;
        if (name)
            memcpy(r.name, name, strlen(name) + 1);
        loop_report(g, &r);
    }
    report(g, c, GATEWAY_ALLOWED, name);
}

/* Judges what is at the front of the stream, if it is enough for that. */
static void greet(struct loop *g, struct conn *c)
{
    const char *name;
    gateway_peek(c->up.data + c->up.at, c->up.len, &c->peeked);
    if (c->peeked.kind == PEEK_MORE) {
        if (!c->up.eof && !g->open_policy)
            return;
        c->peeked.kind = PEEK_OTHER; /* it said all it had to say, or all that is waited for */
    }
    enum gateway_verdict v = judge(g, c, &name);
    if (v != GATEWAY_ALLOWED) {
        report(g, c, v, name);
        drop(c);
        return;
    }
    report_allowed(g, c, name);
    c->state = CONN_OPEN;
    c->left = g->open_policy ? PEEK_ALL : c->peeked.length;
    c->asked = !g->open_policy && c->peeked.tunnel;
    c->carried = c->carried || !c->peeked.tunnel;
    c->n_heard = 0;
}

/* What the server said, when it was asked for a tunnel. Only when there is one is what follows not
 * for the proxy: to one that refused, the next request on the connection is one as well. */
static void hear(struct conn *c, const uint8_t *p, size_t n)
{
    while (n && c->n_heard < ANSWER_HEAD) {
        c->heard[c->n_heard++] = (char)*p++;
        n--;
    }
    if (c->n_heard < ANSWER_HEAD)
        return;
    c->asked = false;
    if (memcmp(c->heard, "HTTP/1.", 7) == 0 && memcmp(c->heard + 8, " 2", 2) == 0)
        c->left = c->peeked.length = PEEK_ALL;
}

/* False when the server's side is broken. */
static bool hear_out(struct conn *c, bool *moved)
{
    uint32_t had = c->down.len;
    if (!fill(&c->down, c->server, moved))
        return false;
    if (c->asked)
        hear(c, c->down.data + c->down.at + had, c->down.len - had);
    return true;
}

/* Moves what can be moved. */
static void relay(struct loop *g, struct conn *c)
{
    uint64_t all = PEEK_ALL;
    bool moved = true;
    for (int i = 0; i < ROUNDS && moved && c->state != CONN_DEAD; i++) {
        moved = false;
        bool ok = fill(&c->up, c->client, &moved);
        if (ok && c->state == CONN_OPEN && !c->left && !c->asked && c->up.len) {
            c->state = CONN_GREETING; /* the next request on this connection, to any host */
            c->reported = false;
        }
        if (ok && c->state == CONN_GREETING && (c->up.len || c->up.eof))
            greet(g, c);
        if (c->state == CONN_DEAD)
            return;
        if (ok && !c->connecting) {
            ok = hear_out(c, &moved) && flush(&c->down, c->client, &all, &moved);
            if (ok && c->state == CONN_OPEN)
                ok = flush(&c->up, c->server, &c->left, &moved);
        }
        if (!ok) {
            note_contact(g, c);
            drop(c);
            return;
        }
    }
    /* a socket with both directions at their end would be reported for ever */
    if (c->up.eof && c->down.shut)
        cb_close(cb_take_fd(&c->client));
    if (c->down.eof && c->up.shut)
        cb_close(cb_take_fd(&c->server));
    if (c->up.shut && c->down.shut)
        c->state = CONN_DEAD;
}

/* ---- questions over TCP ---- */

static void read_questions(struct loop *g, struct conn *c)
{
    size_t index = (size_t)(c - g->conns);
    uint64_t all = PEEK_ALL;
    bool moved = true;
    for (int i = 0; i < ROUNDS && moved && c->state == CONN_DNS; i++) {
        moved = false;
        if (!fill(&c->up, c->client, &moved) || c->up.eof ||
            !flush(&c->down, c->client, &all, &moved)) {
            drop(c);
            return;
        }
        while (c->state == CONN_DNS && c->up.len >= 2) {
            const uint8_t *p = c->up.data + c->up.at;
            uint32_t n = (uint32_t)p[0] << 8 | p[1];
            if (n > DNS_MESSAGE_MAX) {
                drop(c);
                return;
            }
            if (c->up.len < n + 2)
                break;
            c->up.at += n + 2;
            c->up.len -= n + 2;
            resolve_query(g, p + 2, n, (int)index, NULL, NULL);
            moved = true;
        }
    }
}

void tcp_answer(struct loop *g, size_t index, uint32_t generation, const uint8_t *p, size_t n)
{
    struct conn *c = &g->conns[index];
    struct stream *s = &c->down;
    if (c->state != CONN_DNS || c->generation != generation || n > UINT16_MAX)
        return;
    memmove(s->data, s->data + s->at, s->len);
    s->at = 0;
    if (BUFFER - s->len < n + 2) { /* it asks and does not read */
        drop(c);
        return;
    }
    s->data[s->len] = (uint8_t)(n >> 8);
    s->data[s->len + 1] = (uint8_t)n;
    memcpy(s->data + s->len + 2, p, n);
    s->len += (uint32_t)n + 2;
    bool moved;
    uint64_t all = PEEK_ALL;
    if (flush(s, c->client, &all, &moved))
        watch_both(g, c);
    else
        drop(c);
}

/* ---- the beginning ---- */

static struct conn *free_conn(struct loop *g)
{
    for (size_t i = 0; i < g->n_conns; i++)
        if (g->conns[i].state == CONN_FREE)
            return &g->conns[i];
    return NULL;
}

/* Everything but the buffers' bytes. */
static void begin(struct conn *c, int client, const struct sockaddr_in *to)
{
    c->client = client;
    c->server = -1;
    c->connecting = c->reported = c->proxy = false;
    c->address = ntohl(to->sin_addr.s_addr);
    c->port = ntohs(to->sin_port);
    c->generation++;
    c->client_events = EPOLLIN;
    c->server_events = 0;
    c->peeked = (struct peeked){.kind = PEEK_MORE};
    c->asked = c->carried = false;
    c->left = 0;
    c->n_tried = 0;
    c->up.at = c->up.len = c->down.at = c->down.len = 0;
    c->up.eof = c->up.shut = c->down.eof = c->down.shut = false;
}

static bool open_server(struct conn *c)
{
    const struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(c->address), .sin_port = htons(c->port)};
    c->server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->server < 0)
        return false;
    c->connecting = true;
    c->server_events = EPOLLOUT;
    return connect(c->server, (const struct sockaddr *)&to, sizeof(to)) == 0 ||
           errno == EINPROGRESS;
}

/* Only what some greeting could still make right is connected. */
static bool connect_on(struct loop *g, struct conn *c)
{
    struct gateway_question q = {.protocol = POLICY_TCP, .address = c->address, .port = c->port};
    enum gateway_verdict v = names_decide(g, NULL, &q);
    if (v != GATEWAY_ALLOWED) {
        report(g, c, v, q.name);
        return false;
    }
    c->proxy = names_is_proxy(g, c->address, c->port);
    return open_server(c);
}

/* The client is connected already and will not try the next address of a name that has several; so
 * that is done here. False when there is none that may be reached. */
static bool connect_elsewhere(struct loop *g, struct conn *c)
{
    while (c->n_tried < TRIED_MAX) {
        c->tried[c->n_tried++] = c->address;
        uint32_t next = names_other(g, c->tried[0], c->tried, c->n_tried);
        struct gateway_question q = {.protocol = POLICY_TCP, .address = next, .port = c->port};
        if (!next)
            return false;
        c->address = next;
        c->proxy = names_is_proxy(g, next, c->port);
        cb_close(cb_take_fd(&c->server));
        if (names_decide(g, NULL, &q) != GATEWAY_ALLOWED || !open_server(c))
            continue;
        loop_watch(g, EPOLL_CTL_ADD, c->server, EPOLLOUT, IO_SERVER, (size_t)(c - g->conns));
        return true;
    }
    return false;
}

void tcp_accept(struct loop *g)
{
    for (int i = 0; i < 64; i++) {
        struct sockaddr_in to = {0};
        socklen_t len = sizeof(to);
        struct conn *c = free_conn(g);
        int fd = c ? accept4(g->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;
        if (fd < 0)
            return; /* the backlog waits for a free connection */
        if (getsockopt(fd, SOL_IP, SO_ORIGINAL_DST, &to, &len) < 0) {
            reset(&fd);
            continue;
        }
        begin(c, fd, &to);
        c->state = c->port == DNS_PORT ? CONN_DNS : CONN_GREETING;
        if (c->state == CONN_GREETING && !connect_on(g, c)) {
            drop(c);
            continue;
        }
        size_t index = (size_t)(c - g->conns);
        loop_watch(g, EPOLL_CTL_ADD, c->client, EPOLLIN, IO_CLIENT, index);
        if (c->server >= 0)
            loop_watch(g, EPOLL_CTL_ADD, c->server, EPOLLOUT, IO_SERVER, index);
    }
}

/* False when it could not be made. */
static bool connected(struct conn *c)
{
    int sys = 0;
    socklen_t len = sizeof(sys);
    if (getsockopt(c->server, SOL_SOCKET, SO_ERROR, &sys, &len) < 0 || sys)
        return false;
    c->connecting = false;
    return true;
}

void tcp_event(struct loop *g, size_t index, bool client, uint32_t events)
{
    struct conn *c = &g->conns[index];
    if (c->state == CONN_FREE || c->state == CONN_DEAD)
        return;
    bool made = client || !c->connecting || connected(c);
    if (!made && connect_elsewhere(g, c))
        return;
    bool broken = events & EPOLLERR && (client || c->down.len == BUFFER);
    if (!made || broken) { /* what a server said before it broke is read first */
        note_contact(g, c);
        drop(c);
        return;
    }
    if (c->state == CONN_DNS)
        read_questions(g, c);
    else
        relay(g, c);
    if (c->state != CONN_DEAD)
        watch_both(g, c);
}

void tcp_judge_again(struct loop *g)
{
    for (size_t i = 0; i < g->n_conns; i++) {
        struct conn *c = &g->conns[i];
        const char *name;
        if (c->state != CONN_OPEN && c->state != CONN_GREETING)
            continue;
        bool requests = c->left == PEEK_ALL && c->peeked.length != PEEK_ALL;
        enum gateway_verdict v = judge(g, c, &name);
        if (v != GATEWAY_ALLOWED)
            report(g, c, v, name);
        if (v != GATEWAY_ALLOWED || (requests && !g->open_policy)) /* nobody counted them */
            drop(c);
    }
}
