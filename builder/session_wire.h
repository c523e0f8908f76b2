/* session_wire: what the parts of the session (builder/session.h) share: the stream, its buffer,
 * and frames in and out of it. Private to them. A frame or field that breaks a rule of
 * builder/frames.h is -CB_E_UNTRUSTED and ends the session. */
#pragma once

#include "builder/frames.h"
#include "builder/session.h"
#include "support/buf.h"

#define SETUP_MS INT64_C(300000) /* for the answer to a request */
#define count_of(a) (sizeof(a) / sizeof((a)[0]))

/* What the guest asked of the metadata server, until it is answered. */
struct session_ask {
    uint32_t client;
    bool flavor, forwarded;
    char target[1025];
};
#define SESSION_ASKS 16

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
    unsigned notes;      /* that came since the last request */
    struct session_ask asks[SESSION_ASKS];
    size_t n_asks;
    char *probe; /* what the last probe of a booted image gave; owned */
};

/* A frame that the guest sent; the payload is borrowed from the session's buffer until the next
 * read. */
struct reply {
    enum frame_type type;
    uint32_t step;
    const uint8_t *p;
    size_t n;
};
/* Ends the session: "the builder sent WHAT". */
int sess_untrusted(struct session *s, struct cb_error *err, const char *what);
/* Text of the guest's, for people: at most FRAME_TEXT_MAX bytes of UTF-8; what is not, and control
 * characters (NUL too), are '?'. Owned by the caller. */
char *sess_text(const struct frame_field *f);
/* The next answer, before @deadline (monotonic ms); what may come at any time is handled on the
 * way. It stays in the buffer until sess_pop(). */
int sess_next(struct session *s, int64_t deadline, struct reply *r, struct cb_error *err);
/* The same, or 1 when one of two descriptors (-1: none) became readable first. */
int sess_next_or(struct session *s, const int fds[2], int64_t deadline, struct reply *r,
                 struct cb_error *err);
void sess_pop(struct session *s, const struct reply *r);
/* Waits for an answer of type @want and leaves it at the front; FAILED becomes an error. */
int sess_expect(struct session *s, enum frame_type want, int64_t timeout_ms, struct reply *r,
                struct cb_error *err);
/* The error that a FAILED says. */
int sess_raise_failed(struct session *s, const struct reply *r, struct cb_error *err);
/* Reads the number fields of an answer: each required, and at most its max. */
struct number_field {
    enum frame_tag tag;
    uint64_t max;
    uint64_t *value;
};
int sess_numbers(struct session *s, const struct reply *r, const struct number_field *want,
                 size_t n_want, struct cb_error *err);

/* One number field, which may be missing: then *@value stays. */
int sess_number(struct session *s, const struct reply *r, enum frame_tag tag, uint64_t max,
                uint64_t *value, struct cb_error *err);

/* Starts a request in the session's buffer; one request at a time. */
void sess_begin(struct session *s, struct frame_out *o, enum frame_type type, uint32_t step);
/* A TAG_ENV "NAME=value" for each; NULL: none. */
void sess_put_env(struct frame_out *o, const struct config_pairs *env);
/* Writes a request, taking in what comes meanwhile: the guest may be waiting for us to read. */
int sess_send(struct session *s, const struct frame_out *o, struct cb_error *err);
/* A request that DONE answers. */
int sess_ask(struct session *s, const struct frame_out *o, int64_t timeout_ms,
             struct cb_error *err);
/* A STEP's fields, and what STEP_DONE says of s->step (taken from the buffer). */
void sess_put_step(struct frame_out *o, const struct guest_step *st);
int sess_step_result(struct session *s, const struct reply *r, struct step_result *out,
                     struct cb_error *err);
/* METADATA came: 1, it is kept. And answers all that were. */
int sess_metadata_take(struct session *s, const struct reply *r, struct cb_error *err);
int sess_metadata_answer(struct session *s, struct cb_error *err);
/* Makes what session_cancel() writes to; once a process. */
int sess_open_cancel(struct cb_error *err);
