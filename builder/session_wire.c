#include "builder/session_wire.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TICK_MS 1000
#define NOTES_MAX 1000u /* in the answer to one request */

static volatile sig_atomic_t canceled;
static atomic_int cancel_pipe[2] = {-1, -1};

void session_cancel(void)
{
    int saved = errno;
    canceled = 1;
    int fd = atomic_load(&cancel_pipe[1]);
    if (fd >= 0)
        (void)!write(fd, "x", 1);
    errno = saved;
}

void session_cancel_reset(void)
{
    char buf[64];
    canceled = 0;
    int fd = atomic_load(&cancel_pipe[0]);
    while (fd >= 0 && read(fd, buf, sizeof buf) > 0)
        ;
}

int sess_open_cancel(struct cb_error *err)
{
    int fds[2];
    if (atomic_load(&cancel_pipe[0]) >= 0)
        return 0;
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
        return cb_fail_sys(err, errno, "pipe");
    atomic_store(&cancel_pipe[0], fds[0]);
    atomic_store(&cancel_pipe[1], fds[1]);
    return 0;
}

int sess_untrusted(struct session *s, struct cb_error *err, const char *what)
{
    s->dead = true;
    return cb_fail(err, CB_E_UNTRUSTED, "the builder sent %s", what);
}

/* Bytes of the well-formed UTF-8 character at @p (of @n bytes), or 0. */
static size_t utf8_len(const unsigned char *p, size_t n)
{
    size_t len = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (len == 0 || p[0] > 0xf4 || len > n)
        return 0;
    for (size_t i = 1; i < len; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
        (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return len;
}

/* Text of the guest's, for people: at most FRAME_TEXT_MAX bytes of UTF-8; what is not, and control
 * characters (NUL too), are '?'. */
char *sess_text(const struct frame_field *f)
{
    size_t n = f->len < FRAME_TEXT_MAX ? f->len : FRAME_TEXT_MAX;
    char *t = cb_xcalloc(1, n + 1);
    for (size_t i = 0; i < n;) {
        size_t len = utf8_len(f->data + i, n - i);
        if (len == 0 || f->data[i] < ' ' || f->data[i] == 0x7f) {
            t[i++] = '?';
        } else {
            memcpy(t + i, f->data + i, len);
            i += len;
        }
    }
    return t;
}

/* OUTPUT, NOTE, PROBE and HEARTBEAT may come at any time. 1: it was one of them. */
static int take_async(struct session *s, const struct reply *r, struct cb_error *err)
{
    struct frame_field f;
    const uint8_t *p = r->p, *end = r->p + r->n;
    uint64_t stream = 0;
    if (r->type == FRAME_METADATA)
        return sess_metadata_take(s, r, err);
    const struct frame_field none = {0};
    struct frame_field data = none, text = none;
    if (r->type != FRAME_OUTPUT && r->type != FRAME_NOTE && r->type != FRAME_PROBE &&
        r->type != FRAME_HEARTBEAT)
        return 0;
    for (int got; (got = frame_next(&p, end, &f)) != 0;) {
        if (got < 0)
            return sess_untrusted(s, err, "a broken frame");
        if (f.tag == TAG_STREAM && !frame_number(&f, &stream))
            return sess_untrusted(s, err, "a broken number");
        if (f.tag == TAG_DATA)
            data = f;
        if (f.tag == TAG_TEXT)
            text = f;
    }
    if (r->type == FRAME_OUTPUT) {
        if ((stream != STREAM_STDOUT && stream != STREAM_STDERR) || data.len > FRAME_OUTPUT_MAX ||
            (r->step != s->step && r->step != 0))
            return sess_untrusted(s, err, "output that belongs nowhere");
        if (s->cb.output && data.len)
            s->cb.output(s->cb.arg, r->step, (int)stream, data.data, data.len);
    } else if (r->type == FRAME_NOTE && text.data && s->cb.note && s->notes <= NOTES_MAX) {
        CB_AUTO_FREE char *t = sess_text(&text);
        s->cb.note(s->cb.arg, s->notes++ < NOTES_MAX ? t : "more notes are left out");
    } else if (r->type == FRAME_PROBE && text.data) {
        free(s->probe);
        s->probe = sess_text(&text);
    }
    return 1;
}

/* 1 and *@r when a whole frame is in the buffer. It stays there until sess_pop(). */
static int peek(struct session *s, struct reply *r, struct cb_error *err)
{
    struct frame_head h;
    if (s->in.len < FRAME_HEAD)
        return 0;
    if (!frame_head_parse((const uint8_t *)s->in.data, FRAME_REPLY_MAX, &h))
        return sess_untrusted(s, err, "bytes that are not a frame");
    if (s->in.len - FRAME_HEAD < h.length)
        return 0;
    *r = (struct reply){.type = h.type,
                        .step = h.step,
                        .p = (const uint8_t *)s->in.data + FRAME_HEAD,
                        .n = h.length};
    return 1;
}

void sess_pop(struct session *s, const struct reply *r)
{
    cb_buf_drop(&s->in, FRAME_HEAD + r->n);
}

static int read_some(struct session *s, struct cb_error *err)
{
    char buf[16384];
    size_t room = s->in.max - s->in.len;
    ssize_t n = read(s->fd, buf, room < sizeof buf ? room : sizeof buf);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0) {
        s->dead = true;
        return cb_fail(err, CB_E_SYS, "the builder ended");
    }
    s->heard_at = cb_monotonic_ms();
    return cb_buf_add(&s->in, buf, (size_t)n);
}

/* Handles what may come at any time; 1 when the frame at the front is an answer. */
static int work_off(struct session *s, struct reply *r, struct cb_error *err)
{
    for (;;) {
        int got = peek(s, r, err);
        if (got <= 0)
            return got;
        int rc = take_async(s, r, err);
        if (rc < 0)
            return rc;
        if (rc == 0)
            return 1;
        sess_pop(s, r);
    }
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Waits until the stream has @events (POLLIN always counts), or one of @others is readable, which
 * *@other says, or a second has passed. */
static int wait_stream_or(struct session *s, short events, const int others[2], bool *other,
                          int64_t deadline, struct cb_error *err)
{
    if (canceled)
        return cb_fail(err, CB_E_CANCELED, "canceled");
    int64_t now = cb_monotonic_ms(), silent_at = s->heard_at + s->silence_ms;
    if (now >= deadline) {
        return cb_fail(err, CB_E_TIMEOUT, "the builder did not answer in time");
    }
    if (now >= silent_at) {
        s->dead = true;
        return cb_fail(err, CB_E_TIMEOUT, "the builder has been silent for %lld s",
                       (long long)(s->silence_ms / 1000));
    }
    if (now - s->ticked_at >= TICK_MS) {
        s->ticked_at = now;
        if (s->cb.tick)
            s->cb.tick(s->cb.arg);
    }
    int64_t wait = min64(min64(deadline, silent_at), s->ticked_at + TICK_MS) - now;
    struct pollfd p[4] = {{.fd = s->fd, .events = (short)(events | POLLIN)},
                          {.fd = atomic_load(&cancel_pipe[0]), .events = POLLIN},
                          {.fd = others[0], .events = POLLIN},
                          {.fd = others[1], .events = POLLIN}};
    if (poll(p, 4, (int)(wait > 0 ? wait : 0)) < 0 && errno != EINTR)
        return cb_fail_sys(err, errno, "poll");
    if (canceled)
        return cb_fail(err, CB_E_CANCELED, "canceled");
    *other = p[2].revents || p[3].revents;
    return p[0].revents;
}

static int wait_stream(struct session *s, short events, int64_t deadline, struct cb_error *err)
{
    static const int none[2] = {-1, -1};
    bool other;
    return wait_stream_or(s, events, none, &other, deadline, err);
}

int sess_next_or(struct session *s, const int fds[2], int64_t deadline, struct reply *r,
                 struct cb_error *err)
{
    for (bool other = false; !other;) {
        int rc = work_off(s, r, err);
        if (rc != 0)
            return rc < 0 ? rc : 0;
        if (s->n_asks && (rc = sess_metadata_answer(s, err)) < 0)
            return rc;
        rc = wait_stream_or(s, 0, fds, &other, deadline, err);
        if (rc > 0)
            rc = read_some(s, err);
        if (rc < 0)
            return rc;
    }
    return 1;
}

/* The next answer. It stays in the buffer until sess_pop(). */
int sess_next(struct session *s, int64_t deadline, struct reply *r, struct cb_error *err)
{
    static const int none[2] = {-1, -1};
    int rc = sess_next_or(s, none, deadline, r, err);
    return rc < 0 ? rc : 0;
}

/* Writes a request, taking in what comes meanwhile: the guest may be waiting for us to read. */
int sess_send(struct session *s, const struct frame_out *o, struct cb_error *err)
{
    if (s->dead)
        return cb_fail(err, CB_E_SYS, "the builder is gone");
    if (o->over)
        return cb_fail(err, CB_E_LIMIT, "the request is larger than %u KiB",
                       FRAME_REQUEST_MAX >> 10);
    int64_t deadline = cb_monotonic_ms() + SETUP_MS * s->factor;
    s->heard_at = cb_monotonic_ms(); /* while nobody listened, nobody was heard */
    for (size_t at = 0; at < o->len;) {
        ssize_t n = write(s->fd, o->p + at, o->len - at);
        if (n > 0) {
            at += (size_t)n;
            continue;
        }
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            s->dead = true;
            return cb_fail(err, CB_E_SYS, "the builder ended");
        }
        struct reply r = {0};
        int rc = work_off(s, &r, err);
        if (rc == 1)
            rc = sess_untrusted(s, err, "an answer to nothing");
        if (rc == 0)
            rc = wait_stream(s, POLLOUT, deadline, err);
        if (rc > 0 && (rc & (POLLIN | POLLHUP | POLLERR)))
            rc = read_some(s, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int sess_raise_failed(struct session *s, const struct reply *r, struct cb_error *err)
{
    struct frame_field f;
    uint64_t kind = 0;
    CB_AUTO_FREE char *text = NULL;
    const uint8_t *p = r->p;
    for (int got; (got = frame_next(&p, r->p + r->n, &f)) != 0;) {
        if (got < 0 || (f.tag == TAG_KIND && !frame_number(&f, &kind)))
            return sess_untrusted(s, err, "a broken frame");
        if (f.tag == TAG_TEXT && !text)
            text = sess_text(&f);
    }
    enum cb_code code = CB_E_SYS;
    if (kind == FAIL_COMMAND)
        code = CB_E_COMMAND;
    else if (kind == FAIL_IMAGE)
        code = CB_E_CORRUPT;
    else if (kind == FAIL_SPACE)
        code = CB_E_ENV;
    else if (kind == FAIL_PROTOCOL)
        code = CB_E_BUG;
    else if (kind != FAIL_SYSTEM)
        return sess_untrusted(s, err, "an unknown failure");
    return cb_fail(err, code, "%s", text ? text : "failed without a word");
}

/* Waits for an answer of type @want and leaves it at the front; FAILED becomes an error. */
int sess_expect(struct session *s, enum frame_type want, int64_t timeout_ms, struct reply *r,
                struct cb_error *err)
{
    int rc = sess_next(s, cb_monotonic_ms() + timeout_ms, r, err);
    if (rc < 0)
        return rc;
    if (r->type == FRAME_FAILED) {
        rc = sess_raise_failed(s, r, err);
        if (!s->dead)
            sess_pop(s, r);
        return rc;
    }
    if (r->type != want)
        return sess_untrusted(s, err, "an answer of the wrong kind");
    return 0;
}
int sess_numbers(struct session *s, const struct reply *r, const struct number_field *want,
                 size_t n_want, struct cb_error *err)
{
    struct frame_field f;
    unsigned seen = 0;
    const uint8_t *p = r->p;
    for (int got; (got = frame_next(&p, r->p + r->n, &f)) != 0;) {
        if (got < 0)
            return sess_untrusted(s, err, "a broken frame");
        for (size_t i = 0; i < n_want; i++) {
            if (f.tag != want[i].tag)
                continue;
            if (!frame_number(&f, want[i].value) || *want[i].value > want[i].max)
                return sess_untrusted(s, err, "a number out of range");
            seen |= 1u << i;
        }
    }
    if (seen != (1u << n_want) - 1)
        return sess_untrusted(s, err, "an incomplete answer");
    return 0;
}

int sess_number(struct session *s, const struct reply *r, enum frame_tag tag, uint64_t max,
                uint64_t *value, struct cb_error *err)
{
    struct frame_field f;
    const uint8_t *p = r->p;
    for (int got; (got = frame_next(&p, r->p + r->n, &f)) != 0;) {
        if (got < 0)
            return sess_untrusted(s, err, "a broken frame");
        if (f.tag == tag && (!frame_number(&f, value) || *value > max))
            return sess_untrusted(s, err, "a number out of range");
    }
    return 0;
}

void sess_begin(struct session *s, struct frame_out *o, enum frame_type type, uint32_t step)
{
    frame_begin(o, s->out, FRAME_HEAD + FRAME_REQUEST_MAX, type, step);
    s->notes = 0;
}
void sess_put_env(struct frame_out *o, const struct config_pairs *env)
{
    for (size_t i = 0; env && i < env->n; i++) {
        CB_AUTO_FREE char *pair = cb_xasprintf("%s=%s", env->v[i].key, env->v[i].value);
        frame_put_text(o, TAG_ENV, pair);
        explicit_bzero(pair, strlen(pair));
    }
}

/* A request that DONE answers. */
int sess_ask(struct session *s, const struct frame_out *o, int64_t timeout_ms, struct cb_error *err)
{
    struct reply r = {0};
    int rc = sess_send(s, o, err);
    if (rc == 0)
        rc = sess_expect(s, FRAME_DONE, timeout_ms, &r, err);
    if (rc == 0)
        sess_pop(s, &r);
    return rc;
}
