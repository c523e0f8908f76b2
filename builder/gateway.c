#include "builder/gateway.h"

#include "builder/gateway_loop.h"
#include "builder/netns.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"
#include "support/proc.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/route.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define TUNNEL "tap0"    /* as slirp4netns calls its own */
#define TUNNEL_MTU 65520 /* no datagram is cut into pieces */
#define NFT_PACKAGE "apt-get install nftables"
enum {
    NOBODY = 65534,
    DNS_PORT = 53,
    /* two a connection, one a flow, and the numbers that the process's own are moved to */
    FILES = 2 * CONNECTIONS_MAX + FLOWS_MAX + 128,
    FILES_LEAST = FILES - 2 * CONNECTIONS_MAX + 2 * 16,
    HIGH_FD = 64,
    BACKLOG = 4096,
    NFT_TIMEOUT_MS = 20000,
    ANSWER_TIMEOUT_MS = 20000,
    STOP_MS = 0,
};

struct gateway {
    struct gateway_spec spec;
    pid_t pid; /* 0: not started */
    int control;
    char *why_not;
};

/* ---- the process: system calls only until gateway_run() ---- */

struct setup {
    int sys;       /* 0: done */
    uint16_t port; /* where connections are redirected to */
    char what[40];
};

__attribute__((noreturn)) static void fail(int out, const char *what)
{
    struct setup s = {.sys = errno ? errno : EIO};
    for (size_t i = 0; i + 1 < sizeof(s.what) && what[i]; i++)
        s.what[i] = what[i];
    (void)send(out, &s, sizeof(s), MSG_NOSIGNAL);
    _exit(1);
}

static struct sockaddr_in ipv4(uint32_t address, uint16_t port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(address), .sin_port = htons(port)};
}

static void set_address(int out, int sock, const char *name, unsigned long request,
                        const char *text)
{
    struct ifreq r = {0};
    (void)snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", name);
    struct sockaddr_in a = {.sin_family = AF_INET};
    (void)inet_pton(AF_INET, text, &a.sin_addr);
    memcpy(&r.ifr_addr, &a, sizeof(a));
    if (ioctl(sock, request, &r) < 0)
        fail(out, "give the tunnel an address");
}

/* A switch of the namespace that we are in; where it cannot be set, things are only less smooth. */
static void set_switch(const char *path, const char *value)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : write(fd, value, strlen(value));
    (void)n;
    cb_close(fd);
}

/* The namespace's interface, with the addresses that slirp4netns would give it. */
static int open_tunnel(int out)
{
    struct ifreq r = {.ifr_name = TUNNEL, .ifr_flags = IFF_TUN | IFF_NO_PI};
    int tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (tun < 0 || sock < 0 || ioctl(tun, TUNSETIFF, &r) < 0)
        fail(out, "open /dev/net/tun");
    /* no IPv6 inside, not even an address: programs turn to IPv4 at once */
    set_switch("/proc/sys/net/ipv6/conf/" TUNNEL "/disable_ipv6", "1");
    /* a connection that finds the queue full is tried again, not forgotten by one side */
    set_switch("/proc/sys/net/ipv4/tcp_syncookies", "0");
    set_address(out, sock, TUNNEL, SIOCSIFADDR, NETNS_ADDRESS);
    set_address(out, sock, TUNNEL, SIOCSIFNETMASK, "255.255.255.0");
    /* Should the gateway die, the tunnel is gone at once: the ends of its connections still have to
     * reach their clients, which would wait for ever. */
    set_address(out, sock, "lo:1", SIOCSIFADDR, NETNS_ADDRESS);
    set_address(out, sock, "lo:1", SIOCSIFNETMASK, "255.255.255.255");
    r = (struct ifreq){.ifr_name = TUNNEL, .ifr_mtu = TUNNEL_MTU};
    if (ioctl(sock, SIOCSIFMTU, &r) < 0)
        fail(out, "set the tunnel's MTU");
    r = (struct ifreq){.ifr_name = TUNNEL, .ifr_flags = IFF_UP | IFF_RUNNING};
    if (ioctl(sock, SIOCSIFFLAGS, &r) < 0)
        fail(out, "bring up the tunnel");
    char name[] = TUNNEL;
    struct rtentry rt = {.rt_flags = RTF_UP, .rt_dev = name};
    rt.rt_dst.sa_family = rt.rt_genmask.sa_family = AF_INET;
    if (ioctl(sock, SIOCADDRT, &rt) < 0)
        fail(out, "add a route");
    cb_close(sock);
    return tun;
}

