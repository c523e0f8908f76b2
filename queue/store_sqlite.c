/* store_sqlite: the queue in one SQLite database.
 *
 * WAL with synchronous=FULL: what was committed survives power loss. Every write transaction is
 * BEGIN IMMEDIATE (a deferred one that turns into a write fails at once instead of waiting for its
 * turn). Readers never wait for writers, nor writers for readers. */
#include "queue/store.h"
#include "queue/store_sqlite_db.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <string.h>

#define NOW_MS "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"
/* 10 s after the first attempt, then twice as long each time, up to 10 minutes. */
#define RETRY_AT NOW_MS " + min(10000 << min(attempt - 1, 6), 600000)"

static int64_t now_ms(struct sqlite_db *q, struct cb_error *err)
{
    CB_AUTO(stmt) st = NULL;
    int rc = db_query(q, &st, err, "SELECT " NOW_MS, "");
    if (rc >= 0)
        rc = db_step(q, st, err);
    return rc < 0 ? rc : sqlite3_column_int64(st, 0);
}

/* ---- events ---- */

static int insert_event(struct sqlite_db *q, int64_t build, uint64_t seq, int64_t ts,
                        enum event_type type, const json_t *payload, struct cb_error *err)
{
    CB_AUTO_FREE char *text = json_dumps(payload, JSON_COMPACT);
    if (!text)
        return cb_fail(err, CB_E_BUG, "a payload that is not JSON");
    return db_exec(q, err, "INSERT INTO event (build, seq, ts, type, payload) VALUES (?,?,?,?,?)",
                   "iiitt", build, (int64_t)seq, ts, event_type_name(type), text);
}

/* The build-status event that goes with a change of state; @payload is taken. */
static int append_status(struct sqlite_db *q, int64_t build, json_t *payload, struct cb_error *err)
{
    json_auto_t *p = payload;
    int64_t ts = now_ms(q, err);
    if (ts < 0)
        return (int)ts;
    CB_AUTO(stmt) st = NULL;
    int rc = db_query(q, &st, err,
                      "UPDATE build SET last_seq = last_seq + 1 WHERE n = ? RETURNING last_seq",
                      "i", build);
    if (rc >= 0)
        rc = db_step(q, st, err);
    if (rc <= 0)
        return rc < 0 ? rc : cb_fail(err, CB_E_CORRUPT, "build %lld is gone", (long long)build);
    uint64_t seq = (uint64_t)sqlite3_column_int64(st, 0);
    rc = db_finish(q, st, err);
    return rc < 0 ? rc : insert_event(q, build, seq, ts, EVENT_BUILD_STATUS, p, err);
}

/* ---- enqueue ---- */

struct enqueue_args {
    const struct build_spec *spec;
    const char *owner;
    char *id;
    bool *existing;
};

static int enqueue_tx(struct sqlite_db *q, void *arg, struct cb_error *err)
{
    const struct enqueue_args *a = arg;
    const struct build_spec *s = a->spec;
    CB_AUTO(stmt) st = NULL;
    int rc = db_query(q, &st, err,
                      "SELECT id FROM build WHERE name = ? AND request_key = ? "
                      "AND status IN ('queued', 'running')",
                      "tb", s->name, s->request_key.b, (int64_t)CB_SHA256_LEN);
    if (rc >= 0)
        rc = db_step(q, st, err);
    if (rc < 0)
        return rc;
    if (rc > 0) {
        db_copy_id(st, 0, a->id);
        *a->existing = true;
        return 0;
    }
    rc = db_exec(q, err,
                 "INSERT INTO build (id, name, request_key, config, options, status, max_attempts, "
                 "owner, lease_until, created_ms) VALUES (?, ?, ?, ?, ?, 'queued', ?, ?, " NOW_MS
                 " + ?, " NOW_MS ")",
                 "ttbttiti", a->id, s->name, s->request_key.b, (int64_t)CB_SHA256_LEN, s->config,
                 s->options, (int64_t)s->max_attempts, a->owner, (int64_t)QUEUE_LEASE_MS);
    if (rc < 0)
        return rc;
    return append_status(q, sqlite3_last_insert_rowid(q->db),
                         event_status(build_status_name(BUILD_QUEUED), NULL, 0), err);
}

