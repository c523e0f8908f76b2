#include "check.h"
#include "machine_net.h"

#include "builder/netns.h"

#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* Runs @inside in the namespace, in a child; returns what it returned (0 to 255). */
static int run_inside(const struct netns *ns, int (*inside)(void))
{
    int fds[2], status = -1;
    size_t n = netns_fds(ns, fds);
    pid_t pid = fork();
    if (pid == 0) {
        for (size_t i = 0; i < n; i++)
            if (setns(fds[i], 0) < 0)
                _exit(255);
        _exit(inside());
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* The errno of connecting a datagram socket: routing alone decides. */
static int route_to(uint32_t address)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons(53), .sin_addr.s_addr = htonl(address)};
    CB_AUTO_FD s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return connect(s, (const struct sockaddr *)&a, sizeof(a)) < 0 ? errno : 0;
}

static int link_local(void)
{
    return route_to(0xa9fea9fe); /* 169.254.169.254 */
}

static int azure(void)
{
    return route_to(NETNS_AZURE);
}

static int loopback(void)
{
    return route_to(INADDR_LOOPBACK);
}

static int elsewhere(void)
{
    return route_to(0xcb007101); /* 203.0.113.1 */
}

static void test_namespace_routes_everything_but_link_local(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct netns *ns = NULL;
    assert_ok(netns_open(*state, true, NULL, &ns, &err), &err);
    assert_int_equal(run_inside(ns, loopback), 0);
    assert_int_equal(run_inside(ns, elsewhere), 0);
    assert_int_equal(run_inside(ns, link_local), EHOSTUNREACH);
    assert_int_equal(run_inside(ns, azure), EHOSTUNREACH);
    int pidfd = (int)syscall(SYS_pidfd_open, ns->slirp, 0);
    assert_true(pidfd >= 0);
    netns_close(ns);
    struct pollfd w = {.fd = pidfd, .events = POLLIN};
    assert_int_equal(poll(&w, 1, 0), 1); /* slirp4netns is gone, and reaped */
    cb_close(pidfd);
}

static void test_namespace_without_network_has_a_loopback_alone(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct netns *ns = NULL;
    assert_ok(netns_open(*state, false, NULL, &ns, &err), &err);
    assert_int_equal(run_inside(ns, loopback), 0);
    assert_int_equal(run_inside(ns, elsewhere), ENETUNREACH);
    assert_int_equal(run_inside(ns, link_local), EHOSTUNREACH);
    assert_fails(netns_forward(ns, 4000, 80, &err), &err, CB_E_CONFIG, "there is no network");
    netns_close(ns);
}

static void test_forward_of_a_port_that_is_taken_says_so(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct netns *ns = NULL;
    uint16_t port;
    CB_AUTO_FD listener = machine_listen(&port);
    assert_true(listener >= 0);
    assert_ok(netns_open(*state, true, NULL, &ns, &err), &err);
    int rc = netns_forward(ns, port, 80, &err);
    assert_non_null(err.hint);
    assert_non_null(strstr(err.hint, "--forward HOST:GUEST"));
    assert_fails(rc, &err, CB_E_ENV, "forward port ");
    netns_close(ns);
}

/* kill -9 of the owner: slirp4netns sees the end of its pipe. */
static void test_namespace_dies_with_its_owner(void **state)
{
    int up[2];
    assert_int_equal(pipe2(up, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct netns *ns = NULL;
        if (netns_open(*state, true, NULL, &ns, &err) < 0 ||
            write(up[1], &ns->slirp, sizeof(ns->slirp)) < 0)
            _exit(1);
        for (;;)
            (void)pause();
    }
    cb_close(up[1]);
    pid_t slirp = 0;
    assert_int_equal(read(up[0], &slirp, sizeof(slirp)), sizeof(slirp));
    int pidfd = (int)syscall(SYS_pidfd_open, slirp, 0);
    assert_true(pidfd >= 0);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    struct pollfd w = {.fd = pidfd, .events = POLLIN};
    assert_int_equal(poll(&w, 1, 10000), 1);
    cb_close(pidfd);
    cb_close(up[0]);
}

int main(void)
{
    char dir[] = "/tmp/cb-netns-XXXXXX";
    struct netns *ns = NULL;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int rc = mkdtemp(dir) ? netns_open(dir, true, NULL, &ns, &err) : -1;
    netns_close(ns);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    (void)cb_remove_tree(dir, &ignored);
    if (rc < 0) {
        print_message("skipped: %s\n", err.msg);
        return 77;
    }
    const struct CMUnitTest tests[] = {
        test_in_dir(test_namespace_routes_everything_but_link_local),
        test_in_dir(test_namespace_without_network_has_a_loopback_alone),
        test_in_dir(test_forward_of_a_port_that_is_taken_says_so),
        test_in_dir(test_namespace_dies_with_its_owner),
    };
    return cmocka_run_group_tests_name("netns", tests, NULL, NULL);
}
