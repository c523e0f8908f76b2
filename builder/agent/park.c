/* park: a machine that is saved and goes on later, perhaps many times and elsewhere. It says PARKED
 * and nothing more, so that no frame is cut by the save; who goes on with it says RESUME, with what
 * a copy of a machine lacks: the time, and random bytes that no other copy has. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define ADD_ENTROPY 0x40085203ul /* RNDADDENTROPY of linux/random.h */
#define RESEED 0x5207ul          /* RNDRESEEDCRNG */

int resume_parse(struct resume *r, const uint8_t *p, size_t n, struct fail *f)
{
    struct frame_field x;
    bool nonce = false, entropy = false;
    int got;
    *r = (struct resume){0};
    for (const uint8_t *end = p + n; (got = frame_next(&p, end, &x)) > 0;) {
        if (x.tag == TAG_NONCE && x.len == sizeof r->nonce) {
            memcpy(r->nonce, x.data, sizeof r->nonce);
            nonce = true;
        } else if (x.tag == TAG_ENTROPY && x.len == sizeof r->entropy) {
            memcpy(r->entropy, x.data, sizeof r->entropy);
            entropy = true;
        } else if (x.tag == TAG_NONCE || x.tag == TAG_ENTROPY ||
                   (x.tag == TAG_TIME && (!frame_number(&x, &r->time_ms) ||
                                          r->time_ms > (uint64_t)INT64_MAX / 1000000))) {
            return fail_set(f, FAIL_PROTOCOL, "a broken RESUME");
        }
    }
    if (got < 0 || !nonce || !entropy)
        return fail_set(f, FAIL_PROTOCOL, "a broken RESUME");
    return 0;
}

void clock_set_ms(uint64_t ms)
{
    struct timespec ts = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    (void)clock_settime(CLOCK_REALTIME, &ts);
}

/* All copies of a saved machine would draw the same numbers. */
static void reseed(const uint8_t *bytes, size_t n)
{
    struct {
        int bits, size;
        uint8_t bytes[FRAME_ENTROPY_LEN];
    } add = {.bits = (int)n * 8, .size = (int)n};
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    memcpy(add.bytes, bytes, n);
    if (fd < 0 || ioctl(fd, (int)ADD_ENTROPY, &add) < 0 || ioctl(fd, (int)RESEED, 0) < 0)
        console_say("random numbers: %s", strerror(errno));
    if (fd >= 0)
        (void)close(fd);
}

void resume_apply(const struct resume *r)
{
    reseed(r->entropy, sizeof r->entropy);
    if (r->time_ms)
        clock_set_ms(r->time_ms);
}

int park(struct chan *c, struct resume *r, struct fail *f)
{
    struct frame_head h;
    const uint8_t *p;
    int got = 0;
    if (chan_send_empty(c, FRAME_PARKED, 0) < 0)
        return fail_set(f, FAIL_SYSTEM, "the host is gone");
    while ((got = chan_peek(c, &h, &p)) == 0) {
        struct pollfd w = {.fd = c->fd, .events = POLLIN};
        if (poll(&w, 1, -1) > 0 && ((w.revents & (POLLHUP | POLLERR)) || chan_fill(c) < 0))
            return fail_set(f, FAIL_SYSTEM, "the host is gone");
    }
    if (got < 0 || h.type != FRAME_RESUME)
        return fail_set(f, FAIL_PROTOCOL, "not RESUME but something else");
    int rc = resume_parse(r, p, h.length, f);
    chan_pop(c, &h);
    return rc;
}

int chan_send_hello(struct chan *c, const char *mode, const struct resume *r)
{
    struct frame_out o;
    frame_begin(&o, c->out, FRAME_HEAD + FRAME_REPLY_MAX, FRAME_HELLO, 0);
    frame_put_number(&o, TAG_VERSION, FRAME_VERSION);
    frame_put_text(&o, TAG_MODE, mode);
    if (r)
        frame_put(&o, TAG_NONCE, r->nonce, sizeof r->nonce);
    return chan_send(c, &o);
}
