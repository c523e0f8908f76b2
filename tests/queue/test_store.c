/* What every store of builds has to do; run on a fresh database each time. */
#include "check.h"

#include "queue/store.h"

#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>

struct fixture {
    struct queue *q;
    char *path;
};

static void open_fixture(struct fixture *f, const char *dir)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    f->path = cb_xasprintf("%s/state/queue.db", dir);
    assert_ok(queue_open(f->path, &f->q, &err), &err);
}

static void close_fixture(struct fixture *f)
{
    queue_free(f->q);
    free(f->path);
}

/* Behind the store's back: time that passed, other programs, damage. */
static void sql(const char *path, const char *text)
{
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    (void)sqlite3_busy_timeout(db, 5000);
    char *msg = NULL;
    if (sqlite3_exec(db, text, NULL, NULL, &msg) != SQLITE_OK)
        fail_msg("%s: %s", text, msg);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static bool enqueue(struct queue *q, const char *name, uint8_t key, int max_attempts, char *id)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct build_spec s = {.name = name,
                           .config = "{\"c\":1}",
                           .options = "{\"o\":2}",
                           .request_key = {{key}},
                           .max_attempts = max_attempts};
    bool existing;
    assert_ok(queue_enqueue(q, &s, id, &existing, &err), &err);
    return existing;
}

typedef char build_id[BUILD_ID_LEN + 1];

static void claim_as(struct queue *q, const char *id, const char *owner, struct claim *c)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(queue_claim(q, id, owner, 30000, c, &err), &err);
}

static int append_notes(struct queue *q, const struct claim *c, int n, uint64_t *last,
                        struct cb_error *err)
{
    struct event_in ev[600];
    json_auto_t *p = event_text("hello");
    assert_true(n <= 600);
    for (int i = 0; i < n; i++)
        ev[i] = (struct event_in){EVENT_NOTE, p, 1000 + i};
    return queue_append(q, c, ev, (size_t)n, last, err);
}

static enum build_status status_of(struct queue *q, const char *id)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct build_record r;
    assert_ok(queue_get(q, id, &r, &err), &err);
    enum build_status s = r.status;
    build_record_release(&r);
    return s;
}

struct seen {
    struct cb_buf b; /* "seq type status-or-text attempt|" */
    uint64_t last;
    int n, stop_at;
};

static int see(void *arg, const struct event_out *ev)
{
    struct seen *s = arg;
    s->last = ev->seq;
    const char *what = json_string_value(json_object_get(ev->payload, "status"));
    if (what)
        (void)cb_buf_addf(&s->b, "%llu %s %lld|", (unsigned long long)ev->seq, what,
                          (long long)json_integer_value(json_object_get(ev->payload, "attempt")));
    else
        (void)cb_buf_addf(&s->b, "%llu %s|", (unsigned long long)ev->seq,
                          event_type_name(ev->type));
    return ++s->n == s->stop_at ? -CB_E_CANCELED : 0;
}

static void assert_events(struct queue *q, const char *id, const char *expected)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct seen s = {.b = CB_BUF_INIT(1 << 20)};
    assert_ok(queue_events(q, id, 0, 0, see, &s, &err), &err);
    assert_string_equal(s.b.data ? s.b.data : "", expected);
    cb_buf_release(&s.b);
}

/* ---- one build ---- */

static void test_enqueued_build_is_kept_as_given(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    build_id id;
    assert_false(enqueue(f.q, "web", 9, 3, id));
    queue_free(f.q);
    assert_ok(queue_open(f.path, &f.q, &err), &err);
    struct build_record r;
    assert_ok(queue_get(f.q, id, &r, &err), &err);
    assert_string_equal(r.id, id);
    assert_int_equal(strlen(r.id), BUILD_ID_LEN);
    assert_string_equal(r.name, "web");
    assert_string_equal(r.config, "{\"c\":1}");
    assert_string_equal(r.options, "{\"o\":2}");
    assert_int_equal(r.request_key.b[0], 9);
    assert_int_equal(r.status, BUILD_QUEUED);
    assert_int_equal(r.attempt, 0);
    assert_int_equal(r.max_attempts, 3);
    assert_null(r.owner);
    assert_null(r.error);
    assert_true(r.created_ms > 1600000000000);
    assert_int_equal(r.started_ms, 0);
    assert_int_equal(r.finished_ms, 0);
    assert_int_equal(r.last_seq, 1);
    build_record_release(&r);
    assert_events(f.q, id, "1 queued 0|");
    assert_fails(queue_get(f.q, "nothing", &r, &err), &err, CB_E_NOTFOUND,
                 "nothing: no such build");
    close_fixture(&f);
}

