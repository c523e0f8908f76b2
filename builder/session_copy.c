/* The part of a session that sends files into a layer: a pack (builder/pack.h), cut into requests
 * at the ends of its fields. One request is open at a time, so the stream never holds more than
 * one, and who waits for whom is never in question. */
#include "builder/session_wire.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* A window on the pack. */
struct source {
    int fd;
    uint8_t *buf; /* FRAME_REQUEST_MAX */
    size_t at, end;
    uint64_t before; /* bytes of the pack that were in front of the window */
    bool ended;
};

/* Makes the window hold as much as it can. */
static int fill(struct source *in, struct cb_error *err)
{
    memmove(in->buf, in->buf + in->at, in->end - in->at);
    in->end -= in->at;
    in->before += in->at;
    in->at = 0;
    while (!in->ended && in->end < FRAME_REQUEST_MAX) {
        ssize_t n = read(in->fd, in->buf + in->end, FRAME_REQUEST_MAX - in->end);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return cb_fail_sys(err, errno, "read what is to be copied");
        in->ended = n == 0;
        in->end += (size_t)n;
    }
    return 0;
}

/* Fills one request with the fields that fit; the last one ends the copy. */
static int put_fields(struct source *in, struct frame_out *o, struct cb_error *err)
{
    int rc = fill(in, err);
    if (rc < 0)
        return rc;
    for (;;) {
        struct frame_field f;
        const uint8_t *p = in->buf + in->at;
        int got = frame_next(&p, in->buf + in->end, &f);
        if (got < 0 && in->ended)
            return cb_fail(err, CB_E_CORRUPT, "what is to be copied is cut off");
        if (got <= 0 || o->cap - o->len < (size_t)f.len + 12)
            break;
        frame_put(o, (enum frame_tag)f.tag, f.data, f.len);
        in->at = (size_t)(p - in->buf);
    }
    if (in->ended && in->at == in->end)
        frame_put(o, TAG_COPY_END, NULL, 0);
    else if (o->len == FRAME_HEAD)
        return cb_fail(err, CB_E_BUG, "a field that fits no request");
    return 0;
}

static int copy(struct session *s, const struct guest_copy *c, struct source *in,
                struct cb_error *err)
{
    struct frame_out o;
    sess_begin(s, &o, FRAME_COPY, c->step);
    frame_put_text(&o, TAG_COPY_TO, c->to);
    frame_put_text(&o, TAG_COPY_OWNER, c->owner);
    frame_put_text(&o, TAG_USER, c->user);
    frame_put_number(&o, TAG_ROOT, c->as_root);
    frame_put_number(&o, TAG_COPY_FOLDER, c->folder);
    frame_put_number(&o, TAG_COPY_MOUNTS, c->into_mounts);
    if (c->mode >= 0)
        frame_put_number(&o, TAG_COPY_MODE, (uint64_t)c->mode);
    s->step = c->step;
    int rc = sess_ask(s, &o, SETUP_MS * s->factor, err);
    while (rc >= 0 && !(in->ended && in->at == in->end)) {
        sess_begin(s, &o, FRAME_COPY_DATA, c->step);
        rc = put_fields(in, &o, err);
        if (rc >= 0)
            rc = sess_ask(s, &o, SETUP_MS * s->factor, err);
        if (rc >= 0 && c->sent)
            c->sent(c->sent_arg, in->before + in->at);
    }
    return rc;
}

int session_copy(struct session *s, const struct guest_copy *c, struct cb_error *err)
{
    struct source in = {.fd = c->fd, .buf = cb_xmalloc(FRAME_REQUEST_MAX)};
    int rc = copy(s, c, &in, err);
    free(in.buf);
    return rc;
}