static int enqueue(void *st, const struct build_spec *spec, const char *owner, char *id,
                   bool *existing, struct cb_error *err)
{
    struct enqueue_args a = {spec, owner, id, existing};
    return db_tx(st, enqueue_tx, &a, err);
}

/* ---- claim, renew ---- */

static const char lease_ran_out[] = "the worker stopped renewing its lease";

/* One build whose lease ran out: 1 when there was one. */
static int reap_one(struct sqlite_db *q, const char *only_id, struct cb_error *err)
{
    CB_AUTO(stmt) st = NULL;
    int rc = db_query(
        q, &st, err,
        "UPDATE build SET status = iif(attempt < max_attempts, 'queued', 'failed'),"
        " run_at = " RETRY_AT ", owner = NULL,"
        " error = iif(attempt < max_attempts, NULL, ?1),"
        " error_class = iif(attempt < max_attempts, NULL, 'host'),"
        " finished_ms = iif(attempt < max_attempts, 0, " NOW_MS ")"
        " WHERE n = (SELECT n FROM build WHERE status = 'running' AND lease_until < " NOW_MS
        "  AND owner NOT LIKE 'cli:%' AND (?2 IS NULL OR id = ?2) ORDER BY lease_until LIMIT 1)"
        " RETURNING n, status, attempt",
        "tt", lease_ran_out, only_id);
    if (rc >= 0)
        rc = db_step(q, st, err);
    if (rc <= 0)
        return rc;
    int64_t n = sqlite3_column_int64(st, 0);
    json_t *p = event_status((const char *)sqlite3_column_text(st, 1), lease_ran_out,
                             sqlite3_column_int(st, 2));
    (void)json_object_set_new(p, "class", json_string("host"));
    rc = db_finish(q, st, err);
    if (rc < 0) {
        json_decref(p);
        return rc;
    }
    rc = append_status(q, n, p, err);
    return rc < 0 ? rc : 1;
}

struct claim_args {
    const char *only_id, *owner;
    int64_t lease_ms;
    struct claim *out;
    bool found;
};

/* Finding nothing is no error in here: what reaping did has to be committed. */
static int claim_tx(struct sqlite_db *q, void *arg, struct cb_error *err)
{
    struct claim_args *a = arg;
    int rc = 1;
    for (int i = 0; i < 100 && rc > 0; i++)
        rc = reap_one(q, a->only_id, err);
    if (rc < 0)
        return rc;
    CB_AUTO(stmt) st = NULL;
    rc = db_query(q, &st, err,
                  "UPDATE build SET status = 'running', attempt = attempt + 1,"
                  " fencing = fencing + 1, owner = ?1, lease_until = " NOW_MS " + ?2,"
                  " started_ms = iif(started_ms = 0, " NOW_MS ", started_ms)"
                  " WHERE n = (SELECT n FROM build WHERE status = 'queued' AND run_at <= " NOW_MS
                  "  AND (?3 IS NULL OR id = ?3) ORDER BY n LIMIT 1)"
                  " RETURNING n, id, fencing, attempt",
                  "tit", a->owner, a->lease_ms, a->only_id);
    if (rc >= 0)
        rc = db_step(q, st, err);
    if (rc <= 0)
        return rc;
    a->found = true;
    int64_t n = sqlite3_column_int64(st, 0);
    db_copy_id(st, 1, a->out->id);
    a->out->fencing = (uint64_t)sqlite3_column_int64(st, 2);
    a->out->attempt = sqlite3_column_int(st, 3);
    rc = db_finish(q, st, err);
    if (rc < 0)
        return rc;
    return append_status(
        q, n, event_status(build_status_name(BUILD_RUNNING), NULL, a->out->attempt), err);
}

static int claim(void *st, const char *only_id, const char *owner, int64_t lease_ms,
                 struct claim *out, struct cb_error *err)
{
    struct claim_args a = {only_id, owner, lease_ms, out, false};
    int rc = db_tx(st, claim_tx, &a, err);
    if (rc < 0)
        return cb_wrap(err, "claim a build");
    if (!a.found)
        return only_id
                   ? cb_fail(err, CB_E_NOTFOUND, "build %s is not waiting in the queue", only_id)
                   : cb_fail(err, CB_E_NOTFOUND, "no build is waiting in the queue");
    return 0;
}