static void test_life_of_a_build(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    build_id id;
    struct claim c;
    uint64_t last = 0;
    enqueue(f.q, "web", 1, 1, id);
    claim_as(f.q, id, "worker:1", &c);
    assert_string_equal(c.id, id);
    assert_int_equal(c.attempt, 1);
    assert_int_equal(c.fencing, 1);
    assert_ok(append_notes(f.q, &c, 2, &last, &err), &err);
    assert_int_equal(last, 4);
    assert_ok(queue_renew(f.q, &c, 30000, &err), &err);
    assert_ok(append_notes(f.q, &c, 1, NULL, &err), &err);
    assert_ok(queue_finish(f.q, &c, BUILD_FAILED, "it broke", "COMMAND", &err), &err);
    assert_events(f.q, id, "1 queued 0|2 running 1|3 note|4 note|5 note|6 failed 1|");
    struct build_record r;
    assert_ok(queue_get(f.q, id, &r, &err), &err);
    assert_string_equal(r.error, "it broke");
    assert_string_equal(r.error_class, "COMMAND");
    assert_string_equal(r.owner, "worker:1");
    assert_true(r.started_ms >= r.created_ms);
    assert_true(r.finished_ms >= r.started_ms);
    assert_int_equal(r.last_seq, 6);
    build_record_release(&r);

    /* the end is the end */
    assert_ok(queue_finish(f.q, &c, BUILD_FAILED, "it broke", "COMMAND", &err), &err);
    assert_fails(queue_finish(f.q, &c, BUILD_SUCCESS, NULL, NULL, &err), &err, CB_E_CONFLICT,
                 "claim 1 is not valid any more");
    assert_fails(append_notes(f.q, &c, 1, NULL, &err), &err, CB_E_CONFLICT, "not valid");
    assert_fails(queue_renew(f.q, &c, 1, &err), &err, CB_E_CONFLICT, "not valid");
    assert_fails(queue_claim(f.q, id, "worker:2", 1, &c, &err), &err, CB_E_NOTFOUND,
                 "is not waiting in the queue");
    assert_events(f.q, id, "1 queued 0|2 running 1|3 note|4 note|5 note|6 failed 1|");
    close_fixture(&f);
}

static void test_finish_wants_a_final_state(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    build_id id;
    struct claim c;
    enqueue(f.q, "web", 1, 1, id);
    claim_as(f.q, id, "worker:1", &c);
    assert_fails(queue_finish(f.q, &c, BUILD_RUNNING, NULL, NULL, &err), &err, CB_E_BUG,
                 "running is not final");
    close_fixture(&f);
}

static void test_append_is_all_or_nothing(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    build_id id;
    struct claim c;
    enqueue(f.q, "web", 1, 1, id);
    claim_as(f.q, id, "worker:1", &c);
    json_auto_t *good = event_text("x");
    json_auto_t *bad = json_string("not an object");
    struct event_in ev[] = {{EVENT_NOTE, good, 1}, {EVENT_NOTE, bad, 2}};
    assert_fails(queue_append(f.q, &c, ev, 2, NULL, &err), &err, CB_E_BUG, "not JSON");
    assert_events(f.q, id, "1 queued 0|2 running 1|");
    assert_ok(queue_append(f.q, &c, ev, 1, NULL, &err), &err);
    assert_events(f.q, id, "1 queued 0|2 running 1|3 note|");
    close_fixture(&f);
}

/* ---- dedupe ---- */

