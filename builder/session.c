#include "builder/session.h"

#include "builder/frames.h"
#include "support/buf.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/random.h>

#define SILENCE_MS INT64_C(30000) /* the agent has a heartbeat of 2 s */
#define SETUP_MS INT64_C(300000)
#define LAYER_END_MS INT64_C(3600000)
#define STEP_MARGIN_MS                                                                             \
    INT64_C(60000) /* the agent keeps the limit itself; we only when it does not */
#define DIFF_MAX (1ull << 42)
#define OUTPUT_ALIGN 4096u
#define TICK_MS 1000

struct session {
    int fd;
    struct session_callbacks cb;
    struct cb_buf in;
    uint8_t *out; /* FRAME_HEAD + FRAME_REQUEST_MAX */
    int64_t silence_ms, heard_at, ticked_at;
    int factor;          /* of the limits below: 1, more where the guest is emulated */
    uint32_t step;       /* whose output may come */
    uint64_t output_end; /* where the last diff ended */
    bool dead;           /* an error that nothing can follow */
    char *probe;         /* what the last probe of a booted image gave; owned */
};

/* A frame that the guest sent; the payload is borrowed from the session's buffer until the next
 * read. */
struct reply {
    enum frame_type type;
    uint32_t step;
    const uint8_t *p;
    size_t n;
};

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

static int open_cancel_pipe(struct cb_error *err)
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

static int untrusted(struct session *s, struct cb_error *err, const char *what)
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
static char *guest_text(const struct frame_field *f)
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
    const struct frame_field none = {0};
    struct frame_field data = none, text = none;
    if (r->type != FRAME_OUTPUT && r->type != FRAME_NOTE && r->type != FRAME_PROBE &&
        r->type != FRAME_HEARTBEAT)
        return 0;
    for (int got; (got = frame_next(&p, end, &f)) != 0;) {
        if (got < 0)
            return untrusted(s, err, "a broken frame");
        if (f.tag == TAG_STREAM && !frame_number(&f, &stream))
            return untrusted(s, err, "a broken number");
        if (f.tag == TAG_DATA)
            data = f;
        if (f.tag == TAG_TEXT)
            text = f;
    }
    if (r->type == FRAME_OUTPUT) {
        if ((stream != STREAM_STDOUT && stream != STREAM_STDERR) || data.len > FRAME_OUTPUT_MAX ||
            (r->step != s->step && r->step != 0))
            return untrusted(s, err, "output that belongs nowhere");
        if (s->cb.output && data.len)
            s->cb.output(s->cb.arg, r->step, (int)stream, data.data, data.len);
    } else if (r->type == FRAME_NOTE && text.data && s->cb.note) {
        CB_AUTO_FREE char *t = guest_text(&text);
        s->cb.note(s->cb.arg, t);
    } else if (r->type == FRAME_PROBE && text.data) {
        free(s->probe);
        s->probe = guest_text(&text);
    }
    return 1;
}

/* 1 and *@r when a whole frame is in the buffer. It stays there until pop(). */
static int peek(struct session *s, struct reply *r, struct cb_error *err)
{
    struct frame_head h;
    if (s->in.len < FRAME_HEAD)
        return 0;
    if (!frame_head_parse((const uint8_t *)s->in.data, FRAME_REPLY_MAX, &h))
        return untrusted(s, err, "bytes that are not a frame");
    if (s->in.len - FRAME_HEAD < h.length)
        return 0;
    *r = (struct reply){.type = h.type,
                        .step = h.step,
                        .p = (const uint8_t *)s->in.data + FRAME_HEAD,
                        .n = h.length};
    return 1;
}

static void pop(struct session *s, const struct reply *r)
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
        pop(s, r);
    }
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Waits until the stream has @events (POLLIN always counts) or a second has passed. */
static int wait_stream(struct session *s, short events, int64_t deadline, struct cb_error *err)
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
    struct pollfd p[2] = {{.fd = s->fd, .events = (short)(events | POLLIN)},
                          {.fd = atomic_load(&cancel_pipe[0]), .events = POLLIN}};
    if (poll(p, 2, (int)(wait > 0 ? wait : 0)) < 0 && errno != EINTR)
        return cb_fail_sys(err, errno, "poll");
    if (canceled)
        return cb_fail(err, CB_E_CANCELED, "canceled");
    return p[0].revents;
}

