#include "queue/queue.h"

#include "queue/store.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <string.h>
#include <sys/random.h>

static const char *const status_names[] = {
    [BUILD_QUEUED] = "queued", [BUILD_RUNNING] = "running",     [BUILD_SUCCESS] = "success",
    [BUILD_FAILED] = "failed", [BUILD_CANCELLED] = "cancelled",
};

const char *build_status_name(enum build_status s)
{
    return (unsigned)s <= BUILD_CANCELLED ? status_names[s] : "unknown";
}

int build_status_from_name(const char *name)
{
    for (int i = 0; i <= BUILD_CANCELLED; i++)
        if (strcmp(name, status_names[i]) == 0)
            return i;
    return -1;
}

bool build_status_is_final(enum build_status s)
{
    return s == BUILD_SUCCESS || s == BUILD_FAILED || s == BUILD_CANCELLED;
}

void build_record_release(struct build_record *r)
{
    free(r->name);
    free(r->config);
    free(r->options);
    free(r->owner);
    free(r->error);
    free(r->error_class);
    *r = (struct build_record){0};
}

void event_batch_release(struct event_batch *b)
{
    for (size_t i = 0; i < b->n; i++)
        free(b->v[i].payload);
    free(b->v);
    *b = (struct event_batch){0};
}

int queue_open(const char *path, struct queue **out, struct cb_error *err)
{
    struct queue q;
    int rc = store_sqlite_open(path, &q.ops, &q.st, err);
    if (rc < 0)
        return rc;
    *out = cb_xmemdup(&q, sizeof(q));
    return 0;
}

void queue_free(struct queue *q)
{
    if (q)
        q->ops->free(q->st);
    free(q);
}