static int open_listener(int out, uint16_t *port)
{
    struct sockaddr_in a = ipv4(INADDR_LOOPBACK, 0);
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, BACKLOG) < 0 ||
        getsockname(fd, (struct sockaddr *)&a, &len) < 0)
        fail(out, "listen");
    *port = ntohs(a.sin_port);
    return fd;
}

static int open_resolver(int out, uint32_t address)
{
    struct sockaddr_in a = ipv4(address, DNS_PORT);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&a, sizeof(a)) < 0)
        fail(out, "open a socket for names");
    return fd;
}

/* It reads what strangers say: from here on it may use what it holds and open sockets, no more. */
static void drop_privileges(struct loop *g, bool root, pid_t parent)
{
    int out = g->control;
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}, {0}};
    struct rlimit files = {0}, zero = {0, 0};
    if (getrlimit(RLIMIT_NOFILE, &files) < 0)
        fail(out, "read the limit on open files");
    files.rlim_cur = files.rlim_max < FILES ? files.rlim_max : FILES;
    (void)setrlimit(RLIMIT_NOFILE, &files);
    errno = EMFILE;
    if (files.rlim_cur < FILES_LEAST)
        fail(out, "have room for connections");
    /* no more connections than there are descriptors for: accept() would fail again and again */
    g->n_conns = (size_t)(files.rlim_cur - (FILES - 2 * CONNECTIONS_MAX)) / 2;
    if (root && (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
                 setresuid(NOBODY, NOBODY, NOBODY) < 0))
        fail(out, "become nobody");
    if (syscall(SYS_capset, &head, none) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        fail(out, "drop privileges");
    (void)setrlimit(RLIMIT_FSIZE, &zero);
    (void)setrlimit(RLIMIT_CORE, &zero);
    /* a change of user clears it */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
        _exit(0);
}

static int lift(int out, int fd, int *next)
{
    int high = dup3(fd, *next, O_CLOEXEC);
    if (high < 0)
        fail(out, "descriptors");
    (*next)++;
    return high;
}

/* Closes everything but what it works with. */
static void keep_few(struct loop *g)
{
    int next = HIGH_FD, *const kept[] = {&g->control, &g->listener, &g->tun, &g->resolver, &g->ep};
    int tmp[sizeof(kept) / sizeof(kept[0])];
    for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++) /* out of the way of each other */
        if ((tmp[i] = fcntl(*kept[i], F_DUPFD_CLOEXEC, HIGH_FD + 16)) < 0)
            fail(g->control, "descriptors");
    int control = g->control;
    for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++)
        *kept[i] = lift(control, tmp[i], &next);
    if (syscall(SYS_close_range, 0, HIGH_FD - 1, 0) < 0 ||
        syscall(SYS_close_range, next, ~0u, 0) < 0)
        fail(control, "close what is not its own");
}

