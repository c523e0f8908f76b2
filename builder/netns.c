#include "builder/netns.h"

#include "builder/gateway.h"
#include "builder/machine.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"
#include "support/proc.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <jansson.h>
#include <net/if.h>
#include <net/route.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#define API_SOCKET "slirp4netns.sock"
#define LOG_FILE "slirp4netns.log"

enum {
    READY_TIMEOUT_MS = 20000,
    API_TIMEOUT_MS = 5000,
    API_ANSWER_MAX = 64 << 10,
    TICK_MS = 100,
};

CB_DEFINE_CLEANUP(json, json_t *, json_decref);

/* ---- the namespace: made by a child that ends as soon as we hold its descriptors ---- */

struct maker_report {
    int sys; /* 0: made */
    char what[32];
};

__attribute__((noreturn)) static void maker_end(int out, int sys, const char *what)
{
    struct maker_report r = {.sys = sys};
    for (size_t i = 0; i + 1 < sizeof(r.what) && what[i]; i++)
        r.what[i] = what[i];
    ssize_t n = write(out, &r, sizeof(r));
    _exit(n == (ssize_t)sizeof(r) ? 0 : 1);
}

static void write_self(int out, const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        maker_end(out, errno, path);
    (void)close(fd);
}

/* @net/@mask leads nowhere. */
static int refuse_net(int sock, uint32_t net, uint32_t netmask)
{
    struct rtentry rt = {.rt_flags = RTF_UP | RTF_REJECT};
    struct sockaddr_in *dst = (struct sockaddr_in *)(void *)&rt.rt_dst;
    struct sockaddr_in *mask = (struct sockaddr_in *)(void *)&rt.rt_genmask;
    dst->sin_family = mask->sin_family = AF_INET;
    dst->sin_addr.s_addr = htonl(net);
    mask->sin_addr.s_addr = htonl(netmask);
    return ioctl(sock, SIOCADDRT, &rt);
}

/* The metadata services of clouds: link-local addresses, and what two of them have besides
 * (gateway_forbidden() has the same). */
static int refuse_metadata(int sock)
{
    return refuse_net(sock, 0xa9fe0000, 0xffff0000) < 0 ||          /* 169.254.0.0/16 */
                   refuse_net(sock, NETNS_AZURE, 0xffffffff) < 0 || /* 168.63.129.16 */
                   refuse_net(sock, NETNS_ALIBABA, 0xffffffff) < 0  /* 100.100.100.200 */
               ? -1
               : 0;
}

static void make_user(int out, uid_t uid, gid_t gid)
{
    char map[64];
    if (unshare(CLONE_NEWUSER) < 0)
        maker_end(out, errno, "unshare");
    write_self(out, "/proc/self/setgroups", "deny");
    (void)snprintf(map, sizeof(map), "0 %u 1", (unsigned)uid);
    write_self(out, "/proc/self/uid_map", map);
    (void)snprintf(map, sizeof(map), "0 %u 1", (unsigned)gid);
    write_self(out, "/proc/self/gid_map", map);
}

/* A network namespace: reports it, and waits on @in until the parent has it. */
static void make_net(int out, int in)
{
    if (unshare(CLONE_NEWNET) < 0)
        maker_end(out, errno, "unshare");
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    if (sock < 0 || ioctl(sock, SIOCSIFFLAGS, &lo) < 0)
        maker_end(out, errno, "bring up lo");
    if (refuse_metadata(sock) < 0)
        maker_end(out, errno, "add a route");
    (void)close(sock);
    struct maker_report ok = {0};
    char c;
    if (write(out, &ok, sizeof(ok)) != (ssize_t)sizeof(ok))
        _exit(1);
    while (read(in, &c, 1) < 0 && errno == EINTR) {
    }
}

/* Runs in the child, system calls only. */
__attribute__((noreturn)) static void maker_main(int out, int in, size_t n, bool user, uid_t uid,
                                                 gid_t gid)
{
    if (user)
        make_user(out, uid, gid);
    for (size_t i = 0; i < n; i++)
        make_net(out, in);
    _exit(0);
}

