/* The gateway between two real namespaces, with servers and a resolver of our own on the far side.
 */
#include "check.h"

#include "builder/gateway.h"
#include "builder/gateway_dns.h"
#include "builder/netns.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define FAR "192.0.2.10" /* every server, and the resolver */
enum { ECHO_PORT = 7, HTTP_PORT = 80, FIRST_PORT = 25, TUNNEL_PORT = 8080, PATIENCE_S = 10 };

struct fixture {
    struct netns *ns;
    struct gateway *gateway;
    struct gateway_policy policies[4];
    struct network_policy rules;
    struct cb_strv only;
    pid_t servers;
    char *said; /* "refused tcp good.example 192.0.2.10 80\n" */
};

/* ---- the far side ---- */

static struct sockaddr_in at(const char *address, uint16_t port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    (void)inet_pton(AF_INET, address, &a.sin_addr);
    return a;
}

static int serve(int type, uint16_t port)
{
    struct sockaddr_in a = at(FAR, port);
    int s = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    if (s < 0 || bind(s, (const struct sockaddr *)&a, sizeof(a)) < 0 ||
        (type == SOCK_STREAM && listen(s, 64) < 0))
        _exit(10);
    return s;
}

/* good.example and other.example are here; rebind.example is the metadata service. */
static void answer_name(int s)
{
    struct sockaddr_in from;
    socklen_t len = sizeof(from);
    uint8_t in[1500], out[512];
    struct dns_question q;
    ssize_t n = recvfrom(s, in, sizeof(in), 0, (struct sockaddr *)&from, &len);
    if (n < 0 || dns_read_question(in, (size_t)n, &q) != 0)
        return;
    uint32_t here = ntohl(at(FAR, 0).sin_addr.s_addr);
    const uint32_t trap[] = {0xa9fea9fe, 0x7f000001};
    bool bad = strcmp(q.name, "rebind.example") == 0;
    size_t size = dns_write_addresses(in, &q, bad ? trap : &here, bad ? 2 : 1, 1, out, sizeof(out));
    (void)sendto(s, out, size, 0, (const struct sockaddr *)&from, len);
}

static void echo_datagram(int s)
{
    struct sockaddr_in from;
    socklen_t len = sizeof(from);
    char b[1500];
    ssize_t n = recvfrom(s, b, sizeof(b), 0, (struct sockaddr *)&from, &len);
    if (n > 0)
        (void)sendto(s, b, (size_t)n, 0, (const struct sockaddr *)&from, len);
}

/* Says what it was told; the one at FIRST_PORT greets before it is told anything, and that at
 * TUNNEL_PORT says at first that there is a tunnel. */
static void talk(int listener, bool first, bool tunnel)
{
    static const char made[12] = "HTTP/1.1 200";
    char b[4096];
    int s = accept(listener, NULL, NULL);
    if (s < 0)
        return;
    if (fork() == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (first && write(s, "220 hello\n", 10) != 10)
            _exit(1);
        for (ssize_t n; (n = read(s, b, sizeof(b))) > 0; tunnel = false) {
            if (tunnel)
                memcpy(b, made, sizeof(made));
            if (write(s, b, (size_t)n) != n)
                _exit(1);
        }
        _exit(0);
    }
    cb_close(s);
}

