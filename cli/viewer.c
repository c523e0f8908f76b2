/* viewer: a thread that shows a build's stored events. Whoever runs the build must never wait for a
 * terminal: a reader that stopped reading (`| less`) would keep leases from being renewed and
 * Ctrl-C from being heard. The thread has a queue handle of its own and reads what the others read.
 */
#include "cli/cli.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>

enum { TICK_MS = 250 };

struct viewer {
    struct queue *q;
    struct render *render; /* borrowed; the thread's alone until viewer_finish() */
    const char *build_id;  /* borrowed */
    pthread_t thread;
    int wake;     /* eventfd: there is something new */
    int finished; /* eventfd: all was shown */
    atomic_bool stopping;
};

static void ring(int fd)
{
    uint64_t one = 1;
    (void)!write(fd, &one, sizeof(one));
}

static void quiet(int fd)
{
    uint64_t n;
    (void)!read(fd, &n, sizeof(n));
}

static void *viewer_main(void *arg)
{
    struct viewer *v = arg;
    uint64_t seq = 0;
    for (;;) {
        bool last = atomic_load(&v->stopping);
        (void)render_catch_up(v->render, v->q, v->build_id, &seq);
        if (last)
            break;
        struct pollfd p = {.fd = v->wake, .events = POLLIN};
        if (poll(&p, 1, TICK_MS) > 0)
            quiet(v->wake);
        else
            render_tick(v->render);
    }
    ring(v->finished);
    return NULL;
}

int viewer_start(const struct settings *s, struct render *render, const char *build_id,
                 struct viewer **out)
{
    struct viewer *v = cb_xcalloc(1, sizeof(*v));
    v->render = render;
    v->build_id = build_id;
    int rc = cli_open_queue(s, &v->q);
    if (rc) {
        free(v);
        return rc;
    }
    v->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    v->finished = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (v->wake < 0 || v->finished < 0 || pthread_create(&v->thread, NULL, viewer_main, v) != 0) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        (void)cb_fail_sys(&err, errno, "show the build");
        rc = cli_fail(&err);
        cb_close(v->wake);
        cb_close(v->finished);
        queue_free(v->q);
        free(v);
        return rc;
    }
    *out = v;
    return 0;
}

void viewer_wake(void *viewer)
{
    ring(((struct viewer *)viewer)->wake);
}

bool viewer_finish(struct viewer *v, int stop_fd)
{
    atomic_store(&v->stopping, true);
    ring(v->wake);
    struct pollfd p[2] = {{.fd = v->finished, .events = POLLIN}, {.fd = stop_fd, .events = POLLIN}};
    while (!p[0].revents) {
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            break;
        if (p[1].revents)
            return false; /* the thread still waits for whoever does not read: leave it */
    }
    pthread_join(v->thread, NULL);
    cb_close(v->wake);
    cb_close(v->finished);
    queue_free(v->q);
    free(v);
    return true;
}
