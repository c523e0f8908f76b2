/* gateway_peek: whom a connection is for, by the first bytes that its client says: the server name
 * of a TLS greeting, the Host of an HTTP request. The bytes are a stranger's. Private to builder/.
 */
#pragma once

#include "builder/gateway_policy.h"

#include <stddef.h>

enum { PEEK_MAX = 32 << 10 }; /* a greeting or a request's head is at most so long */
#define PEEK_ALL UINT64_MAX   /* all that comes belongs to what was seen, or its end is unknown */

enum peek_kind {
    PEEK_MORE,   /* not enough bytes yet */
    PEEK_OTHER,  /* another protocol: it names no host */
    PEEK_TLS,    /* `name`, or "" when the greeting names none */
    PEEK_HTTP,   /* the same for a request */
    PEEK_PROXY,  /* a request to a proxy: CONNECT, or with a whole URL; `name` and `port` */
    PEEK_BROKEN, /* looks like one of these and is not well-formed, or names two hosts */
};

struct peeked {
    enum peek_kind kind;
    bool tunnel;                      /* CONNECT */
    char name[HOST_NAME_MAX_LEN + 1]; /* a name or an IPv4 address, in lower case */
    uint16_t port;                    /* of PEEK_PROXY */
    uint64_t length; /* of a request, with its body: what follows is another one. Or PEEK_ALL */
};

/* Looks at the @n bytes that came so far. */
void gateway_peek(const uint8_t *p, size_t n, struct peeked *out);