static int no_namespaces(const struct maker_report *r, struct cb_error *err)
{
    cb_fail(err, CB_E_ENV, "this machine makes no network namespace: %s: %s", r->what,
            strerror(r->sys));
    if (r->sys == EPERM && geteuid() != 0)
        return cb_hint(err,
                       "Allow it with `sysctl kernel.unprivileged_userns_clone=1`, run as root, or "
                       "accept less isolation with --allow-host-network.");
    return cb_hint(err, "Run where namespaces are allowed, or accept less isolation with "
                        "--allow-host-network.");
}

static int open_ns(pid_t pid, const char *kind, struct cb_error *err)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/%d/ns/%s", (int)pid, kind);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? cb_fail_sys(err, errno, "open %s", path) : fd;
}

/* The child's next namespace, as an owned descriptor; with @user_fd its user namespace as well. */
static int take_namespace(pid_t pid, int report, int done, int *user_fd, struct cb_error *err)
{
    struct maker_report r = {.sys = ECHILD, .what = "child"};
    ssize_t n;
    do {
        n = read(report, &r, sizeof(r));
    } while (n < 0 && errno == EINTR);
    r.what[sizeof(r.what) - 1] = '\0';
    if (r.sys)
        return no_namespaces(&r, err);
    if (user_fd && (*user_fd = open_ns(pid, "user", err)) < 0)
        return *user_fd;
    CB_AUTO_FD net = open_ns(pid, "net", err);
    if (net < 0)
        return net;
    if (write(done, "", 1) != 1)
        return cb_fail_sys(err, errno, "make a namespace");
    return cb_take_fd(&net);
}

/* @net_fds: @n namespaces, all of the user namespace *@user_fd, or of ours (-1) as root. */
static int make_namespaces(int *net_fds, size_t n, int *user_fd, struct cb_error *err)
{
    bool user = geteuid() != 0;
    int up[2], down[2];
    if (pipe2(up, O_CLOEXEC) < 0)
        return cb_fail_sys(err, errno, "make a namespace");
    CB_AUTO_FD report_in = up[0];
    CB_AUTO_FD report_out = up[1];
    if (pipe2(down, O_CLOEXEC) < 0)
        return cb_fail_sys(err, errno, "make a namespace");
    CB_AUTO_FD done_in = down[0];
    CB_AUTO_FD done_out = down[1];
    uid_t uid = geteuid();
    gid_t gid = getegid();
    pid_t pid = fork();
    if (pid < 0)
        return cb_fail_sys(err, errno, "make a namespace");
    if (pid == 0) {
        (void)close(done_out); /* our end alone keeps it waiting */
        maker_main(report_out, done_in, n, user, uid, gid);
    }
    cb_close(cb_take_fd(&report_out));
    int rc = 0;
    for (size_t i = 0; i < n && rc >= 0; i++) {
        rc = take_namespace(pid, report_in, done_out, user && i == 0 ? user_fd : NULL, err);
        if (rc >= 0)
            net_fds[i] = rc;
    }
    cb_close(cb_take_fd(&done_out));
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
    return rc < 0 ? rc : 0;
}

int netns_probe(struct cb_error *err)
{
    int net = -1, user = -1;
    int rc = make_namespaces(&net, 1, &user, err);
    cb_close(net);
    cb_close(user);
    return rc;
}

/* ---- slirp4netns ---- */

static int slirp_failed(const char *dir, struct cb_error *err)
{
    CB_AUTO_FREE char *log = cb_xasprintf("%s/" LOG_FILE, dir);
    struct machine m = {.console = log};
    CB_AUTO_FREE char *last = machine_console_tail(&m, 2); /* the reason, and "child failed" */
    for (char *c = last; *c; c++)
        if (*c == '\n')
            *c = ' ';
    cb_fail(err, CB_E_ENV, "slirp4netns did not start: %s", *last ? last : "it said nothing");
    return cb_hint(err, "It needs /dev/net/tun (`modprobe tun`) and the right to open it.");
}

