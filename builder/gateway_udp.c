/* Datagrams: what the build sends that is no TCP comes out of a tunnel as IPv4 packets. Questions
 * for names are answered whomever they are sent to; other datagrams are relayed when they are
 * allowed, and else refused as a router would. */
#include "builder/gateway_loop.h"
#include "support/cleanup.h"

#include <arpa/inet.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum {
    IP_HEADER = 20,
    UDP_HEADER = 8,
    ICMP_HEADER = 8,
    QUOTED = 8,
    IDLE_MS = 120 * 1000,
    DNS_PORT = 53,
    MORE_FRAGMENTS = 0x3fff, /* or an offset */
    UNREACHABLE = 3,
    PROHIBITED = 13,
};

static uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static void put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

/* RFC 1071 */
static uint16_t checksum(const uint8_t *p, size_t n)
{
    uint32_t sum = 0;
    for (size_t i = 0; i + 1 < n; i += 2)
        sum += get16(p + i);
    if (n & 1)
        sum += (uint32_t)p[n - 1] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static void write_ip(uint8_t *p, uint8_t protocol, const struct in_addr *from,
                     const struct in_addr *to, size_t len)
{
    memset(p, 0, IP_HEADER);
    p[0] = 0x45;
    put16(p + 2, (unsigned)len);
    p[8] = 64;
    p[9] = protocol;
    memcpy(p + 12, from, 4);
    memcpy(p + 16, to, 4);
    put16(p + 10, checksum(p, IP_HEADER));
}

void udp_send(struct loop *g, const struct sockaddr_in *from, const struct sockaddr_in *to,
              const uint8_t *p, size_t n)
{
    uint8_t *out = g->answer;
    size_t len = IP_HEADER + UDP_HEADER + n;
    if (len > UINT16_MAX)
        return;
    write_ip(out, IPPROTO_UDP, &from->sin_addr, &to->sin_addr, len);
    memcpy(out + IP_HEADER, &from->sin_port, 2);
    memcpy(out + IP_HEADER + 2, &to->sin_port, 2);
    put16(out + IP_HEADER + 4, (unsigned)(UDP_HEADER + n));
    put16(out + IP_HEADER + 6, 0); /* no checksum: it does not leave this machine */
    memcpy(out + IP_HEADER + UDP_HEADER, p, n);
    ssize_t sent = write(g->tun, out, len);
    (void)sent; /* a datagram may be lost */
}

/* "Communication administratively prohibited": the sender's next call fails at once. */
static void refuse(struct loop *g, const struct datagram *d)
{
    uint8_t *out = g->answer, *icmp = out + IP_HEADER;
    size_t quoted = d->header + QUOTED, len = IP_HEADER + ICMP_HEADER + quoted;
    write_ip(out, IPPROTO_ICMP, &d->to.sin_addr, &d->from.sin_addr, len);
    memset(icmp, 0, ICMP_HEADER);
    icmp[0] = UNREACHABLE;
    icmp[1] = PROHIBITED;
    memcpy(icmp + ICMP_HEADER, d->packet, quoted);
    put16(icmp + 2, checksum(icmp, ICMP_HEADER + quoted));
    ssize_t sent = write(g->tun, out, len);
    (void)sent;
}

bool udp_read_packet(const uint8_t *p, size_t n, struct datagram *d)
{
    if (n < IP_HEADER + UDP_HEADER || p[0] >> 4 != 4 || p[9] != IPPROTO_UDP)
        return false;
    size_t header = (size_t)(p[0] & 15) * 4, total = get16(p + 2);
    if (header < IP_HEADER || total > n || total < header + UDP_HEADER ||
        get16(p + 6) & MORE_FRAGMENTS)
        return false;
    const uint8_t *udp = p + header;
    size_t len = get16(udp + 4);
    if (len < UDP_HEADER || len > total - header)
        return false;
    *d = (struct datagram){.data = udp + UDP_HEADER,
                           .n = len - UDP_HEADER,
                           .packet = p,
                           .header = header,
                           .from.sin_family = AF_INET,
                           .to.sin_family = AF_INET};
    memcpy(&d->from.sin_addr, p + 12, 4);
    memcpy(&d->to.sin_addr, p + 16, 4);
    memcpy(&d->from.sin_port, udp, 2);
    memcpy(&d->to.sin_port, udp + 2, 2);
    return true;
}

static void report(struct loop *g, enum gateway_verdict v, const struct gateway_question *q)
{
    struct gateway_report r = {.event = v == GATEWAY_ALLOWED ? GATEWAY_CONTACT : GATEWAY_REFUSED,
                               .verdict = v,
                               .protocol = POLICY_UDP,
                               .address = q->address,
                               .port = q->port};
    if (q->name)
        memcpy(r.name, q->name, strlen(q->name) + 1);
    loop_report(g, &r);
}

static void close_flow(struct flow *f)
{
    cb_close(f->fd);
    f->used = false;
}

static bool is_flow_of(const struct flow *f, const struct datagram *d)
{
    return f->used && f->inside == ntohl(d->from.sin_addr.s_addr) &&
           f->inside_port == ntohs(d->from.sin_port) &&
           f->address == ntohl(d->to.sin_addr.s_addr) && f->port == ntohs(d->to.sin_port);
}

/* The flow of a datagram, or a slot for it: free, or the one that was silent for longest. */
static struct flow *find_flow(struct loop *g, const struct datagram *d)
{
    struct flow *slot = &g->flows[0];
    for (size_t i = 0; i < FLOWS_MAX; i++) {
        struct flow *f = &g->flows[i];
        if (is_flow_of(f, d))
            return f;
        if (slot->used && (!f->used || f->spoke_ms < slot->spoke_ms))
            slot = f;
    }
    if (slot->used)
        close_flow(slot);
    return slot;
}

static bool open_flow(struct loop *g, struct flow *f, const struct datagram *d)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&d->to, sizeof(d->to)) < 0) {
        cb_close(fd);
        return false;
    }
    *f = (struct flow){.used = true,
                       .fd = fd,
                       .inside = ntohl(d->from.sin_addr.s_addr),
                       .inside_port = ntohs(d->from.sin_port),
                       .address = ntohl(d->to.sin_addr.s_addr),
                       .port = ntohs(d->to.sin_port)};
    loop_watch(g, EPOLL_CTL_ADD, fd, EPOLLIN, IO_FLOW, (size_t)(f - g->flows));
    return true;
}

