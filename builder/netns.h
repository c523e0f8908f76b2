/* netns: the sandboxed network of a builder: a network namespace behind slirp4netns, in which the
 * host's loopback and 169.254.0.0/16 cannot be reached. QEMU runs inside it; a container joins it.
 *
 * Inside: tap0 10.0.2.100/24, gateway 10.0.2.2, nameserver 10.0.2.3. As a plain user the namespace
 * belongs to a user namespace of ours. The namespace lives as long as a process or descriptor holds
 * it and slirp4netns as long as its exit pipe is open, so that nothing is left after kill -9.
 * Private to builder/. */
#pragma once

#include "support/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define NETNS_ADDRESS "10.0.2.100"
#define NETNS_DNS "10.0.2.3"
/* Metadata services that are not at a link-local address: no build reaches them either. */
#define NETNS_AZURE 0xa83f8110u   /* 168.63.129.16 */
#define NETNS_ALIBABA 0x646464c8u /* 100.100.100.200 */

struct gateway;

struct netns {
    int net_fd;   /* the network namespace that machines join */
    int outer_fd; /* with a gateway: the one behind it, where slirp4netns is; else -1 */
    int user_fd;  /* the user namespace that owns it; -1: ours (as root) */
    int exit_fd;  /* slirp4netns ends when this closes; -1: without a network */
    int dir_fd;   /* the folder that holds its API socket */
    pid_t slirp;
};

/* Can this machine make such a namespace? -CB_E_ENV with a hint when not. Leaves nothing. */
int netns_probe(struct cb_error *err);
/* @dir holds the socket and the log. Without @network the namespace has a loopback and nothing
 * else. With @gateway (started here, borrowed; may be NULL) there are two: machines join one that
 * has the same addresses, and from it the gateway alone leads to the other. One that is optional
 * and does not start is left out (gateway_runs()).
 * *@out is owned: netns_close(). */
int netns_open(const char *dir, bool network, struct gateway *gateway, struct netns **out,
               struct cb_error *err);
void netns_close(struct netns *ns); /* NULL is fine */
/* The namespaces for cb_proc_spec.setns, in the order to join: fills @fds, returns how many. */
size_t netns_fds(const struct netns *ns, int fds[2]);
/* 127.0.0.1:@host_port of the host leads to NETNS_ADDRESS:@port inside. */
int netns_forward(struct netns *ns, uint16_t host_port, uint16_t port, struct cb_error *err);
