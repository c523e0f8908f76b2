/* wire: the messages between a worker and the process that runs its build, over a stream socket.
 *
 * A frame: u32 length of what follows (big endian), u8 type, u8 version (1), then a JSON object.
 * The worker does not trust the other side: every frame is bounded and checked, and a bad one ends
 * the build, not the worker.
 *
 *   worker -> child   JOB    {id, attempt, config, options}    first, once
 *   child -> worker   EVENT  {type, ts, payload}
 *   worker -> child   ACK    {bytes}                           bytes of EVENT frames that are
 * stored child -> worker   FINISH {ok, result, code, message, hint} once, last worker -> child DONE
 * {}                                the final state is stored */
#pragma once

#include "queue/queue.h"
#include "support/buf.h"

enum wire_type { WIRE_JOB = 1, WIRE_EVENT, WIRE_ACK, WIRE_FINISH, WIRE_DONE };

#define WIRE_HEADER 6u
#define WIRE_JOB_MAX (16u << 20) /* a config and options, escaped */
#define WIRE_MAX (320u << 10)    /* every other frame's payload */

struct wire_reader {
    struct cb_buf buf;
    size_t at; /* read up to here */
    size_t max;
};
/* @max: payload bytes of one frame. */
void wire_reader_init(struct wire_reader *r, size_t max);
void wire_reader_release(struct wire_reader *r);
/* -CB_E_LIMIT when more is fed than one frame and a piece: call wire_next() in between. */
int wire_feed(struct wire_reader *r, const void *p, size_t n);

struct wire_msg {
    enum wire_type type;
    const char *payload; /* borrowed until the next wire_feed() */
    size_t len;
    size_t frame; /* bytes of the whole frame */
};
/* 1: a message, 0: more bytes are needed, -CB_E_CORRUPT. */
int wire_next(struct wire_reader *r, struct wire_msg *out, struct cb_error *err);

/* Appends a frame. -CB_E_LIMIT when it is too large for the other side. */
int wire_put(struct cb_buf *out, enum wire_type type, const json_t *payload, struct cb_error *err);

struct wire_event {
    enum event_type type;
    int64_t ts_ms;
    json_t *payload; /* owned */
};
/* A well-formed event of a type that a child may send (not build-status). */
int wire_event_parse(const struct wire_msg *m, struct wire_event *out, struct cb_error *err);

struct wire_finish {
    bool ok;
    char *code, *message, *hint; /* owned; NULL when absent; code and message are there unless ok */
    json_t *result;              /* owned object, or NULL */
};
int wire_finish_parse(const struct wire_msg *m, struct wire_finish *out, struct cb_error *err);
void wire_finish_release(struct wire_finish *f);

struct wire_job {
    char id[BUILD_ID_LEN + 1];
    int attempt;
    char *config, *options; /* owned */
};
int wire_job_parse(const struct wire_msg *m, struct wire_job *out, struct cb_error *err);
void wire_job_release(struct wire_job *j);

int wire_ack_parse(const struct wire_msg *m, uint64_t *bytes, struct cb_error *err);
