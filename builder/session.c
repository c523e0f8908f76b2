#include "builder/session_wire.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define SILENCE_MS INT64_C(30000) /* the agent has a heartbeat of 2 s */
#define LAYER_END_MS INT64_C(3600000)
#define DIFF_MAX (1ull << 42)
#define OUTPUT_ALIGN 4096u

/* A session that has heard nothing yet. @fd is taken. */
static int session_new(int fd, int64_t timeout_ms, const struct session_callbacks *cb,
                       struct session **out, struct cb_error *err)
{
    struct session *s = cb_xcalloc(1, sizeof *s);
    s->fd = fd;
    s->cb = *cb;
    s->silence_ms = timeout_ms;
    s->factor = 1;
    s->heard_at = s->ticked_at = cb_monotonic_ms();
    s->out = cb_xmalloc(FRAME_HEAD + FRAME_REQUEST_MAX);
    cb_buf_init(&s->in, FRAME_HEAD + FRAME_REPLY_MAX);
    int rc = sess_open_cancel(err);
    int flags = fcntl(fd, F_GETFL);
    if (rc == 0 && (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0))
        rc = cb_fail_sys(err, errno, "stream of the builder");
    if (rc < 0) {
        session_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

/* @r is a HELLO: is it one of our version, and of this @nonce (NULL: of none)? */
static int check_hello(struct session *s, const struct reply *r, const uint8_t *nonce,
                       struct cb_error *err)
{
    uint64_t version = 0;
    int rc =
        sess_numbers(s, r, (struct number_field[]){{TAG_VERSION, UINT32_MAX, &version}}, 1, err);
    if (rc < 0)
        return rc;
    if (version != FRAME_VERSION) {
        cb_fail(err, CB_E_ENV, "the agent speaks version %llu of the protocol, we %u",
                (unsigned long long)version, FRAME_VERSION);
        return cb_hint(err, "capsule-agent and capsule-build must come from one build");
    }
    struct frame_field f;
    const uint8_t *p = r->p;
    bool same = !nonce;
    while (frame_next(&p, r->p + r->n, &f) > 0)
        if (nonce && f.tag == TAG_NONCE && f.len == FRAME_NONCE_LEN)
            same = memcmp(f.data, nonce, FRAME_NONCE_LEN) == 0;
    return same ? 0 : sess_untrusted(s, err, "a hello that answers somebody else");
}

/* 1: it parked, 0: it said hello. */
static int first_word(struct session *s, bool may_park, int64_t timeout_ms, struct cb_error *err)
{
    struct reply r = {0};
    int rc = sess_next(s, cb_monotonic_ms() + timeout_ms, &r, err);
    if (rc < 0)
        return rc;
    if (r.type == FRAME_FAILED)
        rc = sess_raise_failed(s, &r, err);
    else if (r.type == FRAME_HELLO)
        rc = check_hello(s, &r, NULL, err);
    else if (r.type == FRAME_PARKED && may_park)
        rc = 1;
    else
        rc = sess_untrusted(s, err, "an answer of the wrong kind");
    if (rc >= 0)
        sess_pop(s, &r);
    return rc;
}

static int opened(struct session *s, int rc, struct session **out, struct cb_error *err)
{
    if (rc < 0) {
        session_free(s);
        return cb_wrap(err, "wait for the agent");
    }
    session_scale(s, 1);
    *out = s;
    return rc;
}

int session_open(int fd, int64_t timeout_ms, const struct session_callbacks *cb,
                 struct session **out, struct cb_error *err)
{
    struct session *s = NULL;
    int rc = session_new(fd, timeout_ms, cb, &s, err);
    return opened(s, rc < 0 ? rc : first_word(s, false, timeout_ms, err), out, err);
}

int session_open_parking(int fd, int64_t timeout_ms, const struct session_callbacks *cb,
                         struct session **out, struct cb_error *err)
{
    struct session *s = NULL;
    int rc = session_new(fd, timeout_ms, cb, &s, err);
    return opened(s, rc < 0 ? rc : first_word(s, true, timeout_ms, err), out, err);
}

int session_open_resumed(int fd, int64_t timeout_ms, const struct session_callbacks *cb,
                         struct session **out, struct cb_error *err)
{
    struct session *s = NULL;
    int rc = session_new(fd, timeout_ms, cb, &s, err);
    return opened(s, rc < 0 ? rc : session_resume(s, timeout_ms, err), out, err);
}

int session_park(struct session *s, int64_t timeout_ms, struct cb_error *err)
{
    struct frame_out o;
    struct reply r = {0};
    sess_begin(s, &o, FRAME_PARK, 0);
    int rc = sess_send(s, &o, err);
    if (rc == 0)
        rc = sess_expect(s, FRAME_PARKED, timeout_ms, &r, err);
    if (rc < 0)
        return cb_wrap(err, "make the machine ready to be saved");
    sess_pop(s, &r);
    return 0;
}

int session_resume(struct session *s, int64_t timeout_ms, struct cb_error *err)
{
    struct frame_out o;
    struct reply r = {0};
    uint8_t random[FRAME_NONCE_LEN + FRAME_ENTROPY_LEN];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return cb_fail_sys(err, errno, "random numbers");
    sess_begin(s, &o, FRAME_RESUME, 0);
    frame_put(&o, TAG_NONCE, random, FRAME_NONCE_LEN);
    frame_put(&o, TAG_ENTROPY, random + FRAME_NONCE_LEN, FRAME_ENTROPY_LEN);
    frame_put_number(&o, TAG_TIME, (uint64_t)cb_now_ms());
    int rc = sess_send(s, &o, err);
    if (rc == 0)
        rc = sess_expect(s, FRAME_HELLO, timeout_ms, &r, err);
    if (rc == 0)
        rc = check_hello(s, &r, random, err);
    if (rc < 0)
        return cb_wrap(err, "resume the machine");
    sess_pop(s, &r);
    return 0;
}

void session_scale(struct session *s, int factor)
{
    s->silence_ms = SILENCE_MS * factor;
    s->factor = factor;
}

void session_set_silence(struct session *s, int64_t ms)
{
    s->silence_ms = ms;
}

void session_free(struct session *s)
{
    if (!s)
        return;
    cb_close(s->fd);
    cb_buf_release(&s->in);
    free(s->out);
    free(s->probe);
    free(s);
}
int session_setup(struct session *s, const struct guest_setup *g, struct cb_error *err)
{
    struct frame_out o;
    sess_begin(s, &o, FRAME_SETUP, 0);
    for (size_t i = 0; g->image_env && i < g->image_env->n; i++)
        frame_put_text(&o, TAG_ENV, g->image_env->v[i]);
    frame_put_text(&o, TAG_HOSTNAME, g->hostname);
    frame_put_text(&o, TAG_USER, g->image_user);
    frame_put_text(&o, TAG_WORKDIR, g->image_workdir);
    frame_put_text(&o, TAG_RUNNER, g->runner_user);
    frame_put_text(&o, TAG_DNS, g->dns);
    frame_put_text(&o, TAG_LOWER, g->lower_dev);
    frame_put_text(&o, TAG_SCRATCH, g->scratch_dev);
    frame_put_text(&o, TAG_OUTPUT, g->output_dev);
    if (g->time_ms > 0)
        frame_put_number(&o, TAG_TIME, (uint64_t)g->time_ms);
    if (g->scratch_used)
        frame_put_number(&o, TAG_STACK, g->stack_layers);
    int rc = sess_ask(s, &o, SETUP_MS * s->factor, err);
    return rc < 0 ? cb_wrap(err, "prepare the builder") : 0;
}

int session_layer_begin(struct session *s, const struct guest_layer *l, struct cb_error *err)
{
    struct frame_out o;
    sess_begin(s, &o, FRAME_LAYER_BEGIN, 0);
    frame_put_text(&o, TAG_NAME, l->name);
    frame_put_text(&o, TAG_PREVIOUS, l->previous);
    sess_put_env(&o, l->env);
    frame_put_text(&o, TAG_WORKDIR, l->workdir);
    frame_put_text(&o, TAG_USER, l->user);
    if (l->secretive)
        frame_put_number(&o, TAG_SECRETIVE, 1);
    for (size_t i = 0; i < l->n_secrets; i++) {
        frame_put_text(&o, TAG_SECRET_PATH, l->secrets[i].path);
        frame_put(&o, TAG_SECRET_DATA, l->secrets[i].data, l->secrets[i].len);
    }
    int rc = sess_ask(s, &o, SETUP_MS * s->factor, err);
    if (l->n_secrets)
        explicit_bzero(o.p, o.len); /* what was sent does not stay in our memory */
    return rc < 0 ? cb_wrap(err, "begin layer %s", l->name) : 0;
}
int session_layer_end(struct session *s, struct guest_diff *out, struct cb_error *err)
{
    struct frame_out o;
    struct reply r = {0};
    sess_begin(s, &o, FRAME_LAYER_END, 0);
    int rc = sess_send(s, &o, err);
    if (rc == 0)
        rc = sess_expect(s, FRAME_LAYER_DONE, LAYER_END_MS * s->factor, &r, err);
    if (rc < 0)
        return cb_wrap(err, "take out the layer's changes");
    struct guest_diff d = {0};
    const struct number_field want[] = {
        {TAG_OFFSET, DIFF_MAX, &d.offset},
        {TAG_LENGTH, DIFF_MAX, &d.length},
        {TAG_ENTRIES, DIFF_MAX, &d.entries},
        {TAG_WHITEOUTS, DIFF_MAX, &d.whiteouts},
    };
    rc = sess_numbers(s, &r, want, count_of(want), err);
    if (rc < 0)
        return rc;
    if (d.offset < s->output_end || d.offset % OUTPUT_ALIGN != 0 || d.length % 512 != 0)
        return sess_untrusted(s, err, "a diff at an impossible place");
    s->output_end = d.offset + d.length;
    sess_pop(s, &r);
    *out = d;
    return 0;
}
int session_shutdown(struct session *s, int64_t timeout_ms, struct cb_error *err)
{
    struct frame_out o;
    sess_begin(s, &o, FRAME_SHUTDOWN, 0);
    return sess_ask(s, &o, timeout_ms, err);
}