static void test_same_request_finds_the_live_build(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    build_id a, b;
    struct claim c;
    assert_false(enqueue(f.q, "web", 1, 2, a));
    assert_true(enqueue(f.q, "web", 1, 2, b));
    assert_string_equal(a, b);
    claim_as(f.q, a, "worker:1", &c);
    assert_true(enqueue(f.q, "web", 1, 2, b));
    assert_string_equal(a, b);
    assert_false(enqueue(f.q, "web", 2, 2, b)); /* another request of the same config */
    assert_string_not_equal(a, b);
    assert_false(enqueue(f.q, "api", 1, 2, b)); /* another config */
    assert_ok(queue_finish(f.q, &c, BUILD_SUCCESS, NULL, NULL, &err), &err);
    assert_false(enqueue(f.q, "web", 1, 2, b)); /* it is over */
    assert_string_not_equal(a, b);
    close_fixture(&f);
}

/* ---- claims ---- */

static void test_oldest_is_claimed_first(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    build_id id[3];
    struct claim c;
    assert_fails(queue_claim(f.q, NULL, "worker:1", 1, &c, &err), &err, CB_E_NOTFOUND,
                 "no build is waiting");
    for (uint8_t i = 0; i < 3; i++)
        enqueue(f.q, "web", i, 2, id[i]);
    claim_as(f.q, id[1], "worker:1", &c);
    assert_string_equal(c.id, id[1]);
    claim_as(f.q, NULL, "worker:1", &c);
    assert_string_equal(c.id, id[0]);
    claim_as(f.q, NULL, "worker:1", &c);
    assert_string_equal(c.id, id[2]);
    assert_fails(queue_claim(f.q, NULL, "worker:1", 1, &c, &err), &err, CB_E_NOTFOUND, "no build");
    close_fixture(&f);
}

/* Waits for the start shot, claims all it can get, writes the ids. */
static int claimer(const char *path, int start, int out)
{
    char go;
    struct queue *q;
    if (read(start, &go, 1) != 0 || queue_open(path, &q, NULL) < 0)
        return 1;
    struct claim c;
    int rc;
    while ((rc = queue_claim(q, NULL, "worker:1", 30000, &c, NULL)) == 0)
        if (write(out, c.id, BUILD_ID_LEN) != BUILD_ID_LEN)
            return 1;
    queue_free(q);
    return rc == -CB_E_NOTFOUND ? 0 : 1;
}

static void test_each_build_is_claimed_by_one(void **state)
{
    enum { BUILDS = 60, CLAIMERS = 4 };
    struct fixture f;
    open_fixture(&f, *state);
    for (int i = 0; i < BUILDS; i++) {
        build_id id;
        enqueue(f.q, "web", (uint8_t)i, 2, id);
    }
    queue_free(f.q);
    int start[2], out[2];
    assert_int_equal(pipe(start), 0);
    assert_int_equal(pipe(out), 0);
    pid_t pid[CLAIMERS];
    for (int i = 0; i < CLAIMERS; i++) {
        pid[i] = fork();
        if (pid[i] == 0) {
            close(start[1]);
            _exit(claimer(f.path, start[0], out[1]));
        }
    }
    close(start[0]);
    close(start[1]); /* the shot */
    close(out[1]);
    CB_AUTO_BUF ids = CB_BUF_INIT(0);
    assert_int_equal(cb_read_fd(out[0], "ids", 1 << 20, &ids, NULL), 0);
    close(out[0]);
    for (int i = 0; i < CLAIMERS; i++) {
        int status;
        assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
        assert_int_equal(status, 0);
    }
    assert_int_equal(ids.len, BUILDS * BUILD_ID_LEN);
    for (size_t i = 0; i < BUILDS; i++)
        for (size_t j = 0; j < i; j++)
            assert_memory_not_equal(ids.data + i * BUILD_ID_LEN, ids.data + j * BUILD_ID_LEN,
                                    BUILD_ID_LEN);
    f.q = NULL;
    close_fixture(&f);
}