/* Waits for the byte on the ready pipe. */
static int wait_ready(const struct netns *ns, int fd, const char *dir, struct cb_error *err)
{
    int64_t end = cb_monotonic_ms() + READY_TIMEOUT_MS;
    for (;;) {
        struct pollfd w = {.fd = fd, .events = POLLIN};
        char c;
        if (machine_canceled())
            return cb_fail(err, CB_E_CANCELED, "start slirp4netns: stopped");
        if (cb_monotonic_ms() >= end)
            return cb_fail(err, CB_E_TIMEOUT, "slirp4netns (process %d) was not ready within %d s",
                           (int)ns->slirp, READY_TIMEOUT_MS / 1000);
        if (poll(&w, 1, TICK_MS) <= 0)
            continue;
        ssize_t n = read(fd, &c, 1);
        if (n == 1)
            return 0;
        if (n == 0 || errno != EINTR)
            return slirp_failed(dir, err);
    }
}

static int start_slirp(struct netns *ns, const char *dir, struct cb_error *err)
{
    enum { READY_FD = 3, EXIT_FD = 4 };
    int ready[2], exit_pipe[2];
    if (pipe2(ready, O_CLOEXEC) < 0)
        return cb_fail_sys(err, errno, "start slirp4netns");
    CB_AUTO_FD ready_in = ready[0];
    CB_AUTO_FD ready_out = ready[1];
    if (pipe2(exit_pipe, O_CLOEXEC) < 0)
        return cb_fail_sys(err, errno, "start slirp4netns");
    CB_AUTO_FD exit_in = exit_pipe[0];
    ns->exit_fd = exit_pipe[1];
    CB_AUTO_FREE char *log_path = cb_xasprintf("%s/" LOG_FILE, dir);
    CB_AUTO_FD log = open(log_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (log < 0)
        return cb_fail_sys(err, errno, "open %s", log_path);
    CB_AUTO_FREE char *net = cb_xasprintf("/proc/%d/fd/%d", (int)getpid(),
                                          ns->outer_fd >= 0 ? ns->outer_fd : ns->net_fd);
    CB_AUTO_FREE char *user =
        cb_xasprintf("--userns-path=/proc/%d/fd/%d", (int)getpid(), ns->user_fd);
    const char *argv[16];
    size_t n = 0;
    argv[n++] = "slirp4netns";
    argv[n++] = "--configure";
    argv[n++] = "--disable-host-loopback";
    argv[n++] = "--mtu=65520";
    argv[n++] = "--ready-fd=3";
    argv[n++] = "--exit-fd=4";
    argv[n++] = "--api-socket=" API_SOCKET; /* relative: a socket's path is 107 bytes at most */
    argv[n++] = "--netns-type=path";
    if (ns->user_fd >= 0)
        argv[n++] = user;
    argv[n++] = net;
    argv[n++] = "tap0";
    argv[n] = NULL;
    const struct cb_proc_fd fds[] = {{log, 1}, {log, 2}, {ready_out, READY_FD}, {exit_in, EXIT_FD}};
    const struct cb_proc_spec spec = {
        .argv = argv, .cwd = dir, .fds = fds, .n_fds = 4, .own_session = true};
    ns->slirp = cb_proc_start(&spec, err);
    if (ns->slirp < 0) {
        int rc = (int)ns->slirp;
        if (rc == -CB_E_ENV)
            cb_hint(err, "apt-get install slirp4netns");
        return rc;
    }
    cb_close(cb_take_fd(&ready_out));
    return wait_ready(ns, ready_in, dir, err);
}

int netns_open(const char *dir, bool network, struct gateway *gateway, struct netns **out,
               struct cb_error *err)
{
    struct netns *ns = cb_xcalloc(1, sizeof(*ns));
    *ns = (struct netns){.net_fd = -1, .outer_fd = -1, .user_fd = -1, .exit_fd = -1, .dir_fd = -1};
    int fds[2] = {-1, -1};
    int rc = make_namespaces(fds, gateway ? 2 : 1, &ns->user_fd, err);
    ns->net_fd = fds[0];
    ns->outer_fd = fds[1];
    if (rc == 0 && network) {
        ns->dir_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
        rc = ns->dir_fd < 0 ? cb_fail_sys(err, errno, "open %s", dir) : start_slirp(ns, dir, err);
    }
    if (rc == 0 && gateway) {
        CB_AUTO_ERROR why = CB_ERROR_INIT;
        rc = gateway_start(gateway, ns, &why);
        if (rc < 0 && gateway_optional(gateway)) {
            netns_close(ns);
            return netns_open(dir, network, NULL, out, err);
        }
        if (rc < 0)
            rc = cb_error_move(err, &why);
    }
    if (rc < 0) {
        netns_close(ns);
        return rc;
    }
    *out = ns;
    return 0;
}

void netns_close(struct netns *ns)
{
    if (!ns)
        return;
    cb_close(ns->exit_fd);
    cb_proc_stop(ns->slirp, false, ns->slirp > 0 ? 500 : 0);
    cb_close(ns->net_fd);
    cb_close(ns->outer_fd);
    cb_close(ns->user_fd);
    if (ns->dir_fd >= 0)
        (void)unlinkat(ns->dir_fd, API_SOCKET, 0);
    cb_close(ns->dir_fd);
    free(ns);
}

size_t netns_fds(const struct netns *ns, int fds[2])
{
    size_t n = 0;
    if (ns->user_fd >= 0)
        fds[n++] = ns->user_fd;
    fds[n++] = ns->net_fd;
    return n;
}

/* ---- port forwards: one JSON request and answer a connection ---- */

static int api_connect(const struct netns *ns, struct cb_error *err)
{
    CB_AUTO_FD s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s < 0)
        return cb_fail_sys(err, errno, "socket");
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    (void)snprintf(a.sun_path, sizeof(a.sun_path), "/proc/self/fd/%d/" API_SOCKET, ns->dir_fd);
    struct timeval limit = {.tv_sec = API_TIMEOUT_MS / 1000};
    if (setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0 ||
        connect(s, (const struct sockaddr *)&a, sizeof(a)) < 0)
        return cb_fail_sys(err, errno, "talk to slirp4netns");
    return cb_take_fd(&s);
}

