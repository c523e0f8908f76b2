/* shell: input for a command, which steps of a build do not have: a pipe, or a terminal of its own.
 * Its output is the job's. The host sends the next piece when this one was handed on, so what lies
 * here is bounded, and a program that does not read holds nothing up but its own input. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define SIZE_MAX_OF_TERMINAL 1000u
#ifndef TIOCGPTPEER
#define TIOCGPTPEER 0x5441
#endif

static struct winsize size_of(uint64_t rows, uint64_t cols)
{
    return (struct winsize){
        .ws_row = (unsigned short)(rows < SIZE_MAX_OF_TERMINAL ? rows : SIZE_MAX_OF_TERMINAL),
        .ws_col = (unsigned short)(cols < SIZE_MAX_OF_TERMINAL ? cols : SIZE_MAX_OF_TERMINAL)};
}

/* Its slave is opened by the master, not by a name that commands of the layer could have changed.
 */
static int open_terminal(struct shell_input *in, uint64_t rows, uint64_t cols,
                         const struct ident *who, int *slave, struct fail *f)
{
    int unlocked = 0;
    const struct winsize size = size_of(rows, cols);
    in->fd = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
    if (in->fd < 0 || ioctl(in->fd, TIOCSPTLCK, &unlocked) < 0)
        return fail_sys(f, errno, "make a terminal");
    *slave = ioctl(in->fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*slave < 0 || fchown(*slave, who->uid, (gid_t)-1) < 0 ||
        ioctl(in->fd, TIOCSWINSZ, &size) < 0)
        return fail_sys(f, errno, "make a terminal");
    return 0;
}

int shell_open(struct shell_input *in, uint64_t rows, uint64_t cols, struct job_spec *spec,
               int *child, struct fail *f)
{
    *in = (struct shell_input){.fd = -1, .terminal = rows != 0};
    if (in->terminal) {
        int rc = open_terminal(in, rows, cols, spec->who, child, f);
        spec->terminal = *child;
        return rc;
    }
    int pair[2];
    if (pipe2(pair, O_CLOEXEC) < 0)
        return fail_sys(f, errno, "pipe");
    in->fd = pair[1];
    (void)fcntl(in->fd, F_SETFL, O_NONBLOCK);
    spec->input = *child = pair[0];
    return 0;
}

void shell_started(struct shell_input *in, struct job *j)
{
    if (!in->terminal)
        return;
    j->out[0].fd = fcntl(in->fd, F_DUPFD_CLOEXEC, 3);
    j->eager = true;
}

void shell_close(struct shell_input *in)
{
    if (in->fd >= 0)
        (void)close(in->fd);
    in->fd = -1;
    in->owed = false;
    in->at = in->len = 0;
}

void shell_take(struct shell_input *in, const uint8_t *p, size_t n)
{
    struct frame_field x;
    uint64_t rows = 0, cols = 0;
    for (const uint8_t *end = p + n; frame_next(&p, end, &x) > 0;) {
        if (x.tag == TAG_DATA && x.len <= sizeof in->buf) {
            memcpy(in->buf, x.data, x.len);
            in->at = 0;
            in->len = x.len;
        } else if (x.tag == TAG_END) {
            in->end = true;
        } else if (x.tag == TAG_ROWS) {
            (void)frame_number(&x, &rows);
        } else if (x.tag == TAG_COLS) {
            (void)frame_number(&x, &cols);
        }
    }
    const struct winsize size = size_of(rows, cols);
    if (in->terminal && in->fd >= 0 && rows)
        (void)ioctl(in->fd, TIOCSWINSZ, &size);
    in->owed = true;
}

void shell_work(struct shell_input *in, struct chan *up)
{
    while (in->fd >= 0 && in->at < in->len) {
        ssize_t n = write(in->fd, in->buf + in->at, in->len - in->at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0) { /* nobody reads it any more */
            (void)close(in->fd);
            in->fd = -1;
            break;
        }
        in->at += (size_t)n;
    }
    if (in->end && in->fd >= 0 && !in->terminal) {
        (void)close(in->fd);
        in->fd = -1;
    }
    in->at = in->len = 0;
    if (in->owed)
        (void)chan_send_empty(up, FRAME_TAKEN, 0);
    in->owed = false;
}

size_t shell_pollfds(const struct shell_input *in, struct pollfd *p)
{
    if (in->fd < 0 || in->at == in->len)
        return 0;
    *p = (struct pollfd){.fd = in->fd, .events = POLLOUT};
    return 1;
}