__attribute__((noreturn)) static void far_side(const struct netns *ns, int ready)
{
    struct ifreq r = {.ifr_name = "lo:1"};
    struct sockaddr_in a = at(FAR, 0);
    memcpy(&r.ifr_addr, &a, sizeof(a));
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)signal(SIGCHLD, SIG_IGN);
    (void)signal(SIGPIPE, SIG_IGN);
    if ((ns->user_fd >= 0 && setns(ns->user_fd, CLONE_NEWUSER) < 0) ||
        setns(ns->outer_fd, CLONE_NEWNET) < 0)
        _exit(11);
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    if (ioctl(sock, SIOCSIFADDR, &r) < 0)
        _exit(12);
    struct pollfd w[] = {
        {serve(SOCK_DGRAM, 53), POLLIN, 0},          {serve(SOCK_DGRAM, ECHO_PORT), POLLIN, 0},
        {serve(SOCK_STREAM, ECHO_PORT), POLLIN, 0},  {serve(SOCK_STREAM, HTTP_PORT), POLLIN, 0},
        {serve(SOCK_STREAM, FIRST_PORT), POLLIN, 0}, {serve(SOCK_STREAM, TUNNEL_PORT), POLLIN, 0}};
    if (write(ready, "r", 1) != 1)
        _exit(13);
    while (poll(w, 6, -1) >= 0) {
        if (w[0].revents)
            answer_name(w[0].fd);
        if (w[1].revents)
            echo_datagram(w[1].fd);
        for (int i = 2; i < 6; i++)
            if (w[i].revents)
                talk(w[i].fd, i == 4, i == 5);
    }
    _exit(0);
}

/* ---- the near side: what a build does. Each runs in a child and says a line. ---- */

struct act {
    enum { RESOLVE, RESOLVE_TCP, SERVICE, TCP, UDP, RAW } what;
    const char *to, *say;
    uint16_t port;
};

static void patience(int s)
{
    struct timeval t = {.tv_sec = PATIENCE_S};
    (void)setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
}

static size_t question(const char *name, bool service, uint8_t *out)
{
    static const uint8_t head[] = {1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0};
    size_t n = sizeof(head);
    memcpy(out, head, n);
    while (*name) {
        size_t len = strcspn(name, ".");
        out[n++] = (uint8_t)len;
        memcpy(out + n, name, len);
        n += len;
        name += len + (name[len] == '.');
    }
    memcpy(out + n, service ? "\0\0\x21\0\1" : "\0\0\1\0\1", 5);
    return n + 5;
}

static void resolve(const struct act *a, char *out, size_t size)
{
    uint8_t b[600], r[600];
    bool tcp = a->what == RESOLVE_TCP;
    struct sockaddr_in to = at("198.51.100.1", 53); /* whoever is asked */
    struct dns_question q;
    struct dns_reply reply;
    size_t n = question(a->to, a->what == SERVICE, b + 2);
    b[0] = 0;
    b[1] = (uint8_t)n;
    CB_AUTO_FD s = socket(AF_INET, tcp ? SOCK_STREAM : SOCK_DGRAM, 0);
    patience(s);
    if (connect(s, (const struct sockaddr *)&to, sizeof(to)) < 0 ||
        send(s, tcp ? b : b + 2, tcp ? n + 2 : n, 0) < 0) {
        (void)snprintf(out, size, "error %d", errno);
        return;
    }
    ssize_t got = recv(s, r, sizeof(r), 0);
    const uint8_t *answer = tcp ? r + 2 : r;
    (void)dns_read_question(b + 2, n, &q);
    if (got < 12 || !dns_read_reply(answer, (size_t)got - (tcp ? 2 : 0), 0x0102, &q, &reply))
        (void)snprintf(out, size, "nothing");
    else if (reply.code || reply.n == 0)
        (void)snprintf(out, size, "code %d", reply.code);
    else
        (void)snprintf(out, size, "%u.%u.%u.%u", reply.addresses[0] >> 24,
                       reply.addresses[0] >> 16 & 255, reply.addresses[0] >> 8 & 255,
                       reply.addresses[0] & 255);
}

static void converse(const struct act *a, char *out, size_t size)
{
    struct sockaddr_in to = at(a->to, a->port);
    CB_AUTO_FD s = socket(AF_INET, a->what == UDP ? SOCK_DGRAM : SOCK_STREAM, 0);
    patience(s);
    if (connect(s, (const struct sockaddr *)&to, sizeof(to)) < 0 ||
        (a->say && send(s, a->say, strlen(a->say), MSG_NOSIGNAL) < 0)) {
        (void)snprintf(out, size, "error %d", errno);
        return;
    }
    size_t len = 0, want = a->say ? strlen(a->say) : 1; /* it is an echo, perhaps in pieces */
    ssize_t n;
    while ((n = recv(s, out + len, size - 1 - len, 0)) > 0 && (len += (size_t)n) < want)
        ;
    out[len] = '\0';
    if (n < 0 && len == 0)
        (void)snprintf(out, size, "error %d", errno);
}