__attribute__((noreturn)) static void gateway_main(const struct gateway_spec *spec,
                                                   const struct netns *ns, int control,
                                                   pid_t parent, bool root)
{
    struct setup ready = {0};
    sigset_t none;
    sigemptyset(&none);
    for (int sig = 1; sig < 32; sig++)
        if (sig != SIGKILL && sig != SIGSTOP)
            (void)signal(sig, SIG_DFL);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)prctl(PR_SET_NAME, "capsule-gateway"); /* not one more job, to who looks */
    if (setsid() < 0)
        fail(control, "setsid");
    struct loop *g = mmap(NULL, sizeof(*g), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (g == MAP_FAILED)
        fail(control, "memory");
    g->spec = spec;
    g->control = control;
    if ((ns->user_fd >= 0 && setns(ns->user_fd, CLONE_NEWUSER) < 0) ||
        setns(ns->net_fd, CLONE_NEWNET) < 0)
        fail(control, "join the build's network");
    g->tun = open_tunnel(control);
    g->listener = open_listener(control, &ready.port);
    if (setns(ns->outer_fd, CLONE_NEWNET) < 0)
        fail(control, "join the outer network");
    g->resolver = open_resolver(control, spec->resolver);
    g->ep = epoll_create1(EPOLL_CLOEXEC);
    if (g->ep < 0)
        fail(control, "epoll");
    keep_few(g);
    drop_privileges(g, root, parent);
    gateway_confine();
    if (send(g->control, &ready, sizeof(ready), MSG_NOSIGNAL) < 0)
        _exit(1);
    gateway_run(g);
}

/* ---- the job's side ---- */

struct gateway *gateway_new(const struct gateway_spec *spec)
{
    struct gateway *g = cb_xcalloc(1, sizeof(*g));
    *g = (struct gateway){.spec = *spec, .control = -1};
    return g;
}

static void stop(struct gateway *g)
{
    cb_close(cb_take_fd(&g->control));
    if (g->pid > 0)
        cb_proc_stop(g->pid, false, STOP_MS);
    g->pid = 0;
}

void gateway_free(struct gateway *g)
{
    if (!g)
        return;
    stop(g);
    free(g->why_not);
    free(g);
}

bool gateway_optional(const struct gateway *g)
{
    return g && g->spec.optional;
}

const char *gateway_why_not(const struct gateway *g)
{
    return g->why_not;
}

pid_t gateway_pid(const struct gateway *g)
{
    return g->pid;
}

bool gateway_runs(const struct gateway *g)
{
    return g && g->pid > 0;
}

int gateway_probe(struct cb_error *err)
{
    CB_AUTO_FREE char *nft = cb_find_program("nft");
    if (nft)
        return 0;
    cb_fail(err, CB_E_ENV, "nft is not on this machine");
    return cb_hint(err, NFT_PACKAGE);
}

/* TCP that would leave goes to the gateway; datagrams go into its tunnel by the route; the rest
 * (ICMP, IPv6, other protocols) is refused where it begins. */
static int redirect(const struct netns *ns, uint16_t port, struct cb_error *err)
{
    CB_AUTO_FREE char *rules =
        cb_xasprintf("table inet capsule {\n"
                     "  chain redirected {\n"
                     "    type nat hook output priority -100\n"
                     "    oifname \"lo\" return\n"
                     "    meta nfproto ipv4 meta l4proto tcp redirect to :%u\n"
                     "  }\n"
                     "  chain refused {\n"
                     "    type filter hook output priority 0\n"
                     "    oifname \"lo\" accept\n"
                     "    meta nfproto ipv4 meta l4proto { tcp, udp } accept\n"
                     "    reject with icmpx type admin-prohibited\n"
                     "  }\n"
                     "}\n",
                     port);
    int fds[2];
    const char *const argv[] = {"nft", "-f", "-", NULL};
    const struct cb_proc_spec spec = {
        .argv = argv, .own_session = true, .setns = fds, .n_setns = netns_fds(ns, fds)};
    struct cb_proc_result r = {0};
    int rc = cb_proc_run(&spec, rules, 4096, NFT_TIMEOUT_MS, &r, err);
    if (rc == -CB_E_ENV)
        cb_hint(err, NFT_PACKAGE);
    CB_AUTO_ERROR said = CB_ERROR_INIT;
    if (rc == 0 && cb_proc_check(&r, "nft", &said) < 0) {
        rc = cb_fail(err, CB_E_ENV, "this machine redirects no connections: %s", said.msg);
        cb_hint(err, "The kernel needs nf_tables, nft_chain_nat and nft_redir "
                     "(`modprobe nft_redir`).");
    }
    cb_proc_result_release(&r);
    return rc;
}