static int lost(const struct claim *c, struct cb_error *err)
{
    return cb_fail(err, CB_E_CONFLICT,
                   "claim %llu is not valid any more (the build ended or another worker has it)",
                   (unsigned long long)c->fencing);
}

static int renew(void *st, const struct claim *c, int64_t lease_ms, struct cb_error *err)
{
    struct sqlite_db *q = st;
    int rc = db_exec(q, err,
                     "UPDATE build SET lease_until = " NOW_MS " + ?"
                     " WHERE id = ? AND fencing = ? AND status = 'running'",
                     "iti", lease_ms, c->id, (int64_t)c->fencing);
    if (rc < 0)
        return rc;
    q->own_writes++;
    return sqlite3_changes(q->db) == 0 ? lost(c, err) : 0;
}

/* ---- append ---- */

struct append_args {
    const struct claim *c;
    const struct event_in *ev;
    size_t n;
    uint64_t *last_seq;
};

static int append_tx(struct sqlite_db *q, void *arg, struct cb_error *err)
{
    const struct append_args *a = arg;
    CB_AUTO(stmt) st = NULL;
    int rc = db_query(q, &st, err,
                      "UPDATE build SET last_seq = last_seq + ?"
                      " WHERE id = ? AND fencing = ? AND status = 'running' RETURNING n, last_seq",
                      "iti", (int64_t)a->n, a->c->id, (int64_t)a->c->fencing);
    if (rc >= 0)
        rc = db_step(q, st, err);
    if (rc <= 0)
        return rc < 0 ? rc : lost(a->c, err);
    int64_t build = sqlite3_column_int64(st, 0);
    uint64_t last = (uint64_t)sqlite3_column_int64(st, 1);
    rc = db_finish(q, st, err);
    if (rc < 0)
        return rc;
    CB_AUTO(stmt) in = NULL;
    rc = db_query(q, &in, err,
                  "INSERT INTO event (build, seq, ts, type, payload) VALUES (?, ?, ?, ?, ?)", "");
    for (size_t i = 0; rc >= 0 && i < a->n; i++) {
        CB_AUTO_FREE char *text = json_dumps(a->ev[i].payload, JSON_COMPACT);
        if (!text)
            return cb_fail(err, CB_E_BUG, "a payload that is not JSON");
        rc = db_bind(q, in, err, "iiitt", build, (int64_t)(last - a->n + i + 1), a->ev[i].ts_ms,
                     event_type_name(a->ev[i].type), text);
        if (rc >= 0)
            rc = db_step(q, in, err);
        if (rc >= 0)
            rc = db_finish(q, in, err);
    }
    if (rc < 0)
        return rc;
    *a->last_seq = last;
    return 0;
}

static int append(void *st, const struct claim *c, const struct event_in *ev, size_t n,
                  uint64_t *last_seq, struct cb_error *err)
{
    uint64_t last = 0;
    struct append_args a = {c, ev, n, &last};
    int rc = db_tx(st, append_tx, &a, err);
    if (rc >= 0 && last_seq)
        *last_seq = last;
    return rc;
}

/* ---- finish ---- */

struct finish_args {
    const struct claim *c;
    const struct build_outcome *o;
    enum build_status reached;
};

/* The claim does not hold a running build: fine when it is this very claim that ended it so. */
static int finished_already(struct sqlite_db *q, const struct finish_args *a, struct cb_error *err)
{
    CB_AUTO(stmt) st = NULL;
    int rc =
        db_query(q, &st, err, "SELECT 1 FROM build WHERE id = ? AND fencing = ? AND status = ?",
                 "tit", a->c->id, (int64_t)a->c->fencing, build_status_name(a->o->status));
    if (rc >= 0)
        rc = db_step(q, st, err);
    return rc < 0 ? rc : rc > 0 ? 0 : lost(a->c, err);
}