/* The next answer. It stays in the buffer until pop(). */
static int next_reply(struct session *s, int64_t deadline, struct reply *r, struct cb_error *err)
{
    for (;;) {
        int rc = work_off(s, r, err);
        if (rc != 0)
            return rc < 0 ? rc : 0;
        rc = wait_stream(s, 0, deadline, err);
        if (rc > 0)
            rc = read_some(s, err);
        if (rc < 0)
            return rc;
    }
}

/* Writes a request, taking in what comes meanwhile: the guest may be waiting for us to read. */
static int send_frame(struct session *s, const struct frame_out *o, struct cb_error *err)
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
            rc = untrusted(s, err, "an answer to nothing");
        if (rc == 0)
            rc = wait_stream(s, POLLOUT, deadline, err);
        if (rc > 0 && (rc & (POLLIN | POLLHUP | POLLERR)))
            rc = read_some(s, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int raise_failed(struct session *s, const struct reply *r, struct cb_error *err)
{
    struct frame_field f;
    uint64_t kind = 0;
    CB_AUTO_FREE char *text = NULL;
    const uint8_t *p = r->p;
    for (int got; (got = frame_next(&p, r->p + r->n, &f)) != 0;) {
        if (got < 0 || (f.tag == TAG_KIND && !frame_number(&f, &kind)))
            return untrusted(s, err, "a broken frame");
        if (f.tag == TAG_TEXT && !text)
            text = guest_text(&f);
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
        return untrusted(s, err, "an unknown failure");
    return cb_fail(err, code, "%s", text ? text : "failed without a word");
}

/* Waits for an answer of type @want and leaves it at the front; FAILED becomes an error. */
static int expect(struct session *s, enum frame_type want, int64_t timeout_ms, struct reply *r,
                  struct cb_error *err)
{
    int rc = next_reply(s, cb_monotonic_ms() + timeout_ms, r, err);
    if (rc < 0)
        return rc;
    if (r->type == FRAME_FAILED) {
        rc = raise_failed(s, r, err);
        if (!s->dead)
            pop(s, r);
        return rc;
    }
    if (r->type != want)
        return untrusted(s, err, "an answer of the wrong kind");
    return 0;
}

/* Reads the number fields of an answer: tags[i] into *values[i], each at most max[i], all required.
 */
struct number_field {
    enum frame_tag tag;
    uint64_t max;
    uint64_t *value;
};
static int take_numbers(struct session *s, const struct reply *r, const struct number_field *want,
                        size_t n_want, struct cb_error *err)
{
    struct frame_field f;
    unsigned seen = 0;
    const uint8_t *p = r->p;
    for (int got; (got = frame_next(&p, r->p + r->n, &f)) != 0;) {
        if (got < 0)
            return untrusted(s, err, "a broken frame");
        for (size_t i = 0; i < n_want; i++) {
            if (f.tag != want[i].tag)
                continue;
            if (!frame_number(&f, want[i].value) || *want[i].value > want[i].max)
                return untrusted(s, err, "a number out of range");
            seen |= 1u << i;
        }
    }
    if (seen != (1u << n_want) - 1)
        return untrusted(s, err, "an incomplete answer");
    return 0;
}

#define count_of(a) (sizeof(a) / sizeof((a)[0]))

static void begin(struct session *s, struct frame_out *o, enum frame_type type, uint32_t step)
{
    frame_begin(o, s->out, FRAME_HEAD + FRAME_REQUEST_MAX, type, step);
}

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
    int rc = open_cancel_pipe(err);
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
        take_numbers(s, r, (struct number_field[]){{TAG_VERSION, UINT32_MAX, &version}}, 1, err);
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
    return same ? 0 : untrusted(s, err, "a hello that answers somebody else");
}

/* 1: it parked, 0: it said hello. */
static int first_word(struct session *s, bool may_park, int64_t timeout_ms, struct cb_error *err)
{
    struct reply r = {0};
    int rc = next_reply(s, cb_monotonic_ms() + timeout_ms, &r, err);
    if (rc < 0)
        return rc;
    if (r.type == FRAME_FAILED)
        rc = raise_failed(s, &r, err);
    else if (r.type == FRAME_HELLO)
        rc = check_hello(s, &r, NULL, err);
    else if (r.type == FRAME_PARKED && may_park)
        rc = 1;
    else
        rc = untrusted(s, err, "an answer of the wrong kind");
    if (rc >= 0)
        pop(s, &r);
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
    begin(s, &o, FRAME_PARK, 0);
    int rc = send_frame(s, &o, err);
    if (rc == 0)
        rc = expect(s, FRAME_PARKED, timeout_ms, &r, err);
    if (rc < 0)
        return cb_wrap(err, "make the machine ready to be saved");
    pop(s, &r);
    return 0;
}

int session_resume(struct session *s, int64_t timeout_ms, struct cb_error *err)
{
    struct frame_out o;
    struct reply r = {0};
    uint8_t random[FRAME_NONCE_LEN + FRAME_ENTROPY_LEN];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return cb_fail_sys(err, errno, "random numbers");
    begin(s, &o, FRAME_RESUME, 0);
    frame_put(&o, TAG_NONCE, random, FRAME_NONCE_LEN);
    frame_put(&o, TAG_ENTROPY, random + FRAME_NONCE_LEN, FRAME_ENTROPY_LEN);
    frame_put_number(&o, TAG_TIME, (uint64_t)cb_now_ms());
    int rc = send_frame(s, &o, err);
    if (rc == 0)
        rc = expect(s, FRAME_HELLO, timeout_ms, &r, err);
    if (rc == 0)
        rc = check_hello(s, &r, random, err);
    if (rc < 0)
        return cb_wrap(err, "resume the machine");
    pop(s, &r);
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

static void put_env(struct frame_out *o, const struct config_pairs *env)
{
    for (size_t i = 0; env && i < env->n; i++) {
        CB_AUTO_FREE char *pair = cb_xasprintf("%s=%s", env->v[i].key, env->v[i].value);
        frame_put_text(o, TAG_ENV, pair);
    }
}

/* A request that DONE answers. */
static int ask(struct session *s, const struct frame_out *o, int64_t timeout_ms,
               struct cb_error *err)
{
    struct reply r = {0};
    int rc = send_frame(s, o, err);
    if (rc == 0)
        rc = expect(s, FRAME_DONE, timeout_ms, &r, err);
    if (rc == 0)
        pop(s, &r);
    return rc;
}

int session_setup(struct session *s, const struct guest_setup *g, struct cb_error *err)
{
    struct frame_out o;
    begin(s, &o, FRAME_SETUP, 0);
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
    int rc = ask(s, &o, SETUP_MS * s->factor, err);
    return rc < 0 ? cb_wrap(err, "prepare the builder") : 0;
}

int session_layer_begin(struct session *s, const struct guest_layer *l, struct cb_error *err)
{
    struct frame_out o;
    begin(s, &o, FRAME_LAYER_BEGIN, 0);
    frame_put_text(&o, TAG_NAME, l->name);
    put_env(&o, l->env);
    frame_put_text(&o, TAG_WORKDIR, l->workdir);
    frame_put_text(&o, TAG_USER, l->user);
    int rc = ask(s, &o, SETUP_MS * s->factor, err);
    return rc < 0 ? cb_wrap(err, "begin layer %s", l->name) : 0;
}

static int take_step_result(struct session *s, const struct reply *r, struct step_result *out,
                            struct cb_error *err)
{
    uint64_t code = 0, sig = 0, timed_out = 0, elapsed = 0, cpu = 0, rss = 0;
    const struct number_field want[] = {
        {TAG_EXIT, 255, &code},         {TAG_SIGNAL, 64, &sig},
        {TAG_TIMED_OUT, 1, &timed_out}, {TAG_ELAPSED, INT64_MAX, &elapsed},
        {TAG_CPU, INT64_MAX, &cpu},     {TAG_RSS, INT64_MAX, &rss},
    };
    int rc = take_numbers(s, r, want, count_of(want), err);
    if (rc < 0)
        return rc;
    if (r->step != s->step)
        return untrusted(s, err, "the end of another step");
    pop(s, r);
    *out = (struct step_result){.exit_code = (int)code,
                                .signal = (int)sig,
                                .timed_out = timed_out != 0,
                                .elapsed_ms = (int64_t)elapsed,
                                .cpu_ms = (int64_t)cpu,
                                .max_rss_kib = rss};
    return 0;
}

/* The answer to STEP and to EXEC. */
static int wait_step(struct session *s, int64_t timeout_ms, struct step_result *out,
                     struct cb_error *err)
{
    struct reply r = {0};
    int rc = expect(s, FRAME_STEP_DONE, timeout_ms, &r, err);
    return rc < 0 ? rc : take_step_result(s, &r, out, err);
}

static void put_step(struct frame_out *o, const struct guest_step *st)
{
    frame_put_text(o, TAG_SCRIPT, st->script);
    for (size_t i = 0; !st->script && st->argv && i < st->argv->n; i++)
        frame_put_text(o, TAG_ARG, st->argv->v[i]);
    frame_put_number(o, TAG_ROOT, st->as_root);
    put_env(o, st->env);
    put_env(o, st->over_env);
    frame_put_text(o, TAG_USER, st->user);
    frame_put_text(o, TAG_WORKDIR, st->workdir);
}

int session_step(struct session *s, const struct guest_step *st, struct step_result *out,
                 struct cb_error *err)
{
    struct frame_out o;
    begin(s, &o, FRAME_STEP, st->step);
    put_step(&o, st);
    if (st->timeout_ms > 0)
        frame_put_number(&o, TAG_TIMEOUT, (uint64_t)st->timeout_ms);
    s->step = st->step;
    int64_t limit =
        st->timeout_ms > 0 ? st->timeout_ms + STEP_MARGIN_MS * s->factor : INT64_MAX / 2;
    int rc = send_frame(s, &o, err);
    return rc < 0 ? rc : wait_step(s, limit, out, err);
}

int session_start(struct session *s, const struct guest_step *st, int64_t wait_ms,
                  struct step_result *out, struct cb_error *err)
{
    struct frame_out o;
    struct reply r = {0};
    begin(s, &o, FRAME_START, st->step);
    put_step(&o, st);
    frame_put_number(&o, TAG_WAIT, (uint64_t)wait_ms);
    s->step = st->step;
    int rc = send_frame(s, &o, err);
    if (rc == 0)
        rc = next_reply(s, cb_monotonic_ms() + wait_ms + STEP_MARGIN_MS * s->factor, &r, err);
    if (rc < 0)
        return rc;
    if (r.type == FRAME_DONE && r.step == st->step) {
        pop(s, &r);
        return 1;
    }
    if (r.type == FRAME_FAILED) {
        rc = raise_failed(s, &r, err);
        if (!s->dead)
            pop(s, &r);
        return rc;
    }
    if (r.type != FRAME_STEP_DONE)
        return untrusted(s, err, "an answer of the wrong kind");
    return take_step_result(s, &r, out, err);
}

int session_try(struct session *s, struct cb_error *err)
{
    struct frame_out o;
    begin(s, &o, FRAME_TRY, 0);
    int rc = ask(s, &o, SETUP_MS * s->factor, err);
    return rc < 0 ? cb_wrap(err, "make room for another try") : 0;
}

int session_try_keep(struct session *s, struct cb_error *err)
{
    struct frame_out o;
    begin(s, &o, FRAME_TRY_KEEP, 0);
    int rc = ask(s, &o, SETUP_MS * s->factor, err);
    return rc < 0 ? cb_wrap(err, "keep what the command did") : 0;
}

int session_pause(struct session *s, int64_t ms, struct cb_error *err)
{
    int64_t end = cb_monotonic_ms() + ms;
    struct reply r = {0};
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    s->heard_at = cb_monotonic_ms();
    int rc = next_reply(s, end, &r, &why);
    if (rc == -CB_E_TIMEOUT && !s->dead)
        return 0;
    if (rc < 0)
        return cb_error_move(err, &why);
    return untrusted(s, err, "an answer to nothing");
}

int session_layer_end(struct session *s, struct guest_diff *out, struct cb_error *err)
{
    struct frame_out o;
    struct reply r = {0};
    begin(s, &o, FRAME_LAYER_END, 0);
    int rc = send_frame(s, &o, err);
    if (rc == 0)
        rc = expect(s, FRAME_LAYER_DONE, LAYER_END_MS * s->factor, &r, err);
    if (rc < 0)
        return cb_wrap(err, "take out the layer's changes");
    struct guest_diff d = {0};
    const struct number_field want[] = {
        {TAG_OFFSET, DIFF_MAX, &d.offset},
        {TAG_LENGTH, DIFF_MAX, &d.length},
        {TAG_ENTRIES, DIFF_MAX, &d.entries},
        {TAG_WHITEOUTS, DIFF_MAX, &d.whiteouts},
    };
    rc = take_numbers(s, &r, want, count_of(want), err);
    if (rc < 0)
        return rc;
    if (d.offset < s->output_end || d.offset % OUTPUT_ALIGN != 0 || d.length % 512 != 0)
        return untrusted(s, err, "a diff at an impossible place");
    s->output_end = d.offset + d.length;
    pop(s, &r);
    *out = d;
    return 0;
}

static int start_ended(struct session *s, const struct reply *r, char **how, struct cb_error *err)
{
    uint64_t code = 0, sig = 0;
    const struct number_field want[] = {{TAG_EXIT, 255, &code}, {TAG_SIGNAL, 64, &sig}};
    int rc = take_numbers(s, r, want, count_of(want), err);
    if (rc < 0)
        return rc;
    const char *probe = s->probe ? s->probe : "no probe";
    if (sig)
        *how = cb_xasprintf("the start command was killed by signal %d; last probe: %s", (int)sig,
                            probe);
    else
        *how = cb_xasprintf("the start command ended with exit code %d; last probe: %s", (int)code,
                            probe);
    pop(s, r);
    return 0;
}

int session_wait_ready(struct session *s, int64_t timeout_ms, char **how, struct cb_error *err)
{
    struct frame_out o;
    struct reply r = {0};
    int64_t deadline = cb_monotonic_ms() + timeout_ms;
    begin(s, &o, FRAME_WATCH, 0);
    int rc = ask(s, &o, timeout_ms, err);
    if (rc == 0)
        rc = next_reply(s, deadline, &r, err);
    if (rc == -CB_E_TIMEOUT && cb_monotonic_ms() >= deadline) {
        cb_error_clear(err);
        *how = cb_xasprintf("not ready in time; last probe: %s", s->probe ? s->probe : "none yet");
        return 0;
    }
    if (rc < 0)
        return rc;
    if (r.type == FRAME_START_EXITED)
        return start_ended(s, &r, how, err);
    if (r.type != FRAME_READY)
        return untrusted(s, err, "an answer of the wrong kind");
    struct frame_field f;
    char *text = NULL;
    const uint8_t *p = r.p;
    for (int got; (got = frame_next(&p, r.p + r.n, &f)) != 0;) {
        if (got < 0) {
            free(text);
            return untrusted(s, err, "a broken frame");
        }
        if (f.tag == TAG_TEXT && !text)
            text = guest_text(&f);
    }
    pop(s, &r);
    *how = text ? text : cb_xstrdup("ready");
    return 1;
}

int session_attend(struct session *s, struct cb_error *err)
{
    CB_AUTO_ERROR end = CB_ERROR_INIT;
    for (;;) {
        struct reply r = {0};
        int rc = next_reply(s, INT64_MAX, &r, &end);
        if (rc == -CB_E_SYS && s->dead)
            return 0; /* it powered off */
        if (rc < 0)
            return cb_error_move(err, &end);
        if (r.type != FRAME_START_EXITED) /* a watch may answer late; nothing else is open */
            return untrusted(s, err, "an answer to nothing");
        pop(s, &r);
    }
}

/* The start command's output comes as step 0: this one's must be told from it. */
enum { EXEC_STEP = 1 };

int session_exec_within(struct session *s, const char *const *argv, int64_t timeout_ms,
                        struct step_result *out, struct cb_error *err)
{
    struct frame_out o;
    begin(s, &o, FRAME_EXEC, EXEC_STEP);
    for (size_t i = 0; argv[i]; i++)
        frame_put_text(&o, TAG_ARG, argv[i]);
    if (timeout_ms > 0)
        frame_put_number(&o, TAG_TIMEOUT, (uint64_t)timeout_ms);
    s->step = EXEC_STEP;
    int64_t limit = timeout_ms > 0 ? timeout_ms + STEP_MARGIN_MS * s->factor : INT64_MAX / 2;
    int rc = send_frame(s, &o, err);
    return rc < 0 ? rc : wait_step(s, limit, out, err);
}

int session_exec(struct session *s, const char *const *argv, struct step_result *out,
                 struct cb_error *err)
{
    return session_exec_within(s, argv, 0, out, err);
}

int session_shutdown(struct session *s, int64_t timeout_ms, struct cb_error *err)
{
    struct frame_out o;
    begin(s, &o, FRAME_SHUTDOWN, 0);
    return ask(s, &o, timeout_ms, err);
}