/* A packet past all sockets, as root could send it, with a mark. */
static void send_raw(const struct act *a, char *out, size_t size)
{
    uint8_t p[29] = {0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17};
    struct sockaddr_in to = at(a->to, a->port);
    int mark = 1;
    CB_AUTO_FD s = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    (void)setsockopt(s, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
    memcpy(p + 16, &to.sin_addr, 4);
    p[20] = 0x40;
    p[23] = (uint8_t)a->port;
    p[25] = 9;
    p[28] = 'x';
    ssize_t n = sendto(s, p, sizeof(p), 0, (const struct sockaddr *)&to, sizeof(to));
    (void)snprintf(out, size, n < 0 ? "error %d" : "sent", errno);
}

static const char *inside(struct fixture *f, struct act a)
{
    static char out[4096];
    int p[2], fds[2];
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    size_t n = netns_fds(f->ns, fds);
    pid_t pid = fork();
    if (pid == 0) {
        for (size_t i = 0; i < n; i++)
            if (setns(fds[i], 0) < 0)
                _exit(1);
        if (a.what <= SERVICE)
            resolve(&a, out, sizeof(out));
        else if (a.what == RAW)
            send_raw(&a, out, sizeof(out));
        else
            converse(&a, out, sizeof(out));
        _exit(write(p[1], out, strlen(out)) < 0);
    }
    cb_close(p[1]);
    size_t len = 0;
    for (ssize_t got; (got = read(p[0], out + len, sizeof(out) - 1 - len)) > 0;)
        len += (size_t)got;
    out[len] = '\0';
    cb_close(p[0]);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    return out;
}

/* ---- */

static void on_report(void *arg, const struct gateway_report *r)
{
    static const char *const events[] = {"contact", "name", "refused", "lost"};
    struct fixture *f = arg;
    char address[INET_ADDRSTRLEN];
    const struct in_addr a = {htonl(r->address)};
    (void)inet_ntop(AF_INET, &a, address, sizeof(address));
    char *was = f->said;
    f->said = cb_xasprintf("%s%s%s %s %s %u\n", was, events[r->event],
                           r->protocol == POLICY_UDP ? " udp" : "", r->name, address, r->port);
    free(was);
}

static struct fixture *set_up(const char *dir)
{
    static const char rules[] = "default: deny\n"
                                "egress: [{host: good.example}, {host: rebind.example},\n"
                                "         {cidr: 192.0.2.10/32, ports: [7], protocol: udp}]";
    struct fixture *f = cb_xcalloc(1, sizeof(*f));
    struct config_problems problems = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    f->said = cb_xstrdup("");
    assert_ok(network_policy_parse(rules, strlen(rules), "r", &f->rules, &problems, &err), &err);
    config_problems_release(&problems);
    cb_strv_add(&f->only, "other.example");
    f->policies[0] = (struct gateway_policy){.rules = &f->rules};
    f->policies[1] = (struct gateway_policy){.preset = PRESET_NONE, .only = &f->only};
    f->policies[2] = (struct gateway_policy){.preset = PRESET_OPEN};
    f->policies[3] = (struct gateway_policy){
        .preset = PRESET_NONE, .only = &f->only, .proxy = "proxy.example", .proxy_port = HTTP_PORT};
    const struct gateway_spec spec = {.policies = f->policies,
                                      .n_policies = 4,
                                      .resolver = ntohl(at(FAR, 0).sin_addr.s_addr),
                                      .report = on_report,
                                      .arg = f};
    f->gateway = gateway_new(&spec);
    assert_ok(netns_open(dir, true, f->gateway, &f->ns, &err), &err);
    int p[2];
    char c;
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    f->servers = fork();
    if (f->servers == 0)
        far_side(f->ns, p[1]);
    cb_close(p[1]);
    assert_int_equal(read(p[0], &c, 1), 1);
    cb_close(p[0]);
    return f;
}

static void take_down(struct fixture *f)
{
    (void)kill(f->servers, SIGKILL);
    assert_int_equal(waitpid(f->servers, NULL, 0), f->servers);
    netns_close(f->ns);
    gateway_free(f->gateway);
    network_policy_release(&f->rules);
    cb_strv_release(&f->only);
    free(f->said);
    free(f);
}

/* What was reported since the last call. */
static void said(struct fixture *f, size_t next, const char *expected)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(gateway_select(f->gateway, next, &err), &err);
    assert_string_equal(f->said, expected);
    f->said[0] = '\0';
}

