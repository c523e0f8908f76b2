#include "builder/egress.h"

#include "builder/emit.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SAID_MAX = 100,
    NAMED_MAX = 8,
    REQUESTS_MAX = 256,   /* of a step */
    HOSTS_MAX = 4096,     /* of a layer */
    RESOLVER = 0x0a000203 /* NETNS_DNS */
};

struct egress {
    struct emitter *em;
    struct network_policy rules;
    bool have_rules;
    enum gateway_preset preset;
    struct cb_strv packages; /* for packages-only */
    char *proxy;             /* its host, or NULL */
    uint16_t proxy_port;
    struct gateway_policy
        *policies; /* [0]: of the file; then one of each command that has its own */
    const struct command **commands; /* which; [0] is NULL */
    size_t n;
    size_t holds; /* its index */
    struct gateway *gateway;
    struct cb_strv said;    /* since then, distinct: what was refused */
    struct cb_strv refused; /* that of it which the config could allow */
    size_t more;            /* refused and not kept */
    json_t *requests;       /* since then */
    struct cb_strv hosts;   /* since the last egress_take_hosts() */
    bool hosts_cut;
    bool unknown; /* there were others, which nobody knows */
};

/* ---- the policies of a file ---- */

typedef void (*command_fn)(void *arg, const struct command *c);

static void each_of(const struct commands *l, command_fn fn, void *arg)
{
    for (size_t i = 0; i < l->n; i++)
        fn(arg, &l->v[i]);
}

/* Every command that a build may run. */
static void each_command(const struct workload_config *c, command_fn fn, void *arg)
{
    for (size_t i = 0; i < c->n_layers; i++) {
        const struct layer *l = &c->layers[i];
        each_of(&l->init_commands, fn, arg);
        each_of(&l->refresh_commands, fn, arg);
        for (size_t k = 0; k < l->n_drives; k++)
            each_of(&l->drives[k].commands, fn, arg);
    }
}

static void count(void *arg, const struct command *c)
{
    *(size_t *)arg += c->allowed_hosts.n > 0;
}

static void add_policy(struct egress *e, const struct command *c)
{
    e->commands[e->n] = c;
    e->policies[e->n++] = (struct gateway_policy){.rules = e->have_rules ? &e->rules : NULL,
                                                  .preset = e->preset,
                                                  .packages = &e->packages,
                                                  .only = c ? &c->allowed_hosts : NULL,
                                                  .proxy = e->proxy,
                                                  .proxy_port = e->proxy_port};
}

static void add_own(void *arg, const struct command *c)
{
    if (c->allowed_hosts.n)
        add_policy(arg, c);
}

static void make_policies(struct egress *e, const struct workload_config *c)
{
    size_t own = 0;
    each_command(c, count, &own);
    e->policies = cb_xcalloc(own + 1, sizeof(*e->policies));
    e->commands = cb_xcalloc(own + 1, sizeof(const struct command *));
    add_policy(e, NULL);
    each_command(c, add_own, e);
}

static enum gateway_preset preset_of(const struct workload_config *c)
{
    const char *p = c->network_policy_preset;
    if (p && strcmp(p, "packages-only") == 0)
        return PRESET_PACKAGES;
    return p && strcmp(p, "none") == 0 ? PRESET_NONE : PRESET_OPEN;
}

/* The host of a URL as a pattern. */
static void add_mirror(struct egress *e, const char *url)
{
    const char *scheme = url ? strstr(url, "://") : NULL;
    char name[HOST_NAME_MAX_LEN + 1];
    if (scheme && gateway_host_name(scheme + 3, strcspn(scheme + 3, "/:?#"), name))
        cb_strv_add(&e->packages, name);
}

static void find_packages(struct egress *e, const struct settings *s)
{
    for (size_t i = 0; egress_package_hosts[i]; i++)
        cb_strv_add(&e->packages, egress_package_hosts[i]);
    add_mirror(e, s->debian_mirror);
    add_mirror(e, s->ubuntu_mirror);
}