static int finish_tx(struct sqlite_db *q, void *arg, struct cb_error *err)
{
    struct finish_args *a = arg;
    const struct build_outcome *o = a->o;
    const char *status = build_status_name(o->status);
    CB_AUTO(stmt) st = NULL;
    int rc = db_query(
        q, &st, err,
        "UPDATE build SET status = iif(?1 AND attempt < max_attempts, 'queued', ?2),"
        " error = iif(?1 AND attempt < max_attempts, NULL, ?3),"
        " error_class = iif(?1 AND attempt < max_attempts, NULL, ?4),"
        " finished_ms = iif(?1 AND attempt < max_attempts, 0, " NOW_MS "),"
        " run_at = " RETRY_AT ", lease_until = 0,"
        " owner = iif(?1 AND attempt < max_attempts, NULL, owner)"
        " WHERE id = ?5 AND fencing = ?6 AND status = 'running' RETURNING n, status, attempt",
        "itttti", (int64_t)o->may_retry, status, o->error, o->error_class, a->c->id,
        (int64_t)a->c->fencing);
    if (rc >= 0)
        rc = db_step(q, st, err);
    if (rc < 0)
        return rc;
    a->reached = o->status;
    if (rc == 0)
        return finished_already(q, a, err);
    int64_t n = sqlite3_column_int64(st, 0);
    struct build_outcome real = *o;
    if (strcmp((const char *)sqlite3_column_text(st, 1), status) != 0)
        real.status = a->reached = BUILD_QUEUED;
    int attempt = sqlite3_column_int(st, 2);
    rc = db_finish(q, st, err);
    return rc < 0 ? rc : append_status(q, n, queue_outcome_event(&real, attempt), err);
}

static int finish(void *st, const struct claim *c, const struct build_outcome *o,
                  enum build_status *reached, struct cb_error *err)
{
    struct finish_args a = {c, o, o->status};
    int rc = db_tx(st, finish_tx, &a, err);
    if (rc >= 0)
        *reached = a.reached;
    return rc;
}

/* ---- builds whose owner is gone ---- */

static int owned(void *arg, struct owned_build **out, size_t *n, struct cb_error *err)
{
    struct sqlite_db *q = arg;
    CB_AUTO(stmt) st = NULL;
    struct owned_build *v = NULL;
    size_t cap = 0, count = 0;
    int rc = db_query(q, &st, err,
                      "SELECT id, owner, fencing, lease_until < " NOW_MS " FROM build"
                      " WHERE status IN ('queued', 'running') AND owner LIKE 'cli:%'",
                      "");
    while (rc >= 0 && (rc = db_step(q, st, err)) > 0) {
        v = cb_xgrow(v, &cap, count, sizeof(*v));
        struct owned_build *b = &v[count++];
        db_copy_id(st, 0, b->id);
        b->owner = db_text(st, 1);
        b->fencing = (uint64_t)sqlite3_column_int64(st, 2);
        b->lease_over = sqlite3_column_int(st, 3) != 0;
    }
    *out = v; /* also on failure: the caller frees */
    *n = count;
    return rc;
}

struct abandon_args {
    const struct owned_build *b;
    const char *error, *error_class;
    bool did;
};

static int abandon_tx(struct sqlite_db *q, void *arg, struct cb_error *err)
{
    struct abandon_args *a = arg;
    CB_AUTO(stmt) st = NULL;
    int rc =
        db_query(q, &st, err,
                 "UPDATE build SET status = 'failed', error = ?, error_class = ?,"
                 " fencing = fencing + 1, lease_until = 0, finished_ms = " NOW_MS
                 " WHERE id = ? AND fencing = ? AND owner = ?"
                 " AND status IN ('queued', 'running') RETURNING n, attempt",
                 "tttit", a->error, a->error_class, a->b->id, (int64_t)a->b->fencing, a->b->owner);
    if (rc >= 0)
        rc = db_step(q, st, err);
    if (rc <= 0)
        return rc;
    a->did = true;
    int64_t n = sqlite3_column_int64(st, 0);
    int attempt = sqlite3_column_int(st, 1);
    rc = db_finish(q, st, err);
    if (rc < 0)
        return rc;
    struct build_outcome o = {
        .status = BUILD_FAILED, .error = a->error, .error_class = a->error_class};
    return append_status(q, n, queue_outcome_event(&o, attempt), err);
}

static int abandon(void *st, const struct owned_build *b, const char *error,
                   const char *error_class, bool *did, struct cb_error *err)
{
    struct abandon_args a = {b, error, error_class, false};
    int rc = db_tx(st, abandon_tx, &a, err);
    *did = rc >= 0 && a.did;
    return rc;
}