#define GET(host) "GET / HTTP/1.1\r\nHost: " host "\r\n\r\n"
#define RESET "error 104"

static void test_by_name_and_address(void **state)
{
    struct fixture *f = set_up(*state);
    /* an address that no answer gave is refused, though the name is allowed */
    assert_string_equal(inside(f, (struct act){TCP, FAR, GET("good.example"), HTTP_PORT}), RESET);
    said(f, 0, "refused  192.0.2.10 80\n");
    assert_string_equal(inside(f, (struct act){RESOLVE, "GOOD.example", NULL, 0}), FAR);
    assert_string_equal(inside(f, (struct act){RESOLVE_TCP, "good.example", NULL, 0}), FAR);
    assert_string_equal(inside(f, (struct act){TCP, FAR, GET("good.example"), HTTP_PORT}),
                        GET("good.example"));
    said(f, 0, "contact good.example 192.0.2.10 80\n");
    /* another name at the same address */
    assert_string_equal(inside(f, (struct act){TCP, FAR, GET("other.example"), HTTP_PORT}), RESET);
    said(f, 0, "refused other.example 192.0.2.10 80\n");
    /* a protocol that names no host; one in which the server speaks first */
    assert_string_equal(inside(f, (struct act){TCP, FAR, "SSH-2.0-x\r\n", ECHO_PORT}),
                        "SSH-2.0-x\r\n");
    assert_string_equal(inside(f, (struct act){TCP, FAR, NULL, FIRST_PORT}), "220 hello\n");
    /* a name that no rule has may lie in a range that one has */
    assert_string_equal(inside(f, (struct act){RESOLVE, "other.example", NULL, 0}), FAR);
    assert_string_equal(inside(f, (struct act){TCP, FAR, GET("other.example"), HTTP_PORT}), RESET);
    said(f, 0,
         "contact good.example 192.0.2.10 7\ncontact good.example 192.0.2.10 25\n"
         "refused other.example 192.0.2.10 80\n");
    take_down(f);
}

static void test_a_name_does_not_lead_to_this_machine(void **state)
{
    struct fixture *f = set_up(*state);
    assert_string_equal(inside(f, (struct act){RESOLVE, "rebind.example", NULL, 0}), "code 3");
    assert_string_equal(inside(f, (struct act){TCP, "127.0.0.1", "x", HTTP_PORT}), "error 111");
    assert_string_equal(inside(f, (struct act){TCP, "169.254.169.254", "x", 80}), "error 113");
    assert_string_equal(inside(f, (struct act){TCP, "10.0.2.2", "x", 80}), RESET);
    said(f, 2, "name rebind.example 0.0.0.0 0\nrefused  10.0.2.2 80\n");
    /* no policy opens those */
    assert_string_equal(inside(f, (struct act){RESOLVE, "rebind.example", NULL, 0}), "code 3");
    assert_string_equal(inside(f, (struct act){TCP, "10.0.2.2", "x", 80}), RESET);
    assert_string_equal(inside(f, (struct act){UDP, "10.0.2.2", "x", 80}), "error 113");
    said(f, 2, "name rebind.example 0.0.0.0 0\nrefused  10.0.2.2 80\nrefused udp  10.0.2.2 80\n");
    take_down(f);
}