static void test_lease_that_ran_out_is_given_to_another(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    build_id id;
    struct claim old, c;
    enqueue(f.q, "web", 1, 2, id);
    claim_as(f.q, id, "worker:1", &old);
    assert_fails(queue_claim(f.q, NULL, "worker:2", 1, &c, &err), &err, CB_E_NOTFOUND, "no build");
    sql(f.path, "UPDATE build SET lease_until = 1");
    /* queued again, after a pause */
    assert_fails(queue_claim(f.q, NULL, "worker:2", 1, &c, &err), &err, CB_E_NOTFOUND, "no build");
    assert_int_equal(status_of(f.q, id), BUILD_QUEUED);
    assert_fails(append_notes(f.q, &old, 1, NULL, &err), &err, CB_E_CONFLICT, "not valid");
    sql(f.path, "UPDATE build SET run_at = 0");
    claim_as(f.q, NULL, "worker:2", &c);
    assert_int_equal(c.fencing, 2);
    assert_int_equal(c.attempt, 2);
    assert_fails(append_notes(f.q, &old, 1, NULL, &err), &err, CB_E_CONFLICT,
                 "claim 1 is not valid");
    assert_fails(queue_renew(f.q, &old, 30000, &err), &err, CB_E_CONFLICT, "not valid");
    assert_fails(queue_finish(f.q, &old, BUILD_SUCCESS, NULL, NULL, &err), &err, CB_E_CONFLICT,
                 "not valid");
    assert_ok(append_notes(f.q, &c, 1, NULL, &err), &err);
    sql(f.path, "UPDATE build SET lease_until = 1"); /* its last attempt */
    assert_fails(queue_claim(f.q, id, "worker:3", 1, &c, &err), &err, CB_E_NOTFOUND, "not waiting");
    struct build_record r;
    assert_ok(queue_get(f.q, id, &r, &err), &err);
    assert_int_equal(r.status, BUILD_FAILED);
    assert_string_equal(r.error, "the worker stopped renewing its lease");
    assert_string_equal(r.error_class, "host");
    assert_true(r.finished_ms > 0);
    build_record_release(&r);
    assert_events(f.q, id, "1 queued 0|2 running 1|3 queued 1|4 running 2|5 note|6 failed 2|");
    close_fixture(&f);
}

static void test_lease_of_a_live_process_is_its_own(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    build_id id;
    struct claim c, other;
    CB_AUTO_FREE char *self = queue_owner_self();
    enqueue(f.q, "web", 1, 1, id);
    claim_as(f.q, id, self, &c);
    sql(f.path, "UPDATE build SET lease_until = 1"); /* the machine slept */
    assert_fails(queue_claim(f.q, NULL, "worker:2", 1, &other, &err), &err, CB_E_NOTFOUND,
                 "no build");
    assert_ok(queue_abandon_dead(f.q, NULL, NULL, &err), &err);
    assert_ok(queue_renew(f.q, &c, 30000, &err), &err);
    assert_ok(append_notes(f.q, &c, 1, NULL, &err), &err);
    close_fixture(&f);
}

static void test_pauses_grow(void **state)
{
    static const struct {
        int attempt;
        int64_t pause_ms;
    } rows[] = {{1, 10000}, {2, 20000}, {3, 40000}, {6, 320000}, {7, 600000}, {50, 600000}};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        build_id id;
        struct claim c;
        enqueue(f.q, "web", (uint8_t)i, 100, id);
        CB_AUTO_FREE char *set =
            cb_xasprintf("UPDATE build SET attempt = %d WHERE id = '%s'", rows[i].attempt - 1, id);
        sql(f.path, set);
        claim_as(f.q, id, "worker:1", &c);
        assert_int_equal(c.attempt, rows[i].attempt);
        struct build_outcome o = {
            .status = BUILD_FAILED, .error = "down", .error_class = "NET", .may_retry = true};
        enum build_status reached;
        assert_ok(queue_finish_outcome(f.q, &c, &o, &reached, &err), &err);
        assert_int_equal(reached, BUILD_QUEUED);
        /* run_at and finished_ms would come from the same clock; the event has its reading */
        CB_AUTO_FREE char *check =
            cb_xasprintf("CREATE TEMP TABLE t (x CHECK (x = 1)); INSERT INTO t SELECT abs(b.run_at "
                         "- e.ts - %lld)"
                         " < 5000 FROM build b JOIN event e ON e.build = b.n AND e.seq = b.last_seq"
                         " WHERE b.id = '%s'",
                         (long long)rows[i].pause_ms, id);
        sql(f.path, check);
    }
    close_fixture(&f);
}

