#include "builder/console.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

enum { FILE_MAX = 4 << 20, PIECE = 16 << 10, SYNC_MS = 500, TICK_MS = 5 };

struct console {
    pthread_t thread;
    pthread_mutex_t lock; /* held from the read of a piece to its write */
    int in, file, stop;   /* pipe, file, eventfd */
    size_t size;          /* of the file */
};

/* When the file is full it starts anew: the last words are the ones that are asked for. */
static void keep(struct console *c, const char *p, size_t n)
{
    static const char dropped[] = "(what was said before was too much and is dropped)\n";
    CB_AUTO_ERROR ignored = CB_ERROR_INIT; /* a full disk: then there is no console */
    if (c->size + n > FILE_MAX) {
        if (ftruncate(c->file, 0) < 0 || lseek(c->file, 0, SEEK_SET) < 0)
            return;
        c->size = sizeof(dropped) - 1;
        (void)cb_write_all(c->file, dropped, c->size, &ignored);
        cb_error_clear(&ignored);
    }
    c->size += n;
    (void)cb_write_all(c->file, p, n, &ignored);
}

/* One piece; false at the end of the pipe, or when it is empty. */
static bool take(struct console *c)
{
    char piece[PIECE];
    (void)pthread_mutex_lock(&c->lock);
    ssize_t n = read(c->in, piece, sizeof(piece));
    if (n > 0)
        keep(c, piece, (size_t)n);
    (void)pthread_mutex_unlock(&c->lock);
    return n > 0 || (n < 0 && errno == EINTR);
}

static void *drain(void *arg)
{
    struct console *c = arg;
    struct pollfd w[2] = {{.fd = c->in, .events = POLLIN}, {.fd = c->stop, .events = POLLIN}};
    while (!w[1].revents) {
        if (poll(w, 2, -1) < 0)
            continue;
        if (w[0].revents && !take(c) && (w[0].revents & POLLHUP))
            w[0].fd = -1; /* all writers are gone: only the stop is left to wait for */
    }
    /* what is still there, but not what a writer that goes on adds without end */
    for (int i = 0; i < FILE_MAX / PIECE && take(c); i++) {
    }
    return NULL;
}

static void console_free(struct console *c)
{
    cb_close(c->in);
    cb_close(c->file);
    cb_close(c->stop);
    (void)pthread_mutex_destroy(&c->lock);
    free(c);
}

int console_open(const char *path, struct console **out, int *write_end, struct cb_error *err)
{
    int p[2];
    if (pipe2(p, O_CLOEXEC) < 0)
        return cb_fail_sys(err, errno, "make a pipe");
    CB_AUTO_FD theirs = p[1];
    struct console *c = cb_xcalloc(1, sizeof(*c));
    *c = (struct console){.in = p[0], .lock = PTHREAD_MUTEX_INITIALIZER};
    c->stop = eventfd(0, EFD_CLOEXEC);
    c->file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
    int rc = 0;
    if (c->file < 0 || c->stop < 0 || fcntl(c->in, F_SETFL, O_NONBLOCK) < 0)
        rc = cb_fail_sys(err, errno, "open %s", path);
    else if ((rc = pthread_create(&c->thread, NULL, drain, c)) != 0)
        rc = cb_fail_sys(err, rc, "start a thread");
    if (rc < 0) {
        console_free(c);
        return rc;
    }
    *write_end = cb_take_fd(&theirs);
    *out = c;
    return 0;
}

void console_sync(struct console *c)
{
    int64_t end = cb_monotonic_ms() + SYNC_MS;
    int waiting = 0;
    while (c && ioctl(c->in, FIONREAD, &waiting) == 0 && waiting > 0 && cb_monotonic_ms() < end)
        (void)poll(NULL, 0, TICK_MS);
    if (c) { /* the last piece may be on its way from the pipe to the file */
        (void)pthread_mutex_lock(&c->lock);
        (void)pthread_mutex_unlock(&c->lock);
    }
}

void console_close(struct console *c)
{
    if (!c)
        return;
    uint64_t one = 1;
    while (write(c->stop, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
    (void)pthread_join(c->thread, NULL);
    console_free(c);
}
