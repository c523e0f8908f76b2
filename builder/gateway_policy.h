/* gateway_policy: may this be reached? Pure. What a config says about the network, made ready to be
 * asked by the gateway (builder/gateway.h). Private to builder/. */
#pragma once

#include "schemas/network_policy.h"

#include <stdbool.h>
#include <stdint.h>

enum { HOST_NAME_MAX_LEN = 253 };

enum gateway_preset {
    PRESET_OPEN,     /* everything that is nowhere refused */
    PRESET_PACKAGES, /* what is in `packages` */
    PRESET_NONE,     /* nothing */
};

/* Everything is borrowed. */
struct gateway_policy {
    const struct network_policy *rules; /* config.network_policy, or NULL */
    enum gateway_preset preset;         /* where no rule fits and they have no `default` */
    const struct cb_strv *packages;     /* for PRESET_PACKAGES; or NULL */
    const struct cb_strv *only;         /* a command's allowed_hosts; or NULL */
    const char *proxy;                  /* the proxy's host, or NULL: reached whatever else holds */
    uint16_t proxy_port;
};

enum gateway_verdict {
    GATEWAY_ALLOWED,
    REFUSED_ALWAYS,     /* this machine, link-local, multicast: whatever the policy says */
    REFUSED_BY_RULES,   /* network_policy */
    REFUSED_BY_PRESET,  /* network_policy_preset */
    REFUSED_BY_COMMAND, /* the command's allowed_hosts */
    REFUSED_ADDRESS,    /* the name may be reached, but this address was not given for it */
    REFUSED_UNREADABLE, /* what was said first names no host that can be relied on */
    GATEWAY_VERDICT_N
};

struct gateway_question {
    enum policy_protocol protocol; /* POLICY_TCP or POLICY_UDP */
    uint32_t address;              /* host byte order */
    uint16_t port;
    const char *name; /* in lower case, or NULL: only the address is known */
    bool vouched;     /* the gateway itself gave out this address for the name */
    bool no_address;  /* a proxy will look for the address */
};

/* The first rule that fits decides. A rule by name allows only where the address is vouched for. */
enum gateway_verdict gateway_decide(const struct gateway_policy *p,
                                    const struct gateway_question *q);
/* Is this the way to the proxy of the settings? */
bool gateway_is_proxy(const struct gateway_policy *p, const struct gateway_question *q);
/* May this name be asked for: is there a port on which it could be reached, or a range that its
 * address could lie in? With @address (host byte order; or NULL): may it be answered with that? */
enum gateway_verdict gateway_decide_name(const struct gateway_policy *p, const char *name,
                                         const uint32_t *address);
/* Nothing is refused but what is always refused. */
bool gateway_policy_open(const struct gateway_policy *p);
/* Addresses that no build reaches: loopback, link-local, the sandbox's own, multicast. */
bool gateway_forbidden(uint32_t address);

/* Writes @text (@len bytes) as a host name into @out: lower case, without a dot at its end. False,
 * and "", when it is none: empty, too long, or with other characters than letters, digits, - and _.
 * An IPv4 address passes. */
bool gateway_host_name(const char *text, size_t len, char out[HOST_NAME_MAX_LEN + 1]);