/* ---- owners that are gone ---- */

static void note_id(void *arg, const char *id)
{
    (void)cb_buf_addf(arg, "%s|", id);
}

static void test_builds_of_a_dead_process_are_failed(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    queue_free(f.q);
    int out[2];
    assert_int_equal(pipe(out), 0);
    pid_t pid = fork();
    if (pid == 0) {
        build_id id[2];
        struct claim c;
        CB_AUTO_FREE char *self = queue_owner_self();
        if (queue_open(f.path, &f.q, NULL) < 0)
            _exit(1);
        enqueue(f.q, "web", 1, 1, id[0]);
        enqueue(f.q, "web", 2, 1, id[1]);
        claim_as(f.q, id[0], self, &c);
        if (write(out[1], id, sizeof(id)) != (ssize_t)sizeof(id))
            _exit(1);
        for (;;)
            pause();
    }
    build_id id[2], mine;
    assert_int_equal(read(out[0], id, sizeof(id)), sizeof(id));
    close(out[0]);
    close(out[1]);
    assert_ok(queue_open(f.path, &f.q, &err), &err);
    enqueue(f.q, "mine", 1, 1, mine);
    CB_AUTO_BUF gone = CB_BUF_INIT(1000);
    assert_ok(queue_abandon_dead(f.q, note_id, &gone, &err), &err); /* it lives */
    assert_int_equal(gone.len, 0);
    assert_int_equal(kill(pid, SIGKILL), 0);
    siginfo_t si;
    assert_int_equal(waitid(P_PID, (id_t)pid, &si, WEXITED | WNOWAIT), 0);
    /* a zombie is gone, too */
    assert_ok(queue_abandon_dead(f.q, note_id, &gone, &err), &err);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    CB_AUTO_FREE char *expected = cb_xasprintf("%s|%s|", id[0], id[1]);
    assert_string_equal(gone.data, expected);
    assert_events(f.q, id[0], "1 queued 0|2 running 1|3 failed 1|");
    assert_events(f.q, id[1], "1 queued 0|2 failed 0|");
    struct build_record r;
    assert_ok(queue_get(f.q, id[0], &r, &err), &err);
    assert_string_equal(r.error, "abandoned: the process that ran it is gone");
    assert_string_equal(r.error_class, "host");
    build_record_release(&r);
    struct claim late = {.fencing = 1, .attempt = 1};
    memcpy(late.id, id[0], sizeof(late.id));
    assert_fails(queue_finish(f.q, &late, BUILD_FAILED, NULL, NULL, &err), &err, CB_E_CONFLICT,
                 "not valid");
    assert_int_equal(status_of(f.q, mine), BUILD_QUEUED);
    close_fixture(&f);
}

static void test_owner_state(void **state)
{
    (void)state;
    CB_AUTO_FREE char *self = queue_owner_self();
    assert_int_equal(queue_owner_state(self), OWNER_ALIVE);
    char *at = NULL;
    unsigned long long pid = strtoull(self + strlen("cli:"), &at, 10);
    unsigned long long start = strtoull(at + 1, &at, 10);
    unsigned long long ns = strtoull(at + 1, &at, 10);
    assert_int_equal(pid, getpid());
    const char *boot = at + 1;
    const struct {
        unsigned long long start, ns;
        const char *boot;
        enum owner_state expected;
    } rows[] = {
        {start, ns, boot, OWNER_ALIVE},
        {start + 1, ns, boot, OWNER_GONE}, /* the number was given to another process */
        {start, ns, "another-boot", OWNER_GONE},
        {start, ns + 1, boot, OWNER_UNKNOWN}, /* its numbers mean nothing here */
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        CB_AUTO_FREE char *o =
            cb_xasprintf("cli:%llu:%llu:%llu:%s", pid, rows[i].start, rows[i].ns, rows[i].boot);
        assert_int_equal(queue_owner_state(o), rows[i].expected);
    }
    static const char *const unknown[] = {"worker:1", "cli:", "cli:x:1:2:b", "cli:1:2"};
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++)
        assert_int_equal(queue_owner_state(unknown[i]), OWNER_UNKNOWN);
}