/* Waits for the next message of the process. */
static int next_message(const struct gateway *g, void *to, size_t size, struct cb_error *err)
{
    int64_t end = cb_monotonic_ms() + ANSWER_TIMEOUT_MS;
    for (;;) {
        struct pollfd w = {.fd = g->control, .events = POLLIN};
        int64_t left = end - cb_monotonic_ms();
        if (left <= 0)
            return cb_fail(err, CB_E_TIMEOUT, "the build's gateway does not answer");
        if (poll(&w, 1, (int)left) <= 0)
            continue;
        ssize_t n = recv(g->control, to, size, 0);
        if (n == (ssize_t)size)
            return 0;
        if (n < 0 && errno == EINTR)
            continue;
        return cb_fail(err, CB_E_ENV, "the build's gateway ended");
    }
}

static int start(struct gateway *g, const struct netns *ns, struct cb_error *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return cb_fail_sys(err, errno, "start the build's gateway");
    g->control = pair[0];
    CB_AUTO_FD theirs = pair[1];
    pid_t parent = getpid();
    bool root = ns->user_fd < 0;
    pid_t pid = fork();
    if (pid < 0)
        return cb_fail_sys(err, errno, "start the build's gateway");
    if (pid == 0)
        gateway_main(&g->spec, ns, theirs, parent, root);
    g->pid = pid;
    cb_close(cb_take_fd(&theirs));
    struct setup s = {0};
    int rc = next_message(g, &s, sizeof(s), err);
    if (rc == 0 && s.sys) {
        s.what[sizeof(s.what) - 1] = '\0';
        rc = cb_fail(err, CB_E_ENV, "the build's gateway did not start: %s: %s", s.what,
                     strerror(s.sys));
    }
    return rc < 0 ? rc : redirect(ns, s.port, err);
}

int gateway_start(struct gateway *g, const struct netns *ns, struct cb_error *err)
{
    stop(g);
    free(cb_take_ptr(&g->why_not));
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    int rc = start(g, ns, &why);
    if (rc >= 0)
        return rc;
    stop(g);
    g->why_not = cb_xstrdup(why.msg);
    return cb_error_move(err, &why);
}

/* It has read what strangers sent: what it says is checked, too. */
static bool plausible(struct gateway_report *r)
{
    char name[HOST_NAME_MAX_LEN + 1] = "";
    size_t len = strnlen(r->name, sizeof(r->name));
    bool named = len == 0 || (len < sizeof(r->name) && gateway_host_name(r->name, len, name));
    memcpy(r->name, name, sizeof(name));
    return named && r->event <= GATEWAY_LOST && r->verdict < GATEWAY_VERDICT_N &&
           r->protocol <= POLICY_UDP;
}

static void hand_on(const struct gateway *g, struct gateway_report *r)
{
    if (plausible(r) && (r->event != GATEWAY_LOST || r->count))
        g->spec.report(g->spec.arg, r);
}

int gateway_select(struct gateway *g, size_t i, struct cb_error *err)
{
    uint32_t order = (uint32_t)i;
    struct gateway_report r;
    if (send(g->control, &order, sizeof(order), MSG_NOSIGNAL) < 0)
        return cb_fail(err, CB_E_ENV, "the build's gateway ended");
    do {
        int rc = next_message(g, &r, sizeof(r), err);
        if (rc < 0)
            return rc;
        hand_on(g, &r);
    } while (r.event != GATEWAY_LOST);
    return 0;
}

void gateway_poll(struct gateway *g)
{
    struct gateway_report r;
    while (g->control >= 0 && recv(g->control, &r, sizeof(r), MSG_DONTWAIT) == (ssize_t)sizeof(r))
        hand_on(g, &r);
}