static const char crockford[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

static int make_id(char *id, struct cb_error *err)
{
    uint8_t r[16];
    if (getrandom(r, sizeof(r), 0) != (ssize_t)sizeof(r))
        return cb_fail_sys(err, errno, "random numbers");
    uint64_t ms = (uint64_t)cb_now_ms();
    for (int i = 9; i >= 0; i--, ms >>= 5)
        id[i] = crockford[ms & 31];
    for (int i = 0; i < 16; i++)
        id[10 + i] = crockford[r[i] & 31];
    id[BUILD_ID_LEN] = '\0';
    return 0;
}

int queue_enqueue(struct queue *q, const struct build_spec *spec, char *id, bool *existing,
                  struct cb_error *err)
{
    if (spec->max_attempts < 1)
        return cb_fail(err, CB_E_BUG, "enqueue %s: no attempts", spec->name);
    char made[BUILD_ID_LEN + 1];
    int rc = make_id(made, err);
    if (rc < 0)
        return rc;
    /* with one attempt the build lives and dies with who asked for it */
    CB_AUTO_FREE char *owner = spec->max_attempts == 1 ? queue_owner_self() : NULL;
    *existing = false;
    rc = q->ops->enqueue(q->st, spec, owner, made, existing, err);
    if (rc < 0)
        return cb_wrap(err, "enqueue %s", spec->name);
    memcpy(id, made, sizeof(made));
    return 0;
}

int queue_claim(struct queue *q, const char *only_id, const char *owner, int64_t lease_ms,
                struct claim *out, struct cb_error *err)
{
    return q->ops->claim(q->st, only_id, owner, lease_ms, out, err);
}

int queue_renew(struct queue *q, const struct claim *c, int64_t lease_ms, struct cb_error *err)
{
    int rc = q->ops->renew(q->st, c, lease_ms, err);
    return rc < 0 ? cb_wrap(err, "renew the lease of build %s", c->id) : rc;
}

int queue_append(struct queue *q, const struct claim *c, const struct event_in *ev, size_t n,
                 uint64_t *last_seq, struct cb_error *err)
{
    int rc = q->ops->append(q->st, c, ev, n, last_seq, err);
    return rc < 0 ? cb_wrap(err, "store the events of build %s", c->id) : rc;
}

json_t *queue_outcome_event(const struct build_outcome *o, int attempt)
{
    json_t *p = event_status(build_status_name(o->status), o->error, attempt);
    if (o->error_class)
        (void)json_object_set_new(p, "class", json_string(o->error_class));
    if (o->hint)
        (void)json_object_set_new(p, "hint", json_string(o->hint));
    if (o->result)
        (void)json_object_set_new(p, "result", json_deep_copy(o->result));
    return p;
}

int queue_finish_outcome(struct queue *q, const struct claim *c, const struct build_outcome *o,
                         enum build_status *reached, struct cb_error *err)
{
    if (!build_status_is_final(o->status))
        return cb_fail(err, CB_E_BUG, "finish build %s: %s is not final", c->id,
                       build_status_name(o->status));
    int rc = q->ops->finish(q->st, c, o, reached, err);
    return rc < 0 ? cb_wrap(err, "finish build %s", c->id) : rc;
}

int queue_finish(struct queue *q, const struct claim *c, enum build_status status,
                 const char *error, const char *error_class, struct cb_error *err)
{
    struct build_outcome o = {.status = status, .error = error, .error_class = error_class};
    enum build_status reached;
    return queue_finish_outcome(q, c, &o, &reached, err);
}

int queue_abandon_dead(struct queue *q, void (*on_each)(void *arg, const char *id), void *arg,
                       struct cb_error *err)
{
    struct owned_build *v = NULL;
    size_t n = 0;
    int rc = q->ops->owned(q->st, &v, &n, err);
    for (size_t i = 0; rc >= 0 && i < n; i++) {
        enum owner_state s = queue_owner_state(v[i].owner);
        if (s == OWNER_ALIVE || (s == OWNER_UNKNOWN && !v[i].lease_over))
            continue;
        bool did = false;
        rc = q->ops->abandon(q->st, &v[i], "abandoned: the process that ran it is gone", "host",
                             &did, err);
        if (rc >= 0 && did && on_each)
            on_each(arg, v[i].id);
    }
    for (size_t i = 0; i < n; i++)
        free(v[i].owner);
    free(v);
    return rc < 0 ? cb_wrap(err, "look for abandoned builds") : 0;
}

int queue_get(struct queue *q, const char *id, struct build_record *out, struct cb_error *err)
{
    return q->ops->get(q->st, id, out, err);
}

int queue_list(struct queue *q, const char *name, size_t max, struct build_record **out, size_t *n,
               struct cb_error *err)
{
    return q->ops->list(q->st, name, max ? max : 100, out, n, err);
}

/* The newest build of @name (NULL: of all): 1 found, 0 none. */
static int find_newest(struct queue *q, const char *name, char *id, struct cb_error *err)
{
    struct build_record *v = NULL;
    size_t n = 0;
    int rc = q->ops->list(q->st, name, 1, &v, &n, err);
    if (rc >= 0 && n) {
        memcpy(id, v[0].id, sizeof(v[0].id));
        build_record_release(&v[0]);
        rc = 1;
    }
    free(v);
    return rc < 0 ? rc : n > 0;
}

int queue_find(struct queue *q, const char *text, char *id, struct cb_error *err)
{
    bool any = !text || !*text;
    int rc = find_newest(q, any ? NULL : text, id, err);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    if (any)
        return cb_fail(err, CB_E_NOTFOUND, "there is no build yet");
    char prefix[BUILD_ID_LEN + 2];
    size_t len = strnlen(text, BUILD_ID_LEN + 1);
    for (size_t i = 0; i < len; i++) /* ids are shown in upper case, people type lower */
        prefix[i] = (char)(text[i] >= 'a' && text[i] <= 'z' ? text[i] - 32 : text[i]);
    prefix[len] = '\0';
    CB_AUTO_STRV ids = {0};
    rc = len <= BUILD_ID_LEN ? q->ops->ids(q->st, prefix, 3, &ids, err) : 0;
    if (rc < 0)
        return rc;
    if (ids.n == 0)
        return cb_fail(err, CB_E_NOTFOUND,
                       "%.80s: no build has this id or beginning of one, and no config this name",
                       text);
    if (ids.n > 1)
        return cb_fail(err, CB_E_NOTFOUND, "%.80s: several builds begin so, such as %s and %s",
                       text, ids.v[0], ids.v[1]);
    memcpy(id, ids.v[0], BUILD_ID_LEN + 1);
    return 0;
}

/* Hands a batch to @fn. Returns 0, or what ended it. */
static int deliver(const struct event_batch *b, const char *id,
                   int (*fn)(void *arg, const struct event_out *ev), void *arg,
                   struct cb_error *err)
{
    for (size_t i = 0; i < b->n; i++) {
        json_error_t je;
        json_auto_t *payload = json_loadb(b->v[i].payload, b->v[i].len, 0, &je);
        if (!payload)
            return cb_fail(err, CB_E_CORRUPT, "event %llu of build %s: %s",
                           (unsigned long long)b->v[i].seq, id, je.text);
        struct event_out ev = {b->v[i].seq, b->v[i].ts_ms, b->v[i].type, payload};
        int rc = fn(arg, &ev);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* A batch is read before it is handed out, so that a slow @fn holds no snapshot of the database. */
int queue_events(struct queue *q, const char *id, uint64_t after, size_t max,
                 int (*fn)(void *arg, const struct event_out *ev), void *arg, struct cb_error *err)
{
    enum { BATCH = 256 };
    size_t total = 0;
    while (max == 0 || total < max) {
        struct event_batch b = {0};
        size_t want = max && max - total < BATCH ? max - total : BATCH;
        int rc = q->ops->events(q->st, id, after, want, &b, err);
        if (rc >= 0)
            rc = deliver(&b, id, fn, arg, err);
        size_t n = b.n;
        if (n)
            after = b.v[n - 1].seq;
        event_batch_release(&b);
        if (rc < 0)
            return rc;
        if (n == 0)
            break;
        total += n;
    }
    return (int)total;
}

void queue_wait_change(struct queue *q, int64_t timeout_ms)
{
    q->ops->wait_change(q->st, timeout_ms);
}