static void test_unknown_owner_is_judged_by_its_lease(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    build_id id;
    struct claim c;
    enqueue(f.q, "web", 1, 1, id);
    claim_as(f.q, id, "cli:1:2:3", &c);
    assert_ok(queue_abandon_dead(f.q, NULL, NULL, &err), &err);
    assert_int_equal(status_of(f.q, id), BUILD_RUNNING);
    sql(f.path, "UPDATE build SET lease_until = 1");
    assert_ok(queue_abandon_dead(f.q, NULL, NULL, &err), &err);
    assert_int_equal(status_of(f.q, id), BUILD_FAILED);
    close_fixture(&f);
}

/* ---- reading ---- */

static void test_events_from_anywhere(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    build_id id;
    struct claim c;
    enqueue(f.q, "web", 1, 1, id);
    claim_as(f.q, id, "worker:1", &c);
    assert_ok(append_notes(f.q, &c, 598, NULL, &err), &err); /* 600: more than one batch */
    struct seen s = {.b = CB_BUF_INIT(1 << 20)};
    assert_int_equal(queue_events(f.q, id, 0, 0, see, &s, &err), 600);
    assert_int_equal(s.last, 600);
    assert_int_equal(queue_events(f.q, id, 590, 0, see, &s, &err), 10);
    assert_int_equal(queue_events(f.q, id, 600, 0, see, &s, &err), 0);
    assert_int_equal(queue_events(f.q, id, 10, 300, see, &s, &err), 300);
    assert_int_equal(s.last, 310);
    assert_int_equal(queue_events(f.q, "nothing", 0, 0, see, &s, &err), 0);
    s.n = 0;
    s.stop_at = 5;
    assert_int_equal(queue_events(f.q, id, 0, 0, see, &s, NULL), -CB_E_CANCELED);
    assert_int_equal(s.last, 5);
    cb_buf_release(&s.b);
    close_fixture(&f);
}

static void test_list_is_newest_first(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    build_id id[4];
    for (uint8_t i = 0; i < 4; i++)
        enqueue(f.q, i == 2 ? "api" : "web", i, 2, id[i]);
    static const struct {
        const char *name;
        size_t max, n;
        int expected[4];
    } rows[] = {
        {NULL, 0, 4, {3, 2, 1, 0}}, {NULL, 2, 2, {3, 2}}, {"web", 0, 3, {3, 1, 0}},
        {"web", 1, 1, {3}},         {"api", 0, 1, {2}},   {"nobody", 0, 0, {0}},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct build_record *v = NULL;
        size_t n = 0;
        assert_ok(queue_list(f.q, rows[i].name, rows[i].max, &v, &n, &err), &err);
        assert_int_equal(n, rows[i].n);
        for (size_t k = 0; k < n; k++) {
            assert_string_equal(v[k].id, id[rows[i].expected[k]]);
            build_record_release(&v[k]);
        }
        free(v);
    }
    close_fixture(&f);
}