/* ---- reading ---- */

#define RECORD                                                                                     \
    "id, name, config, options, request_key, status, attempt, max_attempts, fencing, owner, "      \
    "error, error_class, created_ms, started_ms, finished_ms, last_seq"

static int read_record(sqlite3_stmt *st, struct build_record *r, struct cb_error *err)
{
    *r = (struct build_record){0};
    db_copy_id(st, 0, r->id);
    int status = build_status_from_name((const char *)sqlite3_column_text(st, 5));
    const void *key = sqlite3_column_blob(st, 4);
    if (status < 0 || !key || sqlite3_column_bytes(st, 4) != CB_SHA256_LEN)
        return cb_fail(err, CB_E_CORRUPT, "build %s: its record cannot be read", r->id);
    memcpy(r->request_key.b, key, CB_SHA256_LEN);
    r->status = (enum build_status)status;
    r->name = db_text(st, 1);
    r->config = db_text(st, 2);
    r->options = db_text(st, 3);
    r->attempt = sqlite3_column_int(st, 6);
    r->max_attempts = sqlite3_column_int(st, 7);
    r->fencing = (uint64_t)sqlite3_column_int64(st, 8);
    r->owner = db_text(st, 9);
    r->error = db_text(st, 10);
    r->error_class = db_text(st, 11);
    r->created_ms = sqlite3_column_int64(st, 12);
    r->started_ms = sqlite3_column_int64(st, 13);
    r->finished_ms = sqlite3_column_int64(st, 14);
    r->last_seq = (uint64_t)sqlite3_column_int64(st, 15);
    return 0;
}

static int get(void *arg, const char *id, struct build_record *out, struct cb_error *err)
{
    struct sqlite_db *q = arg;
    db_mark_seen(q);
    CB_AUTO(stmt) st = NULL;
    int rc = db_query(q, &st, err, "SELECT " RECORD " FROM build WHERE id = ?", "t", id);
    if (rc >= 0)
        rc = db_step(q, st, err);
    if (rc == 0)
        return cb_fail(err, CB_E_NOTFOUND, "%.80s: no such build", id);
    return rc < 0 ? rc : read_record(st, out, err);
}

static int list(void *arg, const char *name, size_t max, struct build_record **out, size_t *n,
                struct cb_error *err)
{
    struct sqlite_db *q = arg;
    db_mark_seen(q);
    CB_AUTO(stmt) st = NULL;
    struct build_record *v = NULL;
    size_t cap = 0, count = 0;
    int rc = name ? db_query(q, &st, err,
                             "SELECT " RECORD " FROM build WHERE name = ? ORDER BY n DESC LIMIT ?",
                             "ti", name, (int64_t)max)
                  : db_query(q, &st, err, "SELECT " RECORD " FROM build ORDER BY n DESC LIMIT ?",
                             "i", (int64_t)max);
    while (rc >= 0 && (rc = db_step(q, st, err)) > 0) {
        v = cb_xgrow(v, &cap, count, sizeof(*v));
        rc = read_record(st, &v[count], err);
        if (rc >= 0)
            count++;
    }
    if (rc < 0) {
        for (size_t i = 0; i < count; i++)
            build_record_release(&v[i]);
        free(v);
        return rc;
    }
    *out = v;
    *n = count;
    return 0;
}

static int ids(void *arg, const char *prefix, size_t max, struct cb_strv *out, struct cb_error *err)
{
    struct sqlite_db *q = arg;
    CB_AUTO(stmt) st = NULL;
    int rc = db_query(q, &st, err,
                      "SELECT id FROM build WHERE id >= ?1 AND substr(id, 1, length(?1)) = ?1"
                      " ORDER BY n DESC LIMIT ?2",
                      "ti", prefix, (int64_t)max);
    while (rc >= 0 && (rc = db_step(q, st, err)) > 0)
        cb_strv_take(out, db_text(st, 0));
    return rc;
}