/* "http://user:secret@proxy.example:3128/": host and port. */
static void read_proxy(struct egress *e, const char *url)
{
    const char *scheme = url ? strstr(url, "://") : NULL;
    const char *host = scheme ? scheme + 3 : url;
    if (!host)
        return;
    size_t len = strcspn(host, "/?#");
    const char *at = memrchr(host, '@', len);
    if (at) {
        len -= (size_t)(at + 1 - host);
        host = at + 1;
    }
    const char *colon = memrchr(host, ':', len);
    unsigned long port = colon ? strtoul(colon + 1, NULL, 10) : 0;
    if (colon)
        len = (size_t)(colon - host);
    char name[HOST_NAME_MAX_LEN + 1];
    if (!gateway_host_name(host, len, name))
        return;
    e->proxy = cb_xstrdup(name);
    e->proxy_port = (uint16_t)(port && port <= 65535           ? port
                               : strncmp(url, "https", 5) == 0 ? 443
                                                               : 80);
}

/* ---- what the gateway says ---- */

static const char *by_whom(const struct gateway_report *r)
{
    switch (r->verdict) {
    case REFUSED_BY_RULES: return "network_policy";
    case REFUSED_BY_PRESET: return "network_policy_preset";
    case REFUSED_BY_COMMAND: return "the command's allowed_hosts";
    case REFUSED_ALWAYS:
        return "the builder: no build reaches this machine or link-local addresses";
    case REFUSED_ADDRESS:
        return "the builder: this address was not given for a name that is allowed";
    case REFUSED_UNREADABLE: return "the builder: what was sent first does not say whom it is for";
    case GATEWAY_ALLOWED:
    case GATEWAY_VERDICT_N: break;
    }
    return "the builder";
}

/* "example.org:443 (192.0.2.1)" */
static char *whom(const struct gateway_report *r)
{
    char address[INET_ADDRSTRLEN] = "";
    const struct in_addr a = {htonl(r->address)};
    (void)inet_ntop(AF_INET, &a, address, sizeof(address));
    if (r->event == GATEWAY_REFUSED_NAME)
        return cb_xstrdup(r->name);
    const char *udp = r->protocol == POLICY_UDP ? " by UDP" : "";
    if (r->name[0] && r->address)
        return cb_xasprintf("%s:%u (%s)%s", r->name, r->port, address, udp);
    return cb_xasprintf("%s:%u%s", r->name[0] ? r->name : address, r->port, udp);
}

/* "; allowed are a, b and 3 more" */
static void add_allowed(struct cb_buf *b, const struct gateway_policy *p)
{
    size_t n = 0;
    size_t total = p->only ? p->only->n : p->rules ? p->rules->n_rules : 0;
    for (size_t i = 0; i < total; i++) {
        const struct policy_rule *r = p->only ? NULL : &p->rules->rules[i];
        const char *host = p->only ? p->only->v[i] : r->host ? r->host : r->cidr ? r->cidr : "*";
        if (r && r->action != POLICY_ALLOW)
            continue;
        if (n++ < NAMED_MAX)
            (void)cb_buf_addf(b, "%s%s", n == 1 ? "; allowed are " : ", ", host);
    }
    if (n > NAMED_MAX)
        (void)cb_buf_addf(b, " and %zu more", n - NAMED_MAX);
    if (n == 0 && !p->only && p->preset == PRESET_PACKAGES)
        (void)cb_buf_adds(b, "; allowed is where packages are kept");
    else if (n == 0)
        (void)cb_buf_adds(b, "; nothing is allowed");
}

/* False when it was said already, or too much was. */
static bool keep_refused(struct egress *e, const char *text, bool always)
{
    for (size_t i = 0; i < e->said.n; i++)
        if (strcmp(e->said.v[i], text) == 0)
            return false;
    if (e->said.n == SAID_MAX) {
        e->more += !always;
        return false;
    }
    cb_strv_add(&e->said, text);
    if (!always)
        cb_strv_add(&e->refused, text);
    return true;
}

static void say_refused(struct egress *e, const struct gateway_report *r)
{
    bool policy = r->verdict == REFUSED_BY_RULES || r->verdict == REFUSED_BY_PRESET ||
                  r->verdict == REFUSED_BY_COMMAND;
    CB_AUTO_FREE char *text = whom(r);
    CB_AUTO_BUF b = CB_BUF_INIT(64 << 10);
    (void)cb_buf_addf(&b, "%s %s was refused by %s",
                      r->event == GATEWAY_REFUSED_NAME ? "the name" : "a connection to", text,
                      by_whom(r));
    if (policy)
        add_allowed(&b, &e->policies[e->holds]);
    if (keep_refused(e, text, r->verdict == REFUSED_ALWAYS))
        emit_note(e->em, "step %d: %s", e->em->last_step, b.data);
}

