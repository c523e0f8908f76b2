/* gateway_dns: the messages of DNS (RFC 1035) that the gateway reads and writes. Both sides are
 * strangers: commands ask, and a resolver answers what somebody's name server said. Private to
 * builder/. */
#pragma once

#include "builder/gateway_policy.h"

#include <stddef.h>

enum {
    DNS_A = 1,
    DNS_CNAME = 5,
    DNS_AAAA = 28,
    DNS_SRV = 33,
    DNS_SVCB = 64,
    DNS_HTTPS = 65,
    DNS_ANY = 255,
    DNS_NOERROR = 0,
    DNS_FORMERR = 1,
    DNS_SERVFAIL = 2,
    DNS_NXDOMAIN = 3,
    DNS_NOTIMP = 4,
    DNS_MESSAGE_MAX = 4096,
    DNS_ADDRESSES_MAX = 24, /* so many fit into an answer of 512 bytes */
};

struct dns_question {
    uint16_t id;
    uint16_t type;
    bool recursion;                   /* desired */
    char name[HOST_NAME_MAX_LEN + 1]; /* lower case, without the last dot */
    size_t end;                       /* of the question in the message */
};

/* Reads a query with one question. 0; -1 when it is not one that can be answered (drop it); else
 * the DNS_... code to answer it with. The id is set unless -1 is returned, the rest when 0 is. */
int dns_read_question(const uint8_t *p, size_t n, struct dns_question *out);

/* Answers to @query, which dns_read_question() has read; they return the length, at most @max (512
 * is enough). */
size_t dns_write_code(const uint8_t *query, const struct dns_question *q, int code, uint8_t *out,
                      size_t max);
/* @addresses in host byte order; none is an answer too: there is such a name, without that type. */
size_t dns_write_addresses(const uint8_t *query, const struct dns_question *q,
                           const uint32_t *addresses, size_t n, uint32_t ttl, uint8_t *out,
                           size_t max);
/* The question of @query, asked anew with another @id. 0 when it does not fit. */
size_t dns_write_query(const uint8_t *query, const struct dns_question *q, uint16_t id,
                       uint8_t *out, size_t max);

struct dns_reply {
    int code; /* DNS_... */
    uint32_t addresses[DNS_ADDRESSES_MAX];
    size_t n;
    uint32_t ttl; /* the least of all records on the way, in seconds */
};
/* Reads the resolver's answer to dns_write_query(): the addresses of the name, also by aliases.
 * False when it is no answer to that question. */
bool dns_read_reply(const uint8_t *p, size_t n, uint16_t id, const struct dns_question *q,
                    struct dns_reply *out);