static void test_datagrams(void **state)
{
    struct fixture *f = set_up(*state);
    assert_string_equal(inside(f, (struct act){UDP, FAR, "one", ECHO_PORT}), "one");
    assert_string_equal(inside(f, (struct act){UDP, FAR, "quic", 443}), "error 113");
    assert_string_equal(inside(f, (struct act){UDP, "203.0.113.9", "x", ECHO_PORT}), "error 113");
    assert_string_equal(inside(f, (struct act){RAW, FAR, NULL, 99}), "sent");
    said(f, 0,
         "contact udp  192.0.2.10 7\nrefused udp  192.0.2.10 443\n"
         "refused udp  203.0.113.9 7\nrefused udp  192.0.2.10 99\n");
    take_down(f);
}

static void test_one_steps_hosts_are_not_the_nexts(void **state)
{
    struct fixture *f = set_up(*state);
    said(f, 1, "");
    assert_string_equal(inside(f, (struct act){RESOLVE, "good.example", NULL, 0}), "code 3");
    assert_string_equal(inside(f, (struct act){RESOLVE, "other.example", NULL, 0}), FAR);
    /* a service would name a host that the policy has not: its own is to be taken, silently */
    assert_string_equal(inside(f, (struct act){SERVICE, "_http._tcp.other.example", NULL, 0}),
                        "code 3");
    assert_string_equal(inside(f, (struct act){TCP, FAR, GET("other.example"), HTTP_PORT}),
                        GET("other.example"));
    said(f, 0, "name good.example 0.0.0.0 0\ncontact other.example 192.0.2.10 80\n");
    assert_string_equal(inside(f, (struct act){TCP, FAR, GET("other.example"), HTTP_PORT}), RESET);
    assert_string_equal(inside(f, (struct act){TCP, FAR, "x", ECHO_PORT}), RESET);
    said(f, 2, "refused other.example 192.0.2.10 80\nrefused other.example 192.0.2.10 7\n");
    /* and everything is let through, and noted, where nothing is closed */
    assert_string_equal(inside(f, (struct act){TCP, FAR, GET("any.example"), HTTP_PORT}),
                        GET("any.example"));
    assert_string_equal(inside(f, (struct act){UDP, FAR, "two", ECHO_PORT}), "two");
    assert_string_equal(inside(f, (struct act){SERVICE, "_http._tcp.other.example", NULL, 0}),
                        FAR); /* passed on as the resolver says it */
    /* as what it was asked for as, not as what it was called */
    said(f, 0, "contact other.example 192.0.2.10 80\ncontact udp other.example 192.0.2.10 7\n");
    take_down(f);
}

static void test_what_a_proxy_is_asked_for(void **state)
{
#define ASK(line) line " HTTP/1.1\r\n\r\n"
#define FETCH ASK("GET http://other.example/")
    struct fixture *f = set_up(*state);
    said(f, 3, "");
    assert_string_equal(inside(f, (struct act){TCP, FAR, ASK("CONNECT other.example:443"), 80}),
                        RESET); /* nobody asked for the proxy's address yet */
    said(f, 3, "refused  192.0.2.10 80\n");
    assert_string_equal(inside(f, (struct act){RESOLVE, "proxy.example", NULL, 0}), FAR);
    assert_string_equal(inside(f, (struct act){TCP, FAR, ASK("CONNECT other.example:443"), 80}),
                        ASK("CONNECT other.example:443"));
    assert_string_equal(inside(f, (struct act){TCP, FAR, FETCH FETCH, 80}), FETCH FETCH);
    said(f, 3, "contact other.example 0.0.0.0 443\ncontact other.example 0.0.0.0 80\n");
    static const char *const refused[] = {
        ASK("CONNECT good.example:443"), ASK("GET http://good.example/"), ASK("GET /"), "SSH-2\r\n",
        "POST http://other.example/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"};
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
        assert_string_equal(inside(f, (struct act){TCP, FAR, refused[i], 80}), RESET);
    said(f, 3,
         "refused good.example 0.0.0.0 443\nrefused good.example 0.0.0.0 80\n"
         "refused proxy.example 192.0.2.10 80\nrefused other.example 0.0.0.0 80\n");
    /* the second request of a connection is one, too; whom it asks is recorded */
    (void)inside(f, (struct act){TCP, FAR, ASK("CONNECT other.example:443"), 80});
    static const char both[] = ASK("GET http://other.example/") ASK("GET http://other.example:81/");
    (void)inside(f, (struct act){TCP, FAR, both, 80});
    said(f, 3,
         "contact other.example 0.0.0.0 443\ncontact other.example 0.0.0.0 80\n"
         "contact other.example 0.0.0.0 81\n");
    (void)inside(f, (struct act){TCP, FAR, FETCH ASK("GET http://good.example/"), 80});
    said(f, 0, "contact other.example 0.0.0.0 80\nrefused good.example 0.0.0.0 80\n");
    take_down(f);
}

