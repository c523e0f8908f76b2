/* egress: what a build's commands may reach: the policies of a config, which of them holds, and
 * what the gateway (builder/gateway.h) says about it. Private to builder/. */
#pragma once

#include "builder/gateway.h"
#include "schemas/config.h"
#include "schemas/settings.h"

#include <jansson.h>

struct emitter;
struct egress;

/* Where distributions and languages keep their packages (`packages-only`); NULL ends it. */
extern const char *const egress_package_hosts[];

/* Reads what @c says. *@out is owned: egress_free(); NULL when there is no network, or when nothing
 * is closed and this machine cannot even watch (the log says so). -CB_E_ENV when something is
 * closed and this machine cannot hold it. */
int egress_open(const struct workload_config *c, const struct settings *settings,
                struct emitter *em, struct egress **out, struct cb_error *err);
void egress_free(struct egress *e);
/* To be put between the machine and the network (machine_spec.gateway). NULL in, NULL out; so it is
 * with all calls below. */
struct gateway *egress_gateway(const struct egress *e);

/* The machine has started: says when it runs unwatched. */
void egress_started(struct egress *e);
/* What @cmd may reach holds from here, for all that runs in the machine; NULL: what the file says
 * for all. What was refused before is in the log when this returns. */
int egress_hold(struct egress *e, const struct command *cmd, struct cb_error *err);
/* Says in the log what there is to say; cheap. */
void egress_poll(struct egress *e);
/* What was refused since the last egress_hold(), as a line for an error text: "\nit was refused on
 * its way out: ..." or "". Owned, never NULL. */
char *egress_refused(struct egress *e);
/* Whom commands talked to, or wanted to, since then: for event_execution.host_requests. Borrowed
 * until the next call that takes @e; NULL when nobody watches. */
const json_t *egress_requests(struct egress *e);
/* A layer goes on whose first commands ran in an earlier build: they talked to @hosts; without
 * @watched nobody knows to whom. */
void egress_remember(struct egress *e, const struct cb_strv *hosts, bool watched);
/* Moves out whom commands talked to since the last call ("pypi.org:443/tcp"), distinct and sorted.
 * False when not all of them were watched. */
bool egress_take_hosts(struct egress *e, struct cb_strv *out);
