/* chan: frames over a stream. Reading never waits; writing waits as long as the other side likes,
 * which is how output is held back when the host does not keep up. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void chan_init(struct chan *c, int fd, uint32_t max)
{
    *c = (struct chan){.fd = fd, .max = max};
    c->out = ag_alloc(FRAME_HEAD + FRAME_REPLY_MAX);
}

void chan_release(struct chan *c)
{
    if (c->fd >= 0)
        (void)close(c->fd);
    free(c->in);
    free(c->out);
    *c = (struct chan){.fd = -1};
}

int chan_fill(struct chan *c)
{
    if (c->in_cap - c->in_len < 4096) {
        c->in_cap = c->in_cap ? c->in_cap * 2 : 16384;
        c->in = ag_realloc(c->in, c->in_cap);
    }
    ssize_t n = read(c->fd, c->in + c->in_len, c->in_cap - c->in_len);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return 0;
    if (n <= 0) {
        c->hungup = true;
        return -1;
    }
    c->in_len += (size_t)n;
    return 0;
}

int chan_peek(struct chan *c, struct frame_head *h, const uint8_t **payload)
{
    if (c->in_len < FRAME_HEAD)
        return 0;
    if (!frame_head_parse(c->in, c->max, h))
        return -1;
    if (c->in_len - FRAME_HEAD < h->length)
        return 0;
    *payload = c->in + FRAME_HEAD;
    return 1;
}

void chan_pop(struct chan *c, const struct frame_head *h)
{
    size_t n = FRAME_HEAD + (size_t)h->length;
    memmove(c->in, c->in + n, c->in_len - n);
    c->in_len -= n;
}

int chan_send_bytes(struct chan *c, const void *p, size_t n)
{
    const uint8_t *b = p;
    while (n && !c->hungup) {
        ssize_t w = write(c->fd, b, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0 && errno == EAGAIN) {
            struct pollfd pfd = {.fd = c->fd, .events = POLLOUT};
            if (poll(&pfd, 1, 1000) > 0 && (pfd.revents & (POLLHUP | POLLERR)))
                c->hungup = true;
            continue;
        }
        if (w < 0) {
            c->hungup = true;
            break;
        }
        b += w;
        n -= (size_t)w;
    }
    return c->hungup ? -1 : 0;
}

int chan_send(struct chan *c, const struct frame_out *o)
{
    return o->over ? -1 : chan_send_bytes(c, o->p, o->len);
}

int chan_send_empty(struct chan *c, enum frame_type type, uint32_t step)
{
    struct frame_out o;
    frame_begin(&o, c->out, FRAME_HEAD + FRAME_REPLY_MAX, type, step);
    return chan_send(c, &o);
}

int chan_send_text(struct chan *c, enum frame_type type, uint32_t step, const char *text)
{
    struct frame_out o;
    size_t n = strlen(text);
    frame_begin(&o, c->out, FRAME_HEAD + FRAME_REPLY_MAX, type, step);
    frame_put(&o, TAG_TEXT, text, n < FRAME_TEXT_MAX ? n : FRAME_TEXT_MAX);
    return chan_send(c, &o);
}

int chan_send_fail(struct chan *c, uint32_t step, const struct fail *f)
{
    struct frame_out o;
    frame_begin(&o, c->out, FRAME_HEAD + FRAME_REPLY_MAX, FRAME_FAILED, step);
    frame_put_number(&o, TAG_KIND, (uint64_t)f->kind);
    frame_put_text(&o, TAG_TEXT, f->text);
    return chan_send(c, &o);
}

int chan_send_output(struct chan *c, uint32_t step, int stream, const void *p, size_t n)
{
    struct frame_out o;
    frame_begin(&o, c->out, FRAME_HEAD + FRAME_REPLY_MAX, FRAME_OUTPUT, step);
    frame_put_number(&o, TAG_STREAM, (uint64_t)stream);
    frame_put(&o, TAG_DATA, p, n);
    return chan_send(c, &o);
}

void chan_note(struct chan *c, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    (void)chan_send_text(c, FRAME_NOTE, 0, text);
}
