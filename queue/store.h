/* store: the seam between the queue and a database. One conformance suite
 * (tests/queue/test_store.c) is what an implementation has to pass. Each call is one transaction;
 * times come from the database. */
#pragma once

#include "queue/queue.h"

/* How an attempt ended. */
struct build_outcome {
    enum build_status status; /* final */
    const char *error;        /* UTF-8, or NULL */
    const char *error_class;  /* or NULL */
    const char *hint;         /* or NULL */
    const json_t *result;     /* or NULL */
    bool may_retry;           /* queue it again when attempts are left */
};

/* A build that is not final and has an owner. */
struct owned_build {
    char id[BUILD_ID_LEN + 1];
    char *owner;
    uint64_t fencing;
    bool lease_over;
};

struct stored_event {
    uint64_t seq;
    int64_t ts_ms;
    enum event_type type;
    char *payload; /* JSON text */
    size_t len;
};
struct event_batch {
    struct stored_event *v;
    size_t n, cap;
};
void event_batch_release(struct event_batch *b);

struct queue_store_ops {
    void (*free)(void *st);
    /* @id is the new build's; overwritten when there is a live one. @owner may be NULL. */
    int (*enqueue)(void *st, const struct build_spec *spec, const char *owner, char *id,
                   bool *existing, struct cb_error *err);
    int (*claim)(void *st, const char *only_id, const char *owner, int64_t lease_ms,
                 struct claim *out, struct cb_error *err);
    int (*renew)(void *st, const struct claim *c, int64_t lease_ms, struct cb_error *err);
    int (*append)(void *st, const struct claim *c, const struct event_in *ev, size_t n,
                  uint64_t *last_seq, struct cb_error *err);
    int (*finish)(void *st, const struct claim *c, const struct build_outcome *o,
                  enum build_status *reached, struct cb_error *err);
    int (*owned)(void *st, struct owned_build **out, size_t *n, struct cb_error *err);
    /* Fails @b unless it changed hands or ended since owned(): then *@did is false. */
    int (*abandon)(void *st, const struct owned_build *b, const char *error,
                   const char *error_class, bool *did, struct cb_error *err);
    int (*get)(void *st, const char *id, struct build_record *out, struct cb_error *err);
    int (*list)(void *st, const char *name, size_t max, struct build_record **out, size_t *n,
                struct cb_error *err);
    /* Ids that begin with @prefix, newest first, at most @max. */
    int (*ids)(void *st, const char *prefix, size_t max, struct cb_strv *out, struct cb_error *err);
    /* The next events after @after: at most @max and about 1 MiB. */
    int (*events)(void *st, const char *id, uint64_t after, size_t max, struct event_batch *out,
                  struct cb_error *err);
    void (*wait_change)(void *st, int64_t timeout_ms);
};

struct queue {
    const struct queue_store_ops *ops;
    void *st;
};

int store_sqlite_open(const char *path, const struct queue_store_ops **ops, void **st,
                      struct cb_error *err);

/* queue_finish() with everything that an outcome may hold. */
int queue_finish_outcome(struct queue *q, const struct claim *c, const struct build_outcome *o,
                         enum build_status *reached, struct cb_error *err);
/* The payload of the build-status event for @o. Owned. */
json_t *queue_outcome_event(const struct build_outcome *o, int attempt);
enum owner_state { OWNER_ALIVE, OWNER_GONE, OWNER_UNKNOWN };
enum owner_state queue_owner_state(const char *owner);
int build_status_from_name(const char *name); /* -1: unknown */
