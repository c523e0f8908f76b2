/* The session's part of the metadata server: what the guest asks for is kept until nothing is being
 * written, and answered then. */
#include "builder/session_wire.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ANSWER_MS 10000

int sess_metadata_take(struct session *s, const struct reply *r, struct cb_error *err)
{
    struct frame_field f;
    struct session_ask ask = {0};
    uint64_t client = 0, flavor = 0, forwarded = 0;
    const uint8_t *p = r->p;
    bool whole = false, broken = false;
    if (!s->cb.metadata || s->n_asks == SESSION_ASKS)
        return sess_untrusted(s, err, "more questions than it may have");
    for (int got; !broken && (got = frame_next(&p, r->p + r->n, &f)) != 0;) {
        broken = got < 0 || (f.tag == TAG_CLIENT && !frame_number(&f, &client)) ||
                 (f.tag == TAG_FLAVOR && !frame_number(&f, &flavor)) ||
                 (f.tag == TAG_FORWARDED && !frame_number(&f, &forwarded));
        if (broken || f.tag != TAG_TEXT)
            continue;
        broken = !frame_is_text(&f, sizeof(ask.target) - 1);
        if (!broken)
            memcpy(ask.target, f.data, f.len);
        whole = !broken;
    }
    if (broken || !whole || client > UINT32_MAX)
        return sess_untrusted(s, err, "a broken question");
    ask.client = (uint32_t)client;
    ask.flavor = flavor == 1;
    ask.forwarded = forwarded != 0;
    s->asks[s->n_asks++] = ask;
    return 1;
}

/* An answer is small, and the guest has taken in what we wrote before: this hardly ever waits. */
static int write_now(struct session *s, const struct frame_out *o, struct cb_error *err)
{
    int64_t until = cb_monotonic_ms() + ANSWER_MS;
    for (size_t at = 0; at < o->len;) {
        ssize_t n = write(s->fd, o->p + at, o->len - at);
        if (n > 0) {
            at += (size_t)n;
            continue;
        }
        struct pollfd p = {.fd = s->fd, .events = POLLOUT};
        if ((n < 0 && errno != EAGAIN && errno != EINTR) || cb_monotonic_ms() > until) {
            s->dead = true;
            return cb_fail(err, CB_E_SYS, "the builder takes no answer");
        }
        (void)poll(&p, 1, 100);
    }
    return 0;
}

int sess_metadata_answer(struct session *s, struct cb_error *err)
{
    while (s->n_asks && !s->dead) {
        const struct session_ask ask = s->asks[0];
        struct metadata_reply a = {.status = 503, .type = "text/plain"};
        struct frame_out o;
        memmove(s->asks, s->asks + 1, --s->n_asks * sizeof(*s->asks));
        s->cb.metadata(s->cb.arg, ask.target, ask.flavor, ask.forwarded, &a);
        sess_begin(s, &o, FRAME_METADATA_ANSWER, 0);
        frame_put_number(&o, TAG_CLIENT, ask.client);
        frame_put_number(&o, TAG_STATUS, a.status);
        frame_put_text(&o, TAG_TEXT, a.type);
        if (a.body)
            frame_put(&o, TAG_DATA, a.body, strlen(a.body));
        int rc = write_now(s, &o, err);
        explicit_bzero(o.p, o.len); /* it may have been a token */
        if (a.body)
            explicit_bzero(a.body, strlen(a.body));
        free(a.body);
        s->heard_at = cb_monotonic_ms(); /* while we asked for it, nobody listened */
        if (rc < 0)
            return rc;
    }
    return 0;
}
