/* dhcp: an address for a machine that nobody told one (capsule.ip=dhcp). A client of RFC 2131 on a
 * packet socket: servers may answer to the address that they offer, which is not ours yet. What
 * comes in is checked from the IP header on. */
#include "builder/agent/agent.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    IP_SIZE = 20,
    UDP_SIZE = 8,
    BOOTP_SIZE = 236,
    OPTIONS_AT = IP_SIZE + UDP_SIZE + BOOTP_SIZE + 4, /* behind the magic number */
    PACKET_SIZE = 576,
    SERVER_PORT = 67,
    CLIENT_PORT = 68,
    ANSWER_MS = 2000,
    TRIES = 4,
    DISCOVER = 1,
    OFFER = 2,
    REQUEST = 3,
    ACK = 5,
};

static const uint8_t magic[4] = {0x63, 0x82, 0x53, 0x63};

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 3; i >= 0; i--, v >>= 8)
        p[i] = (uint8_t)v;
}

static void dotted(const uint8_t *p, char *out, size_t size)
{
    (void)snprintf(out, size, "%u.%u.%u.%u", p[0], p[1], p[2], p[3]);
}

/* ---- answers ---- */

static bool take_option(unsigned code, const uint8_t *p, size_t n, struct dhcp_lease *l)
{
    if (code == 53 && n == 1)
        l->type = p[0];
    else if (code == 1 && n == 4) {
        uint32_t mask = get32(p);
        l->prefix = (unsigned)__builtin_popcount(mask);
        return l->prefix == 0 || mask == ~0u << (32 - l->prefix);
    } else if (code == 3 && n >= 4 && n % 4 == 0)
        dotted(p, l->gw, sizeof l->gw);
    else if (code == 6 && n >= 4 && n % 4 == 0)
        dotted(p, l->dns, sizeof l->dns);
    else if (code == 26 && n == 2)
        l->mtu = (unsigned)p[0] << 8 | p[1];
    else if (code == 51 && n == 4)
        l->seconds = get32(p);
    else if (code == 54 && n == 4)
        l->server = get32(p);
    return true;
}

static bool read_options(const uint8_t *p, size_t n, struct dhcp_lease *l)
{
    for (size_t at = 0; at < n && p[at] != 255;) {
        if (p[at] == 0) {
            at++;
            continue;
        }
        if (n - at < 2 || n - at - 2 < p[at + 1] || !take_option(p[at], p + at + 2, p[at + 1], l))
            return false;
        at += 2u + p[at + 1];
    }
    return true;
}

bool dhcp_parse(const uint8_t *p, size_t n, uint32_t xid, const uint8_t mac[6],
                struct dhcp_lease *out)
{
    if (n < IP_SIZE || p[0] >> 4 != 4)
        return false;
    size_t ip = (size_t)(p[0] & 15) * 4, total = (size_t)p[2] << 8 | p[3];
    if (ip < IP_SIZE || total > n || total < ip + UDP_SIZE || p[9] != 17 ||
        (((unsigned)p[6] << 8 | p[7]) & 0x3fff)) /* fragments are not for us */
        return false;
    const uint8_t *udp = p + ip;
    size_t len = (size_t)udp[4] << 8 | udp[5];
    if ((udp[0] << 8 | udp[1]) != SERVER_PORT || (udp[2] << 8 | udp[3]) != CLIENT_PORT ||
        len > total - ip || len < UDP_SIZE + BOOTP_SIZE + sizeof magic)
        return false;
    const uint8_t *b = udp + UDP_SIZE;
    if (b[0] != 2 || b[1] != 1 || b[2] != 6 || get32(b + 4) != xid || memcmp(b + 28, mac, 6) != 0 ||
        memcmp(b + BOOTP_SIZE, magic, sizeof magic) != 0)
        return false;
    *out = (struct dhcp_lease){.prefix = 24};
    dotted(b + 16, out->ip, sizeof out->ip);
    out->address = get32(b + 16);
    return read_options(b + BOOTP_SIZE + 4, len - UDP_SIZE - BOOTP_SIZE - 4, out) &&
           out->address != 0;
}

/* ---- questions ---- */