/* What follows is the tunnel's only when the proxy says that there is one. */
static void test_a_tunnel_is_one_when_the_proxy_says_so(void **state)
{
    struct fixture *f = set_up(*state);
    static const char more[] = ASK("CONNECT good.example:443") ASK("CONNECT other.example:443");
    static const char got[] =
        "HTTP/1.1 200.example:443 HTTP/1.1\r\n\r\n" ASK("CONNECT other.example:443");
    said(f, 0, "");
    assert_string_equal(inside(f, (struct act){RESOLVE, "good.example", NULL, 0}), FAR);
    assert_string_equal(inside(f, (struct act){TCP, FAR, more, TUNNEL_PORT}), got);
    said(f, 0, "contact good.example 192.0.2.10 8080\ncontact good.example 0.0.0.0 443\n");
    (void)inside(f, (struct act){TCP, FAR, more, HTTP_PORT});
    said(f, 0,
         "contact good.example 192.0.2.10 80\ncontact good.example 0.0.0.0 443\n"
         "refused other.example 0.0.0.0 443\n");
    /* the answer to what was asked for before is none to that */
    (void)inside(f, (struct act){TCP, FAR,
                                 ASK("GET http://good.example/") ASK("CONNECT good.example:443"),
                                 TUNNEL_PORT});
    said(f, 0,
         "contact good.example 192.0.2.10 8080\ncontact good.example 0.0.0.0 80\n"
         "refused good.example 0.0.0.0 443\n");
    take_down(f);
}