static void test_find_by_what_people_type(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    build_id found;
    assert_fails(queue_find(f.q, NULL, found, &err), &err, CB_E_NOTFOUND, "there is no build yet");
    build_id made;
    for (uint8_t i = 0; i < 3; i++)
        enqueue(f.q, i == 1 ? "api" : "web", i, 2, made);
    sql(f.path, "UPDATE build SET id = '01AAAAAAAAAAAAAAAAAAAAAAA' || n WHERE n < 3;"
                "UPDATE build SET id = '01BBBBBBBBBBBBBBBBBBBBBBB3' WHERE n = 3");
    static const struct {
        const char *text, *id;
    } good[] = {
        {NULL, "01BBBBBBBBBBBBBBBBBBBBBBB3"},
        {"", "01BBBBBBBBBBBBBBBBBBBBBBB3"},
        {"web", "01BBBBBBBBBBBBBBBBBBBBBBB3"},
        {"api", "01AAAAAAAAAAAAAAAAAAAAAAA2"},
        {"01AAAAAAAAAAAAAAAAAAAAAAA1", "01AAAAAAAAAAAAAAAAAAAAAAA1"},
        {"01aaaaaaaaaaaaaaaaaaaaaaa1", "01AAAAAAAAAAAAAAAAAAAAAAA1"},
        {"01b", "01BBBBBBBBBBBBBBBBBBBBBBB3"},
    };
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_ok(queue_find(f.q, good[i].text, found, &err), &err);
        assert_string_equal(found, good[i].id);
    }
    static const struct {
        const char *text, *message;
    } wrong[] = {
        {"01a", "several builds begin so, such as 01AAAAAAAAAAAAAAAAAAAAAAA2"},
        {"zzz", "zzz: no build has this id"},
        {"01%", "no build has this id"},
        {"01AAAAAAAAAAAAAAAAAAAAAAA11", "no build has this id"},
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        assert_fails(queue_find(f.q, wrong[i].text, found, &err), &err, CB_E_NOTFOUND,
                     wrong[i].message);
    close_fixture(&f);
}

/* The wait has a minute; a change that were not noticed would end the test by its time limit. */
static void test_wait_sees_changes(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    queue_free(f.q);
    int go[2];
    assert_int_equal(pipe(go), 0);
    pid_t pid = fork();
    if (pid == 0) {
        char c;
        build_id id;
        if (queue_open(f.path, &f.q, NULL) < 0)
            _exit(1);
        for (uint8_t i = 0; i < 3; i++) {
            if (read(go[0], &c, 1) != 1)
                _exit(1);
            enqueue(f.q, "web", i, 2, id);
        }
        _exit(0);
    }
    assert_ok(queue_open(f.path, &f.q, &err), &err);
    for (size_t i = 0; i < 3; i++) {
        struct build_record *v = NULL;
        size_t n = 0;
        assert_int_equal(write(go[1], "x", 1), 1);
        while (n <= i) {
            assert_ok(queue_list(f.q, NULL, 0, &v, &n, &err), &err);
            for (size_t k = 0; k < n; k++)
                build_record_release(&v[k]);
            free(v);
            if (n <= i)
                queue_wait_change(f.q, 60000);
        }
    }
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    close(go[0]);
    close(go[1]);
    queue_wait_change(f.q, 0);
    build_id id;
    enqueue(f.q, "own", 1, 2, id); /* a handle's own writes count as well */
    queue_wait_change(f.q, 60000);
    close_fixture(&f);
}

/* ---- the file ---- */

static void write_bytes(const char *path, const void *p, size_t n)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(cb_write_file(path, p, n, 0600, &err), &err);
}

static void test_database_that_cannot_be_used(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/q.db", (char *)*state);
    struct queue *q = NULL;

    write_bytes(path, "", 0); /* version 0: made when it is empty */
    assert_ok(queue_open(path, &q, &err), &err);
    queue_free(q);
    assert_ok(queue_open(path, &q, &err), &err); /* and again */
    queue_free(q);

    sql(path, "PRAGMA user_version = 99");
    assert_int_equal(queue_open(path, &q, &err), -CB_E_ENV);
    assert_non_null(
        strstr(err.msg, "was written by a newer capsule-build (its version 99, ours 1)"));
    assert_non_null(strstr(err.hint, "newer capsule-build"));
    cb_error_clear(&err);

    assert_int_equal(unlink(path), 0);
    sql(path, "CREATE TABLE songs (name TEXT)");
    assert_fails(queue_open(path, &q, &err), &err, CB_E_CORRUPT,
                 "is a database of another program");

    char junk[8192];
    memset(junk, 'j', sizeof(junk));
    write_bytes(path, junk, sizeof(junk));
    assert_int_equal(queue_open(path, &q, &err), -CB_E_CORRUPT);
    assert_non_null(strstr(err.msg, "is damaged: file is not a database"));
    assert_non_null(strstr(err.hint, "Move it away (mv "));
    cb_error_clear(&err);

    CB_AUTO_FREE char *below = cb_xasprintf("%s/below/q.db", path);
    assert_int_equal(queue_open(below, &q, &err) < 0, 1);
    cb_error_clear(&err);
    CB_AUTO_FREE char *folder = cb_xasprintf("%s/folder", (char *)*state);
    assert_ok(cb_mkdir_p(folder, 0700, &err), &err);
    assert_fails(queue_open(folder, &q, &err), &err, CB_E_ENV, "unable to open database file");
}

