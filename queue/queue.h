/* The door of queue/: durable builds, their events, and the worker that runs them in child
 * processes.
 *
 * queued -> running -> success | failed | cancelled; a final state is final. A worker claims a
 * build with a lease and a fencing number that goes up with every claim; each of its later writes
 * carries it and is refused (-CB_E_CONFLICT) when the number is old. Lease times come from the
 * database's clock. One handle belongs to one thread; several processes may share the database. */
#pragma once

#include "schemas/event.h"
#include "support/error.h"
#include "support/hash.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum build_status { BUILD_QUEUED, BUILD_RUNNING, BUILD_SUCCESS, BUILD_FAILED, BUILD_CANCELLED };
const char *build_status_name(enum build_status s);
bool build_status_is_final(enum build_status s);

#define BUILD_ID_LEN                                                                               \
    26 /* sortable by time: 10 characters of time, 16 random, Crockford base 32                    \
        */

struct build_record {
    char id[BUILD_ID_LEN + 1];
    char *name;    /* the config's */
    char *config;  /* config_dump() */
    char *options; /* JSON of the build's options */
    struct cb_digest request_key;
    enum build_status status;
    int attempt, max_attempts;
    uint64_t fencing;
    char *owner;       /* who runs it (queue_owner_self()), or NULL */
    char *error;       /* one text for people, or NULL */
    char *error_class; /* cb_code_name(), "host" (the build's process died), or NULL */
    int64_t created_ms, started_ms, finished_ms; /* 0: not yet */
    uint64_t last_seq;
};
void build_record_release(struct build_record *r);

struct queue;
/* SQLite at @path, made and migrated when needed; a newer database is refused. */
int queue_open(const char *path, struct queue **out, struct cb_error *err);
void queue_free(struct queue *q);

struct build_spec {
    const char *name, *config, *options;
    struct cb_digest request_key;
    int max_attempts; /* 1 for the command line */
};
/* Enqueues, or finds the live (queued or running) build with this name and request key: then
 * *@existing is set and nothing is added. @id holds BUILD_ID_LEN + 1 bytes. */
int queue_enqueue(struct queue *q, const struct build_spec *spec, char *id, bool *existing,
                  struct cb_error *err);

#define QUEUE_LEASE_MS 30000 /* what worker_run() renews to, every 10 s */

struct claim {
    char id[BUILD_ID_LEN + 1];
    uint64_t fencing;
    int attempt;
};
/* Claims @only_id (or, NULL, the oldest queued build). -CB_E_NOTFOUND when there is none. Appends
 * the build-status event `running`. @owner names this process. First, builds whose lease ran out
 * are queued again with a pause, or failed after their last attempt; those of a "cli:" owner are
 * not, since queue_abandon_dead() knows for certain whether such an owner lives. */
int queue_claim(struct queue *q, const char *only_id, const char *owner, int64_t lease_ms,
                struct claim *out, struct cb_error *err);
int queue_renew(struct queue *q, const struct claim *c, int64_t lease_ms, struct cb_error *err);

struct event_in {
    enum event_type type;
    const json_t *payload;
    int64_t ts_ms;
};
/* Appends in one transaction (group commit), numbering them. *@last_seq is the last one's number.
 */
int queue_append(struct queue *q, const struct claim *c, const struct event_in *ev, size_t n,
                 uint64_t *last_seq, struct cb_error *err);
/* The final state, with its build-status event, in one transaction. Repeating the same is fine,
 * another one is -CB_E_CONFLICT. */
int queue_finish(struct queue *q, const struct claim *c, enum build_status status,
                 const char *error, const char *error_class, struct cb_error *err);

/* Builds that are queued or running by an owner that is gone (see below) become
 * `failed: abandoned`. (A build with max_attempts 1 belongs to who enqueued it until it is
 * claimed.) @on_each may be NULL; it gets the id, to sweep its work folder. */