/* The host as it is recorded: its name where there is one. */
static const char *recorded(const struct gateway_report *r, char address[INET_ADDRSTRLEN])
{
    const struct in_addr a = {htonl(r->address)};
    if (r->name[0])
        return r->name;
    return inet_ntop(AF_INET, &a, address, INET_ADDRSTRLEN) ? address : "";
}

static void keep_request(struct egress *e, const struct gateway_report *r)
{
    char address[INET_ADDRSTRLEN];
    bool name = r->event == GATEWAY_REFUSED_NAME;
    if (json_array_size(e->requests) >= REQUESTS_MAX)
        return;
    json_t *o = json_pack("{s:s, s:b}", "host", recorded(r, address), "allowed",
                          (int)(r->event == GATEWAY_CONTACT));
    if (o && !name) {
        (void)json_object_set_new(o, "port", json_integer(r->port));
        (void)json_object_set_new(o, "protocol",
                                  json_string(r->protocol == POLICY_UDP ? "udp" : "tcp"));
    }
    for (size_t i = 0; o && i < json_array_size(e->requests); i++)
        if (json_equal(json_array_get(e->requests, i), o)) {
            json_decref(o);
            return;
        }
    (void)json_array_append_new(e->requests, o);
}

static void add_host(struct egress *e, const char *text)
{
    for (size_t i = 0; i < e->hosts.n; i++)
        if (strcmp(e->hosts.v[i], text) == 0)
            return;
    if (e->hosts.n < HOSTS_MAX)
        cb_strv_add(&e->hosts, text);
    else
        e->hosts_cut = true;
}

static void keep_host(struct egress *e, const struct gateway_report *r)
{
    char address[INET_ADDRSTRLEN];
    /* a record of the layer, which outlives the build: tokens are parts of some hosts' names */
    CB_AUTO_FREE char *text =
        emit_masked(e->em, cb_xasprintf("%s:%u/%s", recorded(r, address), r->port,
                                        r->protocol == POLICY_UDP ? "udp" : "tcp"));
    add_host(e, text);
}

static void on_report(void *arg, const struct gateway_report *r)
{
    struct egress *e = arg;
    if (r->event != GATEWAY_LOST)
        keep_request(e, r);
    switch (r->event) {
    case GATEWAY_CONTACT: keep_host(e, r); break;
    case GATEWAY_REFUSED_NAME:
    case GATEWAY_REFUSED: say_refused(e, r); break;
    case GATEWAY_LOST:
        e->more += r->count;
        e->hosts_cut = true;
        break;
    }
}

/* ---- a build's life with it ---- */

static bool closes_something(const struct egress *e)
{
    for (size_t i = 0; i < e->n; i++)
        if (!gateway_policy_open(&e->policies[i]))
            return true;
    return false;
}

static void say_unwatched(struct egress *e, const char *why)
{
    emit_note(e->em, "whom the commands talk to is not recorded: %s", why);
}

static int prepare(struct egress *e, const struct workload_config *c,
                   const struct settings *settings, struct cb_error *err)
{
    struct config_problems problems = {0};
    const char *text = c->network_policy;
    int rc =
        text ? network_policy_parse(text, strlen(text), "network_policy", &e->rules, &problems, err)
             : 0;
    config_problems_release(&problems);
    if (rc < 0)
        return rc;
    e->have_rules = text != NULL;
    e->preset = preset_of(c);
    read_proxy(e, settings->proxy);
    find_packages(e, settings);
    make_policies(e, c);
    bool closes = closes_something(e);
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    rc = gateway_probe(&why);
    if (rc < 0 && !closes) {
        say_unwatched(e, why.msg);
        return 0;
    }
    if (rc < 0) {
        cb_wrap(&why, "the config says which hosts its commands may reach, and nothing here can "
                      "see to that");
        return cb_error_move(err, &why);
    }
    const struct gateway_spec spec = {.policies = e->policies,
                                      .n_policies = e->n,
                                      .optional = !closes,
                                      .resolver = RESOLVER,
                                      .report = on_report,
                                      .arg = e};
    e->gateway = gateway_new(&spec);
    return 0;
}