static void test_damage_inside_is_told(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct fixture f;
    open_fixture(&f, *state);
    build_id id;
    for (uint8_t i = 0; i < 100; i++)
        enqueue(f.q, "web", i, 2, id);
    queue_free(f.q);
    sql(f.path, "PRAGMA wal_checkpoint(TRUNCATE)");
    CB_AUTO_FD fd = open(f.path, O_RDWR | O_CLOEXEC);
    off_t size = lseek(fd, 0, SEEK_END);
    char junk[4096];
    memset(junk, 0xa5, sizeof(junk));
    for (off_t at = 4096; at < size; at += 4096) /* all but the page with the schema */
        assert_ok(cb_pwrite_all(fd, junk, sizeof(junk), at, &err), &err);
    cb_close(cb_take_fd(&fd));
    assert_ok(queue_open(f.path, &f.q, &err), &err);
    struct build_record r;
    assert_int_equal(queue_get(f.q, id, &r, &err), -CB_E_CORRUPT);
    assert_non_null(strstr(err.msg, "is damaged"));
    assert_non_null(strstr(err.hint, "Move it away"));
    close_fixture(&f);
}

static void test_file_is_private_and_durable(void **state)
{
    struct fixture f;
    open_fixture(&f, *state);
    struct stat st;
    assert_int_equal(stat(f.path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    close_fixture(&f);
}

/* Several open a database that is not there yet. */
static void test_first_opens_at_once(void **state)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/q.db", (char *)*state);
    enum { OPENERS = 6 };
    int start[2];
    assert_int_equal(pipe(start), 0);
    pid_t pid[OPENERS];
    for (int i = 0; i < OPENERS; i++) {
        pid[i] = fork();
        if (pid[i] == 0) {
            close(start[1]);
            char c;
            struct queue *q;
            CB_AUTO_ERROR err = CB_ERROR_INIT;
            if (read(start[0], &c, 1) != 0)
                _exit(1);
            if (queue_open(path, &q, &err) < 0) {
                fprintf(stderr, "%s\n", err.msg);
                _exit(2);
            }
            queue_free(q);
            _exit(0);
        }
    }
    close(start[0]);
    close(start[1]);
    for (int i = 0; i < OPENERS; i++) {
        int status;
        assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
        assert_int_equal(status, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_dir(test_enqueued_build_is_kept_as_given),
        test_in_dir(test_life_of_a_build),
        test_in_dir(test_finish_wants_a_final_state),
        test_in_dir(test_append_is_all_or_nothing),
        test_in_dir(test_same_request_finds_the_live_build),
        test_in_dir(test_oldest_is_claimed_first),
        test_in_dir(test_each_build_is_claimed_by_one),
        test_in_dir(test_lease_that_ran_out_is_given_to_another),
        test_in_dir(test_lease_of_a_live_process_is_its_own),
        test_in_dir(test_pauses_grow),
        test_in_dir(test_builds_of_a_dead_process_are_failed),
        cmocka_unit_test(test_owner_state),
        test_in_dir(test_unknown_owner_is_judged_by_its_lease),
        test_in_dir(test_events_from_anywhere),
        test_in_dir(test_list_is_newest_first),
        test_in_dir(test_find_by_what_people_type),
        test_in_dir(test_wait_sees_changes),
        test_in_dir(test_database_that_cannot_be_used),
        test_in_dir(test_damage_inside_is_told),
        test_in_dir(test_file_is_private_and_durable),
        test_in_dir(test_first_opens_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
