/* gateway: the one way out of a build's network. A process between two network namespaces: in the
 * inner one, where the build is, every TCP connection is redirected to it and every other packet
 * lands in a tunnel that it holds; from the outer one, behind slirp4netns, it connects on. There is
 * no other path between the two, so nothing that a build does (raw sockets, marks, root) leads past
 * it.
 *
 * It answers names (only those that may be reached), remembers which addresses it gave for which
 * name, compares each connection's address, TLS server name or HTTP host with the policy of the
 * moment, and relays what is allowed. What is refused and whom the build talked to it tells the
 * job.
 *
 * It is a fork of the job without privileges, single-threaded, with a bounded number of
 * connections; it ends when the job does. One handle belongs to one thread. Private to builder/. */
#pragma once

#include "builder/gateway_policy.h"
#include "support/error.h"

#include <stddef.h>
#include <sys/types.h>

enum gateway_event {
    GATEWAY_CONTACT,      /* a connection (or a first datagram) was let through */
    GATEWAY_REFUSED_NAME, /* a name was asked for and not answered */
    GATEWAY_REFUSED,      /* a connection or a datagram was refused */
    GATEWAY_LOST,         /* `count` reports were dropped: too many at once */
};

struct gateway_report {
    enum gateway_event event;
    enum gateway_verdict verdict;
    enum policy_protocol protocol;
    uint32_t address; /* host byte order; 0 for a name */
    uint16_t port;    /* 0 for a name */
    uint32_t count;
    char name[HOST_NAME_MAX_LEN + 1]; /* as gateway_host_name() makes it, or "" */
};

struct gateway_spec {
    const struct gateway_policy *policies; /* of which one holds at a time; borrowed, unchanged */
    size_t n_policies;                     /* at least 1 */
    uint32_t resolver;                     /* asked for names, in the outer namespace, port 53 */
    bool optional; /* nothing is closed: a machine may do without it, and tells nothing then */
    /* Each distinct report of the time that a policy holds, once. */
    void (*report)(void *arg, const struct gateway_report *r);
    void *arg;
};

struct gateway;
struct gateway *gateway_new(const struct gateway_spec *spec); /* owned; starts nothing */
void gateway_free(struct gateway *g);                         /* NULL is fine */

bool gateway_optional(const struct gateway *g); /* spec.optional; false for NULL */
/* Why the last gateway_start() failed; borrowed, NULL while it runs or was not started. */
const char *gateway_why_not(const struct gateway *g);

/* Can it run here? -CB_E_ENV with a hint when nft is missing. */
int gateway_probe(struct cb_error *err);
struct netns;
/* Starts it between the namespaces of @ns, where policy 0 holds. One that ran before is ended. */
int gateway_start(struct gateway *g, const struct netns *ns, struct cb_error *err);
bool gateway_runs(const struct gateway *g); /* NULL: false */
pid_t gateway_pid(const struct gateway *g); /* of its process; 0: it was not started */
/* Makes policy @i hold, for connections that are open as well, and reports all that was refused or
 * let through before. -CB_E_ENV when the gateway has ended. */
int gateway_select(struct gateway *g, size_t i, struct cb_error *err);
/* Reports what there is. */
void gateway_poll(struct gateway *g);