/* A connection that stays open into the next step is cut when that may not have it. */
static void test_open_connections_are_judged_again(void **state)
{
    struct fixture *f = set_up(*state);
    int fds[2], s[2] = {-1, -1};
    CB_AUTO_FD here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    size_t n = netns_fds(f->ns, fds);
    struct sockaddr_in to = at(FAR, ECHO_PORT);
    char c;
    if (n != 1) { /* as a plain user there is no way back */
        take_down(f);
        skip();
    }
    assert_string_equal(inside(f, (struct act){RESOLVE, "good.example", NULL, 0}), FAR);
    assert_int_equal(setns(fds[0], CLONE_NEWNET), 0);
    for (int i = 0; i < 2; i++) {
        s[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        patience(s[i]);
    }
    assert_int_equal(setns(here, CLONE_NEWNET), 0);
    assert_int_equal(connect(s[0], (const struct sockaddr *)&to, sizeof(to)), 0);
    assert_int_equal(send(s[0], "a", 1, 0), 1);
    assert_int_equal(recv(s[0], &c, 1, 0), 1);
    said(f, 0, "contact good.example 192.0.2.10 7\n"); /* the same policy leaves it */
    assert_int_equal(send(s[0], "b", 1, 0), 1);
    assert_int_equal(recv(s[0], &c, 1, 0), 1);
    said(f, 1, "");
    assert_int_equal(recv(s[0], &c, 1, 0), -1);
    assert_int_equal(errno, ECONNRESET);
    cb_close(s[0]);
    cb_close(s[1]);
    said(f, 0, "refused good.example 192.0.2.10 7\n");
    take_down(f);
}

/* More than it has room for wait their turn; nobody is let through unseen and nothing hangs. */
static void connect_many(struct fixture *f)
{
    enum { MANY = 700 };
    int fds[2], p[2];
    size_t n = netns_fds(f->ns, fds);
    assert_string_equal(inside(f, (struct act){RESOLVE, "good.example", NULL, 0}), FAR);
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct sockaddr_in to = at(FAR, 4); /* nobody listens there */
        for (size_t i = 0; i < n; i++)
            if (setns(fds[i], 0) < 0)
                _exit(1);
        int s[MANY], refused = 0;
        for (int i = 0; i < MANY; i++) {
            s[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
            (void)connect(s[i], (const struct sockaddr *)&to, sizeof(to));
        }
        for (int i = 0; i < MANY; i++) {
            struct pollfd w = {.fd = s[i], .events = POLLIN};
            char c;
            refused += poll(&w, 1, PATIENCE_S * 1000) == 1 && read(s[i], &c, 1) < 0;
        }
        _exit(refused == MANY ? 0 : 2);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    said(f, 0, "contact good.example 192.0.2.10 4\n");
    cb_close(p[0]);
    cb_close(p[1]);
    take_down(f);
}

static void test_many_connections(void **state)
{
    connect_many(set_up(*state));
}

/* The same where fewer files may be open than it would like: it has room for fewer. The last test,
 * for there is no way back. */
static void test_few_descriptors(void **state)
{
    struct rlimit few = {1024, 1024};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    connect_many(set_up(*state));
}

static void test_its_end_closes_everything(void **state)
{
    struct fixture *f = set_up(*state);
    struct gateway *g = f->gateway;
    f->gateway = NULL;
    assert_string_equal(inside(f, (struct act){RESOLVE, "good.example", NULL, 0}), FAR);
    gateway_free(g);
    assert_string_equal(inside(f, (struct act){TCP, FAR, "x", ECHO_PORT}), "error 101");
    assert_true(strncmp(inside(f, (struct act){UDP, FAR, "x", ECHO_PORT}), "error", 5) == 0);
    take_down(f);
}

/* What reads strangers' bytes can do next to nothing, and goes with its owner. */
static void test_it_has_no_privileges(void **state)
{
    struct fixture *f = set_up(*state);
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF status = CB_BUF_INIT(64 << 10);
    CB_AUTO_FREE char *path = cb_xasprintf("/proc/%d/status", (int)gateway_pid(f->gateway));
    assert_ok(cb_read_file(path, 64 << 10, &status, &err), &err);
    static const char *const lines[] = {"\nCapPrm:\t0000000000000000\n",
                                        "\nCapEff:\t0000000000000000\n", "\nNoNewPrivs:\t1\n"};
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
        assert_non_null(strstr(status.data, lines[i]));
    if (f->ns->user_fd < 0)
        assert_non_null(strstr(status.data, "\nUid:\t65534\t65534\t65534\t65534\n"));
#if !defined(__SANITIZE_ADDRESS__)
    assert_non_null(strstr(status.data, "\nSeccomp:\t2\n"));
#endif
    take_down(f);
}

int main(void)
{
    char dir[] = "/tmp/cb-gateway-XXXXXX";
    struct netns *ns = NULL;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int rc = mkdtemp(dir) ? netns_open(dir, true, NULL, &ns, &err) : -1;
    netns_close(ns);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    (void)cb_remove_tree(dir, &ignored);
    if (rc >= 0)
        rc = gateway_probe(&err);
    if (rc < 0) {
        print_message("skipped: %s\n", err.msg);
        return 77;
    }
    const struct CMUnitTest tests[] = {
        test_in_dir(test_by_name_and_address),
        test_in_dir(test_a_name_does_not_lead_to_this_machine),
        test_in_dir(test_datagrams),
        test_in_dir(test_one_steps_hosts_are_not_the_nexts),
        test_in_dir(test_what_a_proxy_is_asked_for),
        test_in_dir(test_a_tunnel_is_one_when_the_proxy_says_so),
        test_in_dir(test_open_connections_are_judged_again),
        test_in_dir(test_many_connections),
        test_in_dir(test_its_end_closes_everything),
        test_in_dir(test_it_has_no_privileges),
        test_in_dir(test_few_descriptors),
    };
    return cmocka_run_group_tests_name("gateway", tests, NULL, NULL);
}
