/* The gateway's process: its loop, what the job tells it, and what it tells the job. */
#include "builder/gateway_loop.h"
#include "support/clock.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 64, TICK_MS = 1000 };

void loop_watch(struct loop *g, int op, int fd, uint32_t events, enum io_kind kind, size_t index)
{
    struct epoll_event e = {.events = events, .data.u64 = (uint64_t)kind << 32 | index};
    if (epoll_ctl(g->ep, op, fd, &e) < 0)
        _exit(1); /* fails closed: nothing gets out any more, and the job hears of it */
}

static bool same(const struct gateway_report *a, const struct gateway_report *b)
{
    return a->event == b->event && a->verdict == b->verdict && a->protocol == b->protocol &&
           a->address == b->address && a->port == b->port && strcmp(a->name, b->name) == 0;
}

void loop_report(struct loop *g, const struct gateway_report *r)
{
    for (size_t i = 0; i < g->n_seen; i++)
        if (same(&g->seen[i], r))
            return;
    if (g->n_seen < SEEN_MAX && send(g->control, r, sizeof(*r), MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
        g->seen[g->n_seen++] = *r;
    else
        g->lost++;
}

/* The job says which policy holds from now on. The answer comes after all reports of the time
 * before. */
static void take_order(struct loop *g)
{
    uint32_t i;
    ssize_t n = recv(g->control, &i, sizeof(i), 0);
    if (n < 0 && errno == EINTR)
        return;
    if (n != (ssize_t)sizeof(i) || i >= g->spec->n_policies)
        _exit(0); /* the job has ended */
    g->policy = &g->spec->policies[i];
    g->open_policy = gateway_policy_open(g->policy);
    struct gateway_report done = {.event = GATEWAY_LOST, .count = g->lost};
    g->n_seen = 0;
    g->lost = 0;
    if (send(g->control, &done, sizeof(done), MSG_NOSIGNAL) < 0)
        _exit(1);
    tcp_judge_again(g);
    udp_judge_again(g);
}

static void dispatch(struct loop *g, const struct epoll_event *e)
{
    size_t index = (size_t)(e->data.u64 & UINT32_MAX);
    switch ((enum io_kind)(e->data.u64 >> 32)) {
    case IO_CONTROL: take_order(g); return;
    case IO_LISTENER: tcp_accept(g); return;
    case IO_TUN: udp_tunnel_readable(g); return;
    case IO_RESOLVER: resolve_readable(g); return;
    case IO_CLIENT: tcp_event(g, index, true, e->events); return;
    case IO_SERVER: tcp_event(g, index, false, e->events); return;
    case IO_FLOW: udp_flow_readable(g, index); return;
    }
}

void gateway_run(struct loop *g)
{
    struct epoll_event events[EVENTS];
    g->policy = &g->spec->policies[0];
    g->open_policy = gateway_policy_open(g->policy);
    g->listening = true;
    loop_watch(g, EPOLL_CTL_ADD, g->control, EPOLLIN, IO_CONTROL, 0);
    loop_watch(g, EPOLL_CTL_ADD, g->listener, EPOLLIN, IO_LISTENER, 0);
    loop_watch(g, EPOLL_CTL_ADD, g->tun, EPOLLIN, IO_TUN, 0);
    loop_watch(g, EPOLL_CTL_ADD, g->resolver, EPOLLIN, IO_RESOLVER, 0);
    bool ticking = false;
    int64_t ticked = 0;
    for (;;) {
        int n = epoll_wait(g->ep, events, EVENTS, ticking ? TICK_MS : -1);
        if (n < 0 && errno != EINTR)
            _exit(1);
        g->now_ms = cb_monotonic_ms();
        for (int i = 0; i < n; i++)
            dispatch(g, &events[i]);
        tcp_sweep(g);
        if (n > 0 || g->now_ms - ticked >= TICK_MS) {
            bool asked = resolve_tick(g), flows = udp_tick(g);
            ticking = asked || flows;
            ticked = g->now_ms;
        }
    }
}