static uint16_t checksum(const uint8_t *p, size_t n)
{
    uint32_t sum = 0;
    for (size_t i = 0; i + 1 < n; i += 2)
        sum += (uint32_t)p[i] << 8 | p[i + 1];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

/* A whole IP packet; @lease: what was offered, for a REQUEST. Returns its length. */
static size_t make_packet(uint8_t *p, uint32_t xid, const uint8_t mac[6], uint8_t type,
                          const struct dhcp_lease *lease)
{
    memset(p, 0, PACKET_SIZE);
    uint8_t *b = p + IP_SIZE + UDP_SIZE, *o = p + OPTIONS_AT;
    b[0] = 1; /* a question, over Ethernet */
    b[1] = 1;
    b[2] = 6;
    put32(b + 4, xid);
    memcpy(b + 28, mac, 6);
    memcpy(b + BOOTP_SIZE, magic, sizeof magic);
    *o++ = 53;
    *o++ = 1;
    *o++ = type;
    if (type == REQUEST) {
        *o++ = 50;
        *o++ = 4;
        put32(o, lease->address);
        o += 4;
        *o++ = 54;
        *o++ = 4;
        put32(o, lease->server);
        o += 4;
    }
    static const uint8_t wanted[] = {55, 5, 1, 3, 6, 26, 51, 255};
    memcpy(o, wanted, sizeof wanted);
    size_t n = (size_t)(o + sizeof wanted - p);
    n = n < 328 ? 328 : n + n % 2; /* some servers drop what is shorter than BOOTP was */
    p[0] = 0x45;
    p[2] = (uint8_t)(n >> 8);
    p[3] = (uint8_t)n;
    p[8] = 64;
    p[9] = 17;
    memset(p + 16, 0xff, 4); /* from nobody to everybody */
    uint16_t sum = checksum(p, IP_SIZE);
    p[10] = (uint8_t)(sum >> 8);
    p[11] = (uint8_t)sum;
    p[IP_SIZE + 1] = CLIENT_PORT;
    p[IP_SIZE + 3] = SERVER_PORT;
    p[IP_SIZE + 4] = (uint8_t)((n - IP_SIZE) >> 8);
    p[IP_SIZE + 5] = (uint8_t)(n - IP_SIZE);
    return n; /* UDP without a checksum, as IPv4 allows */
}

struct client {
    int fd, index;
    uint8_t mac[6];
    uint32_t xid;
};

/* The answer of @type, or false when none came in time. */
static bool ask(const struct client *c, uint8_t type, uint8_t want, const struct dhcp_lease *before,
                struct dhcp_lease *out)
{
    uint8_t buf[1600];
    struct sockaddr_ll to = {.sll_family = AF_PACKET,
                             .sll_protocol = htons(ETH_P_IP),
                             .sll_ifindex = c->index,
                             .sll_halen = 6};
    memset(to.sll_addr, 0xff, 6);
    size_t n = make_packet(buf, c->xid, c->mac, type, before);
    if (sendto(c->fd, buf, n, 0, (struct sockaddr *)&to, sizeof to) < 0)
        return false;
    int64_t until = now_ms() + ANSWER_MS, left;
    while ((left = until - now_ms()) > 0) {
        struct pollfd w = {.fd = c->fd, .events = POLLIN};
        if (poll(&w, 1, (int)left) <= 0)
            continue;
        ssize_t got = recv(c->fd, buf, sizeof buf, MSG_DONTWAIT);
        if (got > 0 && dhcp_parse(buf, (size_t)got, c->xid, c->mac, out) && out->type == want)
            return true;
    }
    return false;
}

int dhcp_get(const char *interface, struct dhcp_lease *out, struct fail *f)
{
    struct client c = {.fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETH_P_IP))};
    struct ifreq r = {0};
    struct dhcp_lease offer;
    (void)snprintf(r.ifr_name, sizeof r.ifr_name, "%s", interface);
    if (c.fd < 0 || ioctl(c.fd, SIOCGIFHWADDR, &r) < 0) {
        int saved = errno;
        if (c.fd >= 0)
            (void)close(c.fd);
        return fail_sys(f, saved, "DHCP on %s", interface);
    }
    memcpy(c.mac, r.ifr_hwaddr.sa_data, sizeof c.mac);
    c.index = (int)if_nametoindex(interface);
    if (getrandom(&c.xid, sizeof c.xid, GRND_NONBLOCK) != (ssize_t)sizeof c.xid)
        c.xid = (uint32_t)now_ms() ^ get32(c.mac + 2);
    bool got = false;
    for (int i = 0; i < TRIES && !got; i++)
        got = ask(&c, DISCOVER, OFFER, NULL, &offer) && ask(&c, REQUEST, ACK, &offer, out);
    (void)close(c.fd);
    return got ? 0 : fail_set(f, FAIL_SYSTEM, "no DHCP server answers on %s", interface);
}