int queue_abandon_dead(struct queue *q, void (*on_each)(void *arg, const char *id), void *arg,
                       struct cb_error *err);
/* "cli:PID:STARTTIME:PIDNS:BOOTID" of this process: alive as long as /proc says that this PID
 * started then, in this boot. One of another PID namespace is taken for alive while its lease
 * lasts. Owned. */
char *queue_owner_self(void);

int queue_get(struct queue *q, const char *id, struct build_record *out, struct cb_error *err);
/* Newest first, at most @max (0: 100). @name may be NULL: all. *@out is owned: each released, then
 * freed. */
int queue_list(struct queue *q, const char *name, size_t max, struct build_record **out, size_t *n,
               struct cb_error *err);
/* The id that @text means: a whole id, an unambiguous beginning of one, or a config's name (its
 * newest build); NULL or "": the newest build of all. -CB_E_NOTFOUND. @id holds BUILD_ID_LEN + 1
 * bytes. */
int queue_find(struct queue *q, const char *text, char *id, struct cb_error *err);

struct event_out {
    uint64_t seq;
    int64_t ts_ms;
    enum event_type type;
    json_t *payload; /* borrowed for the call */
};
/* Calls @fn for each stored event of @id after @after, in order, at most @max (0: all). Returns how
 * many, or a negative code; a negative answer of @fn ends it with that answer. */
int queue_events(struct queue *q, const char *id, uint64_t after, size_t max,
                 int (*fn)(void *arg, const struct event_out *ev), void *arg, struct cb_error *err);
/* Waits until something in the database changed or @timeout_ms passed (a hint, not a promise). */
void queue_wait_change(struct queue *q, int64_t timeout_ms);

/* ---- the worker's side: a child process a build ---- */

struct worker_options {
    const char *const
        *child_argv;       /* its socket is fd 3, and CAPSULE_BUILD_JOB_FD=3 in its environment */
    const char *child_log; /* path: the child's stdout and stderr go there; or NULL: /dev/null */
    int cancel_fd;         /* readable: cancel the build (signalfd or pipe; one
                            * signal, or some bytes, are taken); -1: none */
    void (*committed)(void *arg); /* after each commit: readers have something new; may be NULL */
    void *arg;
};
/* Runs the claimed build in a child: stores its events (group commit: 10 ms or 64 KiB),
 * acknowledges them, renews the lease, cancels on request (SIGTERM, SIGKILL after 1.5 s). Returns 0
 * when the build reached a final state, which *@status tells; a child that died without a result is
 * `failed` with class `host`, the signal and the last lines of its log; it is queued again instead
 * (*@status BUILD_QUEUED) when it has attempts left. When the database fails, the child is stopped
 * and the error returned. Call it from the main thread (the child dies with the thread that started
 * it). */
int worker_run(struct queue *q, const struct claim *c, const struct worker_options *o,
               enum build_status *status, struct cb_error *err);

/* ---- the child's side ---- */

struct job_channel;
/* Reads the job (config and options) from the supervisor on @fd, which is taken. */
int job_channel_open(int fd, struct job_channel **out, struct cb_error *err);
const char *job_channel_build_id(const struct job_channel *ch);
const char *job_channel_config(const struct job_channel *ch);
const char *job_channel_options(const struct job_channel *ch);
/* One call at a time, from any thread. @payload is taken; one that event_check() refuses is
 * -CB_E_CORRUPT, nothing is sent and the channel stays good. Blocks only when more than 4 MiB are
 * unacknowledged. A supervisor that is gone is -CB_E_CANCELED. */
int job_channel_event(struct job_channel *ch, enum event_type type, json_t *payload,
                      struct cb_error *err);
/* The result: @failure NULL for success. Waits until it is acknowledged. @result (may be NULL) is a
 * JSON object kept with the final build-status event. */
int job_channel_finish(struct job_channel *ch, const struct cb_error *failure, const json_t *result,
                       struct cb_error *err);
void job_channel_free(struct job_channel *ch);