int egress_open(const struct workload_config *c, const struct settings *settings,
                struct emitter *em, struct egress **out, struct cb_error *err)
{
    *out = NULL;
    if (config_without_network(c)) /* there is no network to watch over */
        return 0;
    struct egress *e = cb_xcalloc(1, sizeof(*e));
    e->em = em;
    e->requests = json_array();
    int rc = prepare(e, c, settings, err);
    if (rc < 0 || !e->gateway)
        egress_free(e);
    else
        *out = e;
    return rc;
}

void egress_free(struct egress *e)
{
    if (!e)
        return;
    gateway_free(e->gateway);
    network_policy_release(&e->rules);
    json_decref(e->requests);
    cb_strv_release(&e->hosts);
    cb_strv_release(&e->said);
    cb_strv_release(&e->refused);
    cb_strv_release(&e->packages);
    free(e->proxy);
    free(e->policies);
    free(e->commands);
    free(e);
}

struct gateway *egress_gateway(const struct egress *e)
{
    return e ? e->gateway : NULL;
}

static bool watches(const struct egress *e)
{
    return e && gateway_runs(e->gateway);
}

void egress_started(struct egress *e)
{
    if (e && !watches(e))
        say_unwatched(e, gateway_why_not(e->gateway) ? gateway_why_not(e->gateway)
                                                     : "the machine has this machine's network");
}

int egress_hold(struct egress *e, const struct command *cmd, struct cb_error *err)
{
    if (!watches(e))
        return 0;
    size_t next = 0;
    for (size_t i = 1; cmd && i < e->n && !next; i++)
        next = e->commands[i] == cmd ? i : 0;
    int rc = gateway_select(e->gateway, next, err);
    if (rc < 0)
        return rc;
    e->holds = next;
    cb_strv_release(&e->said);
    cb_strv_release(&e->refused);
    e->said = e->refused = (struct cb_strv){0};
    e->more = 0;
    (void)json_array_clear(e->requests);
    return 0;
}

void egress_poll(struct egress *e)
{
    if (watches(e))
        gateway_poll(e->gateway);
}

/* Takes in all that was said until now. */
static void settle(struct egress *e)
{
    CB_AUTO_ERROR ignored = CB_ERROR_INIT; /* the next egress_hold() says it */
    if (gateway_select(e->gateway, e->holds, &ignored) < 0)
        e->unknown = true;
}

const json_t *egress_requests(struct egress *e)
{
    if (!watches(e))
        return NULL;
    settle(e);
    return e->requests;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

void egress_remember(struct egress *e, const struct cb_strv *hosts, bool watched)
{
    if (!e)
        return;
    e->unknown = !watched;
    for (size_t i = 0; i < hosts->n; i++)
        add_host(e, hosts->v[i]);
}

bool egress_take_hosts(struct egress *e, struct cb_strv *out)
{
    if (!watches(e))
        return false;
    settle(e);
    bool all = !e->unknown && !e->hosts_cut;
    e->unknown = false;
    if (e->hosts_cut)
        emit_warning(e->em, "the commands talked to so many hosts that not all are recorded");
    e->hosts_cut = false;
    if (e->hosts.n)
        qsort(e->hosts.v, e->hosts.n, sizeof(*e->hosts.v), by_text);
    cb_strv_release(out);
    *out = e->hosts;
    e->hosts = (struct cb_strv){0};
    return all;
}

char *egress_refused(struct egress *e)
{
    if (!watches(e))
        return cb_xstrdup("");
    settle(e);
    CB_AUTO_BUF b = CB_BUF_INIT(64 << 10);
    size_t more = e->more;
    for (size_t i = 0; i < e->refused.n; i++) {
        if (i < NAMED_MAX)
            (void)cb_buf_addf(&b, "%s%s",
                              i ? ", " : "\nit was refused on its way out: ", e->refused.v[i]);
        else
            more++;
    }
    if (more)
        (void)cb_buf_addf(&b, " and %zu more", more);
    return cb_buf_take(&b);
}
