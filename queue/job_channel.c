/* job_channel: the build process's end of the talk with its worker (queue/wire.h). Writes go to the
 * socket at once, so that a line is with its viewers soon. */
#include "queue/queue.h"
#include "queue/wire.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define UNACKED_MAX (4u << 20)

struct job_channel {
    int fd;
    struct wire_reader in;
    struct cb_buf out;
    struct wire_job job;
    uint64_t sent, acked; /* bytes of event frames */
    bool done;            /* the worker stored the result */
};

static int gone(struct cb_error *err)
{
    return cb_fail(err, CB_E_CANCELED, "the worker that runs this build is gone");
}

/* Reads what is there; @block: at least something. */
static int fill(struct job_channel *ch, bool block, struct cb_error *err)
{
    char piece[16384];
    for (;;) {
        ssize_t n = recv(ch->fd, piece, sizeof(piece), block ? 0 : MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (!block)
                return 0;
            struct pollfd p = {.fd = ch->fd, .events = POLLIN};
            (void)poll(&p, 1, -1); /* the descriptor came to us non-blocking */
            continue;
        }
        if (n <= 0)
            return gone(err);
        return wire_feed(&ch->in, piece, (size_t)n) < 0
                   ? cb_fail(err, CB_E_BUG, "the worker sends too much")
                   : 1;
    }
}

/* Takes acknowledgements. @block: waits for one at least. */
static int take_acks(struct job_channel *ch, bool block, struct cb_error *err)
{
    for (;;) {
        struct wire_msg m;
        int rc;
        while ((rc = wire_next(&ch->in, &m, err)) > 0) {
            block = false;
            if (m.type == WIRE_DONE)
                ch->done = true;
            else if ((rc = wire_ack_parse(&m, &ch->acked, err)) < 0)
                return rc;
        }
        if (rc < 0)
            return rc;
        if (ch->done)
            return 0; /* the worker may have hung up since */
        rc = fill(ch, block, err);
        if (rc <= 0)
            return rc;
    }
}

static int send_out(struct job_channel *ch, struct cb_error *err)
{
    size_t at = 0;
    while (at < ch->out.len) {
        ssize_t n = send(ch->fd, ch->out.data + at, ch->out.len - at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            struct pollfd p = {.fd = ch->fd, .events = POLLOUT};
            (void)poll(&p, 1, -1);
            continue;
        }
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
            return gone(err);
        if (n < 0)
            return cb_fail_sys(err, errno, "write to the worker");
        at += (size_t)n;
    }
    cb_buf_clear(&ch->out);
    return 0;
}

static int read_job(struct job_channel *ch, struct cb_error *err)
{
    for (;;) {
        struct wire_msg m;
        int rc = wire_next(&ch->in, &m, err);
        if (rc < 0)
            return rc;
        if (rc > 0)
            return wire_job_parse(&m, &ch->job, err);
        rc = fill(ch, true, err);
        if (rc < 0)
            return rc;
    }
}

int job_channel_open(int fd, struct job_channel **out, struct cb_error *err)
{
    struct job_channel *ch = cb_xcalloc(1, sizeof(*ch));
    ch->fd = fd;
    wire_reader_init(&ch->in, WIRE_JOB_MAX);
    cb_buf_init(&ch->out, WIRE_MAX + WIRE_HEADER);
    int rc = read_job(ch, err);
    if (rc < 0) {
        job_channel_free(ch);
        return cb_wrap(err, "receive the job");
    }
    wire_reader_release(&ch->in); /* the job may have been large, what follows is not */
    wire_reader_init(&ch->in, WIRE_MAX);
    *out = ch;
    return 0;
}

const char *job_channel_build_id(const struct job_channel *ch)
{
    return ch->job.id;
}

const char *job_channel_config(const struct job_channel *ch)
{
    return ch->job.config;
}

const char *job_channel_options(const struct job_channel *ch)
{
    return ch->job.options;
}

int job_channel_event(struct job_channel *ch, enum event_type type, json_t *payload,
                      struct cb_error *err)
{
    json_auto_t *p = payload;
    int rc = event_check(type, p, err);
    if (rc < 0)
        return rc;
    json_auto_t *o = json_pack("{s:s, s:I, s:O}", "type", event_type_name(type), "ts",
                               (json_int_t)cb_now_ms(), "payload", p);
    rc = wire_put(&ch->out, WIRE_EVENT, o, err);
    if (rc < 0)
        return rc;
    size_t n = ch->out.len;
    rc = send_out(ch, err);
    if (rc < 0)
        return rc;
    ch->sent += n;
    do {
        rc = take_acks(ch, ch->sent - ch->acked > UNACKED_MAX, err);
    } while (rc >= 0 && ch->sent - ch->acked > UNACKED_MAX);
    return rc;
}

int job_channel_finish(struct job_channel *ch, const struct cb_error *failure, const json_t *result,
                       struct cb_error *err)
{
    json_auto_t *o = json_object();
    (void)json_object_set_new(o, "ok", json_boolean(failure == NULL));
    if (failure) {
        /* event_text() makes any bytes a JSON string of bounded length */
        json_auto_t *msg = event_text("%s", failure->msg ? failure->msg : "no message");
        (void)json_object_set_new(o, "code", json_string(cb_code_name(failure->code)));
        (void)json_object_set(o, "message", json_object_get(msg, "text"));
        if (failure->hint) {
            json_auto_t *hint = event_text("%s", failure->hint);
            (void)json_object_set(o, "hint", json_object_get(hint, "text"));
        }
    }
    if (result)
        (void)json_object_set_new(o, "result", json_deep_copy(result));
    int rc = wire_put(&ch->out, WIRE_FINISH, o, err);
    if (rc >= 0)
        rc = send_out(ch, err);
    while (rc >= 0 && !ch->done)
        rc = take_acks(ch, true, err);
    return rc;
}

void job_channel_free(struct job_channel *ch)
{
    if (!ch)
        return;
    cb_close(ch->fd);
    wire_reader_release(&ch->in);
    cb_buf_release(&ch->out);
    wire_job_release(&ch->job);
    free(ch);
}