static void take_datagram(struct loop *g, const struct datagram *d)
{
    struct gateway_question q = {.protocol = POLICY_UDP,
                                 .address = ntohl(d->to.sin_addr.s_addr),
                                 .port = ntohs(d->to.sin_port)};
    if (q.port == DNS_PORT) {
        resolve_query(g, d->data, d->n, -1, &d->from, &d->to);
        return;
    }
    struct flow *f = find_flow(g, d);
    if (!f->used) {
        enum gateway_verdict v = names_decide(g, NULL, &q);
        report(g, v, &q);
        if (v != GATEWAY_ALLOWED || !open_flow(g, f, d)) {
            refuse(g, d);
            return;
        }
    }
    f->spoke_ms = g->now_ms;
    (void)send(f->fd, d->data, d->n, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void udp_tunnel_readable(struct loop *g)
{
    for (int i = 0; i < 64; i++) {
        struct datagram d;
        ssize_t n = read(g->tun, g->packet, sizeof(g->packet));
        if (n < 0)
            return;
        if (udp_read_packet(g->packet, (size_t)n, &d))
            take_datagram(g, &d);
    }
}

void udp_flow_readable(struct loop *g, size_t index)
{
    struct flow *f = &g->flows[index];
    for (int i = 0; i < 64 && f->used; i++) {
        ssize_t n = recv(f->fd, g->packet, sizeof(g->packet), MSG_DONTWAIT);
        if (n < 0)
            return; /* also "refused": the next datagram tells the sender nothing, as by any router
                     */
        const struct sockaddr_in from = {.sin_family = AF_INET,
                                         .sin_addr.s_addr = htonl(f->address),
                                         .sin_port = htons(f->port)};
        const struct sockaddr_in to = {.sin_family = AF_INET,
                                       .sin_addr.s_addr = htonl(f->inside),
                                       .sin_port = htons(f->inside_port)};
        f->spoke_ms = g->now_ms;
        udp_send(g, &from, &to, g->packet, (size_t)n);
    }
}

bool udp_tick(struct loop *g)
{
    bool some = false;
    for (size_t i = 0; i < FLOWS_MAX; i++) {
        struct flow *f = &g->flows[i];
        if (f->used && g->now_ms - f->spoke_ms > IDLE_MS)
            close_flow(f);
        some = some || f->used;
    }
    return some;
}

/* What goes on under another policy is opened, and reported, anew. */
void udp_judge_again(struct loop *g)
{
    for (size_t i = 0; i < FLOWS_MAX; i++) {
        struct flow *f = &g->flows[i];
        struct gateway_question q = {
            .protocol = POLICY_UDP, .address = f->address, .port = f->port};
        if (f->used && names_decide(g, NULL, &q) != GATEWAY_ALLOWED)
            close_flow(f);
    }
}