static int api_call(const struct netns *ns, const char *request, struct cb_buf *answer,
                    struct cb_error *err)
{
    CB_AUTO_FD s = api_connect(ns, err);
    if (s < 0)
        return s;
    int rc = cb_write_all(s, request, strlen(request), err);
    if (rc == 0 && shutdown(s, SHUT_WR) < 0)
        rc = cb_fail_sys(err, errno, "talk to slirp4netns");
    return rc < 0 ? rc : cb_read_fd(s, "slirp4netns' answer", API_ANSWER_MAX, answer, err);
}

int netns_forward(struct netns *ns, uint16_t host_port, uint16_t port, struct cb_error *err)
{
    if (ns->exit_fd < 0)
        return cb_fail(err, CB_E_CONFIG, "forward port %u: there is no network", host_port);
    CB_AUTO_FREE char *request = cb_xasprintf(
        "{\"execute\":\"add_hostfwd\",\"arguments\":{\"proto\":\"tcp\",\"host_addr\":"
        "\"127.0.0.1\",\"host_port\":%u,\"guest_addr\":\"" NETNS_ADDRESS "\",\"guest_port\":%u}}",
        host_port, port);
    CB_AUTO_BUF answer = CB_BUF_INIT(API_ANSWER_MAX);
    int rc = api_call(ns, request, &answer, err);
    if (rc < 0)
        return cb_wrap(err, "forward port %u", host_port);
    CB_AUTO(json) root = json_loadb(answer.data ? answer.data : "", answer.len, 0, NULL);
    const char *why = json_string_value(json_object_get(json_object_get(root, "error"), "desc"));
    if (!root || json_object_get(root, "error")) {
        cb_fail(err, CB_E_ENV, "forward port %u: %s", host_port,
                why ? why : "slirp4netns gave no answer");
        return cb_hint(err, "Is 127.0.0.1:%u free? Choose another with --forward HOST:GUEST.",
                       host_port);
    }
    return 0;
}