static int events(void *arg, const char *id, uint64_t after, size_t max, struct event_batch *out,
                  struct cb_error *err)
{
    struct sqlite_db *q = arg;
    size_t bytes = 0;
    db_mark_seen(q);
    CB_AUTO(stmt) st = NULL;
    int rc = db_query(q, &st, err,
                      "SELECT seq, ts, type, payload FROM event"
                      " WHERE build = (SELECT n FROM build WHERE id = ?) AND seq > ?"
                      " ORDER BY seq LIMIT ?",
                      "tii", id, (int64_t)after, (int64_t)max);
    while (rc >= 0 && bytes < (1u << 20) && (rc = db_step(q, st, err)) > 0) {
        int type = event_type_from_name((const char *)sqlite3_column_text(st, 2));
        if (type < 0)
            return cb_fail(err, CB_E_CORRUPT, "build %s holds an event of an unknown type", id);
        out->v = cb_xgrow(out->v, &out->cap, out->n, sizeof(*out->v));
        struct stored_event *e = &out->v[out->n++];
        *e = (struct stored_event){.seq = (uint64_t)sqlite3_column_int64(st, 0),
                                   .ts_ms = sqlite3_column_int64(st, 1),
                                   .type = (enum event_type)type,
                                   .payload = db_text(st, 3),
                                   .len = (size_t)sqlite3_column_bytes(st, 3)};
        bytes += e->len;
    }
    return rc < 0 ? rc : 0;
}

static void wait_change(void *st, int64_t timeout_ms)
{
    db_wait_change(st, timeout_ms);
}

static void close_store(void *st)
{
    db_close(st);
}

static const struct queue_store_ops sqlite_ops = {
    .free = close_store,
    .enqueue = enqueue,
    .claim = claim,
    .renew = renew,
    .append = append,
    .finish = finish,
    .owned = owned,
    .abandon = abandon,
    .get = get,
    .list = list,
    .ids = ids,
    .events = events,
    .wait_change = wait_change,
};

/* Append-only: an entry that was released is never edited. */
static const char *const migrations[] = {
    "CREATE TABLE build ("
    " n INTEGER PRIMARY KEY,"
    " id TEXT NOT NULL UNIQUE,"
    " name TEXT NOT NULL,"
    " request_key BLOB NOT NULL CHECK (length(request_key) = 32),"
    " config TEXT NOT NULL,"
    " options TEXT NOT NULL,"
    " status TEXT NOT NULL"
    "  CHECK (status IN ('queued', 'running', 'success', 'failed', 'cancelled')),"
    " attempt INTEGER NOT NULL DEFAULT 0,"
    " max_attempts INTEGER NOT NULL CHECK (max_attempts >= 1),"
    " run_at INTEGER NOT NULL DEFAULT 0,"
    " fencing INTEGER NOT NULL DEFAULT 0,"
    " owner TEXT,"
    " lease_until INTEGER NOT NULL DEFAULT 0,"
    " error TEXT,"
    " error_class TEXT,"
    " created_ms INTEGER NOT NULL,"
    " started_ms INTEGER NOT NULL DEFAULT 0,"
    " finished_ms INTEGER NOT NULL DEFAULT 0,"
    " last_seq INTEGER NOT NULL DEFAULT 0"
    ") STRICT;"
    "CREATE UNIQUE INDEX build_live ON build (name, request_key)"
    " WHERE status IN ('queued', 'running');"
    "CREATE INDEX build_name ON build (name, n);"
    "CREATE INDEX build_queued ON build (n) WHERE status = 'queued';"
    "CREATE INDEX build_running ON build (lease_until) WHERE status = 'running';"
    "CREATE TABLE event ("
    " build INTEGER NOT NULL REFERENCES build (n) ON DELETE CASCADE,"
    " seq INTEGER NOT NULL CHECK (seq >= 1),"
    " ts INTEGER NOT NULL,"
    " type TEXT NOT NULL,"
    " payload TEXT NOT NULL,"
    " PRIMARY KEY (build, seq)"
    ") STRICT, WITHOUT ROWID;",
};

int store_sqlite_open(const char *path, const struct queue_store_ops **ops, void **st,
                      struct cb_error *err)
{
    struct sqlite_db *q = NULL;
    int rc = db_open(path, migrations, sizeof(migrations) / sizeof(migrations[0]), &q, err);
    if (rc < 0)
        return rc;
    *ops = &sqlite_ops;
    *st = q;
    return 0;
}
